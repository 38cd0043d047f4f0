// Ordinary multi-head attention (Vaswani et al., "Attention is all you need", 2017, equation 1) on one rank: for every
// head the whole T x T matrix of probabilities is computed and stored, masked entries included, with library matrix
// products around it. It is what the other exchanges are measured against, and what ends at a few thousand tokens:
// memory and work grow with T^2, and half of the work is thrown away.
//
// Backward computes the probabilities again, since the matrix in memory is that of the layer that came last:
//   dV = P^T dO,   dS = P * (dO V^T - delta),   dQ = scale dS K,   dK = scale dS^T Q
// dS takes the place of P, ROWS rows at a time.
//
// For devices whose storage is fp32 in host memory.
#include <math.h>

#include "attention/cpu/pairs.h"
#include "layers/cpu/layers.h"

enum { ROWS = 64 };

typedef struct Job {
    const AttentionShape *shape;
    int64_t T;
    const Visibility *visibility;
    float *probabilities, *rows;
    TokenView q, k, v, out;
    float *log_sum_exp, *delta;
    TokenView d_out, d_q, d_k, d_v;
    float *rooms; // (threads, SGEMM_ROOM)
} Job;

static float *rooms_of(const Device *device) {
    return device_scratch(device, "vanilla attention", product_scratch_bytes(device->threads));
}

size_t cpu_vanilla_row_bytes(const AttentionShape *shape, int64_t T) {
    return (size_t)(shape->batch * shape->kv_heads) * ROWS * (size_t)T * sizeof(float);
}

static float *head_of(TokenView view, int64_t b, int64_t h, int64_t D) {
    return (float *)view.data + b * view.batch_stride + h * D;
}
static float *rows_of(const Job *job, float *rows, int64_t b, int64_t h) {
    return rows + (b * job->shape->heads + h) * job->T;
}
static float *matrix_of(const Job *job, int64_t b, int64_t h) {
    return job->probabilities + (b * job->shape->heads + h) * job->T * job->T;
}
static int64_t kv_head_of(const AttentionShape *shape, int64_t h) { return h / (shape->heads / shape->kv_heads); }

static void scores(const Job *job, float *room, int64_t b, int64_t h, float *S) { // scale Q K^T
    int64_t D = job->shape->head_dim, kv = kv_head_of(job->shape, h);
    cpu_sgemm(room, false, true, job->T, job->T, D, job->shape->scale, head_of(job->q, b, h, D), job->q.token_stride,
              head_of(job->k, b, kv, D), job->k.token_stride, 0, S, job->T);
}

// Softmax of scores `first` to `last` of T, in place; the rest are 0. Returns the log-sum-exp.
static float softmax_row(float *score, int64_t first, int64_t last, int64_t T) {
    float max = score[first];
    for (int64_t j = first + 1; j <= last; j++) max = fmaxf(max, score[j]);
    double sum = 0;
    for (int64_t j = first; j <= last; j++) sum += score[j] = expf(score[j] - max);
    float inverse = (float)(1 / sum);
    for (int64_t j = first; j <= last; j++) score[j] *= inverse;
    for (int64_t j = 0; j < first; j++) score[j] = 0;
    for (int64_t j = last + 1; j < T; j++) score[j] = 0;
    return max + (float)log(sum);
}

static void forward_head(void *context, int64_t task, int worker) {
    const Job *job = context;
    float *room = job->rooms + (int64_t)worker * SGEMM_ROOM;
    int64_t T = job->T, D = job->shape->head_dim, b = task / job->shape->heads, h = task % job->shape->heads;
    float *P = matrix_of(job, b, h), *log_sum_exp = rows_of(job, job->log_sum_exp, b, h);
    scores(job, room, b, h, P);
    for (int64_t i = 0; i < T; i++)
        log_sum_exp[i] = softmax_row(P + i * T, visibility_first(job->visibility, b, i), i, T);
    cpu_sgemm(room, false, false, T, D, T, 1, P, T, head_of(job->v, b, kv_head_of(job->shape, h), D),
              job->v.token_stride, 0, head_of(job->out, b, h, D), job->out.token_stride);
}

