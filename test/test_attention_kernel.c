// The local attention kernels, forward and backward, against attention written out directly in double precision: every
// vectorised copy that this processor can run, every number of threads, every cut of the sequence into chunks.
//
// Tolerance. The same direct formula is also computed with every operation rounded to fp32, which is what fp32
// attention costs at its plainest. A kernel's error may be at most twice that (norm over the tensor, and largest
// element), plus one unit in the last place: sums in another order, a state stored between chunks and its own
// exponential may cost no more. Nothing in the tolerance grows with the number of chunks.
#include <stdio.h>

#include "attention/kernel.h"
#include "base/cpu_features.h"
#include "test/attention_direct.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { LONG = 300 };
#else
enum { LONG = 1000 };
#endif

static const double UNIT = 0x1p-23; // in the last place

// ---- the kernels under test ---------------------------------------------------------------------

// A sequence as a model keeps it: q, k and v in one buffer, here with gaps between tokens and between sequences that
// nobody may write to.
enum { TOKEN_GAP = 3, BATCH_GAP = 5 };
static const float GAP = 12345;

typedef struct Tensors {
    Problem problem;
    Visibility visibility;
    int64_t fused, plain, fused_batch, plain_batch; // token and batch strides
    float *qkv, *d_qkv, *accumulator, *out, *d_out; // accumulator, out, d_out: q alone
    float *max, *sum, *log_sum_exp, *delta;         // (B, H, T)
} Tensors;

static float *filled(int64_t count, float value) {
    float *x = allocate(count, sizeof(float));
    for (int64_t i = 0; i < count; i++) x[i] = value;
    return x;
}

static Tensors tensors_allocate(Problem p) {
    Tensors t = {.problem = p};
    t.fused = (p.H + 2 * p.KV) * p.D + TOKEN_GAP;
    t.plain = p.H * p.D + TOKEN_GAP;
    t.fused_batch = p.T * t.fused + BATCH_GAP;
    t.plain_batch = p.T * t.plain + BATCH_GAP;
    t.qkv = filled(p.B * t.fused_batch, GAP);
    t.d_qkv = filled(p.B * t.fused_batch, GAP);
    t.accumulator = filled(p.B * t.plain_batch, GAP);
    t.out = filled(p.B * t.plain_batch, GAP);
    t.d_out = filled(p.B * t.plain_batch, GAP);
    float **rows[] = {&t.max, &t.sum, &t.log_sum_exp, &t.delta};
    for (int i = 0; i < 4; i++) *rows[i] = filled(p.B * p.H * p.T, GAP);
    return t;
}

