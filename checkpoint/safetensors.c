// Reading safetensors: map the file, parse its header, and believe none of it before it is checked.
//
// Tensors of one or several files are kept in one array sorted by name. Their names belong to the parsed headers and
// their data to the mappings, both held until the end.
#include "checkpoint/safetensors.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "checkpoint/safetensors_part.h"

static const uint64_t MAX_HEADER_BYTES = 100 << 20;
enum { MAX_DIMENSIONS = 8 };

// ---- mapping ----

static bool map_file(SafetensorsPart *part, const char *path, Error *err) {
    int64_t bytes;
    int descriptor = file_open(path, &bytes, err);
    if (descriptor < 0) return false;
    bool ok = bytes >= 8 || error_set(err, "%s: %" PRId64 " bytes are too few for a safetensors file", path, bytes);
    if (ok) {
        part->bytes = (size_t)bytes;
        part->map = mmap(NULL, part->bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (part->map == MAP_FAILED) {
            part->map = NULL;
            ok = error_set(err, "%s: cannot map %zu bytes: %s", path, part->bytes, strerror(errno));
        }
    }
    close(descriptor);
    return ok;
}

static void unmap_part(SafetensorsPart *part) {
    if (part->map != NULL) munmap(part->map, part->bytes);
    json_free(part->header);
    free(part->path);
    *part = (SafetensorsPart){0};
}

// ---- the header ----

typedef struct DataType {
    const char *name;
    TensorType type;
    int bits;
} DataType;

static const DataType data_types[] = {
    {"F32", TENSOR_F32, 32},      {"F16", TENSOR_F16, 16},      {"BF16", TENSOR_BF16, 16},
    {"F64", TENSOR_F64, 64},      {"BOOL", TENSOR_OTHER, 8},    {"U8", TENSOR_OTHER, 8},
    {"I8", TENSOR_OTHER, 8},      {"U16", TENSOR_OTHER, 16},    {"I16", TENSOR_OTHER, 16},
    {"U32", TENSOR_OTHER, 32},    {"I32", TENSOR_OTHER, 32},    {"U64", TENSOR_OTHER, 64},
    {"I64", TENSOR_OTHER, 64},    {"C64", TENSOR_OTHER, 64},    {"F4", TENSOR_OTHER, 4},
    {"F6_E2M3", TENSOR_OTHER, 6}, {"F6_E3M2", TENSOR_OTHER, 6}, {"F8_E4M3", TENSOR_OTHER, 8},
    {"F8_E5M2", TENSOR_OTHER, 8}, {"F8_E8M0", TENSOR_OTHER, 8},
};

static const DataType *find_data_type(const Json *name) {
    for (size_t i = 0; i < sizeof data_types / sizeof data_types[0]; i++)
        if (name->type == JSON_STRING && strcmp(data_types[i].name, name->string) == 0) return &data_types[i];
    return NULL;
}

static bool refuse(const char *path, const char *name, const char *what, Error *err) {
    return error_set(err, "%s: tensor \"%s\": %s", path, json_shown(name).text, what);
}

static bool read_shape(Tensor *tensor, const Json *shape, const char *path, Error *err) {
    if (shape->type != JSON_ARRAY || shape->count > MAX_DIMENSIONS)
        return refuse(path, tensor->name, "its shape is not a list of at most 8 sizes", err);
    tensor->dimensions = shape->count;
    tensor->count = 1;
    for (int d = 0; d < shape->count; d++) {
        const Json *size = &shape->item[d];
        if (!size->is_integer || size->integer < 0 ||
            __builtin_mul_overflow(tensor->count, size->integer, &tensor->count))
            return refuse(path, tensor->name, "a size of its shape is not a whole number, or too large", err);
        tensor->shape[d] = size->integer;
    }
    return true;
}

static bool read_place(Tensor *tensor, const Json *offsets, int bits, const SafetensorsPart *part, const char *path,
                       Error *err) {
    if (offsets->type != JSON_ARRAY || offsets->count != 2 || !offsets->item[0].is_integer ||
        !offsets->item[1].is_integer)
        return refuse(path, tensor->name, "its data_offsets are not two whole numbers", err);
    int64_t begin = offsets->item[0].integer, end = offsets->item[1].integer, total_bits;
    if (begin < 0 || end < begin || (uint64_t)end > part->bytes - part->data)
        return refuse(path, tensor->name, "its data lies outside the file (is the file cut short?)", err);
    if (__builtin_mul_overflow(tensor->count, bits, &total_bits) || total_bits % 8 != 0 ||
        total_bits / 8 != end - begin)
        return refuse(path, tensor->name, "its data_offsets do not match its shape and dtype", err);
    tensor->data = (const char *)part->map + part->data + begin;
    tensor->bytes = (size_t)(end - begin);
    return true;
}

static bool read_tensor(Tensor *tensor, const char *name, const Json *entry, const SafetensorsPart *part,
                        const char *path, Error *err) {
    const Json *type = json_get(entry, "dtype"), *shape = json_get(entry, "shape");
    const Json *offsets = json_get(entry, "data_offsets");
    *tensor = (Tensor){.name = name, .file = part->path};
    if (type == NULL || shape == NULL || offsets == NULL || entry->count != 3)
        return refuse(path, name, "its entry must have dtype, shape and data_offsets, and nothing else", err);
    const DataType *known = find_data_type(type);
    if (known == NULL) return refuse(path, name, "unknown dtype", err);
    tensor->type = known->type;
    return read_shape(tensor, shape, path, err) && read_place(tensor, offsets, known->bits, part, path, err);
}

static bool check_metadata(const Json *metadata, const char *path, Error *err) {
    bool ok = metadata->type == JSON_OBJECT;
    for (int i = 0; ok && i < metadata->count; i++) ok = metadata->item[i].type == JSON_STRING;
    return ok || error_set(err, "%s: __metadata__ is not an object of strings", path);
}

static int compare_places(const void *a, const void *b) {
    const Tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; // the empty one of two at one place comes first
}

// Every byte of the data belongs to exactly one tensor.
static bool check_cover(Tensor *tensor, int count, const SafetensorsPart *part, const char *path, Error *err) {
    qsort(tensor, (size_t)count, sizeof *tensor, compare_places);
    const char *next = (const char *)part->map + part->data, *end = (const char *)part->map + part->bytes;
    for (int i = 0; i < count; i++) {
        if ((const char *)tensor[i].data < next)
            return refuse(path, tensor[i].name, "its data overlaps another tensor's", err);
        if ((const char *)tensor[i].data > next) return refuse(path, tensor[i].name, "a gap lies before its data", err);
        next += tensor[i].bytes;
    }
    return next == end || error_set(err, "%s: %td bytes after the last tensor's data belong to none", path, end - next);
}

static bool parse_header(SafetensorsPart *part, const char *path, Error *err) {
    const unsigned char *bytes = part->map;
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) length = length << 8 | bytes[i];
    if (length > MAX_HEADER_BYTES || length > part->bytes - 8)
        return error_set(err, "%s: a header of %" PRIu64 " bytes in a file of %zu (not safetensors, or cut short)",
                         path, length, part->bytes);
    part->data = 8 + (size_t)length;
    part->header = json_parse((const char *)bytes + 8, (size_t)length, path, err);
    if (part->header == NULL) return false;
    if (bytes[8] != '{') return error_set(err, "%s: the header is not a JSON object", path);
    return true;
}

