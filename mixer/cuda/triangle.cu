// Products with a triangle of W on GPUs, by cuBLASLt (mixer/triangle.h). A block on the diagonal is cut in two, again
// and again: [A 0; R B], a square R that is a plain product, and two triangles A and B of half the size. What is left,
// tiles of at most TILE on the diagonal, is multiplied by a copy that has zeros above it.
#include "layers/cuda/cublaslt.h"
#include "layers/cuda/elementwise.h"
#include "layers/cuda/warp.h"
#include "mixer/triangle.h"

namespace {

enum { TILE = TRIANGLE_TILE_CUDA, THREADS = 256 };

const bf16 *row_of(const void *matrix, int64_t row, int64_t width) {
    return static_cast<const bf16 *>(matrix) + row * width;
}

// ---- tiles on the diagonal ------------------------------------------------------------------------------------------

// tile (count, count), rows TILE apart = the lower part of weight.
__global__ void __launch_bounds__(THREADS)
    copy_lower_kernel(bf16 *tile, const bf16 *weight, int64_t stride, int count) {
    const int row = blockIdx.x, column = threadIdx.x;
    if (column < count) tile[row * TILE + column] = column <= row ? weight[row * stride + column] : bf16{0};
}

// The lower part of d_weight += that of tile.
__global__ void __launch_bounds__(THREADS)
    add_lower_kernel(float *d_weight, const float *tile, int64_t stride, int count) {
    const int row = blockIdx.x, column = threadIdx.x;
    if (column < count && column <= row) d_weight[row * stride + column] += tile[row * TILE + column];
}
static_assert((int)TILE <= (int)THREADS, "a thread for each column");

void *tile_of(Device *device) {
    return cuda_scratch(device, "a triangle of weights",
                        triangle_scratch_bytes(sizeof(bf16), 1) - CUDA_WORKSPACE_BYTES);
}

const bf16 *lower_tile(Device *device, const bf16 *weight, const TriangleBlock &b) {
    bf16 *tile = static_cast<bf16 *>(tile_of(device));
    launch(copy_lower_kernel, (unsigned)b.rows, THREADS, 0, stream_of(device), tile, weight, b.stride, (int)b.rows);
    return tile;
}

// ---- cutting --------------------------------------------------------------------------------------------------------

// What to do with a block that is no triangle, or a triangle of at most TILE. Rows and columns count from the whole
// block's first.
template <typename Work> void for_blocks(const TriangleBlock &b, int64_t row, int64_t column, Work work) {
    if (!triangle_on_diagonal(&b) || b.rows <= TILE) {
        if (b.rows > 0 && b.columns > 0 && b.width > 0) work(b, row, column);
        return;
    }
    const int64_t half = ceil_div<int64_t>(b.rows, 2 * TILE) * TILE; // tiles but for the last are whole
    const TriangleBlock first = {b.stride, b.row, half, b.column, half, b.width};
    const TriangleBlock below = {b.stride, b.row + half, b.rows - half, b.column, half, b.width};
    const TriangleBlock last = {b.stride, b.row + half, b.rows - half, b.column + half, b.columns - half, b.width};
    for_blocks(first, row, column, work);
    for_blocks(below, row + half, column, work);
    for_blocks(last, row + half, column + half, work);
}

void multiply(Device *device, const TriangleBlock *block, float *sums, const void *weight, const void *x) {
    for_blocks(*block, 0, 0, [=](const TriangleBlock &b, int64_t row, int64_t column) {
        Product p = {};
        p.rows = b.rows, p.columns = b.width, p.inner = b.columns;
        p.float_out = true;
        p.a = row_of(weight, b.row, b.stride) + b.column, p.a_stride = b.stride;
        if (triangle_on_diagonal(&b)) p.a = lower_tile(device, static_cast<const bf16 *>(p.a), b), p.a_stride = TILE;
        p.b = row_of(x, column, b.width), p.b_stride = b.width;
        p.d = sums + row * b.width, p.d_stride = b.width;
        p.beta = 1.0f;
        cublaslt_multiply(device, &p);
    });
}

void multiply_transposed(Device *device, const TriangleBlock *block, float *d_x, const void *weight, const void *d) {
    for_blocks(*block, 0, 0, [=](const TriangleBlock &b, int64_t row, int64_t column) {
        Product p = {};
        p.rows = b.columns, p.columns = b.width, p.inner = b.rows;
        p.transpose_a = true;
        p.float_out = true;
        p.a = row_of(weight, b.row, b.stride) + b.column, p.a_stride = b.stride;
        if (triangle_on_diagonal(&b)) p.a = lower_tile(device, static_cast<const bf16 *>(p.a), b), p.a_stride = TILE;
        p.b = row_of(d, row, b.width), p.b_stride = b.width;
        p.d = d_x + column * b.width, p.d_stride = b.width;
        p.beta = 1.0f;
        cublaslt_multiply(device, &p);
    });
}

void gradient(Device *device, const TriangleBlock *block, float *d_weight, const void *d, const void *x) {
    for_blocks(*block, 0, 0, [=](const TriangleBlock &b, int64_t row, int64_t column) {
        float *to = d_weight + b.row * b.stride + b.column, *tile = static_cast<float *>(tile_of(device));
        const bool diagonal = triangle_on_diagonal(&b);
        Product p = {};
        p.rows = b.rows, p.columns = b.columns, p.inner = b.width;
        p.transpose_b = true;
        p.float_out = true;
        p.a = row_of(d, row, b.width), p.a_stride = b.width;
        p.b = row_of(x, column, b.width), p.b_stride = b.width;
        p.d = diagonal ? tile : to, p.d_stride = diagonal ? (int64_t)TILE : b.stride;
        p.beta = diagonal ? 0.0f : 1.0f;
        cublaslt_multiply(device, &p);
        if (diagonal)
            launch(add_lower_kernel, (unsigned)b.rows, THREADS, 0, stream_of(device), to, tile, b.stride, (int)b.rows);
    });
}

// ---- biases ---------------------------------------------------------------------------------------------------------

struct AddBias {
    enum { WIDTH = 4, AT_ONCE = 2 };
    bf16 *out;
    const float *sums;
    const bf16 *bias;
    int64_t width;
    template <int N> struct Input { float sums[N], bias; };
    template <int N> __device__ void read(Input<N> &in, int64_t row, int64_t column) const {
        load(in.sums, sums + row * width + column);
        in.bias = to_float(bias[row]);
    }
    template <int N> __device__ void write(const Input<N> &in, int64_t row, int64_t column) const {
        float y[N];
#pragma unroll
        for (int k = 0; k < N; k++) y[k] = in.sums[k] + in.bias;
        store(out + row * width + column, y);
    }
};

void add_bias(Device *device, void *out, const float *sums, const void *bias, int64_t rows, int64_t N) {
    const AddBias map = {static_cast<bf16 *>(out), sums, static_cast<const bf16 *>(bias), N};
    map_rows(device, map, rows, N, aligned(out, sums));
}

__global__ void __launch_bounds__(THREADS) bias_gradient_kernel(float *d_bias, const bf16 *d, int64_t N) {
    SHARED_ARRAY(float, scratch, THREADS / WARP);
    const bf16 *row = d + blockIdx.x * N;
    float sum = 0.0f;
    for (int64_t k = threadIdx.x; k < N; k += THREADS) sum += to_float(row[k]);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) d_bias[blockIdx.x] += sum;
}

void bias_gradient(Device *device, float *d_bias, const void *d, int64_t rows, int64_t N) {
    if (rows == 0) return;
    launch(bias_gradient_kernel, grid_for(rows, 1), THREADS, 0, stream_of(device), d_bias, static_cast<const bf16 *>(d),
           N);
}

} // namespace

extern const TriangleKernels triangle_kernels_cuda;
const TriangleKernels triangle_kernels_cuda = {multiply, multiply_transposed, gradient, add_bias, bias_gradient};
