// Bodies of test/softmax_dense.h.
#include "test/softmax_dense.h"

#include "test/dense_product.h"

static bool sees(const SoftmaxDense *s, int64_t b, int64_t h, int64_t i, int64_t j) {
    return j <= i && j > i - s->W && j % s->R == h * s->R / s->H && (s->first == NULL || j >= s->first[b * s->T + i]);
}

// The heads of q and k, which stand first in each row: pairs (d, d + D/2) turned by position 10000^(-2d/D).
static void rotate(const SoftmaxDense *s, double *qkv, double direction) {
    int64_t width = (s->H + 2 * s->KV) * s->D, half = s->D / 2;
    for (int64_t row = 0; row < s->B * s->T; row++)
        for (int64_t h = 0; h < s->H + s->KV; h++)
            for (int64_t d = 0; d < half; d++) {
                double angle = direction * (double)(row % s->T) * pow(10000, -2.0 * (double)d / (double)s->D);
                double *a = qkv + row * width + h * s->D + d, *b = a + half, x = *a, y = *b;
                *a = x * cos(angle) - y * sin(angle);
                *b = x * sin(angle) + y * cos(angle);
            }
}

static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// Query i of head h: its y, or with d_y the gradients that come by it. p: room for T.
static void query(const SoftmaxDense *s, const double *qkv, double *d_qkv, int64_t b, int64_t h, int64_t i, double *y,
                  const double *d_y, double *p) {
    int64_t D = s->D, width = (s->H + 2 * s->KV) * D, k = (s->H + h * s->KV / s->H) * D, v = k + s->KV * D;
    const double *at = qkv + b * s->T * width, *q = at + i * width + h * D;
    double sum = 0, most = -INFINITY, mean = 0;
    for (int64_t j = 0; j <= i; j++) {
        p[j] = sees(s, b, h, i, j) ? dot(q, at + j * width + k, D) / sqrt((double)D) : -INFINITY;
        if (most < p[j]) most = p[j];
    }
    for (int64_t j = 0; j <= i; j++) sum += p[j] = p[j] == -INFINITY ? 0 : exp(p[j] - most);
    for (int64_t j = 0; j <= i; j++) p[j] = sum == 0 ? 0 : p[j] / sum;
    for (int64_t j = 0; j <= i; j++)
        for (int64_t d = 0; d < D && p[j] > 0; d++) y[d] += p[j] * at[j * width + v + d];
    if (d_y == NULL) return;
    double *d_at = d_qkv + b * s->T * width;
    for (int64_t j = 0; j <= i; j++)
        if (p[j] > 0) mean += p[j] * dot(d_y, at + j * width + v, D);
    for (int64_t j = 0; j <= i; j++) {
        if (p[j] == 0) continue;
        double d_score = p[j] * (dot(d_y, at + j * width + v, D) - mean) / sqrt((double)D);
        for (int64_t d = 0; d < D; d++) {
            d_at[i * width + h * D + d] += d_score * at[j * width + k + d];
            d_at[j * width + k + d] += d_score * q[d];
            d_at[j * width + v + d] += p[j] * d_y[d];
        }
    }
}

void softmax_dense_run(SoftmaxDense *s, bool backward) {
    int64_t n = s->B * s->T, width = (s->H + 2 * s->KV) * s->D, y_width = s->H * s->D;
    double *qkv = allocate(2 * n * width, sizeof *qkv), *d_qkv = qkv + n * width;
    double *y = allocate(2 * n * y_width, sizeof *y), *d_y = y + n * y_width, *p = allocate(s->T, sizeof *p);
    dense_product(qkv, s->x, s->qkv_weight, n, width, s->C);
    rotate(s, qkv, 1);
    for (int64_t b = 0; b < s->B; b++)
        for (int64_t h = 0; h < s->H; h++)
            for (int64_t i = 0; i < s->T; i++)
                query(s, qkv, NULL, b, h, i, y + (b * s->T + i) * y_width + h * s->D, NULL, p);
    dense_product(s->out, y, s->weight, n, s->C, y_width);
    if (backward) {
        dense_product_back(d_y, s->d_weight, s->d_out, y, s->weight, n, s->C, y_width);
        double *again = allocate(s->D, sizeof *again);
        for (int64_t b = 0; b < s->B; b++)
            for (int64_t h = 0; h < s->H; h++)
                for (int64_t i = 0; i < s->T; i++)
                    query(s, qkv, d_qkv, b, h, i, again, d_y + (b * s->T + i) * y_width + h * s->D, p);
        free(again);
        rotate(s, d_qkv, -1);
        dense_product_back(s->d_x, s->d_qkv_weight, d_qkv, s->x, s->qkv_weight, n, width, s->C);
    }
    free(qkv);
    free(y);
    free(p);
}

// ---- of a problem ---------------------------------------------------------------------------------------------------

