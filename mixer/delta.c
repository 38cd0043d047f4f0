// The gated delta rule: Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464). Each head keeps a matrix S that maps
// keys to values. A token lets it fade, takes out what it holds at the token's key, and writes the token's value there:
//
//   S_t = e^a_t S_t-1 (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,   o_t = S_t q_t
//
//   q, k = silu(X W^Q), silu(X W^K) brought to length 1, q / sqrt(D) besides;   v = silu(X W^V)
//   beta = sigmoid(X W^B), a = -e^A_log softplus(X W^A + dt_bias), one of each per head
//   Y = (RMSNorm(o) * silu(X W^G)) W^O, the norm per head
//
// In the template's terms P(X) = P X W^V, with P a lower-triangular matrix per head whose element (t, j) is q_t^T times the
// transitions of the tokens between times beta_j k_j; it is never stored. Documents end a state. `delta:conv` puts a causal
// convolution of 4 taps per channel before the SiLU of q, k and v.
//
//   mix      raw, rates = normed W^T -> blocks of 64 tokens -> states -> out (formulas: mixer/delta.h)
//   output   branch = finish(out, gate) W^T
//
// Over ranks: a chunk of tokens turns the state M = S^T that enters it into transition M + state. Both are worked out for a
// state of zeros, gathered (mixer/states.h), and combined for what enters each chunk; backward, their transposes from the
// other end. One rank alone has nothing to gather. The convolution's 3 tokens before a chunk are gathered likewise.
#include "mixer/delta.h"

#include "mixer/kernels.h"
#include "mixer/states.h"

#include <string.h>

enum { RAW, RATES, DECAY_LOG, DECAY_BIAS, SCALE, OUT, TAPS }; // tensors
// Kept: (n, 2 H D + 2 KV D) q, k, v, gate; (n, 2 H); (B, H, N, 64, W). Of more ranks than one: what enters my chunks (2, B, H,
// W, W), what they make (2, B, H, 2, W, W), and the rows before them (2, B, 3, E), E = H D + 2 KV D.
enum { KEPT_RAW, KEPT_RATES, KEPT_OUT, KEPT_INITIAL, KEPT_SUMMARY, KEPT_EDGE };
// Room: see mixer/delta.h. TOKENS: q, k, v; DECAYS: beta, log_decay, begin; Y (n, H D). Over ranks: SUMMARY (P, 2, B, H, 2, W,
// W), then (2, B, H, W, W) gradients of what leaves my chunks; EDGES (P, 2, B, 3, E), then (2, B, 3, E) of rows behind them.
enum { TOKENS, DECAYS, STATES, UPDATES, Y, SUMMARY, EDGES, // forward, and these backward:
       D_Y, D_OUT, D_TOKENS, D_DECAYS, D_STATES, RESIDUALS, D_RAW, D_RATES, D_CONVOLVED };
enum { CACHE_STATE, CACHE_EDGE }; // generation: (H, W, W) fp32; (3, E)

static int64_t convolved_width(const ModelConfig *c) { return (c->heads + 2 * c->kv_heads) * c->head_dim; } // E
static int64_t out_width(const ModelConfig *c) { return c->heads * c->head_dim; }
static int64_t raw_width(const ModelConfig *c) { return convolved_width(c) + out_width(c); }
static const DeltaKernels *kernels_of(const Mixing *m) { return m->model->device->mixers->delta; }

// ---- parameters -------------------------------------------------------------------------------------------------------

// A vector or matrix that begins as normal(mean, std).
static int64_t add_begun(ParameterList *list, int64_t l, ParameterKind kind, int64_t rows, int64_t columns,
                         const char *name, float mean, float std) {
    int64_t offset = parameter_add(list, l, kind, rows, columns, name);
    if (offset < 0) return offset;
    Parameter *added = &list->table->parameter[list->table->count - 1];
    added->init_mean = mean, added->init_std = std;
    return offset;
}

