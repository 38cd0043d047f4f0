// Linear attention, the Gram matrix of a kernel: P_ij = g^(i - j) phi(q_i) . phi(k_j) for j <= i, its rows divided by
// their sums, so P(X) = P V with Q, K, V = X W^Q, X W^K, X W^V. phi(u) = elu(u) + 1 is positive; no rotary positions.
// Decay 1 is the causal linear transformer of Katharopoulos et al. 2020, decays 1 - 2^(-5 - h) are those of RetNet (Sun
// et al. 2023).
//
//   mix      q, k, v = normed W^T; y_i = sum_j P_ij v_j, by mixer/linear.h's states
//   output   branch = y W^T
//
// --mixer linear: of H <= 8 query heads, head h decays by 1 - 2^(-5 - h); more heads stand evenly between 1 - 2^-5 and
// 1 - 2^-12, in that exponent. linear:G: all by G.
//
// Sharded as LASP-2 (Sun et al. 2025): each chunk's state from nothing goes to all ranks, in one gather, and each goes
// on from the sum of those before its own, decayed by what lies between. Queries are made, and backward the gradient of
// W^O, while states travel.
#include "mixer/linear.h"

#include <math.h>

#include "mixer/kernels.h"
#include "mixer/states.h"

enum {
    QUERIES,
    KEYS_VALUES,
    MIXED,
    INVERSE,
    STARTS
}; // kept: (n, H D), (n, 2 KV D), (n, H D), (B, H, Tl), see linear.h
enum { DECAY, STATES, PAST, D_QUERIES, D_KEYS_VALUES, D_MIXED }; // room: (H), (P, 2, state), (state); as those kept
enum { STATE };                                                  // cache: of one sequence

static int64_t heads_width(const ModelConfig *c) { return c->heads * c->head_dim; }
static int64_t keys_width(const ModelConfig *c) { return c->kv_heads * c->head_dim; }
// Values of a chunk's states.
static int64_t states_size(const ModelConfig *c, int64_t sequences) {
    return sequences * c->heads * linear_state(c->head_dim);
}

// log2 of the decay of head h.
static double log2_decay(const MixerChoice *choice, int64_t heads, int64_t h) {
    if (choice->values > 0) return log2(choice->value[0]);
    double exponent = heads <= 8 ? (double)h : 7.0 * (double)h / (double)(heads - 1);
    return log1p(-exp2(-5 - exponent)) / log(2);
}

static bool check(const MixerUse *use, Error *err) {
    const ModelConfig *c = use->size.config;
    const MixerChoice choice = layer_kind(c, use->size.layer).choice;
    bool on_gpu = use->device == DEVICE_CUDA || use->device == DEVICE_EMULATED;
    if (choice.values > 0 && !(choice.value[0] > 0 && choice.value[0] <= 1))
        error_usage(err, "%s: a decay of %g: give one above 0 and at most 1", use->option, choice.value[0]);
    else if (on_gpu && (c->head_dim % 16 != 0 || c->head_dim > 128))
        error_usage(err, "%s: heads of %lld on a GPU: give multiples of 16 up to 128, or --device cpu", use->option,
                    (long long)c->head_dim);
    else return true;
    return false;
}

static void parameters(ParameterList *list, int64_t l, int64_t *tensor) {
    const ModelConfig *c = list->config;
    tensor[LINEAR_Q] = parameter_add(list, l, MATRIX, heads_width(c), c->dim, "linear.q_proj.weight");
    tensor[LINEAR_K] = parameter_add(list, l, MATRIX, keys_width(c), c->dim, "linear.k_proj.weight");
    tensor[LINEAR_V] = parameter_add(list, l, MATRIX, keys_width(c), c->dim, "linear.v_proj.weight");
    tensor[LINEAR_OUT] = parameter_add(list, l, RESIDUAL_MATRIX, c->dim, heads_width(c), "linear.o_proj.weight");
}

// ---- memory ---------------------------------------------------------------------------------------------------------

