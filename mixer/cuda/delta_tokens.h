// What delta_tokens.cu and delta_finish.cu have in common: a warp has a head of a token.
#ifndef MIXER_CUDA_DELTA_TOKENS_H
#define MIXER_CUDA_DELTA_TOKENS_H

#include "mixer/cuda/delta.h"

namespace delta {

enum { MOST = 4 }; // values of a head to a lane

__device__ inline int convolved_width(const Grid &g) { return (g.heads + 2 * g.kv_heads) * g.head_dim; }
__device__ inline int raw_width(const Grid &g) { return convolved_width(g) + g.heads * g.head_dim; }

// f(c, v): the lane's v-th value of a head is number c.
template <typename F> __device__ __forceinline__ void each_value(int D, F f) {
#pragma unroll
    for (int v = 0; v < MOST; v++) {
        const int c = (int)threadIdx.x % WARP + v * WARP;
        if (c < D) f(c, v);
    }
}
// The lane's part of a . b.
__device__ inline float dot(int D, const float (&a)[MOST], const float (&b)[MOST]) {
    float sum = 0;
    each_value(D, [&](int, int v) { sum += a[v] * b[v]; });
    return sum;
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline float silu(float x) { return x * sigmoid(x); }
__device__ inline float silu_slope(float x) {
    const float y = sigmoid(x);
    return y * (1.0f + x * (1.0f - y));
}

// to[c] += the sum of rows[i * stride + c] over `count` rows, in an order that never changes (delta_finish.cu).
void add_columns(Device *device, float *to, const float *rows, int64_t count, int64_t columns, int64_t stride);

} // namespace delta
#endif
