// The inner loops of mixer/cpu/delta_tiles.h.
#include <stdbool.h>

#include "base/simd.h"
#include "mixer/cpu/delta.h"

static inline int64_t strip_end(int64_t row) { return (row / STRIP + 1) * STRIP; }

// The differences are taken in double precision: sums of 64 decays may be hundreds, their differences small.
static void decay(Rows decay, float *carry, int64_t rows, const double *sum, const int32_t *begin) {
    for (int64_t i = 0; i < rows; i++) {
        float *row = decay.data + i * decay.stride;
        const int64_t first = begin[i] < 0 ? 0 : begin[i], end = strip_end(i);
        for (int64_t j = 0; j < end; j++) row[j] = (float)(sum[i] - sum[j]);
        for (int64_t j = 0; j < end; j += SIMD_WIDTH) vstore(row + j, vexp(vload(row + j)));
        for (int64_t j = 0; j < first; j++) row[j] = 0;
        for (int64_t j = i + 1; j < end; j++) row[j] = 0;
        carry[i] = (float)sum[i];
    }
    for (int64_t i = 0; i < rows; i += SIMD_WIDTH) vstore(carry + i, vexp(vload(carry + i)));
    for (int64_t i = 0; i < rows; i++)
        if (begin[i] >= 0) carry[i] = 0;
}

static void weigh(Rows x, Rows decay, int64_t rows, const float *factor, bool diagonal) {
    for (int64_t i = 0; i < rows; i++) {
        float *row = x.data + i * x.stride;
        const vfloat by = vset(factor != NULL ? factor[i] : 1.0f);
        for (int64_t j = 0; j < strip_end(i); j += SIMD_WIDTH)
            vstore(row + j, by * vload(decay.data + i * decay.stride + j) * vload(row + j));
        if (!diagonal) row[i] = 0;
    }
}

// A column of vectors at a time, all of it in registers where there are 32 of them.
static inline __attribute__((always_inline)) void solve_columns(float *x, int64_t stride, Rows a, bool transpose) {
    vfloat row[STRIP];
    SIMD_UNROLL for (int i = 0; i < STRIP; i++) row[i] = vload(x + i * stride);
    if (!transpose) {
        SIMD_UNROLL for (int j = 0; j < STRIP; j++) {
            SIMD_UNROLL for (int i = j + 1; i < STRIP; i++) row[i] -= a.data[i * a.stride + j] * row[j];
        }
    } else {
        SIMD_UNROLL for (int j = STRIP - 1; j >= 0; j--) {
            SIMD_UNROLL for (int i = 0; i < j; i++) row[i] -= a.data[j * a.stride + i] * row[j];
        }
    }
    SIMD_UNROLL for (int i = 0; i < STRIP; i++) vstore(x + i * stride, row[i]);
}

static void solve(Rows x, int64_t columns, Rows a, bool transpose) {
    for (int64_t c = 0; c < columns; c += SIMD_WIDTH) {
        if (transpose) solve_columns(x.data + c, x.stride, a, true);
        else solve_columns(x.data + c, x.stride, a, false);
    }
}

static void scale(Rows to, Rows from, int64_t rows, int64_t columns, const float *factor) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < columns; c += SIMD_WIDTH)
            vstore(to.data + i * to.stride + c, factor[i] * vload(from.data + i * from.stride + c));
}

static void target(Rows to, Rows v, int64_t rows, int64_t columns, const float *beta, const float *carry) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < columns; c += SIMD_WIDTH) {
            float *x = to.data + i * to.stride + c;
            vstore(x, beta[i] * (vload(v.data + i * v.stride + c) - carry[i] * vload(x)));
        }
}

static void dots(float *to, Rows a, Rows b, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++) {
        vfloat sum = vset(0.0f);
        for (int64_t c = 0; c < columns; c += SIMD_WIDTH)
            sum += vload(a.data + i * a.stride + c) * vload(b.data + i * b.stride + c);
        to[i] = vsum(sum);
    }
}

extern const DeltaTiles SIMD_NAME(delta_tiles);
const DeltaTiles SIMD_NAME(delta_tiles) = {decay, weigh, solve, scale, target, dots};