static void tensors_free(Tensors *t) {
    float *all[] = {t->qkv, t->d_qkv, t->accumulator, t->out, t->d_out, t->max, t->sum, t->log_sum_exp, t->delta};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

// Views of q, k and v in a fused buffer, and of a plain one, from token `start` on.
typedef enum Part { Q, K, V } Part;
static float *part_data(const Tensors *t, float *fused, Part part, int64_t start) {
    Problem p = t->problem;
    int64_t heads_before = part == Q ? 0 : part == K ? p.H : p.H + p.KV;
    return fused + start * t->fused + heads_before * p.D;
}
static TokenView token_part(const Tensors *t, float *fused, Part part, int64_t start) {
    return (TokenView){part_data(t, fused, part, start), t->fused_batch, t->fused};
}
static FloatView float_part(const Tensors *t, float *fused, Part part, int64_t start) {
    return (FloatView){part_data(t, fused, part, start), t->fused_batch, t->fused};
}
static TokenView plain_tokens(const Tensors *t, float *data, int64_t start) {
    return (TokenView){data + start * t->plain, t->plain_batch, t->plain};
}
static RowView rows(const Tensors *t, float *data, int64_t start) {
    return (RowView){data + start, t->problem.H * t->problem.T, t->problem.T};
}

static QueryForward query_forward(const Tensors *t, Chunk chunk) {
    FloatView accumulator = {t->accumulator + chunk.start * t->plain, t->plain_batch, t->plain};
    return (QueryForward){chunk,
                          token_part(t, t->qkv, Q, chunk.start),
                          accumulator,
                          rows(t, t->max, chunk.start),
                          rows(t, t->sum, chunk.start),
                          t->visibility};
}
static QueryBackward query_backward(const Tensors *t, Chunk chunk) {
    return (QueryBackward){chunk,
                           token_part(t, t->qkv, Q, chunk.start),
                           plain_tokens(t, t->d_out, chunk.start),
                           rows(t, t->log_sum_exp, chunk.start),
                           rows(t, t->delta, chunk.start),
                           float_part(t, t->d_qkv, Q, chunk.start),
                           t->visibility};
}
static KeyValue key_value(const Tensors *t, Chunk chunk) {
    return (KeyValue){chunk, token_part(t, t->qkv, K, chunk.start), token_part(t, t->qkv, V, chunk.start),
                      float_part(t, t->d_qkv, K, chunk.start), float_part(t, t->d_qkv, V, chunk.start)};
}

// Calls visit(a value of the strided tensor, its counterpart in the contiguous one) for all elements.
typedef void Visit(float *strided, double *contiguous);
static void each(Problem p, int64_t heads, float *data, int64_t batch_stride, int64_t token_stride, double *contiguous,
                 Visit *visit) {
    for (int64_t b = 0; b < p.B; b++)
        for (int64_t t = 0; t < p.T; t++)
            for (int64_t i = 0; i < heads * p.D; i++)
                visit(data + b * batch_stride + t * token_stride + i, contiguous + (b * p.T + t) * heads * p.D + i);
}
static void from_contiguous(float *strided, double *contiguous) { *strided = (float)*contiguous; }
static void to_contiguous(float *strided, double *contiguous) { *contiguous = *strided; }
static void zero(float *strided, double *contiguous) { (void)contiguous, *strided = 0; }
static void spoil(float *strided, double *contiguous) { (void)contiguous, *strided = NAN; }

static void each_of_fused(const Tensors *t, float *fused, double *q, double *k, double *v, Visit *visit) {
    Problem p = t->problem;
    each(p, p.H, part_data(t, fused, Q, 0), t->fused_batch, t->fused, q, visit);
    each(p, p.KV, part_data(t, fused, K, 0), t->fused_batch, t->fused, k, visit);
    each(p, p.KV, part_data(t, fused, V, 0), t->fused_batch, t->fused, v, visit);
}

static Tensors tensors_of(const Direct *x) {
    Problem p = x->problem;
    Tensors t = tensors_allocate(p);
    t.visibility = x->visibility;
    each_of_fused(&t, t.qkv, x->q, x->k, x->v, from_contiguous);
    each_of_fused(&t, t.d_qkv, x->q, x->k, x->v, zero);
    each(p, p.H, t.d_out, t.plain_batch, t.plain, x->d_out, from_contiguous);
    return t;
}

// How the sequence is cut, and in which order the pairs of chunks are visited.
typedef struct Walk {
    int query_chunks, key_chunks;
    uint64_t order; // 0: row by row; otherwise the seed of a permutation
} Walk;

static Chunk chunk_of(int64_t T, int chunks, int i) {
    int64_t start = T * i / chunks;
    return (Chunk){start, T * (i + 1) / chunks - start};
}

// One at a time: all have the same memory to work in.
static Device device_with(const AttentionKernels *kernels, int threads) {
    static _Alignas(256) char room[8 << 20];
    return (Device){.name = "cpu",
                    .element_bytes = sizeof(float),
                    .threads = threads,
                    .attention = kernels,
                    .scratch = room,
                    .scratch_bytes = sizeof room};
}

static void run(const AttentionKernels *kernels, int threads, const Tensors *t, Walk walk) {
    Problem p = t->problem;
    Device device = device_with(kernels, threads);
    AttentionShape shape = {p.B, p.H, p.KV, p.D, scale_of(p)};
    uint64_t pairs = (uint64_t)walk.query_chunks * (uint64_t)walk.key_chunks;
    for (int i = 0; i < walk.query_chunks; i++) {
        QueryForward query = query_forward(t, chunk_of(p.T, walk.query_chunks, i));
        kernels->begin(&device, &shape, &query);
    }
    for (uint64_t n = 0; n < pairs; n++) {
        int pair = (int)(walk.order == 0 ? n : random_permute(walk.order, 0, pairs, n));
        QueryForward query = query_forward(t, chunk_of(p.T, walk.query_chunks, pair / walk.key_chunks));
        KeyValue kv = key_value(t, chunk_of(p.T, walk.key_chunks, pair % walk.key_chunks));
        kernels->forward_pair(&device, &shape, &query, &kv);
    }
    for (int i = 0; i < walk.query_chunks; i++) {
        Chunk chunk = chunk_of(p.T, walk.query_chunks, i);
        QueryForward query = query_forward(t, chunk);
        TokenView out = plain_tokens(t, t->out, chunk.start), d_out = plain_tokens(t, t->d_out, chunk.start);
        kernels->finish(&device, &shape, &query, out, rows(t, t->log_sum_exp, chunk.start));
        kernels->row_delta(&device, &shape, chunk, out, d_out, rows(t, t->delta, chunk.start));
    }
    for (uint64_t n = 0; n < pairs; n++) {
        int pair = (int)(walk.order == 0 ? n : random_permute(walk.order, 1, pairs, n));
        QueryBackward query = query_backward(t, chunk_of(p.T, walk.query_chunks, pair / walk.key_chunks));
        KeyValue kv = key_value(t, chunk_of(p.T, walk.key_chunks, pair % walk.key_chunks));
        kernels->backward_pair(&device, &shape, &query, &kv);
    }
}

static int64_t gaps(const float *x, int64_t count) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) found += x[i] == GAP;
    return found;
}
static void assert_gaps_untouched(const Tensors *t) {
    Problem p = t->problem;
    int64_t expected = p.B * (p.T * TOKEN_GAP + BATCH_GAP);
    assert_int_equal(gaps(t->d_qkv, p.B * t->fused_batch), expected);
    assert_int_equal(gaps(t->out, p.B * t->plain_batch), expected);
    assert_int_equal(gaps(t->accumulator, p.B * t->plain_batch), expected);
}

