// Sums and maxima over the lanes of a warp and the warps of a block, in an order that never changes.
#ifndef LAYERS_CUDA_WARP_H
#define LAYERS_CUDA_WARP_H

#include "layers/cuda/cuda.h"

enum { WARP = 32 };
#define WHOLE_WARP 0xffffffffu

// Every lane gets the result. T: float or double.
template <typename T> __device__ inline T warp_sum(T x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(WHOLE_WARP, x, distance);
    return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, distance));
    return x;
}

// Over the block; every thread gets the result. blockDim.x is a multiple of 32, at most 1,024. scratch: shared, one
// value per warp; may be used again after the call.
template <typename T> __device__ inline T block_sum(T x, T *scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = warp_sum(lane < warps ? scratch[lane] : T(0));
    __syncthreads();
    return x;
}
__device__ inline float block_max(float x, float *scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_max(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = warp_max(lane < warps ? scratch[lane] : scratch[0]);
    __syncthreads();
    return x;
}

#endif
