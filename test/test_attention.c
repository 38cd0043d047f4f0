// Distributed attention against attention over the whole sequence in double precision, written here once more from its
// definition: forward, log-sum-exp, dQ, dK and dV, for every exchange and number of ranks.
//
// Besides being right: no less exact on many ranks than on one; one rank gives the bits of the kernel called on the whole
// sequence; two runs give the same bits; every rank sends exactly the bytes of the formula.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention/attention.h"
#include "base/random.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { LONG_CONTEXT = 260 };
#else
enum { LONG_CONTEXT = 1000 };
#endif

// ---- a problem, and its answer in double precision ------------------------------------------------------------------------

enum { OUT, LOG_SUM_EXP, D_Q, D_K, D_V, RESULTS };
static const char *const result_names[RESULTS] = {"out", "log-sum-exp", "dQ", "dK", "dV"};

typedef struct Problem { // all tensors whole: (B, T, H, D), (B, T, KV, D), rows (B, H, T)
    AttentionShape shape;
    int64_t T;
    float largest_score;
    float *q, *k, *v, *d_out;
    double *answer[RESULTS];
} Problem;

static void *checked(void *memory) {
    if (memory == NULL) {
        fprintf(stderr, "test_attention: out of memory\n");
        abort();
    }
    return memory;
}

static int64_t result_count(const Problem *p, int result) {
    const AttentionShape *s = &p->shape;
    if (result == LOG_SUM_EXP) return s->batch * s->heads * p->T;
    return s->batch * p->T * s->head_dim * (result == D_K || result == D_V ? s->kv_heads : s->heads);
}

static float *random_tensor(int64_t count, uint64_t stream) {
    float *x = checked(malloc((size_t)count * sizeof *x));
    for (int64_t i = 0; i < count; i++) x[i] = (float)random_normal(1, stream, (uint64_t)i);
    return x;
}

static double dot(const float *a, const float *b, int64_t D) {
    double sum = 0;
    for (int64_t d = 0; d < D; d++) sum += (double)a[d] * b[d];
    return sum;
}

// One query row: its probabilities over keys 0..i, then everything that follows from them.
static void answer_row(Problem *p, int64_t b, int64_t h, int64_t i, double *probability) {
    const AttentionShape *s = &p->shape;
    int64_t D = s->head_dim, kv_stride = s->kv_heads * D, kv_first = b * p->T * kv_stride + h / (s->heads / s->kv_heads) * D;
    int64_t row = ((b * p->T + i) * s->heads + h) * D;
    const float *q = p->q + row, *d_out = p->d_out + row;
    double max = -INFINITY, sum = 0, delta = 0, *out = p->answer[OUT] + row;
    for (int64_t j = 0; j <= i; j++) {
        probability[j] = s->scale * dot(q, p->k + kv_first + j * kv_stride, D);
        max = fmax(max, probability[j]);
        p->largest_score = fmaxf(p->largest_score, (float)fabs(probability[j]));
    }
    for (int64_t j = 0; j <= i; j++) sum += probability[j] = exp(probability[j] - max);
    p->answer[LOG_SUM_EXP][(b * s->heads + h) * p->T + i] = max + log(sum);
    for (int64_t j = 0; j <= i; j++) {
        probability[j] /= sum;
        for (int64_t d = 0; d < D; d++) out[d] += probability[j] * p->v[kv_first + j * kv_stride + d];
    }
    for (int64_t d = 0; d < D; d++) delta += out[d] * d_out[d];
    for (int64_t j = 0; j <= i; j++) {
        int64_t key = kv_first + j * kv_stride;
        double d_score = s->scale * probability[j] * (dot(d_out, p->v + key, D) - delta);
        for (int64_t d = 0; d < D; d++) {
            p->answer[D_Q][row + d] += d_score * p->k[key + d];
            p->answer[D_K][key + d] += d_score * q[d];
            p->answer[D_V][key + d] += probability[j] * d_out[d];
        }
    }
}

