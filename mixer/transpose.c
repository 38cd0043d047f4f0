// An all-to-all between tokens and channels, packed and unpacked by strided copies.
#include "mixer/transpose.h"

#include "sequence/sharding.h"

Channels channels_of(int64_t C, int ranks, int rank) {
    int64_t first = C * rank / ranks;
    return (Channels){first, C * (rank + 1) / ranks - first, C};
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

size_t transpose_room_bytes(const MixerSize *s) {
    int64_t C = s->config->dim, mine = channels_of(C, s->ranks, s->rank).count;
    if (s->ranks == 1) return 0;
    return (size_t)larger(s->rows * C, s->sequences * s->context * mine) * s->element_bytes;
}

TransposeBytes transpose_bytes_sent(int64_t C, int64_t B, const AttentionConfig *sharding, int rank) {
    int64_t tokens = shard_of(sharding->context, sharding->ranks, rank).tokens,
            each = B * (int64_t)sharding->element_bytes;
    int64_t mine = channels_of(C, sharding->ranks, rank).count;
    return (TransposeBytes){each * tokens * (C - mine), each * (sharding->context - tokens) * mine};
}

// Bytes of the messages between this rank and all others: of their channels and its tokens, and of its channels and
// their tokens.
typedef struct Messages {
    size_t theirs[SHARD_MOST_RANKS], mine[SHARD_MOST_RANKS];
} Messages;

static Messages messages_of(const Mixing *m, int64_t B) {
    const Model *model = m->model;
    int64_t C = model->config->dim, n = B * model->shard.tokens, mine = channels_of(C, model->ranks, model->rank).count;
    Messages bytes;
    for (int rank = 0; rank < model->ranks; rank++) {
        int64_t channels = channels_of(C, model->ranks, rank).count;
        bytes.theirs[rank] = (size_t)(n * channels) * model->device->element_bytes;
        bytes.mine[rank] =
            (size_t)(B * shard_of(model->context, model->ranks, rank).tokens * mine) * model->device->element_bytes;
    }
    return bytes;
}

// Rows (B Tl, C) and messages of each rank's channels, one after the other: into them, or (`back`) from them.
static void move_columns(const Mixing *m, int64_t B, void *rows, void *messages, bool back) {
    const Model *model = m->model;
    Device *d = model->device;
    int64_t C = model->config->dim, n = B * model->shard.tokens, element = (int64_t)d->element_bytes;
    for (int rank = 0; rank < model->ranks; rank++) {
        Channels its = channels_of(C, model->ranks, rank);
        void *in_rows = at(d, rows, its.first), *packed = at(d, messages, n * its.first);
        int64_t stride = C * element, width = its.count * element;
        if (back) d->copy_strided(d, in_rows, stride, packed, width, n, (size_t)width);
        else d->copy_strided(d, packed, width, in_rows, stride, n, (size_t)width);
    }
}

// Messages of each rank's tokens, one after the other, and all tokens (B, T, my channels): into these, or (`back`) from
// them.
static void move_tokens(const Mixing *m, int64_t B, void *tokens, void *messages, bool back) {
    const Model *model = m->model;
    Device *d = model->device;
    int64_t T = model->context;
    int64_t mine = channels_of(model->config->dim, model->ranks, model->rank).count, before = 0;
    int64_t row = mine * (int64_t)d->element_bytes;
    for (int rank = 0; rank < model->ranks; rank++) {
        Shard its = shard_of(T, model->ranks, rank);
        for (int i = 0; i < its.count; i++) {
            void *packed = at(d, messages, (before + shard_offset(&its, its.chunk[i].start)) * mine);
            void *placed = at(d, tokens, its.chunk[i].start * mine);
            size_t bytes = (size_t)(its.chunk[i].length * row);
            if (back) d->copy_strided(d, packed, its.tokens * row, placed, T * row, B, bytes);
            else d->copy_strided(d, placed, T * row, packed, its.tokens * row, B, bytes);
        }
        before += B * its.tokens;
    }
}

static void copy_alone(const Mixing *m, int64_t B, void *to, const void *from) {
    Device *d = m->model->device;
    if (to != from) d->copy(d, to, from, (size_t)(B * m->model->context * m->model->config->dim) * d->element_bytes);
}

void tokens_to_channels_begin(const Mixing *m, int64_t B, void *to, const void *from, void *const room[2]) {
    const Model *model = m->model;
    if (model->ranks == 1) {
        copy_alone(m, B, to, from);
        return;
    }
    Messages bytes = messages_of(m, B);
    move_columns(m, B, (void *)from, room[0], false);
    comm_all_to_all_begin(model->sequence, room[0], bytes.theirs, room[1], bytes.mine, model->requests);
}

void tokens_to_channels_end(const Mixing *m, int64_t B, void *to, void *const room[2]) {
    if (m->model->ranks == 1) return;
    comm_wait_all(m->model->sequence, m->model->requests, m->model->ranks);
    move_tokens(m, B, to, room[1], false);
}

void channels_to_tokens(const Mixing *m, int64_t B, void *to, const void *from, void *const room[2]) {
    const Model *model = m->model;
    if (model->ranks == 1) {
        copy_alone(m, B, to, from);
        return;
    }
    Messages bytes = messages_of(m, B);
    move_tokens(m, B, (void *)from, room[0], true);
    comm_all_to_all_begin(model->sequence, room[0], bytes.mine, room[1], bytes.theirs, model->requests);
    comm_wait_all(model->sequence, model->requests, model->ranks);
    move_columns(m, B, to, room[1], true);
}