// ---- comparison ---------------------------------------------------------------------------------

// ||a - b|| / ||b||, and the same of the largest elements.
typedef struct Distance {
    double norm, largest;
} Distance;

static Distance distance(const double *a, const double *b, int64_t count) {
    double error = 0, square = 0, largest_error = 0, largest = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(a[i])) return (Distance){INFINITY, INFINITY};
        error += (a[i] - b[i]) * (a[i] - b[i]);
        square += b[i] * b[i];
        largest_error = fmax(largest_error, fabs(a[i] - b[i]));
        largest = fmax(largest, fabs(b[i]));
    }
    return (Distance){sqrt(error / fmax(square, 1e-300)), largest_error / fmax(largest, 1e-300)};
}

// How far a kernel may be off: `times` the error of plain fp32, and `more`.
typedef struct Tolerance {
    double times, more;
} Tolerance;

static void compare(const char *what, const char *tensor, const double *got, const double *exact, const double *single,
                    int64_t count, Tolerance tolerance) {
    Distance error = distance(got, exact, count), allowed = distance(single, exact, count);
    if (getenv("SHOW_ERRORS") != NULL)
        print_message("%s, %-11s: %.2e (%.2f of plain fp32), largest %.2e (%.2f)\n", what, tensor, error.norm,
                      error.norm / (allowed.norm + UNIT), error.largest, error.largest / (allowed.largest + UNIT));
    if (error.norm > tolerance.times * allowed.norm + tolerance.more ||
        error.largest > tolerance.times * allowed.largest + tolerance.more)
        fail_msg("%s, %s: relative error %.3g, plain fp32 has %.3g; of the largest element %.3g, plain fp32 has %.3g",
                 what, tensor, error.norm, allowed.norm, error.largest, allowed.largest);
}

static void compare_all(const char *what, const Tensors *t, const Direct *exact, const Direct *single,
                        Tolerance tolerance) {
    Problem p = t->problem;
    Direct got = direct_allocate(p);
    each(p, p.H, t->out, t->plain_batch, t->plain, got.out, to_contiguous);
    each_of_fused(t, t->d_qkv, got.d_q, got.d_k, got.d_v, to_contiguous);
    for (int64_t i = 0; i < p.B * p.H * p.T; i++) got.log_sum_exp[i] = t->log_sum_exp[i];
    compare(what, "out", got.out, exact->out, single->out, query_count(p), tolerance);
    compare(what, "log_sum_exp", got.log_sum_exp, exact->log_sum_exp, single->log_sum_exp, p.B * p.H * p.T, tolerance);
    compare(what, "d_q", got.d_q, exact->d_q, single->d_q, query_count(p), tolerance);
    compare(what, "d_k", got.d_k, exact->d_k, single->d_k, key_count(p), tolerance);
    compare(what, "d_v", got.d_v, exact->d_v, single->d_v, key_count(p), tolerance);
    direct_free(&got);
}

// The sequence whole; as the ranks of a ring have it; queries cut elsewhere than keys, which moves the diagonal.
static const Walk WALKS[] = {{1, 1, 0}, {4, 4, 0}, {3, 5, 7}, {8, 8, 9}};
enum { WALK_COUNT = sizeof WALKS / sizeof *WALKS };

static void assert_same_bits(const Tensors *a, const Tensors *b) {
    Problem p = a->problem;
    assert_memory_equal(a->out, b->out, (size_t)(p.B * a->plain_batch) * sizeof(float));
    assert_memory_equal(a->log_sum_exp, b->log_sum_exp, (size_t)(p.B * p.H * p.T) * sizeof(float));
    assert_memory_equal(a->d_qkv, b->d_qkv, (size_t)(p.B * a->fused_batch) * sizeof(float));
}

