// The border between linear attention and the processor, beside the products of attention/cpu/tile_kernels.h: loops
// over the values of a block, compiled once per instruction set (linear_simd.c).
#ifndef MIXER_CPU_LINEAR_TILES_H
#define MIXER_CPU_LINEAR_TILES_H

#include <stdbool.h>

#include "attention/cpu/tile_kernels.h"

typedef struct LinearTiles {
    // x (rows, columns) = elu(x) + 1, in place.
    void (*features)(Rows x, int64_t rows, int64_t columns);
    // to (rows, padded) = factor[r] * from (rows, columns), filled up with columns of zeros; factor NULL: 1.
    void (*pack)(Rows to, int64_t padded, Rows from, int64_t rows, int64_t columns, const float *factor);
    // scores (keys, queries) *= power[query - key], which is 0 for a key behind its query, and 0 where key <
    // first[query] (NULL: nowhere); the rows_of_strip of each strip of queries. sums (queries) += those of the columns;
    // NULL: none.
    void (*mask)(Rows scores, int64_t keys, int64_t queries, const float *power, const int32_t *first, float *sums);
    // sums[c] = the sum of x (rows, columns) over rows; columns a multiple of STRIP.
    void (*sum_rows)(float *sums, Rows x, int64_t rows, int64_t columns);
    // to += factor * from.
    void (*add_scaled)(float *to, const float *from, float factor, int64_t count);
    // to (rows, columns) = from * phi', or (`add`) +=; phi' is that of the features x: min(x, 1). x.data NULL: 1.
    void (*give)(Rows to, Rows from, Rows x, int64_t rows, int64_t columns, bool add);
    // out[r] = the dot product of rows r of a and b.
    void (*dots)(float *out, Rows a, Rows b, int64_t rows, int64_t columns);
} LinearTiles;

// Those of the processor's best instruction set.
const LinearTiles *linear_tiles(void);

#endif
