// Vectors of floats, as wide as the instruction set for which the including file is compiled.
//
// The Makefile compiles each file of SIMD_SOURCES once per instruction set with -DSIMD_ISA=portable|avx2|avx512 and the
// matching -m flags; SIMD_NAME(f) gives f that copy's name (f_avx512), and base/cpu_features.h chooses one at start.
// The code itself is GCC/Clang vector arithmetic, with no need for intrinsics, so it also compiles for other
// processors.
#ifndef BASE_SIMD_H
#define BASE_SIMD_H

#include <stdint.h>
#include <string.h>

#define SIMD_JOIN2(a, b) a##_##b
#define SIMD_JOIN(a, b) SIMD_JOIN2(a, b)
#define SIMD_NAME(name) SIMD_JOIN(name, SIMD_ISA)

#if defined(__SSE__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { SIMD_WIDTH = 16 };
#elif defined(__AVX__)
enum { SIMD_WIDTH = 8 };
#else
enum { SIMD_WIDTH = 4 };
#endif

// Unrolls the loop that follows it, of at most 16 turns, so that an array of vectors which it indexes stays in
// registers.
#if defined(__clang__)
#define SIMD_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SIMD_UNROLL _Pragma("GCC unroll 16")
#endif

typedef float vfloat __attribute__((vector_size(4 * SIMD_WIDTH)));
typedef int32_t vint __attribute__((vector_size(4 * SIMD_WIDTH)));
typedef uint32_t vbits __attribute__((vector_size(4 * SIMD_WIDTH))); // bits of floats: their sums wrap, never overflow

static inline vfloat vload(const float *p) { // no alignment needed
    vfloat v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void vstore(float *p, vfloat v) { memcpy(p, &v, sizeof v); }
static inline vfloat vset(float x) { return x - (vfloat){0}; }
static inline vfloat vselect(vint mask, vfloat yes, vfloat no) { // mask lanes are 0 or -1
    return (vfloat)((mask & (vint)yes) | (~mask & (vint)no));
}
// a > b ? a : b, and a < b ? a : b: where either is not a number, the result is b. One instruction that compilers do
// not find by themselves.
#if defined(__AVX512F__)
static inline vfloat vmax(vfloat a, vfloat b) { return (vfloat)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vfloat vmin(vfloat a, vfloat b) { return (vfloat)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX__)
static inline vfloat vmax(vfloat a, vfloat b) { return (vfloat)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vfloat vmin(vfloat a, vfloat b) { return (vfloat)_mm256_min_ps((__m256)a, (__m256)b); }
#elif defined(__SSE__)
static inline vfloat vmax(vfloat a, vfloat b) { return (vfloat)_mm_max_ps((__m128)a, (__m128)b); }
static inline vfloat vmin(vfloat a, vfloat b) { return (vfloat)_mm_min_ps((__m128)a, (__m128)b); }
#else
static inline vfloat vmax(vfloat a, vfloat b) { return vselect(a > b, a, b); }
static inline vfloat vmin(vfloat a, vfloat b) { return vselect(a < b, a, b); }
#endif
static inline float vsum(vfloat v) {
    float s[SIMD_WIDTH];
    memcpy(s, &v, sizeof v);
    for (int n = SIMD_WIDTH / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++) s[i] += s[i + n];
    return s[0];
}
static inline float vmaximum(vfloat v) {
    float s[SIMD_WIDTH];
    memcpy(s, &v, sizeof v);
    for (int n = SIMD_WIDTH / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++) s[i] = s[i] > s[i + n] ? s[i] : s[i + n];
    return s[0];
}

// exp(x) within 2 units in the last place for x in [-87.3, 88.7]; 0 below, so that exp(-inf) is exactly 0; finite
// above; what is not a number stays so. x = n ln 2 + r with |r| <= ln 2 / 2; 2^n by adding n to the exponent, e^r by a
// polynomial (Cody and Waite's split).
static inline vfloat vexp(vfloat x) {
    const vfloat round_to_integer = vset(12582912.0f); // 1.5 * 2^23: adding it leaves the integer in the low bits
    vfloat clamped = vmin(vset(88.7f), vmax(vset(-87.3f), x)); // in this order what is not a number stays so
    vfloat shifted = clamped * 1.44269504f + round_to_integer;
    vfloat n = shifted - round_to_integer;
    vfloat r = clamped - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vfloat p = vset(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    vbits exponent = ((vbits)shifted - (vbits)round_to_integer) << 23;
    vfloat result = (vfloat)((vbits)p + exponent);
    result = vselect(x == x, result, x); // the sum may have made a number of what is none
    return vselect(x < vset(-87.3f), vset(0.0f), result);
}

// exp(x) for x <= 0 (or a rounding error above) within 1.5e-7 + 7.5e-8 |x|, relative: the second term is the rounding
// of x log2(e), so it is exp for softmax, whose small results matter little. exp(0) is exactly 1, exp(-inf) exactly 0,
// what is not a number stays so; for x further above 0 the result means nothing.
// 2^t = 2^n 2^r with n the nearest integer; 2^r for |r| <= 1/2 is a polynomial fitted to the smallest relative error.
static inline vfloat vexp_negative(vfloat x) {
    const vfloat round_to_integer = vset(12582912.0f + 127); // leaves n + 127, which is 2^n's exponent field
    vfloat t = vmax(vset(-127.0f), x * 1.44269504f);         // at -127 that is 0, and so is the result
    vfloat shifted = t + round_to_integer;
    vfloat r = t - (shifted - round_to_integer);
    vfloat p = r * 1.535336196e-4f + 1.339887385e-3f;
    p = p * r + 9.618436918e-3f;
    p = p * r + 5.550332367e-2f;
    p = p * r + 2.402264774e-1f;
    p = p * r + 6.931471825e-1f;
    p = p * r + 1.0f;
    return p * (vfloat)((vbits)shifted << 23);
}

#endif
