// Bodies of test/linear_dense.h.
#include "test/linear_dense.h"

#include "test/dense_product.h"

int64_t linear_weight_rows(const LinearDense *s, int i) {
    return i == LINEAR_OUT ? s->C : i == LINEAR_Q ? s->H * s->D : s->KV * s->D;
}
int64_t linear_weight_columns(const LinearDense *s, int i) { return i == LINEAR_OUT ? s->H * s->D : s->C; }

static double *zeros(int64_t count) { return allocate(count, sizeof(double)); }
static double *doubles(const float *from, int64_t count) {
    double *to = zeros(count);
    for (int64_t i = 0; i < count; i++) to[i] = from[i];
    return to;
}

static double phi(double u) { return u > 0 ? u + 1 : exp(u); }
static double phi_slope(double phi_of_u) { return fmin(phi_of_u, 1); } // 1 above 0, exp(u) below

static double decay_of(const LinearDense *s, int64_t h) {
    if (s->decay > 0) return s->decay;
    double n = s->H <= 8 ? (double)h : 7.0 * (double)h / (double)(s->H - 1);
    return 1 - pow(2, -5 - n);
}

// One head of one sequence: q, y of stride H D, k, v of stride KV D; the gradients += where d_y is not NULL.
typedef struct Head {
    const double *q, *k, *v, *d_y;
    double *y, *d_q, *d_k, *d_v;
} Head;

static void mix_head(const LinearDense *s, Head a, int64_t b, int64_t h) {
    int64_t wide = s->H * s->D, keys = s->KV * s->D, T = s->T, D = s->D;
    double *power = zeros(T), *P = zeros(T), *d_P = zeros(T);
    double *key = zeros(T * D), *query = zeros(D); // phi of all k, and of a row of q
    for (int64_t n = 0; n < T; n++) power[n] = pow(decay_of(s, h), (double)n);
    for (int64_t j = 0; j < T; j++)
        for (int64_t d = 0; d < D; d++) key[j * D + d] = phi(a.k[j * keys + d]);
    for (int64_t i = 0; i < T; i++) {
        int64_t first = s->first == NULL ? 0 : s->first[b * T + i];
        double den = 0, mean = 0;
        for (int64_t d = 0; d < D; d++) query[d] = phi(a.q[i * wide + d]);
        for (int64_t j = first; j <= i; j++) {
            double dot = 0;
            for (int64_t d = 0; d < D; d++) dot += query[d] * key[j * D + d];
            den += P[j] = power[i - j] * dot;
        }
        for (int64_t j = first; j <= i; j++) P[j] /= den;
        for (int64_t d = 0; d < D; d++) {
            double sum = 0;
            for (int64_t j = first; j <= i; j++) sum += P[j] * a.v[j * keys + d];
            a.y[i * wide + d] = sum;
        }
        if (a.d_y == NULL) continue;
        const double *d_y = a.d_y + i * wide;
        for (int64_t j = first; j <= i; j++) {
            d_P[j] = 0;
            for (int64_t d = 0; d < D; d++) d_P[j] += d_y[d] * a.v[j * keys + d];
            mean += P[j] * d_P[j];
        }
        for (int64_t j = first; j <= i; j++) {
            double d_score = (d_P[j] - mean) / den * power[i - j];
            for (int64_t d = 0; d < D; d++) {
                a.d_v[j * keys + d] += P[j] * d_y[d];
                a.d_q[i * wide + d] += d_score * key[j * D + d] * phi_slope(query[d]);
                a.d_k[j * keys + d] += d_score * query[d] * phi_slope(key[j * D + d]);
            }
        }
    }
    free(power), free(P), free(d_P), free(key), free(query);
}