// Any number of threads gives the bits of one.
static void check_threads(const Direct *exact, Walk walk, const Tensors *of_one_thread) {
    for (int threads = 2; threads <= 3; threads++) {
        Tensors t = tensors_of(exact);
        run(&attention_kernels_cpu, threads, &t, walk);
        assert_same_bits(&t, of_one_thread);
        tensors_free(&t);
    }
}

static void check_copy(const Direct *exact, const Direct *single, SimdLevel level, bool with_threads) {
    Problem p = exact->problem;
    assert_int_equal(setenv("SIMD", simd_level_name(level), 1), 0);
    for (int w = 0; w < WALK_COUNT; w++) {
        char what[200];
        snprintf(what, sizeof what, "%s copy, B=%d T=%d H=%d KV=%d D=%d gain %g, window %d%s, %d x %d chunks, order %d",
                 simd_level_name(level), (int)p.B, (int)p.T, (int)p.H, (int)p.KV, (int)p.D, p.gain,
                 (int)exact->visibility.window, exact->visibility.first != NULL ? ", documents" : "",
                 WALKS[w].query_chunks, WALKS[w].key_chunks, (int)WALKS[w].order);
        Tensors t = tensors_of(exact);
        run(&attention_kernels_cpu, 1, &t, WALKS[w]);
        assert_gaps_untouched(&t);
        compare_all(what, &t, exact, single, (Tolerance){2, UNIT});
        if (with_threads) check_threads(exact, WALKS[w], &t);
        tensors_free(&t);
    }
    assert_int_equal(unsetenv("SIMD"), 0);
}

// Every vectorised copy that the processor can run; threads with one of them and two sizes of heads, since neither
// concerns how the work is shared out.
static void check_problem_seen(Problem p, uint64_t seed, Visibility visibility) {
    Direct exact = direct_random(p, seed);
    exact.visibility = visibility;
    direct_attention(&exact, false);
    Direct single = direct_single(&exact);
    SimdLevel best = simd_level();
    for (SimdLevel level = SIMD_PORTABLE; level <= best; level++)
        check_copy(&exact, &single, level, level == best && (p.D == 20 || p.D == 64));
    direct_free(&exact);
    direct_free(&single);
}

static void check_problem(Problem p, uint64_t seed) { check_problem_seen(p, seed, (Visibility){0}); }

// ---- tests --------------------------------------------------------------------------------------

static const int64_t HEAD_DIMS[] = {1, 8, 20, 32, 64, 80, 96, 128, 256};
enum { HEAD_DIM_COUNT = sizeof HEAD_DIMS / sizeof *HEAD_DIMS };

// The judge itself: its gradients against central differences of its own forward pass, in double. With a step of 1e-5
// the formula errs by about step^2 and rounding by 1e-16 / step; 1e-8 leaves room for both.
static void test_direct_gradients_by_finite_differences(void **state) {
    (void)state;
    Problem p = {1, 7, 2, 1, 3, 2};
    Direct x = direct_random(p, 1), moved = direct_random(p, 1);
    direct_attention(&x, false);
    const double step = 1e-5;
    double *inputs[] = {moved.q, moved.k, moved.v}, *gradients[] = {x.d_q, x.d_k, x.d_v};
    int64_t counts[] = {query_count(p), key_count(p), key_count(p)};
    for (int tensor = 0; tensor < 3; tensor++) {
        for (int64_t i = 0; i < counts[tensor]; i++) {
            double slope = 0, value = inputs[tensor][i];
            for (int sign = -1; sign <= 1; sign += 2) {
                inputs[tensor][i] = value + sign * step;
                direct_attention(&moved, false);
                for (int64_t n = 0; n < query_count(p); n++) slope += sign * x.d_out[n] * moved.out[n] / (2 * step);
            }
            inputs[tensor][i] = value;
            assert_true(fabs(slope - gradients[tensor][i]) < 1e-8);
        }
    }
    direct_free(&x);
    direct_free(&moved);
}

// Documents of any length from 1 on, in other places in each sequence of the batch.
static int32_t *random_documents(Problem p, int64_t longest, uint64_t seed) {
    int32_t *first = allocate(p.B * p.T, sizeof *first);
    for (int64_t b = 0; b < p.B; b++) {
        int64_t begin = 0, end = 0;
        for (int64_t i = 0; i < p.T; i++) {
            if (i == end) {
                begin = i;
                end += 1 + (int64_t)(random_uniform(seed, 9, (uint64_t)(b * p.T + i)) * (double)longest);
                if (end % 3 == 0) end = i + 1;
            }
            first[b * p.T + i] = (int32_t)begin;
        }
    }
    return first;
}