static double *doubles(const float *from, int64_t count) {
    double *to = allocate(count, sizeof *to);
    for (int64_t i = 0; i < count; i++) to[i] = from[i];
    return to;
}

static int64_t rows_size(const SoftmaxDense *s) { return s->B * s->T * s->C; }
static int64_t qkv_size(const SoftmaxDense *s) { return (s->H + 2 * s->KV) * s->D * s->C; }
static int64_t weight_size(const SoftmaxDense *s) { return s->C * s->H * s->D; }

SoftmaxDense softmax_dense(const MixerProblem *p, const MixerAnswer *a) {
    MixerChoice choice = layer_kind(&a->config, 0).choice;
    SoftmaxDense s = {.W = choice.values > 0 ? (int64_t)choice.value[0] : p->T,
                      .R = choice.values > 0 ? (int64_t)choice.value[1] : 1,
                      .T = p->T,
                      .B = p->B,
                      .C = p->C,
                      .H = a->config.heads,
                      .KV = a->config.kv_heads,
                      .D = a->config.head_dim,
                      .first = a->first};
    int64_t n = rows_size(&s), qkv = qkv_size(&s), out = weight_size(&s);
    s.x = doubles(a->x, n);
    s.d_out = doubles(a->d_out, n);
    s.qkv_weight = doubles(mixer_weight(a, ATTENTION_QKV), qkv);
    s.weight = doubles(mixer_weight(a, ATTENTION_OUT), out);
    s.out = allocate(2 * n + qkv + out, sizeof(double));
    s.d_x = s.out + n, s.d_qkv_weight = s.d_x + n, s.d_weight = s.d_qkv_weight + qkv;
    return s;
}

void softmax_dense_free(SoftmaxDense *s) {
    free(s->x);
    free(s->d_out);
    free(s->qkv_weight);
    free(s->weight);
    free(s->out);
}

void expect_softmax_derivative(SoftmaxDense *s) {
    softmax_dense_run(s, true);
    struct {
        double *value, *derivative;
        int64_t count;
    } of[] = {{s->x, s->d_x, rows_size(s)},
              {s->qkv_weight, s->d_qkv_weight, qkv_size(s)},
              {s->weight, s->d_weight, weight_size(s)}};
    for (int k = 0; k < 3; k++)
        for (int64_t i = k; i < of[k].count; i += of[k].count / 23) {
            double was = of[k].value[i], h = 1e-5, loss[2];
            for (int side = 0; side < 2; side++) {
                of[k].value[i] = was + (side == 0 ? h : -h);
                softmax_dense_run(s, false);
                loss[side] = dot(s->out, s->d_out, rows_size(s));
            }
            of[k].value[i] = was;
            double slope = (loss[0] - loss[1]) / (2 * h);
            if (fabs(slope - of[k].derivative[i]) > 1e-7 * (1 + fabs(slope)))
                fail_msg("tensor %d, element %lld: %.12g, by differences %.12g", k, (long long)i, of[k].derivative[i],
                         slope);
        }
}

static void expect(const MixerProblem *p, int ranks, const MixerAnswer *a, const SoftmaxDense *s) {
    double u = p->device == DEVICE_CPU ? 0x1p-24 : 0x1p-9;
    mixer_expect(p, ranks, "out", mixer_error(a->out, s->out, rows_size(s)), SOFTMAX_FORWARD * u);
    mixer_expect(p, ranks, "d_x", mixer_error(a->d_x, s->d_x, rows_size(s)), SOFTMAX_BACKWARD * u);
    mixer_expect(p, ranks, "d W^QKV", mixer_error(mixer_gradient(a, ATTENTION_QKV), s->d_qkv_weight, qkv_size(s)),
                 SOFTMAX_BACKWARD * u);
    mixer_expect(p, ranks, "d W^O", mixer_error(mixer_gradient(a, ATTENTION_OUT), s->d_weight, weight_size(s)),
                 SOFTMAX_BACKWARD * u);
    if (p->document > 0) { // these hide more
        assert_true(a->forward_bytes <= a->stated_forward && a->backward_bytes <= a->stated_backward);
        return;
    }
    assert_int_equal(a->forward_bytes, a->stated_forward);
    assert_int_equal(a->backward_bytes, a->stated_backward);
}

void expect_softmax(MixerProblem p, const int *ranks, int count, const Exchange *exchanges, int kinds) {
    SoftmaxDense s = {0};
    for (int i = 0; i < count; i++) {
        if (p.T < 2 * ranks[i]) continue;
        p.exchange = exchanges[i % kinds];
        if (p.exchange == EXCHANGE_ULYSSES && p.heads % ranks[i] != 0) p.exchange = EXCHANGE_AUTO;
        MixerAnswer a = mixer_run(&p, ranks[i]);
        if (s.out == NULL) {
            s = softmax_dense(&p, &a);
            softmax_dense_run(&s, true);
        }
        expect(&p, ranks[i], &a, &s);
        mixer_free(&a);
    }
    softmax_dense_free(&s);
}
