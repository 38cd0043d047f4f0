// A flat vector, tensor by tensor in the order and shapes of the file.
#include "checkpoint/parameter_file.h"

#include <stdlib.h>

#include "checkpoint/safetensors.h"
#include "checkpoint/safetensors_sum.h"

enum { TILE = 64 }; // rows of the file gathered at a time

// The file has (rows, columns), memory its transpose.
static bool write_transposed(SafetensorsWriter *file, const float *memory, int64_t rows, int64_t columns, Error *err) {
    float *tile = malloc((size_t)TILE * (size_t)columns * sizeof *tile);
    if (tile == NULL) return error_set(err, "out of memory for writing the parameters");
    bool ok = true;
    for (int64_t first = 0; ok && first < rows; first += TILE) {
        int64_t some = rows - first < TILE ? rows - first : TILE;
        for (int64_t column = 0; column < columns; column++)
            for (int64_t row = 0; row < some; row++) tile[row * columns + column] = memory[column * rows + first + row];
        ok = safetensors_write(file, tile, some * columns, err);
    }
    free(tile);
    return ok;
}

static bool write_tensors(SafetensorsWriter *file, const ParameterTable *table, const float *flat, Error *err) {
    for (int i = 0; i < table->count; i++) {
        const Parameter *p = &table->parameter[i];
        bool ok = p->transposed ? write_transposed(file, flat + p->offset, p->shape[0], p->shape[1], err)
                                : safetensors_write(file, flat + p->offset, p->size, err);
        if (!ok) return false;
    }
    return true;
}

static SafetensorsWriter *create_for_table(const char *path, const ParameterTable *table, Error *err) {
    TensorDeclaration *tensors = calloc((size_t)table->count, sizeof *tensors);
    if (tensors == NULL) {
        error_set(err, "out of memory for writing the parameters");
        return NULL;
    }
    for (int i = 0; i < table->count; i++) {
        const Parameter *p = &table->parameter[i];
        tensors[i] = (TensorDeclaration){p->name, p->dimensions, {p->shape[0], p->shape[1]}};
    }
    SafetensorsWriter *file = safetensors_create(path, tensors, table->count, err);
    free(tensors);
    return file;
}

bool parameter_file_write(const char *path, const ParameterTable *table, const float *flat, char *sha256_hex,
                          Error *err) {
    SafetensorsWriter *file = create_for_table(path, table, err);
    if (file == NULL) return false;
    if (write_tensors(file, table, flat, err)) return safetensors_finish_sum(file, sha256_hex, err);
    safetensors_abandon(file);
    return false;
}
