// Attention's backward pass on the CUDA device, one (query chunk, key/value chunk) pair at a time, against the same
// pair in double precision on the same bf16 inputs: added to sums in fp32 (backward_pair), and by itself in storage
// type (backward_whole).
//
// How exact it has to be: on tensor cores P and dS are rounded to bf16 before the products they go into, there is no
// way round that. So the measure is double precision with just these two roundings, "plain bf16"; the kernels may be
// off by twice as much, over a whole tensor (root mean square) and at the worst element. What they add of their own,
// fp32 scores, sums and exp2 with 22 bits, is some 1e-6 of the terms against bf16's 2e-3. A result in storage type has
// one rounding more, and so has plain bf16 then.
//
// There are two sets of kernels (attention/cuda/ and attention/cuda/hopper/), and the device's compute capability says
// which is at work; where it is emulated, all cases are run on both. Hopper's serve heads of 64 and 128, in tiles of up
// to 128 queries and 128 keys, and use scratch memory, which holds no numbers before each call.
#include "test/cuda_cases.h"

#include "attention/kernel.h"
#include "layers/cuda/scratch.h"

// Under sanitizers, which make it slow, only some of the many cases.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { STRIDE = 3 };
#else
enum { STRIDE = 1 };
#endif

// ---- a problem ------------------------------------------------------------------------------------------------------

enum { D_Q, D_K, D_V, RESULTS };
static const char *const result_names[RESULTS] = {"dQ", "dK", "dV"};

typedef struct Case {
    int64_t B, T, H, KV, D; // of the whole sequence
    Chunk queries, keys;
    double outlier; // every tenth key is longer by this factor
} Case;

typedef struct Limits {
    int64_t window, document; // 0: no window; documents of so many tokens on average, 0: one
} Limits;

// On the host: q, k, v in one tensor (B, T, H + 2 KV, D) as a model has them, d_out (B, T, H, D), rows (B, H, T). What
// is added to: d_q (B, Tq, H, D), and d_k, d_v in one tensor (Tk, 2, B, KV, D), as they travel between ranks.
typedef struct Problem {
    Case c;
    float *fused, *d_out, *log_sum_exp, *delta, *before[RESULTS]; // before[D_V] is not used: it stands with d_k
    double *exact[RESULTS], *plain[RESULTS];                      // without what was there before
    Limits limits;
    int32_t *first; // (B, T), where there are documents
} Problem;

static float scale_of(const Case *c) { return (float)(1 / sqrt((double)c->D)); }
static int64_t fused_width(const Case *c) { return (c->H + 2 * c->KV) * c->D; }
static int64_t result_count(const Case *c, int result) {
    return result == D_Q ? c->B * c->queries.length * c->H * c->D : c->B * c->keys.length * c->KV * c->D;
}
static int64_t memory_count(const Case *c, int result) { return result_count(c, result) * (result == D_Q ? 1 : 2); }

// Where element (b, t, h, d) of a result stands, among its own and in memory. t counts from the start of its chunk.
static int64_t result_at(const Case *c, int result, int64_t b, int64_t t, int64_t h) {
    return result == D_Q ? ((b * c->queries.length + t) * c->H + h) * c->D
                         : ((b * c->keys.length + t) * c->KV + h) * c->D;
}
static int64_t memory_at(const Case *c, int result, int64_t b, int64_t t, int64_t h) {
    if (result == D_Q) return result_at(c, result, b, t, h);
    return ((t * 2 + (result == D_V)) * c->B + b) * c->KV * c->D + h * c->D;
}

static const float *q_at(const Problem *p, int64_t b, int64_t t, int64_t h) {
    return p->fused + (b * p->c.T + t) * fused_width(&p->c) + h * p->c.D;
}
static const float *k_at(const Problem *p, int64_t b, int64_t t, int64_t kv) { return q_at(p, b, t, p->c.H + kv); }
static const float *v_at(const Problem *p, int64_t b, int64_t t, int64_t kv) {
    return q_at(p, b, t, p->c.H + p->c.KV + kv);
}
static const float *d_out_at(const Problem *p, int64_t b, int64_t t, int64_t h) {
    return p->d_out + ((b * p->c.T + t) * p->c.H + h) * p->c.D;
}

static double dot(const float *a, const float *b, int64_t D) {
    double sum = 0;
    for (int64_t d = 0; d < D; d++) sum += (double)a[d] * b[d];
    return sum;
}

static Visibility visibility_of(const Problem *p, const int32_t *first) {
    return (Visibility){.window = p->limits.window, .first = first, .stride = p->c.T};
}

