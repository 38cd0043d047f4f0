// Attention problems for tests: random tensors, their answer by attention over the whole sequence in double precision
// (written here once more from its definition), and a run of the real thing on ranks.
#ifndef TEST_ATTENTION_PROBLEM_H
#define TEST_ATTENTION_PROBLEM_H

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

// ---- a problem, and its answer ------------------------------------------------------------------

enum { OUT, LOG_SUM_EXP, D_Q, D_K, D_V, RESULTS };
static const char *const result_names[RESULTS] = {"out", "log-sum-exp", "dQ", "dK", "dV"};

typedef struct Problem { // all tensors whole: (B, T, H, D), (B, T, KV, D), rows (B, H, T)
    AttentionShape shape;
    int64_t T;
    double largest_score, largest_gap; // between the scores of one row
    float *q, *k, *v, *d_out;
    double *answer[RESULTS];
} Problem;

static inline void *checked(void *memory) {
    if (memory == NULL) {
        fprintf(stderr, "out of memory\n");
        abort();
    }
    return memory;
}

// Memory full of a value that is not a number, so that nothing is right by chance.
static inline void *unset_memory(size_t bytes) {
    return memset(checked(aligned_alloc(256, (bytes + 255) / 256 * 256)), 0xff, bytes);
}

static inline int64_t result_heads(const Problem *p, int result) {
    return result == D_K || result == D_V ? p->shape.kv_heads : p->shape.heads;
}
static inline int64_t result_count(const Problem *p, int result) {
    return p->shape.batch * p->T * result_heads(p, result) * (result == LOG_SUM_EXP ? 1 : p->shape.head_dim);
}

static inline float *random_tensor(int64_t count, uint64_t stream) {
    float *x = checked(malloc((size_t)count * sizeof *x));
    for (int64_t i = 0; i < count; i++) x[i] = (float)random_normal(1, stream, (uint64_t)i);
    return x;
}

static inline double dot(const float *a, const float *b, int64_t D) {
    double sum = 0;
    for (int64_t d = 0; d < D; d++) sum += (double)a[d] * b[d];
    return sum;
}

// One query row: its probabilities over keys 0..i, then everything that follows from them.
static inline void answer_row(Problem *p, int64_t b, int64_t h, int64_t i, double *probability) {
    const AttentionShape *s = &p->shape;
    int64_t D = s->head_dim, stride = s->kv_heads * D, kv_first = b * p->T * stride + h / (s->heads / s->kv_heads) * D;
    int64_t row = ((b * p->T + i) * s->heads + h) * D;
    const float *q = p->q + row, *d_out = p->d_out + row;
    double max = -INFINITY, min = INFINITY, sum = 0, delta = 0, *out = p->answer[OUT] + row;
    for (int64_t j = 0; j <= i; j++) {
        probability[j] = s->scale * dot(q, p->k + kv_first + j * stride, D);
        max = fmax(max, probability[j]);
        min = fmin(min, probability[j]);
    }
    p->largest_score = fmax(p->largest_score, fmax(max, -min));
    p->largest_gap = fmax(p->largest_gap, max - min);
    for (int64_t j = 0; j <= i; j++) sum += probability[j] = exp(probability[j] - max);
    p->answer[LOG_SUM_EXP][(b * s->heads + h) * p->T + i] = max + log(sum);
    for (int64_t j = 0; j <= i; j++) {
        probability[j] /= sum;
        for (int64_t d = 0; d < D; d++) out[d] += probability[j] * p->v[kv_first + j * stride + d];
    }
    for (int64_t d = 0; d < D; d++) delta += out[d] * d_out[d];
    for (int64_t j = 0; j <= i; j++) {
        int64_t key = kv_first + j * stride;
        double d_score = s->scale * probability[j] * (dot(d_out, p->v + key, D) - delta);
        for (int64_t d = 0; d < D; d++) {
            p->answer[D_Q][row + d] += d_score * p->k[key + d];
            p->answer[D_K][key + d] += d_score * q[d];
            p->answer[D_V][key + d] += probability[j] * d_out[d];
        }
    }
}

