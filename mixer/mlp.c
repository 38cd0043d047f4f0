// An MLP over positions, as MLP-Mixer has it (Tolstikhin et al. 2021), made causal: y = W^O gelu(W x + b), where
//
//   (W x + b)_i = sum over j <= i of W_ij x_j + b_i
//
// P is W itself: (T', T'), learned, lower triangular, the same for all channels; T' is the model's number of positions.
// So it serves no longer sequences, and shorter ones by its upper left part. Sharded, a rank has the rows i of its
// tokens: it needs every row of x before them, which are gathered (mixer/rows.h), and gives their gradients back.
//
//   mix      pre = W normed + b, the rows of all sequences of a position side by side: (Tl, B, C)
//   output   branch = gelu(pre) W^O^T
//
// W is zero above its diagonal, and stays so: new models have zeros there, which no gradient and no weight decay moves.
#include "mixer/kernels.h"
#include "mixer/rows.h"
#include "mixer/triangle.h"

enum { WEIGHT, WEIGHT_BIAS, OUT }; // tensors: (T', T'); (T'); (C, C)
enum { PRE };                      // kept: (Tl, B, C)
enum { SUMS, MOVED, ACTIVATED };   // room: (Tl, B, C) fp32; (Tl, B, C); (n, C)
enum { ROWS = 3, D_ROWS, TERMS };  // and of all ranks: (T, B, C); (T, B, C) fp32; what rows_scatter works in
enum { BEFORE };                   // cache: (capacity, C), the tokens so far

static void parameters(ParameterList *list, int64_t l, int64_t *tensor) {
    int64_t C = list->config->dim, most = list->config->max_positions;
    tensor[WEIGHT] = parameter_add(list, l, LOWER_TRIANGLE, most, most, "token_mlp.weight");
    tensor[WEIGHT_BIAS] = parameter_add(list, l, BIAS, most, 0, "token_mlp.bias");
    tensor[OUT] = parameter_add(list, l, RESIDUAL_MATRIX, C, C, "token_mlp.o_proj.weight");
}

// ---- memory ---------------------------------------------------------------------------------------------------------

static void lay_out_kept(const MixerSize *s, MixerMemory *kept, Arena *arena) {
    kept->buffer[PRE] = arena_take(arena, "activations: mixers", (size_t)(s->rows * s->config->dim) * s->element_bytes);
}

static void lay_out_room(const MixerSize *s, bool backward, MixerMemory *room, Arena *arena) {
    size_t mine = (size_t)(s->rows * s->config->dim), all = (size_t)(s->context * s->sequences * s->config->dim);
    room->buffer[SUMS] = arena_take(arena, "buffers of one layer", mine * sizeof(float));
    room->buffer[MOVED] = arena_take(arena, "buffers of one layer", mine * s->element_bytes);
    room->buffer[ACTIVATED] = arena_take(arena, "buffers of one layer", mine * s->element_bytes);
    if (!backward) return;
    room->buffer[ROWS] = arena_take(arena, "rows of all ranks", all * s->element_bytes);
    room->buffer[D_ROWS] = arena_take(arena, "rows of all ranks", all * sizeof(float));
    room->buffer[TERMS] = arena_take(arena, "rows of all ranks", (size_t)(s->ranks - 1) * mine * sizeof(float));
}

static void lay_out_cache(const MixerSize *s, MixerMemory *cache, Arena *arena) {
    cache->buffer[BEFORE] =
        arena_take(arena, "key/value cache", (size_t)(s->context * s->config->dim) * s->element_bytes);
}

static size_t scratch_bytes(const MixerSize *s, int threads) {
    return triangle_scratch_bytes(s->element_bytes, threads);
}

// ---- W in blocks: the rows of one of my chunks, the columns of any rank's -------------------------------------------

static const TriangleKernels *kernels_of(const Mixing *m) { return m->model->device->mixers->triangle; }
static int64_t row_size(const Mixing *m) { return m->pass->sequences * m->model->config->dim; }

