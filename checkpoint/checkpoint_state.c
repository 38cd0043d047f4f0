// training_state.json: the numbers from which training goes on, in a form that a person can read.
//
// Unsigned 64-bit numbers beyond what JSON readers keep exactly are written as strings of digits.
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/checkpoint_folder.h"
#include "base/json.h"

static const int64_t FORMAT = 1; // raised when the meaning of a key changes

// ---- writing ----

static bool put_signed(DiskFile *file, const char *key, int64_t value, Error *err) {
    return disk_print(file, err, "  \"%s\": %" PRId64 ",\n", key, value);
}

static bool put_unsigned(DiskFile *file, const char *key, uint64_t value, Error *err) {
    const char *quote = value < UINT64_C(1) << 53 ? "" : "\"";
    return disk_print(file, err, "  \"%s\": %s%" PRIu64 "%s,\n", key, quote, value, quote);
}

static bool put_real(DiskFile *file, const char *key, double value, Error *err) {
    char text[JSON_REAL_CHARS] = "null";
    if (isfinite(value)) json_format_real(value, text);
    return disk_print(file, err, "  \"%s\": %s,\n", key, text);
}

// Names and values are the program's own words and numbers, which JSON takes as they are.
static bool put_last_options(DiskFile *file, const char *key, const KeptOptions *kept, Error *err) {
    bool ok = disk_print(file, err, "  \"%s\": {", key);
    for (int i = 0; ok && i < kept->count; i++)
        ok = disk_print(file, err, "%s\n    \"%s\": \"%s\"", i > 0 ? "," : "", kept->option[i].name,
                        kept->option[i].value);
    return ok && disk_print(file, err, "%s}\n", kept->count > 0 ? "\n  " : "");
}

// A name for messages: what JSON would have to escape, and all but ASCII, becomes a question mark.
static bool put_name(DiskFile *file, const char *key, const char *name, Error *err) {
    char text[sizeof((TrainingState *)NULL)->data_name];
    size_t n = 0;
    for (; name[n] != '\0' && n < sizeof text - 1; n++)
        text[n] = name[n] < ' ' || name[n] > '~' || name[n] == '"' || name[n] == '\\' ? '?' : name[n];
    text[n] = '\0';
    return disk_print(file, err, "  \"%s\": \"%s\",\n", key, text);
}

static bool put_data(DiskFile *file, const TrainingState *state, Error *err) {
    if (!put_unsigned(file, "data_fingerprint", state->data_fingerprint, err)) return false;
    return state->data_content == 0 || (put_unsigned(file, "data_content", state->data_content, err) &&
                                        put_signed(file, "data_tokens", state->data_tokens, err) &&
                                        put_name(file, "data_name", state->data_name, err));
}

static bool put_state(DiskFile *file, const TrainingState *state, Error *err) {
    return disk_print(file, err, "{\n") && put_signed(file, "format", FORMAT, err) &&
           put_signed(file, "step", state->step, err) && put_signed(file, "steps", state->steps, err) &&
           put_unsigned(file, "seed", state->seed, err) && put_signed(file, "context", state->context, err) &&
           put_signed(file, "batch", state->batch, err) &&
           put_unsigned(file, "loader_epoch", state->loader.epoch, err) &&
           put_unsigned(file, "loader_cursor", state->loader.cursor, err) && put_data(file, state, err) &&
           put_real(file, "validation_loss", state->validation_loss, err) &&
           put_last_options(file, "options", &state->kept, err) && disk_print(file, err, "}\n");
}

bool checkpoint_write_state(const char *path, const TrainingState *state, char hex[SHA256_HEX_CHARS], Error *err) {
    DiskFile file;
    if (!disk_create(&file, path, err)) return false;
    if (!put_state(&file, state, err)) {
        disk_discard(&file);
        return false;
    }
    bool ok = disk_close(&file, err);
    memcpy(hex, file.hex, SHA256_HEX_CHARS);
    return ok;
}

// ---- reading ----

typedef struct Reader {
    const char *path;
    const Json *root;
    Error *err;
} Reader;

static const Json *get(const Reader *r, const char *key) {
    const Json *value = json_get(r->root, key);
    if (value == NULL) error_set(r->err, "%s: \"%s\" is missing", r->path, key);
    return value;
}