// The reference computes in double and rounds what it stores: it may err no more than plain fp32 does. But the
// log-sum-exp is stored, too, and off by up to half a unit in its last place, by which it changes the weights; plain
// fp32 rounds scores in the same way, so there part of that cancels.
static void test_reference(void **state) {
    (void)state;
    Problem problems[] = {{2, 16, 2, 1, 8, 1},     {1, 37, 6, 2, 20, 1},  {1, 129, 2, 2, 64, 1},
                          {1, 129, 4, 1, 32, 300}, {2, 129, 4, 2, 16, 1}, {2, 60, 2, 1, 16, 1}};
    static const int64_t windows[] = {0, 0, 0, 0, 20, 0};
    for (size_t i = 0; i < sizeof problems / sizeof *problems; i++) {
        int32_t *first = i < 4 ? NULL : random_documents(problems[i], 30, i);
        Direct exact = direct_random(problems[i], i);
        exact.visibility = (Visibility){.window = windows[i], .first = first, .stride = problems[i].T};
        direct_attention(&exact, false);
        Direct single = direct_single(&exact);
        double largest = 1;
        for (int64_t n = 0; n < problems[i].B * problems[i].H * problems[i].T; n++)
            largest = fmax(largest, fabs(exact.log_sum_exp[n]));
        for (int w = 0; w < WALK_COUNT; w++) {
            Tensors t = tensors_of(&exact);
            run(&attention_kernels_reference, 1, &t, WALKS[w]);
            assert_gaps_untouched(&t);
            compare_all("reference", &t, &exact, &single, (Tolerance){1, UNIT / 2 * largest});
            tensors_free(&t);
        }
        direct_free(&exact);
        direct_free(&single);
        free(first);
    }
}

static void test_short_sequences(void **state) {
    (void)state;
    for (int i = 0; i < HEAD_DIM_COUNT; i++) check_problem((Problem){2, 16, 2, 1, HEAD_DIMS[i], 1}, 10);
}

static void test_grouped_heads(void **state) {
    (void)state;
    for (int i = 0; i < HEAD_DIM_COUNT; i++) check_problem((Problem){1, 37, 6, 2, HEAD_DIMS[i], 1}, 11);
}

static void test_one_key_head_for_all(void **state) {
    (void)state;
    for (int i = 0; i < HEAD_DIM_COUNT; i++)
        check_problem((Problem){1, 129, HEAD_DIMS[i] > 64 ? 2 : 4, 1, HEAD_DIMS[i], 1}, 12);
}

// Several blocks and cells each way, none of them whole.
static void test_long_sequences(void **state) {
    (void)state;
    check_problem((Problem){1, LONG, 2, 1, 64, 1}, 13);
    check_problem((Problem){1, LONG / 2 + 13, 1, 1, 128, 1}, 14);
    check_problem((Problem){1, LONG, 1, 1, 20, 1}, 15);
}

// Scores of a thousand and more, of both signs: any exp of a positive number would overflow, and most weights are 0.
static void test_large_scores(void **state) {
    (void)state;
    check_problem((Problem){1, 129, 2, 1, 64, 400}, 16);
    check_problem((Problem){1, 37, 1, 1, 8, 400}, 17);
}

static void check_future_is_not_seen(const AttentionKernels *kernels) {
    Problem p = {1, 100, 2, 1, 24, 1};
    Direct x = direct_random(p, 18);
    Tensors t = tensors_of(&x), before = tensors_of(&x);
    Device device = device_with(kernels, 1);
    AttentionShape shape = {p.B, p.H, p.KV, p.D, scale_of(p)};
    Tensors *both[] = {&t, &before};
    for (int i = 0; i < 2; i++) {
        QueryForward query = query_forward(both[i], (Chunk){0, 50});
        KeyValue past = key_value(both[i], (Chunk){0, 50});
        kernels->begin(&device, &shape, &query);
        kernels->forward_pair(&device, &shape, &query, &past);
    }
    QueryForward query = query_forward(&t, (Chunk){0, 50});
    QueryBackward query_back = query_backward(&t, (Chunk){0, 50});
    KeyValue future = key_value(&t, (Chunk){50, 50});
    kernels->forward_pair(&device, &shape, &query, &future);
    kernels->backward_pair(&device, &shape, &query_back, &future);
    assert_memory_equal(t.accumulator, before.accumulator, (size_t)t.plain_batch * sizeof(float));
    assert_memory_equal(t.max, before.max, (size_t)(p.H * p.T) * sizeof(float));
    assert_memory_equal(t.sum, before.sum, (size_t)(p.H * p.T) * sizeof(float));
    assert_memory_equal(t.d_qkv, before.d_qkv, (size_t)t.fused_batch * sizeof(float));
    direct_free(&x);
    tensors_free(&t);
    tensors_free(&before);
}