// Decays begin as in the paper's code: e^A_log from 1 to 16, softplus(dt_bias) around 0.01; taps as PyTorch's Conv1d.
static void parameters(ParameterList *list, int64_t l, int64_t *tensor) {
    const ModelConfig *c = list->config;
    int64_t C = c->dim, queries = out_width(c), keys = c->kv_heads * c->head_dim, H = c->heads;
    tensor[RAW] = parameter_add(list, l, MATRIX, queries, C, "delta.q_proj.weight");
    parameter_add(list, l, MATRIX, keys, C, "delta.k_proj.weight");
    parameter_add(list, l, MATRIX, keys, C, "delta.v_proj.weight");
    parameter_add(list, l, MATRIX, queries, C, "delta.g_proj.weight");
    tensor[RATES] = parameter_add(list, l, MATRIX, H, C, "delta.b_proj.weight");
    parameter_add(list, l, MATRIX, H, C, "delta.a_proj.weight");
    tensor[DECAY_LOG] = add_begun(list, l, BIAS, H, 0, "delta.A_log", 2.0f, 0.7f);
    tensor[DECAY_BIAS] = add_begun(list, l, BIAS, H, 0, "delta.dt_bias", -4.6f, 1.3f);
    tensor[SCALE] = parameter_add(list, l, NORM, c->head_dim, 0, "delta.norm.weight");
    tensor[OUT] = parameter_add(list, l, RESIDUAL_MATRIX, C, queries, "delta.o_proj.weight");
    if (layer_kind(c, l).choice.word)
        tensor[TAPS] = add_begun(list, l, MATRIX, DELTA_TAPS, convolved_width(c), "delta.conv.weight", 0, 0.3f);
}

// ---- memory -------------------------------------------------------------------------------------------------------------

// Counts of elements. Blocks: as many as there may be, a last one of each chunk that is not whole.
typedef struct Sizes {
    size_t n, B, H, KV, W, E, blocks;  // blocks: B N
    size_t states, block_rows, carried; // (B, H, N, W, W), (B, N, 64), (2, B, H, W, W)
    size_t edge;                        // (2, B, 3, E)
} Sizes;

static Sizes sizes_of(const MixerSize *s) {
    const ModelConfig *c = s->config;
    Sizes z = {.n = (size_t)s->rows, .B = (size_t)s->sequences, .H = (size_t)c->heads, .KV = (size_t)c->kv_heads,
               .W = (size_t)delta_width(c->head_dim), .E = (size_t)convolved_width(c)};
    z.blocks = z.B * (size_t)(s->rows / s->sequences / DELTA_BLOCK + (s->ranks > 1 ? 2 : 1));
    z.block_rows = z.blocks * DELTA_BLOCK;
    z.states = z.blocks * z.H * z.W * z.W;
    z.carried = 2 * z.B * z.H * z.W * z.W;
    z.edge = 2 * z.B * DELTA_EDGE * z.E;
    return z;
}

static bool has_taps(const MixerSize *s) { return layer_kind(s->config, s->layer).choice.word; }

static void lay_out_kept(const MixerSize *s, MixerMemory *kept, Arena *arena) {
    const Sizes z = sizes_of(s);
    size_t storage = s->element_bytes, raw = (size_t)raw_width(s->config);
    kept->buffer[KEPT_RAW] = arena_take(arena, "activations: queries, keys, values", z.n * raw * storage);
    kept->buffer[KEPT_RATES] = arena_take(arena, "activations: queries, keys, values", z.n * 2 * z.H * storage);
    kept->buffer[KEPT_OUT] = arena_take(arena, "activations: delta rule", z.block_rows * z.H * z.W * storage);
    if (s->ranks == 1) return;
    kept->buffer[KEPT_INITIAL] = arena_take(arena, "activations: states", z.carried * sizeof(float));
    kept->buffer[KEPT_SUMMARY] = arena_take(arena, "activations: states", 2 * z.carried * sizeof(float));
    if (has_taps(s)) kept->buffer[KEPT_EDGE] = arena_take(arena, "activations: states", z.edge * storage);
}

