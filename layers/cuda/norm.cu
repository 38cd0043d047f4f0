// LayerNorm and RMSNorm, fused with the residual addition before them. With r = x + delta rounded to bf16 (what
// backward will see is what was normalised), mean and variance over the row, rstd = 1 / sqrt(variance + epsilon):
//   LayerNorm: out = (r - mean) rstd weight + bias      RMSNorm: out = r rstd weight, the mean taken for 0, no bias
//
// Backward, with x^ = (r - mean) rstd and g = d_out weight:
//   d_x += rstd (g - mean(g) - x^ mean(g x^))   (RMSNorm: without mean(g))
//   d_weight += sum over rows of d_out x^,  d_bias += sum over rows of d_out
//
// Limit: memory. Each tensor is read or written once: a row stays in registers from its load to the last use, and all
// loads of a row are under way together. `centred` is LayerNorm.
#include "layers/cuda/bias.h"
#include "layers/cuda/columns.h"
#include "layers/cuda/layers.h"

namespace {

// A row is the work of LANES threads, a warp or a block, with PACKETS packets each. This is how many blocks of the
// backward kernel, whose sums for the weights need the registers, a multiprocessor holds.
enum { BLOCK = 256, WARP_ROWS_BLOCK = 128, LONGEST_ROW = 8192 };
template <int LANES> __host__ __device__ constexpr int backward_threads() {
    return LANES == WARP ? WARP_ROWS_BLOCK : LANES;
}
template <int LANES, int PACKETS> __host__ __device__ constexpr int backward_blocks() {
    return LANES == WARP ? (PACKETS == 1 ? 6 : 6 - PACKETS) : (LANES == BLOCK ? 4 - PACKETS : 1);
}

template <int LANES> __device__ inline float row_sum(float x, float *scratch) {
    return LANES == WARP ? warp_sum(x) : block_sum(x, scratch);
}

// ---- forward -------------------------------------------------------------------------------------------------------
template <int LANES, int PACKETS, bool centred>
__global__ void __launch_bounds__(BLOCK)
    norm_forward_kernel(bf16 *out, bf16 *residual_out, float *mean_out, float *rstd_out, const bf16 *x,
                        const bf16 *delta, const bf16 *weight, const bf16 *bias, int64_t rows, int C, float epsilon) {
    SHARED_ARRAY(float, scratch, BLOCK / WARP);
    const int lane = threadIdx.x % LANES;
    const int64_t row = (int64_t)blockIdx.x * (BLOCK / LANES) + threadIdx.x / LANES;
    if (row >= rows) return;
    x += row * C;
    out += row * C;

    uint4 raw[PACKETS];
#pragma unroll
    for (int p = 0; p < PACKETS; p++) {
        const int column = (p * LANES + lane) * PACKET;
        raw[p] = column < C ? load_raw(x + column) : make_uint4(0, 0, 0, 0);
    }
    if (delta != NULL) {
        delta += row * C;
        residual_out += row * C;
        uint4 raw_delta[PACKETS];
#pragma unroll
        for (int p = 0; p < PACKETS; p++) {
            const int column = (p * LANES + lane) * PACKET;
            raw_delta[p] = column < C ? load_raw(delta + column) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int p = 0; p < PACKETS; p++) {
            const int column = (p * LANES + lane) * PACKET;
            float sum[PACKET], term[PACKET];
            unpack(sum, raw[p]);
            unpack(term, raw_delta[p]);
#pragma unroll
            for (int i = 0; i < PACKET; i++) sum[i] += term[i];
            raw[p] = pack(sum);
            if (column < C) store_raw(residual_out + column, raw[p]);
        }
    }

    float mean = 0;
    if (centred) {
        float sum = 0;
#pragma unroll
        for (int p = 0; p < PACKETS; p++) { // zeros beyond the row do no harm
            float r[PACKET];
            unpack(r, raw[p]);
#pragma unroll
            for (int i = 0; i < PACKET; i++) sum += r[i];
        }
        mean = row_sum<LANES>(sum, scratch) / (float)C;
    }
    float squares = 0;
#pragma unroll
    for (int p = 0; p < PACKETS; p++) {
        if ((p * LANES + lane) * PACKET >= C) continue;
        float r[PACKET];
        unpack(r, raw[p]);
#pragma unroll
        for (int i = 0; i < PACKET; i++) squares += (r[i] - mean) * (r[i] - mean);
    }
    const float rstd = 1.0f / sqrtf(row_sum<LANES>(squares, scratch) / (float)C + epsilon);
    if (lane == 0) {
        if (centred) mean_out[row] = mean;
        rstd_out[row] = rstd;
    }

#pragma unroll
    for (int p = 0; p < PACKETS; p++) {
        const int column = (p * LANES + lane) * PACKET;
        if (column >= C) continue;
        float r[PACKET], w[PACKET], b[PACKET] = {};
        unpack(r, raw[p]);
        load_packet(w, weight + column);
        if (centred) load_packet(b, bias + column);
#pragma unroll
        for (int i = 0; i < PACKET; i++) r[i] = (r[i] - mean) * rstd * w[i] + b[i];
        store_packet(out + column, r);
    }
}

// Rows of any width at any address: a block for each, which looks three times at its row (in the cache by then).
template <bool centred>
__global__ void __launch_bounds__(BLOCK)
    norm_forward_any_kernel(bf16 *out, bf16 *residual_out, float *mean_out, float *rstd_out, const bf16 *x,
                            const bf16 *delta, const bf16 *weight, const bf16 *bias, int64_t C, float epsilon) {
    SHARED_ARRAY(float, scratch, BLOCK / WARP);
    const int64_t row = blockIdx.x;
    x += row * C;
    out += row * C;
    float sum = 0;
    if (delta != NULL) {
        delta += row * C;
        residual_out += row * C;
        for (int64_t c = threadIdx.x; c < C; c += BLOCK) residual_out[c] = to_bf16(to_float(x[c]) + to_float(delta[c]));
        x = residual_out; // a thread reads only what it wrote itself
    }
    float mean = 0;
    if (centred) {
        for (int64_t c = threadIdx.x; c < C; c += BLOCK) sum += to_float(x[c]);
        mean = block_sum(sum, scratch) / (float)C;
    }
    float squares = 0;
    for (int64_t c = threadIdx.x; c < C; c += BLOCK) squares += (to_float(x[c]) - mean) * (to_float(x[c]) - mean);
    const float rstd = 1.0f / sqrtf(block_sum(squares, scratch) / (float)C + epsilon);
    if (threadIdx.x == 0) {
        if (centred) mean_out[row] = mean;
        rstd_out[row] = rstd;
    }
    for (int64_t c = threadIdx.x; c < C; c += BLOCK)
        out[c] = to_bf16((to_float(x[c]) - mean) * rstd * to_float(weight[c]) + (centred ? to_float(bias[c]) : 0.0f));
}

struct Forward {
    cudaStream_t stream;
    bf16 *out, *residual_out;
    float *mean, *rstd;
    const bf16 *x, *delta, *weight, *bias;
    int64_t rows, C;
    float epsilon;
};

template <int LANES, int PACKETS, bool centred> void forward_in_registers(const Forward *f) {
    launch((norm_forward_kernel<LANES, PACKETS, centred>), ceil_div<int64_t>(f->rows, BLOCK / LANES), BLOCK, 0,
           f->stream, f->out, f->residual_out, f->mean, f->rstd, f->x, f->delta, f->weight, f->bias, f->rows, (int)f->C,
           f->epsilon);
}

template <bool centred> void norm_forward(const Forward *f) {
    const int64_t C = f->C;
    if (f->rows == 0 || C == 0) return;
    const bool whole = fits_packets(C, f->out, f->x, f->weight, f->bias, f->delta, f->delta ? f->residual_out : NULL);
    if (!whole || C > LONGEST_ROW)
        launch(norm_forward_any_kernel<centred>, f->rows, BLOCK, 0, f->stream, f->out, f->residual_out, f->mean,
               f->rstd, f->x, f->delta, f->weight, f->bias, C, f->epsilon);
    else if (C <= 256) forward_in_registers<WARP, 1, centred>(f);
    else if (C <= 512) forward_in_registers<WARP, 2, centred>(f);
    else if (C <= 768) forward_in_registers<WARP, 3, centred>(f);
    else if (C <= 1024) forward_in_registers<WARP, 4, centred>(f);
    else if (C <= 2048) forward_in_registers<BLOCK, 1, centred>(f);
    else if (C <= 4096) forward_in_registers<BLOCK, 2, centred>(f);
    else forward_in_registers<BLOCK, 4, centred>(f);
}

} // namespace

