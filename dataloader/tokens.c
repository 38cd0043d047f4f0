#include "dataloader/tokens.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dataloader/files.h"

typedef enum Kind { KIND_BYTES, KIND_UINT16, KIND_UINT32, KIND_COUNT } Kind;

typedef struct Format {
    const char *name;
    uint32_t magic;
    uint32_t version;
    int width; // bytes per token
    int64_t vocabulary;
} Format;

static const Format FORMATS[KIND_COUNT] = {
    {"plain bytes (no token shard's magic at its start)", 0, 0, 1, BYTE_VOCABULARY},
    {"a shard of uint16 tokens", 20240520, 1, 2, 50257},
    {"a shard of uint32 tokens", 20240801, 7, 4, 128256},
};

enum {
    HEADER_BYTES = 256 * 4,
    // Smaller files are copied into memory: a mapping costs the kernel more than that, and it allows only some 65,000.
    SMALLEST_MAPPED = 64 * 1024,
};

typedef struct TokenFile {
    const char *path; // NULL: memory of the caller
    unsigned char *bytes;
    size_t size;
    bool mapped;
    dev_t device; // who it is, to notice that it was cut short
    ino_t inode;
    const unsigned char *tokens; // inside bytes
    int64_t first;               // place of its first token in the source
    int64_t count;
} TokenFile;

struct TokenSource {
    FileList list; // owns the paths
    TokenFile *file;
    int files;
    Kind kind;
    int64_t count;
    char name[200];
};