// Queries 0 to 39 with keys 25 on only: the first 25 rows see nothing, the others what a sequence without those 25
// gives.
static void check_rows_without_keys(const AttentionKernels *kernels) {
    Problem p = {1, 40, 2, 1, 24, 1};
    Direct x = direct_random(p, 19);
    Tensors t = tensors_of(&x);
    Device device = device_with(kernels, 1);
    AttentionShape shape = {p.B, p.H, p.KV, p.D, scale_of(p)};
    QueryForward query = query_forward(&t, (Chunk){0, 40});
    QueryBackward query_back = query_backward(&t, (Chunk){0, 40});
    KeyValue late = key_value(&t, (Chunk){25, 15});
    kernels->begin(&device, &shape, &query);
    kernels->forward_pair(&device, &shape, &query, &late);
    // In place, as the contract allows.
    TokenView out = plain_tokens(&t, t.accumulator, 0);
    RowView log_sum_exp = rows(&t, t.max, 0);
    kernels->finish(&device, &shape, &query, out, log_sum_exp);
    kernels->row_delta(&device, &shape, query.chunk, out, query_back.d_out, query_back.delta);
    query_back.log_sum_exp = log_sum_exp;
    kernels->backward_pair(&device, &shape, &query_back, &late);
    for (int64_t h = 0; h < p.H; h++) {
        for (int64_t i = 0; i < 40; i++) {
            float row = t.max[h * p.T + i];
            assert_true(i < 25 ? row == -INFINITY : isfinite(row));
            for (int64_t d = 0; d < p.D; d++) {
                float o = t.accumulator[i * t.plain + h * p.D + d], g = t.d_qkv[i * t.fused + h * p.D + d];
                assert_true(i < 25 ? o == 0 && g == 0 : isfinite(o) && isfinite(g));
                // A query that sees one key only gives it back, and its score has no slope.
                if (i == 25) assert_true(fabsf(o - t.qkv[25 * t.fused + 3 * p.D + d]) < 1e-6f && fabsf(g) < 1e-6f);
            }
        }
    }
    for (int64_t i = 0; i < 25; i++) // nor do keys that were not given get gradients
        for (int64_t d = 2 * p.D; d < 4 * p.D; d++) assert_true(t.d_qkv[i * t.fused + d] == 0);
    direct_free(&x);
    tensors_free(&t);
}

static void for_every_kernel(void (*check)(const AttentionKernels *)) {
    SimdLevel best = simd_level();
    check(&attention_kernels_reference);
    for (SimdLevel level = SIMD_PORTABLE; level <= best; level++) {
        assert_int_equal(setenv("SIMD", simd_level_name(level), 1), 0);
        check(&attention_kernels_cpu);
    }
    assert_int_equal(unsetenv("SIMD"), 0);
}

// Windows below, at and above the sizes of strips, blocks and cells; documents; both.
static void test_windows_and_documents(void **state) {
    (void)state;
    Problem p = {2, LONG / 2 + 13, 2, 1, 20, 1}, wide = {1, LONG, 1, 1, 64, 1};
    static const int64_t windows[] = {2, 15, 16, 17, 63, 64, 65, 200, 256, 290};
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++)
        check_problem_seen(i % 3 == 0 ? wide : p, 30 + i, (Visibility){.window = windows[i]});
    static const int64_t longest[] = {3, 40, 300};
    for (int i = 0; i < 3; i++) {
        int32_t *first = random_documents(p, longest[i], 40 + (uint64_t)i);
        check_problem_seen(p, 40, (Visibility){.first = first, .stride = p.T});
        check_problem_seen(p, 41, (Visibility){.window = 30, .first = first, .stride = p.T});
        free(first);
    }
}

// A query that sees nobody but itself gives its own value back, and nothing has a slope but the value.
static void check_window_of_one(const AttentionKernels *kernels) {
    Problem p = {2, 70, 4, 2, 16, 1};
    Direct x = direct_random(p, 24);
    int32_t *first = allocate(p.B * p.T, sizeof *first);
    for (int64_t i = 0; i < p.B * p.T; i++) first[i] = (int32_t)(i % p.T);
    for (int documents = 0; documents < 2; documents++) {
        x.visibility = documents ? (Visibility){.first = first, .stride = p.T} : (Visibility){.window = 1};
        Tensors t = tensors_of(&x);
        run(kernels, 1, &t, (Walk){3, 3, 0});
        for (int64_t b = 0; b < p.B; b++) {
            for (int64_t i = 0; i < p.T; i++) {
                const float *row = t.qkv + b * t.fused_batch + i * t.fused;
                const float *d_row = t.d_qkv + b * t.fused_batch + i * t.fused;
                const float *out = t.out + b * t.plain_batch + i * t.plain;
                for (int64_t n = 0; n < p.H * p.D; n++) {
                    float v = row[(p.H + p.KV + n / p.D / (p.H / p.KV)) * p.D + n % p.D];
                    assert_true(fabsf(out[n] - v) <= 2e-6f * fabsf(v));
                    assert_true(fabsf(d_row[n]) < 1e-5f); // rounding of delta, times a key
                }
                for (int64_t n = p.H * p.D; n < (p.H + p.KV) * p.D; n++) assert_true(fabsf(d_row[n]) < 1e-5f);
            }
        }
        tensors_free(&t);
    }
    free(first);
    direct_free(&x);
}

