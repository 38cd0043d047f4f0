// Biases. A bias's gradient is the sum of d_out over rows, a column sum. Deterministic: each block sums the rows of its
// own, and a second kernel adds the blocks' sums in order. The limit is memory: d_out is read once.
#include "layers/cuda/bias.h"
#include "layers/cuda/columns.h"
#include "layers/cuda/layers.h"
#include "layers/cuda/warp.h"

namespace {

static_assert((int)WARP_COLUMNS == (int)BIAS_GROUP, "the columns of a block");
enum {
    COLUMN_THREADS = WARP_COLUMNS,
    COLUMN_WARPS = COLUMN_THREADS / WARP, // of a block, each with rows of its own
    COLUMN_ROWS = 4,                      // that a warp has under way at once
};

// partial (gridDim.x / column_groups, N): block (i, g) sums rows [i * rows_per_block, ...) of 256 columns.
template <bool whole>
__global__ void __launch_bounds__(COLUMN_THREADS)
    column_sums_kernel(float *partial, const bf16 *x, int64_t rows, int64_t N, int64_t rows_per_block,
                       int64_t column_groups) {
    SHARED_ARRAY(float, of_warp, COLUMN_WARPS *WARP_COLUMNS);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64_t block = blockIdx.x / column_groups, first = blockIdx.x % column_groups * WARP_COLUMNS;
    const int64_t begin = block * rows_per_block, end = smaller_of(begin + rows_per_block, rows);

    float sum[PACKET] = {};
    for (int64_t row = begin + warp; row < end; row += COLUMN_ROWS * COLUMN_WARPS) {
        float value[COLUMN_ROWS][PACKET]; // all loads first, so that they are under way together
#pragma unroll
        for (int i = 0; i < COLUMN_ROWS; i++) {
            const int64_t at = row + i * COLUMN_WARPS;
            load_columns<whole>(value[i], x + at * N, first, at < end ? N : 0, lane);
        }
#pragma unroll
        for (int i = 0; i < COLUMN_ROWS; i++)
#pragma unroll
            for (int j = 0; j < PACKET; j++) sum[j] += value[i][j];
    }
#pragma unroll
    for (int j = 0; j < PACKET; j++) of_warp[warp * WARP_COLUMNS + column_of<whole>(j, lane)] = sum[j];
    __syncthreads();
    const int64_t column = first + threadIdx.x; // as many threads as columns
    if (column < N) {
        float total = 0;
        for (int w = 0; w < COLUMN_WARPS; w++) total += of_warp[w * WARP_COLUMNS + threadIdx.x];
        partial[block * N + column] = total;
    }
}

enum { PARTIAL_WARPS = 16, PARTIAL_THREADS = PARTIAL_WARPS * WARP };
enum { PARTIAL_AT_ONCE = 16 }; // blocks whose sums a warp has under way

// A block adds 32 columns; each of its warps a share of the blocks, in order, and these sums follow in order.
__global__ void __launch_bounds__(PARTIAL_THREADS, 2)
    partial_sums_kernel(float *sum, float *second, const float *partial, int64_t blocks, int64_t N) {
    SHARED_ARRAY(float, of_warp, PARTIAL_THREADS);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64_t column = (int64_t)blockIdx.x * WARP + lane, columns = second == NULL ? N : 2 * N;
    const int64_t share = ceil_div(blocks, (int64_t)PARTIAL_WARPS);
    const int64_t end = column < columns ? smaller_of((warp + 1) * share, blocks) : 0;
    float total = 0;
    for (int64_t block = warp * share; block < end; block += PARTIAL_AT_ONCE) {
        float term[PARTIAL_AT_ONCE];
#pragma unroll
        for (int i = 0; i < PARTIAL_AT_ONCE; i++)
            term[i] = block + i < end ? partial[(block + i) * columns + column] : 0.0f;
#pragma unroll
        for (int i = 0; i < PARTIAL_AT_ONCE; i++) total += term[i];
    }
    of_warp[warp * WARP + lane] = total;
    __syncthreads();
    if (warp == 0 && column < columns) {
        total = 0;
        for (int w = 0; w < PARTIAL_WARPS; w++) total += of_warp[w * WARP + lane];
        *(column < N ? sum + column : second + (column - N)) += total;
    }
}

} // namespace

void add_partial_sums(Device *device, float *sum, float *second, const float *partial, int64_t blocks, int64_t N) {
    if (blocks == 0 || N == 0) return;
    launch(partial_sums_kernel, ceil_div<int64_t>(second == NULL ? N : 2 * N, WARP), PARTIAL_THREADS, 0,
           stream_of(device), sum, second, partial, blocks, N);
}

namespace {

template <bool whole>
void launch_column_sums(cudaStream_t stream, float *partial, const bf16 *x, int64_t rows, int64_t N, int64_t blocks,
                        int64_t rows_per_block) {
    const int64_t column_groups = ceil_div<int64_t>(N, WARP_COLUMNS);
    launch(column_sums_kernel<whole>, blocks * column_groups, COLUMN_THREADS, 0, stream, partial, x, rows, N,
           rows_per_block, column_groups);
}

} // namespace

void cuda_bias_backward(Device *device, float *d_bias, const void *d_out, int64_t rows, int64_t N) {
    if (rows == 0 || N == 0) return;
    const int64_t rows_per_block = bias_rows_per_block(rows, N), blocks = ceil_div(rows, rows_per_block);
    float *partial = static_cast<float *>(cuda_scratch(device, "a bias", bias_sums_bytes(rows, N)));
    const bf16 *x = static_cast<const bf16 *>(d_out);
    (fits_packets(N, x) ? launch_column_sums<true> : launch_column_sums<false>)(stream_of(device), partial, x, rows, N,
                                                                                blocks, rows_per_block);
    add_partial_sums(device, d_bias, NULL, partial, blocks, N);
}

// ---- rows set to the bias ------------------------------------------------------------------------------------------

namespace {

// A warp sets 256 columns of a row.
template <bool whole>
__global__ void set_rows_kernel(bf16 *out, const bf16 *bias, int64_t rows, int64_t N, int64_t column_groups) {
    const int lane = threadIdx.x % WARP;
    const int64_t index = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    const int64_t row = index / column_groups, first = index % column_groups * WARP_COLUMNS;
    if (row >= rows) return;
    float value[PACKET];
    load_columns<whole>(value, bias, first, N, lane);
    store_columns<whole>(out + row * N, value, first, N, lane);
}

template <bool whole> void launch_set_rows(cudaStream_t stream, bf16 *out, const bf16 *bias, int64_t rows, int64_t N) {
    const int64_t column_groups = ceil_div<int64_t>(N, WARP_COLUMNS), threads = 256;
    launch(set_rows_kernel<whole>, ceil_div(rows * column_groups, threads / WARP), threads, 0, stream, out, bias, rows,
           N, column_groups);
}

} // namespace

void set_rows(Device *device, void *out, const void *bias, int64_t rows, int64_t N) {
    if (rows == 0 || N == 0) return;
    (fits_packets(N, out, bias) ? launch_set_rows<true>
                                : launch_set_rows<false>)(stream_of(device), static_cast<bf16 *>(out),
                                                          static_cast<const bf16 *>(bias), rows, N);
}
