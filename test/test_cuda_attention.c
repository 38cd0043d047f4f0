// Attention forward on the CUDA device, in one go and pair by pair, and the stored-probabilities baseline, against the
// definition in double precision on the same bf16 inputs.
//
// How exact it has to be: on tensor cores P is rounded to bf16 before P V, and so is the output; there is no way round
// that. So the measure is double precision with just these two roundings, "plain bf16". The kernels may be off by twice
// as much, over a whole tensor (root mean square) and at the worst element. What they add of their own, fp32 scores and
// sums and exp2 with 22 bits, is some 1e-6 of the values against bf16's 2e-3; FLOAT_ERROR leaves room for it where
// plain bf16 happens to be exact. Where scores are large, that room is the rounding of the scores themselves; the
// largest weight, 1 in plain bf16, is then off by as much, and rounding it may move the output by a unit in its last
// place. The baseline stores scores and dP in bf16, too, and so does its measure.
#include "test/cuda_cases.h"

#include <pthread.h>

#include "attention/kernel.h"
#include "comm/collectives.h"

static const double FLOAT_ERROR = 1e-6;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SLOW = 1 };
#else
enum { SLOW = 0 };
#endif

// ---- a problem, and its answers -------------------------------------------------------------------------------------

enum { OUT, D_Q, D_K, D_V, RESULTS };
static const char *const result_names[RESULTS] = {"out", "dQ", "dK", "dV"};

typedef struct Case {
    int64_t B, T, H, KV, D;
    double gain; // of the queries; every tenth key is twice as long as the others
} Case;

typedef struct Limits {
    int64_t window, document; // 0: no window; documents of so many tokens on average, 0: one
} Limits;

// On the host: q, k, v in one tensor (B, T, H + 2 KV, D) with GAP values after each token, as a model might have them;
// d_out and out (B, T, H, D) with such gaps, too. Results are without gaps.
enum { GAP = 8 };
typedef struct Problem {
    Case c;
    float *fused, *d_out, *delta;
    Limits limits;
    int32_t *first;                               // (B, T), where there are documents
    double *log_sum_exp, largest_score;           // (B, H, T)
    double *exact[RESULTS], *plain[RESULTS];      // as the fast kernels round
    double *stored[RESULTS], *stored_log_sum_exp; // as the baseline rounds
} Problem;

static float scale_of(const Case *c) { return (float)(1 / sqrt((double)c->D)); }
static int64_t fused_width(const Case *c) { return (c->H + 2 * c->KV) * c->D + GAP; }
static int64_t plain_width(const Case *c) { return c->H * c->D + GAP; }
static int64_t result_heads(const Case *c, int r) { return r == D_K || r == D_V ? c->KV : c->H; }
static int64_t result_count(const Case *c, int r) { return c->B * c->T * result_heads(c, r) * c->D; }
static int64_t result_at(const Case *c, int r, int64_t b, int64_t t, int64_t h) {
    return ((b * c->T + t) * result_heads(c, r) + h) * c->D;
}
static const float *q_at(const Problem *p, int64_t b, int64_t t, int64_t h) {
    return p->fused + (b * p->c.T + t) * fused_width(&p->c) + h * p->c.D;
}
static const float *k_at(const Problem *p, int64_t b, int64_t t, int64_t kv) { return q_at(p, b, t, p->c.H + kv); }
static const float *v_at(const Problem *p, int64_t b, int64_t t, int64_t kv) {
    return q_at(p, b, t, p->c.H + p->c.KV + kv);
}
static const float *d_out_at(const Problem *p, int64_t b, int64_t t, int64_t h) {
    return p->d_out + (b * p->c.T + t) * plain_width(&p->c) + h * p->c.D;
}
static double dot(const float *a, const float *b, int64_t D) {
    double sum = 0;
    for (int64_t d = 0; d < D; d++) sum += (double)a[d] * b[d];
    return sum;
}

typedef struct Rounding {
    bool any;    // P before P V, and results
    bool stored; // and scores, dP, dS: whatever is a matrix in memory
} Rounding;

static double round_if(bool yes, double x) { return yes ? round_to_bf16((float)x) : x; }

static Visibility visibility_of(const Problem *p, const int32_t *first) {
    return (Visibility){.window = p->limits.window, .first = first, .stride = p->c.T};
}

