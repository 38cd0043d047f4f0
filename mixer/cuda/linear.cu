// Linear attention on CUDA: the walk over windows, features, and the states of other chunks (mixer/linear.h). The work
// is in linear_states.cu, linear_forward.cu and linear_backward.cu.
#include "mixer/cuda/linear.h"

#include "mixer/cuda/kernels.h"

namespace {

enum { THREADS = 256 };

__device__ inline float phi(float u) { return u > 0 ? u + 1 : exp2_fast(u * LOG2_E); }

// x (sequences, tokens, 8 packets), in place.
__global__ void __launch_bounds__(THREADS) features_kernel(TokenView x, int packets, int64_t tokens, int64_t count) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, row = i / packets;
    if (i >= count) return;
    bf16 *at = token_at(x, (int)(row / tokens), row % tokens, 0, 0) + i % packets * PACKET;
    float value[PACKET];
    load_packet(value, at);
#pragma unroll
    for (int n = 0; n < PACKET; n++) value[n] = phi(value[n]);
    store_packet(at, value);
}

void make_features(Device *device, const LinearShape *shape, TokenView x, int64_t tokens, int64_t heads) {
    const int64_t packets = heads * shape->head_dim / PACKET, count = shape->sequences * tokens * packets;
    launch(features_kernel, (unsigned)ceil_div(count, (int64_t)THREADS), THREADS, 0, stream_of(device), x, (int)packets,
           tokens, count);
}

// ---- states of other chunks -----------------------------------------------------------------------------------------

struct Combination {
    LinearPast past[LINEAR_PASTS];
    int count, heads, rows, size; // rows: B x H; values of a state
    const float *log2_decay, *all;
    const int32_t *first;
    int64_t context;
    float *states;
    bool add;
};

__global__ void __launch_bounds__(THREADS) combine_kernel(const Combination c) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, count = (int64_t)c.rows * c.size;
    if (i >= count) return;
    const int row = (int)(i / c.size), b = row / c.heads;
    float sum = c.add ? c.states[i] : 0;
    for (int n = 0; n < c.count; n++) {
        const LinearPast past = c.past[n];
        if (c.first != NULL && c.first[b * c.context + past.seer] > past.seen) continue;
        sum = fmaf(linear_power(c.log2_decay[row % c.heads], past.distance), c.all[past.place * count + i], sum);
    }
    c.states[i] = sum;
}

void combine(Device *device, const LinearShape *shape, const LinearPast *past, int count, const float *all,
             float *states, bool add) {
    Combination c = {};
    for (int i = 0; i < count; i++) c.past[i] = past[i];
    c.count = count, c.heads = (int)shape->heads, c.rows = (int)(shape->sequences * shape->heads);
    c.size = (int)linear_state(shape->head_dim);
    c.log2_decay = shape->log2_decay, c.all = all, c.states = states, c.add = add;
    c.first = shape->first, c.context = shape->context;
    launch(combine_kernel, (unsigned)ceil_div((int64_t)c.rows * c.size, (int64_t)THREADS), THREADS, 0,
           stream_of(device), c);
}

// ---- the walk -------------------------------------------------------------------------------------------------------

// Scratch: the states before and behind every block of a window, what goes from window to window of both, and deltas.
struct Walk {
    LinearWindow x;
    float *carried[2];
    int windows;
};

int window_blocks() { return (int)(linear_window(sizeof(bf16)) / BLOCK); }

