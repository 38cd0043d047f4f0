// The memory of the mixer delta: what it keeps of a layer, what all layers share, and how kernels are given both.
#include "mixer/delta_parts.h"

// ---- memory ---------------------------------------------------------------------------------------------------------

// Counts of elements. Blocks: as many as there may be, a last one of each chunk that is not whole.
typedef struct Sizes {
    size_t n, B, H, KV, W, E, blocks;   // blocks: B N
    size_t states, block_rows, carried; // (B, H, N, W, W), (B, N, 64), (2, B, H, W, W)
    size_t edge;                        // (2, B, 3, E)
} Sizes;

static Sizes sizes_of(const MixerSize *s) {
    const ModelConfig *c = s->config;
    Sizes z = {.n = (size_t)s->rows,
               .B = (size_t)s->sequences,
               .H = (size_t)c->heads,
               .KV = (size_t)c->kv_heads,
               .W = (size_t)delta_width(c->head_dim),
               .E = (size_t)convolved_width(c)};
    z.blocks = z.B * (size_t)(s->rows / s->sequences / DELTA_BLOCK + (s->ranks > 1 ? 2 : 1));
    z.block_rows = z.blocks * DELTA_BLOCK;
    z.states = z.blocks * z.H * z.W * z.W;
    z.carried = 2 * z.B * z.H * z.W * z.W;
    z.edge = 2 * z.B * DELTA_EDGE * z.E;
    return z;
}

static bool has_taps(const MixerSize *s) { return layer_kind(s->config, s->layer).choice.word; }

void delta_lay_out_kept(const MixerSize *s, MixerMemory *kept, Arena *arena) {
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

void delta_lay_out_room(const MixerSize *s, bool backward, MixerMemory *room, Arena *arena) {
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

void delta_lay_out_cache(const MixerSize *s, MixerMemory *cache, Arena *arena) {
    const Sizes z = sizes_of(s);
    cache->buffer[CACHE_STATE] = arena_take(arena, "state of the tokens before", z.H * z.W * z.W * sizeof(float));
    if (has_taps(s))
        cache->buffer[CACHE_EDGE] =
            arena_take(arena, "state of the tokens before", DELTA_EDGE * z.E * s->element_bytes);
}

size_t delta_mixer_scratch_bytes(const MixerSize *s, int threads) {
    const ModelConfig *c = s->config;
    int64_t tokens = s->rows / s->sequences;
    const DeltaShape most = {s->sequences, c->heads, c->kv_heads, c->head_dim, 2, {{0, tokens}, {tokens, 1}},
                             NULL,         tokens};
    return s->element_bytes == sizeof(float) ? delta_scratch_bytes_cpu(&most, threads)
                                             : delta_scratch_bytes_cuda(&most);
}

// ---- what the kernels are given -------------------------------------------------------------------------------------

DeltaShape delta_shape(const Mixing *m) {
    const ModelConfig *c = m->model->config;
    const Generation *g = m->pass->generation;
    DeltaShape s = {
        .batch = m->pass->sequences, .heads = c->heads, .kv_heads = c->kv_heads, .head_dim = c->head_dim, .chunks = 1};
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

DeltaInput delta_input(const Mixing *m) {
    return (DeltaInput){.raw = m->kept.buffer[KEPT_RAW],
                        .rates = m->kept.buffer[KEPT_RATES],
                        .decay_log = weight(m->model, m->tensor[DECAY_LOG]),
                        .decay_bias = weight(m->model, m->tensor[DECAY_BIAS]),
                        .taps = weight(m->model, m->tensor[TAPS]),
                        .edge = m->pass->generation != NULL ? m->cache.buffer[CACHE_EDGE] : m->kept.buffer[KEPT_EDGE]};
}

DeltaTokens delta_tokens_in_room(const Mixing *m, const DeltaShape *s) {
    const Device *d = m->model->device;
    int64_t rows = s->batch * delta_blocks(s) * DELTA_BLOCK, W = delta_width(s->head_dim);
    void *q = m->room.buffer[TOKENS], *k = at(d, q, rows * s->heads * W);
    float *beta = m->room.buffer[DECAYS], *log_decay = beta + rows * s->heads;
    return (DeltaTokens){q,    k,         at(d, k, rows * s->kv_heads * W),
                         beta, log_decay, (int32_t *)(log_decay + rows * s->heads)};
}

DeltaGradients delta_gradients_in_room(const Mixing *m, const DeltaShape *s) {
    const Device *d = m->model->device;
    int64_t rows = s->batch * delta_blocks(s) * DELTA_BLOCK * s->heads, W = delta_width(s->head_dim);
    void *d_q = m->room.buffer[D_TOKENS], *d_k = at(d, d_q, rows * W);
    float *d_beta = m->room.buffer[D_DECAYS];
    return (DeltaGradients){d_q, d_k, at(d, d_k, rows * W), d_beta, d_beta + rows};
}