// Row i of head h: out and its log-sum-exp, and what it adds to the gradients; sums are rounded by the caller.
static void answer_row(const Problem *p, double *const to[RESULTS], double *log_sum_exp, Rounding rounding, int64_t b,
                       int64_t h, int64_t i, double *weight) {
    const Case *c = &p->c;
    const Visibility visibility = visibility_of(p, p->first);
    const int64_t kv = h / (c->H / c->KV), D = c->D, first = visibility_first(&visibility, b, i);
    double max = -INFINITY, sum = 0, *out = to[OUT] + result_at(c, OUT, b, i, h);
    for (int64_t j = first; j <= i; j++) {
        weight[j] = round_if(rounding.stored, scale_of(c) * dot(q_at(p, b, i, h), k_at(p, b, j, kv), D));
        max = fmax(max, weight[j]);
    }
    for (int64_t j = first; j <= i; j++) sum += weight[j] = exp(weight[j] - max);
    *log_sum_exp = max + log(sum);
    // The baseline rounds the probability, the others the weight of which it is made.
    for (int64_t j = first; j <= i; j++)
        weight[j] = rounding.stored ? round_if(true, weight[j] / sum) : round_if(rounding.any, weight[j]) / sum;
    for (int64_t j = first; j <= i; j++)
        for (int64_t d = 0; d < D; d++) out[d] += weight[j] * v_at(p, b, j, kv)[d];
    double delta = 0;
    for (int64_t d = 0; d < D; d++) {
        out[d] = round_if(rounding.any, out[d]);
        delta += out[d] * d_out_at(p, b, i, h)[d];
    }
    if (p->delta != NULL && rounding.stored) p->delta[(b * c->H + h) * c->T + i] = (float)delta;
    for (int64_t j = first; j <= i; j++) {
        const double d_weight = round_if(rounding.stored, dot(d_out_at(p, b, i, h), v_at(p, b, j, kv), D));
        const double d_score = scale_of(c) * round_if(rounding.stored, weight[j] * (d_weight - delta));
        for (int64_t d = 0; d < D; d++) {
            to[D_Q][result_at(c, D_Q, b, i, h) + d] += d_score * k_at(p, b, j, kv)[d];
            to[D_K][result_at(c, D_K, b, j, kv) + d] += d_score * q_at(p, b, i, h)[d];
            to[D_V][result_at(c, D_V, b, j, kv) + d] += weight[j] * d_out_at(p, b, i, h)[d];
        }
    }
}

static void answer(const Problem *p, double *const to[RESULTS], double *log_sum_exp, Rounding rounding) {
    const Case *c = &p->c;
    double *weight = doubles(c->T);
    for (int64_t b = 0; b < c->B; b++)
        for (int64_t h = 0; h < c->H; h++)
            for (int64_t i = 0; i < c->T; i++)
                answer_row(p, to, log_sum_exp + (b * c->H + h) * c->T + i, rounding, b, h, i, weight);
    for (int r = D_Q; r < RESULTS && rounding.any; r++)
        for (int64_t i = 0; i < result_count(c, r); i++) to[r][i] = round_if(true, to[r][i]);
    free(weight);
}

static Problem make_limited_problem(Case c, Limits limits) {
    Problem p = {.c = c};
    const int64_t fused = c.B * c.T * fused_width(&c), plain = c.B * c.T * plain_width(&c), rows = c.B * c.H * c.T;
    p.fused = random_floats(fused, 1, 0, 1);
    for (int64_t t = 0; t < c.B * c.T; t++) {
        float *token = p.fused + t * fused_width(&c);
        for (int64_t i = 0; i < c.H * c.D; i++) token[i] *= (float)c.gain;
        for (int64_t i = c.H * c.D; i < (c.H + c.KV) * c.D; i++) token[i] *= t % 10 == 0 ? 2 : 1;
    }
    rounded(p.fused, fused);
    p.d_out = rounded(random_floats(plain, 2, 0, 1), plain);
    p.delta = floats(rows);
    p.limits = limits;
    p.first = limits.document == 0 ? NULL : documents_of_test(c.B, c.T, limits.document);
    p.log_sum_exp = doubles(rows);
    p.stored_log_sum_exp = doubles(rows);
    for (int r = 0; r < RESULTS; r++) {
        p.exact[r] = doubles(result_count(&c, r));
        p.plain[r] = doubles(result_count(&c, r));
        p.stored[r] = doubles(result_count(&c, r));
    }
    answer(&p, p.plain, p.log_sum_exp, (Rounding){true, false});
    answer(&p, p.stored, p.stored_log_sum_exp, (Rounding){true, true});
    answer(&p, p.exact, p.log_sum_exp, (Rounding){false, false});
    for (int64_t i = 0; i < rows; i++) p.largest_score = fmax(p.largest_score, fabs(p.log_sum_exp[i]));
    return p;
}

static Problem make_problem(Case c) { return make_limited_problem(c, (Limits){0, 0}); }

static void free_problem(Problem *p) {
    free(p->fused), free(p->d_out), free(p->delta), free(p->first), free(p->log_sum_exp), free(p->stored_log_sum_exp);
    for (int r = 0; r < RESULTS; r++) free(p->exact[r]), free(p->plain[r]), free(p->stored[r]);
}

static const char *title(const Case *c) {
    static char text[200];
    snprintf(text, sizeof text, "B %d T %d H %d KV %d D %d gain %g", (int)c->B, (int)c->T, (int)c->H, (int)c->KV,
             (int)c->D, c->gain);
    return text;
}

// ---- on the device --------------------------------------------------------------------------------------------------

typedef struct OnDevice {
    Case c;
    AttentionShape shape;
    CudaTensor fused, out, accumulator, max, sum, log_sum_exp; // out and accumulator hold nonsense at first
    CudaTensor first;
    Visibility visibility;
} OnDevice;