Walk walk_of(Device *device, const LinearShape *shape, const LinearTokens *t) {
    Walk w = {};
    LinearWindow &x = w.x;
    const TokenView all[] = {t->q, t->k, t->v, t->y, t->d_y, t->d_q, t->d_k, t->d_v};
    for (const TokenView &view : all)
        if (view.data != NULL) check_tokens(view, "linear attention");
    x.q = t->q, x.k = t->k, x.v = t->v, x.y = t->y, x.d_y = t->d_y, x.d_q = t->d_q, x.d_k = t->d_k, x.d_v = t->d_v;
    x.inverse = t->inverse.data, x.inverse_batch = t->inverse.batch_stride, x.inverse_head = t->inverse.head_stride;
    x.log2_decay = shape->log2_decay, x.first = shape->first, x.context = shape->context, x.start = t->chunk.start;
    x.length = (int)t->chunk.length;
    x.sequences = (int)shape->sequences, x.heads = (int)shape->heads, x.kv_heads = (int)shape->kv_heads;
    x.group = x.heads / x.kv_heads, x.head_dim = (int)shape->head_dim;
    const int blocks = ceil_div(x.length, (int)BLOCK), most = smaller_of(blocks, window_blocks());
    const int64_t one = x.sequences * x.heads * linear_state(x.head_dim);
    float *memory = static_cast<float *>(
        cuda_scratch(device, "linear attention", linear_scratch_bytes_cuda(shape, x.length) - CUDA_WORKSPACE_BYTES));
    w.windows = ceil_div(blocks, window_blocks());
    for (int i = 0; i < 2; i++) {
        w.carried[i] = memory + 2 * most * one + i * one;
        x.state[i] = memory + i * most * one;
    }
    x.delta = memory + 2 * (most + 1) * one;
    return w;
}

void set_window(Walk &w, int window) {
    const int blocks = ceil_div(w.x.length, (int)BLOCK);
    w.x.token = window * window_blocks() * BLOCK;
    w.x.blocks = smaller_of(blocks - window * window_blocks(), window_blocks());
}

// States of all windows, from the first on or from the last; f(window) when those of a window are there.
template <typename F>
void forward_windows(Device *device, Walk &w, const float *before, float *after, float *starts, F f) {
    const int64_t one = w.x.sequences * w.x.heads * linear_state(w.x.head_dim);
    for (int window = 0; window < w.windows; window++) {
        set_window(w, window);
        float *to = window == w.windows - 1 ? after : w.carried[0];
        cuda_linear_states(device, w.x, false, window == 0 ? before : w.carried[0], to,
                           starts == NULL ? NULL : starts + window * one);
        f(window);
    }
}
template <typename F> void windows_behind(Device *device, Walk &w, const float *behind, float *end, F f) {
    for (int window = w.windows - 1; window >= 0; window--) {
        set_window(w, window);
        cuda_linear_states(device, w.x, true, window == w.windows - 1 ? behind : w.carried[1],
                           window == 0 ? end : w.carried[1], NULL);
        f(window);
    }
}

void own_before(Device *device, const LinearShape *shape, const LinearTokens *tokens, float *states) {
    Walk w = walk_of(device, shape, tokens);
    make_features(device, shape, tokens->k, tokens->chunk.length, shape->kv_heads);
    forward_windows(device, w, NULL, states, NULL, [](int) {});
}

void own_behind(Device *device, const LinearShape *shape, const LinearTokens *tokens, float *states) {
    Walk w = walk_of(device, shape, tokens);
    windows_behind(device, w, NULL, states, [](int) {});
}

void forward(Device *device, const LinearShape *shape, const LinearTokens *tokens, const float *before, float *after) {
    Walk w = walk_of(device, shape, tokens);
    if (tokens->fresh_keys) make_features(device, shape, tokens->k, tokens->chunk.length, shape->kv_heads);
    make_features(device, shape, tokens->q, tokens->chunk.length, shape->heads);
    forward_windows(device, w, before, after, tokens->starts, [&](int) { cuda_linear_outputs(device, w.x); });
}

void backward(Device *device, const LinearShape *shape, const LinearTokens *tokens, const float *behind) {
    Walk w = walk_of(device, shape, tokens);
    const int64_t one = w.x.sequences * w.x.heads * linear_state(w.x.head_dim);
    windows_behind(device, w, behind, NULL, [&](int window) {
        cuda_linear_states(device, w.x, false, tokens->starts + window * one, NULL, NULL);
        cuda_linear_gradients(device, w.x);
    });
}

} // namespace

extern const LinearKernels linear_kernels_cuda;
const LinearKernels linear_kernels_cuda = {own_before, own_behind, combine, forward, backward};