// A pair of chunks. mine, all: where the first rows of the two stand among my rows and among all.
typedef void PairTask(const Mixing *m, const TriangleBlock *block, int64_t mine, int64_t all);

static void for_pairs_with(const Mixing *m, int rank, PairTask *task) {
    const Model *model = m->model;
    RowsChunk other;
    for (int j = 0; rows_chunk(m, rank, j, &other); j++)
        for (int i = 0; i < model->shard.count; i++) {
            Chunk chunk = model->shard.chunk[i];
            TriangleBlock block = {model->config->max_positions, chunk.start, chunk.length, other.chunk.start,
                                   other.chunk.length,           row_size(m)};
            if (other.chunk.start <= chunk.start) task(m, &block, shard_offset(&model->shard, chunk.start), other.row);
        }
}

// Those among my own rows first, while the others are on their way.
static void for_pairs(const Mixing *m, PairTask *task) {
    const Model *model = m->model;
    for_pairs_with(m, model->rank, task);
    rows_gather_wait(m);
    for (int rank = 0; rank < model->ranks; rank++)
        if (rank != model->rank) for_pairs_with(m, rank, task);
}

static void forward_pair(const Mixing *m, const TriangleBlock *block, int64_t mine, int64_t all) {
    const Model *model = m->model;
    kernels_of(m)->multiply(model->device, block, (float *)m->room.buffer[SUMS] + mine * block->width,
                            weight(model, m->tensor[WEIGHT]),
                            at(model->device, m->room.buffer[ROWS], all * block->width));
}

static void backward_pair(const Mixing *m, const TriangleBlock *block, int64_t mine, int64_t all) {
    const Model *model = m->model;
    Device *d = model->device;
    const void *d_pre = at(d, m->room.buffer[MOVED], mine * block->width);
    kernels_of(m)->gradient(d, block, gradient(model, m->tensor[WEIGHT]), d_pre,
                            at(d, m->room.buffer[ROWS], all * block->width));
    kernels_of(m)->multiply_transposed(d, block, (float *)m->room.buffer[D_ROWS] + all * block->width,
                                       weight(model, m->tensor[WEIGHT]), d_pre);
}

// ---- forward --------------------------------------------------------------------------------------------------------

// pre = sums + b for `rows` of my rows from `row` on, of positions from `start` on.
static void add_bias(const Mixing *m, int64_t row, int64_t rows, int64_t start) {
    const Model *model = m->model;
    Device *d = model->device;
    int64_t width = row_size(m);
    kernels_of(m)->add_bias(d, at(d, m->kept.buffer[PRE], row * width), (float *)m->room.buffer[SUMS] + row * width,
                            weight(model, m->tensor[WEIGHT_BIAS] + start), rows, width);
}

// New rows see those of the cache, a rectangle of W, and each other, a triangle.
static void go_on(const Mixing *m) {
    const Model *model = m->model;
    const void *W = weight(model, m->tensor[WEIGHT]);
    Device *d = model->device;
    int64_t C = model->config->dim, rows = m->pass->rows, length = m->pass->generation->length;
    TriangleBlock before = {model->config->max_positions, length, rows, 0, length, C}, among = before;
    among.column = length, among.columns = rows;
    d->copy(d, at(d, m->cache.buffer[BEFORE], length * C), m->pass->normed, (size_t)(rows * C) * d->element_bytes);
    if (length > 0) kernels_of(m)->multiply(d, &before, m->room.buffer[SUMS], W, m->cache.buffer[BEFORE]);
    kernels_of(m)->multiply(d, &among, m->room.buffer[SUMS], W, m->pass->normed);
    add_bias(m, 0, rows, length);
}