static OnDevice to_device(const Problem *p) {
    const Case *c = &p->c;
    const int64_t plain = c->B * c->T * plain_width(c), rows = c->B * c->H * c->T;
    float *nonsense = random_floats(plain, 9, 0, 100);
    OnDevice x = {.c = *c, .shape = {c->B, c->H, c->KV, c->D, scale_of(c)}};
    x.fused = cuda_storage(p->fused, c->B * c->T * fused_width(c));
    x.out = cuda_storage(nonsense, plain);
    x.accumulator = cuda_floats(nonsense, plain);
    CudaTensor *values[] = {&x.max, &x.sum, &x.log_sum_exp};
    for (int i = 0; i < 3; i++) *values[i] = cuda_floats(nonsense, rows);
    free(nonsense);
    if (p->first != NULL) x.first = cuda_tokens(p->first, c->B * c->T);
    x.visibility = visibility_of(p, x.first.data);
    return x;
}

static void free_device(OnDevice *x) {
    if (x->first.data != NULL) cuda_free(&x->first);
    CudaTensor *all[] = {&x->fused, &x->out, &x->accumulator, &x->max, &x->sum, &x->log_sum_exp};
    for (int i = 0; i < 6; i++) cuda_free(all[i]);
}

static TokenView fused_view(const OnDevice *x, int64_t heads_before, int64_t start) {
    const int64_t width = fused_width(&x->c);
    return (TokenView){at(cuda_device_of_test(), x->fused.data, start * width + heads_before * x->c.D), x->c.T * width,
                       width};
}
static TokenView out_view(const OnDevice *x, int64_t start) {
    const int64_t width = plain_width(&x->c);
    return (TokenView){at(cuda_device_of_test(), x->out.data, start * width), x->c.T * width, width};
}
static RowView row_view(const OnDevice *x, const CudaTensor *rows, int64_t start) {
    return (RowView){(float *)rows->data + start, x->c.H * x->c.T, x->c.T};
}
static QueryForward query_of(const OnDevice *x, Chunk chunk) {
    const int64_t width = plain_width(&x->c);
    return (QueryForward){.chunk = chunk,
                          .q = fused_view(x, 0, chunk.start),
                          .accumulator = {(float *)x->accumulator.data + chunk.start * width, x->c.T * width, width},
                          .max = row_view(x, &x->max, chunk.start),
                          .sum = row_view(x, &x->sum, chunk.start),
                          .visibility = x->visibility};
}
static KeyValue keys_of(const OnDevice *x, Chunk chunk) {
    return (KeyValue){
        .chunk = chunk, .k = fused_view(x, x->c.H, chunk.start), .v = fused_view(x, x->c.H + x->c.KV, chunk.start)};
}

static void run_whole(const OnDevice *x) {
    Device *device = cuda_device_of_test();
    const Chunk all = {0, x->c.T};
    QueryForward query = {.chunk = all, .q = fused_view(x, 0, 0), .visibility = x->visibility};
    KeyValue keys = keys_of(x, all);
    device->attention->forward_whole(device, &x->shape, &query, &keys, out_view(x, 0), row_view(x, &x->log_sum_exp, 0));
}

// How the sequence is cut into chunks, and in which order the pairs are visited.
typedef struct Walk {
    int query_chunks, key_chunks;
    uint64_t order; // 0: row by row; otherwise the seed of a permutation
} Walk;

static Chunk chunk_of(int64_t T, int chunks, int i) {
    const int64_t start = T * i / chunks;
    return (Chunk){start, T * (i + 1) / chunks - start};
}

static void run_pairs(const OnDevice *x, Walk walk) {
    Device *device = cuda_device_of_test();
    const AttentionKernels *kernels = device->attention;
    const uint64_t pairs = (uint64_t)walk.query_chunks * (uint64_t)walk.key_chunks;
    for (int i = 0; i < walk.query_chunks; i++) {
        QueryForward query = query_of(x, chunk_of(x->c.T, walk.query_chunks, i));
        kernels->begin(device, &x->shape, &query);
    }
    for (uint64_t n = 0; n < pairs; n++) {
        const int pair = (int)(walk.order == 0 ? n : random_permute(walk.order, 0, pairs, n));
        QueryForward query = query_of(x, chunk_of(x->c.T, walk.query_chunks, pair / walk.key_chunks));
        KeyValue keys = keys_of(x, chunk_of(x->c.T, walk.key_chunks, pair % walk.key_chunks));
        kernels->forward_pair(device, &x->shape, &query, &keys);
    }
    for (int i = 0; i < walk.query_chunks; i++) {
        const Chunk chunk = chunk_of(x->c.T, walk.query_chunks, i);
        QueryForward query = query_of(x, chunk);
        kernels->finish(device, &x->shape, &query, out_view(x, chunk.start), row_view(x, &x->log_sum_exp, chunk.start));
    }
}

// ---- comparison -----------------------------------------------------------------------------------------------------

typedef struct Deviation {
    double rms, max;
} Deviation;

static void note(Deviation *deviation, double difference) {
    deviation->rms += difference * difference;
    if (!(fabs(difference) <= deviation->max)) deviation->max = fabs(difference); // a NaN stays
}