static void lay_out_kept(const MixerSize *s, MixerMemory *kept, Arena *arena) {
    const ModelConfig *c = s->config;
    size_t n = (size_t)s->rows, heads = n * (size_t)heads_width(c) * s->element_bytes;
    int64_t windows = linear_windows(s->element_bytes, s->rows / s->sequences) + 1; // of two chunks
    kept->buffer[QUERIES] = arena_take(arena, "activations: queries, keys, values", heads);
    kept->buffer[KEYS_VALUES] =
        arena_take(arena, "activations: queries, keys, values", n * 2 * (size_t)keys_width(c) * s->element_bytes);
    kept->buffer[MIXED] = arena_take(arena, "activations: linear attention", heads);
    kept->buffer[INVERSE] = arena_take(arena, "activations: linear attention", n * (size_t)c->heads * sizeof(float));
    kept->buffer[STARTS] = arena_take(arena, "activations: linear attention",
                                      (size_t)(windows * states_size(c, s->sequences)) * sizeof(float));
}

static void lay_out_room(const MixerSize *s, bool backward, MixerMemory *room, Arena *arena) {
    const ModelConfig *c = s->config;
    size_t row = (size_t)s->rows * s->element_bytes, states = (size_t)states_size(c, s->sequences) * sizeof(float);
    room->buffer[DECAY] = arena_take(arena, "linear attention: states", (size_t)c->heads * sizeof(float));
    if (s->ranks > 1) {
        room->buffer[STATES] = arena_take(arena, "linear attention: states", 2 * (size_t)s->ranks * states);
        room->buffer[PAST] = arena_take(arena, "linear attention: states", states);
    }
    if (!backward) return;
    room->buffer[D_QUERIES] = arena_take(arena, "activation gradients", row * (size_t)heads_width(c));
    room->buffer[D_KEYS_VALUES] = arena_take(arena, "activation gradients", row * 2 * (size_t)keys_width(c));
    room->buffer[D_MIXED] = arena_take(arena, "activation gradients", row * (size_t)heads_width(c));
}

static void lay_out_cache(const MixerSize *s, MixerMemory *cache, Arena *arena) {
    cache->buffer[STATE] =
        arena_take(arena, "linear attention: states", (size_t)states_size(s->config, 1) * sizeof(float));
}

static LinearShape shape_of(const ModelConfig *c, int64_t sequences) {
    return (LinearShape){.sequences = sequences, .heads = c->heads, .kv_heads = c->kv_heads, .head_dim = c->head_dim};
}

static size_t scratch_bytes(const MixerSize *s, int threads) {
    LinearShape shape = shape_of(s->config, s->sequences);
    if (s->element_bytes == sizeof(float)) return linear_scratch_bytes_cpu(&shape, threads);
    return linear_scratch_bytes_cuda(&shape, s->rows / s->sequences);
}

// ---- chunks ---------------------------------------------------------------------------------------------------------

// What the kernels are told of this pass. Uploads the decays.
static LinearShape begin(const Mixing *m) {
    enum { AT_ONCE = 128 };
    const ModelConfig *c = m->model->config;
    Device *d = m->model->device;
    LinearShape shape = shape_of(c, m->pass->sequences);
    for (int64_t first = 0; first < c->heads; first += AT_ONCE) {
        float decay[AT_ONCE];
        int64_t count = c->heads - first < AT_ONCE ? c->heads - first : AT_ONCE;
        for (int64_t i = 0; i < count; i++) decay[i] = (float)log2_decay(&m->choice, c->heads, first + i);
        d->upload(d, (float *)m->room.buffer[DECAY] + first, decay, (size_t)count * sizeof *decay);
    }
    shape.log2_decay = m->room.buffer[DECAY];
    shape.first = m->pass->generation != NULL ? m->pass->generation->first : m->pass->first_visible;
    shape.context = m->pass->generation != NULL ? m->pass->generation->capacity : m->model->context;
    return shape;
}

// Rows from token `first` of each sequence on, from column `column` of `width` on.
static TokenView view(const Mixing *m, void *rows, int64_t first, int64_t width, int64_t column) {
    int64_t tokens = m->pass->rows / m->pass->sequences;
    return (TokenView){at(m->model->device, rows, first * width + column), tokens * width, width};
}

