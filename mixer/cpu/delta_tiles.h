// What the gated delta rule does to blocks beside products (attention/cpu/tile_kernels.h), compiled once per
// instruction set. A block is of up to 64 tokens, rows a multiple of STRIP; columns are multiples of STRIP. Of matrices
// (rows, rows) that are 0 above the diagonal, each strip of rows is read and written up to the end of its own strip of
// columns.
#ifndef MIXER_CPU_DELTA_TILES_H
#define MIXER_CPU_DELTA_TILES_H

#include "attention/cpu/tile_kernels.h"

// decay_ij = e^(sum_i - sum_j) for begin_i <= j <= i, else 0. carry_i = e^sum_i where begin_i < 0, else 0.
typedef void DeltaDecay(Rows decay, float *carry, int64_t rows, const double *sum, const int32_t *begin);
// x_ij *= factor_i decay_ij. diagonal: else x_ii becomes 0. factor NULL: 1.
typedef void DeltaWeigh(Rows x, Rows decay, int64_t rows, const float *factor, bool diagonal);
// x (STRIP, columns) = (I + a)^-1 x, or of the transpose, for a (STRIP, STRIP) below the diagonal.
typedef void DeltaSolve(Rows x, int64_t columns, Rows a, bool transpose);
// to_i = factor_i from_i; may be the same.
typedef void DeltaScale(Rows to, Rows from, int64_t rows, int64_t columns, const float *factor);
// to_i = beta_i (v_i - carry_i to_i)
typedef void DeltaTarget(Rows to, Rows v, int64_t rows, int64_t columns, const float *beta, const float *carry);
// to_i = a_i . b_i
typedef void DeltaDots(float *to, Rows a, Rows b, int64_t rows, int64_t columns);

typedef struct DeltaTiles {
    DeltaDecay *decay;
    DeltaWeigh *weigh;
    DeltaSolve *solve;
    DeltaScale *scale;
    DeltaTarget *target;
    DeltaDots *dots;
} DeltaTiles;

#endif
