// Running sums over all ranks' tokens: a scan of each chunk, and what lies between the chunks.
#include "mixer/sums.h"

#include "mixer/kernels.h"
#include "mixer/scan.h"
#include "mixer/states.h"

enum { BLOCKS, STATES, BEFORE }; // room: what a scan leaves for itself; (P, 2, B, C); (B, C), double

void sums_lay_out_room(const MixerSize *s, MixerMemory *room, Arena *arena) {
    size_t of_all = (size_t)(s->sequences * s->config->dim), ranks = (size_t)s->ranks;
    size_t blocks = (size_t)scan_blocks(s->rows / s->sequences) + 1; // of two chunks
    room->buffer[BLOCKS] = arena_take(arena, "buffers of one layer", blocks * of_all * sizeof(float));
    room->buffer[STATES] = arena_take(arena, "states of mixers", 2 * ranks * of_all * sizeof(float));
    room->buffer[BEFORE] = arena_take(arena, "states of mixers", of_all * sizeof(double));
}

size_t sums_cache_bytes(const MixerSize *s) { return (size_t)s->config->dim * sizeof(double); }

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

// Those of the second chunk stand behind those of the first.
static float *blocks_of(const Mixing *m, const Scan *s) {
    return (float *)m->room.buffer[BLOCKS] + (s->row == 0 ? 0 : scan_blocks(s->row) * state_size(m));
}

// The sum of the other chunks that chunk i goes on from. Edge: where each of them ends towards it.
static double *gather_before(const Mixing *m, const Scan *s, int i) {
    int place[STATES_MOST];
    int64_t edge[STATES_MOST], length[STATES_MOST], at = s->backward ? m->model->context : 0;
    int count = states_before(m, i, s->backward, place, length);
    for (int k = 0; k < count; k++) edge[k] = at += s->backward ? -length[k] : length[k];
    kernels_of(m)->gather(m->model->device, s, m->room.buffer[BEFORE], m->room.buffer[STATES], state_size(m), place,
                          edge, count);
    return m->room.buffer[BEFORE];
}

void sums_mean(const Mixing *m, void *out, const void *x, bool transposed) {
    const ScanKernels *kernels = kernels_of(m);
    Device *d = m->model->device;
    for (int i = 0; i < m->model->shard.count; i++) {
        Scan s = scan_of(m, i, transposed);
        kernels->sums(d, &s, blocks_of(m, &s), state_at(m, states_place(m, i)), x);
    }
    if (m->model->ranks > 1) states_gather(m, m->room.buffer[STATES], (size_t)state_size(m) * sizeof(float));
    for (int i = 0; i < m->model->shard.count; i++) {
        Scan s = scan_of(m, i, transposed);
        kernels->scan(d, &s, out, x, blocks_of(m, &s), gather_before(m, &s, i));
    }
}

void sums_go_on(const Mixing *m, void *cache, void *out, const void *x) {
    const Generation *g = m->pass->generation;
    const ScanKernels *kernels = kernels_of(m);
    Device *d = m->model->device;
    int64_t C = m->model->config->dim, rows = m->pass->rows;
    Scan s = {1, C, rows, 0, rows, g->length, g->first, g->capacity, false};
    if (g->length == 0) d->zero(d, cache, (size_t)C * sizeof(double));
    kernels->sums(d, &s, m->room.buffer[BLOCKS], state_at(m, 0), x);
    kernels->scan(d, &s, out, x, m->room.buffer[BLOCKS], cache);
    kernels->advance(d, &s, cache, state_at(m, 0));
}

// Two states to each of the others.
int64_t sums_bytes(const AttentionConfig *sharding, int64_t width) {
    return (sharding->ranks - 1) * 2 * sharding->shape.batch * width * (int64_t)sizeof(float);
}
