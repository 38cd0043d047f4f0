// Writing safetensors: the header is known before the first value, so the file is written in one go from front to back.
//
// Tensors stand in the order of their declaration; all are F32, so offsets follow from shapes. The header is padded
// with spaces to a multiple of 8 bytes. Values are stored little-endian: as they are in memory.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint/disk.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/safetensors_sum.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "values are written as they are in memory");

struct SafetensorsWriter {
    DiskFile file;
    int64_t left; // elements still to come
};

// ---- the header, in memory ----

typedef struct Text {
    char *bytes;
    size_t used, capacity;
    bool failed;
} Text;

static void append(Text *text, const char *bytes, size_t count) {
    if (text->capacity - text->used < count) {
        size_t capacity = 2 * text->capacity + count + 256;
        char *larger = realloc(text->bytes, capacity);
        if (larger == NULL) {
            text->failed = true;
            return;
        }
        text->bytes = larger;
        text->capacity = capacity;
    }
    memcpy(text->bytes + text->used, bytes, count);
    text->used += count;
}

static void append_string(Text *text, const char *string) { append(text, string, strlen(string)); }

static void append_integer(Text *text, int64_t value) {
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRId64, value);
    append_string(text, digits);
}

static void append_quoted(Text *text, const char *string) {
    append_string(text, "\"");
    for (; *string; string++) {
        char escape[8];
        if (*string == '"' || *string == '\\') snprintf(escape, sizeof escape, "\\%c", *string);
        else if ((unsigned char)*string < 0x20) snprintf(escape, sizeof escape, "\\u%04x", (unsigned)*string);
        else snprintf(escape, sizeof escape, "%c", *string);
        append_string(text, escape);
    }
    append_string(text, "\"");
}

static void append_tensor(Text *text, const TensorDeclaration *tensor, int64_t *offset) {
    int64_t bytes = 4;
    append_string(text, ",");
    append_quoted(text, tensor->name);
    append_string(text, ":{\"dtype\":\"F32\",\"shape\":[");
    for (int d = 0; d < tensor->dimensions; d++) {
        if (d > 0) append_string(text, ",");
        append_integer(text, tensor->shape[d]);
        bytes *= tensor->shape[d];
    }
    append_string(text, "],\"data_offsets\":[");
    append_integer(text, *offset);
    append_string(text, ",");
    append_integer(text, *offset + bytes);
    append_string(text, "]}");
    *offset += bytes;
}

static Text make_header(const TensorDeclaration *tensors, int count, int64_t *data_bytes) {
    Text text = {0};
    append_string(&text, "{\"__metadata__\":{\"format\":\"pt\"}");
    *data_bytes = 0;
    for (int i = 0; i < count; i++) append_tensor(&text, &tensors[i], data_bytes);
    append_string(&text, "}");
    while (!text.failed && text.used % 8 != 0) append_string(&text, " ");
    return text;
}

// ---- the file ----

static bool write_header(DiskFile *file, const Text *header, Error *err) {
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)(header->used >> 8 * i);
    return disk_write(file, length, sizeof length, err) && disk_write(file, header->bytes, header->used, err);
}

SafetensorsWriter *safetensors_create(const char *path, const TensorDeclaration *tensors, int count, Error *err) {
    int64_t data_bytes;
    Text header = make_header(tensors, count, &data_bytes);
    SafetensorsWriter *writer = header.failed ? NULL : malloc(sizeof *writer);
    bool ok = writer != NULL || error_set(err, "%s: out of memory for writing it", path);
    if (ok) {
        writer->left = data_bytes / 4;
        ok = disk_create(&writer->file, path, err);
        if (ok && !write_header(&writer->file, &header, err)) {
            ok = false;
            disk_discard(&writer->file);
            unlink(path);
        }
    }
    free(header.bytes);
    if (ok) return writer;
    free(writer);
    return NULL;
}

bool safetensors_write(SafetensorsWriter *writer, const float *data, int64_t count, Error *err) {
    if (count < 0 || count > writer->left)
        return error_set(err, "%s: %" PRId64 " values to write where %" PRId64 " are left", writer->file.path, count,
                         writer->left);
    writer->left -= count;
    return disk_write(&writer->file, data, 4 * (size_t)count, err);
}

bool safetensors_finish_sum(SafetensorsWriter *writer, char hex[SHA256_HEX_CHARS], Error *err) {
    bool ok = writer->left == 0;
    if (ok) {
        ok = disk_close(&writer->file, err);
        memcpy(hex, writer->file.hex, SHA256_HEX_CHARS);
    } else {
        error_set(err, "%s: %" PRId64 " values were not written", writer->file.path, writer->left);
        disk_discard(&writer->file);
    }
    free(writer);
    return ok;
}

bool safetensors_finish(SafetensorsWriter *writer, Error *err) {
    char hex[SHA256_HEX_CHARS];
    return safetensors_finish_sum(writer, hex, err);
}

void safetensors_abandon(SafetensorsWriter *writer) {
    if (writer == NULL) return;
    disk_discard(&writer->file);
    free(writer);
}