// The row's log-sum-exp and delta, over all keys of the sequence it sees.
static void whole_row(Problem *p, int64_t b, int64_t h, int64_t i, double *score) {
    const Case *c = &p->c;
    const int64_t kv = h / (c->H / c->KV), row = (b * c->H + h) * c->T + i;
    const Visibility visibility = visibility_of(p, p->first);
    const int64_t first = visibility_first(&visibility, b, i);
    double max = -INFINITY, sum = 0, delta = 0;
    for (int64_t j = first; j <= i; j++) {
        score[j] = scale_of(c) * dot(q_at(p, b, i, h), k_at(p, b, j, kv), c->D);
        max = fmax(max, score[j]);
    }
    for (int64_t j = first; j <= i; j++) {
        sum += exp(score[j] - max);
        delta += exp(score[j] - max) * dot(d_out_at(p, b, i, h), v_at(p, b, j, kv), c->D);
    }
    p->log_sum_exp[row] = (float)(max + log(sum));
    p->delta[row] = (float)(delta / sum);
}

// Row i's part in this pair, with what the device is given: fp32 log_sum_exp and delta.
static void pair_row(Problem *p, double *const to[RESULTS], int64_t b, int64_t h, int64_t i, bool plain) {
    const Case *c = &p->c;
    const int64_t kv = h / (c->H / c->KV), row = (b * c->H + h) * c->T + i, D = c->D;
    double *d_q = to[D_Q] + result_at(c, D_Q, b, i - c->queries.start, h);
    if (p->log_sum_exp[row] == -INFINITY) return;
    const Visibility visibility = visibility_of(p, p->first);
    for (int64_t j = c->keys.start; j < c->keys.start + c->keys.length && j <= i; j++) {
        if (j < visibility_first(&visibility, b, i)) continue;
        const float *q = q_at(p, b, i, h), *k = k_at(p, b, j, kv), *d_out = d_out_at(p, b, i, h);
        double weight = exp(scale_of(c) * dot(q, k, D) - p->log_sum_exp[row]);
        double d_score = weight * (dot(d_out, v_at(p, b, j, kv), D) - p->delta[row]);
        if (plain) weight = round_to_bf16((float)weight), d_score = round_to_bf16((float)d_score);
        double *d_k = to[D_K] + result_at(c, D_K, b, j - c->keys.start, kv);
        double *d_v = to[D_V] + result_at(c, D_V, b, j - c->keys.start, kv);
        for (int64_t d = 0; d < D; d++) {
            d_q[d] += scale_of(c) * d_score * k[d];
            d_k[d] += scale_of(c) * d_score * q[d];
            d_v[d] += weight * d_out[d];
        }
    }
}

static void answer(Problem *p) {
    const Case *c = &p->c;
    for (int64_t b = 0; b < c->B; b++)
        for (int64_t h = 0; h < c->H; h++)
            for (int64_t i = c->queries.start; i < c->queries.start + c->queries.length; i++) {
                pair_row(p, p->exact, b, h, i, false);
                pair_row(p, p->plain, b, h, i, true);
            }
}

static Problem make_limited_problem(Case c, Limits limits) {
    Problem p = {.c = c};
    const int64_t fused = c.B * c.T * fused_width(&c), rows = c.B * c.H * c.T;
    p.fused = random_floats(fused, 1, 0, 1);
    for (int64_t t = 0; t < c.B * c.T; t += 10)
        for (int64_t i = c.H * c.D; i < (c.H + c.KV) * c.D; i++) p.fused[t * fused_width(&c) + i] *= (float)c.outlier;
    rounded(p.fused, fused);
    p.d_out = rounded(random_floats(c.B * c.T * c.H * c.D, 2, 0, 1), c.B * c.T * c.H * c.D);
    p.log_sum_exp = floats(rows);
    p.delta = floats(rows);
    p.limits = limits;
    p.first = limits.document == 0 ? NULL : documents_of_test(c.B, c.T, limits.document);
    for (int r = 0; r < RESULTS; r++) {
        p.before[r] = random_floats(memory_count(&c, r), 3 + (uint64_t)r, 0, 1);
        p.exact[r] = doubles(result_count(&c, r));
        p.plain[r] = doubles(result_count(&c, r));
    }
    double *score = doubles(c.T);
    for (int64_t b = 0; b < c.B; b++)
        for (int64_t h = 0; h < c.H; h++)
            for (int64_t i = c.queries.start; i < c.queries.start + c.queries.length; i++)
                whole_row(&p, b, h, i, score);
    free(score);
    return p;
}

static Problem make_problem(Case c) { return make_limited_problem(c, (Limits){0, 0}); }

static void free_problem(Problem *p) {
    free(p->fused), free(p->d_out), free(p->log_sum_exp), free(p->delta), free(p->first);
    for (int r = 0; r < RESULTS; r++) free(p->before[r]), free(p->exact[r]), free(p->plain[r]);
}

// ---- on the device --------------------------------------------------------------------------------------------------

