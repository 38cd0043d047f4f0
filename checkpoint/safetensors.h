// The safetensors file format: 8 bytes little-endian header length, a JSON header (name -> dtype, shape, data_offsets),
// data.
//
// Reading maps the file and checks everything before a tensor is handed out: header length, JSON, dtypes, that offsets
// lie inside the file, match shape x dtype, and neither overlap nor leave gaps.
#ifndef CHECKPOINT_SAFETENSORS_H
#define CHECKPOINT_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"

typedef enum TensorType { TENSOR_F32, TENSOR_F16, TENSOR_BF16, TENSOR_F64, TENSOR_OTHER } TensorType;

typedef struct Tensor {
    const char *name, *file; // the file it lies in
    TensorType type;
    int dimensions; // at most 8
    int64_t shape[8];
    int64_t count;    // elements
    const void *data; // in the mapped file; may be unaligned
    size_t bytes;
} Tensor;

typedef struct Safetensors Safetensors;

Safetensors *safetensors_open(const char *path, Error *err);
// A Hugging Face model folder: model.safetensors, or the shards of model.safetensors.index.json.
Safetensors *safetensors_open_folder(const char *folder, Error *err);
void safetensors_close(Safetensors *file); // may be NULL
int safetensors_count(const Safetensors *file);
const Tensor *safetensors_at(const Safetensors *file, int index);
const Tensor *safetensors_find(const Safetensors *file, const char *name); // NULL: none

// Elements [first, first+count) as fp32, from F32, F16, BF16 or F64.
bool tensor_to_float(const Tensor *tensor, int64_t first, int64_t count, float *out, Error *err);

// Writing: declare all tensors, then their data in the same order. F32 only.
typedef struct SafetensorsWriter SafetensorsWriter;
typedef struct TensorDeclaration {
    const char *name;
    int dimensions;
    int64_t shape[4];
} TensorDeclaration;
// {"format": "pt"} goes into __metadata__, as transformers asks. Data starts 8-byte aligned.
SafetensorsWriter *safetensors_create(const char *path, const TensorDeclaration *tensors, int count, Error *err);
// The next `count` elements.
bool safetensors_write(SafetensorsWriter *writer, const float *data, int64_t count, Error *err);
bool safetensors_finish(SafetensorsWriter *writer, Error *err); // checks that all was written, syncs, closes, frees
void safetensors_abandon(SafetensorsWriter *writer);            // closes and frees; may be NULL

#endif
