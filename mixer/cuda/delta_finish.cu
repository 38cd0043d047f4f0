// What stands behind the gated delta rule on GPUs: RMSNorm of each head's output, times a scale, times silu(gate). A
// warp has a head of a token, a lane two of every 64 of its values.
#include "mixer/cuda/delta_tokens.h"

namespace delta {
namespace {

struct Finish {
    Grid g;
    bf16 *y, *d_out, *d_raw;
    float *sums; // (B, H, N, D) of d_scale
    const bf16 *d_y, *out, *raw, *scale;
    float epsilon;
};

__device__ inline int64_t gate_at(const Grid &g, const Tokens &t, int i, int h) {
    return (t.row + i) * raw_width(g) + convolved_width(g) + h * g.head_dim;
}

// Grid: (B, H, N).
__global__ void __launch_bounds__(THREADS) finish_kernel(Finish x) {
    const Grid &g = x.g;
    const Block block = block_of(g, blockIdx.x);
    const Tokens t = tokens_of(g, block.b, block.n);
    const int D = g.head_dim;
    const Values scale = load_values(x.scale, D);
    Values out[AT_ONCE], gate[AT_ONCE];
    for_rows(
        t.rows,
        [&](int k, int i) {
            out[k] = load_values(x.out + (block.at * ROWS + i) * D, D);
            gate[k] = load_values(x.raw + gate_at(g, t, i, block.h), D);
        },
        [&](int k, int i) {
            const float rstd = rsqrtf(dot(out[k], out[k]) / (float)D + x.epsilon);
            store_values(x.y + ((t.row + i) * g.heads + block.h) * D, D,
                         each([&](int v) { return out[k].at[v] * rstd * scale.at[v] * silu(gate[k].at[v]); }));
        });
}

__global__ void __launch_bounds__(THREADS) finish_backward_kernel(Finish x) {
    SHARED_ARRAY(float, partial, WARPS *MOST *WARP);
    const Grid &g = x.g;
    const Block block = block_of(g, blockIdx.x);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, D = g.head_dim;
    const Tokens t = tokens_of(g, block.b, block.n);
    const Values scale = load_values(x.scale, D), zeros = each([](int) { return 0.0f; });
    Values d_scale = zeros;
    Values out[AT_ONCE], gate[AT_ONCE], d_y[AT_ONCE];
    for_rows(
        t.rows,
        [&](int k, int i) {
            out[k] = load_values(x.out + (block.at * ROWS + i) * D, D);
            gate[k] = load_values(x.raw + gate_at(g, t, i, block.h), D);
            d_y[k] = load_values(x.d_y + ((t.row + i) * g.heads + block.h) * D, D);
        },
        [&](int k, int i) {
            const float rstd = rsqrtf(dot(out[k], out[k]) / (float)D + x.epsilon);
            const Values normed = each([&](int v) { return out[k].at[v] * rstd; });
            const Values d_normed = each([&](int v) { return d_y[k].at[v] * scale.at[v] * silu(gate[k].at[v]); });
            store_values(x.d_raw + gate_at(g, t, i, block.h), D, each([&](int v) {
                             return d_y[k].at[v] * normed.at[v] * scale.at[v] * silu_slope(gate[k].at[v]);
                         }));
            const float mean = dot(normed, d_normed) / (float)D;
            store_values(x.d_out + (block.at * ROWS + i) * D, D,
                         each([&](int v) { return rstd * (d_normed.at[v] - normed.at[v] * mean); }));
            d_scale = each([&](int v) { return d_scale.at[v] + d_y[k].at[v] * normed.at[v] * silu(gate[k].at[v]); });
        });
    for (int i = t.rows + warp; i < ROWS; i += WARPS) store_values(x.d_out + (block.at * ROWS + i) * D, D, zeros);
    for (int v = 0; v < MOST; v++) partial[(warp * MOST + v) * WARP + lane] = d_scale.at[v];
    __syncthreads();
    for (int v = 0; v < MOST && warp == 0; v++) {
        const int c = lane * 2 + v / 2 * 2 * WARP + v % 2;
        float sum = 0;
        for (int w = 0; w < WARPS; w++) sum += partial[(w * MOST + v) * WARP + lane];
        if (c < D) x.sums[blockIdx.x * (int64_t)D + c] = sum;
    }
}

Finish finish_of(const DeltaShape *s, const void *out, const void *raw, const void *scale, float epsilon) {
    Finish x = {};
    x.g = grid_of(s);
    x.out = static_cast<const bf16 *>(out);
    x.raw = static_cast<const bf16 *>(raw);
    x.scale = static_cast<const bf16 *>(scale);
    x.epsilon = epsilon;
    return x;
}

} // namespace

// A block to a column.
__global__ void __launch_bounds__(THREADS)
    add_columns_kernel(float *to, const float *rows, int64_t count, int64_t stride) {
    SHARED_ARRAY(float, scratch, WARPS);
    float sum[4] = {0}; // as many loads under way
    for (int64_t i = threadIdx.x; i < count; i += 4 * THREADS) {
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (i + k * THREADS < count) sum[k] += rows[(i + k * THREADS) * stride + blockIdx.x];
    }
    const float all = block_sum(sum[0] + sum[1] + (sum[2] + sum[3]), scratch);
    if (threadIdx.x == 0) to[blockIdx.x] += all;
}

void add_columns(Device *device, float *to, const float *rows, int64_t count, int64_t columns, int64_t stride) {
    launch(add_columns_kernel, (unsigned)columns, THREADS, 0, stream_of(device), to, rows, count, stride);
}

void finish(Device *device, const DeltaShape *s, void *y, const void *out, const void *raw, const void *scale,
            float epsilon) {
    Finish x = finish_of(s, out, raw, scale, epsilon);
    x.y = static_cast<bf16 *>(y);
    launch(finish_kernel, (unsigned)(s->batch * s->heads * delta_blocks(s)), THREADS, 0, stream_of(device), x);
}

void finish_backward(Device *device, const DeltaShape *s, void *d_out, void *d_raw, float *d_scale, const void *d_y,
                     const void *out, const void *raw, const void *scale, float epsilon) {
    Finish x = finish_of(s, out, raw, scale, epsilon);
    x.d_out = static_cast<bf16 *>(d_out);
    x.d_raw = static_cast<bf16 *>(d_raw);
    x.d_y = static_cast<const bf16 *>(d_y);
    x.sums = static_cast<float *>(device_scratch(device, "delta", delta_scratch_bytes_cuda(s)));
    const int64_t blocks = s->batch * s->heads * delta_blocks(s);
    launch(finish_backward_kernel, (unsigned)blocks, THREADS, 0, stream_of(device), x);
    add_columns(device, d_scale, x.sums, blocks, s->head_dim, s->head_dim);
}

} // namespace delta