// What backward_whole writes: a tensor as a model has it, of more tokens than either chunk, each with GAP values behind
// its heads. All is NOT_WRITTEN before, and what is no part of a result must be so afterwards.
enum { GAP = 8 };
static const float NOT_WRITTEN = 12352; // a bf16 number
static int64_t written_width(const Case *c) { return fused_width(c) + GAP; }
static int64_t written_tokens(const Case *c) {
    return 1 + (c->queries.length > c->keys.length ? c->queries.length : c->keys.length);
}

static CudaTensor unwritten(const Case *c) {
    const int64_t count = c->B * written_tokens(c) * written_width(c);
    float *values = floats(count);
    for (int64_t i = 0; i < count; i++) values[i] = NOT_WRITTEN;
    CudaTensor tensor = cuda_storage(values, count);
    free(values);
    return tensor;
}

// The results to where backward_pair has them. Frees the tensor.
static void fetch_written(const Case *c, CudaTensor *tensor, float *const result[2]) {
    float *written = cuda_fetch(tensor);
    const int64_t width = written_width(c), tokens = written_tokens(c);
    for (int64_t b = 0; b < c->B; b++)
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t i = 0; i < width; i++) {
                const float value = written[(b * tokens + t) * width + i];
                const int64_t head = i / c->D, d = i % c->D;
                const int which = head < c->H ? D_Q : head < c->H + c->KV ? D_K : D_V;
                const bool part = i < fused_width(c) && t < (which == D_Q ? c->queries.length : c->keys.length);
                if (!part && value != NOT_WRITTEN)
                    fail_msg("%s: written beside the result: token %lld, value %lld", result_names[which], (long long)t,
                             (long long)i);
                const int64_t kv = which == D_Q ? head : (head - c->H) % c->KV;
                if (part) result[which == D_Q ? 0 : 1][memory_at(c, which, b, t, kv) + d] = value;
            }
    free(written);
    cuda_free(tensor);
}

// A problem on the device. sums: d_q, and d_k and d_v.
typedef struct Tensors {
    CudaTensor fused, d_out, log_sum_exp, delta, documents, sums[2];
} Tensors;

static Tensors upload(const Problem *p) {
    const Case *c = &p->c;
    const int64_t rows = c->B * c->H * c->T;
    Tensors t = {.fused = cuda_storage(p->fused, c->B * c->T * fused_width(c)),
                 .d_out = cuda_storage(p->d_out, c->B * c->T * c->H * c->D),
                 .log_sum_exp = cuda_floats(p->log_sum_exp, rows),
                 .delta = cuda_floats(p->delta, rows)};
    if (p->first != NULL) t.documents = cuda_tokens(p->first, c->B * c->T);
    for (int i = 0; i < 2; i++) t.sums[i] = cuda_floats(p->before[i], memory_count(c, i));
    return t;
}

static void free_tensors(const Problem *p, Tensors *t) {
    for (int i = 0; i < 2; i++) cuda_free(&t->sums[i]);
    if (p->first != NULL) cuda_free(&t->documents);
    cuda_free(&t->fused), cuda_free(&t->d_out), cuda_free(&t->log_sum_exp), cuda_free(&t->delta);
}

// The chunks' part of all that; both chunks lie within the case's.
static QueryBackward query_of(const Problem *p, const Tensors *t, Chunk chunk) {
    const Device *device = cuda_device_of_test();
    const Case *c = &p->c;
    const int64_t width = fused_width(c), heads = c->H * c->D, first = chunk.start;
    float *d_q = t->sums[D_Q].data;
    return (QueryBackward){
        .chunk = chunk,
        .q = {at(device, t->fused.data, first * width), c->T * width, width},
        .d_out = {at(device, t->d_out.data, first * heads), c->T * heads, heads},
        .log_sum_exp = {(float *)t->log_sum_exp.data + first, c->H * c->T, c->T},
        .delta = {(float *)t->delta.data + first, c->H * c->T, c->T},
        .d_q = {d_q + (first - c->queries.start) * heads, c->queries.length * heads, heads},
        .visibility = visibility_of(p, t->documents.data),
    };
}
static KeyValue key_value_of(const Problem *p, const Tensors *t, Chunk chunk) {
    const Device *device = cuda_device_of_test();
    const Case *c = &p->c;
    const int64_t width = fused_width(c), key = chunk.start * width + c->H * c->D, half = c->B * c->KV * c->D;
    float *d_k = (float *)t->sums[1].data + (chunk.start - c->keys.start) * 2 * half;
    return (KeyValue){.chunk = chunk,
                      .k = {at(device, t->fused.data, key), c->T * width, width},
                      .v = {at(device, t->fused.data, key + c->KV * c->D), c->T * width, width},
                      .d_k = {d_k, c->KV * c->D, 2 * half},
                      .d_v = {d_k + half, c->KV * c->D, 2 * half}};
}

static AttentionShape shape_of(const Case *c) { return (AttentionShape){c->B, c->H, c->KV, c->D, scale_of(c)}; }

