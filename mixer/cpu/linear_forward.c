// Linear attention forward on the CPU: what blocks of keys and values add to the state, and what a block's queries see
// of it and of the block's own keys.
//
//   own      scaled^T V, the sum of scaled: D x P, and a row
//   output   result = g^(i + 1) Q S + A V      den = g^(i + 1) Q z + sums of A      A_ij = g^(i - j) Q_i . K_j
#include <float.h>

#include "mixer/cpu/linear.h"

static void begin(const Walk *w, const Part *part) { begin_states(w, part, 0); }
static void sum(const Walk *w, const Part *part) { sum_states(w, part, 0); }

// s->scaled = the block's keys, each times g^(tokens behind it in the block), or 0 where the last token does not see
// it.
static void scale_keys(const Walk *w, Place p, const BlockScratch *s) {
    int64_t first = first_of(w, p.b, p.position + p.length - 1) - p.position;
    for (int64_t j = 0; j < p.length; j++) s->factor.data[j] = j < first ? 0 : power_of(w, p.h)[p.length - 1 - j];
    pack_tokens(w, p, s->scaled, w->tokens->k, p.kv_head, s->factor.data);
}

// The block's tokens of one head become phi of themselves, in place.
static void make_features(const Walk *w, Place p, TokenView x, int64_t head) {
    int64_t D = w->shape->head_dim;
    w->tiles->features(token_rows(x, p.b, p.token, head, D), p.length, D);
}

static void own(const Walk *w, const Part *part) {
    const BlockScratch *s = part->scratch;
    int64_t D = w->shape->head_dim;
    for (int64_t i = 0; i < w->heads; i++) {
        Place p = place_of(w, part, i, part->block);
        Rows state = state_at(w, part, 0, i, part->block + 1);
        if (i == 0 && w->tokens->fresh_keys) make_features(w, p, w->tokens->k, p.kv_head);
        scale_keys(w, p, s);
        if (i == 0) pack_tokens(w, p, s->k, w->tokens->v, p.kv_head, NULL);
        w->kernels->product(D, w->padded, p.length, transposed(s->scaled), s->k, state, OVERWRITE);
        w->tiles->sum_rows(state.data + D * w->padded, s->scaled, p.length, w->padded);
    }
}

// inverse (queries) = 1 / den.
static void invert(const float *sums, const float *of_state, const float *factor, float *inverse, int64_t queries) {
    for (int64_t i = 0; i < queries; i++) {
        float den = sums[i] + factor[i] * of_state[i];
        inverse[i] = den < FLT_MIN ? 0 : 1 / den;
    }
}

static void output_of_head(const Walk *w, const Part *part, Place p, Rows state) {
    const BlockScratch *s = part->scratch;
    const LinearTokens *t = w->tokens;
    const float *power = power_of(w, p.h);
    int64_t D = w->shape->head_dim, columns = round_up_to_strip(p.length);
    make_features(w, p, t->q, p.h);
    w->kernels->pack_transposed(s->q_transposed, columns, token_rows(t->q, p.b, p.token, p.h, D), p.length, D, 1.0f);
    scores_of(w, p.length, D, token_rows(t->k, p.b, p.token, p.kv_head, D), s->q_transposed, s->scores);
    for (int64_t i = 0; i < columns; i++) s->sums.data[i] = 0;
    w->tiles->mask(s->scores, p.length, columns, power, first_in_block(w, p, s), s->sums.data);

    for (int64_t i = 0; i < p.length; i++)
        s->factor.data[i] = first_of(w, p.b, p.position + i) < p.position ? power[i + 1] : 0;
    float *inverse = row_values(t->inverse, p.b, p.token, p.h);
    w->kernels->product(1, columns, D, plain(rows_from(state, D, 0)), s->q_transposed, s->g_transposed, OVERWRITE);
    invert(s->sums.data, s->g_transposed.data, s->factor.data, inverse, p.length);
    for (int64_t row = 0; row < p.length; row += STRIP) {
        int64_t rows = smaller(STRIP, p.length - row);
        strip_of_state(w, rows, D, transposed(rows_from(s->q_transposed, 0, row)), state, s->factor.data + row,
                       s->result);
        strip_from_keys(w, row, p.length, s->scores, s->v, s->result);
        w->tiles->pack(token_rows(t->y, p.b, p.token + row, p.h, D), D, s->result, rows, D, inverse + row);
    }
}

static void output(const Walk *w, const Part *part) {
    Place p = place_of(w, part, 0, part->block);
    pack_values(w, p, part->scratch);
    for (int64_t i = 0; i < w->heads; i++)
        output_of_head(w, part, place_of(w, part, i, part->block), state_at(w, part, 0, i, part->block));
}

static void own_alone(const Walk *w, const Part *part) {
    if (part->block == 0) begin(w, part);
    own(w, part);
    sum(w, part);
}

static void forward_alone(const Walk *w, const Part *part) {
    own_alone(w, part);
    output(w, part);
}

void cpu_linear_own_before(Device *device, const LinearShape *shape, const LinearTokens *tokens, float *states) {
    LinearTokens without = *tokens;
    without.starts = NULL;
    without.fresh_keys = true;
    Walk w = {.shape = shape, .tokens = &without, .onward = own_alone, .phase = {begin, own, sum}, .end = states};
    walk(device, &w, "linear attention");
}

void cpu_linear_forward(Device *device, const LinearShape *shape, const LinearTokens *tokens, const float *before,
                        float *after) {
    Walk w = {.shape = shape,
              .tokens = tokens,
              .onward = forward_alone,
              .phase = {begin, own, sum, output},
              .begin = before,
              .end = after};
    walk(device, &w, "linear attention");
}