static bool get_signed(const Reader *r, const char *key, int64_t *out) {
    const Json *value = get(r, key);
    if (value == NULL) return false;
    *out = value->integer;
    return (value->is_integer && value->integer >= 0) ||
           error_set(r->err, "%s: \"%s\" must be a whole number from 0", r->path, key);
}

static bool get_unsigned(const Reader *r, const char *key, uint64_t *out) {
    const Json *value = get(r, key);
    if (value == NULL) return false;
    if (value->type != JSON_STRING) {
        *out = (uint64_t)value->integer;
        if (value->is_integer && value->integer >= 0) return true;
    } else if (value->string[0] != '\0' && value->string[strspn(value->string, "0123456789")] == '\0') {
        errno = 0;
        *out = strtoull(value->string, NULL, 10);
        if (errno == 0) return true;
    }
    return error_set(r->err, "%s: \"%s\" must be a whole number from 0 to 2^64 - 1", r->path, key);
}

static bool get_real_or_nan(const Reader *r, const char *key, double *out) {
    const Json *value = get(r, key);
    if (value == NULL) return false;
    *out = value->type == JSON_NUMBER ? value->number : NAN;
    return value->type == JSON_NUMBER || value->type == JSON_NULL ||
           error_set(r->err, "%s: \"%s\" must be a number or null", r->path, key);
}

// Absent where an older version wrote the file.
static bool get_options(const Reader *r, const char *key, KeptOptions *kept) {
    const Json *options = json_get(r->root, key);
    kept->count = 0;
    if (options == NULL) return true;
    bool ok = options->type == JSON_OBJECT && options->count <= KEPT_OPTIONS_MAX;
    for (int64_t i = 0; ok && i < options->count; i++) {
        const Json *value = &options->item[i];
        KeptOption *option = &kept->option[kept->count++];
        ok = value->type == JSON_STRING &&
             (size_t)snprintf(option->name, sizeof option->name, "%s", options->key[i]) < sizeof option->name &&
             (size_t)snprintf(option->value, sizeof option->value, "%s", value->string) < sizeof option->value;
    }
    return ok || error_set(r->err, "%s: \"%s\" must hold at most %d options, their values being short texts", r->path,
                           key, KEPT_OPTIONS_MAX);
}

static bool get_name(const Reader *r, const char *key, char *out, size_t size) {
    const Json *value = get(r, key);
    if (value == NULL) return false;
    if (value->type != JSON_STRING) return error_set(r->err, "%s: \"%s\" must be a text", r->path, key);
    snprintf(out, size, "%s", value->string);
    return true;
}

// Earlier versions kept a fingerprint of sizes only.
static bool get_data(const Reader *r, TrainingState *state) {
    if (!get_unsigned(r, "data_fingerprint", &state->data_fingerprint)) return false;
    return json_get(r->root, "data_content") == NULL ||
           (get_unsigned(r, "data_content", &state->data_content) &&
            get_signed(r, "data_tokens", &state->data_tokens) &&
            get_name(r, "data_name", state->data_name, sizeof state->data_name));
}

static bool get_state(const Reader *r, TrainingState *state) {
    int64_t format;
    if (!get_signed(r, "format", &format)) return false;
    if (format != FORMAT)
        return error_set(r->err, "%s: \"format\" is %" PRId64 "; this program reads %" PRId64, r->path, format, FORMAT);
    return get_signed(r, "step", &state->step) && get_signed(r, "steps", &state->steps) &&
           get_unsigned(r, "seed", &state->seed) && get_signed(r, "context", &state->context) &&
           get_signed(r, "batch", &state->batch) && get_unsigned(r, "loader_epoch", &state->loader.epoch) &&
           get_unsigned(r, "loader_cursor", &state->loader.cursor) && get_data(r, state) &&
           get_real_or_nan(r, "validation_loss", &state->validation_loss) && get_options(r, "options", &state->kept);
}

bool checkpoint_read_state(const char *path, TrainingState *state, Error *err) {
    char file[DISK_PATH_MAX];
    if (!disk_join(file, path, "training_state.json", err)) return false;
    JsonDocument *document = json_read_file(file, err);
    if (document == NULL) return false;
    *state = (TrainingState){0};
    Reader reader = {file, json_root(document), err};
    bool ok = get_state(&reader, state);
    json_free(document);
    return ok;
}