// Lends the device just what its kernels state for these queries, beside cuBLASLt's workspace full of NaN. Returns what
// it had before.
static size_t lend_what_is_stated(const Case *c, int64_t queries) {
    Device *device = cuda_device_of_test();
    const AttentionShape shape = shape_of(c);
    const size_t lent = device->scratch_bytes, stated = stated_for_attention(device, &shape, queries);
    assert_true(stated <= lent);
    device->scratch_bytes = stated;
    if (stated > CUDA_WORKSPACE_BYTES) {
        const size_t bytes = stated - CUDA_WORKSPACE_BYTES;
        char *poison = checked(malloc(bytes));
        memset(poison, 0xff, bytes);
        device->upload(device, (char *)device->scratch + CUDA_WORKSPACE_BYTES, poison, bytes);
        free(poison);
    }
    return lent;
}

static void run_pair(const Problem *p, const Tensors *t, Chunk queries, Chunk keys) {
    Device *device = cuda_device_of_test();
    const AttentionShape shape = shape_of(&p->c);
    const QueryBackward query = query_of(p, t, queries);
    const KeyValue kv = key_value_of(p, t, keys);
    const size_t lent = lend_what_is_stated(&p->c, queries.length);
    device->attention->backward_pair(device, &shape, &query, &kv);
    device->scratch_bytes = lent;
}

static void run_whole(const Problem *p, const Tensors *t, float *const result[2]) {
    Device *device = cuda_device_of_test();
    const Case *c = &p->c;
    const AttentionShape shape = shape_of(c);
    const int64_t w = written_width(c), batch = written_tokens(c) * w, heads = c->H * c->D;
    QueryBackward query = query_of(p, t, c->queries);
    KeyValue kv = key_value_of(p, t, c->keys);
    query.d_q = kv.d_k = kv.d_v = (FloatView){NULL, 0, 0};
    CudaTensor written = unwritten(c);
    const size_t lent = lend_what_is_stated(c, c->queries.length);
    device->attention->backward_whole(device, &shape, &query, &kv, (TokenView){written.data, batch, w},
                                      (TokenView){at(device, written.data, heads), batch, w},
                                      (TokenView){at(device, written.data, heads + c->KV * c->D), batch, w});
    fetch_written(c, &written, result);
    device->scratch_bytes = lent;
}

// result: room for what d_q, and d_k and d_v, hold afterwards, as they lie in memory. whole: by backward_whole.
static void run(const Problem *p, bool whole, float *const result[2]) {
    Tensors t = upload(p);
    if (whole) {
        run_whole(p, &t, result);
    } else {
        run_pair(p, &t, p->c.queries, p->c.keys);
        for (int i = 0; i < 2; i++) cuda_fetch_raw(&t.sums[i], result[i]);
    }
    free_tensors(p, &t);
}

typedef struct Deviation {
    double rms, max;
} Deviation;

static void note(Deviation *deviation, double difference) {
    deviation->rms += difference * difference;
    deviation->max = fmax(deviation->max, fabs(difference));
}

static const char *title(const Case *c) {
    static char text[200];
    snprintf(text, sizeof text, "B %lld T %lld H %lld KV %lld D %lld, queries %lld + %lld, keys %lld + %lld",
             (long long)c->B, (long long)c->T, (long long)c->H, (long long)c->KV, (long long)c->D,
             (long long)c->queries.start, (long long)c->queries.length, (long long)c->keys.start,
             (long long)c->keys.length);
    return text;
}

// What was there before is of size 1, and an fp32 sum with it is off by UNIT of it and of what is added, at most. That
// alone stays where the plain reference is exact; but where a row sees one key alone, do.v - delta is the difference of
// equal numbers of some sqrt(D), each a sum of D products and so off by sqrt(D) times its UNIT. That goes times scale =
// 1 / sqrt(D), and times keys or queries of up to 4.
static void check_result(const Problem *p, int result, bool whole, const float *got) {
    const Case *c = &p->c;
    const int64_t heads = result == D_Q ? c->H : c->KV, tokens = result == D_Q ? c->queries.length : c->keys.length;
    Deviation found = {0, 0}, plain = {0, 0};
    const bool alone = p->limits.window > 0 || p->limits.document > 0 || c->T == 1;
    const double units = alone ? 4 * sqrt((double)c->D) : 4;
    double size = 1;
    for (int64_t b = 0; b < c->B; b++)
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t h = 0; h < heads; h++)
                for (int64_t d = 0; d < c->D; d++) {
                    const int64_t i = result_at(c, result, b, t, h) + d, m = memory_at(c, result, b, t, h) + d;
                    const double before = whole ? 0 : p->before[result == D_V ? D_K : result][m];
                    const double exact = p->exact[result][i], bf16 = p->plain[result][i];
                    if (!isfinite(got[m])) fail_msg("%s: %s has %g", title(c), result_names[result], (double)got[m]);
                    note(&found, got[m] - (before + exact));
                    note(&plain, (whole ? round_to_bf16((float)bf16) : bf16) - exact);
                    size = fmax(size, fabs(before) + fabs(exact));
                }
    const double count = (double)result_count(c, result);
    found.rms = sqrt(found.rms / count), plain.rms = sqrt(plain.rms / count);
    if (getenv("VERBOSE") != NULL)
        print_message("%s%s: %s rms %.2e of %.2e, max %.2e of %.2e\n", title(c), whole ? ", whole" : "",
                      result_names[result], found.rms, plain.rms, found.max, plain.max);
    if (found.rms > 2 * plain.rms + units * UNIT * size || found.max > 2 * plain.max + units * UNIT * size)
        fail_msg("%s: error of %s: %.2e (rms), %.2e (max); plain bf16 has %.2e, %.2e", title(c), result_names[result],
                 found.rms, found.max, plain.rms, plain.max);
}