// Appends the tensors of an open part to the file's array.
static bool append_tensors(Safetensors *file, const SafetensorsPart *part, const char *path, Error *err) {
    const Json *root = json_root(part->header);
    Tensor *larger = realloc(file->tensor, ((size_t)file->count + (size_t)root->count + 1) * sizeof *larger);
    if (larger == NULL) return error_set(err, "%s: out of memory for its list of tensors", path);
    file->tensor = larger;
    Tensor *first = file->tensor + file->count;
    int count = 0;
    for (int i = 0; i < root->count; i++) {
        if (strcmp(root->key[i], "__metadata__") == 0) {
            if (!check_metadata(&root->item[i], path, err)) return false;
        } else if (!read_tensor(&first[count++], root->key[i], &root->item[i], part, path, err)) {
            return false;
        }
    }
    if (!check_cover(first, count, part, path, err)) return false;
    file->count += count;
    return true;
}

// ---- files of one or several parts ----

bool safetensors_add_part(Safetensors *file, const char *path, Error *err) {
    SafetensorsPart *larger = realloc(file->part, ((size_t)file->parts + 1) * sizeof *larger);
    if (larger == NULL) return error_set(err, "%s: out of memory", path);
    file->part = larger;
    SafetensorsPart *part = &file->part[file->parts++];
    *part = (SafetensorsPart){.path = strdup(path)};
    if (part->path == NULL) return error_set(err, "%s: out of memory", path);
    return map_file(part, path, err) && parse_header(part, path, err) && append_tensors(file, part, path, err);
}

