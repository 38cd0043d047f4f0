// Products with a lower-triangular matrix over positions, W (T', T'), of the mixer `mlp`. A token's row of what is
// multiplied holds all sequences side by side, (T, B C), so that one product serves them all. Nothing above W's
// diagonal is read or written, and the products take no time for it but in tiles on the diagonal.
#ifndef MIXER_TRIANGLE_H
#define MIXER_TRIANGLE_H

#include "layers/cpu/sgemm.h"
#include "layers/cuda/scratch.h"
#include "layers/device.h"

#ifdef __cplusplus
extern "C" {
#endif

// A block of W: of the rows of one chunk of tokens and the columns of another. It lies wholly below the diagonal
// (column + columns <= row + 1), or is a square on it (row == column, rows == columns).
typedef struct TriangleBlock {
    int64_t stride;          // T'
    int64_t row, rows;       // whose outputs
    int64_t column, columns; // of whose inputs
    int64_t width;           // N = B C
} TriangleBlock;
static inline bool triangle_on_diagonal(const TriangleBlock *block) { return block->row == block->column; }

// `weight` and `d_weight` (fp32) point to the whole W; sums and d_x are fp32, x, d and out of storage.
typedef struct TriangleKernels {
    void (*multiply)(Device *, const TriangleBlock *, float *sums, const void *weight,
                     const void *x); // (rows, N) += W x
    void (*multiply_transposed)(Device *, const TriangleBlock *, float *d_x, const void *weight,
                                const void *d); // (columns, N) += W^T d
    void (*gradient)(Device *, const TriangleBlock *, float *d_weight, const void *d, const void *x); // += d x^T
    // out (rows, N) = sums + bias (rows), each row its own; and d_bias (rows) += the sums of d's rows.
    void (*add_bias)(Device *, void *out, const float *sums, const void *bias, int64_t rows, int64_t N);
    void (*bias_gradient)(Device *, float *d_bias, const void *d, int64_t rows, int64_t N);
} TriangleKernels;

// Tiles on the diagonal are copied, or added up aside, in scratch memory: on the CPU one for each thread.
enum { TRIANGLE_TILE_CPU = 128, TRIANGLE_TILE_CUDA = 256 };
static inline size_t triangle_scratch_bytes(size_t element_bytes, int threads) {
    if (element_bytes == sizeof(float))
        return (size_t)threads * (SGEMM_ROOM + TRIANGLE_TILE_CPU * TRIANGLE_TILE_CPU) * sizeof(float);
    return CUDA_WORKSPACE_BYTES + TRIANGLE_TILE_CUDA * TRIANGLE_TILE_CUDA * sizeof(float);
}

#ifdef __cplusplus
}
#endif
#endif
