// What stands before the gated delta rule on the CPU, token by token: a convolution of 4 taps where there is one, SiLU,
// queries and keys brought to length 1, beta and the decay; and backward.
#include <math.h>
#include <string.h>

#include "layers/cpu/parallel.h"
#include "mixer/cpu/delta_rows.h"

static const float LENGTH_EPSILON = 1e-6f; // x / sqrt(|x|^2 + this)

typedef struct Tokens {
    const DeltaShape *s;
    const DeltaInput *in;
    const DeltaTokens *t;
    const DeltaGradients *g;
    float *d_raw, *d_rates, *d_taps;
    const float *d_convolved, *edge;
    float *sums; // (tasks, 2, H) of d_decay_log and d_decay_bias
    float *room; // (threads, 2, E + 16) rows
} Tokens;

static int64_t convolved_width(const DeltaShape *s) { return (s->heads + 2 * s->kv_heads) * s->head_dim; }
static int64_t raw_width(const DeltaShape *s) { return convolved_width(s) + s->heads * s->head_dim; }

// ---- the convolution ------------------------------------------------------------------------------------------------

// Token i of the block, and `back` tokens before it: its raw row; NULL: of another document, or none.
static const float *raw_row(const Tokens *k, const BlockRows *r, int64_t i, int64_t back) {
    const DeltaShape *s = k->s;
    int64_t position = r->position + i, E = convolved_width(s);
    if (position - back < first_seen(s, r->b, position)) return NULL;
    int64_t in_chunk = r->in_chunk + i - back;
    if (in_chunk >= 0) return (const float *)k->in->raw + (r->row + i - back) * raw_width(s);
    return (const float *)k->in->edge + ((r->chunk * s->batch + r->b) * DELTA_EDGE + DELTA_EDGE + in_chunk) * E;
}

// What SiLU is given for token i: the raw row, or in `room` what the convolution makes.
static const float *convolved_row(const Tokens *k, const BlockRows *r, int64_t i, float *room) {
    const float *x = raw_row(k, r, i, 0), *taps = k->in->taps;
    if (taps == NULL) return x;
    const int64_t E = convolved_width(k->s);
    for (int64_t c = 0; c < E; c++) room[c] = taps[c] * x[c];
    for (int64_t back = 1; back < DELTA_TAPS; back++) {
        x = raw_row(k, r, i, back);
        if (x == NULL) break;
        for (int64_t c = 0; c < E; c++) room[c] += taps[back * E + c] * x[c];
    }
    return room;
}

// ---- forward --------------------------------------------------------------------------------------------------------

static void write_head(float *to, int64_t W, const float *x, int64_t D, float factor) {
    for (int64_t c = 0; c < D; c++) to[c] = factor * x[c];
    for (int64_t c = D; c < W; c++) to[c] = 0;
}

static float inverse_length(const float *x, int64_t D) { return 1 / sqrtf(dot(x, x, D) + LENGTH_EPSILON); }

static float softplus(float x) { return x > 20 ? x : log1pf(expf(x)); }
static float sigmoid(float x) { return 1 / (1 + expf(-x)); }

// `next`: how far it is to the row that comes after, which processors do not fetch by themselves.
static void silu_row(float *to, const float *x, int64_t count, int64_t next) {
    for (int64_t c = 0; c < count; c += SIMD_WIDTH) {
        __builtin_prefetch(x + next + c);
        vstore_some(to + c, vsilu(vload_some(x + c, count - c)), count - c);
    }
}

