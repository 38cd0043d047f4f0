// Transposes a square block of SIMD_WIDTH x SIMD_WIDTH floats held in vectors.
//
// A perfect shuffle of a list of n^2 values moves value i to 2i mod (n^2 - 1), so log2(n) shuffles send row-major to
// column-major. Each shuffle interleaves the first half of the rows with the second half.
#ifndef LAYERS_CPU_TRANSPOSE_H
#define LAYERS_CPU_TRANSPOSE_H

#include "base/simd.h"

#if !defined(__has_builtin)
#define SIMD_HAS_SHUFFLE 0
#else
#define SIMD_HAS_SHUFFLE __has_builtin(__builtin_shufflevector)
#endif

#if !SIMD_HAS_SHUFFLE
static inline vfloat interleave(vfloat a, vfloat b, int from) {
    vfloat out = {0};
    for (int i = 0; i < SIMD_WIDTH / 2; i++) {
        out[2 * i] = a[from + i];
        out[2 * i + 1] = b[from + i];
    }
    return out;
}
static inline vfloat interleave_low(vfloat a, vfloat b) { return interleave(a, b, 0); }
static inline vfloat interleave_high(vfloat a, vfloat b) { return interleave(a, b, SIMD_WIDTH / 2); }
#elif defined(__AVX512F__)
static inline vfloat interleave_low(vfloat a, vfloat b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
static inline vfloat interleave_high(vfloat a, vfloat b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif defined(__AVX__)
static inline vfloat interleave_low(vfloat a, vfloat b) {
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
static inline vfloat interleave_high(vfloat a, vfloat b) {
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#else
static inline vfloat interleave_low(vfloat a, vfloat b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
static inline vfloat interleave_high(vfloat a, vfloat b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#endif

static inline void transpose_block(vfloat row[SIMD_WIDTH]) {
    SIMD_UNROLL
    for (int n = 1; n < SIMD_WIDTH; n *= 2) {
        vfloat shuffled[SIMD_WIDTH];
        SIMD_UNROLL
        for (int i = 0; i < SIMD_WIDTH / 2; i++) {
            shuffled[2 * i] = interleave_low(row[i], row[i + SIMD_WIDTH / 2]);
            shuffled[2 * i + 1] = interleave_high(row[i], row[i + SIMD_WIDTH / 2]);
        }
        SIMD_UNROLL
        for (int i = 0; i < SIMD_WIDTH; i++) row[i] = shuffled[i];
    }
}

#endif