static void lay_out_room(const MixerSize *s, bool backward, MixerMemory *room, Arena *arena) {
    const Sizes z = sizes_of(s);
    size_t storage = s->element_bytes, P = (size_t)s->ranks, raw = z.n * (size_t)raw_width(s->config) * storage;
    size_t heads = z.block_rows * z.H, y = z.n * (size_t)out_width(s->config) * storage;
    const char *blocks = "blocks of one layer", *gradients = "activation gradients";
    room->buffer[TOKENS] = arena_take(arena, blocks, z.block_rows * (z.H + 2 * z.KV) * z.W * storage);
    room->buffer[DECAYS] = arena_take(arena, blocks, (2 * heads + z.block_rows) * sizeof(float));
    room->buffer[STATES] = arena_take(arena, blocks, z.states * storage);
    room->buffer[UPDATES] = arena_take(arena, blocks, heads * z.W * storage);
    room->buffer[Y] = arena_take(arena, "buffers of one layer", y);
    if (s->ranks > 1) {
        room->buffer[SUMMARY] = arena_take(arena, "states of all ranks", (2 * P + 1) * z.carried * sizeof(float));
        if (has_taps(s)) room->buffer[EDGES] = arena_take(arena, "states of all ranks", (P + 1) * z.edge * storage);
    }
    if (!backward) return;
    room->buffer[D_Y] = arena_take(arena, gradients, y);
    room->buffer[D_OUT] = arena_take(arena, gradients, heads * z.W * storage);
    room->buffer[D_TOKENS] = arena_take(arena, gradients, 3 * heads * z.W * storage);
    room->buffer[D_DECAYS] = arena_take(arena, gradients, 2 * heads * sizeof(float));
    room->buffer[D_STATES] = arena_take(arena, blocks, z.states * storage);
    room->buffer[RESIDUALS] = arena_take(arena, blocks, heads * z.W * storage);
    room->buffer[D_RAW] = arena_take(arena, gradients, raw);
    room->buffer[D_RATES] = arena_take(arena, gradients, z.n * 2 * z.H * storage);
    if (has_taps(s)) room->buffer[D_CONVOLVED] = arena_take(arena, gradients, raw);
}

static void lay_out_cache(const MixerSize *s, MixerMemory *cache, Arena *arena) {
    const Sizes z = sizes_of(s);
    cache->buffer[CACHE_STATE] = arena_take(arena, "state of the tokens before", z.H * z.W * z.W * sizeof(float));
    if (has_taps(s))
        cache->buffer[CACHE_EDGE] = arena_take(arena, "state of the tokens before", DELTA_EDGE * z.E * s->element_bytes);
}

static size_t scratch_bytes(const MixerSize *s, int threads) {
    const ModelConfig *c = s->config;
    int64_t tokens = s->rows / s->sequences;
    const DeltaShape most = {s->sequences, c->heads, c->kv_heads, c->head_dim, 2, {{0, tokens}, {tokens, 1}}, NULL, tokens};
    return s->element_bytes == sizeof(float) ? delta_scratch_bytes_cpu(&most, threads) : delta_scratch_bytes_cuda(&most);
}

// ---- what the kernels are given ---------------------------------------------------------------------------------------

static DeltaShape shape_of(const Mixing *m) {
    const ModelConfig *c = m->model->config;
    const Generation *g = m->pass->generation;
    DeltaShape s = {.batch = m->pass->sequences, .heads = c->heads, .kv_heads = c->kv_heads, .head_dim = c->head_dim,
                    .chunks = 1};
    if (g != NULL) {
        s.chunk[0] = (Chunk){g->length, m->pass->rows};
        s.first = g->first, s.context = g->capacity;
        return s;
    }
    const Shard *mine = &m->model->shard;
    s.chunks = mine->count;
    for (int i = 0; i < mine->count; i++) s.chunk[i] = mine->chunk[i];
    s.first = m->pass->first_visible, s.context = m->model->context;
    return s;
}