static void prepare_row(const Tokens *k, const BlockRows *r, int64_t i, float *room) {
    const DeltaShape *s = k->s;
    int64_t D = s->head_dim, W = delta_width(D), E = convolved_width(s);
    const float *x = convolved_row(k, r, i, room);
    silu_row(room, x, E, raw_width(s));
    for (int64_t h = 0; h < s->heads; h++, room += D)
        write_head(block_row(s, k->t->q, s->heads, r->b, h, r->n, i), W, room, D,
                   inverse_length(room, D) / sqrtf((float)D));
    for (int64_t h = 0; h < s->kv_heads; h++, room += D)
        write_head(block_row(s, k->t->k, s->kv_heads, r->b, h, r->n, i), W, room, D, inverse_length(room, D));
    for (int64_t h = 0; h < s->kv_heads; h++, room += D)
        write_head(block_row(s, k->t->v, s->kv_heads, r->b, h, r->n, i), W, room, D, 1);
    const float *rates = (const float *)k->in->rates + (r->row + i) * 2 * s->heads;
    const float *decay_log = k->in->decay_log, *bias = k->in->decay_bias;
    for (int64_t h = 0; h < s->heads; h++) {
        int64_t at = ((r->b * s->heads + h) * delta_blocks(s) + r->n) * DELTA_BLOCK + i;
        k->t->beta[at] = sigmoid(rates[h]);
        k->t->log_decay[at] = -expf(decay_log[h]) * softplus(rates[s->heads + h] + bias[h]);
    }
}

// The rows that fill up the last block: zeros, of the last token's document.
static void prepare_rest(const Tokens *k, const BlockRows *r) {
    const DeltaShape *s = k->s;
    int64_t rows = DELTA_BLOCK - r->rows, W = delta_width(s->head_dim);
    size_t bytes = (size_t)(rows * W) * sizeof(float);
    if (rows == 0) return;
    for (int64_t h = 0; h < s->heads; h++) {
        int64_t at = ((r->b * s->heads + h) * delta_blocks(s) + r->n) * DELTA_BLOCK + r->rows;
        memset(block_row(s, k->t->q, s->heads, r->b, h, r->n, r->rows), 0, bytes);
        memset(k->t->beta + at, 0, (size_t)rows * sizeof(float));
        memset(k->t->log_decay + at, 0, (size_t)rows * sizeof(float));
    }
    for (int64_t h = 0; h < s->kv_heads; h++) {
        memset(block_row(s, k->t->k, s->kv_heads, r->b, h, r->n, r->rows), 0, bytes);
        memset(block_row(s, k->t->v, s->kv_heads, r->b, h, r->n, r->rows), 0, bytes);
    }
}

static float *worker_rows(const Tokens *k, int worker) { return k->room + worker * 2 * (convolved_width(k->s) + 16); }

static void prepare_task(void *context, int64_t task, int worker) {
    const Tokens *k = context;
    const BlockRows r = block_rows_of(k->s, task);
    for (int64_t i = 0; i < r.rows; i++) prepare_row(k, &r, i, worker_rows(k, worker));
    prepare_rest(k, &r);
    int32_t *begin = k->t->begin + task * DELTA_BLOCK;
    for (int64_t i = 0; i < DELTA_BLOCK; i++) {
        int64_t token = i < r.rows ? i : r.rows - 1, row = first_seen(k->s, r.b, r.position + token) - r.position;
        begin[i] = row < 0 ? -1 : (int32_t)row;
    }
}

static size_t rows_bytes(const Device *d, const DeltaShape *s) {
    return (size_t)d->threads * 2 * (size_t)(convolved_width(s) + 16) * sizeof(float);
}

static void prepare(Device *d, const DeltaShape *s, const DeltaInput *in, const DeltaTokens *t) {
    Tokens work = {.s = s, .in = in, .t = t, .room = device_scratch(d, "delta", rows_bytes(d, s))};
    parallel_for(d->threads, s->batch * delta_blocks(s), prepare_task, &work);
}

// ---- backward -------------------------------------------------------------------------------------------------------

// y = factor x / |x|, x = silu(z): to = the gradient by z, given d_y. For values y = x: unit false.
static void head_backward(float *to, const float *z, const float *x, const float *d_y, int64_t D, float factor,
                          bool unit) {
    float inverse = unit ? inverse_length(x, D) : 1, along = unit ? inverse * inverse * dot(x, d_y, D) : 0;
    for (int64_t c = 0, left = D; left > 0; c += SIMD_WIDTH, left -= SIMD_WIDTH) {
        vfloat d_x = factor * inverse * (vload_some(d_y + c, left) - along * vload_some(x + c, left));
        vstore_some(to + c, d_x * vsilu_slope(vload_some(z + c, left)), left);
    }
}