// got: a tensor (B, T, heads, D) with tokens `width` apart.
static void compare(const Problem *p, const char *what, int r, const float *got, int64_t width, const double *plain) {
    const Case *c = &p->c;
    const double *exact = p->exact[r], room = fmax(FLOAT_ERROR, fmin(0x1p-7, 0x1p-23 * p->largest_score));
    Deviation own = {0, 0}, allowed = {0, 0};
    double largest = 0;
    const int64_t row = result_heads(c, r) * c->D, count = result_count(c, r);
    for (int64_t i = 0; i < count; i++) {
        note(&own, got[i / row * width + i % row] - exact[i]);
        note(&allowed, plain[i] - exact[i]);
        largest = fmax(largest, fabs(exact[i]));
    }
    own.rms = sqrt(own.rms / (double)count), allowed.rms = sqrt(allowed.rms / (double)count);
    if (getenv("SHOW_ERRORS") != NULL)
        print_message("%s, %s, %s: rms %.2e (plain bf16 %.2e), worst %.2e (%.2e)\n", what, title(c), result_names[r],
                      own.rms, allowed.rms, own.max, allowed.max);
    if (!(own.rms <= 2 * allowed.rms + room * largest) || !(own.max <= 2 * allowed.max + room * largest))
        fail_msg("%s, %s, %s: off by rms %.3g, worst %.3g; plain bf16 by %.3g, %.3g", what, title(c), result_names[r],
                 own.rms, own.max, allowed.rms, allowed.max);
}

// Gaps between tokens must be what they were.
static void expect_gaps(const Case *c, const CudaTensor *tensor, const float *got) {
    float *before = random_floats(tensor->count, 9, 0, 100);
    for (int64_t t = 0; t < c->B * c->T; t++)
        for (int64_t i = c->H * c->D; i < plain_width(c); i++) {
            const int64_t place = t * plain_width(c) + i;
            if (got[place] != (tensor->kind == KIND_STORAGE ? round_to_bf16(before[place]) : before[place]))
                fail_msg("%s: the gap after token %d was written", title(c), (int)t);
        }
    free(before);
}

// A score is a sum of fp32 products, so that its error is some units in the last place of the largest.
static void expect_log_sum_exp(const Problem *p, const char *what, const float *got, const double *expected) {
    const double tolerance = 0x1p-20 * fmax(1, p->largest_score);
    for (int64_t i = 0; i < p->c.B * p->c.H * p->c.T; i++)
        if (!(fabs(got[i] - expected[i]) <= tolerance))
            fail_msg("%s, %s: log-sum-exp %d is %.9g, not %.9g", what, title(&p->c), (int)i, got[i], expected[i]);
}

static void expect_forward(const Problem *p, const char *what, const OnDevice *x) {
    float *out = cuda_fetch(&x->out), *log_sum_exp = cuda_fetch(&x->log_sum_exp),
          *accumulator = cuda_fetch(&x->accumulator);
    expect_gaps(&p->c, &x->out, out);
    expect_gaps(&p->c, &x->accumulator, accumulator);
    compare(p, what, OUT, out, plain_width(&p->c), p->plain[OUT]);
    expect_log_sum_exp(p, what, log_sum_exp, p->log_sum_exp);
    free(out), free(log_sum_exp), free(accumulator);
}

static void check_limited_whole(Case c, Limits limits) {
    cuda_device_of_test();
    Problem p = make_limited_problem(c, limits);
    OnDevice x = to_device(&p);
    run_whole(&x);
    expect_forward(&p, "whole", &x);
    free_device(&x);
    free_problem(&p);
}

static void check_whole(Case c) { check_limited_whole(c, (Limits){0, 0}); }

static void check_limited_walk(Case c, Limits limits, Walk walk) {
    cuda_device_of_test();
    char what[80];
    snprintf(what, sizeof what, "%d x %d chunks, order %d", walk.query_chunks, walk.key_chunks, (int)walk.order);
    Problem p = make_limited_problem(c, limits);
    OnDevice x = to_device(&p);
    run_pairs(&x, walk);
    expect_forward(&p, what, &x);
    free_device(&x);
    free_problem(&p);
}

static void check_walk(Case c, Walk walk) { check_limited_walk(c, (Limits){0, 0}, walk); }

// ---- tests ----------------------------------------------------------------------------------------------------------

// To the bit the same in any order of threads and blocks: whole, and with carried state.
enum { SAME_T = SLOW ? 200 : 400, SAME_H = 4, SAME_D = 64, SAME_COUNT = SAME_T * (SAME_H * SAME_D + GAP) };
static void same_bits_work(Device *device, void *results) {
    (void)device;
    Problem p = make_problem((Case){1, SAME_T, SAME_H, 2, SAME_D, 1});
    OnDevice x = to_device(&p);
    run_whole(&x);
    cuda_fetch_raw(&x.out, results);
    run_pairs(&x, (Walk){2, 3, 5});
    cuda_fetch_raw(&x.out, (uint16_t *)results + SAME_COUNT);
    free_device(&x);
    free_problem(&p);
}
static void test_same_bits(void **state) {
    (void)state;
    expect_same_bits_twice("attention forward", same_bits_work, 2 * SAME_COUNT * sizeof(uint16_t));
}

static void test_lengths(void **state) {
    (void)state;
    const int64_t lengths[] = {1, 2, 17, 63, 64, 65, 127, 130, 200};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) check_whole((Case){1, lengths[i], 1, 1, 64, 1});
    check_whole((Case){1, 500, 2, 2, 64, 1});
    check_whole((Case){1, 300, 1, 1, 128, 1});
}

// Sizes without a kernel of their own are rounded up, and the rest filled with zeros.
static void test_head_sizes(void **state) {
    (void)state;
    const int64_t sizes[] = {8, 24, 32, 56, 80, 96, 104, 128};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) check_whole((Case){1, 70, 2, 1, sizes[i], 1});
}