// What nobody sees is not computed: where the first 64 keys are no numbers, queries that see keys from 64 on alone have
// sound results (0 times a NaN would be none), and so have the keys that only they see.
static void check_hidden_is_not_computed(const AttentionKernels *kernels) {
    enum { BAD = 64, SOUND = 96, T = 200 };
    Problem p = {1, T, 2, 1, 16, 1};
    int32_t first[T];
    for (int i = 0; i < T; i++) first[i] = i < BAD ? 0 : BAD;
    const Visibility limits[] = {{.window = 1 + SOUND - BAD}, {.first = first, .stride = T}};
    for (int documents = 0; documents < 2; documents++) {
        Direct x = direct_random(p, 25);
        x.visibility = limits[documents];
        Tensors t = tensors_of(&x);
        for (int64_t i = 0; i < BAD; i++) *part_data(&t, t.qkv, K, i) = *part_data(&t, t.qkv, V, i) = NAN;
        run(kernels, 1, &t, (Walk){1, 1, 0});
        for (int64_t i = SOUND; i < T; i++) {
            for (int64_t n = 0; n < p.H * p.D; n++) assert_true(isfinite(t.out[i * t.plain + n]));
            for (int64_t n = 0; n < (p.H + 2 * p.KV) * p.D; n++) assert_true(isfinite(t.d_qkv[i * t.fused + n]));
        }
        assert_true(isnan(t.out[(BAD - 1) * t.plain]));
        tensors_free(&t);
        direct_free(&x);
    }
}

static void test_hidden_is_not_computed(void **state) {
    (void)state;
    for_every_kernel(check_hidden_is_not_computed);
}

static void test_window_of_one(void **state) {
    (void)state;
    for_every_kernel(check_window_of_one);
}

static void test_future_is_not_seen(void **state) {
    (void)state;
    for_every_kernel(check_future_is_not_seen);
}

static void test_rows_without_keys(void **state) {
    (void)state;
    for_every_kernel(check_rows_without_keys);
}

// Twice the backward pass gives twice the gradient, to the bit: x + x is exact.
static void check_gradients_are_added(const AttentionKernels *kernels) {
    Problem p = {1, 100, 2, 1, 16, 1};
    Direct x = direct_random(p, 20);
    Tensors t = tensors_of(&x);
    Device device = device_with(kernels, 1);
    AttentionShape shape = {p.B, p.H, p.KV, p.D, scale_of(p)};
    run(kernels, 1, &t, (Walk){1, 1, 0});
    float *once = filled(t.fused_batch, 0);
    memcpy(once, t.d_qkv, (size_t)t.fused_batch * sizeof(float));
    QueryBackward query = query_backward(&t, (Chunk){0, 100});
    KeyValue kv = key_value(&t, (Chunk){0, 100});
    kernels->backward_pair(&device, &shape, &query, &kv);
    for (int64_t i = 0; i < t.fused_batch; i++) assert_true(once[i] == GAP || t.d_qkv[i] == 2 * once[i]);
    free(once);
    direct_free(&x);
    tensors_free(&t);
}

static void test_gradients_are_added(void **state) {
    (void)state;
    for_every_kernel(check_gradients_are_added);
}

