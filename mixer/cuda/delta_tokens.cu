// What stands before the gated delta rule on GPUs, token by token: a convolution of 4 taps where there is one, SiLU,
// queries and keys brought to length 1, beta and the decay; and backward.
#include "mixer/cuda/delta_tokens.h"

namespace delta {
namespace {

constexpr float LENGTH_EPSILON = 1e-6f; // x / sqrt(|x|^2 + this)

struct Prepare {
    Grid g;
    DeltaInput in;
    DeltaTokens t;
    DeltaGradients from;
    bf16 *d_raw, *d_rates;
    float *sums; // of taps (DELTA_PIECES, 4, E), or of decays
    const bf16 *d_convolved, *edge;
};

__device__ inline float softplus(float x) { return x > 20 ? x : log1pf(expf(x)); }
__device__ inline const bf16 *bf16s(const void *x) { return static_cast<const bf16 *>(x); }

// ---- the convolution ------------------------------------------------------------------------------------------------

// Token i of a block and `back` tokens before it: its raw row; NULL: of another document, or none.
__device__ inline const bf16 *raw_row(const Prepare &x, const Tokens &t, int b, int i, int back) {
    const Grid &g = x.g;
    const int64_t position = t.position + i, in_chunk = t.in_chunk + i - back;
    if (position - back < g.first_seen(b, position)) return nullptr;
    if (in_chunk >= 0) return bf16s(x.in.raw) + (t.row + i - back) * raw_width(g);
    return bf16s(x.in.edge) +
           (((int64_t)t.chunk * g.batch + b) * DELTA_EDGE + DELTA_EDGE + in_chunk) * convolved_width(g);
}

// The lane's values of what SiLU is given, of the head that begins at `column`.
__device__ inline Values load_convolved(const Prepare &x, const Tokens &t, int b, int i, int column) {
    const int D = x.g.head_dim;
    const Values own = load_values(raw_row(x, t, b, i, 0) + column, D);
    if (x.in.taps == nullptr) return own;
    const bf16 *taps = bf16s(x.in.taps) + column;
    const Values tap = load_values(taps, D);
    Values sum = each([&](int v) { return tap.at[v] * own.at[v]; });
    for (int back = 1; back < DELTA_TAPS; back++) {
        const bf16 *row = raw_row(x, t, b, i, back);
        if (row == nullptr) break;
        const Values by = load_values(taps + back * convolved_width(x.g), D), before = load_values(row + column, D);
        sum = each([&](int v) { return sum.at[v] + by.at[v] * before.at[v]; });
    }
    return sum;
}
__device__ inline Values silu_of(const Values &z) {
    return each([&](int v) { return delta::silu(z.at[v]); });
}

// ---- forward --------------------------------------------------------------------------------------------------------

// Which of q, k and v a head of the H + 2 KV in a row is.
struct Which {
    bool query, value;
    int head;
};
__device__ inline Which which_of(const Grid &g, int head) {
    if (head < g.heads) return Which{true, false, head};
    head -= g.heads;
    return Which{false, head >= g.kv_heads, head % g.kv_heads};
}
__device__ inline float inverse_length(const Values &x) { return rsqrtf(dot(x, x) + LENGTH_EPSILON); }

// Grid: (B, N, H + 2 KV).
__global__ void __launch_bounds__(THREADS) prepare_kernel(Prepare x) {
    const Grid &g = x.g;
    const int heads = g.heads + 2 * g.kv_heads, head = (int)(blockIdx.x % heads), D = g.head_dim;
    const int b = (int)(blockIdx.x / heads / g.blocks), n = (int)(blockIdx.x / heads % g.blocks);
    const Tokens t = tokens_of(g, b, n);
    const Which which = which_of(g, head);
    bf16 *to = static_cast<bf16 *>(which.query   ? x.t.q
                                   : which.value ? x.t.v
                                                 : x.t.k) +
               (((int64_t)b * (which.query ? g.heads : g.kv_heads) + which.head) * g.blocks + n) * g.block_values();
    Values z[AT_ONCE];
    for_rows(
        ROWS,
        [&](int k, int i) {
            z[k] = i < t.rows ? load_convolved(x, t, b, i, head * D) : each([](int) { return 0.0f; });
        },
        [&](int k, int i) {
            const Values y = silu_of(z[k]);
            float factor = which.value ? 1 : inverse_length(y);
            if (which.query) factor *= rsqrtf((float)D);
            store_values(to + i * D, D, each([&](int v) { return factor * y.at[v]; }));
        });
}

// Grid: (B, N); a thread to a token.
__global__ void rates_kernel(Prepare x) {
    const Grid &g = x.g;
    const int b = (int)(blockIdx.x / g.blocks), n = (int)(blockIdx.x % g.blocks), i = threadIdx.x;
    const Tokens t = tokens_of(g, b, n);
    const int64_t position = t.position + (i < t.rows ? i : t.rows - 1), first = g.first_seen(b, position) - t.position;
    x.t.begin[(int64_t)blockIdx.x * ROWS + i] = first < 0 ? -1 : (int)first;
    for (int h = 0; h < g.heads; h++) {
        float beta = 0, log_decay = 0;
        if (i < t.rows) {
            const bf16 *rates = bf16s(x.in.rates) + (t.row + i) * 2 * g.heads;
            beta = sigmoid(to_float(rates[h]));
            log_decay = -expf(to_float(bf16s(x.in.decay_log)[h])) *
                        softplus(to_float(rates[g.heads + h]) + to_float(bf16s(x.in.decay_bias)[h]));
        }
        const int64_t at = block_of(g, b, h, n).at * ROWS + i;
        x.t.beta[at] = beta;
        x.t.log_decay[at] = log_decay;
    }
}

// ---- backward -------------------------------------------------------------------------------------------------------

// Grid: (B, N, H + 2 KV).
__global__ void __launch_bounds__(THREADS) prepare_backward_kernel(Prepare x) {
    const Grid &g = x.g;
    const int heads = g.heads + 2 * g.kv_heads, head = (int)(blockIdx.x % heads), D = g.head_dim;
    const int b = (int)(blockIdx.x / heads / g.blocks), n = (int)(blockIdx.x / heads % g.blocks);
    const Tokens t = tokens_of(g, b, n);
    const Which which = which_of(g, head);
    const int group = which.query ? 1 : g.heads / g.kv_heads;
    const bf16 *from = bf16s(which.query ? x.from.d_q : which.value ? x.from.d_v : x.from.d_k);
    Values z[AT_ONCE], d_y[AT_ONCE];
    for_rows(
        t.rows,
        [&](int k, int i) {
            z[k] = load_convolved(x, t, b, i, head * D);
            d_y[k] = each([](int) { return 0.0f; });
            for (int h = 0; h < group; h++) {
                const Values more =
                    load_values(from + (block_of(g, b, which.head * group + h, n).at * ROWS + i) * D, D);
                d_y[k] = each([&](int v) { return d_y[k].at[v] + more.at[v]; });
            }
        },
        [&](int k, int i) {
            const Values y = silu_of(z[k]);
            float factor = which.query ? rsqrtf((float)D) : 1, along = 0;
            if (!which.value) {
                const float inverse = inverse_length(y);
                factor *= inverse;
                along = inverse * inverse * dot(y, d_y[k]);
            }
            store_values(x.d_raw + (t.row + i) * raw_width(g) + head * D, D, each([&](int v) {
                             return factor * (d_y[k].at[v] - along * y.at[v]) * silu_slope(z[k].at[v]);
                         }));
        });
}

// Grid: (B, H, N); a thread to a token. sums (B, N, 2, H), of the gradients of A_log and dt_bias.
__global__ void rates_backward_kernel(Prepare x) {
    SHARED_ARRAY(float, scratch, ROWS / WARP);
    const Grid &g = x.g;
    const Block block = block_of(g, blockIdx.x);
    const Tokens t = tokens_of(g, block.b, block.n);
    const int i = threadIdx.x, h = block.h;
    float by_log = 0, by_bias = 0;
    if (i < t.rows) {
        const int64_t at = block.at * ROWS + i, row = (t.row + i) * 2 * g.heads;
        const float beta = x.t.beta[at], d_a = x.from.d_log_decay[at];
        by_bias = -d_a * expf(to_float(bf16s(x.in.decay_log)[h])) *
                  sigmoid(to_float(bf16s(x.in.rates)[row + g.heads + h]) + to_float(bf16s(x.in.decay_bias)[h]));
        by_log = d_a * x.t.log_decay[at];
        x.d_rates[row + h] = to_bf16(x.from.d_beta[at] * beta * (1 - beta));
        x.d_rates[row + g.heads + h] = to_bf16(by_bias);
    }
    by_log = block_sum(by_log, scratch);
    by_bias = block_sum(by_bias, scratch);
    if (i != 0) return;
    x.sums[block.bn * 2 * g.heads + h] = by_log;
    x.sums[(block.bn * 2 + 1) * g.heads + h] = by_bias;
}

// ---- the convolution, backward --------------------------------------------------------------------------------------

// The gradient of what the convolution made of the token `ahead` tokens after token i; NULL: it does not see token i.
__device__ inline const bf16 *d_convolved_row(const Prepare &x, const Tokens &t, int b, int i, int ahead) {
    const Grid &g = x.g;
    const int64_t position = t.position + i + ahead, beyond = t.in_chunk + i + ahead - g.length[t.chunk];
    if (position >= g.context || g.first_seen(b, position) > position - ahead) return nullptr;
    if (beyond < 0) return x.d_convolved + (t.row + i + ahead) * raw_width(g);
    return x.edge + (((int64_t)t.chunk * g.batch + b) * DELTA_EDGE + beyond) * convolved_width(g);
}

// Grid: (B, N, H + 2 KV).
__global__ void __launch_bounds__(THREADS) d_raw_kernel(Prepare x) {
    const Grid &g = x.g;
    const int heads = g.heads + 2 * g.kv_heads, column = (int)(blockIdx.x % heads) * g.head_dim;
    const int b = (int)(blockIdx.x / heads / g.blocks), n = (int)(blockIdx.x / heads % g.blocks);
    const Tokens t = tokens_of(g, b, n);
    for (int i = (int)threadIdx.x / WARP; i < t.rows; i += WARPS) {
        Values sum = each([](int) { return 0.0f; });
        const bf16 *taps = bf16s(x.in.taps) + column;
        for (int ahead = 0; ahead < DELTA_TAPS; ahead++, taps += convolved_width(g)) {
            const bf16 *row = d_convolved_row(x, t, b, i, ahead);
            if (row == nullptr) break;
            const Values tap = load_values(taps, g.head_dim), by = load_values(row + column, g.head_dim);
            sum = each([&](int v) { return sum.at[v] + tap.at[v] * by.at[v]; });
        }
        store_values(x.d_raw + (t.row + i) * raw_width(g) + column, g.head_dim, sum);
    }
}

// Grid: (DELTA_PIECES of all blocks, H + 2 KV); a thread to a column of a head.
__global__ void d_taps_kernel(Prepare x) {
    const Grid &g = x.g;
    const int heads = g.heads + 2 * g.kv_heads, piece = (int)(blockIdx.x / heads), blocks = g.batch * g.blocks;
    const int column = (int)(blockIdx.x % heads) * g.head_dim + threadIdx.x;
    const int each_has = ceil_div<int>(blocks, DELTA_PIECES), end = smaller_of(blocks, (piece + 1) * each_has);
    float sum[DELTA_TAPS] = {0};
    for (int block = piece * each_has; block < end; block++) {
        const int b = block / g.blocks;
        const Tokens t = tokens_of(g, b, block % g.blocks);
        for (int i = 0; i < t.rows; i++) {
            const float by = to_float(x.d_convolved[(t.row + i) * raw_width(g) + column]);
#pragma unroll
            for (int back = 0; back < DELTA_TAPS; back++) {
                const bf16 *row = raw_row(x, t, b, i, back);
                if (row != nullptr) sum[back] += by * to_float(row[column]);
            }
        }
    }
    for (int back = 0; back < DELTA_TAPS; back++)
        x.sums[((int64_t)piece * DELTA_TAPS + back) * convolved_width(g) + column] = sum[back];
}

} // namespace

void prepare(Device *device, const DeltaShape *s, const DeltaInput *in, const DeltaTokens *t) {
    Prepare x = {};
    x.g = grid_of(s), x.in = *in, x.t = *t;
    const int64_t blocks = s->batch * delta_blocks(s);
    launch(prepare_kernel, (unsigned)(blocks * (s->heads + 2 * s->kv_heads)), THREADS, 0, stream_of(device), x);
    launch(rates_kernel, (unsigned)blocks, ROWS, 0, stream_of(device), x);
}

void prepare_backward(Device *device, const DeltaShape *s, const DeltaInput *in, const DeltaTokens *t,
                      const DeltaGradients *from, void *d_raw, void *d_rates, float *d_decay_log, float *d_decay_bias) {
    Prepare x = {};
    x.g = grid_of(s), x.in = *in, x.t = *t, x.from = *from;
    x.d_raw = static_cast<bf16 *>(d_raw), x.d_rates = static_cast<bf16 *>(d_rates);
    launch(prepare_backward_kernel, (unsigned)(s->batch * delta_blocks(s) * (s->heads + 2 * s->kv_heads)), THREADS, 0,
           stream_of(device), x);
    const int64_t blocks = s->batch * delta_blocks(s), H = s->heads;
    x.sums = static_cast<float *>(device_scratch(device, "delta", delta_scratch_bytes_cuda(s)));
    launch(rates_backward_kernel, (unsigned)(blocks * H), ROWS, 0, stream_of(device), x);
    add_columns(device, d_decay_log, x.sums, blocks, H, 2 * H);
    add_columns(device, d_decay_bias, x.sums + H, blocks, H, 2 * H);
}

void convolve_backward(Device *device, const DeltaShape *s, const DeltaInput *in, void *d_raw, float *d_taps,
                       const void *d_convolved, const void *edge) {
    Prepare x = {};
    x.g = grid_of(s), x.in = *in;
    x.d_raw = static_cast<bf16 *>(d_raw);
    x.d_convolved = static_cast<const bf16 *>(d_convolved), x.edge = static_cast<const bf16 *>(edge);
    x.sums = static_cast<float *>(device_scratch(device, "delta", delta_scratch_bytes_cuda(s)));
    const int64_t heads = s->heads + 2 * s->kv_heads;
    launch(d_raw_kernel, (unsigned)(s->batch * delta_blocks(s) * heads), THREADS, 0, stream_of(device), x);
    launch(d_taps_kernel, (unsigned)(DELTA_PIECES * heads), (unsigned)s->head_dim, 0, stream_of(device), x);
    const int64_t taps = DELTA_TAPS * heads * s->head_dim;
    add_columns(device, d_taps, x.sums, DELTA_PIECES, taps, taps);
}

} // namespace delta