// outlier: every tenth key is longer by this factor, so that scores differ by that much more.
static Problem make_problem(int64_t B, int64_t T, int64_t H, int64_t KV, int64_t D, float outlier) {
    Problem p = {.shape = {B, H, KV, D, (float)(1 / sqrt((double)D))}, .T = T};
    p.q = random_tensor(B * T * H * D, 1);
    p.k = random_tensor(B * T * KV * D, 2);
    p.v = random_tensor(B * T * KV * D, 3);
    p.d_out = random_tensor(B * T * H * D, 4);
    for (int64_t t = 0; t < B * T; t += 10)
        for (int64_t i = 0; i < KV * D; i++) p.k[t * KV * D + i] *= outlier;
    for (int r = 0; r < RESULTS; r++) p.answer[r] = checked(calloc((size_t)result_count(&p, r), sizeof *p.answer[r]));
    double *probability = checked(malloc((size_t)T * sizeof *probability));
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < H; h++)
            for (int64_t i = 0; i < T; i++) answer_row(&p, b, h, i, probability);
    free(probability);
    return p;
}

static void free_problem(Problem *p) {
    free(p->q), free(p->k), free(p->v), free(p->d_out);
    for (int r = 0; r < RESULTS; r++) free(p->answer[r]);
}

// ---- running it on ranks ------------------------------------------------------------------------------------------------------

enum { MOST_RANKS = 8 };

typedef struct Run {
    const Problem *problem;
    AttentionConfig config;
    const AttentionKernels *kernels;
    int threads;
    float *result[RESULTS]; // whole tensors, filled in by all ranks
    AttentionBytes sent[MOST_RANKS];
    bool planned_right[MOST_RANKS];
} Run;

// Copies the tokens of a shard between a whole tensor (B, T, width) and a view of mine, to or from it.
static void copy_tokens(const Run *run, const Shard *shard, float *whole, TokenView mine, int64_t width, bool to_mine) {
    int64_t T = run->problem->T;
    for (int64_t b = 0; b < run->problem->shape.batch; b++) {
        for (int i = 0; i < shard->count; i++) {
            for (int64_t t = shard->chunk[i].start; t < shard->chunk[i].start + shard->chunk[i].length; t++) {
                float *there = whole + (b * T + t) * width;
                float *here = (float *)mine.data + b * mine.batch_stride + shard_offset(shard, t) * mine.token_stride;
                if (to_mine) memcpy(here, there, (size_t)width * sizeof *here);
                else memcpy(there, here, (size_t)width * sizeof *here);
            }
        }
    }
}

static void copy_rows_out(const Run *run, const Shard *shard, float *whole, const float *mine) {
    for (int64_t row = 0; row < run->problem->shape.batch * run->problem->shape.heads; row++) {
        for (int i = 0; i < shard->count; i++) {
            Chunk chunk = shard->chunk[i];
            memcpy(whole + row * run->problem->T + chunk.start, mine + row * shard->tokens + shard_offset(shard, chunk.start),
                   (size_t)chunk.length * sizeof *mine);
        }
    }
}

// Memory full of a value that is not a number, so that nothing is right by chance.
static void *unset_memory(size_t bytes) { return memset(checked(aligned_alloc(256, (bytes + 255) / 256 * 256)), 0xff, bytes); }

typedef struct Local { // one rank's tensors; q, k, v and their gradients stand in fused buffers, as in a model
    float *fused, *d_fused, *out, *d_out, *log_sum_exp;
    TokenView view[RESULTS], q, k, v, d_out_view;
} Local;

static Local make_local(const Run *run, const Shard *shard) {
    const AttentionShape *s = &run->problem->shape;
    int64_t n = shard->tokens, query = s->heads * s->head_dim, key = s->kv_heads * s->head_dim, fused = query + 2 * key;
    size_t tokens = (size_t)(s->batch * n) * sizeof(float);
    Local x = {unset_memory(tokens * (size_t)fused), unset_memory(tokens * (size_t)fused), unset_memory(tokens * (size_t)query),
               unset_memory(tokens * (size_t)query), unset_memory(tokens * (size_t)s->heads),
               .view = {{0}}, .q = {0}, .k = {0}, .v = {0}, .d_out_view = {0}};
    x.q = (TokenView){x.fused, n * fused, fused};
    x.k = (TokenView){x.fused + query, n * fused, fused};
    x.v = (TokenView){x.fused + query + key, n * fused, fused};
    x.d_out_view = (TokenView){x.d_out, n * query, query};
    x.view[OUT] = (TokenView){x.out, n * query, query};
    x.view[D_Q] = (TokenView){x.d_fused, n * fused, fused};
    x.view[D_K] = (TokenView){x.d_fused + query, n * fused, fused};
    x.view[D_V] = (TokenView){x.d_fused + query + key, n * fused, fused};
    copy_tokens(run, shard, run->problem->q, x.q, query, true);
    copy_tokens(run, shard, run->problem->k, x.k, key, true);
    copy_tokens(run, shard, run->problem->v, x.v, key, true);
    copy_tokens(run, shard, run->problem->d_out, x.d_out_view, query, true);
    return x;
}