static void mix(const Mixing *m) {
    const Model *model = m->model;
    Device *d = model->device;
    d->zero(d, m->room.buffer[SUMS], (size_t)(m->pass->rows * model->config->dim) * sizeof(float));
    if (m->pass->generation != NULL) {
        go_on(m);
        return;
    }
    rows_gather_begin(m, m->room.buffer[ROWS], m->pass->normed);
    for_pairs(m, forward_pair);
    for (int i = 0; i < model->shard.count; i++) {
        Chunk chunk = model->shard.chunk[i];
        add_bias(m, shard_offset(&model->shard, chunk.start), chunk.length, chunk.start);
    }
}

// gelu(pre) as rows (n, C).
static void activate(const Mixing *m) {
    Device *d = m->model->device;
    d->gelu_forward(d, m->room.buffer[MOVED], m->kept.buffer[PRE], m->pass->rows * m->model->config->dim);
    rows_by_sequence(m, m->room.buffer[ACTIVATED], m->room.buffer[MOVED]);
}

static void output(const Mixing *m) {
    const Model *model = m->model;
    int64_t C = model->config->dim;
    activate(m);
    model->device->matmul_forward(model->device, m->pass->branch, m->room.buffer[ACTIVATED],
                                  weight(model, m->tensor[OUT]), NULL, m->pass->rows, C, C);
}

// ---- backward -------------------------------------------------------------------------------------------------------

// The gradient of pre, in MOVED. d_normed is room on the way.
static void backward_to_pre(const Mixing *m) {
    const Model *model = m->model;
    Device *d = model->device;
    int64_t C = model->config->dim, n = m->pass->rows;
    void *d_activated = m->pass->d_normed, *d_pre = m->room.buffer[MOVED];
    activate(m);
    d->matmul_backward(d, d_activated, gradient(model, m->tensor[OUT]), NULL, m->pass->d_residual,
                       m->room.buffer[ACTIVATED], weight(model, m->tensor[OUT]), n, C, C, false);
    rows_by_position(m, d_pre, d_activated);
    d->gelu_backward(d, d_pre, d_pre, m->kept.buffer[PRE], n * C);
}

static void backward(const Mixing *m) {
    const Model *model = m->model;
    Device *d = model->device;
    rows_gather_begin(m, m->room.buffer[ROWS], m->pass->normed);
    backward_to_pre(m);
    for (int i = 0; i < model->shard.count; i++) {
        Chunk chunk = model->shard.chunk[i];
        int64_t first = shard_offset(&model->shard, chunk.start);
        kernels_of(m)->bias_gradient(d, gradient(model, m->tensor[WEIGHT_BIAS] + chunk.start),
                                     at(d, m->room.buffer[MOVED], first * row_size(m)), chunk.length, row_size(m));
    }
    d->zero(d, m->room.buffer[D_ROWS], (size_t)(model->context * row_size(m)) * sizeof(float));
    for_pairs(m, backward_pair);
    rows_scatter(m, m->pass->d_normed, m->room.buffer[D_ROWS], m->room.buffer[TERMS]);
}

// ---- cost, and what it cannot do ------------------------------------------------------------------------------------

// Three products with (T + 1) / 2 of W's elements in the mean, for each channel.
static double flops(const ModelConfig *c, int64_t layer, int64_t context) {
    (void)layer;
    return 3.0 * ((double)context + 1.0) * (double)c->dim;
}

static AttentionBytes bytes_sent(const ModelConfig *c, int64_t layer, const AttentionConfig *sharding, int rank) {
    int64_t gather = rows_gather_bytes(sharding, c->dim, rank);
    (void)layer;
    return (AttentionBytes){gather, gather + rows_scatter_bytes(sharding, c->dim, rank)};
}

static bool check(const MixerUse *use, Error *err) {
    const MixerSize *s = &use->size;
    if (s->context > s->config->max_positions)
        return error_usage(err, "%s: the model has weights for %lld positions; give --context of at most that",
                           use->option, (long long)s->config->max_positions);
    if (s->documents)
        return error_usage(err,
                           "%s: its weights are of positions and cannot stop at documents; leave out --document-mask",
                           use->option);
    return true;
}

const Mixer mixer_mlp = {.name = "mlp",
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
                         .bounded = true};