static void check(const Problem *p) {
    float *result[2] = {floats(memory_count(&p->c, D_Q)), floats(memory_count(&p->c, D_K))};
    for (int whole = 0; whole < 2; whole++) {
        run(p, whole, result);
        for (int r = 0; r < RESULTS; r++) check_result(p, r, whole, result[r == D_Q ? 0 : 1]);
    }
    free(result[0]), free(result[1]);
}

static void check_limited(Case c, Limits limits) {
    Problem p = make_limited_problem(c, limits);
    answer(&p);
    check(&p);
    free_problem(&p);
}
static void check_case(Case c) { check_limited(c, (Limits){0, 0}); }

// ---- tests ----------------------------------------------------------------------------------------------------------

// Several blocks, both kinds of step, two batches, grouped heads.
static const struct {
    Case c;
    Limits limits;
} cases_of_bits[] = {{{1, 170, 4, 2, 64, {3, 167}, {0, 170}, 1}, {0, 0}},
                     {{2, 270, 2, 1, 64, {0, 270}, {0, 270}, 1}, {0, 0}},
                     {{2, 270, 1, 1, 128, {10, 260}, {0, 270}, 1}, {150, 90}}};
enum { CASES_OF_BITS = sizeof cases_of_bits / sizeof *cases_of_bits };

static void bits_of_cases(Device *device, void *results) {
    (void)device;
    float *to = results;
    for (int i = 0; i < CASES_OF_BITS; i++) {
        Problem p = make_limited_problem(cases_of_bits[i].c, cases_of_bits[i].limits);
        for (int whole = 0; whole < 2; whole++) {
            float *const parts[2] = {to, to + memory_count(&p.c, D_Q)};
            run(&p, whole, parts);
            to = parts[1] + memory_count(&p.c, D_K);
        }
        free_problem(&p);
    }
}
static void the_same_bits_in_any_order_of_threads(void **state) {
    (void)state;
    int64_t count = 0;
    for (int i = 0; i < CASES_OF_BITS; i++)
        count += 2 * (memory_count(&cases_of_bits[i].c, D_Q) + memory_count(&cases_of_bits[i].c, D_K));
    expect_same_bits_in_runs("backward", bits_of_cases, (size_t)count * sizeof(float), 4);
}