void cuda_layernorm_forward(Device *device, void *out, void *residual_out, float *mean, float *rstd, const void *x,
                            const void *delta, const void *weight, const void *bias, int64_t rows, int64_t C,
                            float epsilon) {
    const Forward f = {stream_of(device),
                       static_cast<bf16 *>(out),
                       static_cast<bf16 *>(residual_out),
                       mean,
                       rstd,
                       static_cast<const bf16 *>(x),
                       static_cast<const bf16 *>(delta),
                       static_cast<const bf16 *>(weight),
                       static_cast<const bf16 *>(bias),
                       rows,
                       C,
                       epsilon};
    norm_forward<true>(&f);
}

void cuda_rmsnorm_forward(Device *device, void *out, void *residual_out, float *rstd, const void *x, const void *delta,
                          const void *weight, int64_t rows, int64_t C, float epsilon) {
    const Forward f = {stream_of(device),
                       static_cast<bf16 *>(out),
                       static_cast<bf16 *>(residual_out),
                       NULL,
                       rstd,
                       static_cast<const bf16 *>(x),
                       static_cast<const bf16 *>(delta),
                       static_cast<const bf16 *>(weight),
                       NULL,
                       rows,
                       C,
                       epsilon};
    norm_forward<false>(&f);
}

// ---- backward ------------------------------------------------------------------------------------------------------

