// The gated delta rule on the CPU, backward. Formulas: mixer/delta.h.
#include <string.h>

#include "layers/cpu/parallel.h"
#include "mixer/cpu/delta.h"

typedef struct Backward {
    const DeltaShape *s;
    const DeltaTokens *t;
    const void *states, *updates, *d_out;
    void *d_states, *residuals;
    const float *d_final;
    float *const *d_initial;
    int64_t d_initial_stride;
    const DeltaGradients *g; // of the pass at work; NULL: not in this one
    float *room;
} Backward;

static void scale_all(Rows x, int64_t rows, int64_t columns, float by) {
    for (int64_t i = 0; i < rows * columns; i++) x.data[i] *= by;
}

// ---- one block: R, and the gradient of the state that enters --------------------------------------------------------

static void retreat_block(const DeltaBlock *block, Rows d_out, Rows d_state, Rows residuals, DeltaRoom room) {
    const TileKernels *tile = block->tile;
    const DeltaTiles *delta = block->delta;
    int64_t rows = block->rows, W = block->W;
    Rows a = delta_take(&room, DELTA_BLOCK, DELTA_BLOCK);
    Rows p = delta_take(&room, DELTA_BLOCK, DELTA_BLOCK), weighed = delta_take(&room, rows, W);
    delta_system(block, a);
    delta_scores(block, block->q, block->kt, p);
    delta->weigh(p, block->decay, rows, NULL, true);

    delta->scale(weighed, block->k, rows, W, block->rest);
    tile->product(rows, W, W, plain(weighed), d_state, residuals, OVERWRITE);
    delta_lower(block, p, true, d_out, residuals, W, ADD);
    delta_solve(block, a, residuals, W, true);

    scale_all(d_state, W, W, block->carry[rows - 1]);
    delta->scale(weighed, block->q, rows, W, block->carry);
    tile->product(W, W, rows, transposed(weighed), d_out, d_state, ADD);
    float factor[DELTA_BLOCK];
    for (int64_t i = 0; i < rows; i++) factor[i] = -block->beta[i] * block->carry[i];
    delta->scale(weighed, block->k, rows, W, factor);
    tile->product(W, W, rows, transposed(weighed), residuals, d_state, ADD);
}

// ---- one block: its gradients ---------------------------------------------------------------------------------------

// What is worked out in between for a block.
typedef struct Between {
    Rows transpose; // (W, W): of the state that entered, then of the gradient of the one that left
    Rows ut;        // (W, rows)
    Rows s, g;      // (rows, rows) S; G without and then with beta
    Rows h, other;  // (rows, W) H; the terms of dK that are not diag(beta) H
    Rows by_end;    // (rows, W) U dM'^T
} Between;

static void d_queries_and_h(const DeltaBlock *block, Between *w, Rows state, Rows d_out, Rows residuals, Rows d_q,
                            Rows room) {
    const TileKernels *tile = block->tile;
    int64_t rows = block->rows, W = block->W;
    float negative[DELTA_BLOCK];
    tile->pack_transposed(w->transpose, W, state, W, W, 1.0f);
    tile->product(rows, W, W, plain(d_out), w->transpose, d_q, OVERWRITE);
    block->delta->scale(d_q, d_q, rows, W, block->carry);
    delta_lower(block, w->s, false, block->k, d_q, W, ADD);

    for (int64_t i = 0; i < rows; i++) negative[i] = -block->carry[i];
    tile->product(rows, W, W, plain(residuals), w->transpose, room, OVERWRITE);
    block->delta->scale(w->h, room, rows, W, negative);
    delta_lower(block, w->g, false, block->k, w->h, W, ADD);
}

static void other_keys(const DeltaBlock *block, Between *w, Rows updates, Rows d_state) {
    const TileKernels *tile = block->tile;
    int64_t rows = block->rows, W = block->W;
    tile->pack_transposed(w->transpose, W, d_state, W, W, 1.0f);
    tile->product(rows, W, W, plain(updates), w->transpose, w->by_end, OVERWRITE);
    block->delta->scale(w->other, w->by_end, rows, W, block->rest);
    delta_lower(block, w->s, true, block->q, w->other, W, ADD);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < (i / STRIP + 1) * STRIP; j++) w->g.data[i * w->g.stride + j] *= block->beta[i];
    delta_lower(block, w->g, true, block->k, w->other, W, ADD);
}

