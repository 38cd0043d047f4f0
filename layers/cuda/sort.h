// Sorts row numbers by a key of each row: a stable radix sort, deterministic, without a look from the CPU.
#ifndef LAYERS_CUDA_SORT_H
#define LAYERS_CUDA_SORT_H

#include "layers/cuda/cuda.h"
#include "layers/cuda/scratch.h"

// In order of keys, and where these are equal in order of rows.
struct SortedPairs {
    const int32_t *keys;
    const uint32_t *rows;
};

// keys (count), from 0 to 2^key_bits - 1, key_bits up to 31. `scratch`: sort_scratch_bytes(count) of the device
// (scratch.h), where the result lies too.
SortedPairs sort_rows_by_key(cudaStream_t stream, void *scratch, const int32_t *keys, int64_t count, int key_bits);

#endif
