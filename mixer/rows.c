// The gather of rows, and the sums of their gradients.
#include "mixer/rows.h"

static int64_t row_size(const Mixing *m) { return m->pass->sequences * m->model->config->dim; }

// The first row of a rank's among all.
static int64_t first_row(const Mixing *m, int rank) {
    int64_t sum = 0;
    for (int r = 0; r < rank; r++) sum += shard_of(m->model->context, m->model->ranks, r).tokens;
    return sum;
}

bool rows_chunk(const Mixing *m, int rank, int i, RowsChunk *chunk) {
    Shard shard = shard_of(m->model->context, m->model->ranks, rank);
    if (i >= shard.count) return false;
    *chunk = (RowsChunk){shard.chunk[i], first_row(m, rank) + (i > 0 ? shard.chunk[0].length : 0)};
    return true;
}

static void move(const Mixing *m, void *by_position, void *by_sequence, bool back) {
    Device *d = m->model->device;
    int64_t B = m->pass->sequences, C = m->model->config->dim, tokens = m->pass->rows / B;
    size_t row = (size_t)C * d->element_bytes;
    for (int64_t b = 0; b < B; b++) {
        void *there = at(d, by_position, b * C), *here = at(d, by_sequence, b * tokens * C);
        if (back) d->copy_strided(d, here, (int64_t)row, there, B * (int64_t)row, tokens, row);
        else d->copy_strided(d, there, B * (int64_t)row, here, (int64_t)row, tokens, row);
    }
}

void rows_by_position(const Mixing *m, void *to, const void *from) { move(m, to, (void *)from, false); }
void rows_by_sequence(const Mixing *m, void *to, const void *from) { move(m, (void *)from, to, true); }

void rows_gather_begin(const Mixing *m, void *all, const void *mine) {
    const Model *model = m->model;
    size_t bytes[SHARD_MOST_RANKS];
    for (int r = 0; r < model->ranks; r++)
        bytes[r] =
            (size_t)(shard_of(model->context, model->ranks, r).tokens * row_size(m)) * model->device->element_bytes;
    rows_by_position(m, at(model->device, all, first_row(m, model->rank) * row_size(m)), mine);
    if (model->ranks > 1) comm_all_gather_begin(model->sequence, all, bytes, model->requests);
}

void rows_gather_wait(const Mixing *m) {
    if (m->model->ranks > 1) comm_all_gather_wait(m->model->sequence, m->model->requests);
}

void rows_scatter(const Mixing *m, void *mine, float *all, float *room) {
    const Model *model = m->model;
    Device *d = model->device;
    int64_t counts[SHARD_MOST_RANKS], C = model->config->dim, tokens = model->shard.tokens, B = m->pass->sequences;
    float *sums = all + first_row(m, model->rank) * row_size(m);
    for (int r = 0; r < model->ranks; r++) counts[r] = shard_of(model->context, model->ranks, r).tokens * row_size(m);
    if (model->ranks > 1) {
        comm_reduce_scatter_begin(model->sequence, all, counts, room, model->requests);
        comm_reduce_scatter_wait(model->sequence, sums, all, counts, room, model->requests);
    }
    for (int64_t b = 0; b < B; b++)
        d->to_storage_strided(d, at(d, mine, b * tokens * C), C, sums + b * C, B * C, tokens, C);
}

int64_t rows_gather_bytes(const AttentionConfig *sharding, int64_t width, int rank) {
    int64_t mine = shard_of(sharding->context, sharding->ranks, rank).tokens;
    return (sharding->ranks - 1) * mine * sharding->shape.batch * width * (int64_t)sharding->element_bytes;
}

int64_t rows_scatter_bytes(const AttentionConfig *sharding, int64_t width, int rank) {
    int64_t others = sharding->context - shard_of(sharding->context, sharding->ranks, rank).tokens;
    return others * sharding->shape.batch * width * (int64_t)sizeof(float);
}