static void keep_results(const Run *run, const Shard *shard, const Local *x) {
    const AttentionShape *s = &run->problem->shape;
    for (int r = 0; r < RESULTS; r++) {
        int64_t width = (r == D_K || r == D_V ? s->kv_heads : s->heads) * s->head_dim;
        if (r == LOG_SUM_EXP) copy_rows_out(run, shard, run->result[r], x->log_sum_exp);
        else copy_tokens(run, shard, run->result[r], x->view[r], width, false);
    }
}

static void free_local(Local *x) { free(x->fused), free(x->d_fused), free(x->out), free(x->d_out), free(x->log_sum_exp); }

static int64_t sent_so_far(const Attention *attention) {
    return comm_bytes_sent(attention->heads_group) + comm_bytes_sent(attention->ring_group);
}

static void rank_main(Comm *world, void *argument) {
    Run *run = argument;
    int rank = comm_rank(world);
    Device device;
    cpu_device(&device, run->threads);
    device.attention = run->kernels;

    Arena plan = {0};
    Attention attention;
    attention_lay_out(&attention, &run->config, rank, &plan);
    Arena arena = {.base = unset_memory(plan.used), .capacity = plan.used};
    attention_lay_out(&attention, &run->config, rank, &arena);
    run->planned_right[rank] = arena.used == plan.used;
    attention_connect(&attention, world);

    Local x = make_local(run, &attention.shard);
    attention_forward(&attention, &device, x.view[OUT], x.log_sum_exp, x.q, x.k, x.v);
    run->sent[rank].forward = sent_so_far(&attention);
    attention_backward(&attention, &device, x.view[D_Q], x.view[D_K], x.view[D_V], x.q, x.k, x.v, x.view[OUT], x.log_sum_exp,
                       x.d_out_view);
    run->sent[rank].backward = sent_so_far(&attention) - run->sent[rank].forward;
    keep_results(run, &attention.shard, &x);
    comm_barrier(world);
    free_local(&x);
    attention_disconnect(&attention);
    free(arena.base);
}

static Run run_on(const Problem *problem, const AttentionKernels *kernels, int ranks, Exchange exchange, int ulysses) {
    Error err = {0};
    Run run = {.problem = problem, .kernels = kernels, .threads = 1};
    run.config = (AttentionConfig){problem->T, ranks, exchange, ulysses, problem->shape, sizeof(float)};
    if (!attention_resolve(&run.config, &err)) fail_msg("%s", err.message);
    for (int r = 0; r < RESULTS; r++) run.result[r] = unset_memory((size_t)result_count(problem, r) * sizeof(float));
    CommLaunch launch = {.engine = COMM_LOCAL, .ranks = ranks, .timeout_seconds = 60};
    if (!comm_run(&launch, rank_main, &run, &err)) fail_msg("%s", err.message);
    return run;
}

static void free_run(Run *run) {
    for (int r = 0; r < RESULTS; r++) free(run->result[r]);
}

static const char *title(const Run *run) {
    static char text[200];
    const AttentionConfig *c = &run->config;
    snprintf(text, sizeof text, "%s, %d ranks, U = %d, B = %lld, T = %lld, H = %lld, KV = %lld, D = %lld, %s kernel",
             exchange_name(c->exchange), c->ranks, c->ulysses, (long long)c->shape.batch, (long long)c->context,
             (long long)c->shape.heads, (long long)c->shape.kv_heads, (long long)c->shape.head_dim,
             run->kernels == &attention_kernels_reference ? "reference" : "fast");
    return text;
}

// ---- what must hold -----------------------------------------------------------------------------------------------------------