// The tokens of a chunk that begin at row `first` of each sequence's; window: where their starts stand among all.
static LinearTokens tokens_of(const Mixing *m, Chunk chunk, int64_t first, int64_t window) {
    const ModelConfig *c = m->model->config;
    int64_t wide = heads_width(c), keys = keys_width(c), rows = m->pass->rows / m->pass->sequences;
    LinearTokens t = {.chunk = chunk,
                      .q = view(m, m->kept.buffer[QUERIES], first, wide, 0),
                      .k = view(m, m->kept.buffer[KEYS_VALUES], first, 2 * keys, 0),
                      .v = view(m, m->kept.buffer[KEYS_VALUES], first, 2 * keys, keys),
                      .fresh_keys = m->model->ranks == 1 || m->pass->generation != NULL,
                      .y = view(m, m->kept.buffer[MIXED], first, wide, 0),
                      .inverse = {(float *)m->kept.buffer[INVERSE] + first, c->heads * rows, rows},
                      .starts = (float *)m->kept.buffer[STARTS] + window * states_size(c, m->pass->sequences)};
    if (m->room.buffer[D_QUERIES] == NULL) return t;
    t.d_q = view(m, m->room.buffer[D_QUERIES], first, wide, 0);
    t.d_k = view(m, m->room.buffer[D_KEYS_VALUES], first, 2 * keys, 0);
    t.d_v = view(m, m->room.buffer[D_KEYS_VALUES], first, 2 * keys, keys);
    t.d_y = view(m, m->room.buffer[D_MIXED], first, wide, 0);
    return t;
}

static LinearTokens chunk_of(const Mixing *m, int i) {
    const Shard *shard = &m->model->shard;
    int64_t window = i == 0 ? 0 : linear_windows(m->model->device->element_bytes, shard->chunk[0].length);
    return tokens_of(m, shard->chunk[i], shard_offset(shard, shard->chunk[i].start), window);
}

// The place of this rank's own states of chunk i.
static float *own_states(const Mixing *m, int i) {
    return (float *)m->room.buffer[STATES] + states_place(m, i) * states_size(m->model->config, m->pass->sequences);
}

static void send_states(const Mixing *m) {
    size_t bytes = (size_t)states_size(m->model->config, m->pass->sequences) * sizeof(float);
    if (m->model->ranks > 1) states_gather_begin(m, m->room.buffer[STATES], bytes);
}
static void receive_states(const Mixing *m) {
    if (m->model->ranks > 1) states_gather_wait(m);
}

// How far the states of another chunk are from this one, and which tokens tell whether they are of one document.
static LinearPast past_of(const Mixing *m, Chunk mine, int place, bool behind) {
    Chunk its = shard_of(m->model->context, m->model->ranks, place / 2).chunk[place % 2];
    int64_t last = behind ? chunk_end(mine) - 1 : chunk_end(its) - 1, next = behind ? its.start : mine.start;
    return (LinearPast){place, (int32_t)(next - 1 - last), (int32_t)next, (int32_t)last};
}

// The states before my chunk i, or behind it; NULL: there are none.
static const float *past(const Mixing *m, const LinearShape *shape, int i, bool behind) {
    Device *d = m->model->device;
    int place[STATES_MOST], count = states_before(m, i, behind, place, NULL);
    for (int done = 0; done < count; done += LINEAR_PASTS) {
        LinearPast list[LINEAR_PASTS];
        int n = count - done < LINEAR_PASTS ? count - done : LINEAR_PASTS;
        for (int k = 0; k < n; k++) list[k] = past_of(m, m->model->shard.chunk[i], place[done + k], behind);
        d->mixers->linear->combine(d, shape, list, n, m->room.buffer[STATES], m->room.buffer[PAST], done > 0);
    }
    return count > 0 ? m->room.buffer[PAST] : NULL;
}

// ---- forward --------------------------------------------------------------------------------------------------------

static void make_keys_values(const Mixing *m) {
    const Model *model = m->model;
    const ModelConfig *c = model->config;
    Device *d = model->device;
    d->matmul_forward(d, m->kept.buffer[KEYS_VALUES], m->pass->normed, weight(model, m->tensor[LINEAR_K]), NULL,
                      m->pass->rows, c->dim, 2 * keys_width(c));
}

static void make_queries(const Mixing *m) {
    const Model *model = m->model;
    const ModelConfig *c = model->config;
    Device *d = model->device;
    d->matmul_forward(d, m->kept.buffer[QUERIES], m->pass->normed, weight(model, m->tensor[LINEAR_Q]), NULL,
                      m->pass->rows, c->dim, heads_width(c));
}

// One sequence, some tokens at a time: the cache is the state after the last of them.
static void generate(const Mixing *m, const LinearShape *shape) {
    Device *d = m->model->device;
    const Generation *g = m->pass->generation;
    LinearTokens tokens = tokens_of(m, (Chunk){g->length, m->pass->rows}, 0, 0);
    tokens.starts = NULL;
    d->mixers->linear->forward(d, shape, &tokens, g->length == 0 ? NULL : m->cache.buffer[STATE],
                               m->cache.buffer[STATE]);
}

