// A token mixer that the program does not have: the causal running mean, in one file, to show what a new one takes.
//
//   mix      mean_i = (x_0 + ... + x_i) / (i + 1), over all ranks' tokens
//   output   branch = mean W^T
//
// P is a lower-triangular matrix of 1 / (i + 1), never stored. Sharded exactly: each rank sums its chunks, all ranks are
// given all sums (2P of them), and each goes on from those of the chunks before its own. Backward is the same from the
// other end: d_x_j = sum over i >= j of d_mean_i / (i + 1). It is a file of the host's memory: for the CPU.
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

enum { OUT };          // tensor: (C, C)
enum { MEAN };         // kept: (n, C)
enum { D_MEAN, SUMS }; // room: (n, C); (P, 2 chunks, B, C)

static void parameters(ParameterList *list, int64_t l, int64_t *tensor) {
    tensor[OUT] = parameter_add(list, l, RESIDUAL_MATRIX, list->config->dim, list->config->dim, "mean.out.weight");
}

static void lay_out_kept(const MixerSize *s, MixerMemory *kept, Arena *arena) {
    kept->buffer[MEAN] = arena_take(arena, "toy: means", (size_t)(s->rows * s->config->dim) * sizeof(float));
}

static void lay_out_room(const MixerSize *s, bool backward, MixerMemory *room, Arena *arena) {
    enum { MOST_RANKS = 16 };
    size_t C = (size_t)s->config->dim;
    room->buffer[SUMS] = arena_take(arena, "toy: sums", 2 * MOST_RANKS * (size_t)s->sequences * C * sizeof(float));
    if (backward) room->buffer[D_MEAN] = arena_take(arena, "toy: gradients", (size_t)s->rows * C * sizeof(float));
}

// to = running sums of from (n, C) over all positions of each sequence, from the first on or (`backwards`) from the last.
static void scan(const Mixing *m, const float *from, float *to, bool backwards) {
    const Model *model = m->model;
    int64_t C = model->config->dim, B = m->pass->sequences, tokens = model->shard.tokens;
    int ranks = model->ranks, me = model->rank;
    size_t part = (size_t)(2 * B * C), bytes[16];
    float *sums = m->room.buffer[SUMS], *mine = sums + (size_t)me * part;
    memset(mine, 0, part * sizeof *mine);
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t c = 0; c < C; c++)
                mine[((t >= model->shard.chunk[0].length) * B + b) * C + c] += from[(b * tokens + t) * C + c];
    for (int rank = 0; rank < ranks; rank++) bytes[rank] = part * sizeof *sums;
    comm_all_gather(model->sequence, sums, bytes);

    float *sum = calloc((size_t)C, sizeof *sum);
    for (int64_t b = 0; b < B; b++) {
        for (int i = 0; i < model->shard.count; i++) {
            Chunk chunk = model->shard.chunk[i];
            memset(sum, 0, (size_t)C * sizeof *sum);
            for (int rank = 0; rank < ranks; rank++) {
                Shard its = shard_of(model->context, ranks, rank);
                for (int j = 0; j < its.count; j++) {
                    bool counts = backwards ? its.chunk[j].start > chunk.start : its.chunk[j].start < chunk.start;
                    for (int64_t c = 0; counts && c < C; c++)
                        sum[c] += sums[(size_t)rank * part + (size_t)((j * B + b) * C + c)];
                }
            }
            int64_t first = shard_offset(&model->shard, chunk.start);
            for (int64_t k = 0; k < chunk.length; k++) {
                int64_t t = backwards ? chunk.length - 1 - k : k;
                for (int64_t c = 0; c < C; c++) {
                    int64_t place = (b * tokens + first + t) * C + c;
                    to[place] = sum[c] += from[place];
                }
            }
        }
    }
    free(sum);
}

// x (n, C) divided, row by row, by 1 + the row's position.
static void divide(const Mixing *m, float *x) {
    int64_t C = m->model->config->dim;
    for (int64_t i = 0; i < m->pass->rows; i++)
        for (int64_t c = 0; c < C; c++) x[i * C + c] /= (float)(1 + m->pass->positions[i]);
}

static void mix(const Mixing *m) {
    scan(m, m->pass->normed, m->kept.buffer[MEAN], false);
    divide(m, m->kept.buffer[MEAN]);
}

static void output(const Mixing *m) {
    Device *d = m->model->device;
    int64_t C = m->model->config->dim;
    d->matmul_forward(d, m->pass->branch, m->kept.buffer[MEAN], weight(m->model, m->tensor[OUT]), NULL, m->pass->rows,
                      C, C);
}

static void backward(const Mixing *m) {
    Device *d = m->model->device;
    int64_t C = m->model->config->dim;
    d->matmul_backward(d, m->room.buffer[D_MEAN], gradient(m->model, m->tensor[OUT]), NULL, m->pass->d_residual,
                       m->kept.buffer[MEAN], weight(m->model, m->tensor[OUT]), m->pass->rows, C, C, false);
    divide(m, m->room.buffer[D_MEAN]);
    scan(m, m->room.buffer[D_MEAN], m->pass->d_normed, true);
}

static const Mixer running_mean = {.name = "mean",
                                   .parameters = parameters,
                                   .lay_out_kept = lay_out_kept,
                                   .lay_out_room = lay_out_room,
                                   .mix = mix,
                                   .output = output,
                                   .backward = backward};

// The one table (mixer/mixers.c), with one row more.
extern const Mixer mixer_attention;
const Mixer *const token_mixers[] = {&mixer_attention, &running_mean, NULL};