static int compare_names(const void *a, const void *b) {
    return strcmp(((const Tensor *)a)->name, ((const Tensor *)b)->name);
}

bool safetensors_sort(Safetensors *file, const char *path, Error *err) {
    if (file->count > 0) qsort(file->tensor, (size_t)file->count, sizeof *file->tensor, compare_names);
    for (int i = 1; i < file->count; i++)
        if (compare_names(&file->tensor[i - 1], &file->tensor[i]) == 0)
            return refuse(path, file->tensor[i].name, "is there twice", err);
    return true;
}

Safetensors *safetensors_open(const char *path, Error *err) {
    Safetensors *file = calloc(1, sizeof *file);
    if (file == NULL) {
        error_set(err, "%s: out of memory", path);
        return NULL;
    }
    if (safetensors_add_part(file, path, err) && safetensors_sort(file, path, err)) return file;
    safetensors_close(file);
    return NULL;
}

void safetensors_close(Safetensors *file) {
    if (file == NULL) return;
    for (int i = 0; i < file->parts; i++) unmap_part(&file->part[i]);
    free(file->part);
    free(file->tensor);
    free(file);
}

int safetensors_count(const Safetensors *file) { return file->count; }

const Tensor *safetensors_at(const Safetensors *file, int index) { return &file->tensor[index]; }

const Tensor *safetensors_find(const Safetensors *file, const char *name) {
    Tensor wanted = {.name = name};
    if (file->count == 0) return NULL;
    return bsearch(&wanted, file->tensor, (size_t)file->count, sizeof wanted, compare_names);
}

// ---- values ----

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3FF;
    if (exponent == 31) return from_bits(sign | 0x7F800000 | fraction << 13);
    if (exponent > 0) return from_bits(sign | (exponent + 127 - 15) << 23 | fraction << 13);
    float small = (float)fraction * 0x1p-24f; // zero and subnormal numbers
    return sign ? -small : small;
}

bool tensor_to_float(const Tensor *tensor, int64_t first, int64_t count, float *out, Error *err) {
    if (first < 0 || count < 0 || first > tensor->count || count > tensor->count - first)
        return error_set(err, "tensor \"%s\": %" PRId64 " elements from %" PRId64 " asked of %" PRId64,
                         json_shown(tensor->name).text, count, first, tensor->count);
    const char *data = tensor->data;
    uint16_t half;
    double wide;
    switch (tensor->type) {
    case TENSOR_F32:
        if (count > 0) memcpy(out, data + 4 * first, 4 * (size_t)count);
        return true;
    case TENSOR_F16:
        for (int64_t i = 0; i < count; i++) {
            memcpy(&half, data + 2 * (first + i), sizeof half);
            out[i] = from_half(half);
        }
        return true;
    case TENSOR_BF16:
        for (int64_t i = 0; i < count; i++) {
            memcpy(&half, data + 2 * (first + i), sizeof half);
            out[i] = from_bits((uint32_t)half << 16);
        }
        return true;
    case TENSOR_F64:
        for (int64_t i = 0; i < count; i++) {
            memcpy(&wide, data + 8 * (first + i), sizeof wide);
            out[i] = (float)wide;
        }
        return true;
    case TENSOR_OTHER: break;
    }
    return error_set(err, "tensor \"%s\": its dtype is not one of F32, F16, BF16 and F64",
                     json_shown(tensor->name).text);
}
