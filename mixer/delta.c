// The gated delta rule: Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464). Each head keeps a matrix S
// that maps keys to values. A token lets it fade, takes out what it holds at the token's key, and writes the token's
// value there:
//
//   S_t = e^a_t S_t-1 (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,   o_t = S_t q_t
//
//   q, k = silu(X W^Q), silu(X W^K) brought to length 1, q / sqrt(D) besides;   v = silu(X W^V)
//   beta = sigmoid(X W^B), a = -e^A_log softplus(X W^A + dt_bias), one of each per head
//   Y = (RMSNorm(o) * silu(X W^G)) W^O, the norm per head
//
// In the template's terms P(X) = P X W^V, with P a lower-triangular matrix per head whose element (t, j) is q_t^T times
// the transitions of the tokens between times beta_j k_j; it is never stored. Documents end a state. `delta:conv` puts
// a causal convolution of 4 taps per channel before the SiLU of q, k and v.
//
//   mix      raw, rates = normed W^T -> blocks of 64 tokens -> states -> out (formulas: mixer/delta.h)
//   output   branch = finish(out, gate) W^T
//
// Over ranks: a chunk of tokens turns the state M = S^T that enters it into transition M + state. Both are worked out
// for a state of zeros, gathered (mixer/states.h), and combined for what enters each chunk; backward, their transposes
// from the other end. One rank alone has nothing to gather. The convolution's 3 tokens before a chunk are gathered
// likewise.
#include "mixer/delta_parts.h"

// ---- parameters -----------------------------------------------------------------------------------------------------

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

// ---- forward --------------------------------------------------------------------------------------------------------

static void mix(const Mixing *m) {
    const Model *model = m->model;
    const ModelConfig *c = model->config;
    const Generation *g = m->pass->generation;
    Device *d = model->device;
    const DeltaShape s = delta_shape(m);
    const DeltaInput in = delta_input(m);
    const DeltaTokens t = delta_tokens_in_room(m, &s);
    d->matmul_forward(d, m->kept.buffer[KEPT_RAW], m->pass->normed, weight(model, m->tensor[RAW]), NULL, m->pass->rows,
                      c->dim, raw_width(c));
    d->matmul_forward(d, m->kept.buffer[KEPT_RATES], m->pass->normed, weight(model, m->tensor[RATES]), NULL,
                      m->pass->rows, c->dim, 2 * c->heads);
    bool ranks = g == NULL && model->ranks > 1;
    if (ranks && in.taps != NULL) delta_gather_edges(m, &s, in.raw, m->kept.buffer[KEPT_EDGE], false);
    float *state = ranks ? m->kept.buffer[KEPT_INITIAL] : NULL;
    if (g != NULL) {
        state = m->cache.buffer[CACHE_STATE];
        if (g->length == 0) d->zero(d, state, (size_t)carried_floats(&s) * sizeof(float));
    }
    kernels_of(m)->prepare(d, &s, &in, &t);
    if (ranks) delta_find_initial(m, &s, &t);
    kernels_of(m)->forward(d, &s, &t, state, g != NULL ? state : NULL, m->room.buffer[STATES], m->room.buffer[UPDATES],
                           m->kept.buffer[KEPT_OUT]);
    if (g != NULL && in.taps != NULL) keep_edge(m, &s);
}

static void finish(const Mixing *m, const DeltaShape *s) {
    kernels_of(m)->finish(m->model->device, s, m->room.buffer[Y], m->kept.buffer[KEPT_OUT], m->kept.buffer[KEPT_RAW],
                          weight(m->model, m->tensor[SCALE]), (float)m->model->config->norm_epsilon);
}

static void output(const Mixing *m) {
    const DeltaShape s = delta_shape(m);
    Device *d = m->model->device;
    finish(m, &s);
    d->matmul_forward(d, m->pass->branch, m->room.buffer[Y], weight(m->model, m->tensor[OUT]), NULL, m->pass->rows,
                      out_width(m->model->config), m->model->config->dim);
}

// ---- backward -------------------------------------------------------------------------------------------------------