// Shards are little-endian on every machine.
static uint32_t read16(const unsigned char *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
static uint32_t read32(const unsigned char *p) { return read16(p) | read16(p + 2) << 16; }

static bool read_whole(int fd, TokenFile *file, Error *err) {
    file->bytes = malloc(file->size);
    if (file->bytes == NULL) return error_set(err, "%s: out of memory for its %zu bytes", file->path, file->size);
    for (size_t done = 0; done < file->size;) {
        ssize_t n = read(fd, file->bytes + done, file->size - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return error_set(err, "cannot read %s: %s", file->path, strerror(errno));
        if (n == 0) return error_set(err, "%s became shorter while it was read; try again", file->path);
        done += (size_t)n;
    }
    return true;
}

static bool map_whole(int fd, TokenFile *file, Error *err) {
    void *bytes = mmap(NULL, file->size, PROT_READ, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED)
        return error_set(err, "cannot map %s into memory: %s%s", file->path, strerror(errno),
                         errno == ENOMEM ? "; with very many files, join them into fewer" : "");
    file->bytes = bytes;
    file->mapped = true;
    return true;
}

static bool load(TokenFile *file, Error *err) {
    int fd = open(file->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set(err, "cannot read %s: %s; check its permissions", file->path, strerror(errno));
    struct stat status;
    bool ok = fstat(fd, &status) == 0;
    if (!ok) error_set(err, "cannot read %s: %s", file->path, strerror(errno));
    if (ok) {
        file->size = (size_t)status.st_size;
        file->device = status.st_dev;
        file->inode = status.st_ino;
        if (file->size >= SMALLEST_MAPPED) ok = map_whole(fd, file, err);
        else if (file->size > 0) ok = read_whole(fd, file, err);
    }
    close(fd);
    return ok;
}

static void unload(TokenFile *file) {
    if (file->mapped) munmap(file->bytes, file->size);
    else if (file->path != NULL) free(file->bytes);
}

// Any file is bytes unless it says otherwise. One that starts with another of llm.c's dated magics, or whose header is
// a shard's in all but the magic, is a damaged or misplaced file and no text.
static bool recognise(const TokenFile *file, Kind *kind, Error *err) {
    *kind = KIND_BYTES;
    if (file->size < 4) return true;
    uint32_t magic = read32(file->bytes);
    for (Kind k = KIND_UINT16; k < KIND_COUNT; k++)
        if (magic == FORMATS[k].magic) *kind = k;
    if (*kind != KIND_BYTES) return true;

    bool misplaced = magic >= 20240101 && magic <= 20241231;
    if (file->size > HEADER_BYTES) {
        size_t version = read32(file->bytes + 4), count = read32(file->bytes + 8), body = file->size - HEADER_BYTES;
        for (Kind k = KIND_UINT16; k < KIND_COUNT; k++)
            misplaced |= version == FORMATS[k].version && body == count * (size_t)FORMATS[k].width;
    }
    if (misplaced)
        return error_set(err, "%s: bad magic %u: token shards start with %u or %u; make it again or leave it out",
                         file->path, magic, FORMATS[KIND_UINT16].magic, FORMATS[KIND_UINT32].magic);
    return true;
}

static bool read_header(TokenFile *file, const Format *format, Error *err) {
    if (file->size < HEADER_BYTES)
        return error_set(err, "%s: truncated: %zu bytes are less than a token shard's header of %d; make it again",
                         file->path, file->size, HEADER_BYTES);
    uint32_t version = read32(file->bytes + 4);
    if (version != format->version)
        return error_set(err, "%s: token shard of version %u; only version %u is known for magic %u: make it again",
                         file->path, version, format->version, format->magic);
    uint32_t count = read32(file->bytes + 8);
    if (count > INT32_MAX)
        return error_set(err, "%s: the header says %d tokens; copy or make it again", file->path, (int32_t)count);
    size_t expected = HEADER_BYTES + (size_t)count * (size_t)format->width;
    if (file->size != expected)
        return error_set(err, "%s: %s: the header says %u tokens, %zu bytes in all, but the file has %zu; copy or make "
                         "it again", file->path, file->size < expected ? "truncated" : "too long", count, expected,
                         file->size);
    file->tokens = file->bytes + HEADER_BYTES;
    file->count = count;
    return true;
}

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
    bool ok = load(file, err) && recognise(file, &kind, err);
    if (ok && kind == KIND_BYTES) {
        file->tokens = file->bytes;
        file->count = file->size > 0 ? (int64_t)file->size + 1 : 0;
    } else if (ok) {
        ok = read_header(file, &FORMATS[kind], err);
    }
    if (ok && file->count == 0) {
        unload(file);
        return named ? error_set(err, "%s is empty; give a file with data in it", path) : true;
    }
    if (ok && source->files == 0) source->kind = kind;
    if (ok && kind != source->kind)
        ok = error_set(err, "%s is %s but %s is %s: give files of one kind", path, FORMATS[kind].name,
                       source->file[0].path, FORMATS[source->kind].name);
    ok = ok && place(source, file, err);
    if (!ok) unload(file);
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

TokenSource *tokens_open(const char *const *arguments, int count, Error *err) {
    TokenSource *source = new_source(err);
    if (source == NULL) return NULL;
    bool ok = count > 0 || error_set(err, "no data given; name files, folders or patterns");
    for (int i = 0; ok && i < count; i++) ok = add_argument(source, arguments[i], err);
    if (!ok) {
        tokens_close(source);
        return NULL;
    }
    int n = snprintf(source->name, sizeof source->name, "%.150s", source->file[0].path);
    if (source->files > 1)
        snprintf(source->name + n, sizeof source->name - (size_t)n, " and %d more", source->files - 1);
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
    source->file[0] = (TokenFile){.size = size, .tokens = bytes, .count = (int64_t)size + 1};
    source->files = 1;
    source->count = source->file[0].count;
    snprintf(source->name, sizeof source->name, "the built-in text");
    return source;
}

void tokens_close(TokenSource *source) {
    if (source == NULL) return;
    for (int i = 0; i < source->files; i++) unload(&source->file[i]);
    free(source->file);
    file_list_free(&source->list);
    free(source);
}

int64_t tokens_count(const TokenSource *source) { return source->count; }
int64_t tokens_vocabulary(const TokenSource *source) { return FORMATS[source->kind].vocabulary; }
bool tokens_are_bytes(const TokenSource *source) { return source->kind == KIND_BYTES; }
int tokens_files(const TokenSource *source) { return source->files; }
const char *tokens_name(const TokenSource *source) { return source->name; }

static uint64_t mix(uint64_t hash, uint64_t word) { // FNV-1a (Fowler, Noll, Vo), byte by byte
    for (int i = 0; i < 8; i++) hash = (hash ^ (word >> 8 * i & 0xff)) * UINT64_C(0x100000001b3);
    return hash;
}

uint64_t tokens_fingerprint(const TokenSource *source) {
    uint64_t hash = mix(UINT64_C(0xcbf29ce484222325), (uint64_t)source->kind);
    hash = mix(hash, (uint64_t)source->files);
    for (int i = 0; i < source->files; i++) hash = mix(hash, (uint64_t)source->file[i].count);
    return hash;
}

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

// To touch a mapped page beyond the end of a file that has been cut short would kill the process (SIGBUS): look first.
// A file that was removed or replaced under its name lives on in the mapping.
static bool still_whole(const TokenFile *file, Error *err) {
    struct stat now;
    if (!file->mapped || stat(file->path, &now) != 0) return true;
    if (now.st_dev != file->device || now.st_ino != file->inode || (size_t)now.st_size >= file->size) return true;
    return error_set(err, "%s: cut from %zu to %lld bytes while in use; put it back and resume", file->path, file->size,
                     (long long)now.st_size);
}

static void decode(const TokenFile *file, Kind kind, int64_t begin, int64_t count, int32_t *out) {
    if (kind == KIND_UINT16) {
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
        return error_set(err, "%s: token %u at place %lld is not below the vocabulary of %lld; the data are damaged or "
                         "made for another model", file->path != NULL ? file->path : source->name, (uint32_t)out[i],
                         (long long)(begin + i), (long long)vocabulary);
    }
    return true;
}

bool tokens_read(const TokenSource *source, int64_t first, int64_t count, int64_t vocabulary, int32_t *out,
                 Error *err) {
    if (first < 0 || count < 0 || count > source->count - first)
        return error_set(err, "%s: tokens %lld to %lld were asked for, but there are %lld", source->name,
                         (long long)first, (long long)(first + count), (long long)source->count);
    if (count == 0) return true;
    for (const TokenFile *file = file_of(source, first); count > 0; file++) {
        int64_t begin = first - file->first, n = file->count - begin < count ? file->count - begin : count;
        if (!still_whole(file, err)) return false;
        decode(file, source->kind, begin, n, out);
        if (!check(source, file, begin, n, vocabulary, out, err)) return false;
        first += n;
        out += n;
        count -= n;
    }
    return true;
}
