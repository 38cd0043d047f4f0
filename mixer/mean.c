// The causal running mean, the simplest token mixer there is:
//
//   y_i = W^O (x_first(i) + ... + x_i) / (i - first(i) + 1)
//
// P is lower triangular with 1 / (i - first(i) + 1) in row i, and never stored. Its only parameter is W^O (C, C).
// Sharded, each chunk of tokens has its sum for a state: all ranks are given all of them (mixer/states.h), and each
// goes on from those of the chunks before its own. Backward is the same from the other end, since P^T is upper
// triangular.
//
//   mix      mean = P normed      output   branch = mean W^O^T
#include "mixer/kernels.h"
#include "mixer/scan.h"
#include "mixer/states.h"

enum { OUT };                            // tensor: (C, C)
enum { MEAN };                           // kept: (n, C)
enum { BLOCKS, STATES, BEFORE, D_MEAN }; // room: what kernels leave; (P, 2, B, C); (B, C) double; (n, C)
enum { SUM };                            // cache: (C) double, of the tokens before

static void parameters(ParameterList *list, int64_t l, int64_t *tensor) {
    int64_t C = list->config->dim;
    tensor[OUT] = parameter_add(list, l, RESIDUAL_MATRIX, C, C, "mean.o_proj.weight");
}

// ---- memory ---------------------------------------------------------------------------------------------------------

static void lay_out_kept(const MixerSize *s, MixerMemory *kept, Arena *arena) {
    kept->buffer[MEAN] =
        arena_take(arena, "activations: mixers", (size_t)(s->rows * s->config->dim) * s->element_bytes);
}

static void lay_out_room(const MixerSize *s, bool backward, MixerMemory *room, Arena *arena) {
    size_t row = (size_t)s->config->dim * sizeof(float), rows = (size_t)s->sequences;
    size_t blocks = (size_t)scan_blocks(s->rows / s->sequences) + 1; // of two chunks
    room->buffer[BLOCKS] = arena_take(arena, "buffers of one layer", blocks * rows * row);
    room->buffer[STATES] = arena_take(arena, "states of mixers", 2 * (size_t)s->ranks * rows * row);
    room->buffer[BEFORE] = arena_take(arena, "states of mixers", rows * (size_t)s->config->dim * sizeof(double));
    if (backward)
        room->buffer[D_MEAN] =
            arena_take(arena, "activation gradients", (size_t)(s->rows * s->config->dim) * s->element_bytes);
}

static void lay_out_cache(const MixerSize *s, MixerMemory *cache, Arena *arena) {
    cache->buffer[SUM] = arena_take(arena, "states of mixers", (size_t)s->config->dim * sizeof(double));
}

// ---- the scan over all ranks' tokens --------------------------------------------------------------------------------

static const ScanKernels *kernels_of(const Mixing *m) { return m->model->device->mixers->scan; }
static int64_t state_size(const Mixing *m) { return m->pass->sequences * m->model->config->dim; }
static float *state_at(const Mixing *m, int place) { return (float *)m->room.buffer[STATES] + place * state_size(m); }

static Scan scan_of(const Mixing *m, int i, bool backward) {
    const Shard *shard = &m->model->shard;
    return (Scan){.sequences = m->pass->sequences,
                  .channels = m->model->config->dim,
                  .tokens = shard->tokens,
                  .row = i == 0 ? 0 : shard->chunk[0].length,
                  .length = shard->chunk[i].length,
                  .start = shard->chunk[i].start,
                  .first = m->pass->first_visible,
                  .context = m->model->context,
                  .backward = backward};
}

// The sums within the second chunk's blocks stand behind those of the first.
static float *blocks_of(const Mixing *m, const Scan *s) {
    return (float *)m->room.buffer[BLOCKS] + (s->row == 0 ? 0 : scan_blocks(s->row) * state_size(m));
}

static void from_the_others(const Mixing *m, const Scan *s, int i) {
    int place[STATES_MOST];
    int64_t edge[STATES_MOST], length[STATES_MOST], at = s->backward ? m->model->context : 0;
    int count = states_before(m, i, s->backward, place, length);
    for (int k = 0; k < count; k++) edge[k] = at += s->backward ? -length[k] : length[k];
    kernels_of(m)->gather(m->model->device, s, m->room.buffer[BEFORE], m->room.buffer[STATES], state_size(m), place,
                          edge, count);
}