static void probabilities_again(const Job *job, float *room, int64_t b, int64_t h, float *P) {
    const float *log_sum_exp = rows_of(job, job->log_sum_exp, b, h);
    scores(job, room, b, h, P);
    for (int64_t i = 0; i < job->T; i++) {
        int64_t first = visibility_first(job->visibility, b, i);
        for (int64_t j = 0; j < first; j++) P[i * job->T + j] = 0;
        for (int64_t j = first; j <= i; j++) P[i * job->T + j] = expf(P[i * job->T + j] - log_sum_exp[i]);
        for (int64_t j = i + 1; j < job->T; j++) P[i * job->T + j] = 0;
    }
}

// P becomes dS. d_P: room for ROWS rows.
static void score_gradients(const Job *job, float *room, int64_t b, int64_t h, float *P, float *d_P) {
    int64_t T = job->T, D = job->shape->head_dim, kv = kv_head_of(job->shape, h);
    const float *delta = rows_of(job, job->delta, b, h);
    for (int64_t first = 0; first < T; first += ROWS) {
        int64_t rows = T - first < ROWS ? T - first : ROWS;
        cpu_sgemm(room, false, true, rows, T, D, 1, head_of(job->d_out, b, h, D) + first * job->d_out.token_stride,
                  job->d_out.token_stride, head_of(job->v, b, kv, D), job->v.token_stride, 0, d_P, T);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < T; j++) P[(first + i) * T + j] *= d_P[i * T + j] - delta[first + i];
    }
}

// One key/value head and the query heads that read it, in their order.
static void backward_kv_head(void *context, int64_t task, int worker) {
    const Job *job = context;
    float *room = job->rooms + (int64_t)worker * SGEMM_ROOM;
    const AttentionShape *shape = job->shape;
    int64_t T = job->T, D = shape->head_dim, b = task / shape->kv_heads, kv = task % shape->kv_heads;
    int64_t group = shape->heads / shape->kv_heads;
    float *d_P = job->rows + task * ROWS * T;
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
        float *P = matrix_of(job, b, h),
              first = h == kv * group ? 0.0f : 1.0f; // times what the heads before have added
        probabilities_again(job, room, b, h, P);
        cpu_sgemm(room, true, false, T, D, T, 1, P, T, head_of(job->d_out, b, h, D), job->d_out.token_stride, first,
                  head_of(job->d_v, b, kv, D), job->d_v.token_stride);
        score_gradients(job, room, b, h, P, d_P);
        cpu_sgemm(room, false, false, T, D, T, shape->scale, P, T, head_of(job->k, b, kv, D), job->k.token_stride, 0,
                  head_of(job->d_q, b, h, D), job->d_q.token_stride);
        cpu_sgemm(room, true, false, T, D, T, shape->scale, P, T, head_of(job->q, b, h, D), job->q.token_stride, first,
                  head_of(job->d_k, b, kv, D), job->d_k.token_stride);
    }
}

void cpu_vanilla_forward(Device *device, const AttentionShape *shape, int64_t T, const Visibility *visibility,
                         void *probabilities, TokenView out, float *log_sum_exp, TokenView q, TokenView k,
                         TokenView v) {
    Job job = {.shape = shape,
               .T = T,
               .visibility = visibility,
               .probabilities = probabilities,
               .q = q,
               .k = k,
               .v = v,
               .out = out,
               .log_sum_exp = log_sum_exp,
               .rooms = rooms_of(device)};
    parallel_for(device->threads, shape->batch * shape->heads, forward_head, &job);
}

void cpu_vanilla_backward(Device *device, const AttentionShape *shape, int64_t T, const Visibility *visibility,
                          void *probabilities, void *rows, TokenView d_q, TokenView d_k, TokenView d_v, TokenView q,
                          TokenView k, TokenView v, TokenView out, const float *log_sum_exp, TokenView d_out,
                          float *delta) {
    Job job = {.shape = shape,
               .T = T,
               .visibility = visibility,
               .probabilities = probabilities,
               .rows = rows,
               .q = q,
               .k = k,
               .v = v,
               .out = out,
               .log_sum_exp = (float *)log_sum_exp,
               .delta = delta,
               .d_out = d_out,
               .d_q = d_q,
               .d_k = d_k,
               .d_v = d_v,
               .rooms = rooms_of(device)};
    parallel_for(device->threads, shape->batch * shape->kv_heads, backward_kv_head, &job);
}
