// What stands behind the gated delta rule on GPUs: RMSNorm of each head's output, times a scale, times silu(gate). A warp
// has a head of a token, a lane every 32nd of its values.
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
    for (int i = (int)threadIdx.x / WARP; i < t.rows; i += WARPS) {
        const bf16 *out = x.out + (block.at * ROWS + i) * D, *gate = x.raw + gate_at(g, t, i, block.h);
        float value[MOST];
        each_value(D, [&](int c, int v) { value[v] = to_float(out[c]); });
        const float rstd = rsqrtf(warp_sum(dot(D, value, value)) / (float)D + x.epsilon);
        bf16 *y = x.y + ((t.row + i) * g.heads + block.h) * D;
        each_value(D, [&](int c, int v) {
            y[c] = to_bf16(value[v] * rstd * to_float(x.scale[c]) * silu(to_float(gate[c])));
        });
    }
}

__global__ void __launch_bounds__(THREADS) finish_backward_kernel(Finish x) {
    SHARED_ARRAY(float, partial, WARPS * MOST * WARP);
    const Grid &g = x.g;
    const Block block = block_of(g, blockIdx.x);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, D = g.head_dim;
    const Tokens t = tokens_of(g, block.b, block.n);
    float d_scale[MOST] = {0};
    for (int i = warp; i < ROWS; i += WARPS) {
        const int64_t place = (block.at * ROWS + i) * D;
        if (i >= t.rows) {
            each_value(D, [&](int c, int) { x.d_out[place + c] = to_bf16(0.0f); });
            continue;
        }
        const int64_t gate = gate_at(g, t, i, block.h);
        const bf16 *d_y = x.d_y + ((t.row + i) * g.heads + block.h) * D;
        float value[MOST], d_value[MOST];
        each_value(D, [&](int c, int v) { value[v] = to_float(x.out[place + c]); });
        const float rstd = rsqrtf(warp_sum(dot(D, value, value)) / (float)D + x.epsilon);
        each_value(D, [&](int c, int v) {
            const float open = to_float(x.raw[gate + c]), by = to_float(d_y[c]), scale = to_float(x.scale[c]);
            value[v] *= rstd;
            d_value[v] = by * scale * silu(open);
            d_scale[v] += by * value[v] * silu(open);
            x.d_raw[gate + c] = to_bf16(by * value[v] * scale * silu_slope(open));
        });
        const float mean = warp_sum(dot(D, value, d_value)) / (float)D;
        each_value(D, [&](int c, int v) { x.d_out[place + c] = to_bf16(rstd * (d_value[v] - value[v] * mean)); });
    }
    for (int v = 0; v < MOST; v++) partial[(warp * MOST + v) * WARP + lane] = d_scale[v];
    __syncthreads();
    each_value(D, [&](int c, int v) {
        if (warp != 0) return;
        float sum = 0;
        for (int w = 0; w < WARPS; w++) sum += partial[(w * MOST + v) * WARP + lane];
        x.sums[blockIdx.x * (int64_t)D + c] = sum;
    });
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
__global__ void __launch_bounds__(THREADS) add_columns_kernel(float *to, const float *rows, int64_t count, int64_t stride) {
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