static void test_batches_and_groups(void **state) {
    (void)state;
    check_whole((Case){2, 33, 6, 2, 32, 1});
    check_walk((Case){2, 33, 6, 2, 32, 1}, (Walk){2, 2, 0});
    check_whole((Case){3, 10, 2, 2, 64, 1});
}

static void test_carried_state(void **state) {
    (void)state;
    check_walk((Case){1, 130, 1, 1, 64, 1}, (Walk){1, 1, 0});
    check_walk((Case){1, 200, 1, 1, 64, 1}, (Walk){4, 4, 0});
    check_walk((Case){1, 130, 2, 1, 64, 1}, (Walk){3, 5, 7}); // queries cut elsewhere than keys
    check_walk((Case){1, 130, 1, 1, 128, 1}, (Walk){2, 3, 8});
    check_walk((Case){1, 67, 2, 1, 24, 1}, (Walk){8, 8, 9});
    check_walk((Case){1, 6, 1, 1, 96, 1}, (Walk){6, 6, 10}); // chunks of one token
}

// Windows of one key, of less than a tile, of many; documents of a few tokens, of some tiles; and both.
static void test_windows_and_documents(void **state) {
    (void)state;
    const int64_t windows[] = {1, 2, 31, 33, 64, 100, 130, 1000};
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++) {
        const Case c = {1, 160, 1, 1, i % 2 == 0 ? 64 : 32, 1};
        check_limited_whole(c, (Limits){windows[i], 0});
        check_limited_walk(c, (Limits){windows[i], 0}, (Walk){3, 5, 20 + i});
    }
    const int64_t documents[] = {1, 3, 20, 70, 150};
    for (size_t i = 0; i < sizeof documents / sizeof *documents; i++) {
        const Case c = {2, 110, 2, 1, i % 2 == 0 ? 32 : 128, 1};
        check_limited_whole(c, (Limits){0, documents[i]});
        check_limited_walk(c, (Limits){0, documents[i]}, (Walk){4, 3, 30 + i});
    }
    check_limited_whole((Case){2, 190, 2, 2, 96, 1}, (Limits){40, 60});
    check_limited_walk((Case){2, 190, 2, 2, 96, 1}, (Limits){40, 60}, (Walk){3, 3, 40});
}

// What is not a number stays in tiles that no query of a block sees: so these are not worked on.
static void test_unseen_tiles_are_left_out(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    for (int documents = 0; documents < 2; documents++) {
        enum { T = 500, START = 410, SEEN = 400 }; // the first key that query START, the chunk's first, sees
        Problem p = make_limited_problem((Case){1, T, 1, 1, 64, 1}, (Limits){documents ? 0 : START - SEEN + 1, 0});
        if (documents) p.first = documents_of_test(1, T, 1);
        for (int64_t i = 0; i < T && documents; i++) p.first[i] = i < SEEN ? 0 : SEEN;
        for (int64_t t = 0; t < 384; t++) // whole tiles of 48, and of 128
            for (int64_t d = 0; d < 3 * 64; d++) p.fused[t * fused_width(&p.c) + d] = NAN;
        OnDevice x = to_device(&p);
        const KeyValue keys = keys_of(&x, (Chunk){0, T});
        const QueryForward query = query_of(&x, (Chunk){START, T - START});
        device->attention->forward_whole(device, &x.shape, &query, &keys, out_view(&x, START),
                                         row_view(&x, &x.log_sum_exp, START));
        float *out = cuda_fetch(&x.out);
        for (int64_t t = START; t < T; t++)
            for (int64_t d = 0; d < 64; d++) assert_true(isfinite(out[t * plain_width(&p.c) + d]));
        free(out);
        free_device(&x);
        free_problem(&p);
    }
}

// What Hopper's kernel does in its own sizes: blocks of 192 queries, three times 64, the last of which may be
// incomplete; tiles of 128 keys, or 80 for heads of 128, of which the three warpgroups see different ones; more pieces
// of work than there are multiprocessors.
static void test_wide_blocks(void **state) {
    (void)state;
    if (!may_be_hopper()) skip();
    const int64_t lengths[] = {1, 37, 191, 192, 193, 300};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        check_whole((Case){1, lengths[i], 1, 1, 128, 1});
        if (lengths[i] > 128) check_whole((Case){2, lengths[i], 4, 1, 64, 1});
    }
    check_walk((Case){1, SLOW ? 250 : 450, 2, 1, 64, 1}, (Walk){2, 3, 0});
    check_walk((Case){1, SLOW ? 250 : 450, 2, 1, 128, 1}, (Walk){3, 2, 13});
    if (SLOW) return;
    check_whole((Case){1, 1000, 3, 3, 64, 1});
    check_walk((Case){1, 1000, 2, 1, 128, 1}, (Walk){2, 4, 14});
}