// Sums what the heads of a group add into the first one's place.
static float *sum_group(const Tokens *k, const BlockRows *r, void *tensor, int64_t group, int64_t i) {
    const DeltaShape *s = k->s;
    int64_t heads = s->heads / s->kv_heads;
    float *sum = block_row(s, tensor, s->heads, r->b, group * heads, r->n, i);
    for (int64_t h = 1; h < heads; h++) {
        const float *more = block_row(s, tensor, s->heads, r->b, group * heads + h, r->n, i);
        for (int64_t c = 0; c < s->head_dim; c++) sum[c] += more[c];
    }
    return sum;
}

static void rates_backward(const Tokens *k, const BlockRows *r, int64_t i, float *sums) {
    const DeltaShape *s = k->s;
    int64_t H = s->heads;
    const float *rates = (const float *)k->in->rates + (r->row + i) * 2 * H;
    const float *decay_log = k->in->decay_log, *bias = k->in->decay_bias;
    float *to = k->d_rates + (r->row + i) * 2 * H;
    for (int64_t h = 0; h < H; h++) {
        int64_t at = ((r->b * H + h) * delta_blocks(s) + r->n) * DELTA_BLOCK + i;
        float beta = sigmoid(rates[h]), x = rates[H + h] + bias[h], d_a = k->g->d_log_decay[at];
        float d_x = -d_a * expf(decay_log[h]) * sigmoid(x);
        to[h] = k->g->d_beta[at] * beta * (1 - beta);
        to[H + h] = d_x;
        sums[h] -= d_a * expf(decay_log[h]) * softplus(x);
        sums[H + h] += d_x;
    }
}

static void prepare_backward_task(void *context, int64_t task, int worker) {
    const Tokens *k = context;
    const DeltaShape *s = k->s;
    const BlockRows r = block_rows_of(s, task);
    int64_t D = s->head_dim, E = convolved_width(s);
    float *room = worker_rows(k, worker), *sums = k->sums + task * 2 * s->heads;
    memset(sums, 0, (size_t)(2 * s->heads) * sizeof *sums);
    for (int64_t i = 0; i < r.rows; i++) {
        const float *z = convolved_row(k, &r, i, room);
        float *x = room + E + 16, *to = k->d_raw + (r.row + i) * raw_width(s);
        silu_row(x, z, E, raw_width(s));
        for (int64_t h = 0; h < s->heads; h++, z += D, x += D, to += D)
            head_backward(to, z, x, block_row(s, k->g->d_q, s->heads, r.b, h, r.n, i), D, 1 / sqrtf((float)D), true);
        for (int64_t h = 0; h < s->kv_heads; h++, z += D, x += D, to += D)
            head_backward(to, z, x, sum_group(k, &r, k->g->d_k, h, i), D, 1, true);
        for (int64_t h = 0; h < s->kv_heads; h++, z += D, x += D, to += D)
            head_backward(to, z, x, sum_group(k, &r, k->g->d_v, h, i), D, 1, false);
        rates_backward(k, &r, i, sums);
    }
}

static void prepare_backward(Device *d, const DeltaShape *s, const DeltaInput *in, const DeltaTokens *t,
                             const DeltaGradients *g, void *d_raw, void *d_rates, float *d_decay_log,
                             float *d_decay_bias) {
    int64_t tasks = s->batch * delta_blocks(s), H = s->heads;
    size_t sums = (size_t)(tasks * 2 * H);
    Tokens work = {.s = s,
                   .in = in,
                   .t = t,
                   .g = g,
                   .d_raw = d_raw,
                   .d_rates = d_rates,
                   .sums = device_scratch(d, "delta", sums * sizeof(float) + rows_bytes(d, s))};
    work.room = work.sums + sums;
    parallel_for(d->threads, tasks, prepare_backward_task, &work);
    for (int64_t h = 0; h < H; h++) {
        double by_log = 0, by_bias = 0;
        for (int64_t task = 0; task < tasks; task++) {
            by_log += work.sums[task * 2 * H + h];
            by_bias += work.sums[task * 2 * H + H + h];
        }
        d_decay_log[h] += (float)by_log;
        d_decay_bias[h] += (float)by_bias;
    }
}