// outlier: every tenth key is longer by this factor, so that scores differ by that much more.
static inline Problem make_problem(int64_t B, int64_t T, int64_t H, int64_t KV, int64_t D, float outlier) {
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

static inline void free_problem(Problem *p) {
    free(p->q), free(p->k), free(p->v), free(p->d_out);
    for (int r = 0; r < RESULTS; r++) free(p->answer[r]);
}

// ---- running it on ranks ------------------------------------------------------------------------

enum { MOST_RANKS = 8 };

typedef void MakeDevice(Device *device);

static inline void fast_device(Device *device) { cpu_device(device, 1); }
static inline void reference_device(Device *device) {
    cpu_device(device, 1);
    device->attention = &attention_kernels_reference;
}

typedef struct Run {
    const Problem *problem;
    AttentionConfig config;
    MakeDevice *make_device;
    int repeats;            // of forward and backward, with the same scratch
    float *result[RESULTS]; // whole tensors, filled in by all ranks
    AttentionBytes sent[MOST_RANKS];
    bool planned_right[MOST_RANKS];
} Run;

// Copies the tokens of a shard from a whole tensor (B, T, width) to a view of mine, or back.
static inline void copy_tokens(Device *device, const Problem *problem, const Shard *shard, float *whole, TokenView mine,
                               int64_t width, bool to_mine) {
    for (int64_t b = 0; b < problem->shape.batch; b++) {
        for (int i = 0; i < shard->count; i++) {
            Chunk chunk = shard->chunk[i];
            for (int64_t t = chunk.start; t < chunk.start + chunk.length; t++) {
                float *there = whole + (b * problem->T + t) * width;
                int64_t offset = b * mine.batch_stride + shard_offset(shard, t) * mine.token_stride;
                if (to_mine) device->to_storage(device, at(device, mine.data, offset), there, width);
                else device->to_float(device, there, at(device, mine.data, offset), width);
            }
        }
    }
}

static inline void copy_rows(const Problem *problem, const Shard *shard, float *whole, const float *mine) {
    for (int64_t row = 0; row < problem->shape.batch * problem->shape.heads; row++) {
        for (int i = 0; i < shard->count; i++) {
            Chunk chunk = shard->chunk[i];
            memcpy(whole + row * problem->T + chunk.start,
                   mine + row * shard->tokens + shard_offset(shard, chunk.start), (size_t)chunk.length * sizeof *mine);
        }
    }
}

typedef struct Local { // one rank's tensors; q, k, v and their gradients stand in fused buffers, as in a model
    void *fused, *d_fused, *out, *d_out;
    float *log_sum_exp;
    TokenView q, k, v, d_out_view, result[RESULTS];
} Local;

static inline Local make_local(Device *device, const Problem *p, const Shard *shard) {
    const AttentionShape *s = &p->shape;
    int64_t n = shard->tokens, query = s->heads * s->head_dim, key = s->kv_heads * s->head_dim, fused = query + 2 * key;
    size_t tokens = (size_t)(s->batch * n), bytes = device->element_bytes;
    Local x;
    x.fused = unset_memory(tokens * (size_t)fused * bytes);
    x.d_fused = unset_memory(tokens * (size_t)fused * bytes);
    x.out = unset_memory(tokens * (size_t)query * bytes);
    x.d_out = unset_memory(tokens * (size_t)query * bytes);
    x.log_sum_exp = unset_memory(tokens * (size_t)s->heads * sizeof(float));
    x.q = (TokenView){x.fused, n * fused, fused};
    x.k = (TokenView){at(device, x.fused, query), n * fused, fused};
    x.v = (TokenView){at(device, x.fused, query + key), n * fused, fused};
    x.d_out_view = (TokenView){x.d_out, n * query, query};
    x.result[OUT] = (TokenView){x.out, n * query, query};
    x.result[LOG_SUM_EXP] = (TokenView){0};
    x.result[D_Q] = (TokenView){x.d_fused, n * fused, fused};
    x.result[D_K] = (TokenView){at(device, x.d_fused, query), n * fused, fused};
    x.result[D_V] = (TokenView){at(device, x.d_fused, query + key), n * fused, fused};
    copy_tokens(device, p, shard, p->q, x.q, query, true);
    copy_tokens(device, p, shard, p->k, x.k, key, true);
    copy_tokens(device, p, shard, p->v, x.v, key, true);
    copy_tokens(device, p, shard, p->d_out, x.d_out_view, query, true);
    return x;
}

static inline void keep_results(const Run *run, Device *device, const Shard *shard, const Local *x) {
    const Problem *p = run->problem;
    for (int r = 0; r < RESULTS; r++) {
        int64_t width = result_heads(p, r) * p->shape.head_dim;
        if (r == LOG_SUM_EXP) copy_rows(p, shard, run->result[r], x->log_sum_exp);
        else copy_tokens(device, p, shard, run->result[r], x->result[r], width, false);
    }
}

static inline void free_local(Local *x) {
    free(x->fused), free(x->d_fused), free(x->out), free(x->d_out), free(x->log_sum_exp);
}

static inline void attention_rank(Comm *world, void *argument) {
    Run *run = argument;
    int rank = comm_rank(world);
    Device device;
    run->make_device(&device);

    Arena plan = {0};
    Attention attention;
    attention_lay_out(&attention, &run->config, rank, &plan);
    Arena arena = {.base = unset_memory(plan.used), .capacity = plan.used};
    attention_lay_out(&attention, &run->config, rank, &arena);
    run->planned_right[rank] = arena.used == plan.used;
    attention_connect(&attention, world);

    Local x = make_local(&device, run->problem, &attention.shard);
    for (int i = 0; i < run->repeats; i++) {
        int64_t before = attention_bytes_sent(&attention);
        attention_forward(&attention, &device, x.result[OUT], x.log_sum_exp, x.q, x.k, x.v);
        int64_t between = attention_bytes_sent(&attention);
        attention_backward(&attention, &device, x.result[D_Q], x.result[D_K], x.result[D_V], x.q, x.k, x.v,
                           x.result[OUT], x.log_sum_exp, x.d_out_view);
        run->sent[rank] = (AttentionBytes){between - before, attention_bytes_sent(&attention) - between};
    }
    keep_results(run, &device, &attention.shard, &x);
    free_local(&x);
    attention_disconnect(&attention);
    free(arena.base);
}

// ulysses: 0 for what attention_resolve chooses.
static inline Run run_repeated(const Problem *problem, MakeDevice *make_device, int ranks, Exchange exchange,
                               int ulysses, int repeats) {
    Error err = {0};
    Device device;
    make_device(&device);
    Run run = {.problem = problem, .make_device = make_device, .repeats = repeats};
    run.config = (AttentionConfig){problem->T, ranks, exchange, ulysses, problem->shape, device.element_bytes};
    if (!attention_resolve(&run.config, &err)) fail_msg("%s", err.message);
    for (int r = 0; r < RESULTS; r++) run.result[r] = unset_memory((size_t)result_count(problem, r) * sizeof(float));
    CommLaunch launch = {.engine = COMM_LOCAL, .ranks = ranks, .timeout_seconds = 60};
    if (!comm_run(&launch, attention_rank, &run, &err)) fail_msg("%s", err.message);
    return run;
}

static inline Run run_on(const Problem *problem, MakeDevice *make_device, int ranks, Exchange exchange, int ulysses) {
    return run_repeated(problem, make_device, ranks, exchange, ulysses, 1);
}

static inline void free_run(Run *run) {
    for (int r = 0; r < RESULTS; r++) free(run->result[r]);
}

static inline const char *run_title(const Run *run) {
    static char text[200];
    const AttentionConfig *c = &run->config;
    const char *kernel = run->make_device == fast_device        ? "fast"
                         : run->make_device == reference_device ? "reference"
                                                                : "wide";
    snprintf(text, sizeof text, "%s, %d ranks, U = %d, B = %lld, T = %lld, H = %lld, KV = %lld, D = %lld, %s kernel",
             exchange_name(c->exchange), c->ranks, c->ulysses, (long long)c->shape.batch, (long long)c->context,
             (long long)c->shape.heads, (long long)c->shape.kv_heads, (long long)c->shape.head_dim, kernel);
    return text;
}

#endif