static DeltaInput input_of(const Mixing *m) {
    return (DeltaInput){.raw = m->kept.buffer[KEPT_RAW],
                        .rates = m->kept.buffer[KEPT_RATES],
                        .decay_log = weight(m->model, m->tensor[DECAY_LOG]),
                        .decay_bias = weight(m->model, m->tensor[DECAY_BIAS]),
                        .taps = weight(m->model, m->tensor[TAPS]),
                        .edge = m->pass->generation != NULL ? m->cache.buffer[CACHE_EDGE] : m->kept.buffer[KEPT_EDGE]};
}

static DeltaTokens tokens_of(const Mixing *m, const DeltaShape *s) {
    const Device *d = m->model->device;
    int64_t rows = s->batch * delta_blocks(s) * DELTA_BLOCK, W = delta_width(s->head_dim);
    void *q = m->room.buffer[TOKENS], *k = at(d, q, rows * s->heads * W);
    float *beta = m->room.buffer[DECAYS], *log_decay = beta + rows * s->heads;
    return (DeltaTokens){q, k, at(d, k, rows * s->kv_heads * W), beta, log_decay,
                         (int32_t *)(log_decay + rows * s->heads)};
}

static DeltaGradients gradients_of(const Mixing *m, const DeltaShape *s) {
    const Device *d = m->model->device;
    int64_t rows = s->batch * delta_blocks(s) * DELTA_BLOCK * s->heads, W = delta_width(s->head_dim);
    void *d_q = m->room.buffer[D_TOKENS], *d_k = at(d, d_q, rows * W);
    float *d_beta = m->room.buffer[D_DECAYS];
    return (DeltaGradients){d_q, d_k, at(d, d_k, rows * W), d_beta, d_beta + rows};
}

static int64_t carried_floats(const DeltaShape *s) { // (B, H, W, W)
    int64_t W = delta_width(s->head_dim);
    return s->batch * s->heads * W * W;
}

// ---- states over ranks ------------------------------------------------------------------------------------------------

static float *summary_at(const Mixing *m, const DeltaShape *s, int place) {
    return (float *)m->room.buffer[SUMMARY] + (int64_t)place * 2 * carried_floats(s);
}

// Gathers what all chunks make, and combines into `to` (2, B, H, W, W) what those before, or behind, each of mine do.
static void gather_and_combine(const Mixing *m, const DeltaShape *s, float *to, bool behind) {
    int place[STATES_MOST];
    states_gather(m, m->room.buffer[SUMMARY], (size_t)(2 * carried_floats(s)) * sizeof(float));
    for (int i = 0; i < s->chunks; i++) {
        int count = states_before(m, i, behind, place, NULL);
        kernels_of(m)->combine(m->model->device, s, to + i * carried_floats(s), m->room.buffer[SUMMARY], place, count,
                               behind);
    }
}

// What enters my chunks.
static void find_initial(const Mixing *m, const DeltaShape *s, const DeltaTokens *t) {
    Device *d = m->model->device;
    float *mine = summary_at(m, s, states_place(m, 0));
    float *const summary[2] = {mine, mine + 2 * carried_floats(s)};
    kernels_of(m)->summarize(d, s, t, summary);
    d->copy(d, m->kept.buffer[KEPT_SUMMARY], mine, (size_t)(s->chunks * 2 * carried_floats(s)) * sizeof(float));
    gather_and_combine(m, s, m->kept.buffer[KEPT_INITIAL], false);
}