// The whole sequence, T no multiple of anything.
static void every_head_size(void **state) {
    (void)state;
    check_case((Case){2, 75, 2, 1, 32, {0, 75}, {0, 75}, 1});
    check_case((Case){1, 161, 2, 2, 64, {0, 161}, {0, 161}, 1});
    check_case((Case){1, 141, 2, 1, 96, {0, 141}, {0, 141}, 1});
    check_case((Case){1, 141, 1, 1, 128, {0, 141}, {0, 141}, 1});
}
// Every way to end in, or at, a tile.
static void every_length(void **state) {
    (void)state;
    const int64_t lengths[] = {1, 37, 64, 127, 128, 129, 192, 300};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i += STRIDE) {
        const int64_t T = lengths[i];
        check_case((Case){1, T, 1, 1, 64, {0, T}, {0, T}, 1});
        check_case((Case){1, T, 1, 1, 128, {0, T}, {0, T}, 1});
    }
    if (STRIDE == 1) check_case((Case){1, 1000, 1, 1, 64, {0, 1000}, {0, 1000}, 1});
}
// Those that have no kernel of their own use the next larger one's.
static void head_sizes_between(void **state) {
    (void)state;
    const int64_t sizes[] = {8, 16, 40, 72, 120};
    for (int i = 0; i < 5; i++) check_case((Case){1, 50, 2, 1, sizes[i], {0, 50}, {0, 50}, 1});
}
static void grouped_heads(void **state) {
    (void)state;
    check_case((Case){2, 67, 6, 2, 32, {0, 67}, {0, 67}, 1});
    check_case((Case){1, 67, 5, 1, 64, {0, 67}, {0, 67}, 1});
    check_case((Case){3, 140, 2, 1, 64, {0, 140}, {0, 140}, 1});
    check_case((Case){2, 140, 6, 2, 128, {0, 140}, {0, 140}, 1});
    check_case((Case){1, 140, 4, 4, 64, {0, 140}, {0, 140}, 1});
}
// Causal by global position: chunks beside, before and across each other, and of one token.
static void chunks_at_global_positions(void **state) {
    (void)state;
    const Chunk pairs[][2] = {
        {{150, 150}, {0, 150}},   // sees all
        {{130, 33}, {100, 90}},   // begins and ends inside
        {{40, 170}, {90, 135}},   // the first queries see nothing; the last keys are not seen
        {{0, 161}, {127, 30}},    // few keys, at the very end
        {{5, 1}, {5, 1}},         // one another
        {{299, 1}, {0, 300}},     // one query, all keys
        {{7, 293}, {7, 1}},       // one key, all queries
        {{31, 33}, {31, 129}},    // off by one from every size of a step
        {{1, 32}, {0, 33}},       //
        {{128, 129}, {127, 130}}, //
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        for (int half = 0; half < 2; half++)
            check_case((Case){1, 300, 2, 1, i % 2 == 0 ? 32 << half : 64 << half, pairs[i][0], pairs[i][1], 1});
    check_case((Case){1, 200, 1, 1, 128, {33, 150}, {20, 150}, 1});
}

// The whole sequence in pairs of unequal chunks, all added to the same sums.
static void pairs_add_up(void **state) {
    (void)state;
    enum { T = 330 };
    const Chunk queries[2][3] = {{{0, 70}, {70, 131}, {201, 129}}, {{0, 140}, {140, 190}, {330, 0}}};
    const Chunk keys[2][4] = {{{0, 129}, {129, 1}, {130, 200}, {330, 0}}, {{0, 60}, {60, 70}, {130, 128}, {258, 72}}};
    for (int n = 0; n < 4; n++) {
        const Limits limits = {n / 2 == 1 ? 150 : 0, n / 2 == 1 ? 100 : 0};
        Problem p = make_limited_problem((Case){1, T, 2, 1, n % 2 == 0 ? 64 : 128, {0, T}, {0, T}, 1}, limits);
        float *result[2] = {floats(memory_count(&p.c, D_Q)), floats(memory_count(&p.c, D_K))};
        Tensors t = upload(&p);
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < 4; j++) run_pair(&p, &t, queries[n % 2][i], keys[n % 2][j]);
        for (int i = 0; i < 2; i++) cuda_fetch_raw(&t.sums[i], result[i]);
        answer(&p);
        for (int r = 0; r < RESULTS; r++) check_result(&p, r, false, result[r == D_Q ? 0 : 1]);
        free(result[0]), free(result[1]);
        free_tensors(&p, &t);
        free_problem(&p);
    }
}

// Windows of one key, of less than a step, of many; documents of a few tokens, of some steps; and both.
static void windows_and_documents(void **state) {
    (void)state;
    const int64_t windows[] = {1, 2, 31, 33, 64, 100, 1000};
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++) {
        check_limited((Case){1, 200, 1, 1, i % 2 == 0 ? 64 : 32, {0, 200}, {0, 200}, 1}, (Limits){windows[i], 0});
        check_limited((Case){1, 200, 2, 1, i % 2 == 0 ? 32 : 64, {40, 150}, {13, 150}, 1}, (Limits){windows[i], 0});
    }
    const int64_t documents[] = {1, 3, 20, 70};
    for (size_t i = 0; i < sizeof documents / sizeof *documents; i++) {
        check_limited((Case){2, 140, 1, 1, i % 2 == 0 ? 32 : 128, {0, 140}, {0, 140}, 1}, (Limits){0, documents[i]});
        check_limited((Case){2, 140, 2, 1, i % 2 == 0 ? 128 : 32, {40, 100}, {5, 70}, 1}, (Limits){0, documents[i]});
    }
    check_limited((Case){2, 150, 2, 2, 96, {0, 150}, {0, 150}, 1}, (Limits){40, 60});
    check_limited((Case){2, 190, 2, 2, 96, {60, 100}, {50, 70}, 1}, (Limits){40, 60});
}
// Over several blocks of keys and tiles of queries: which blocks add to a tile depends on the limits, and on the
// sequence.
static void limits_over_many_blocks(void **state) {
    (void)state;
    const Limits limits[] = {{1, 0}, {17, 0}, {64, 0}, {129, 0}, {500, 0}, {0, 2}, {0, 40}, {0, 300}, {100, 150}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i += STRIDE) {
        const int64_t D = i % 2 == 0 ? 64 : 128, T = limits[i].window < 500 ? 390 : 520,
                      B = limits[i].document > 0 ? 2 : 1;
        check_limited((Case){B, T, 1, 1, D, {0, T}, {0, T}, 1}, limits[i]);
        check_limited((Case){1, T, 2, 1, 192 - D, {T - 220, 210}, {30, T - 110}, 1}, limits[i]);
    }
}

