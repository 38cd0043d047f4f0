// The gated delta rule on the CPU, forward. Formulas: mixer/delta.h.
#include "mixer/cpu/delta.h"

#include <string.h>

#include "base/cpu_features.h"
#include "layers/cpu/parallel.h"

extern const DeltaTiles delta_tiles_portable, delta_tiles_avx2, delta_tiles_avx512;
extern const DeltaTokenKernels delta_tokens_portable, delta_tokens_avx2, delta_tokens_avx512;
extern const DeltaFinishKernels delta_finish_portable, delta_finish_avx2, delta_finish_avx512;

#if defined(__x86_64__)
#define CHOOSE(name)                                                                                                   \
    (simd_level() == SIMD_AVX512 ? &name##_avx512 : simd_level() == SIMD_AVX2 ? &name##_avx2 : &name##_portable)
#else
#define CHOOSE(name) (&name##_portable)
#endif

const DeltaTiles *delta_tiles(void) { return CHOOSE(delta_tiles); }

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- parts of a block -----------------------------------------------------------------------------------------------

// How many tokens block n has.
static int64_t block_rows(const DeltaShape *s, int64_t n) {
    int64_t early = delta_chunk_blocks(s, 0), chunk = n >= early;
    int64_t left = s->chunk[chunk].length - (n - chunk * early) * DELTA_BLOCK;
    return left < DELTA_BLOCK ? left : DELTA_BLOCK;
}

DeltaBlock delta_block(const DeltaShape *s, const DeltaTokens *t, int64_t b, int64_t h, int64_t n, DeltaRoom *room) {
    int64_t N = delta_blocks(s), W = delta_width(s->head_dim), group = h / (s->heads / s->kv_heads);
    int64_t index = (b * s->heads + h) * N + n, shared = (b * s->kv_heads + group) * N + n;
    DeltaBlock block = {.tile = tile_kernels(),
                        .delta = delta_tiles(),
                        .rows = round_up_to_strip(block_rows(s, n)),
                        .W = W,
                        .q = {(float *)t->q + index * DELTA_BLOCK * W, W},
                        .k = {(float *)t->k + shared * DELTA_BLOCK * W, W},
                        .v = {(float *)t->v + shared * DELTA_BLOCK * W, W},
                        .beta = t->beta + index * DELTA_BLOCK,
                        .begin = t->begin + (b * N + n) * DELTA_BLOCK,
                        .decay = delta_take(room, DELTA_BLOCK, DELTA_BLOCK),
                        .carry = delta_take(room, 1, DELTA_BLOCK).data};
    double sum[DELTA_BLOCK], running = 0;
    for (int64_t i = 0; i < block.rows; i++) sum[i] = running += t->log_decay[index * DELTA_BLOCK + i];
    block.delta->decay(block.decay, block.carry, block.rows, sum, block.begin);
    block.rest = block.decay.data + (block.rows - 1) * block.decay.stride;
    block.kt = delta_take(room, W, DELTA_BLOCK);
    block.tile->pack_transposed(block.kt, block.rows, block.k, block.rows, W, 1.0f);
    return block;
}

void delta_scores(const DeltaBlock *block, Rows a, Rows bt, Rows c) {
    for (int64_t i = 0; i < block->rows; i += STRIP)
        block->tile->product(STRIP, i + STRIP, block->W, plain(rows_from(a, i, 0)), bt, rows_from(c, i, 0), OVERWRITE);
}

void delta_lower(const DeltaBlock *block, Rows lower, bool transpose, Rows b, Rows c, int64_t columns, Update update) {
    const int64_t rows = block->rows;
    for (int64_t i = 0; i < rows; i += STRIP) {
        if (transpose)
            block->tile->product(STRIP, columns, rows - i, transposed(rows_from(lower, i, i)), rows_from(b, i, 0),
                                 rows_from(c, i, 0), update);
        else
            block->tile->product(STRIP, columns, i + STRIP, plain(rows_from(lower, i, 0)), b, rows_from(c, i, 0),
                                 update);
    }
}

void delta_system(const DeltaBlock *block, Rows a) {
    delta_scores(block, block->k, block->kt, a);
    block->delta->weigh(a, block->decay, block->rows, block->beta, false);
}

// Strip after strip: what the strips solved before contribute is a product, and within the strip it is a small system.
void delta_solve(const DeltaBlock *block, Rows a, Rows x, int64_t columns, bool transpose) {
    int64_t rows = block->rows;
    float negative[STRIP * DELTA_BLOCK]; // - the strip's part of a, whose products are then added
    Rows part = {negative, transpose ? STRIP : DELTA_BLOCK};
    for (int64_t step = 0; step < rows; step += STRIP) {
        int64_t i = transpose ? rows - STRIP - step : step;
        Rows strip = rows_from(x, i, 0);
        if (!transpose) {
            for (int64_t r = 0; r < STRIP; r++)
                for (int64_t j = 0; j < i; j++) negative[r * DELTA_BLOCK + j] = -a.data[(i + r) * a.stride + j];
            if (i > 0) block->tile->product(STRIP, columns, i, plain(part), x, strip, ADD);
        } else {
            int64_t behind = rows - i - STRIP;
            for (int64_t j = 0; j < behind; j++)
                for (int64_t r = 0; r < STRIP; r++)
                    negative[j * STRIP + r] = -a.data[(i + STRIP + j) * a.stride + i + r];
            if (behind > 0)
                block->tile->product(STRIP, columns, behind, transposed(part), rows_from(x, i + STRIP, 0), strip, ADD);
        }
        block->delta->solve(strip, columns, rows_from(a, i, i), transpose);
    }
}

// ---- one block ------------------------------------------------------------------------------------------------------

// What all states that enter the block are advanced with: the system, and diag(e) K.
typedef struct Advance {
    Rows a, keys;
} Advance;

static Advance advance_of(const DeltaBlock *block, DeltaRoom *room) {
    Advance with = {delta_take(room, DELTA_BLOCK, DELTA_BLOCK), delta_take(room, DELTA_BLOCK, block->W)};
    delta_system(block, with.a);
    block->delta->scale(with.keys, block->k, block->rows, block->W, block->rest);
    return with;
}

// U into `updates`, and the state goes on. values: else those of the tokens are zeros.
static void advance_block(const DeltaBlock *block, const Advance *with, bool values, Rows state, Rows updates) {
    const TileKernels *tile = block->tile;
    int64_t rows = block->rows, W = block->W;
    float factor[DELTA_BLOCK];
    tile->product(rows, W, W, plain(block->k), state, updates, OVERWRITE);
    for (int64_t i = 0; i < rows; i++) factor[i] = -block->beta[i] * block->carry[i];
    if (values) block->delta->target(updates, block->v, rows, W, block->beta, block->carry);
    else block->delta->scale(updates, updates, rows, W, factor);
    delta_solve(block, with->a, updates, W, false);

    for (int64_t i = 0; i < DELTA_BLOCK; i++) factor[i] = block->carry[rows - 1];
    for (int64_t i = 0; i < W; i += DELTA_BLOCK)
        tile->scale_rows(rows_from(state, i, 0), least(W - i, DELTA_BLOCK), W, factor);
    tile->product(W, W, rows, transposed(with->keys), updates, state, ADD);
}

// state: the one that enters.
static void read_out_block(const DeltaBlock *block, Rows state, Rows updates, Rows out, DeltaRoom room) {
    Rows p = delta_take(&room, DELTA_BLOCK, DELTA_BLOCK), q = delta_take(&room, DELTA_BLOCK, block->W);
    delta_scores(block, block->q, block->kt, p);
    block->delta->weigh(p, block->decay, block->rows, NULL, true);
    block->delta->scale(q, block->q, block->rows, block->W, block->carry);
    block->tile->product(block->rows, block->W, block->W, plain(q), state, out, OVERWRITE);
    delta_lower(block, p, false, updates, out, block->W, ADD);
}

// ---- block after block ----------------------------------------------------------------------------------------------

typedef struct Forward {
    const DeltaShape *s;
    const DeltaTokens *t;
    const float *initial;
    float *final, *const *summary;
    void *states, *updates;
    void *out; // of the pass at work; NULL: not in this one
    float *room;
} Forward;

DeltaRun delta_run(const DeltaShape *s, int64_t task) {
    int64_t heads = s->batch * s->heads, early = delta_chunk_blocks(s, 0);
    DeltaRun run = {
        .chunk = (int)(task / heads), .head = task % heads, .b = task % heads / s->heads, .h = task % s->heads};
    run.first = run.chunk * early;
    run.end = run.first + delta_chunk_blocks(s, run.chunk);
    return run;
}

static void forward_task(void *context, int64_t task, int worker) {
    const Forward *f = context;
    const DeltaShape *s = f->s;
    const DeltaRun run = delta_run(s, task);
    int64_t W = delta_width(s->head_dim);
    DeltaRoom room = delta_worker_room(f->room, s, worker);
    Rows state = delta_take(&room, W, W);
    size_t bytes = (size_t)(W * W) * sizeof(float);
    if (f->initial != NULL) memcpy(state.data, f->initial + task * W * W, bytes);
    else memset(state.data, 0, bytes);
    for (int64_t n = run.first; n < run.end; n++) {
        DeltaRoom rest = room;
        DeltaBlock block = delta_block(s, f->t, run.b, run.h, n, &rest);
        Rows entering = delta_part(s, f->states, run.b, run.h, n, W, W);
        Rows updates = delta_part(s, f->updates, run.b, run.h, n, DELTA_BLOCK, W);
        memcpy(entering.data, state.data, bytes);
        DeltaRoom for_advance = rest;
        Advance with = advance_of(&block, &for_advance);
        advance_block(&block, &with, true, state, updates);
        if (f->out != NULL)
            read_out_block(&block, entering, updates, delta_part(s, f->out, run.b, run.h, n, DELTA_BLOCK, W), rest);
    }
    if (f->final != NULL && run.chunk == s->chunks - 1) memcpy(f->final + run.head * W * W, state.data, bytes);
}

static void read_out_task(void *context, int64_t task, int worker) {
    const Forward *f = context;
    const DeltaShape *s = f->s;
    int64_t N = delta_blocks(s), W = delta_width(s->head_dim), n = task % N, h = task / N % s->heads,
            b = task / N / s->heads;
    DeltaRoom room = delta_worker_room(f->room, s, worker);
    DeltaBlock block = delta_block(s, f->t, b, h, n, &room);
    read_out_block(&block, delta_part(s, f->states, b, h, n, W, W), delta_part(s, f->updates, b, h, n, DELTA_BLOCK, W),
                   delta_part(s, f->out, b, h, n, DELTA_BLOCK, W), room);
}

static void forward(Device *d, const DeltaShape *s, const DeltaTokens *t, const float *initial, float *final,
                    void *states, void *updates, void *out) {
    Forward work = {.s = s,
                    .t = t,
                    .initial = initial,
                    .final = final,
                    .states = states,
                    .updates = updates,
                    .room = device_scratch(d, "delta", delta_scratch_bytes_cpu(s, d->threads))};
    work.out = delta_at_once(s, d->threads) ? out : NULL;
    parallel_for(d->threads, s->chunks * s->batch * s->heads, forward_task, &work);
    if (work.out == out) return;
    work.out = out;
    parallel_for(d->threads, s->batch * s->heads * delta_blocks(s), read_out_task, &work);
}

// A transition that has decayed so far, or comes to a document's end, is zero: products of less than the least normal
// number would be slow.
static const double NOTHING = 1e-30;

static void summarize_task(void *context, int64_t task, int worker) {
    const Forward *f = context;
    const DeltaShape *s = f->s;
    const DeltaRun run = delta_run(s, task);
    const Chunk chunk = s->chunk[run.chunk];
    if (chunk.start + chunk.length == s->context) return; // nothing is behind it
    int64_t W = delta_width(s->head_dim);
    double remains = chunk.start > 0; // at least the transition's norm: but for decays, it makes nothing longer
    DeltaRoom room = delta_worker_room(f->room, s, worker);
    Rows state = delta_take(&room, W, W), transition = delta_take(&room, W, W);
    Rows updates = delta_take(&room, DELTA_BLOCK, W);
    memset(state.data, 0, (size_t)(2 * W * W) * sizeof(float)); // of both
    for (int64_t i = 0; i < W; i++) transition.data[i * W + i] = 1;
    for (int64_t n = run.first; n < run.end; n++) {
        DeltaRoom rest = room;
        DeltaBlock block = delta_block(s, f->t, run.b, run.h, n, &rest);
        Advance with = advance_of(&block, &rest);
        advance_block(&block, &with, true, state, updates);
        remains *= (double)block.carry[block.rows - 1];
        if (remains <= NOTHING) memset(transition.data, 0, (size_t)(W * W) * sizeof(float));
        else advance_block(&block, &with, false, transition, updates); // where it is not a number, too
    }
    memcpy(f->summary[run.chunk] + run.head * 2 * W * W, state.data, (size_t)(2 * W * W) * sizeof(float));
}

static void summarize(Device *d, const DeltaShape *s, const DeltaTokens *t, float *const summary[2]) {
    Forward work = {
        .s = s, .t = t, .summary = summary, .room = device_scratch(d, "delta", delta_scratch_bytes_cpu(s, d->threads))};
    parallel_for(d->threads, s->chunks * s->batch * s->heads, summarize_task, &work);
}

size_t delta_scratch_bytes_cpu(const DeltaShape *s, int threads) {
    int64_t W = delta_width(s->head_dim), tasks = s->batch * delta_blocks(s);
    size_t blocks = (size_t)threads * delta_room_floats(W);
    size_t sums = (size_t)(tasks * (W > 2 * s->heads ? W : 2 * s->heads));
    size_t rows = (size_t)threads * 2 * (size_t)((s->heads + 2 * s->kv_heads) * s->head_dim + 16);
    return (blocks > sums + rows ? blocks : sums + rows) * sizeof(float);
}

// ---- over ranks -----------------------------------------------------------------------------------------------------

typedef struct Combine {
    const DeltaShape *s;
    float *to;
    const float *summary;
    const int *place;
    int count;
    bool transposed;
    float *room;
} Combine;

static void combine_task(void *context, int64_t task, int worker) {
    const Combine *c = context;
    const DeltaShape *s = c->s;
    int64_t W = delta_width(s->head_dim), heads = s->batch * s->heads;
    DeltaRoom room = delta_worker_room(c->room, s, worker);
    Rows sum = delta_take(&room, W, W), next = delta_take(&room, W, W);
    size_t bytes = (size_t)(W * W) * sizeof(float);
    memset(sum.data, 0, bytes);
    for (int i = 0; i < c->count; i++) {
        float *part = (float *)(uintptr_t)c->summary + (c->place[i] * heads + task) * 2 * W * W;
        Rows transition = {part + W * W, W};
        memcpy(next.data, part, bytes);
        if (i > 0)
            tile_kernels()->product(W, W, W, c->transposed ? transposed(transition) : plain(transition), sum, next,
                                    ADD);
        Rows swap = sum;
        sum = next, next = swap;
    }
    memcpy(c->to + task * W * W, sum.data, bytes);
}

static void combine(Device *d, const DeltaShape *s, float *to, const float *summary, const int *place, int count,
                    bool transposed) {
    Combine work = {
        s, to, summary, place, count, transposed, device_scratch(d, "delta", delta_scratch_bytes_cpu(s, d->threads))};
    parallel_for(d->threads, s->batch * s->heads, combine_task, &work);
}

// ---- token by token: the copies of one instruction set --------------------------------------------------------------

static void prepare(Device *d, const DeltaShape *s, const DeltaInput *in, const DeltaTokens *t) {
    CHOOSE(delta_tokens)->prepare(d, s, in, t);
}
static void prepare_backward(Device *d, const DeltaShape *s, const DeltaInput *in, const DeltaTokens *t,
                             const DeltaGradients *g, void *d_raw, void *d_rates, float *d_decay_log,
                             float *d_decay_bias) {
    CHOOSE(delta_tokens)->prepare_backward(d, s, in, t, g, d_raw, d_rates, d_decay_log, d_decay_bias);
}
static void convolve_backward(Device *d, const DeltaShape *s, const DeltaInput *in, void *d_raw, float *d_taps,
                              const void *d_convolved, const void *edge) {
    CHOOSE(delta_tokens)->convolve_backward(d, s, in, d_raw, d_taps, d_convolved, edge);
}
static void finish(Device *d, const DeltaShape *s, void *y, const void *out, const void *raw, const void *scale,
                   float epsilon) {
    CHOOSE(delta_finish)->finish(d, s, y, out, raw, scale, epsilon);
}
static void finish_backward(Device *d, const DeltaShape *s, void *d_out, void *d_raw, float *d_scale, const void *d_y,
                            const void *out, const void *raw, const void *scale, float epsilon) {
    CHOOSE(delta_finish)->finish_backward(d, s, d_out, d_raw, d_scale, d_y, out, raw, scale, epsilon);
}

extern const DeltaKernels delta_kernels_cpu;
const DeltaKernels delta_kernels_cpu = {.prepare = prepare,
                                        .prepare_backward = prepare_backward,
                                        .convolve_backward = convolve_backward,
                                        .finish = finish,
                                        .finish_backward = finish_backward,
                                        .summarize = summarize,
                                        .forward = forward,
                                        .retreat = cpu_delta_retreat,
                                        .backward = cpu_delta_backward,
                                        .combine = combine};