// Windows and documents of less than a tile, and of more than a block; the rows of a block begin in several documents,
// one of them long.
static void test_wide_limits(void **state) {
    (void)state;
    if (!may_be_hopper()) skip();
    const Limits limits[] = {{1, 0}, {17, 0}, {64, 0}, {500, 0}, {0, 5}, {0, 60}, {0, 400}, {90, 150}};
    for (size_t i = 0; i < (SLOW ? 6 : sizeof limits / sizeof *limits); i++)
        for (int64_t D = 64; D <= 128; D += 64) {
            const Case c = {1 + (int64_t)(i % 2), SLOW ? 250 : 600, 2, 1, D, 1};
            if (SLOW && D / 64 % 2 == (int64_t)i % 2) continue; // every other one
            check_limited_whole(c, limits[i]);
            check_limited_walk(c, limits[i], (Walk){2, 3, 50 + i});
        }
    check_whole((Case){1, 260, 1, 1, 64, 400});
    check_walk((Case){1, 260, 1, 1, 128, 1e5}, (Walk){2, 2, 12});
}

// 33 queries, one more than a warp has, from every position on, with all keys: the diagonal crosses the tiles
// everywhere.
static void check_every_offset(int64_t D) {
    enum { QUERIES = 33 };
    Device *device = cuda_device_of_test();
    Problem p = make_problem((Case){1, 100, 1, 1, D, 1});
    OnDevice x = to_device(&p);
    const KeyValue keys = keys_of(&x, (Chunk){0, p.c.T});
    for (int64_t start = 0; start + QUERIES <= p.c.T; start++) {
        const QueryForward query = query_of(&x, (Chunk){start, QUERIES});
        device->attention->forward_whole(device, &x.shape, &query, &keys, out_view(&x, start),
                                         row_view(&x, &x.log_sum_exp, start));
        float *out = cuda_fetch(&x.out);
        for (int64_t t = start; t < start + QUERIES; t++)
            for (int64_t d = 0; d < D; d++) { // weights of sum 1, each off by half a unit in the last place
                const int64_t i = result_at(&p.c, OUT, 0, t, 0) + d;
                expect_storage("out", i, out[t * plain_width(&p.c) + d], p.exact[OUT][i], 0x1p-9 * 3);
            }
        free(out);
    }
    free_device(&x);
    free_problem(&p);
}

static void test_every_offset(void **state) {
    (void)state;
    check_every_offset(32);
    check_every_offset(64);
    if (may_be_hopper()) check_every_offset(128);
}

// Scores of a thousand, and of 1e5 and more, of both signs: any exp of a positive number would overflow.
static void test_large_scores(void **state) {
    (void)state;
    check_whole((Case){1, 130, 1, 1, 64, 400});
    check_walk((Case){1, 130, 1, 1, 64, 400}, (Walk){3, 5, 11});
    check_whole((Case){1, 65, 1, 1, 32, 1e5});
    check_walk((Case){1, 65, 1, 1, 128, 1e5}, (Walk){2, 2, 12});
}

static void test_future_is_not_seen(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    Problem p = make_problem((Case){1, 100, 2, 1, 32, 1});
    OnDevice x = to_device(&p);
    QueryForward query = query_of(&x, (Chunk){0, 50});
    KeyValue past = keys_of(&x, (Chunk){0, 50}), future = keys_of(&x, (Chunk){50, 50});
    device->attention->begin(device, &x.shape, &query);
    device->attention->forward_pair(device, &x.shape, &query, &past);
    float *before[3], *after[3];
    CudaTensor *state_of[] = {&x.accumulator, &x.max, &x.sum};
    for (int i = 0; i < 3; i++) before[i] = cuda_fetch(state_of[i]);
    device->attention->forward_pair(device, &x.shape, &query, &future);
    for (int i = 0; i < 3; i++) {
        after[i] = cuda_fetch(state_of[i]);
        assert_memory_equal(before[i], after[i], (size_t)state_of[i]->count * sizeof(float));
        free(before[i]), free(after[i]);
    }
    free_device(&x);
    free_problem(&p);
}

// Queries 0 to 39 with keys 25 to 39 only: the first 25 see nothing, number 25 one key.
static void test_rows_without_keys(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    Problem p = make_problem((Case){1, 40, 1, 1, 64, 1});
    for (int whole = 0; whole < 2; whole++) {
        OnDevice x = to_device(&p);
        QueryForward query = query_of(&x, (Chunk){0, 40});
        KeyValue late = keys_of(&x, (Chunk){25, 15});
        RowView log_sum_exp = row_view(&x, whole ? &x.log_sum_exp : &x.max, 0); // may take the place of max
        if (whole) {
            device->attention->forward_whole(device, &x.shape, &query, &late, out_view(&x, 0), log_sum_exp);
        } else {
            device->attention->begin(device, &x.shape, &query);
            device->attention->forward_pair(device, &x.shape, &query, &late);
            device->attention->finish(device, &x.shape, &query, out_view(&x, 0), log_sum_exp);
        }
        float *out = cuda_fetch(&x.out), *rows = cuda_fetch(whole ? &x.log_sum_exp : &x.max);
        for (int64_t i = 0; i < 40; i++) {
            assert_true(i < 25 ? rows[i] == -INFINITY : isfinite(rows[i]));
            for (int64_t d = 0; d < 64; d++) {
                const float o = out[i * plain_width(&p.c) + d];
                assert_true(i < 25 ? o == 0 : isfinite(o));
                if (i == 25) assert_true(o == v_at(&p, 0, 25, 0)[d]);
            }
        }
        free(out), free(rows);
        free_device(&x);
    }
    free_problem(&p);
}

