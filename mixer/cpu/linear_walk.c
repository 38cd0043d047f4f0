// Linear attention's walk over a chunk of tokens, and how states go from block to block.
#include <math.h>
#include <string.h>

#include "layers/cpu/parallel.h"
#include "mixer/cpu/linear.h"

// ---- scratch memory -------------------------------------------------------------------------------------------------

static BlockScratch lay_out(Layout *layout, int64_t D) {
    int64_t P = round_up_to_strip(D);
    BlockScratch s;
    s.q = take_rows(layout, BLOCK, P);
    s.k = take_rows(layout, BLOCK, P);
    s.g = take_rows(layout, BLOCK, P + STRIP);
    s.v = take_rows(layout, BLOCK, P + STRIP);
    s.scaled = take_rows(layout, BLOCK, P);
    s.q_transposed = take_rows(layout, D, BLOCK);
    s.g_transposed = take_rows(layout, D + 1, BLOCK);
    s.scores = take_rows(layout, BLOCK, BLOCK);
    s.d_scores = take_rows(layout, BLOCK, BLOCK);
    s.result = take_rows(layout, STRIP, P);
    s.square = take_rows(layout, D, P);
    s.factor = take_rows(layout, 1, BLOCK);
    s.sums = take_rows(layout, 1, BLOCK);
    s.first = take_rows(layout, 1, BLOCK);
    return s;
}

static int64_t floats_of_worker(int64_t D) {
    Layout layout = {NULL, 0};
    lay_out(&layout, D);
    return layout.used;
}

static int64_t floats_of_group(const LinearShape *s) {
    return 2 * s->heads / s->kv_heads * (WINDOW + 1) * (s->head_dim + 1) * round_up_to_strip(s->head_dim);
}

// Groups that one task takes together, block by block: what lies side by side in memory is read one after the other.
static int64_t groups_together(const LinearShape *s, int threads) {
    enum { MOST = 4 };
    int64_t each = s->sequences * s->kv_heads / threads;
    return each < 1 ? 1 : smaller(each, MOST);
}

// Workers' rooms, then the powers, then the states of as many groups as are at work at once.
static size_t states_from(const LinearShape *s, int threads) {
    return scratch_bytes(threads, floats_of_worker(s->head_dim)) + (size_t)(s->heads * POWERS) * sizeof(float);
}

size_t walk_scratch_bytes(const LinearShape *s, int threads) {
    return states_from(s, threads) +
           (size_t)(threads * groups_together(s, threads) * floats_of_group(s)) * sizeof(float);
}

// ---- the walk -------------------------------------------------------------------------------------------------------

int64_t blocks_of(const Walk *w, int64_t window) { return smaller(WINDOW, w->blocks - window * WINDOW); }

Place place_of(const Walk *w, const Part *part, int64_t i, int64_t block) {
    int64_t kv_head = part->group % w->shape->kv_heads, token = (part->window * WINDOW + block) * BLOCK;
    return (Place){.b = part->group / w->shape->kv_heads,
                   .h = kv_head * w->heads + i,
                   .kv_head = kv_head,
                   .token = token,
                   .length = smaller(BLOCK, w->tokens->chunk.length - token),
                   .position = w->tokens->chunk.start + token};
}

static int64_t window_of_step(const Walk *w, int64_t step) { return w->from_behind ? w->windows - 1 - step : step; }

static void groups_task(void *context, int64_t task, int worker) {
    const Walk *w = context;
    Layout layout = scratch_of(&w->scratch, worker);
    BlockScratch scratch = lay_out(&layout, w->shape->head_dim);
    Part part = {.alone = true, .scratch = &scratch};
    int64_t first = task * w->together, end = smaller(first + w->together, w->groups);
    for (int64_t step = 0; step < w->windows; step++) {
        part.window = window_of_step(w, step);
        int64_t blocks = blocks_of(w, part.window);
        for (int64_t i = w->onward != NULL ? 0 : blocks; i < (w->back != NULL ? 2 : 1) * blocks; i++) {
            part.block = i < blocks ? i : 2 * blocks - 1 - i;
            for (part.group = first; part.group < end; part.group++) {
                part.states = w->states + (worker * w->together + part.group - first) * floats_of_group(w->shape);
                (i < blocks ? w->onward : w->back)(w, &part);
            }
        }
    }
}

