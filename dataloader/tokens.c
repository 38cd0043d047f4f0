// Files mapped one behind the other, and reading across them.
#include "dataloader/tokens.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dataloader/formats.h"

// ---- opening --------------------------------------------------------------------------------------------------------

static bool place(TokenSource *source, TokenFile *file, Error *err) {
    file->first = source->count;
    if (__builtin_add_overflow(source->count, file->count, &source->count))
        return error_set(err, "%s: more tokens in all than can be counted; give fewer files", file->path);
    source->files++;
    return true;
}

// Adds the file in the next place of the array. Files without a token are passed over, unless `named` by themselves.
static bool add_file(TokenSource *source, const char *path, bool named, Error *err) {
    TokenFile *file = &source->file[source->files];
    *file = (TokenFile){.path = path};
    Kind kind = KIND_BYTES;
    bool ok = token_file_load(file, err) && token_file_recognise(file, source->format, &kind, err);
    if (ok && file->count == 0) {
        token_file_unload(file);
        return named ? error_set(err, "%s is empty; give a file with data in it", path) : true;
    }
    if (ok && source->files == 0) source->kind = kind;
    if (ok && kind != source->kind)
        ok = error_set(err, "%s is %s but %s is %s: give files of one kind%s", path, kind_described(kind),
                       source->file[0].path, kind_described(source->kind),
                       kind_is_numbers(kind) || kind_is_numbers(source->kind)
                           ? ""
                           : ", or --data-format bytes to take all of them as bytes");
    ok = ok && place(source, file, err);
    if (!ok) token_file_unload(file);
    return ok;
}

static bool add_argument(TokenSource *source, const char *argument, Error *err) {
    int before = source->list.count, files_before = source->files;
    if (!file_list_append(&source->list, argument, err)) return false;
    int found = source->list.count;
    TokenFile *grown = realloc(source->file, (size_t)found * sizeof *grown);
    if (grown == NULL) return error_set(err, "out of memory for %d data files", found);
    source->file = grown;
    bool named = found == before + 1 && strcmp(source->list.path[before], argument) == 0;
    for (int i = before; i < found; i++)
        if (!add_file(source, source->list.path[i], named, err)) return false;
    if (source->files == files_before)
        return error_set(err, "%s: all its files are empty; give some with data", argument);
    return true;
}

static TokenSource *new_source(Error *err) {
    TokenSource *source = calloc(1, sizeof *source);
    if (source == NULL) error_set(err, "out of memory while opening the data");
    return source;
}

TokenSource *tokens_open(const char *const *arguments, int count, TokenFormat format, Error *err) {
    TokenSource *source = new_source(err);
    if (source == NULL) return NULL;
    source->format = format;
    bool ok = count > 0 || error_set(err, "no data given; name files, folders or patterns");
    for (int i = 0; ok && i < count; i++) ok = add_argument(source, arguments[i], err);
    if (!ok) {
        tokens_close(source);
        return NULL;
    }
    int n = snprintf(source->name, sizeof source->name, "%.150s", source->file[0].path);
    if (source->files > 1)
        snprintf(source->name + n, sizeof source->name - (size_t)n, " and %d more", source->files - 1);
    for (char *c = source->name; *c != '\0'; c++) // messages are one line
        if ((unsigned char)*c < ' ') *c = '?';
    source->fingerprint = source_fingerprint(source);
    return source;
}

TokenSource *tokens_open_memory(const void *bytes, size_t size, Error *err) {
    if (size == 0) {
        error_set(err, "the built-in text is empty; build the program again");
        return NULL;
    }
    TokenSource *source = new_source(err);
    if (source == NULL) return NULL;
    source->file = calloc(1, sizeof *source->file);
    if (source->file == NULL) {
        error_set(err, "out of memory while opening the data");
        tokens_close(source);
        return NULL;
    }
    unsigned char *text = (unsigned char *)(uintptr_t)bytes; // never written: it is no file's
    source->file[0] = (TokenFile){.bytes = text, .size = size, .tokens = text, .count = (int64_t)size + 1};
    source->files = 1;
    source->count = source->file[0].count;
    snprintf(source->name, sizeof source->name, "the built-in text");
    source->fingerprint = source_fingerprint(source);
    return source;
}

