// Data that are neither text nor token numbers: files whose content is decoded, when they are opened, into symbols of a
// small vocabulary of their own, held in memory as uint16 tokens. The last symbol of each vocabulary ends a document.
//
// A format is one file, dataloader/NAME.c, and a row in the table of formats.c.
#ifndef DATALOADER_FORMATS_H
#define DATALOADER_FORMATS_H

#include "dataloader/token_file.h"

// What a reader fills. Starts as {0}.
typedef struct Symbols {
    unsigned char *bytes; // two a symbol, little-endian
    size_t count, capacity;
    bool failed; // out of memory: what came since is lost
} Symbols;

bool symbols_grow(Symbols *symbols);

static inline void symbols_put(Symbols *symbols, int symbol) {
    if (symbols->count == symbols->capacity && !symbols_grow(symbols)) return;
    symbols->bytes[2 * symbols->count] = (unsigned char)symbol;
    symbols->bytes[2 * symbols->count + 1] = (unsigned char)(symbol >> 8);
    symbols->count++;
}

static inline int symbols_last(const Symbols *symbols, int otherwise) {
    return symbols->count > 0 ? (int)read16(symbols->bytes + 2 * symbols->count - 2) : otherwise;
}

// What a character of a text is, other than a symbol.
enum { CHARACTER_REFUSED = -1, CHARACTER_SKIPPED = -2 };

typedef struct Format {
    const char *option;    // of --data-format
    const char *described; // "a FASTA file"
    const char *unit;      // what one symbol is
    const char *units;
    const char *symbols; // the vocabulary, for the header
    int vocabulary;
    // By its content; nothing else may begin like this.
    bool (*recognise)(const unsigned char *bytes, size_t size);
    // Fails with file, place and what to do. May leave no symbol: then the file is empty.
    bool (*decode)(const TokenFile *file, Symbols *out, Error *err);
    // For symbols that stand for characters, else NULL: that of text[i], and back.
    int (*symbol_at)(const unsigned char *text, size_t size, size_t i);
    char (*character_of)(int symbol);
} Format;

extern const Format fasta_format, idx_format, abc_format, wav_format;

const Format *format_of(Kind kind);            // NULL: not decoded
Kind format_chosen(TokenFormat format);        // KIND_BYTES: none of these
Kind format_recognised(const TokenFile *file); // by content; KIND_BYTES: none of these
// Puts the symbols in the place of the file's bytes.
bool format_decode(TokenFile *file, Kind kind, Error *err);

#endif
