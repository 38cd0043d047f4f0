// What delta_tokens.cu and delta_finish.cu have in common: a warp has a head of a token.
#ifndef MIXER_CUDA_DELTA_TOKENS_H
#define MIXER_CUDA_DELTA_TOKENS_H

#include "mixer/cuda/delta.h"

namespace delta {

// Values of a head to a lane; and rows whose values a warp asks for before it uses the first.
enum { MOST = 4, AT_ONCE = 4 };

__device__ inline int convolved_width(const Grid &g) { return (g.heads + 2 * g.kv_heads) * g.head_dim; }
__device__ inline int raw_width(const Grid &g) { return convolved_width(g) + g.heads * g.head_dim; }

// A lane's values of a head: two beside each other of every 64; past the head they are 0.
struct Values {
    float at[MOST];
};
template <typename F> __device__ __forceinline__ Values each(F f) { // f(v) of the lane's v-th
    Values x;
#pragma unroll
    for (int v = 0; v < MOST; v++) x.at[v] = f(v);
    return x;
}
__device__ inline Values load_values(const bf16 *from, int D) {
    Values x = each([](int) { return 0.0f; });
#pragma unroll
    for (int v = 0; v < MOST; v += 2) {
        const int c = (int)threadIdx.x % WARP * 2 + v * WARP;
        if (c >= D) continue;
        const uint32_t pair = *reinterpret_cast<const uint32_t *>(from + c);
        x.at[v] = low_of(pair), x.at[v + 1] = high_of(pair);
    }
    return x;
}
__device__ inline void store_values(bf16 *to, int D, const Values &x) {
#pragma unroll
    for (int v = 0; v < MOST; v += 2) {
        const int c = (int)threadIdx.x % WARP * 2 + v * WARP;
        if (c < D) *reinterpret_cast<uint32_t *>(to + c) = pack_bf16(x.at[v], x.at[v + 1]);
    }
}
// Calls load(k, i) for rows i of a warp, AT_ONCE of them, which are k, and then use(k, i) for the same; up to `rows`.
template <typename Load, typename Use> __device__ __forceinline__ void for_rows(int rows, Load load, Use use) {
    for (int first = (int)threadIdx.x / WARP; first < rows; first += WARPS * AT_ONCE) {
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (first + k * WARPS < rows) load(k, first + k * WARPS);
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (first + k * WARPS < rows) use(k, first + k * WARPS);
    }
}
// Every lane gets the sum over the head.
__device__ inline float dot(const Values &a, const Values &b) {
    float sum = 0;
#pragma unroll
    for (int v = 0; v < MOST; v++) sum += a.at[v] * b.at[v];
    return warp_sum(sum);
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