// The gradients of raw and rates, from that of the heads' outputs. States are worked out again.
static void rule_backward(const Mixing *m, const DeltaShape *s) {
    const Model *model = m->model;
    const DeltaKernels *k = kernels_of(m);
    Device *d = model->device;
    void *const *room = m->room.buffer;
    const DeltaInput in = delta_input(m);
    const DeltaTokens t = delta_tokens_in_room(m, s);
    const DeltaGradients g = delta_gradients_in_room(m, s);
    bool ranks = model->ranks > 1;
    k->prepare(d, s, &in, &t);
    k->forward(d, s, &t, ranks ? m->kept.buffer[KEPT_INITIAL] : NULL, NULL, room[STATES], room[UPDATES], NULL);
    const float *d_final = ranks ? delta_find_d_final(m, s, &t) : NULL;
    k->backward(d, s, &t, room[STATES], room[UPDATES], room[D_OUT], d_final, room[D_STATES], room[RESIDUALS], &g);

    void *d_convolved = in.taps != NULL ? room[D_CONVOLVED] : room[D_RAW], *edge = NULL;
    k->prepare_backward(d, s, &in, &t, &g, d_convolved, room[D_RATES], gradient(model, m->tensor[DECAY_LOG]),
                        gradient(model, m->tensor[DECAY_BIAS]));
    if (in.taps == NULL) return;
    if (ranks) {
        int64_t part = s->batch * DELTA_EDGE * convolved_width(model->config);
        edge = at(d, room[EDGES], 2 * model->ranks * part);
        delta_gather_edges(m, s, d_convolved, edge, true);
    }
    k->convolve_backward(d, s, &in, room[D_RAW], gradient(model, m->tensor[TAPS]), d_convolved, edge);
}

static void backward(const Mixing *m) {
    const Model *model = m->model;
    const ModelConfig *c = model->config;
    Device *d = model->device;
    const Pass *p = m->pass;
    const DeltaShape s = delta_shape(m);
    void *const *room = m->room.buffer;
    finish(m, &s);
    d->matmul_backward(d, room[D_Y], gradient(model, m->tensor[OUT]), NULL, p->d_residual, room[Y],
                       weight(model, m->tensor[OUT]), p->rows, out_width(c), c->dim, false);
    kernels_of(m)->finish_backward(d, &s, room[D_OUT], room[D_RAW], gradient(model, m->tensor[SCALE]), room[D_Y],
                                   m->kept.buffer[KEPT_OUT], m->kept.buffer[KEPT_RAW], weight(model, m->tensor[SCALE]),
                                   (float)c->norm_epsilon);
    rule_backward(m, &s);
    d->matmul_backward(d, p->d_normed, gradient(model, m->tensor[RAW]), NULL, room[D_RAW], p->normed,
                       weight(model, m->tensor[RAW]), p->rows, c->dim, raw_width(c), false);
    d->matmul_backward(d, p->d_normed, gradient(model, m->tensor[RATES]), NULL, room[D_RATES], p->normed,
                       weight(model, m->tensor[RATES]), p->rows, c->dim, 2 * c->heads, true);
}

// ---- what it costs, and what it can do ------------------------------------------------------------------------------

// Per token and head, multiply-adds: with states D^2, 3 times forward and 6 backward; within a block of 64, where half
// of the pairs count, 32 D, 4 times forward (keys with keys, the system, queries with keys, updates) and 10 backward
// (these three again, the transposed system, S, G, and 2 products by each of them).
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
        return error_usage(err, "%s: heads of %lld on a GPU: give multiples of 16 up to 128, or --device cpu",
                           use->option, (long long)D);
    return true;
}

extern const Mixer mixer_delta;
const Mixer mixer_delta = {.name = "delta",
                           .word = "conv",
                           .check = check,
                           .parameters = parameters,
                           .lay_out_kept = delta_lay_out_kept,
                           .lay_out_room = delta_lay_out_room,
                           .lay_out_cache = delta_lay_out_cache,
                           .scratch_bytes = delta_mixer_scratch_bytes,
                           .mix = mix,
                           .output = output,
                           .backward = backward,
                           .flops = flops,
                           .bytes_sent = bytes_sent};
