// Linear attention backward on the CPU. With G_i = d_y_i / den_i, delta_i = -(d_y_i . y_i) / den_i, and blocks of
// scores key by query:
//
//   A = g^(i - j) K_j . Q_i      dA = g^(i - j) (V_j . G_i + delta_i)
//   dQ = g^(i + 1) (G S^T + delta z) + dA^T K      dK = g^(end - j) (V R^T + r) + dA Q      dV = g^(end - j) K R + A G
//
// Values have a column of ones beside them and G one of deltas, so that z and r are one row more of S^T and R^T.
#include "mixer/cpu/linear.h"

static void begin_behind(const Walk *w, const Part *part) { begin_states(w, part, 1); }
static void sum_behind(const Walk *w, const Part *part) { sum_states(w, part, 1); }
static void begin_both(const Walk *w, const Part *part) {
    begin_states(w, part, 0);
    begin_states(w, part, 1);
}
static void sum_both(const Walk *w, const Part *part) {
    sum_states(w, part, 0);
    sum_states(w, part, 1);
}

// s->g: G and delta.
static void pack_gradients(const Walk *w, Place p, const BlockScratch *s) {
    const LinearTokens *t = w->tokens;
    int64_t D = w->shape->head_dim;
    pack_tokens(w, p, s->g, t->d_y, p.h, row_values(t->inverse, p.b, p.token, p.h));
    w->tiles->dots(s->sums.data, token_rows(t->y, p.b, p.token, p.h, D), s->g, p.length, D);
    for (int64_t i = 0; i < p.length; i++) s->g.data[i * s->g.stride + D] = -s->sums.data[i];
}

// S^T and z of the block's own, into slot block + 1 of states 0.
static void own_state(const Walk *w, const Part *part, Place p, int64_t i) {
    const BlockScratch *s = part->scratch;
    int64_t first = first_of(w, p.b, p.position + p.length - 1) - p.position;
    for (int64_t j = 0; j < p.length; j++) s->factor.data[j] = j < first ? 0 : power_of(w, p.h)[p.length - 1 - j];
    pack_tokens(w, p, s->scaled, w->tokens->k, p.kv_head, s->factor.data);
    w->kernels->product(w->shape->head_dim + 1, w->padded, p.length, transposed(s->v), s->scaled,
                        state_at(w, part, 0, i, part->block + 1), OVERWRITE);
}

// R^T and r of its own, into slot block of states 1: of the queries, and of G in s->g.
static void own_state_behind(const Walk *w, const Part *part, Place p, int64_t i, Rows q) {
    const BlockScratch *s = part->scratch;
    for (int64_t n = 0; n < p.length; n++)
        s->factor.data[n] = first_of(w, p.b, p.position + n) <= p.position ? power_of(w, p.h)[n] : 0;
    w->tiles->pack(s->scaled, w->padded, q, p.length, w->shape->head_dim, s->factor.data);
    w->kernels->product(w->shape->head_dim + 1, w->padded, p.length, transposed(s->g), s->scaled,
                        state_at(w, part, 1, i, part->block), OVERWRITE);
}

static void own_behind(const Walk *w, const Part *part) {
    for (int64_t i = 0; i < w->heads; i++) {
        Place p = place_of(w, part, i, part->block);
        pack_gradients(w, p, part->scratch);
        own_state_behind(w, part, p, i, token_rows(w->tokens->q, p.b, p.token, p.h, w->shape->head_dim));
    }
}

static void own_states(const Walk *w, const Part *part) {
    pack_values(w, place_of(w, part, 0, part->block), part->scratch);
    for (int64_t i = 0; i < w->heads; i++) own_state(w, part, place_of(w, part, i, part->block), i);
}

static void own_both(const Walk *w, const Part *part) {
    own_states(w, part);
    own_behind(w, part);
}

// A and dA.
static void scores_of_block(const Walk *w, Place p, const BlockScratch *s) {
    const LinearTokens *t = w->tokens;
    int64_t D = w->shape->head_dim, columns = round_up_to_strip(p.length);
    const int32_t *first = first_in_block(w, p, s);
    pack_tokens(w, p, s->q, t->q, p.h, NULL);
    w->kernels->pack_transposed(s->q_transposed, columns, s->q, p.length, D, 1.0f);
    w->kernels->pack_transposed(s->g_transposed, columns, s->g, p.length, D + 1, 1.0f);
    scores_of(w, p.length, D, s->k, s->q_transposed, s->scores);
    w->tiles->mask(s->scores, p.length, columns, power_of(w, p.h), first, NULL);
    scores_of(w, p.length, D + 1, s->v, s->g_transposed, s->d_scores);
    w->tiles->mask(s->d_scores, p.length, columns, power_of(w, p.h), first, NULL);
}

