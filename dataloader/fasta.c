// FASTA: sequences of nucleotides, each below a line that starts with '>' and names it. A base is a symbol, a record a
// document. Lower case (a mask over repeats) is folded, U is T, and the codes for "one of several bases" are N. Lines
// that start with '>' or ';' (an old form of comment) are left out, and so are records without a base.
#include <string.h>

#include "dataloader/formats.h"

enum { A, C, G, T, N, END, VOCABULARY };

// A line's letters are looked up a byte at a time: 0 is no nucleotide, else 1 + the symbol.
static const unsigned char BASE[256] = {
    ['A'] = 1 + A, ['a'] = 1 + A, ['C'] = 1 + C, ['c'] = 1 + C, ['G'] = 1 + G, ['g'] = 1 + G, ['T'] = 1 + T,
    ['t'] = 1 + T, ['U'] = 1 + T, ['u'] = 1 + T, ['N'] = 1 + N, ['n'] = 1 + N, ['R'] = 1 + N, ['r'] = 1 + N,
    ['Y'] = 1 + N, ['y'] = 1 + N, ['K'] = 1 + N, ['k'] = 1 + N, ['M'] = 1 + N, ['m'] = 1 + N, ['S'] = 1 + N,
    ['s'] = 1 + N, ['W'] = 1 + N, ['w'] = 1 + N, ['B'] = 1 + N, ['b'] = 1 + N, ['D'] = 1 + N, ['d'] = 1 + N,
    ['H'] = 1 + N, ['h'] = 1 + N, ['V'] = 1 + N, ['v'] = 1 + N,
};

static bool is_blank(unsigned char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

static size_t end_of_line(const unsigned char *bytes, size_t size, size_t begin) {
    const unsigned char *end = memchr(bytes + begin, '\n', size - begin);
    return end != NULL ? (size_t)(end - bytes) : size;
}

// Text may start with '>' as well, and words may be spelt with these letters: the whole beginning has to be
// nucleotides, nine in ten of them bases or N.
static bool recognise(const unsigned char *bytes, size_t size) {
    const size_t most = 64 << 10;
    size_t letters = 0, plain = 0;
    if (size == 0 || bytes[0] != '>') return false;
    for (size_t begin = 0, end; begin < size && begin < most; begin = end + 1) {
        end = end_of_line(bytes, size, begin);
        if (bytes[begin] == '>' || bytes[begin] == ';') continue;
        for (size_t i = begin; i < end && i < most; i++) {
            if (bytes[i] == '\r' && i + 1 == end) continue;
            if (BASE[bytes[i]] == 0) return false;
            letters++;
            plain += BASE[bytes[i]] != 1 + N || bytes[i] == 'N' || bytes[i] == 'n';
        }
    }
    return letters > 0 && 10 * plain >= 9 * letters;
}

static bool refuse(const TokenFile *file, size_t line, unsigned char letter, Error *err) {
    char shown[8] = {(char)letter};
    if (letter < ' ' || letter > '~') {
        static const char digit[] = "0123456789abcdef";
        memcpy(shown, (char[]){'\\', 'x', digit[letter >> 4], digit[letter & 15], '\0'}, 5);
    }
    return error_set(err,
                     "%s, line %zu: '%s' is no nucleotide (proteins and alignments have other letters): leave it out, "
                     "or give --data-format bytes to take it as it is",
                     file->path, line, shown);
}

static void end_record(Symbols *out) {
    if (symbols_last(out, END) != END) symbols_put(out, END);
}

static bool decode(const TokenFile *file, Symbols *out, Error *err) {
    const unsigned char *bytes = file->bytes;
    size_t line = 1;
    for (size_t begin = 0, end; begin < file->size && !out->failed; begin = end + 1, line++) {
        end = end_of_line(bytes, file->size, begin);
        if (bytes[begin] == '>') end_record(out);
        if (bytes[begin] == '>' || bytes[begin] == ';') continue;
        for (size_t i = begin; i < end; i++) {
            int base = BASE[bytes[i]];
            if (base != 0) symbols_put(out, base - 1);
            else if (!is_blank(bytes[i])) return refuse(file, line, bytes[i], err);
        }
    }
    end_record(out);
    return out->count > 0 || error_set(err, "%s holds no bases; give a file that does", file->path);
}

static int symbol_at(const unsigned char *text, size_t size, size_t i) {
    (void)size;
    return BASE[text[i]] > 0 ? BASE[text[i]] - 1 : CHARACTER_REFUSED;
}

static char character_of(int symbol) { return symbol >= A && symbol <= N ? "ACGTN"[symbol] : '\n'; }

const Format fasta_format = {.option = "fasta",
                             .described = "a FASTA file",
                             .unit = "base",
                             .units = "bases",
                             .symbols = "bases A, C, G, T, N; end of record",
                             .vocabulary = VOCABULARY,
                             .recognise = recognise,
                             .decode = decode,
                             .symbol_at = symbol_at,
                             .character_of = character_of};