void linear_dense_run(LinearDense *s, bool backward) {
    int64_t n = s->B * s->T, wide = s->H * s->D, keys = s->KV * s->D;
    double *q = zeros(n * wide), *k = zeros(n * keys), *v = zeros(n * keys), *y = zeros(n * wide);
    double *d_q = zeros(n * wide), *d_k = zeros(n * keys), *d_v = zeros(n * keys), *d_y = zeros(n * wide);
    dense_product(q, s->x, s->w[LINEAR_Q], n, wide, s->C);
    dense_product(k, s->x, s->w[LINEAR_K], n, keys, s->C);
    dense_product(v, s->x, s->w[LINEAR_V], n, keys, s->C);
    if (backward) // d_y = d_out W^O; d_w comes when y is known
        for (int64_t i = 0; i < n; i++)
            for (int64_t r = 0; r < s->C; r++)
                for (int64_t c = 0; c < wide; c++)
                    d_y[i * wide + c] += s->d_out[i * s->C + r] * s->w[LINEAR_OUT][r * wide + c];
    for (int64_t b = 0; b < s->B; b++)
        for (int64_t h = 0; h < s->H; h++) {
            int64_t at = b * s->T * wide + h * s->D, of_keys = b * s->T * keys + h / (s->H / s->KV) * s->D;
            Head head = {q + at, k + of_keys, v + of_keys,   backward ? d_y + at : NULL,
                         y + at, d_q + at,    d_k + of_keys, d_v + of_keys};
            mix_head(s, head, b, h);
        }
    dense_product(s->out, y, s->w[LINEAR_OUT], n, s->C, wide);
    if (backward) {
        double *unused = zeros(n * wide);
        dense_product_back(unused, s->d_w[LINEAR_OUT], s->d_out, y, s->w[LINEAR_OUT], n, s->C, wide);
        dense_product_back(s->d_x, s->d_w[LINEAR_Q], d_q, s->x, s->w[LINEAR_Q], n, wide, s->C);
        dense_product_back(s->d_x, s->d_w[LINEAR_K], d_k, s->x, s->w[LINEAR_K], n, keys, s->C);
        dense_product_back(s->d_x, s->d_w[LINEAR_V], d_v, s->x, s->w[LINEAR_V], n, keys, s->C);
        free(unused);
    }
    free(q), free(k), free(v), free(y), free(d_q), free(d_k), free(d_v), free(d_y);
}

LinearDense linear_dense(const MixerProblem *p, const MixerAnswer *a) {
    LinearDense s = {.B = p->B,
                     .T = p->T,
                     .C = p->C,
                     .H = a->config.heads,
                     .KV = a->config.kv_heads,
                     .D = a->config.head_dim,
                     .first = a->first};
    MixerChoice choice = layer_kind(&a->config, 0).choice;
    int64_t n = p->B * p->T * p->C;
    s.decay = choice.values > 0 ? choice.value[0] : 0;
    s.x = doubles(a->x, n), s.d_out = doubles(a->d_out, n), s.out = zeros(n), s.d_x = zeros(n);
    for (int i = 0; i < 4; i++) {
        int64_t size = linear_weight_rows(&s, i) * linear_weight_columns(&s, i);
        s.w[i] = doubles(mixer_weight(a, i), size), s.d_w[i] = zeros(size);
    }
    return s;
}

void linear_dense_free(LinearDense *s) {
    free(s->x), free(s->d_out), free(s->out), free(s->d_x);
    for (int i = 0; i < 4; i++) free(s->w[i]), free(s->d_w[i]);
}

void expect_linear(const MixerProblem *p, const int *ranks, double forward, double backward) {
    LinearDense s = {0};
    MixerError of_one[6] = {0}; // of weights, out and d_x
    for (int r = 0; ranks[r] != 0; r++) {
        if (p->T < 2 * ranks[r]) continue;
        MixerAnswer a = mixer_run(p, ranks[r]);
        if (s.x == NULL) {
            s = linear_dense(p, &a);
            s.first = a.first;
            linear_dense_run(&s, true);
        }
        int64_t n = p->B * p->T * p->C;
        static const char *names[] = {"d_w_q", "d_w_k", "d_w_v", "d_w_out"};
        mixer_expect_flat(p, ranks[r], LINEAR_BLOCK, "out", mixer_error(a.out, s.out, n), forward, &of_one[4]);
        mixer_expect_flat(p, ranks[r], LINEAR_BLOCK, "d_x", mixer_error(a.d_x, s.d_x, n), backward, &of_one[5]);
        for (int i = 0; i < 4; i++) {
            int64_t size = linear_weight_rows(&s, i) * linear_weight_columns(&s, i);
            mixer_expect_flat(p, ranks[r], LINEAR_BLOCK, names[i], mixer_error(mixer_gradient(&a, i), s.d_w[i], size),
                              backward, &of_one[i]);
        }
        assert_int_equal(a.forward_bytes, a.stated_forward);
        assert_int_equal(a.backward_bytes, a.stated_backward);
        mixer_free(&a);
    }
    linear_dense_free(&s);
}
