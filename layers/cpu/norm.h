// What LayerNorm and RMSNorm share: the residual addition before them, and sums over rows behind them: each block of
// rows has sums of its own (layers.h), which are added up in order at the end.
#ifndef LAYERS_CPU_NORM_H
#define LAYERS_CPU_NORM_H

#include <math.h>

#include "layers/cpu/layers.h"
#include "layers/cpu/vector.h"

// residual = x + delta; returns the row to normalise, which is x itself where there is no delta.
static inline const float *residual_row(float *residual, const float *x, const float *delta, int64_t row, int64_t C) {
    if (delta == NULL) return x + row * C;
    float *sum = residual + row * C;
    x += row * C;
    delta += row * C;
    int64_t c = 0;
    for (; c + SIMD_WIDTH <= C; c += SIMD_WIDTH) vstore(sum + c, vload(x + c) + vload(delta + c));
    for (; c < C; c++) sum[c] = x[c] + delta[c];
    return sum;
}

// total[c] += the sum over blocks of partial[block * stride + c], in order.
static inline void add_blocks(float *total, const float *partial, int64_t blocks, int64_t stride, int64_t C) {
    int64_t c = 0;
    for (; c + SIMD_WIDTH <= C; c += SIMD_WIDTH) {
        vfloat sum = {0};
        for (int64_t block = 0; block < blocks; block++) sum += vload(partial + block * stride + c);
        vstore(total + c, vload(total + c) + sum);
    }
    for (; c < C; c++) {
        float sum = 0;
        for (int64_t block = 0; block < blocks; block++) sum += partial[block * stride + c];
        total[c] += sum;
    }
}

#endif
