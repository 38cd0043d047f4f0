// Numbers and generated text as people read them.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "terminal/report.h"

// Three digits and the unit in which they are below the next one: 1.24, 12.4, 124.
static void format_scaled(char out[32], double value, double step, const char *const *unit, int units) {
    if (!(value >= 0.0) || isinf(value)) { // not a number too
        strcpy(out, "?");
        return;
    }
    int u = 0;
    for (; u + 1 < units && value >= step - 0.5; u++) value /= step; // what would be rounded up to a whole step is one
    int decimals = u == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
    snprintf(out, 32, "%.*f%s", decimals, fmin(value, 1e9), unit[u]);
}

void format_bytes(char out[32], double bytes) {
    static const char *const unit[] = {" B", " KiB", " MiB", " GiB", " TiB", " PiB"};
    format_scaled(out, bytes, 1024.0, unit, 6);
}

void format_count(char out[32], double count) {
    static const char *const unit[] = {"", "K", "M", "B", "T"};
    format_scaled(out, count, 1000.0, unit, 5);
}

void format_seconds(char out[32], double seconds) {
    if (!(seconds >= 0.0 && seconds < 1e12)) {
        strcpy(out, "?");
        return;
    }
    if (seconds > 0.0 && seconds < 9.95) {
        snprintf(out, 32, "%.1f s", seconds);
        return;
    }
    long long s = llround(seconds), minute = 60, hour = 60 * minute, day = 24 * hour;
    if (s < minute) snprintf(out, 32, "%lld s", s);
    else if (s < hour) snprintf(out, 32, "%lld m %02lld s", s / minute, s % minute);
    else if (s < day) snprintf(out, 32, "%lld h %02lld m", s / hour, s % hour / minute);
    else snprintf(out, 32, "%lld d %02lld h", s / day, s % day / hour);
}

static int larger_first(const void *a, const void *b) {
    size_t left = ((const ArenaEntry *)a)->bytes, right = ((const ArenaEntry *)b)->bytes;
    if (left != right) return left < right ? 1 : -1;
    return strcmp(((const ArenaEntry *)a)->name, ((const ArenaEntry *)b)->name);
}

static void print_arena_line(FILE *out, int width, const char *name, size_t bytes, size_t total) {
    char text[32];
    format_bytes(text, (double)bytes);
    fprintf(out, "  %-*s  %10s  %5.1f%%\n", width, name, text, total > 0 ? 100.0 * (double)bytes / (double)total : 0.0);
}

void print_arena(FILE *out, const Arena *arena) {
    ArenaEntry entry[ARENA_MAX_ENTRIES];
    int width = (int)strlen("total");
    for (int i = 0; i < arena->entry_count; i++) {
        entry[i] = arena->entry[i];
        if ((int)strlen(entry[i].name) > width) width = (int)strlen(entry[i].name);
    }
    qsort(entry, (size_t)arena->entry_count, sizeof *entry, larger_first);
    for (int i = 0; i < arena->entry_count; i++)
        print_arena_line(out, width, entry[i].name, entry[i].bytes, arena->used);
    print_arena_line(out, width, "total", arena->used, arena->used);
}

// Bytes of the UTF-8 character at the start of the text (RFC 3629: no longer than needed, no surrogates), 0: none.
static size_t utf8_length(const unsigned char *byte, size_t left) {
    if (byte[0] < 0x80) return 1;
    size_t length = byte[0] >= 0xf0 ? 4 : byte[0] >= 0xe0 ? 3 : 2;
    if (byte[0] < 0xc2 || byte[0] > 0xf4 || left < length) return 0;
    for (size_t i = 1; i < length; i++)
        if ((byte[i] & 0xc0) != 0x80) return 0;
    bool overlong = (byte[0] == 0xe0 && byte[1] < 0xa0) || (byte[0] == 0xf0 && byte[1] < 0x90);
    bool surrogate = byte[0] == 0xed && byte[1] > 0x9f, too_large = byte[0] == 0xf4 && byte[1] > 0x8f;
    return overlong || surrogate || too_large ? 0 : length;
}

// Would a terminal obey it? ASCII's controls, except new line and tab, and those of U+0080 to U+009F.
static bool is_control(const unsigned char *byte, size_t length) {
    if (length == 1) return (byte[0] < 0x20 && byte[0] != '\n' && byte[0] != '\t') || byte[0] == 0x7f;
    return length == 2 && byte[0] == 0xc2 && byte[1] < 0xa0;
}

void print_text(FILE *out, const unsigned char *bytes, size_t count) {
    for (size_t i = 0; i < count;) {
        size_t length = utf8_length(bytes + i, count - i);
        if (length > 0 && !is_control(bytes + i, length)) {
            fwrite(bytes + i, 1, length, out);
            i += length;
        } else {
            fprintf(out, "\\x%02x", bytes[i++]);
        }
    }
}