// out (n, C) = P x, or (backward) P^T x.
static void scan(const Mixing *m, void *out, const void *x, bool backward) {
    const ScanKernels *kernels = kernels_of(m);
    Device *d = m->model->device;
    for (int i = 0; i < m->model->shard.count; i++) {
        Scan s = scan_of(m, i, backward);
        kernels->sums(d, &s, blocks_of(m, &s), state_at(m, states_place(m, i)), x);
    }
    if (m->model->ranks > 1) states_gather(m, m->room.buffer[STATES], (size_t)state_size(m) * sizeof(float));
    for (int i = 0; i < m->model->shard.count; i++) {
        Scan s = scan_of(m, i, backward);
        from_the_others(m, &s, i);
        kernels->scan(d, &s, out, x, blocks_of(m, &s), m->room.buffer[BEFORE]);
    }
}

// ---- generation: the sum of the tokens before -----------------------------------------------------------------------

static void go_on(const Mixing *m) {
    const Generation *g = m->pass->generation;
    const ScanKernels *kernels = kernels_of(m);
    Device *d = m->model->device;
    int64_t C = m->model->config->dim, rows = m->pass->rows;
    Scan s = {1, C, rows, 0, rows, g->length, g->first, g->capacity, false};
    if (g->length == 0) d->zero(d, m->cache.buffer[SUM], (size_t)C * sizeof(double));
    kernels->sums(d, &s, m->room.buffer[BLOCKS], state_at(m, 0), m->pass->normed);
    kernels->scan(d, &s, m->kept.buffer[MEAN], m->pass->normed, m->room.buffer[BLOCKS], m->cache.buffer[SUM]);
    kernels->advance(d, &s, m->cache.buffer[SUM], state_at(m, 0));
}

// ---- forward and backward -------------------------------------------------------------------------------------------

static void mix(const Mixing *m) {
    if (m->pass->generation != NULL) go_on(m);
    else scan(m, m->kept.buffer[MEAN], m->pass->normed, false);
}

static void output(const Mixing *m) {
    const Model *model = m->model;
    int64_t C = model->config->dim;
    model->device->matmul_forward(model->device, m->pass->branch, m->kept.buffer[MEAN], weight(model, m->tensor[OUT]),
                                  NULL, m->pass->rows, C, C);
}

static void backward(const Mixing *m) {
    const Model *model = m->model;
    int64_t C = model->config->dim;
    model->device->matmul_backward(model->device, m->room.buffer[D_MEAN], gradient(model, m->tensor[OUT]), NULL,
                                   m->pass->d_residual, m->kept.buffer[MEAN], weight(model, m->tensor[OUT]),
                                   m->pass->rows, C, C, false);
    scan(m, m->pass->d_normed, m->room.buffer[D_MEAN], true);
}

// ---- cost -----------------------------------------------------------------------------------------------------------

// An addition and a product for each channel, forward and backward.
static double flops(const ModelConfig *c, int64_t layer, int64_t context) {
    (void)layer, (void)context;
    return 4.0 * (double)c->dim;
}

// Two states to each of the others.
static AttentionBytes bytes_sent(const ModelConfig *c, int64_t layer, const AttentionConfig *sharding, int rank) {
    int64_t bytes = (sharding->ranks - 1) * 2 * sharding->shape.batch * c->dim * (int64_t)sizeof(float);
    (void)layer, (void)rank;
    return (AttentionBytes){bytes, bytes};
}

static bool check(const MixerUse *use, Error *err) {
    if (use->size.kernels == NULL || use->size.kernels->scan != NULL) return true;
    return error_usage(err, "%s: %s has no kernels for it; choose another mixer or --device", use->option,
                       device_kind_name(use->device));
}

const Mixer mixer_mean = {.name = "mean",
                          .check = check,
                          .parameters = parameters,
                          .lay_out_kept = lay_out_kept,
                          .lay_out_room = lay_out_room,
                          .lay_out_cache = lay_out_cache,
                          .mix = mix,
                          .output = output,
                          .backward = backward,
                          .flops = flops,
                          .bytes_sent = bytes_sent,
                          .generates = true};