// What is not a number stays in steps that nothing of a block sees, or is seen by: so these are not worked on. Query
// 200 sees keys from SEEN on, key 127 is seen by those before SEEN - 10.
static void unseen_steps_are_left_out(void **state) {
    (void)state;
    enum { T = 320, SEEN = 169 };
    const AttentionShape shape = {1, 1, 1, 64, 1};
    const bool large = stated_for_attention(cuda_device_of_test(), &shape, 1) > 0; // steps are tiles of 128, not of 32
    for (int n = 0; n < 8; n++) {
        const bool keys = n % 2 == 0, documents = n / 2 % 2 == 1; // keys: it is they that are no numbers
        const int64_t past = !large ? 160 : keys ? 128 : 256;     // the end of the last step that has to do with others
        const Chunk chunks[2][2] = {{{0, T}, {0, 128}}, {{200, 100}, {0, T}}};
        Problem p = make_limited_problem((Case){1, T, 1, 1, 64, chunks[keys][0], chunks[keys][1], 1},
                                         (Limits){documents ? 0 : 32, 0});
        if (documents) p.first = documents_of_test(1, T, 1);
        for (int64_t i = 0; i < T && documents; i++) p.first[i] = keys ? (i < SEEN ? 0 : SEEN) : (i < 160 ? 0 : 160);
        const int64_t bad = keys ? 0 : past, past_bad = keys ? past : T;
        for (int64_t t = bad; t < past_bad; t++)
            for (int64_t d = keys ? 64 : 0; d < (keys ? 192 : 64); d++) p.fused[t * fused_width(&p.c) + d] = NAN;
        float *result[2] = {floats(memory_count(&p.c, D_Q)), floats(memory_count(&p.c, D_K))};
        run(&p, n / 4, result);
        const int kept = keys ? D_Q : D_K;
        for (int64_t i = 0; i < memory_count(&p.c, kept); i++)
            if (!isfinite(result[kept][i])) fail_msg("%s: %lld is no number", title(&p.c), (long long)i);
        free(result[0]), free(result[1]);
        free_problem(&p);
    }
}

static void keys_after_all_queries_have_no_part(void **state) {
    (void)state;
    const Case cases[] = {{1, 60, 2, 1, 32, {0, 30}, {30, 30}, 1},
                          {1, 60, 2, 1, 32, {0, 30}, {50, 10}, 1},
                          {1, 60, 2, 1, 32, {30, 0}, {0, 10}, 1},
                          {1, 60, 2, 1, 32, {30, 30}, {10, 0}, 1}};
    for (int i = 0; i < 12; i++) {
        Case c = cases[i % 4];
        c.D <<= i / 4; // 32, 64, 128
        Problem p = make_problem(c);
        float *result[2] = {floats(memory_count(&p.c, D_Q)), floats(memory_count(&p.c, D_K))};
        run(&p, false, result);
        for (int r = 0; r < 2; r++) expect_same_bits("sums", result[r], p.before[r], memory_count(&p.c, r));
        run(&p, true, result);
        for (int r = 0; r < 2; r++)
            for (int64_t n = 0; n < memory_count(&p.c, r); n++)
                if (result[r][n] != 0) fail_msg("case %d: %g where nothing is seen", i, (double)result[r][n]);
        free(result[0]), free(result[1]);
        free_problem(&p);
    }
}

// The same arithmetic: what a pair adds to zeros, rounded.
static void whole_is_a_rounded_pair(void **state) {
    (void)state;
    const Case cases[] = {{2, 75, 6, 2, 32, {0, 75}, {0, 75}, 1},      {1, 141, 2, 1, 64, {0, 141}, {0, 141}, 1},
                          {1, 61, 2, 2, 96, {0, 61}, {0, 61}, 1},      {1, 61, 1, 1, 104, {0, 61}, {0, 61}, 1},
                          {1, 300, 2, 1, 32, {40, 170}, {90, 205}, 1}, {1, 300, 2, 1, 64, {290, 10}, {0, 300}, 1},
                          {1, 300, 2, 1, 64, {40, 170}, {90, 205}, 1}, {1, 300, 2, 1, 128, {0, 300}, {0, 300}, 1}};
    enum { CASES = sizeof cases / sizeof *cases };
    for (int i = 0; i < CASES + 2; i++) { // the last two also with limits
        Problem p = make_limited_problem(cases[i < CASES ? i : i - 2], (Limits){0, i < CASES ? 0 : 50});
        for (int r = 0; r < 2; r++)
            for (int64_t n = 0; n < memory_count(&p.c, r); n++) p.before[r][n] = 0;
        float *result[2][2];
        for (int whole = 0; whole < 2; whole++) {
            for (int r = 0; r < 2; r++) result[whole][r] = floats(memory_count(&p.c, r));
            run(&p, whole, result[whole]);
        }
        for (int r = 0; r < 2; r++)
            for (int64_t n = 0; n < memory_count(&p.c, r); n++)
                if (result[1][r][n] != round_to_bf16(result[0][r][n])) // 0 and -0 are the same
                    fail_msg("%s: %s %lld: %g, a pair has %g", title(&p.c), r == 0 ? "dQ" : "dK, dV", (long long)n,
                             (double)result[1][r][n], (double)result[0][r][n]);
        for (int r = 0; r < 2; r++) free(result[0][r]), free(result[1][r]);
        free_problem(&p);
    }
}