// ---- the convolution, backward --------------------------------------------------------------------------------------

// The gradient of what the convolution made of the token `ahead` tokens after token i; NULL: it does not see token i.
static const float *d_convolved_row(const Tokens *k, const BlockRows *r, int64_t i, int64_t ahead) {
    const DeltaShape *s = k->s;
    int64_t position = r->position + i + ahead;
    if (position >= s->context || first_seen(s, r->b, position) > position - ahead) return NULL;
    int64_t beyond = r->in_chunk + i + ahead - s->chunk[r->chunk].length;
    if (beyond < 0) return k->d_convolved + (r->row + i + ahead) * raw_width(s);
    return k->edge + ((r->chunk * s->batch + r->b) * DELTA_EDGE + beyond) * convolved_width(s);
}

static void d_raw_task(void *context, int64_t task, int worker) {
    const Tokens *k = context;
    const BlockRows r = block_rows_of(k->s, task);
    const int64_t E = convolved_width(k->s);
    const float *taps = k->in->taps;
    (void)worker;
    for (int64_t i = 0; i < r.rows; i++) {
        float *to = k->d_raw + (r.row + i) * raw_width(k->s);
        for (int64_t ahead = 0; ahead < DELTA_TAPS; ahead++) {
            const float *from = d_convolved_row(k, &r, i, ahead);
            if (from == NULL) break;
            for (int64_t c = 0; c < E; c++) to[c] = (ahead > 0 ? to[c] : 0) + taps[ahead * E + c] * from[c];
        }
    }
}

// Tasks: SIMD_WIDTH columns, over all rows.
static void d_taps_task(void *context, int64_t task, int worker) {
    const Tokens *k = context;
    const int64_t E = convolved_width(k->s), c = task * SIMD_WIDTH, left = E - c;
    vfloat total[DELTA_TAPS];
    (void)worker;
    for (int back = 0; back < DELTA_TAPS; back++) total[back] = vset(0.0f);
    for (int64_t block = 0; block < k->s->batch * delta_blocks(k->s); block++) {
        const BlockRows r = block_rows_of(k->s, block);
        vfloat sum[DELTA_TAPS];
        for (int back = 0; back < DELTA_TAPS; back++) sum[back] = vset(0.0f);
        for (int64_t i = 0; i < r.rows; i++) {
            vfloat by = vload_some(k->d_convolved + (r.row + i) * raw_width(k->s) + c, left);
            for (int back = 0; back < DELTA_TAPS; back++) {
                const float *x = raw_row(k, &r, i, back);
                if (x == NULL) break;
                sum[back] += by * vload_some(x + c, left);
            }
        }
        for (int back = 0; back < DELTA_TAPS; back++) total[back] += sum[back];
    }
    for (int back = 0; back < DELTA_TAPS; back++) {
        float *to = k->d_taps + back * E + c;
        vstore_some(to, vload_some(to, left) + total[back], left);
    }
}

static void convolve_backward(Device *d, const DeltaShape *s, const DeltaInput *in, void *d_raw, float *d_taps,
                              const void *d_convolved, const void *edge) {
    Tokens work = {.s = s, .in = in, .d_raw = d_raw, .d_taps = d_taps, .d_convolved = d_convolved, .edge = edge};
    parallel_for(d->threads, s->batch * delta_blocks(s), d_raw_task, &work);
    parallel_for(d->threads, (convolved_width(s) + SIMD_WIDTH - 1) / SIMD_WIDTH, d_taps_task, &work);
}

extern const DeltaTokenKernels SIMD_NAME(delta_tokens);
const DeltaTokenKernels SIMD_NAME(delta_tokens) = {prepare, prepare_backward, convolve_backward};