// forward_whole and backward_whole give the bits of the three steps and of backward_pair on zeros. They need no room
// for an accumulator or gradients, write every row of the result, whatever was there, and nothing beside it.
static void check_whole(const AttentionKernels *kernels) {
    Problem p = {2, 100, 4, 2, 20, 1};
    Chunk all = {0, 100};
    Direct x = direct_random(p, 22);
    Tensors expected = tensors_of(&x), t = tensors_of(&x);
    each(p, p.H, t.out, t.plain_batch, t.plain, x.out, spoil);
    each_of_fused(&t, t.d_qkv, x.d_q, x.d_k, x.d_v, spoil);
    run(kernels, 1, &expected, (Walk){1, 1, 0});
    for (int threads = 1; threads <= 2; threads++) {
        Device device = device_with(kernels, threads);
        AttentionShape shape = {p.B, p.H, p.KV, p.D, scale_of(p)};
        QueryForward query = query_forward(&t, all);
        QueryBackward query_back = query_backward(&t, all);
        KeyValue kv = key_value(&t, all);
        query.accumulator = query_back.d_q = kv.d_k = kv.d_v = (FloatView){NULL, 0, 0};
        kernels->forward_whole(&device, &shape, &query, &kv, plain_tokens(&t, t.out, 0), rows(&t, t.log_sum_exp, 0));
        kernels->row_delta(&device, &shape, all, plain_tokens(&t, t.out, 0), query_back.d_out, query_back.delta);
        kernels->backward_whole(&device, &shape, &query_back, &kv, token_part(&t, t.d_qkv, Q, 0),
                                token_part(&t, t.d_qkv, K, 0), token_part(&t, t.d_qkv, V, 0));
        assert_same_bits(&t, &expected);
        assert_gaps_untouched(&expected);
    }
    direct_free(&x);
    tensors_free(&t);
    tensors_free(&expected);
}

// Where the queries begin before the keys and end before them, too: nothing is seen by the first queries, and the last
// keys by none.
static void check_whole_of_chunks(const AttentionKernels *kernels) {
    Problem p = {1, 100, 2, 1, 24, 1};
    Chunk queries = {0, 60}, keys = {25, 75};
    Direct x = direct_random(p, 23);
    Tensors expected = tensors_of(&x), t = tensors_of(&x);
    run(kernels, 1, &expected, (Walk){1, 1, 0}); // for log_sum_exp and delta
    memcpy(t.log_sum_exp, expected.log_sum_exp, (size_t)(p.H * p.T) * sizeof(float));
    memcpy(t.delta, expected.delta, (size_t)(p.H * p.T) * sizeof(float));
    each_of_fused(&t, t.d_qkv, x.q, x.k, x.v, spoil);
    each_of_fused(&expected, expected.d_qkv, x.q, x.k, x.v, zero);
    Device device = device_with(kernels, 2);
    AttentionShape shape = {p.B, p.H, p.KV, p.D, scale_of(p)};
    QueryBackward query = query_backward(&t, queries), query_expected = query_backward(&expected, queries);
    KeyValue kv = key_value(&t, keys), kv_expected = key_value(&expected, keys);
    kernels->backward_pair(&device, &shape, &query_expected, &kv_expected);
    kernels->backward_whole(&device, &shape, &query, &kv, token_part(&t, t.d_qkv, Q, queries.start),
                            token_part(&t, t.d_qkv, K, keys.start), token_part(&t, t.d_qkv, V, keys.start));
    for (int64_t i = 0; i < p.T; i++) {
        const float *got = t.d_qkv + i * t.fused, *sums = expected.d_qkv + i * t.fused;
        for (int64_t n = 0; n < (p.H + 2 * p.KV) * p.D; n++) {
            bool part = n < p.H * p.D ? i < queries.length : i >= keys.start;
            if (part) assert_true(got[n] == sums[n]);
            else assert_true(isnan(got[n]));
        }
    }
    direct_free(&x);
    tensors_free(&t);
    tensors_free(&expected);
}

static void test_whole(void **state) {
    (void)state;
    for_every_kernel(check_whole);
    for_every_kernel(check_whole_of_chunks);
}

// What is not a number must come out as such, and not be lost in a maximum.
static void check_nan_is_kept(const AttentionKernels *kernels) {
    Problem p = {1, 40, 1, 1, 16, 1};
    Direct x = direct_random(p, 21);
    Tensors t = tensors_of(&x);
    part_data(&t, t.qkv, K, 20)[3] = NAN;
    run(kernels, 1, &t, (Walk){1, 1, 0});
    for (int64_t i = 0; i < p.T; i++) assert_true(i < 20 ? isfinite(t.out[i * t.plain]) : isnan(t.out[i * t.plain]));
    direct_free(&x);
    tensors_free(&t);
}

static void test_nan_is_kept(void **state) {
    (void)state;
    for_every_kernel(check_nan_is_kept);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_direct_gradients_by_finite_differences),
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_short_sequences),
        cmocka_unit_test(test_grouped_heads),
        cmocka_unit_test(test_one_key_head_for_all),
        cmocka_unit_test(test_long_sequences),
        cmocka_unit_test(test_large_scores),
        cmocka_unit_test(test_windows_and_documents),
        cmocka_unit_test(test_window_of_one),
        cmocka_unit_test(test_hidden_is_not_computed),
        cmocka_unit_test(test_future_is_not_seen),
        cmocka_unit_test(test_rows_without_keys),
        cmocka_unit_test(test_gradients_are_added),
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_nan_is_kept),
    };
    return cmocka_run_group_tests_name("attention_kernel", tests, NULL, NULL);
}