TokenSource *tokens_open_task(const Task *task, Error *err) {
    TokenSource *source = new_source(err);
    if (source == NULL) return NULL;
    source->made = true;
    source->task = *task;
    source->kind = KIND_UINT16;
    source->count = 2 * TASK_SPLIT_TOKENS;
    source->fingerprint = task_fingerprint(task);
    snprintf(source->name, sizeof source->name, TASK_NAME "%s", task->text);
    return source;
}

const Task *tokens_task(const TokenSource *source) { return source->made ? &source->task : NULL; }

void tokens_close(TokenSource *source) {
    if (source == NULL) return;
    for (int i = 0; i < source->files; i++) token_file_unload(&source->file[i]);
    free(source->file);
    file_list_free(&source->list);
    free(source);
}

int64_t tokens_count(const TokenSource *source) { return source->count; }
int64_t tokens_vocabulary(const TokenSource *source) {
    return source->made ? task_vocabulary(&source->task) : kind_vocabulary(source->kind);
}
bool tokens_are_bytes(const TokenSource *source) { return source->kind == KIND_BYTES; }
const char *tokens_name(const TokenSource *source) { return source->name; }

uint64_t tokens_fingerprint(const TokenSource *source) { return source->fingerprint; }
const char *tokens_kind(const TokenSource *source) { return kind_name(source->kind); }
bool tokens_without_header(const TokenSource *source) {
    return source->format == TOKENS_UINT16 || source->format == TOKENS_UINT32;
}

const char *tokens_unit(const TokenSource *source) {
    const Format *format = format_of(source->kind);
    return format != NULL ? format->unit : source->kind == KIND_BYTES ? "byte" : NULL;
}

const char *tokens_symbols(const TokenSource *source) {
    const Format *format = format_of(source->kind);
    return format != NULL ? format->symbols : NULL;
}

int32_t tokens_document_end(const TokenSource *source) {
    return kind_is_numbers(source->kind) ? -1 : (int32_t)kind_vocabulary(source->kind) - 1;
}

// ---- text -----------------------------------------------------------------------------------------------------------

bool tokens_are_text(const TokenSource *source) {
    const Format *format = format_of(source->kind);
    return format != NULL ? format->symbol_at != NULL : source->kind == KIND_BYTES;
}

bool tokens_of_text(const TokenSource *source, const char *text, int32_t *tokens, int64_t *count, size_t *at) {
    const Format *format = format_of(source->kind);
    const unsigned char *byte = (const unsigned char *)text;
    size_t size = strlen(text);
    *count = 0;
    for (*at = 0; *at < size; ++*at) {
        int token = format != NULL ? format->symbol_at(byte, size, *at) : byte[*at];
        if (token == CHARACTER_REFUSED) return false;
        if (token != CHARACTER_SKIPPED) tokens[(*count)++] = token;
    }
    return true;
}

char tokens_character(const TokenSource *source, int32_t token) {
    const Format *format = format_of(source->kind);
    if (format != NULL) return format->character_of(token);
    return token < TOKEN_END_OF_DOCUMENT ? (char)token : '\n';
}

// ---- reading --------------------------------------------------------------------------------------------------------

// The file that holds a token: the last one that starts at or before it.
static const TokenFile *file_of(const TokenSource *source, int64_t token) {
    int low = 0, high = source->files;
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        if (source->file[middle].first <= token) low = middle;
        else high = middle;
    }
    return &source->file[low];
}

static void decode(const TokenFile *file, Kind kind, int64_t begin, int64_t count, int32_t *out) {
    if (kind_width(kind) == 2) {
        for (int64_t i = 0; i < count; i++) out[i] = (int32_t)read16(file->tokens + 2 * (begin + i));
    } else if (kind == KIND_UINT32) {
        for (int64_t i = 0; i < count; i++) out[i] = (int32_t)read32(file->tokens + 4 * (begin + i));
    } else {
        int64_t size = file->count - 1, bytes = begin + count > size ? size - begin : count;
        for (int64_t i = 0; i < bytes; i++) out[i] = file->tokens[begin + i];
        if (bytes < count) out[bytes] = TOKEN_END_OF_DOCUMENT;
    }
}