typedef struct Deal {
    const Walk *walk;
    int64_t window;
    Phase *phase;
} Deal;

static void part_task(void *context, int64_t task, int worker) {
    const Deal *deal = context;
    const Walk *w = deal->walk;
    Layout layout = scratch_of(&w->scratch, worker);
    BlockScratch scratch = lay_out(&layout, w->shape->head_dim);
    Part part = {.group = task % w->groups, .window = deal->window, .block = task / w->groups, .scratch = &scratch};
    part.states = w->states + part.group * floats_of_group(w->shape);
    deal->phase(w, &part);
}

static void fill_powers(const Walk *w) {
    for (int64_t h = 0; h < w->shape->heads; h++) {
        float *power = w->powers + h * POWERS + BLOCK;
        for (int n = -BLOCK; n < POWERS - BLOCK; n++)
            power[n] = n < 0 || n > BLOCK ? 0 : (float)exp2(n * (double)w->shape->log2_decay[h]);
    }
}

void walk(Device *device, Walk *w, const char *who) {
    const LinearShape *s = w->shape;
    int threads = device->threads;
    w->kernels = tile_kernels();
    w->tiles = linear_tiles();
    w->padded = round_up_to_strip(s->head_dim);
    w->state = (s->head_dim + 1) * w->padded;
    w->heads = s->heads / s->kv_heads;
    w->groups = s->sequences * s->kv_heads;
    w->together = groups_together(s, threads);
    w->blocks = (w->tokens->chunk.length + BLOCK - 1) / BLOCK;
    w->windows = (w->blocks + WINDOW - 1) / WINDOW;
    float *memory = device_scratch(device, who, walk_scratch_bytes(s, threads));
    size_t states = states_from(s, threads) / sizeof(float);
    w->scratch = scratch_from(device, who, floats_of_worker(s->head_dim));
    w->states = memory + states;
    w->powers = w->states - s->heads * POWERS;
    fill_powers(w);
    if (w->groups >= threads) {
        parallel_for(threads, (w->groups + w->together - 1) / w->together, groups_task, w);
        return;
    }
    for (int64_t step = 0; step < w->windows; step++) {
        Deal deal = {.walk = w, .window = window_of_step(w, step)};
        for (int phase = 0; phase < PHASES && w->phase[phase] != NULL; phase++) {
            deal.phase = w->phase[phase];
            parallel_for(threads, w->groups * blocks_of(w, deal.window), part_task, &deal);
        }
    }
}

// ---- blocks ---------------------------------------------------------------------------------------------------------

const int32_t *first_in_block(const Walk *w, Place p, const BlockScratch *s) {
    int32_t *first = (int32_t *)s->first.data;
    if (first_of(w, p.b, p.position + p.length - 1) <= p.position) return NULL;
    for (int64_t i = 0; i < round_up_to_strip(p.length); i++) {
        int64_t begin = first_of(w, p.b, p.position + smaller(i, p.length - 1)) - p.position;
        first[i] = (int32_t)(begin > 0 ? begin : 0);
    }
    return first;
}

void pack_tokens(const Walk *w, Place p, Rows to, TokenView from, int64_t head, const float *factor) {
    int64_t D = w->shape->head_dim;
    w->tiles->pack(to, w->padded, token_rows(from, p.b, p.token, head, D), p.length, D, factor);
}

void pack_values(const Walk *w, Place p, const BlockScratch *s) {
    int64_t D = w->shape->head_dim;
    Rows from = token_rows(w->tokens->v, p.b, p.token, p.kv_head, D);
    w->tiles->pack(s->v, w->padded, from, p.length, D, NULL);
    for (int64_t r = 0; r < p.length; r++) s->v.data[r * s->v.stride + D] = 1;
}

