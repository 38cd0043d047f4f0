// What the layers need beside base/simd.h: parts of vectors at the end of a row, square roots, and functions of one
// vector applied along arrays.
#ifndef LAYERS_CPU_VECTOR_H
#define LAYERS_CPU_VECTOR_H

#include "base/simd.h"

// The first n of SIMD_WIDTH values; the others are 0 when loaded, and untouched in memory when stored.
static inline vfloat vload_part(const float *p, int64_t n) {
    vfloat v = {0};
    memcpy(&v, p, (size_t)n * sizeof *p);
    return v;
}
static inline void vstore_part(float *p, vfloat v, int64_t n) { memcpy(p, &v, (size_t)n * sizeof *p); }

#if defined(__AVX512F__)
static inline vfloat vsqrt(vfloat x) { return (vfloat)_mm512_sqrt_ps((__m512)x); }
#elif defined(__AVX__)
static inline vfloat vsqrt(vfloat x) { return (vfloat)_mm256_sqrt_ps((__m256)x); }
#elif defined(__SSE__)
static inline vfloat vsqrt(vfloat x) { return (vfloat)_mm_sqrt_ps((__m128)x); }
#else
static inline vfloat vsqrt(vfloat x) {
    for (int i = 0; i < SIMD_WIDTH; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
}
#endif

// out[i] = f(a[i], b[i]). Inlined, and f with it. out may be a or b.
static inline __attribute__((always_inline)) void map(float *out, const float *a, const float *b, int64_t count,
                                                      vfloat (*f)(vfloat, vfloat)) {
    int64_t i = 0;
    for (; i + SIMD_WIDTH <= count; i += SIMD_WIDTH) vstore(out + i, f(vload(a + i), vload(b + i)));
    if (i < count) vstore_part(out + i, f(vload_part(a + i, count - i), vload_part(b + i, count - i)), count - i);
}

#endif