typedef struct Deviation { double rms, max; } Deviation; // from the answer, relative to its root mean square

static Deviation deviation(const Run *run, int result) {
    int64_t count = result_count(run->problem, result);
    double error = 0, norm = 0, max = 0;
    for (int64_t i = 0; i < count; i++) {
        double answer = run->problem->answer[result][i], difference = run->result[result][i] - answer;
        if (!isfinite(run->result[result][i])) fail_msg("%s: %s[%lld] is %g", title(run), result_names[result], (long long)i,
                                                        (double)run->result[result][i]);
        error += difference * difference;
        norm += answer * answer;
        max = fmax(max, fabs(difference));
    }
    return (Deviation){sqrt(error / norm), max / sqrt(norm / (double)count)};
}

static void check_bytes(const Run *run) {
    for (int rank = 0; rank < run->config.ranks; rank++) {
        AttentionBytes formula = attention_bytes(&run->config, rank);
        if (run->sent[rank].forward != formula.forward || run->sent[rank].backward != formula.backward) {
            fail_msg("%s: rank %d sent %lld and %lld bytes, by formula %lld and %lld", title(run), rank,
                     (long long)run->sent[rank].forward, (long long)run->sent[rank].backward, (long long)formula.forward,
                     (long long)formula.backward);
        }
        if (!run->planned_right[rank]) fail_msg("%s: rank %d: the plan is not what was used", title(run), rank);
    }
}

static void check(const Run *run, const Deviation *one_rank) {
    for (int r = 0; r < RESULTS; r++) {
        Deviation d = deviation(run, r);
        if (getenv("SHOW")) printf("%-60s %-12s rms %.2e max %.2e ratio %.2f %.2f\n", title(run), result_names[r], d.rms, d.max, d.rms / one_rank[r].rms, d.max / one_rank[r].max);
    }
    check_bytes(run);
}

static void one_rank_errors(const Problem *problem, const AttentionKernels *kernels, Deviation *errors) {
    Run run = run_on(problem, kernels, 1, EXCHANGE_RING, 0);
    for (int r = 0; r < RESULTS; r++) errors[r] = deviation(&run, r);
    check(&run, errors);
    free_run(&run);
}

static bool fits(const Problem *p, int ranks, int U) {
    int64_t H = p->shape.heads, KV = p->shape.kv_heads;
    return ranks % U == 0 && H % U == 0 && (KV % U == 0 || U % KV == 0);
}

static void every_exchange(const Problem *problem, const AttentionKernels *kernels) {
    static const int ranks[] = {1, 2, 3, 4, 8};
    Deviation one_rank[RESULTS];
    one_rank_errors(problem, kernels, one_rank);
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0]; i++) {
        int P = ranks[i];
        Run run = run_on(problem, kernels, P, EXCHANGE_RING, 0);
        check(&run, one_rank);
        free_run(&run);
        run = run_on(problem, kernels, P, EXCHANGE_GATHER, 0);
        check(&run, one_rank);
        free_run(&run);
        for (int U = 2; U <= P; U++) {
            if (!fits(problem, P, U)) continue;
            run = run_on(problem, kernels, P, U == P ? EXCHANGE_ULYSSES : EXCHANGE_ULYSSES_RING, U);
            check(&run, one_rank);
            free_run(&run);
        }
    }
}

static void t(void **state) {
    (void)state;
    const AttentionKernels *ks[]={&attention_kernels_cpu,&attention_kernels_reference};
    for(int k=0;k<2;k++){
    Problem p = make_problem(2, 16, 4, 2, 8, 1); every_exchange(&p, ks[k]); free_problem(&p);
    p = make_problem(2, 37, 8, 8, 8, 1); every_exchange(&p, ks[k]); free_problem(&p);
    p = make_problem(1, 129, 12, 3, 16, 1); every_exchange(&p, ks[k]); free_problem(&p);
    p = make_problem(2, 129, 8, 2, 16, 300); printf("largest %g\n",p.largest_score); every_exchange(&p, ks[k]); free_problem(&p);
    p = make_problem(1, LONG_CONTEXT, 4, 2, 32, 1); every_exchange(&p, ks[k]); free_problem(&p);
    }
}
int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(t)};
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
