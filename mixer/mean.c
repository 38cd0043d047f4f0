// The causal running mean, the simplest token mixer there is:
//
//   y_i = W^O (x_first(i) + ... + x_i) / (i - first(i) + 1)
//
// P is lower triangular with 1 / (i - first(i) + 1) in row i, and never stored; first(i) is 0, or where i's document
// begins. The only parameter is W^O (C, C). Backward multiplies by P^T, which is the same from the other end.
//
//   mix      mean = P normed
//   output   branch = mean W^O^T
#include "mixer/sums.h"

enum { OUT };                   // tensor: (C, C)
enum { MEAN };                  // kept: (n, C)
enum { D_MEAN = SUMS_BUFFERS }; // room, behind that of sums: (n, C)
enum { SUM };                   // cache: the sum of the tokens before

static void parameters(ParameterList *list, int64_t l, int64_t *tensor) {
    int64_t C = list->config->dim;
    tensor[OUT] = parameter_add(list, l, RESIDUAL_MATRIX, C, C, "mean.o_proj.weight");
}

static void lay_out_kept(const MixerSize *s, MixerMemory *kept, Arena *arena) {
    size_t bytes = (size_t)(s->rows * s->config->dim) * s->element_bytes;
    kept->buffer[MEAN] = arena_take(arena, "activations: mixers", bytes);
}

static void lay_out_room(const MixerSize *s, bool backward, MixerMemory *room, Arena *arena) {
    size_t bytes = (size_t)(s->rows * s->config->dim) * s->element_bytes;
    sums_lay_out_room(s, room, arena);
    if (backward) room->buffer[D_MEAN] = arena_take(arena, "activation gradients", bytes);
}

static void lay_out_cache(const MixerSize *s, MixerMemory *cache, Arena *arena) {
    cache->buffer[SUM] = arena_take(arena, "states of mixers", sums_cache_bytes(s));
}

static void mix(const Mixing *m) {
    if (m->pass->generation != NULL) sums_go_on(m, m->cache.buffer[SUM], m->kept.buffer[MEAN], m->pass->normed);
    else sums_mean(m, m->kept.buffer[MEAN], m->pass->normed, false);
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
    void *d_mean = m->room.buffer[D_MEAN];
    model->device->matmul_backward(model->device, d_mean, gradient(model, m->tensor[OUT]), NULL, m->pass->d_residual,
                                   m->kept.buffer[MEAN], weight(model, m->tensor[OUT]), m->pass->rows, C, C, false);
    sums_mean(m, m->pass->d_normed, d_mean, true);
}

// An addition and a product for each channel, forward and backward.
static double flops(const ModelConfig *c, int64_t layer, int64_t context) {
    (void)layer, (void)context;
    return 4.0 * (double)c->dim;
}

static AttentionBytes bytes_sent(const ModelConfig *c, int64_t layer, const AttentionConfig *sharding, int rank) {
    int64_t bytes = sums_bytes(sharding, c->dim);
    (void)layer, (void)rank;
    return (AttentionBytes){bytes, bytes};
}

const Mixer mixer_mean = {.name = "mean",
                          .parameters = parameters,
                          .lay_out_kept = lay_out_kept,
                          .lay_out_room = lay_out_room,
                          .lay_out_cache = lay_out_cache,
                          .mix = mix,
                          .output = output,
                          .backward = backward,
                          .flops = flops,
                          .bytes_sent = bytes_sent};