namespace {

// Block i leaves its sums over rows at partial[i]: (C) for d_weight, and with `centred` (C) for d_bias behind it.
template <int LANES, int PACKETS, bool centred>
__global__ void __launch_bounds__(backward_threads<LANES>(), (backward_blocks<LANES, PACKETS>()))
    norm_backward_kernel(bf16 *d_x, float *partial, const bf16 *d_out, const bf16 *x, const bf16 *weight,
                         const float *mean_of, const float *rstd_of, int64_t rows, int C) {
    constexpr int ROWS = backward_threads<LANES>() / LANES; // of a block at once
    SHARED_ARRAY(float, scratch, LANES / WARP);
    SHARED_ARRAY(float, of_block, LANES == WARP ? WARP * PACKETS * PACKET : 1);
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    const uint4 zero = make_uint4(0, 0, 0, 0);

    uint4 raw_w[PACKETS];
    float d_weight[PACKETS][PACKET] = {}, d_bias[PACKETS][PACKET] = {};
#pragma unroll
    for (int p = 0; p < PACKETS; p++) {
        const int column = (p * LANES + lane) * PACKET;
        raw_w[p] = column < C ? load_raw(weight + column) : zero;
    }
    for (int64_t row = (int64_t)blockIdx.x * ROWS + group; row < rows; row += (int64_t)gridDim.x * ROWS) {
        uint4 raw_dy[PACKETS], raw_x[PACKETS], raw_dx[PACKETS];
#pragma unroll
        for (int p = 0; p < PACKETS; p++) {
            const int column = (p * LANES + lane) * PACKET;
            raw_dy[p] = column < C ? load_raw(d_out + row * C + column) : zero;
            raw_x[p] = column < C ? load_raw(x + row * C + column) : zero;
            raw_dx[p] = column < C ? load_raw(d_x + row * C + column) : zero;
        }
        const float mean = centred ? mean_of[row] : 0.0f, rstd = rstd_of[row];

        float g_sum = 0, g_x_sum = 0; // d_out is 0 beyond the row, so nothing there counts
#pragma unroll
        for (int p = 0; p < PACKETS; p++) {
            float dy[PACKET], normalized[PACKET], w[PACKET];
            unpack(dy, raw_dy[p]);
            unpack(normalized, raw_x[p]);
            unpack(w, raw_w[p]);
#pragma unroll
            for (int i = 0; i < PACKET; i++) {
                normalized[i] = (normalized[i] - mean) * rstd;
                d_weight[p][i] += dy[i] * normalized[i];
                if (centred) d_bias[p][i] += dy[i];
                g_sum += dy[i] * w[i];
                g_x_sum += dy[i] * w[i] * normalized[i];
            }
        }
        const float g_mean = centred ? row_sum<LANES>(g_sum, scratch) / (float)C : 0.0f;
        const float g_x_mean = row_sum<LANES>(g_x_sum, scratch) / (float)C;

#pragma unroll
        for (int p = 0; p < PACKETS; p++) {
            const int column = (p * LANES + lane) * PACKET;
            float dy[PACKET], normalized[PACKET], w[PACKET], d[PACKET];
            unpack(dy, raw_dy[p]);
            unpack(normalized, raw_x[p]);
            unpack(w, raw_w[p]);
            unpack(d, raw_dx[p]);
#pragma unroll
            for (int i = 0; i < PACKET; i++) {
                normalized[i] = (normalized[i] - mean) * rstd;
                d[i] += rstd * (dy[i] * w[i] - g_mean - normalized[i] * g_x_mean);
            }
            if (column < C) store_packet(d_x + row * C + column, d);
        }
    }

    partial += (int64_t)blockIdx.x * (centred ? 2 : 1) * C;
    for (int vector = 0; vector < (centred ? 2 : 1); vector++, partial += C) {
        if (LANES == WARP) { // the warps of the block, one after the other
            for (int turn = 0; turn < ROWS; turn++) {
                if (turn == group) {
#pragma unroll
                    for (int p = 0; p < PACKETS; p++)
#pragma unroll
                        for (int i = 0; i < PACKET; i++) {
                            float *sum = &of_block[(p * WARP + lane) * PACKET + i];
                            const float mine = vector == 0 ? d_weight[p][i] : d_bias[p][i];
                            *sum = turn == 0 ? mine : *sum + mine;
                        }
                }
                __syncthreads();
            }
            for (int c = threadIdx.x; c < C; c += blockDim.x) partial[c] = of_block[c];
            __syncthreads();
        } else {
#pragma unroll
            for (int p = 0; p < PACKETS; p++) {
                const int column = (p * LANES + lane) * PACKET;
                if (column < C) store_floats(partial + column, vector == 0 ? d_weight[p] : d_bias[p]);
            }
        }
    }
}

// Rows of any width at any address; the block's sums for the weights are in memory.
template <bool centred>
__global__ void __launch_bounds__(BLOCK)
    norm_backward_any_kernel(bf16 *d_x, float *partial, const bf16 *d_out, const bf16 *x, const bf16 *weight,
                             const float *mean_of, const float *rstd_of, int64_t rows, int64_t C) {
    SHARED_ARRAY(float, scratch, BLOCK / WARP);
    float *d_weight = partial + blockIdx.x * (centred ? 2 : 1) * C, *d_bias = d_weight + C;
    for (int64_t c = threadIdx.x; c < C; c += BLOCK) { // a thread has the same columns in all that follows
        d_weight[c] = 0;
        if (centred) d_bias[c] = 0;
    }
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const bf16 *dy = d_out + row * C, *r = x + row * C;
        const float mean = centred ? mean_of[row] : 0.0f, rstd = rstd_of[row];
        float g_sum = 0, g_x_sum = 0;
        for (int64_t c = threadIdx.x; c < C; c += BLOCK) {
            const float d = to_float(dy[c]), g = d * to_float(weight[c]), normalized = (to_float(r[c]) - mean) * rstd;
            d_weight[c] += d * normalized;
            if (centred) d_bias[c] += d;
            g_sum += g;
            g_x_sum += g * normalized;
        }
        const float g_mean = centred ? block_sum(g_sum, scratch) / (float)C : 0.0f;
        const float g_x_mean = block_sum(g_x_sum, scratch) / (float)C;
        for (int64_t c = threadIdx.x; c < C; c += BLOCK) {
            const float g = to_float(dy[c]) * to_float(weight[c]), normalized = (to_float(r[c]) - mean) * rstd;
            bf16 *d = d_x + row * C + c;
            *d = to_bf16(to_float(*d) + rstd * (g - g_mean - normalized * g_x_mean));
        }
    }
}

