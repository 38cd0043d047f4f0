// A recursive-descent parser straight from the grammar of RFC 8259.
//
// Members are collected on a stack while their container is open and copied out as one array when it closes, so the
// tree needs no links. Everything lives in blocks that the document owns and frees at once. Depth is bounded, so
// recursion is too.
#include "base/json.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"

enum { MAX_DEPTH = 64, BLOCK_BYTES = 1 << 16 };
static const size_t MAX_FILE_BYTES = 100 << 20;

typedef struct Block {
    struct Block *next;
    size_t used, capacity;
} Block; // its bytes follow it

struct JsonDocument {
    Block *blocks;
    Json root;
};

typedef struct Parser {
    JsonDocument *document;
    const char *name, *start, *at, *end;
    Error *err;
    int depth;
    Json *value_stack; // members of the containers that are open
    const char **key_stack;
    size_t stack_used, stack_capacity;
} Parser;

static bool parse_value(Parser *p, Json *value);

// ---- memory ----

static bool out_of_memory(Parser *p) { return error_set(p->err, "%s: out of memory while reading it", p->name); }

static void *take(Parser *p, size_t bytes) {
    bytes = (bytes + 15) / 16 * 16;
    Block *block = p->document->blocks;
    if (block == NULL || block->capacity - block->used < bytes) {
        size_t capacity = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
        block = malloc(sizeof(Block) + capacity);
        if (block == NULL) {
            out_of_memory(p);
            return NULL;
        }
        *block = (Block){p->document->blocks, 0, capacity};
        p->document->blocks = block;
    }
    void *memory = (char *)(block + 1) + block->used;
    block->used += bytes;
    return memory;
}

static bool push(Parser *p, const char *key, const Json *value) {
    if (p->stack_used == p->stack_capacity) {
        size_t capacity = p->stack_capacity ? 2 * p->stack_capacity : 64;
        Json *values = realloc(p->value_stack, capacity * sizeof *values);
        if (values != NULL) p->value_stack = values;
        const char **keys = realloc(p->key_stack, capacity * sizeof *keys);
        if (keys != NULL) p->key_stack = keys;
        if (values == NULL || keys == NULL) return out_of_memory(p);
        p->stack_capacity = capacity;
    }
    p->value_stack[p->stack_used] = *value;
    p->key_stack[p->stack_used++] = key;
    return true;
}

// ---- errors ----

static bool fail_at(Parser *p, const char *at, const char *what) {
    int line = 1, column = 1; // columns count characters, not bytes
    for (const char *c = p->start; c < at; c++) {
        if (*c == '\n') {
            line++;
            column = 1;
        } else if (((unsigned char)*c & 0xC0) != 0x80) {
            column++;
        }
    }
    return error_set(p->err, "%s: line %d, column %d: %s", p->name, line, column, what);
}

static bool fail(Parser *p, const char *what) {
    return fail_at(p, p->at,
                   p->at == p->end ? "the text ends in the middle of a value (is the file cut short?)" : what);
}

// ---- strings ----

static void skip_space(Parser *p) {
    while (p->at < p->end && (*p->at == ' ' || *p->at == '\t' || *p->at == '\n' || *p->at == '\r')) p->at++;
}

static bool next_is(const Parser *p, char c) { return p->at < p->end && *p->at == c; }

// Length of the well-formed UTF-8 sequence at `s`, 0 if there is none (Unicode 15, table 3-7: no overlong forms, no
// surrogates).
static int utf8_length(const unsigned char *s, const unsigned char *end) {
    unsigned char first = s[0], low = 0x80, high = 0xBF;
    int length;
    if (first < 0x80) return 1;
    if (first >= 0xC2 && first <= 0xDF) length = 2;
    else if (first >= 0xE0 && first <= 0xEF) length = 3;
    else if (first >= 0xF0 && first <= 0xF4) length = 4;
    else return 0;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
    if (end - s < length || s[1] < low || s[1] > high) return 0;
    for (int i = 2; i < length; i++)
        if (s[i] < 0x80 || s[i] > 0xBF) return 0;
    return length;
}