static bool check(const TokenSource *source, const TokenFile *file, int64_t begin, int64_t count, int64_t vocabulary,
                  const int32_t *out, Error *err) {
    for (int64_t i = 0; i < count; i++) {
        if ((uint32_t)out[i] < (uint64_t)vocabulary) continue;
        return error_set(err,
                         "%s: token %u at place %lld is not below the vocabulary of %lld; the data are damaged or "
                         "another tokenizer's (a new model can be given its --vocab-size)",
                         file->path != NULL ? file->path : source->name, (uint32_t)out[i], (long long)(begin + i),
                         (long long)vocabulary);
    }
    return true;
}

bool tokens_read(const TokenSource *source, int64_t first, int64_t count, int64_t vocabulary, int32_t *out,
                 Error *err) {
    if (source->made) return error_set(err, "%s: has windows, and no tokens outside them", source->name);
    if (first < 0 || count < 0 || count > source->count - first)
        return error_set(err, "%s: tokens %lld to %lld were asked for, but there are %lld", source->name,
                         (long long)first, (long long)(first + count), (long long)source->count);
    if (count == 0) return true;
    for (const TokenFile *file = file_of(source, first); count > 0; file++) {
        int64_t begin = first - file->first, n = file->count - begin < count ? file->count - begin : count;
        if (!token_file_still_whole(file, err)) return false;
        decode(file, source->kind, begin, n, out);
        if (!check(source, file, begin, n, vocabulary, out, err)) return false;
        first += n;
        out += n;
        count -= n;
    }
    return true;
}

// ---- checking numbers -----------------------------------------------------------------------------------------------

bool tokens_always_below(const TokenSource *source, int64_t vocabulary) {
    if (source->made) return vocabulary >= task_vocabulary(&source->task);
    if (!kind_is_numbers(source->kind)) return vocabulary >= kind_vocabulary(source->kind);
    return vocabulary > (source->kind == KIND_UINT16 ? UINT16_MAX : (int64_t)UINT32_MAX);
}

static uint32_t largest16(const unsigned char *p, int64_t count) {
    uint32_t most = 0;
    for (int64_t i = 0; i < count; i++) most = read16(p + 2 * i) > most ? read16(p + 2 * i) : most;
    return most;
}

static uint32_t largest32(const unsigned char *p, int64_t count) {
    uint32_t most = 0;
    for (int64_t i = 0; i < count; i++) most = read32(p + 4 * i) > most ? read32(p + 4 * i) : most;
    return most;
}

static uint32_t token_at(const TokenFile *file, Kind kind, int64_t i) {
    int32_t token;
    decode(file, kind, i, 1, &token);
    return (uint32_t)token;
}

// The first of the file's tokens [begin, begin + count) that is not below the vocabulary; begin + count: none.
static int64_t first_beyond(const TokenFile *file, Kind kind, int64_t begin, int64_t count, int64_t vocabulary) {
    const unsigned char *p = file->tokens + begin * kind_width(kind);
    int64_t end = begin + count;
    if (kind_width(kind) == 2 && largest16(p, count) < vocabulary) return end;
    if (kind == KIND_UINT32 && largest32(p, count) < vocabulary) return end;
    while (begin < end && token_at(file, kind, begin) < vocabulary) begin++;
    return begin;
}

bool tokens_find_beyond(const TokenSource *source, int64_t first, int64_t count, int64_t vocabulary, int64_t *place,
                        Error *err) {
    int64_t end = first + count;
    *place = end;
    if (count == 0) return true;
    for (const TokenFile *file = file_of(source, first); first < end; file++) {
        int64_t begin = first - file->first, n = file->count - begin < end - first ? file->count - begin : end - first;
        if (!token_file_still_whole(file, err)) return false;
        int64_t found = first_beyond(file, source->kind, begin, n, vocabulary);
        if (found < begin + n) {
            *place = file->first + found;
            return true;
        }
        first += n;
    }
    return true;
}