// What is not a number reaches every row that sees it, and is not lost in a maximum.
static void test_nan_is_kept(void **state) {
    (void)state;
    cuda_device_of_test();
    Problem p = make_problem((Case){1, 80, 1, 1, 64, 1});
    p.fused[20 * fused_width(&p.c) + p.c.D + 3] = NAN; // in K
    for (int whole = 0; whole < 2; whole++) {
        OnDevice x = to_device(&p);
        if (whole) run_whole(&x);
        else run_pairs(&x, (Walk){2, 2, 0});
        float *out = cuda_fetch(&x.out);
        for (int64_t i = 0; i < 80; i++)
            assert_true(i < 20 ? isfinite(out[i * plain_width(&p.c)]) : isnan(out[i * plain_width(&p.c)]));
        free(out);
        free_device(&x);
    }
    free_problem(&p);
}

static void test_row_delta(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    const int64_t sizes[] = {8, 24, 64, 96, 128};
    for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) {
        const Case c = {2, 13, 3, 3, sizes[n], 1};
        const int64_t count = c.B * c.T * plain_width(&c), width = plain_width(&c), T = c.T;
        float *out = rounded(random_floats(count, 1, 0, 1), count),
              *d_out = rounded(random_floats(count, 2, 0, 1), count);
        CudaTensor o = cuda_storage(out, count), d = cuda_storage(d_out, count),
                   delta = cuda_floats(NULL, c.B * c.H * T);
        const AttentionShape shape = {c.B, c.H, c.KV, c.D, 1};
        const Chunk chunk = {5, T};
        device->attention->row_delta(device, &shape, chunk, (TokenView){o.data, T * width, width},
                                     (TokenView){d.data, T * width, width}, (RowView){delta.data, c.H * T, T});
        float *got = cuda_fetch(&delta);
        for (int64_t i = 0; i < c.B * c.H * T; i++) {
            const int64_t first = (i / (c.H * T) * T + i % T) * width + i / T % c.H * c.D;
            // c.D terms of size 1 in fp32: an ulp for each addition at most.
            expect_near("delta", i, got[i], dot(out + first, d_out + first, c.D), 0x1p-23 * (double)c.D);
        }
        free(out), free(d_out), free(got);
        cuda_free(&o), cuda_free(&d), cuda_free(&delta);
    }
}

// ---- beside NCCL ----------------------------------------------------------------------------------------------------

static bool join_as(Device *device, const CommUniqueId *id, int rank) {
    Error err = {0};
    void *member = device->collectives->join(device, id, rank, 2, &err);
    if (member != NULL) device->collectives->leave(member);
    return member != NULL;
}
static void *other_rank(void *id) { // with a device of its own; returns NULL if it failed
    Device device;
    Error err = {0};
    if (!device_open(&device, cuda_device_kind(), 1, 1, &err)) return NULL;
    const bool joined = join_as(&device, id, 1);
    device.close(&device);
    return joined ? id : NULL;
}

// The device becomes one of two ranks that NCCL has connected, which attention goes by from then on.
static void connect_by_nccl(Device *device) {
    Error err = {0};
    CommUniqueId id;
    pthread_t thread;
    void *joined;
    if (!device->collectives->unique_id(&id, &err)) fail_msg("%s", err.message);
    assert_int_equal(pthread_create(&thread, NULL, other_rank, &id), 0);
    assert_true(join_as(device, &id, 0));
    assert_int_equal(pthread_join(thread, &joined), 0);
    assert_non_null(joined);
}

// Where NCCL works beside, Hopper's forward kernel has a block for each piece of work if it is long: here 2^25 scores
// and more on the emulated GPU's four multiprocessors. The window spares it nearly all: each query sees itself alone,
// so that out is v, to the bit, and the log-sum-exp the one score. Of a piece left out the nonsense from before would
// stay; one done twice would double its sums, and so add log 2. A second launch finds the counter as the first one left
// it.
static void test_beside_nccl(void **state) {
    (void)state;
    if (!may_be_hopper() || cuda_device_is_gpu()) skip();
    Device *device = cuda_device_of_test();
    const Case c = {1, 5900, 1, 1, 64, 1};
    const int64_t width = fused_width(&c), plain = plain_width(&c), count = c.T * width;
    Problem p = {.c = c, .limits = {1, 0}, .fused = random_floats(count, 1, 0, 1)};
    rounded(p.fused, count);
    OnDevice x = to_device(&p);
    connect_by_nccl(device);
    for (int n = 0; n < 4; n++) {
        if (n % 2 == 0) run_whole(&x);
        else run_pairs(&x, (Walk){1, 1, 0});
        float *out = cuda_fetch(&x.out), *log_sum_exp = cuda_fetch(&x.log_sum_exp);
        for (int64_t t = 0; t < c.T; t++) {
            const double score = scale_of(&c) * dot(q_at(&p, 0, t, 0), k_at(&p, 0, t, 0), c.D);
            expect_near("log-sum-exp", t, log_sum_exp[t], score, 0x1p-20 * fmax(1, fabs(score)));
            for (int64_t d = 0; d < c.D; d++)
                if (out[t * plain + d] != v_at(&p, 0, t, 0)[d])
                    fail_msg("run %d, out %d, %d: %g", n, (int)t, (int)d, (double)out[t * plain + d]);
        }
        free(out), free(log_sum_exp);
    }
    free_device(&x);
    free(p.fused);
}