// Scores of a thousand and more: probabilities of 1 and of 0, and where a row is masked, far above its log-sum-exp.
static void extreme_scores(void **state) {
    (void)state;
    check_case((Case){1, 150, 2, 2, 32, {0, 150}, {0, 150}, 1000});
    check_case((Case){1, 150, 2, 1, 64, {60, 90}, {0, 150}, 300});
    check_case((Case){1, 150, 1, 1, 64, {0, 150}, {0, 150}, 1000});
    check_case((Case){1, 150, 1, 1, 128, {0, 150}, {0, 150}, 1000});
}

// A row that saw no key has a log-sum-exp of -inf; it has no part in anything.
static void rows_that_saw_nothing(void **state) {
    (void)state;
    for (int64_t D = 32; D <= 128; D *= 2) {
        Problem p = make_problem((Case){1, 90, 2, 1, D, {0, 90}, {0, 90}, 1});
        for (int64_t i = 0; i < 90; i += 3) p.log_sum_exp[i] = -INFINITY, p.delta[i] = 0;
        answer(&p);
        check(&p);
        free_problem(&p);
    }
}

// What is not a number is not lost: a query's spreads to its own gradient and to the keys it sees, a key's to itself
// and the queries that see it.
static void not_a_number_spreads(void **state) {
    (void)state;
    enum { T = 70, QUERY = 40, KEY = 50 };
    for (int n = 0; n < 12; n++) {
        const int which = n % 2, D = 32 << n / 4;
        Problem p = make_problem((Case){1, T, 1, 1, D, {0, T}, {0, T}, 1});
        if (which == 0) {
            p.fused[QUERY * fused_width(&p.c) + 3] = NAN;
            p.log_sum_exp[QUERY] = NAN;
        } else {
            p.fused[KEY * fused_width(&p.c) + D + 3] = NAN;
            for (int64_t i = KEY; i < T; i++) p.log_sum_exp[i] = NAN;
        }
        float *result[2] = {floats(memory_count(&p.c, D_Q)), floats(memory_count(&p.c, D_K))};
        run(&p, n / 2 % 2, result);
        for (int64_t t = 0; t < T; t++) {
            for (int64_t d = 0; d < D; d++) {
                const bool d_q = isnan(result[0][memory_at(&p.c, D_Q, 0, t, 0) + d]);
                const bool d_k = isnan(result[1][memory_at(&p.c, D_K, 0, t, 0) + d]);
                const bool d_v = isnan(result[1][memory_at(&p.c, D_V, 0, t, 0) + d]);
                if (which == 0 && (t <= QUERY) && !(d_k && d_v)) fail_msg("key %d saw nothing of it", (int)t);
                if (which == 0 ? t == QUERY && !d_q : t >= KEY && !d_q) fail_msg("query %d saw nothing of it", (int)t);
                if (which == 1 && t == KEY && !(d_k && d_v)) fail_msg("the key itself saw nothing of it");
                if (which == 0 && t < QUERY / 32 * 32 && d_q) fail_msg("query %d has it from nowhere", (int)t);
            }
        }
        free(result[0]), free(result[1]);
        free_problem(&p);
    }
}

static int every_test(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_bits_in_any_order_of_threads), // first: it must open the device itself
        cmocka_unit_test(every_head_size),
        cmocka_unit_test(every_length),
        cmocka_unit_test(head_sizes_between),
        cmocka_unit_test(grouped_heads),
        cmocka_unit_test(chunks_at_global_positions),
        cmocka_unit_test(pairs_add_up),
        cmocka_unit_test(windows_and_documents),
        cmocka_unit_test(limits_over_many_blocks),
        cmocka_unit_test(unseen_steps_are_left_out),
        cmocka_unit_test(keys_after_all_queries_have_no_part),
        cmocka_unit_test(whole_is_a_rounded_pair),
        cmocka_unit_test(extreme_scores),
        cmocka_unit_test(rows_that_saw_nothing),
        cmocka_unit_test(not_a_number_spreads),
    };
    return cmocka_run_group_tests_name("attention backward on CUDA", tests, NULL, NULL);
}

int main(void) { return run_on_each_gpu(every_test); }
