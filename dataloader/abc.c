// ABC: music written in letters (the "abc music standard" 2.1). A character is a symbol, a tune a document: it begins
// with the line "X:" and its number; what stands before the first belongs to that one. Ends of lines are one symbol
// whatever they are in the file, a tab is a space, blank lines at the end of a tune are left out, and a character
// beyond ASCII (of titles: the notes are ASCII) or of control is the symbol "other".
#include <ctype.h>
#include <string.h>

#include "dataloader/formats.h"

// Newline, ' ' to '~', other, end.
enum { NEWLINE, SPACE, TILDE = SPACE + '~' - ' ', OTHER, END, VOCABULARY };

static bool begins_tune(const unsigned char *bytes, size_t size, size_t i) {
    bool line = i == 0 || bytes[i - 1] == '\n' || bytes[i - 1] == '\r';
    return line && size - i >= 2 && bytes[i] == 'X' && bytes[i + 1] == ':';
}

static size_t after_byte_order_mark(const unsigned char *bytes, size_t size) {
    return size >= 3 && bytes[0] == 0xef && bytes[1] == 0xbb && bytes[2] == 0xbf ? 3 : 0;
}

// The first line that is neither blank nor a comment is "X: 1"; or the file begins with "%abc", as "%abc-2.1" does.
static bool recognise(const unsigned char *bytes, size_t size) {
    size_t i = after_byte_order_mark(bytes, size);
    if (size - i >= 4 && memcmp(bytes + i, "%abc", 4) == 0 && (size - i == 4 || !isalnum(bytes[i + 4]))) return true;
    while (i < size) {
        while (i < size && (bytes[i] == ' ' || (bytes[i] >= '\t' && bytes[i] <= '\r'))) i++;
        if (i == size || bytes[i] != '%') break;
        while (i < size && bytes[i] != '\n' && bytes[i] != '\r') i++;
    }
    if (size - i < 3 || bytes[i] != 'X' || bytes[i + 1] != ':') return false;
    for (i += 2; i < size && (bytes[i] == ' ' || bytes[i] == '\t');) i++;
    return i < size && bytes[i] >= '0' && bytes[i] <= '9';
}

// Of a character of UTF-8 the first byte counts; a byte of Latin-1 counts as well, as no other stands before it.
static int symbol_at(const unsigned char *text, size_t size, size_t i) {
    int c = text[i];
    if (c >= ' ' && c <= '~') return SPACE + c - ' ';
    if (c == '\n') return NEWLINE;
    if (c == '\r') return i + 1 < size && text[i + 1] == '\n' ? CHARACTER_SKIPPED : NEWLINE;
    if (c == '\t') return SPACE;
    bool continues = c >= 0x80 && c < 0xc0 && i > 0 && text[i - 1] >= 0x80;
    return continues ? CHARACTER_SKIPPED : OTHER;
}

static char character_of(int symbol) {
    if (symbol >= SPACE && symbol <= TILDE) return (char)(' ' + symbol - SPACE);
    return symbol == OTHER ? '?' : '\n';
}

// The tune's last line has one end.
static void end_tune(Symbols *out, size_t begin) {
    while (out->count > begin && symbols_last(out, END) == NEWLINE) out->count--;
    if (out->count == begin) return;
    symbols_put(out, NEWLINE);
    symbols_put(out, END);
}

static bool decode(const TokenFile *file, Symbols *out, Error *err) {
    size_t mark = after_byte_order_mark(file->bytes, file->size), size = file->size - mark;
    const unsigned char *text = file->bytes + mark;
    size_t begin = 0; // of the tune, in the symbols
    bool in_tune = false;
    for (size_t i = 0; i < size && !out->failed; i++) {
        if (begins_tune(text, size, i)) {
            if (in_tune) end_tune(out, begin);
            if (in_tune) begin = out->count;
            in_tune = true;
        }
        int symbol = symbol_at(text, size, i);
        if (symbol >= 0) symbols_put(out, symbol);
    }
    if (!in_tune)
        return error_set(err,
                         "%s holds no tune: none of its lines begins with X: (the number of a tune); leave it "
                         "out, or give --data-format bytes to take it as it is",
                         file->path);
    end_tune(out, begin);
    return true;
}

const Format abc_format = {.option = "abc",
                           .described = "music in ABC",
                           .unit = "character",
                           .units = "characters of music",
                           .symbols = "characters of ABC music; end of tune",
                           .vocabulary = VOCABULARY,
                           .recognise = recognise,
                           .decode = decode,
                           .symbol_at = symbol_at,
                           .character_of = character_of};