// ---- the baseline ---------------------------------------------------------------------------------------------------

static void check_vanilla(Case c, Limits limits) {
    Device *device = cuda_device_of_test();
    const AttentionKernels *kernels = device->attention;
    Problem p = make_limited_problem(c, limits);
    OnDevice x = to_device(&p);
    const int64_t width = fused_width(&c), plain = plain_width(&c), T = c.T;
    CudaTensor probabilities = cuda_storage(NULL, c.B * c.H * T * T), d_out = cuda_storage(p.d_out, c.B * T * plain);
    CudaTensor rows = cuda_tensor_at(KIND_BYTES, NULL, (int64_t)kernels->vanilla_row_bytes(&x.shape, T), 0);
    CudaTensor gradients = cuda_storage(NULL, c.B * T * width), delta = cuda_floats(NULL, c.B * c.H * T);
    const TokenView q = fused_view(&x, 0, 0), k = fused_view(&x, c.H, 0), v = fused_view(&x, c.H + c.KV, 0);
    const TokenView d_out_view = {d_out.data, T * plain, plain};
    TokenView d[RESULTS];
    const int64_t offsets[RESULTS] = {0, 0, c.H * c.D, (c.H + c.KV) * c.D};
    for (int r = D_Q; r < RESULTS; r++) d[r] = (TokenView){at(device, gradients.data, offsets[r]), T * width, width};
    kernels->vanilla_forward(device, &x.shape, T, &x.visibility, probabilities.data, out_view(&x, 0),
                             x.log_sum_exp.data, q, k, v);
    kernels->row_delta(device, &x.shape, (Chunk){0, T}, out_view(&x, 0), d_out_view, (RowView){delta.data, c.H * T, T});
    kernels->vanilla_backward(device, &x.shape, T, &x.visibility, probabilities.data, rows.data, d[D_Q], d[D_K], d[D_V],
                              q, k, v, out_view(&x, 0), x.log_sum_exp.data, d_out_view, delta.data);
    float *out = cuda_fetch(&x.out), *log_sum_exp = cuda_fetch(&x.log_sum_exp), *got = cuda_fetch(&gradients);
    expect_gaps(&c, &x.out, out);
    compare(&p, "vanilla", OUT, out, plain, p.stored[OUT]);
    for (int r = D_Q; r < RESULTS; r++) compare(&p, "vanilla", r, got + offsets[r], width, p.stored[r]);
    // Scores are rounded here and there, but not always to the same side: half an ulp of bf16 each.
    for (int64_t i = 0; i < c.B * c.H * T; i++)
        expect_near("log-sum-exp", i, log_sum_exp[i], p.stored_log_sum_exp[i], 0x1p-9 * fmax(1, p.largest_score));
    free(out), free(log_sum_exp), free(got);
    CudaTensor *all[] = {&probabilities, &d_out, &rows, &gradients, &delta};
    for (int i = 0; i < 5; i++) cuda_free(all[i]);
    free_device(&x);
    free_problem(&p);
}

static void test_vanilla(void **state) {
    (void)state;
    check_vanilla((Case){1, 1, 1, 1, 64, 1}, (Limits){0, 0});
    check_vanilla((Case){2, 17, 4, 2, 32, 1}, (Limits){0, 0});
    check_vanilla((Case){1, 64, 2, 2, 64, 1}, (Limits){0, 0});
    check_vanilla((Case){1, 65, 2, 1, 24, 3}, (Limits){0, 0});
    check_vanilla((Case){1, 65, 2, 1, 32, 1}, (Limits){17, 0});
    check_vanilla((Case){2, 40, 2, 1, 32, 1}, (Limits){0, 9});
    check_vanilla((Case){2, 64, 2, 2, 64, 1}, (Limits){20, 30});
}

static void test_unsupported(void **state) {
    (void)state;
    const AttentionKernels *kernels = cuda_device_of_test()->attention;
    assert_null(kernels->unsupported(&(AttentionShape){1, 4, 2, 64, 0.125f}));
    assert_non_null(kernels->unsupported(&(AttentionShape){1, 4, 2, 20, 0.125f}));
    assert_non_null(kernels->unsupported(&(AttentionShape){1, 4, 2, 136, 0.125f}));
    assert_non_null(kernels->unsupported(&(AttentionShape){1, 4, 2, 64, 0}));
}

static int all_tests(const char *name) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits), // first: it opens devices of its own
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_head_sizes),
        cmocka_unit_test(test_batches_and_groups),
        cmocka_unit_test(test_carried_state),
        cmocka_unit_test(test_windows_and_documents),
        cmocka_unit_test(test_unseen_tiles_are_left_out),
        cmocka_unit_test(test_wide_blocks),
        cmocka_unit_test(test_wide_limits),
        cmocka_unit_test(test_every_offset),
        cmocka_unit_test(test_large_scores),
        cmocka_unit_test(test_future_is_not_seen),
        cmocka_unit_test(test_rows_without_keys),
        cmocka_unit_test(test_nan_is_kept),
        cmocka_unit_test(test_row_delta),
        cmocka_unit_test(test_vanilla),
        cmocka_unit_test(test_unsupported),
        cmocka_unit_test(test_beside_nccl), // last: the device is then one of two
    };
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(void) { return run_on_architectures(all_tests, "cuda_attention"); }