static void mix(const Mixing *m) {
    const Model *model = m->model;
    Device *d = model->device;
    LinearShape shape = begin(m);
    make_keys_values(m);
    if (m->pass->generation != NULL) {
        make_queries(m);
        generate(m, &shape);
        return;
    }
    for (int i = 0; model->ranks > 1 && i < model->shard.count; i++) {
        LinearTokens tokens = chunk_of(m, i);
        d->mixers->linear->own_before(d, &shape, &tokens, own_states(m, i));
    }
    send_states(m);
    make_queries(m);
    receive_states(m);
    for (int i = 0; i < model->shard.count; i++) {
        LinearTokens tokens = chunk_of(m, i);
        d->mixers->linear->forward(d, &shape, &tokens, past(m, &shape, i, false), NULL);
    }
}

static void output(const Mixing *m) {
    const Model *model = m->model;
    model->device->matmul_forward(model->device, m->pass->branch, m->kept.buffer[MIXED],
                                  weight(model, m->tensor[LINEAR_OUT]), NULL, m->pass->rows, heads_width(model->config),
                                  model->config->dim);
}

// ---- backward -------------------------------------------------------------------------------------------------------

// From the gradients of queries, keys and values to those of what they were made of.
static void project_back(const Mixing *m) {
    const Model *model = m->model;
    const ModelConfig *c = model->config;
    Device *d = model->device;
    const Pass *p = m->pass;
    d->matmul_backward(d, p->d_normed, gradient(model, m->tensor[LINEAR_Q]), NULL, m->room.buffer[D_QUERIES], p->normed,
                       weight(model, m->tensor[LINEAR_Q]), p->rows, c->dim, heads_width(c), false);
    d->matmul_backward(d, p->d_normed, gradient(model, m->tensor[LINEAR_K]), NULL, m->room.buffer[D_KEYS_VALUES],
                       p->normed, weight(model, m->tensor[LINEAR_K]), p->rows, c->dim, 2 * keys_width(c), true);
}

static void backward(const Mixing *m) {
    const Model *model = m->model;
    int64_t C = model->config->dim, wide = heads_width(model->config);
    Device *d = model->device;
    const Pass *p = m->pass;
    LinearShape shape = begin(m);
    d->matmul_backward(d, m->room.buffer[D_MIXED], NULL, NULL, p->d_residual, NULL,
                       weight(model, m->tensor[LINEAR_OUT]), p->rows, wide, C, false);
    for (int i = 0; model->ranks > 1 && i < model->shard.count; i++) {
        LinearTokens tokens = chunk_of(m, i);
        d->mixers->linear->own_behind(d, &shape, &tokens, own_states(m, i));
    }
    send_states(m);
    d->matmul_backward(d, NULL, gradient(model, m->tensor[LINEAR_OUT]), NULL, p->d_residual, m->kept.buffer[MIXED],
                       NULL, p->rows, wide, C, false);
    receive_states(m);
    for (int i = 0; i < model->shard.count; i++) {
        LinearTokens tokens = chunk_of(m, i);
        d->mixers->linear->backward(d, &shape, &tokens, past(m, &shape, i, true));
    }
    project_back(m);
}

// ---- costs ----------------------------------------------------------------------------------------------------------

// A head's products, for a token: with a state, D^2 multiply-adds each, 2 forward and 5 backward (one makes the states
// anew); with the keys of its block, D for each of LINEAR_BLOCK / 2 in the mean, 2 forward and 5 backward.
static double flops(const ModelConfig *c, int64_t layer, int64_t context) {
    (void)layer, (void)context;
    double D = (double)c->head_dim;
    return (double)c->heads * 14 * D * (D + 0.5 * LINEAR_BLOCK);
}

// Forward and backward, the states of two chunks to each other rank.
static AttentionBytes bytes_sent(const ModelConfig *c, int64_t layer, const AttentionConfig *sharding, int rank) {
    (void)layer, (void)rank;
    int64_t bytes = 2 * states_size(c, sharding->shape.batch) * (int64_t)sizeof(float) * (sharding->ranks - 1);
    return (AttentionBytes){.forward = bytes, .backward = bytes};
}

const Mixer mixer_linear = {.name = "linear",
                            .most_values = 1,
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
                            .bytes_sent = bytes_sent};