static void gradient_of_queries(const Walk *w, Place p, const BlockScratch *s, Rows state) {
    int64_t D = w->shape->head_dim;
    for (int64_t i = 0; i < p.length; i++)
        s->factor.data[i] = first_of(w, p.b, p.position + i) < p.position ? power_of(w, p.h)[i + 1] : 0;
    for (int64_t row = 0; row < p.length; row += STRIP) {
        int64_t rows = smaller(STRIP, p.length - row);
        strip_of_state(w, rows, D + 1, plain(rows_from(s->g, row, 0)), state, s->factor.data + row, s->result);
        strip_from_keys(w, row, p.length, s->d_scores, s->k, s->result);
        w->tiles->give(token_rows(w->tokens->d_q, p.b, p.token + row, p.h, D), s->result, rows_from(s->q, row, 0), rows,
                       D, false);
    }
}

// add: there were heads before this one.
static void gradients_of_keys(const Walk *w, Place p, const BlockScratch *s, Rows behind, bool add) {
    const LinearTokens *t = w->tokens;
    int64_t D = w->shape->head_dim, end = p.position + p.length;
    int64_t first = end < w->shape->context ? first_of(w, p.b, end) - p.position : 0;
    for (int64_t j = 0; j < p.length; j++) s->factor.data[j] = j < first ? 0 : power_of(w, p.h)[p.length - j];
    w->kernels->pack_transposed(s->square, w->padded, behind, D, D, 1.0f);
    for (int64_t row = 0; row < p.length; row += STRIP) {
        int64_t rows = smaller(STRIP, p.length - row);
        strip_of_state(w, rows, D + 1, plain(rows_from(s->v, row, 0)), behind, s->factor.data + row, s->result);
        strip_from_queries(w, row, p.length, s->d_scores, s->q, s->result);
        w->tiles->give(token_rows(t->d_k, p.b, p.token + row, p.kv_head, D), s->result, rows_from(s->k, row, 0), rows,
                       D, add);
    }
    for (int64_t row = 0; row < p.length; row += STRIP) {
        int64_t rows = smaller(STRIP, p.length - row);
        strip_of_state(w, rows, D, plain(rows_from(s->k, row, 0)), s->square, s->factor.data + row, s->result);
        strip_from_queries(w, row, p.length, s->scores, s->g, s->result);
        w->tiles->give(token_rows(t->d_v, p.b, p.token + row, p.kv_head, D), s->result, (Rows){0}, rows, D, add);
    }
}

static void gradients(const Walk *w, const Part *part) {
    const BlockScratch *s = part->scratch;
    Place first = place_of(w, part, 0, part->block);
    pack_tokens(w, first, s->k, w->tokens->k, first.kv_head, NULL);
    pack_values(w, first, s);
    for (int64_t i = 0; i < w->heads; i++) {
        Place p = place_of(w, part, i, part->block);
        pack_gradients(w, p, s);
        scores_of_block(w, p, s);
        gradient_of_queries(w, p, s, state_at(w, part, 0, i, part->block));
        gradients_of_keys(w, p, s, state_at(w, part, 1, i, part->block + 1), i > 0);
        if (part->alone) own_state_behind(w, part, p, i, s->q); // for the blocks before this one, which come later
    }
}

// ---- a group alone --------------------------------------------------------------------------------------------------

static void states_alone(const Walk *w, const Part *part) {
    if (part->block == 0) begin_states(w, part, 0);
    own_states(w, part);
    sum_states(w, part, 0);
}

static void behind_alone(const Walk *w, const Part *part) {
    if (part->block == blocks_of(w, part->window) - 1) begin_behind(w, part);
    own_behind(w, part);
    sum_behind(w, part);
}

static void gradients_alone(const Walk *w, const Part *part) {
    if (part->block == blocks_of(w, part->window) - 1) begin_behind(w, part);
    gradients(w, part);
    sum_behind(w, part);
}

void cpu_linear_own_behind(Device *device, const LinearShape *shape, const LinearTokens *tokens, float *states) {
    Walk w = {.shape = shape,
              .tokens = tokens,
              .back = behind_alone,
              .phase = {begin_behind, own_behind, sum_behind},
              .from_behind = true,
              .end = states};
    walk(device, &w, "linear attention backward");
}

void cpu_linear_backward(Device *device, const LinearShape *shape, const LinearTokens *tokens, const float *behind) {
    Walk w = {.shape = shape,
              .tokens = tokens,
              .onward = states_alone,
              .back = gradients_alone,
              .phase = {begin_both, own_both, sum_both, gradients},
              .from_behind = true,
              .begin = behind};
    walk(device, &w, "linear attention backward");
}
