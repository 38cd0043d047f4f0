// Sums of many values in double precision: of values, and of their squares.
//
// A first kernel leaves one partial sum per block, a second adds those up. Which thread adds what, and in which order,
// is settled by the number of values alone: not by the GPU, nor by where the values lie. So the bits never change.
#include "layers/cuda/elementwise.h"
#include "layers/cuda/layers.h"
#include "layers/cuda/warp.h"

namespace {

enum {
    SUM_THREADS = 256,
    SUM_WIDTH = 4,
    SUM_AT_ONCE = 4,
    SUM_CHUNK = SUM_THREADS * SUM_WIDTH * SUM_AT_ONCE, // what a block reads at once
    TOTAL_THREADS = 1024
};

// Four values; zeros beyond the end.
template <bool wide>
__device__ inline void load_or_zero(float (&four)[SUM_WIDTH], const float *x, int64_t i, int64_t count) {
    if (wide && i + SUM_WIDTH <= count) {
        load(four, x + i);
        return;
    }
#pragma unroll
    for (int k = 0; k < SUM_WIDTH; k++) four[k] = i + k < count ? x[i + k] : 0.0f;
}

template <bool wide, bool squares>
__global__ void __launch_bounds__(SUM_THREADS) partial_sums_kernel(double *partial, const float *x, int64_t count) {
    SHARED_ARRAY(double, scratch, SUM_THREADS / WARP);
    double sum = 0;
    for (int64_t chunk = blockIdx.x; chunk * SUM_CHUNK < count; chunk += gridDim.x) {
        float values[SUM_AT_ONCE][SUM_WIDTH];
#pragma unroll
        for (int k = 0; k < SUM_AT_ONCE; k++)
            load_or_zero<wide>(values[k], x, chunk * SUM_CHUNK + (k * SUM_THREADS + threadIdx.x) * SUM_WIDTH, count);
#pragma unroll
        for (int k = 0; k < SUM_AT_ONCE; k++) {
#pragma unroll
            for (int j = 0; j < SUM_WIDTH; j++) {
                const double value = values[k][j];
                sum += squares ? value * value : value; // the square of a float is exact in double
            }
        }
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(TOTAL_THREADS) total_kernel(double *total, const double *partial, int blocks) {
    SHARED_ARRAY(double, scratch, TOTAL_THREADS / WARP);
    double sum = 0;
    for (int i = threadIdx.x; i < blocks; i += TOTAL_THREADS) sum += partial[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *total += sum;
}

template <bool squares> void add_up(Device *device, double *sum, const float *x, int64_t count) {
    if (count == 0) return;
    double *partial = static_cast<double *>(cuda_scratch(device, "a sum", REDUCE_BLOCKS * sizeof *partial));
    const int blocks = (int)smaller_of(ceil_div(count, (int64_t)SUM_CHUNK), (int64_t)REDUCE_BLOCKS);
    if (aligned(x))
        launch((partial_sums_kernel<true, squares>), blocks, SUM_THREADS, 0, stream_of(device), partial, x, count);
    else launch((partial_sums_kernel<false, squares>), blocks, SUM_THREADS, 0, stream_of(device), partial, x, count);
    launch(total_kernel, 1, smaller_of(ceil_div(blocks, (int)WARP) * (int)WARP, (int)TOTAL_THREADS), 0,
           stream_of(device), sum, partial, blocks);
}

} // namespace

void cuda_sum(Device *device, double *sum, const float *x, int64_t count) { add_up<false>(device, sum, x, count); }

void cuda_sum_of_squares(Device *device, double *sum, const float *x, int64_t count) {
    add_up<true>(device, sum, x, count);
}