// The gradient of what leaves my chunks: from what my outputs ask of the state that enters, and their transitions.
static const float *find_d_final(const Mixing *m, const DeltaShape *s, const DeltaTokens *t) {
    Device *d = m->model->device;
    float *mine = summary_at(m, s, states_place(m, 0)), *d_final = summary_at(m, s, 2 * m->model->ranks);
    float *const d_initial[2] = {mine, mine + 2 * carried_floats(s)};
    int64_t W = delta_width(s->head_dim);
    d->copy(d, mine, m->kept.buffer[KEPT_SUMMARY], (size_t)(s->chunks * 2 * carried_floats(s)) * sizeof(float));
    kernels_of(m)->retreat(d, s, t, m->room.buffer[D_OUT], d_initial, 2 * W * W, m->room.buffer[D_STATES],
                           m->room.buffer[RESIDUALS]);
    gather_and_combine(m, s, d_final, true);
    return d_final;
}

// ---- the convolution's rows over ranks ----------------------------------------------------------------------------------

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Gathers of each chunk the last 3 rows of `rows` (n, 2 H D + 2 KV D), its first E columns, or (`behind`) the first 3; and
// picks the 3 rows before, or behind, each of mine into `to` (2, B, 3, E). Chunks may be shorter than 3.
static void gather_edges(const Mixing *m, const DeltaShape *s, const void *rows, void *to, bool behind) {
    Device *d = m->model->device;
    int64_t E = convolved_width(m->model->config), raw = raw_width(m->model->config), part = s->batch * DELTA_EDGE * E;
    int64_t size = (int64_t)d->element_bytes, length[STATES_MOST];
    void *edges = m->room.buffer[EDGES];
    int place[STATES_MOST];
    for (int i = 0; i < s->chunks; i++)
        for (int64_t b = 0; b < s->batch; b++) {
            int64_t take = least(DELTA_EDGE, s->chunk[i].length), skip = s->chunk[i].length - take;
            int64_t row = b * delta_tokens(s) + i * s->chunk[0].length + (behind ? 0 : skip);
            int64_t slot = states_place(m, i) * s->batch * DELTA_EDGE + b * DELTA_EDGE + (behind ? 0 : DELTA_EDGE - take);
            d->copy_strided(d, at(d, edges, slot * E), E * size, at(d, rows, row * raw), raw * size, take,
                            (size_t)(E * size));
        }
    states_gather(m, edges, (size_t)(part * size));
    for (int i = 0; i < s->chunks; i++) {
        int64_t filled = 0;
        for (int c = states_before(m, i, behind, place, length) - 1; c >= 0 && filled < DELTA_EDGE; c--) {
            int64_t take = least(DELTA_EDGE - filled, length[c]);
            int64_t from = behind ? 0 : DELTA_EDGE - take, into = behind ? filled : DELTA_EDGE - filled - take;
            d->copy_strided(d, at(d, to, i * part + into * E), DELTA_EDGE * E * size,
                            at(d, edges, place[c] * part + from * E), DELTA_EDGE * E * size, s->batch,
                            (size_t)(take * E * size));
            filled += take;
        }
    }
}

// Generation: the last 3 raw rows so far.
static void keep_edge(const Mixing *m, const DeltaShape *s) {
    Device *d = m->model->device;
    int64_t E = convolved_width(m->model->config), raw = raw_width(m->model->config), size = (int64_t)d->element_bytes;
    int64_t take = least(DELTA_EDGE, s->chunk[0].length), first = s->chunk[0].length - take;
    void *edge = m->cache.buffer[CACHE_EDGE];
    for (int64_t i = 0; i + take < DELTA_EDGE; i++)
        d->copy(d, at(d, edge, i * E), at(d, edge, (i + take) * E), (size_t)(E * size));
    d->copy_strided(d, at(d, edge, (DELTA_EDGE - take) * E), E * size, at(d, m->kept.buffer[KEPT_RAW], first * raw),
                    raw * size, take, (size_t)(E * size));
}

// ---- forward ------------------------------------------------------------------------------------------------------------

