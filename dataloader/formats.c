// The formats that are decoded, and how a file's bytes make way for its symbols.
#include "dataloader/formats.h"

#include <stdlib.h>

static const Format *const FORMATS[] = {&fasta_format, &idx_format, &abc_format, &wav_format};
enum { COUNT = sizeof FORMATS / sizeof *FORMATS };
_Static_assert((int)COUNT == (int)KIND_COUNT - (int)KIND_FASTA, "a kind for each format, in this order");
_Static_assert((int)TOKENS_WAV - (int)TOKENS_FASTA == (int)KIND_WAV - (int)KIND_FASTA,
               "and the option's words as well");

const Format *format_of(Kind kind) { return kind >= KIND_FASTA ? FORMATS[kind - KIND_FASTA] : NULL; }

Kind format_chosen(TokenFormat format) {
    return format >= TOKENS_FASTA ? (Kind)(KIND_FASTA + (format - TOKENS_FASTA)) : KIND_BYTES;
}

Kind format_recognised(const TokenFile *file) {
    for (Kind kind = KIND_FASTA; kind < KIND_COUNT; kind++)
        if (format_of(kind)->recognise(file->bytes, file->size)) return kind;
    return KIND_BYTES;
}

bool symbols_grow(Symbols *symbols) {
    size_t capacity = symbols->capacity + symbols->capacity / 2 + 4096, size;
    unsigned char *grown = NULL;
    if (!symbols->failed && !__builtin_mul_overflow(capacity, (size_t)2, &size)) grown = realloc(symbols->bytes, size);
    symbols->failed = grown == NULL;
    if (symbols->failed) return false;
    symbols->bytes = grown;
    symbols->capacity = capacity;
    return true;
}

bool format_decode(TokenFile *file, Kind kind, Error *err) {
    Symbols symbols = {0};
    bool ok = format_of(kind)->decode(file, &symbols, err);
    if (ok && symbols.failed)
        ok = error_set(err, "%s: out of memory for its %s, which take two bytes each", file->path,
                       format_of(kind)->units);
    if (!ok || symbols.count == 0) {
        free(symbols.bytes);
        return ok;
    }
    unsigned char *fitting = realloc(symbols.bytes, 2 * symbols.count);
    token_file_unload(file);
    file->mapped = false;
    file->bytes = fitting != NULL ? fitting : symbols.bytes;
    file->size = 2 * symbols.count;
    file->tokens = file->bytes;
    file->count = (int64_t)symbols.count;
    return true;
}
