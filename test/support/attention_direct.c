// Bodies of test/attention_direct.h.
#include "test/attention_direct.h"

void *allocate(int64_t count, size_t size) {
    void *memory = calloc((size_t)count, size);
    assert_non_null(memory);
    return memory;
}

int64_t query_count(Problem p) { return p.B * p.T * p.H * p.D; }

int64_t key_count(Problem p) { return p.B * p.T * p.KV * p.D; }

Direct direct_allocate(Problem p) {
    Direct x = {.problem = p};
    double **queries[] = {&x.q, &x.d_out, &x.out, &x.d_q}, **keys[] = {&x.k, &x.v, &x.d_k, &x.d_v};
    for (int i = 0; i < 4; i++) {
        *queries[i] = allocate(query_count(p), sizeof(double));
        *keys[i] = allocate(key_count(p), sizeof(double));
    }
    x.log_sum_exp = allocate(p.B * p.H * p.T, sizeof(double));
    return x;
}

void direct_free(Direct *x) {
    double *all[] = {x->q, x->k, x->v, x->d_out, x->out, x->log_sum_exp, x->d_q, x->d_k, x->d_v};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

Direct direct_random(Problem p, uint64_t seed) {
    Direct x = direct_allocate(p);
    for (int64_t i = 0; i < query_count(p); i++) {
        x.q[i] = (float)(p.gain * random_normal(seed, 1, (uint64_t)i));
        x.d_out[i] = (float)random_normal(seed, 2, (uint64_t)i);
    }
    for (int64_t i = 0; i < key_count(p); i++) {
        x.k[i] = (float)random_normal(seed, 3, (uint64_t)i);
        x.v[i] = (float)random_normal(seed, 4, (uint64_t)i);
    }
    return x;
}

float scale_of(Problem p) { return (float)(1 / sqrt((double)p.D)); }

static double rounded(double x, bool single) { return single ? (double)(float)x : x; }

static double dot(const double *x, const double *y, int64_t D, bool single) {
    double sum = 0;
    for (int64_t d = 0; d < D; d++) sum = rounded(sum + rounded(x[d] * y[d], single), single);
    return sum;
}

static void add_multiple(double *to, double factor, const double *x, int64_t D, bool single) {
    for (int64_t d = 0; d < D; d++) to[d] = rounded(to[d] + rounded(factor * x[d], single), single);
}

// The first key that query i sees: by the definition, not by the code that is tested.
static int64_t direct_first(const Direct *x, int64_t b, int64_t i) {
    const Visibility *v = &x->visibility;
    int64_t first = v->window > 0 && i >= v->window ? i + 1 - v->window : 0;
    if (v->first == NULL || v->first[b * v->stride + i] < first) return first;
    return v->first[b * v->stride + i];
}

// Row i of the softmax, over the keys that it sees up to i, and everything that depends on it. As in attention/kernel.h the backward pass
// starts from the log-sum-exp and delta.
static void direct_row(Direct *x, int64_t b, int64_t h, int64_t i, double *score, double *weight, bool single) {
    Problem p = x->problem;
    int64_t row = ((b * p.T + i) * p.H + h) * p.D;
    int64_t key = (b * p.T * p.KV + h / (p.H / p.KV)) * p.D, next = p.KV * p.D;
    double max = -INFINITY, sum = 0;
    int64_t first = direct_first(x, b, i);
    for (int64_t j = first; j <= i; j++) {
        score[j] = rounded(scale_of(p) * dot(x->q + row, x->k + key + j * next, p.D, single), single);
        max = fmax(max, score[j]);
    }
    for (int64_t j = first; j <= i; j++) {
        weight[j] = rounded(exp(rounded(score[j] - max, single)), single);
        sum = rounded(sum + weight[j], single);
    }
    for (int64_t j = first; j <= i; j++)
        add_multiple(x->out + row, rounded(weight[j] / sum, single), x->v + key + j * next, p.D, single);
    double log_sum_exp = rounded(max + rounded(log(sum), single), single);
    x->log_sum_exp[(b * p.H + h) * p.T + i] = log_sum_exp;

    double delta = dot(x->out + row, x->d_out + row, p.D, single);
    for (int64_t j = first; j <= i; j++) {
        double probability = rounded(exp(rounded(score[j] - log_sum_exp, single)), single);
        double d_weight = dot(x->d_out + row, x->v + key + j * next, p.D, single);
        double d_score = rounded(probability * rounded(d_weight - delta, single), single);
        d_score = rounded(scale_of(p) * d_score, single);
        add_multiple(x->d_q + row, d_score, x->k + key + j * next, p.D, single);
        add_multiple(x->d_k + key + j * next, d_score, x->q + row, p.D, single);
        add_multiple(x->d_v + key + j * next, probability, x->d_out + row, p.D, single);
    }
}

void direct_attention(Direct *x, bool single) {
    Problem p = x->problem;
    double *score = allocate(p.T, sizeof(double)), *weight = allocate(p.T, sizeof(double));
    memset(x->out, 0, (size_t)query_count(p) * sizeof(double));
    memset(x->d_q, 0, (size_t)query_count(p) * sizeof(double));
    memset(x->d_k, 0, (size_t)key_count(p) * sizeof(double));
    memset(x->d_v, 0, (size_t)key_count(p) * sizeof(double));
    for (int64_t b = 0; b < p.B; b++)
        for (int64_t h = 0; h < p.H; h++)
            for (int64_t i = 0; i < p.T; i++) direct_row(x, b, h, i, score, weight, single);
    free(score);
    free(weight);
}

Direct direct_single(const Direct *exact) {
    Direct single = direct_allocate(exact->problem);
    single.visibility = exact->visibility;
    memcpy(single.q, exact->q, (size_t)query_count(exact->problem) * sizeof(double));
    memcpy(single.d_out, exact->d_out, (size_t)query_count(exact->problem) * sizeof(double));
    memcpy(single.k, exact->k, (size_t)key_count(exact->problem) * sizeof(double));
    memcpy(single.v, exact->v, (size_t)key_count(exact->problem) * sizeof(double));
    direct_attention(&single, true);
    return single;
}