static void mix(const Mixing *m) {
    const Model *model = m->model;
    const ModelConfig *c = model->config;
    const Generation *g = m->pass->generation;
    Device *d = model->device;
    const DeltaShape s = shape_of(m);
    const DeltaInput in = input_of(m);
    const DeltaTokens t = tokens_of(m, &s);
    d->matmul_forward(d, m->kept.buffer[KEPT_RAW], m->pass->normed, weight(model, m->tensor[RAW]), NULL, m->pass->rows,
                      c->dim, raw_width(c));
    d->matmul_forward(d, m->kept.buffer[KEPT_RATES], m->pass->normed, weight(model, m->tensor[RATES]), NULL,
                      m->pass->rows, c->dim, 2 * c->heads);
    bool ranks = g == NULL && model->ranks > 1;
    if (ranks && in.taps != NULL) gather_edges(m, &s, in.raw, m->kept.buffer[KEPT_EDGE], false);
    float *state = ranks ? m->kept.buffer[KEPT_INITIAL] : NULL;
    if (g != NULL) {
        state = m->cache.buffer[CACHE_STATE];
        if (g->length == 0) d->zero(d, state, (size_t)carried_floats(&s) * sizeof(float));
    }
    kernels_of(m)->prepare(d, &s, &in, &t);
    if (ranks) find_initial(m, &s, &t);
    kernels_of(m)->forward(d, &s, &t, state, g != NULL ? state : NULL, m->room.buffer[STATES], m->room.buffer[UPDATES],
                           m->kept.buffer[KEPT_OUT]);
    if (g != NULL && in.taps != NULL) keep_edge(m, &s);
}

static void finish(const Mixing *m, const DeltaShape *s) {
    kernels_of(m)->finish(m->model->device, s, m->room.buffer[Y], m->kept.buffer[KEPT_OUT], m->kept.buffer[KEPT_RAW],
                          weight(m->model, m->tensor[SCALE]), (float)m->model->config->norm_epsilon);
}

static void output(const Mixing *m) {
    const DeltaShape s = shape_of(m);
    Device *d = m->model->device;
    finish(m, &s);
    d->matmul_forward(d, m->pass->branch, m->room.buffer[Y], weight(m->model, m->tensor[OUT]), NULL, m->pass->rows,
                      out_width(m->model->config), m->model->config->dim);
}

// ---- backward -----------------------------------------------------------------------------------------------------------

// The gradients of raw and rates, from that of the heads' outputs. States are worked out again.
static void rule_backward(const Mixing *m, const DeltaShape *s) {
    const Model *model = m->model;
    const DeltaKernels *k = kernels_of(m);
    Device *d = model->device;
    void *const *room = m->room.buffer;
    const DeltaInput in = input_of(m);
    const DeltaTokens t = tokens_of(m, s);
    const DeltaGradients g = gradients_of(m, s);
    bool ranks = model->ranks > 1;
    k->prepare(d, s, &in, &t);
    k->forward(d, s, &t, ranks ? m->kept.buffer[KEPT_INITIAL] : NULL, NULL, room[STATES], room[UPDATES], NULL);
    const float *d_final = ranks ? find_d_final(m, s, &t) : NULL;
    k->backward(d, s, &t, room[STATES], room[UPDATES], room[D_OUT], d_final, room[D_STATES], room[RESIDUALS], &g);

    void *d_convolved = in.taps != NULL ? room[D_CONVOLVED] : room[D_RAW], *edge = NULL;
    k->prepare_backward(d, s, &in, &t, &g, d_convolved, room[D_RATES], gradient(model, m->tensor[DECAY_LOG]),
                        gradient(model, m->tensor[DECAY_BIAS]));
    if (in.taps == NULL) return;
    if (ranks) {
        int64_t part = s->batch * DELTA_EDGE * convolved_width(model->config);
        edge = at(d, room[EDGES], 2 * model->ranks * part);
        gather_edges(m, s, d_convolved, edge, true);
    }
    k->convolve_backward(d, s, &in, room[D_RAW], gradient(model, m->tensor[TAPS]), d_convolved, edge);
}

