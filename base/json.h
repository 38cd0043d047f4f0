// A small strict JSON reader (RFC 8259): what checkpoint files need, and no more.
//
// The whole text is parsed into a tree owned by the document. Strict: no comments, no trailing commas, no duplicate
// keys, no NaN, valid UTF-8 and escapes, nesting at most 64 deep, nothing after the value. Errors give line and column.
// A byte order mark before UTF-8 is passed over; UTF-16 and UTF-32 are named. A file must be a regular one.
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"

typedef enum JsonType { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonType;

typedef struct Json {
    JsonType type;
    bool boolean;
    double number;
    bool is_integer; // written without fraction and exponent, and fits int64
    int64_t integer;
    const char *string; // UTF-8, NUL-terminated (an escaped NUL is refused); of a number: as it was written
    int count;          // of an array's or object's members
    struct Json *item;  // members' values
    const char **key;   // members' keys (objects)
} Json;

typedef struct JsonDocument JsonDocument;

// `name` is the file's name for error messages. `text` need not be NUL-terminated and is not kept.
JsonDocument *json_parse(const char *text, size_t length, const char *name, Error *err);
JsonDocument *json_read_file(const char *path, Error *err);
const Json *json_root(const JsonDocument *document);
void json_free(JsonDocument *document); // may be NULL

// The member `key` of an object, or NULL.
const Json *json_get(const Json *object, const char *key);

// A name from a file as an error message can show it: on one line, cut after 100 bytes.
typedef struct JsonShown {
    char text[104];
} JsonShown;
JsonShown json_shown(const char *string);

// For writers: a value on one line, numbers as they were written.
void json_print(FILE *file, const Json *value);
// A string with its quotes.
void json_print_string(FILE *file, const char *string);

// For writers: the shortest decimal that reads back as exactly `value` (finite), with a point or an exponent.
enum { JSON_REAL_CHARS = 32 };
void json_format_real(double value, char text[JSON_REAL_CHARS]);

#endif
