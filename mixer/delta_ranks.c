// The mixer delta over ranks: states by one gather, and the convolution's rows by another (mixer/delta.c).
#include "mixer/delta_parts.h"

// ---- states over ranks ----------------------------------------------------------------------------------------------

static float *summary_at(const Mixing *m, const DeltaShape *s, int place) {
    return (float *)m->room.buffer[SUMMARY] + (int64_t)place * 2 * carried_floats(s);
}

// Gathers what all chunks make, and combines into `to` (2, B, H, W, W) what those before, or behind, each of mine do.
static void gather_and_combine(const Mixing *m, const DeltaShape *s, float *to, bool behind) {
    int place[STATES_MOST];
    states_gather(m, m->room.buffer[SUMMARY], (size_t)(2 * carried_floats(s)) * sizeof(float));
    for (int i = 0; i < s->chunks; i++) {
        int count = states_before(m, i, behind, place, NULL);
        kernels_of(m)->combine(m->model->device, s, to + i * carried_floats(s), m->room.buffer[SUMMARY], place, count,
                               behind);
    }
}

void delta_find_initial(const Mixing *m, const DeltaShape *s, const DeltaTokens *t) {
    Device *d = m->model->device;
    float *mine = summary_at(m, s, states_place(m, 0));
    float *const summary[2] = {mine, mine + 2 * carried_floats(s)};
    kernels_of(m)->summarize(d, s, t, summary);
    d->copy(d, m->kept.buffer[KEPT_SUMMARY], mine, (size_t)(s->chunks * 2 * carried_floats(s)) * sizeof(float));
    gather_and_combine(m, s, m->kept.buffer[KEPT_INITIAL], false);
}

const float *delta_find_d_final(const Mixing *m, const DeltaShape *s, const DeltaTokens *t) {
    Device *d = m->model->device;
    float *mine = summary_at(m, s, states_place(m, 0)), *d_final = summary_at(m, s, 2 * m->model->ranks);
    float *const d_initial[2] = {mine, mine + 2 * carried_floats(s)};
    int64_t W = delta_width(s->head_dim);
    d->copy(d, mine, m->kept.buffer[KEPT_SUMMARY], (size_t)(s->chunks * 2 * carried_floats(s)) * sizeof(float));
    kernels_of(m)->retreat(d, s, t, m->room.buffer[D_OUT], d_initial, 2 * W * W, m->room.buffer[D_STATES],
                           m->room.buffer[RESIDUALS]);
    gather_and_combine(m, s, d_final, true);
    return d_final;
}

// ---- the convolution's rows over ranks ------------------------------------------------------------------------------

void delta_gather_edges(const Mixing *m, const DeltaShape *s, const void *rows, void *to, bool behind) {
    Device *d = m->model->device;
    int64_t E = convolved_width(m->model->config), raw = raw_width(m->model->config), part = s->batch * DELTA_EDGE * E;
    int64_t size = (int64_t)d->element_bytes, length[STATES_MOST];
    void *edges = m->room.buffer[EDGES];
    int place[STATES_MOST];
    for (int i = 0; i < s->chunks; i++)
        for (int64_t b = 0; b < s->batch; b++) {
            int64_t take = least(DELTA_EDGE, s->chunk[i].length), skip = s->chunk[i].length - take;
            int64_t row = b * delta_tokens(s) + i * s->chunk[0].length + (behind ? 0 : skip);
            int64_t slot =
                states_place(m, i) * s->batch * DELTA_EDGE + b * DELTA_EDGE + (behind ? 0 : DELTA_EDGE - take);
            d->copy_strided(d, at(d, edges, slot * E), E * size, at(d, rows, row * raw), raw * size, take,
                            (size_t)(E * size));
        }
    states_gather(m, edges, (size_t)(part * size));
    for (int i = 0; i < s->chunks; i++) {
        int64_t filled = 0;
        for (int c = states_before(m, i, behind, place, length) - 1; c >= 0 && filled < DELTA_EDGE; c--) {
            int64_t take = least(DELTA_EDGE - filled, length[c]);
            int64_t from = behind ? 0 : DELTA_EDGE - take, into = behind ? filled : DELTA_EDGE - filled - take;
            d->copy_strided(d, at(d, to, i * part + into * E), DELTA_EDGE * E * size,
                            at(d, edges, place[c] * part + from * E), DELTA_EDGE * E * size, s->batch,
                            (size_t)(take * E * size));
            filled += take;
        }
    }
}