static char *put_utf8(char *out, uint32_t code) {
    if (code < 0x80) {
        *out++ = (char)code;
    } else if (code < 0x800) {
        *out++ = (char)(0xC0 | code >> 6);
        *out++ = (char)(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        *out++ = (char)(0xE0 | code >> 12);
        *out++ = (char)(0x80 | (code >> 6 & 0x3F));
        *out++ = (char)(0x80 | (code & 0x3F));
    } else {
        *out++ = (char)(0xF0 | code >> 18);
        *out++ = (char)(0x80 | (code >> 12 & 0x3F));
        *out++ = (char)(0x80 | (code >> 6 & 0x3F));
        *out++ = (char)(0x80 | (code & 0x3F));
    }
    return out;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static bool parse_hex4(Parser *p, uint32_t *code) { // at the first digit
    *code = 0;
    for (int i = 0; i < 4; i++, p->at++) {
        int digit = p->at < p->end ? hex_digit(*p->at) : -1;
        if (digit < 0) return fail(p, "\\u needs four hexadecimal digits");
        *code = *code * 16 + (uint32_t)digit;
    }
    return true;
}

static bool parse_unicode_escape(Parser *p, const char *escape, char **out) { // past the "\u"
    uint32_t code, low;
    if (!parse_hex4(p, &code)) return false;
    if (code == 0) return fail_at(p, escape, "a string holds an escaped NUL");
    if (code >= 0xDC00 && code <= 0xDFFF) return fail_at(p, escape, "a low surrogate without its high one");
    if (code >= 0xD800 && code <= 0xDBFF) {
        if (p->end - p->at < 2 || p->at[0] != '\\' || p->at[1] != 'u')
            return fail_at(p, escape, "a high surrogate without its low one");
        p->at += 2;
        if (!parse_hex4(p, &low)) return false;
        if (low < 0xDC00 || low > 0xDFFF) return fail_at(p, escape, "a high surrogate without its low one");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    *out = put_utf8(*out, code);
    return true;
}

static bool parse_escape(Parser *p, char **out) { // at the backslash
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    const char *escape = p->at++;
    if (p->at == p->end) return fail(p, "");
    if (*p->at == 'u') {
        p->at++;
        return parse_unicode_escape(p, escape, out);
    }
    const char *letter = *p->at ? strchr(letters, *p->at) : NULL;
    if (letter == NULL) return fail_at(p, escape, "unknown escape in a string");
    *(*out)++ = meanings[letter - letters];
    p->at++;
    return true;
}

static bool parse_string(Parser *p, const char **string) { // at the opening quote
    const char *close = p->at + 1;
    while (close < p->end && *close != '"') close += *close == '\\' && close + 1 < p->end ? 2 : 1;
    if (close >= p->end) {
        p->at = p->end;
        return fail(p, "");
    }
    char *text = take(p, (size_t)(close - p->at)); // no escape is shorter than what it stands for
    if (text == NULL) return false;
    char *out = text;
    p->at++;
    while (*p->at != '"') {
        if ((unsigned char)*p->at < 0x20) return fail(p, "a control character in a string (write it as \\u00XX)");
        if (*p->at == '\\') {
            if (!parse_escape(p, &out)) return false;
            continue;
        }
        int length = utf8_length((const unsigned char *)p->at, (const unsigned char *)p->end);
        if (length == 0) return fail(p, "a string that is not valid UTF-8");
        memcpy(out, p->at, (size_t)length);
        out += length;
        p->at += length;
    }
    p->at++;
    *out = '\0';
    *string = text;
    return true;
}

// ---- numbers ----

static bool skip_digits(Parser *p) {
    const char *first = p->at;
    while (p->at < p->end && *p->at >= '0' && *p->at <= '9') p->at++;
    return p->at > first || fail(p, "a digit is missing in a number");
}

static bool parse_number(Parser *p, Json *value) {
    const char *first = p->at;
    bool integer = true;
    if (next_is(p, '-')) p->at++;
    if (next_is(p, '0')) {
        p->at++;
        if (p->at < p->end && *p->at >= '0' && *p->at <= '9') return fail(p, "a number starts with a superfluous 0");
    } else if (!skip_digits(p)) {
        return false;
    }
    if (next_is(p, '.')) {
        p->at++;
        integer = false;
        if (!skip_digits(p)) return false;
    }
    if (next_is(p, 'e') || next_is(p, 'E')) {
        p->at++;
        integer = false;
        if (next_is(p, '+') || next_is(p, '-')) p->at++;
        if (!skip_digits(p)) return false;
    }
    size_t length = (size_t)(p->at - first);
    char *text = take(p, length + 1); // strtod wants a terminated string
    if (text == NULL) return false;
    memcpy(text, first, length);
    text[length] = '\0';
    value->type = JSON_NUMBER;
    value->string = text;
    value->number = strtod(text, NULL);
    if (!isfinite(value->number)) return fail_at(p, first, "a number too large for double precision");
    if (integer) {
        errno = 0;
        long long exact = strtoll(text, NULL, 10);
        value->is_integer = errno == 0;
        if (value->is_integer) value->integer = exact;
    }
    return true;
}

// ---- containers ----

static int compare_keys(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool refuse_duplicates(Parser *p, const Json *object, const char *at) {
    const char **sorted = malloc((size_t)object->count * sizeof *sorted + 1);
    if (sorted == NULL) return out_of_memory(p);
    memcpy(sorted, object->key, (size_t)object->count * sizeof *sorted);
    qsort(sorted, (size_t)object->count, sizeof *sorted, compare_keys);
    const char *duplicate = NULL;
    for (int i = 1; i < object->count && duplicate == NULL; i++)
        if (strcmp(sorted[i - 1], sorted[i]) == 0) duplicate = sorted[i];
    free(sorted);
    if (duplicate == NULL) return true;
    char what[200];
    snprintf(what, sizeof what, "the object that ends here has the key \"%s\" twice", json_shown(duplicate).text);
    return fail_at(p, at, what);
}

// Moves what was pushed since `base` into the container.
static bool close_container(Parser *p, Json *container, size_t base) {
    size_t count = p->stack_used - base;
    container->count = (int)count; // fits: the text is at most MAX_FILE_BYTES
    container->item = take(p, count * sizeof *container->item);
    if (container->item == NULL) return false;
    if (count) memcpy(container->item, p->value_stack + base, count * sizeof *container->item);
    if (container->type == JSON_OBJECT) {
        container->key = take(p, count * sizeof *container->key);
        if (container->key == NULL) return false;
        if (count) memcpy(container->key, p->key_stack + base, count * sizeof *container->key);
        if (!refuse_duplicates(p, container, p->at)) return false;
    }
    p->stack_used = base;
    p->at++;
    p->depth--;
    return true;
}

static bool parse_member(Parser *p, JsonType container) {
    const char *key = NULL;
    Json value = {.type = JSON_NULL};
    if (container == JSON_OBJECT) {
        skip_space(p);
        if (!next_is(p, '"')) return fail(p, "expected a key in double quotes");
        if (!parse_string(p, &key)) return false;
        skip_space(p);
        if (!next_is(p, ':')) return fail(p, "expected ':' after a key");
        p->at++;
    }
    return parse_value(p, &value) && push(p, key, &value);
}

static bool parse_container(Parser *p, Json *value) {
    value->type = *p->at == '{' ? JSON_OBJECT : JSON_ARRAY;
    char close = value->type == JSON_OBJECT ? '}' : ']';
    size_t base = p->stack_used;
    if (++p->depth > MAX_DEPTH) return fail(p, "nested more than 64 deep");
    p->at++;
    skip_space(p);
    if (next_is(p, close)) return close_container(p, value, base);
    for (;;) {
        if (!parse_member(p, value->type)) return false;
        skip_space(p);
        if (next_is(p, close)) return close_container(p, value, base);
        if (!next_is(p, ','))
            return fail(p, value->type == JSON_OBJECT ? "expected ',' or '}'" : "expected ',' or ']'");
        p->at++;
    }
}

static bool parse_word(Parser *p, const char *word) {
    for (const char *c = word; *c; c++, p->at++)
        if (!next_is(p, *c)) return fail(p, "expected a value (null, true, false, a number, a string, '[' or '{')");
    return true;
}

static bool parse_value(Parser *p, Json *value) {
    skip_space(p);
    *value = (Json){.type = JSON_NULL};
    switch (p->at < p->end ? *p->at : 'n') {
    case '{':
    case '[': return parse_container(p, value);
    case '"': value->type = JSON_STRING; return parse_string(p, &value->string);
    case 't':
    case 'f':
        value->type = JSON_BOOL;
        value->boolean = *p->at == 't';
        return parse_word(p, value->boolean ? "true" : "false");
    case '-':
    case '0':
    case '1':
    case '2':
    case '3':
    case '4':
    case '5':
    case '6':
    case '7':
    case '8':
    case '9': return parse_number(p, value);
    default: return parse_word(p, "null");
    }
}

// ---- documents ----

// Editors on some systems write UTF-16, or a mark of the encoding before UTF-8, and show neither. Every JSON text
// begins with two ASCII characters, or is one alone, so zero bytes among the first four tell the other encodings.
static const char *other_encoding(const char *text, size_t length) {
    const unsigned char *b = (const unsigned char *)text;
    bool marked16 = length >= 2 && ((b[0] == 0xFF && b[1] == 0xFE) || (b[0] == 0xFE && b[1] == 0xFF));
    bool wide = length >= 4 && (b[0] == 0 && b[1] == 0) != (b[2] == 0 && b[3] == 0);
    if (wide) return "UTF-32";
    return marked16 || (length >= 2 && (b[0] == 0) != (b[1] == 0)) ? "UTF-16" : NULL;
}

static bool parse_document(Parser *p) {
    const char *encoding = other_encoding(p->at, (size_t)(p->end - p->at));
    if (encoding != NULL) return error_set(p->err, "%s: is %s, not UTF-8; convert it", p->name, encoding);
    if (p->end - p->at >= 3 && memcmp(p->at, "\xEF\xBB\xBF", 3) == 0) p->start = p->at += 3;
    if (!parse_value(p, &p->document->root)) return false;
    skip_space(p);
    return p->at == p->end || fail(p, "something stands after the end of the value");
}

JsonDocument *json_parse(const char *text, size_t length, const char *name, Error *err) {
    if (length > MAX_FILE_BYTES) {
        error_set(err, "%s: %zu bytes of JSON; the limit is %zu", name, length, MAX_FILE_BYTES);
        return NULL;
    }
    JsonDocument *document = calloc(1, sizeof *document);
    Parser p = {.document = document, .name = name, .start = text, .at = text, .end = text + length, .err = err};
    if (document == NULL) {
        out_of_memory(&p);
        return NULL;
    }
    bool ok = parse_document(&p);
    free(p.value_stack);
    free(p.key_stack);
    if (ok) return document;
    json_free(document);
    return NULL;
}

// The bytes of a file, at most MAX_FILE_BYTES + 1 of them; NULL with *err filled on failure.
static char *read_bytes(const char *path, size_t *length, Error *err) {
    int descriptor = file_open(path, NULL, err);
    if (descriptor < 0) return NULL;
    FILE *file = fdopen(descriptor, "rb");
    if (file == NULL) {
        error_set(err, "%s: cannot open: %s", path, strerror(errno));
        close(descriptor);
        return NULL;
    }
    char *text = NULL;
    size_t used = 0, capacity = 0;
    bool ok = true, more = true;
    while (ok && more) {
        if (used == capacity) {
            capacity = capacity ? 2 * capacity : 4096;
            if (capacity > MAX_FILE_BYTES + 1) capacity = MAX_FILE_BYTES + 1;
            char *larger = realloc(text, capacity);
            if (larger == NULL) {
                ok = error_set(err, "%s: out of memory while reading it", path);
                break;
            }
            text = larger;
        }
        used += fread(text + used, 1, capacity - used, file);
        if (ferror(file)) ok = error_set(err, "%s: cannot read: %s", path, strerror(errno));
        more = !feof(file) && used <= MAX_FILE_BYTES;
    }
    fclose(file);
    if (!ok) {
        free(text);
        return NULL;
    }
    *length = used;
    return text;
}

JsonDocument *json_read_file(const char *path, Error *err) {
    size_t length;
    char *text = read_bytes(path, &length, err);
    if (text == NULL) return NULL;
    JsonDocument *document = json_parse(text, length, path, err);
    free(text);
    return document;
}

const Json *json_root(const JsonDocument *document) { return &document->root; }

void json_free(JsonDocument *document) {
    if (document == NULL) return;
    for (Block *block = document->blocks, *next; block != NULL; block = next) {
        next = block->next;
        free(block);
    }
    free(document);
}

const Json *json_get(const Json *object, const char *key) {
    if (object == NULL || object->type != JSON_OBJECT) return NULL;
    for (int i = 0; i < object->count; i++)
        if (strcmp(object->key[i], key) == 0) return &object->item[i];
    return NULL;
}

JsonShown json_shown(const char *string) {
    enum { MOST = 100 };
    JsonShown shown;
    size_t length = strlen(string);
    if (length > MOST) {
        length = MOST;
        while (length > 0 && ((unsigned char)string[length] & 0xC0) == 0x80) length--; // not within a character
    }
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)string[i];
        shown.text[i] = c < 0x20 || c == 0x7F ? '?' : string[i];
    }
    strcpy(shown.text + length, string[length] == '\0' ? "" : "...");
    return shown;
}

void json_print_string(FILE *file, const char *string) {
    fputc('"', file);
    for (const char *c = string; *c != '\0'; c++) {
        if (*c == '"' || *c == '\\') fprintf(file, "\\%c", *c);
        else if ((unsigned char)*c < 0x20) fprintf(file, "\\u%04x", (unsigned)*c);
        else fputc(*c, file);
    }
    fputc('"', file);
}

void json_print(FILE *file, const Json *value) { // as deep as the parser allows, at most
    switch (value->type) {
    case JSON_NULL: fputs("null", file); return;
    case JSON_BOOL: fputs(value->boolean ? "true" : "false", file); return;
    case JSON_NUMBER: fputs(value->string, file); return;
    case JSON_STRING: json_print_string(file, value->string); return;
    case JSON_ARRAY:
    case JSON_OBJECT: break;
    }
    fputc(value->type == JSON_OBJECT ? '{' : '[', file);
    for (int i = 0; i < value->count; i++) {
        if (i > 0) fputs(", ", file);
        if (value->type == JSON_OBJECT) {
            json_print_string(file, value->key[i]);
            fputs(": ", file);
        }
        json_print(file, &value->item[i]);
    }
    fputc(value->type == JSON_OBJECT ? '}' : ']', file);
}

void json_format_real(double value, char text[JSON_REAL_CHARS]) {
    if (value == floor(value) && fabs(value) < 1e15) { // 10000.0 rather than 1e+04
        snprintf(text, JSON_REAL_CHARS, "%.1f", value);
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, JSON_REAL_CHARS, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    if (text[strcspn(text, ".e")] == '\0') strcat(text, ".0");
}