// ---- states ---------------------------------------------------------------------------------------------------------

// The part's share of the D + 1 rows of a state.
static KeyRange rows_of_part(const Walk *w, const Part *part) {
    int64_t rows = w->shape->head_dim + 1, parts = blocks_of(w, part->window);
    if (part->alone) return (KeyRange){0, rows};
    return (KeyRange){part->block * rows / parts, (part->block + 1) * rows / parts};
}

// to = row r of `from` (NULL: zeros), a state as mixer/linear.h has it; transposed: of S^T and z.
static void begin_row(const Walk *w, float *to, const float *from, int64_t r, bool transposed) {
    int64_t D = w->shape->head_dim;
    for (int64_t i = 0; i < w->padded; i++)
        to[i] = from == NULL || i >= D ? 0 : transposed && r < D ? from[i * D + r] : from[r * D + i];
}

void begin_states(const Walk *w, const Part *part, int which) {
    KeyRange rows = rows_of_part(w, part);
    bool first = part->window == window_of_step(w, 0), transposed = w->from_behind && which == 0;
    int64_t windows = w->shape->sequences * w->shape->heads * linear_state(w->shape->head_dim);
    for (int64_t i = 0; i < w->heads; i++) {
        Place p = place_of(w, part, i, 0);
        int64_t to = which == 0 ? 0 : blocks_of(w, part->window), last = which == 0 ? WINDOW : 0;
        for (int64_t r = rows.first; r < rows.end; r++) {
            float *row = state_at(w, part, which, i, to).data + r * w->padded;
            const float *carried = state_at(w, part, which, i, last).data + r * w->padded;
            const float *from = transposed ? w->tokens->starts + part->window * windows : w->begin;
            if (first || transposed) begin_row(w, row, from == NULL ? NULL : outer_state(w, from, p), r, transposed);
            else memcpy(row, carried, (size_t)w->padded * sizeof *row);
            if (w->from_behind || w->tokens->starts == NULL) continue;
            float *start = outer_state(w, w->tokens->starts + part->window * windows, p);
            for (int64_t k = 0; k < w->shape->head_dim; k++) start[r * w->shape->head_dim + k] = row[k];
        }
    }
}

// Whether what goes through a block from end to end is of one document.
static bool passes(const Walk *w, Place p, int which) {
    int64_t seer = p.position + p.length - (which == 0);
    if (which == 1 && seer >= w->shape->context) return false; // there is nothing
    return first_of(w, p.b, seer) <= (which == 0 ? p.position - 1 : p.position);
}

void sum_states(const Walk *w, const Part *part, int which) {
    KeyRange rows = rows_of_part(w, part);
    int64_t blocks = blocks_of(w, part->window), count = (rows.end - rows.first) * w->padded;
    bool last = part->window == window_of_step(w, w->windows - 1);
    for (int64_t i = 0; i < w->heads; i++) {
        for (int64_t step = 0; step < blocks; step++) {
            int64_t block = which == 0 ? step : blocks - 1 - step, from = which == 0 ? block : block + 1;
            if (part->alone && block != part->block) continue;
            Place p = place_of(w, part, i, block);
            float *to = state_at(w, part, which, i, which == 0 ? block + 1 : block).data;
            if (passes(w, p, which))
                w->tiles->add_scaled(to + rows.first * w->padded,
                                     state_at(w, part, which, i, from).data + rows.first * w->padded,
                                     power_of(w, p.h)[p.length], count);
        }
        if (!last || w->end == NULL || (part->alone && part->block != (which == 0 ? blocks - 1 : 0))) continue;
        Place p = place_of(w, part, i, 0);
        float *to = outer_state(w, w->end, p);
        const float *from = state_at(w, part, which, i, which == 0 ? blocks : 0).data;
        for (int64_t r = rows.first; r < rows.end; r++)
            for (int64_t k = 0; k < w->shape->head_dim; k++) to[r * w->shape->head_dim + k] = from[r * w->padded + k];
    }
}