static void backward(const Mixing *m) {
    const Model *model = m->model;
    const ModelConfig *c = model->config;
    Device *d = model->device;
    const Pass *p = m->pass;
    const DeltaShape s = shape_of(m);
    void *const *room = m->room.buffer;
    finish(m, &s);
    d->matmul_backward(d, room[D_Y], gradient(model, m->tensor[OUT]), NULL, p->d_residual, room[Y],
                       weight(model, m->tensor[OUT]), p->rows, out_width(c), c->dim, false);
    kernels_of(m)->finish_backward(d, &s, room[D_OUT], room[D_RAW], gradient(model, m->tensor[SCALE]), room[D_Y],
                                   m->kept.buffer[KEPT_OUT], m->kept.buffer[KEPT_RAW],
                                   weight(model, m->tensor[SCALE]), (float)c->norm_epsilon);
    rule_backward(m, &s);
    d->matmul_backward(d, p->d_normed, gradient(model, m->tensor[RAW]), NULL, room[D_RAW], p->normed,
                       weight(model, m->tensor[RAW]), p->rows, c->dim, raw_width(c), false);
    d->matmul_backward(d, p->d_normed, gradient(model, m->tensor[RATES]), NULL, room[D_RATES], p->normed,
                       weight(model, m->tensor[RATES]), p->rows, c->dim, 2 * c->heads, true);
}

// ---- what it costs, and what it can do ------------------------------------------------------------------------------------

// Per token and head, multiply-adds: with states D^2, 3 times forward and 6 backward; within a block of 64, where half of the
// pairs count, 32 D, 4 times forward (keys with keys, the system, queries with keys, updates) and 10 backward (these
// three again, the transposed system, S, G, and 2 products by each of them).
static double flops(const ModelConfig *c, int64_t layer, int64_t context) {
    (void)layer, (void)context;
    double D = (double)c->head_dim;
    return (double)c->heads * 2 * (9 * D * D + 14 * (DELTA_BLOCK / 2) * D);
}

// Both ways: the states and transitions of two chunks, and with a convolution their 3 rows, to every other rank.
static AttentionBytes bytes_sent(const ModelConfig *c, int64_t layer, const AttentionConfig *sharding, int rank) {
    (void)rank;
    int64_t B = sharding->shape.batch, W = delta_width(c->head_dim), others = sharding->ranks - 1;
    int64_t bytes = others * 2 * B * c->heads * 2 * W * W * (int64_t)sizeof(float);
    if (layer_kind(c, layer).choice.word)
        bytes += others * 2 * B * DELTA_EDGE * convolved_width(c) * (int64_t)sharding->element_bytes;
    return (AttentionBytes){.forward = bytes, .backward = bytes};
}

static bool check(const MixerUse *use, Error *err) {
    int64_t D = use->size.config->head_dim;
    bool on_gpu = use->device == DEVICE_CUDA || use->device == DEVICE_EMULATED;
    if (on_gpu && (D % 16 != 0 || D > 128))
        return error_usage(err, "%s: heads of %lld on a GPU: give multiples of 16 up to 128, or --device cpu", use->option,
                           (long long)D);
    if (use->size.kernels != NULL && use->size.kernels->delta == NULL)
        return error_usage(err, "%s: this device has no kernels for it: give --device cpu", use->option);
    return true;
}

extern const Mixer mixer_delta;
const Mixer mixer_delta = {.name = "delta",
                           .word = "conv",
                           .check = check,
                           .parameters = parameters,
                           .lay_out_kept = lay_out_kept,
                           .lay_out_room = lay_out_room,
                           .lay_out_cache = lay_out_cache,
                           .scratch_bytes = scratch_bytes,
                           .mix = mix,
                           .output = output,
                           .backward = backward,
                           .flops = flops,
                           .bytes_sent = bytes_sent,
                           .generates = true};
