// GELU and SiLU and their derivatives, for whoever has a value in a register.
//
// Both are x times a logistic sigmoid, sigma(z) = 1 / (1 + exp(-z)):
//   silu(x) = x sigma(x)
//   gelu(x) = x/2 (1 + tanh u) = x sigma(2u),  u = sqrt(2/pi) (x + 0.044715 x^3),  since 1 + tanh u = 2 sigma(2u).
// With e = exp(-z), sigma = 1/(1+e) and 1 - sigma = e sigma: nothing cancels, for any x. Two instructions of the
// special function unit per value (ex2, rcp), where tanhf takes some twenty of the others and a branch.
//
// Error: exp2 and the reciprocal are within 2^-22. The exponent t = -z log2(e) comes from three roundings, which shift
// 2^t by 3 |t| ln(2) 2^-24: nothing near 0, and 2^-16 where |t| is 126, the largest that matters. A rounding to bf16 is
// off by up to 2^-8.
#ifndef LAYERS_CUDA_ACTIVATION_H
#define LAYERS_CUDA_ACTIVATION_H

#include "layers/cuda/ptx.h"

// 1/x within 2^-23 (rcp.approx.ftz); 0 for x above 2^126.
__device__ inline float reciprocal_fast(float x) {
#ifdef __CUDACC__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return x > 0x1p126f ? 0.0f : 1.0f / x;
#endif
}

// Comparisons rather than fminf, which would turn not-a-number into the limit.
__device__ inline float not_below(float x, float limit) { return x < limit ? limit : x; }
__device__ inline float not_above(float x, float limit) { return x > limit ? limit : x; }

// log2(e) 2 sqrt(2/pi), and that times 0.044715: -2u log2(e) = -x (GELU_1 + GELU_3 x^2).
#define GELU_1 2.3022081985f
#define GELU_3 0.1029432396f

__device__ inline float gelu(float x) {
    const float e = exp2_fast(x * (-GELU_1 - GELU_3 * (x * x)));
    return x * reciprocal_fast(1.0f + e);
}

// sigma (1 + x (2u)' (1 - sigma)). Beyond +-10 it is 1 or 0 in single precision; there the powers of x would overflow.
__device__ inline float gelu_gradient(float d_out, float x) {
    x = not_above(not_below(x, -10.0f), 10.0f);
    const float square = x * x;
    const float e = exp2_fast(x * (-GELU_1 - GELU_3 * square)), sigma = reciprocal_fast(1.0f + e);
    const float slope = 1.5957691216f + 0.2140644488f * square; // (2u)' = 2 sqrt(2/pi) (1 + 3 * 0.044715 x^2)
    return d_out * (sigma * (1.0f + x * slope * (e * sigma)));
}

// silu(x) and its derivative, sigma (1 + x (1 - sigma)). Below -87 both are under 1e-35, and e would overflow.
__device__ inline void silu_and_gradient(float x, float &value, float &gradient) {
    x = not_below(x, -87.0f);
    const float e = exp2_fast(-LOG2_E * x), sigma = reciprocal_fast(1.0f + e);
    value = x * sigma;
    gradient = sigma * (1.0f + x * (e * sigma));
}
// The value alone, in the same bits.
__device__ inline float silu(float x) {
    float value, gradient;
    silu_and_gradient(x, value, gradient);
    return value;
}

#endif