struct Backward {
    Device *device;
    bf16 *d_x;
    float *d_weight, *d_bias;
    const bf16 *d_out, *x, *weight;
    const float *mean, *rstd;
    int64_t rows, C;
};

template <bool centred> float *partial_for(const Backward *b, int64_t blocks) {
    return static_cast<float *>(cuda_scratch(b->device, "a norm", norm_sums_bytes(blocks, b->C, centred ? 2 : 1)));
}
template <int LANES, int PACKETS, bool centred> void backward_in_registers(const Backward *b) {
    constexpr int threads = backward_threads<LANES>();
    const int64_t resident =
        smaller_of<int64_t>(NORM_MOST_BLOCKS, backward_blocks<LANES, PACKETS>() * multiprocessors(b->device));
    const int64_t blocks = smaller_of(resident, ceil_div<int64_t>(b->rows, threads / LANES));
    float *partial = partial_for<centred>(b, blocks);
    launch((norm_backward_kernel<LANES, PACKETS, centred>), blocks, threads, 0, stream_of(b->device), b->d_x, partial,
           b->d_out, b->x, b->weight, b->mean, b->rstd, b->rows, (int)b->C);
    add_partial_sums(b->device, b->d_weight, b->d_bias, partial, blocks, b->C);
}

template <bool centred> void norm_backward(const Backward *b) {
    const int64_t C = b->C;
    if (b->rows == 0 || C == 0) return;
    if (!fits_packets(C, b->d_x, b->d_out, b->x, b->weight) || C > LONGEST_ROW) {
        const int64_t most = smaller_of<int64_t>(NORM_MOST_BLOCKS, 4 * multiprocessors(b->device));
        const int64_t blocks = smaller_of(most, b->rows);
        float *partial = partial_for<centred>(b, blocks);
        launch(norm_backward_any_kernel<centred>, blocks, BLOCK, 0, stream_of(b->device), b->d_x, partial, b->d_out,
               b->x, b->weight, b->mean, b->rstd, b->rows, C);
        add_partial_sums(b->device, b->d_weight, b->d_bias, partial, blocks, b->C);
    } else if (C <= 256) backward_in_registers<WARP, 1, centred>(b);
    else if (C <= 512) backward_in_registers<WARP, 2, centred>(b);
    else if (C <= 768) backward_in_registers<WARP, 3, centred>(b);
    else if (C <= 1024) backward_in_registers<WARP, 4, centred>(b);
    else if (C <= 2048) backward_in_registers<BLOCK, 1, centred>(b);
    else if (C <= 4096) backward_in_registers<BLOCK, 2, centred>(b);
    else backward_in_registers<2 * BLOCK, 2, centred>(b);
}

} // namespace

void cuda_layernorm_backward(Device *device, void *d_x, float *d_weight, float *d_bias, const void *d_out,
                             const void *x, const void *weight, const float *mean, const float *rstd, int64_t rows,
                             int64_t C) {
    const Backward b = {device,
                        static_cast<bf16 *>(d_x),
                        d_weight,
                        d_bias,
                        static_cast<const bf16 *>(d_out),
                        static_cast<const bf16 *>(x),
                        static_cast<const bf16 *>(weight),
                        mean,
                        rstd,
                        rows,
                        C};
    norm_backward<true>(&b);
}

void cuda_rmsnorm_backward(Device *device, void *d_x, float *d_weight, const void *d_out, const void *x,
                           const void *weight, const float *rstd, int64_t rows, int64_t C) {
    const Backward b = {device,
                        static_cast<bf16 *>(d_x),
                        d_weight,
                        NULL,
                        static_cast<const bf16 *>(d_out),
                        static_cast<const bf16 *>(x),
                        static_cast<const bf16 *>(weight),
                        NULL,
                        rstd,
                        rows,
                        C};
    norm_backward<false>(&b);
}