// The decays' own: of g_i first, and of a_i by summing from the block's end to its start, or to where a document
// begins, whose first decay nothing depends on.
static void d_decays(const DeltaBlock *block, Between *w, Rows d_q, Rows state, Rows d_state, const float *k_h,
                     float *to) {
    const DeltaTiles *delta = block->delta;
    int64_t rows = block->rows, W = block->W;
    float q_dot[DELTA_BLOCK], k_dot[DELTA_BLOCK], end_dot[DELTA_BLOCK], state_dot[DELTA_BLOCK];
    delta->dots(q_dot, block->q, d_q, rows, W);
    delta->dots(k_dot, block->k, w->other, rows, W);
    delta->dots(end_dot, block->k, w->by_end, rows, W);
    double end = 0;
    for (int64_t i = 0; i < rows; i++) end += block->rest[i] * end_dot[i];
    if (block->carry[rows - 1] != 0)
        for (int64_t i = 0; i < W; i += DELTA_BLOCK) {
            int64_t part = W - i < DELTA_BLOCK ? W - i : DELTA_BLOCK;
            delta->dots(state_dot, rows_from(state, i, 0), rows_from(d_state, i, 0), part, W);
            for (int64_t c = 0; c < part; c++) end += block->carry[rows - 1] * state_dot[c];
        }
    double sum = end;
    for (int64_t i = rows - 1; i >= 0; i--) {
        sum += q_dot[i] + block->beta[i] * k_h[i] - k_dot[i];
        if (block->begin[i] == i) sum = 0;
        to[i] = (float)sum;
    }
}

// d_state: of what leaves block n.
static void differentiate_block(const Backward *k, const DeltaBlock *block, const DeltaRun *run, int64_t n,
                                Rows d_state, Rows residuals, DeltaRoom room) {
    const DeltaShape *s = k->s;
    const DeltaTiles *delta = block->delta;
    int64_t rows = block->rows, W = block->W, b = run->b, h = run->h,
            at = (run->head * delta_blocks(s) + n) * DELTA_BLOCK;
    Rows state = delta_part(s, k->states, b, h, n, W, W), updates = delta_part(s, k->updates, b, h, n, DELTA_BLOCK, W);
    Rows d_out = delta_part(s, k->d_out, b, h, n, DELTA_BLOCK, W),
         d_q = delta_part(s, k->g->d_q, b, h, n, DELTA_BLOCK, W);
    Rows d_k = delta_part(s, k->g->d_k, b, h, n, DELTA_BLOCK, W),
         d_v = delta_part(s, k->g->d_v, b, h, n, DELTA_BLOCK, W);
    float *d_beta = k->g->d_beta + at, minus[DELTA_BLOCK], r_v[DELTA_BLOCK], k_h[DELTA_BLOCK];
    Between w = {.transpose = delta_take(&room, W, W),
                 .ut = delta_take(&room, W, DELTA_BLOCK),
                 .s = delta_take(&room, DELTA_BLOCK, DELTA_BLOCK),
                 .g = delta_take(&room, DELTA_BLOCK, DELTA_BLOCK),
                 .h = delta_take(&room, DELTA_BLOCK, W),
                 .other = delta_take(&room, DELTA_BLOCK, W),
                 .by_end = delta_take(&room, DELTA_BLOCK, W)};
    for (int64_t i = 0; i < rows; i++) minus[i] = -1;
    block->tile->pack_transposed(w.ut, rows, updates, rows, W, 1.0f);
    delta_scores(block, d_out, w.ut, w.s);
    delta->weigh(w.s, block->decay, rows, NULL, true);
    delta_scores(block, residuals, w.ut, w.g);
    delta->weigh(w.g, block->decay, rows, minus, false);

    d_queries_and_h(block, &w, state, d_out, residuals, d_q, w.by_end);
    other_keys(block, &w, updates, d_state);
    delta->scale(d_v, residuals, rows, W, block->beta);
    delta->scale(d_k, w.h, rows, W, block->beta);
    block->tile->add(d_k, w.other, rows, W);
    delta->dots(r_v, residuals, block->v, rows, W);
    delta->dots(k_h, block->k, w.h, rows, W);
    for (int64_t i = 0; i < rows; i++) d_beta[i] = r_v[i] + k_h[i];
    d_decays(block, &w, d_q, state, d_state, k_h, k->g->d_log_decay + at);
}

static void differentiate_task(void *context, int64_t task, int worker) {
    const Backward *k = context;
    const DeltaShape *s = k->s;
    int64_t N = delta_blocks(s), W = delta_width(s->head_dim), n = task % N;
    const DeltaRun run = delta_run(s, task / N);
    DeltaRoom room = delta_worker_room(k->room, s, worker);
    DeltaBlock block = delta_block(s, k->t, run.b, run.h, n, &room);
    differentiate_block(k, &block, &run, n, delta_part(s, k->d_states, run.b, run.h, n, W, W),
                        delta_part(s, k->residuals, run.b, run.h, n, DELTA_BLOCK, W), room);
}

// ---- from the last block to the first -------------------------------------------------------------------------------

static void retreat_task(void *context, int64_t task, int worker) {
    const Backward *k = context;
    const DeltaShape *s = k->s;
    const DeltaRun run = delta_run(s, task);
    if (k->d_initial != NULL && s->chunk[run.chunk].start == 0) return; // nothing is before it
    int64_t W = delta_width(s->head_dim), b = run.b, h = run.h;
    bool stay = k->g != NULL || k->d_initial != NULL;
    DeltaRoom room = delta_worker_room(k->room, s, worker);
    // Where gradients follow at once, or none do, those of states and residuals stay here.
    Rows d_state = delta_take(&room, W, W), here = delta_take(&room, W, W),
         residuals_here = delta_take(&room, DELTA_BLOCK, W);
    size_t bytes = (size_t)(W * W) * sizeof(float);
    if (k->d_final != NULL) memcpy(d_state.data, k->d_final + task * W * W, bytes);
    else memset(d_state.data, 0, bytes);
    for (int64_t n = run.end - 1; n >= run.first; n--) {
        DeltaRoom rest = room;
        DeltaBlock block = delta_block(s, k->t, b, h, n, &rest);
        Rows leaving = stay ? here : delta_part(s, k->d_states, b, h, n, W, W);
        Rows residuals = stay ? residuals_here : delta_part(s, k->residuals, b, h, n, DELTA_BLOCK, W);
        memcpy(leaving.data, d_state.data, bytes);
        retreat_block(&block, delta_part(s, k->d_out, b, h, n, DELTA_BLOCK, W), d_state, residuals, rest);
        if (k->g != NULL) differentiate_block(k, &block, &run, n, leaving, residuals, rest);
    }
    if (k->d_initial != NULL) memcpy(k->d_initial[run.chunk] + run.head * k->d_initial_stride, d_state.data, bytes);
}

void cpu_delta_retreat(Device *d, const DeltaShape *s, const DeltaTokens *t, const void *d_out,
                       float *const d_initial[2], int64_t d_initial_stride, void *d_states, void *residuals) {
    Backward work = {.s = s,
                     .t = t,
                     .d_out = d_out,
                     .d_initial = d_initial,
                     .d_initial_stride = d_initial_stride,
                     .d_states = d_states,
                     .residuals = residuals,
                     .room = device_scratch(d, "delta", delta_scratch_bytes_cpu(s, d->threads))};
    parallel_for(d->threads, s->chunks * s->batch * s->heads, retreat_task, &work);
}

void cpu_delta_backward(Device *d, const DeltaShape *s, const DeltaTokens *t, const void *states, const void *updates,
                        const void *d_out, const float *d_final, void *d_states, void *residuals,
                        const DeltaGradients *g) {
    Backward work = {.s = s,
                     .t = t,
                     .states = states,
                     .updates = updates,
                     .d_out = d_out,
                     .d_final = d_final,
                     .d_states = d_states,
                     .residuals = residuals,
                     .room = device_scratch(d, "delta", delta_scratch_bytes_cpu(s, d->threads))};
    work.g = delta_at_once(s, d->threads) ? g : NULL;
    parallel_for(d->threads, s->chunks * s->batch * s->heads, retreat_task, &work);
    if (work.g == g) return;
    work.g = g;
    parallel_for(d->threads, s->batch * s->heads * delta_blocks(s), differentiate_task, &work);
}
