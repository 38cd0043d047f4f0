// Dilated attention against its definition, written out in double precision: every head with a mask of its own.
#include "test/cuda_device.h"
#include "test/mixer_problem.h"

#include "mixer/attention.h"

// ---- the definition -------------------------------------------------------------------------------------------------
//
//   q, k, v = x W^T, q and k rotated    p_ij = softmax_j(q_i . k_j / sqrt(D)) over j that i sees, none: 0
//   y_i = sum_j p_ij v_j, heads side by side    out = y W^O^T

typedef struct Definition {
    int64_t W, R, T, B, C, H, KV, D;
    const int32_t *first;                          // (B, T) or NULL
    const double *x, *d_out, *qkv_weight, *weight; // ((H + 2 KV) D, C), (C, H D)
    double *out, *d_x, *d_qkv_weight, *d_weight;
} Definition;

static bool sees(const Definition *s, int64_t b, int64_t h, int64_t i, int64_t j) {
    return j <= i && j > i - s->W && j % s->R == h * s->R / s->H && (s->first == NULL || j >= s->first[b * s->T + i]);
}

// y (rows, n) = x (rows, k) w (n, k)^T, and its gradients, added.
static void product(double *y, const double *x, const double *w, int64_t rows, int64_t k, int64_t n) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < n; j++) {
            y[i * n + j] = 0;
            for (int64_t l = 0; l < k; l++) y[i * n + j] += x[i * k + l] * w[j * k + l];
        }
}
static void product_back(double *d_x, double *d_w, const double *d_y, const double *x, const double *w, int64_t rows,
                         int64_t k, int64_t n) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < n; j++)
            for (int64_t l = 0; l < k; l++) {
                d_x[i * k + l] += d_y[i * n + j] * w[j * k + l];
                d_w[j * k + l] += d_y[i * n + j] * x[i * k + l];
            }
}

// The heads of q and k, which stand first in each row: pairs (d, d + D/2) turned by position 10000^(-2d/D).
static void rotate(const Definition *s, double *qkv, double direction) {
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
static void query(const Definition *s, const double *qkv, double *d_qkv, int64_t b, int64_t h, int64_t i, double *y,
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

static void define(const Definition *s, bool backward) {
    int64_t n = s->B * s->T, width = (s->H + 2 * s->KV) * s->D, y_width = s->H * s->D;
    double *qkv = allocate(2 * n * width, sizeof *qkv), *d_qkv = qkv + n * width;
    double *y = allocate(2 * n * y_width, sizeof *y), *d_y = y + n * y_width, *p = allocate(s->T, sizeof *p);
    product(qkv, s->x, s->qkv_weight, n, s->C, width);
    rotate(s, qkv, 1);
    for (int64_t b = 0; b < s->B; b++)
        for (int64_t h = 0; h < s->H; h++)
            for (int64_t i = 0; i < s->T; i++)
                query(s, qkv, NULL, b, h, i, y + (b * s->T + i) * y_width + h * s->D, NULL, p);
    product(s->out, y, s->weight, n, y_width, s->C);
    if (backward) {
        product_back(d_y, s->d_weight, s->d_out, y, s->weight, n, y_width, s->C);
        double *again = allocate(s->D, sizeof *again);
        for (int64_t b = 0; b < s->B; b++)
            for (int64_t h = 0; h < s->H; h++)
                for (int64_t i = 0; i < s->T; i++)
                    query(s, qkv, d_qkv, b, h, i, again, d_y + (b * s->T + i) * y_width + h * s->D, p);
        free(again);
        rotate(s, d_qkv, -1);
        product_back(s->d_x, s->d_qkv_weight, d_qkv, s->x, s->qkv_weight, n, s->C, width);
    }
    free(qkv);
    free(y);
    free(p);
}

// ---- a problem and its definition
// -------------------------------------------------------------------------------------

typedef struct Case {
    int64_t W, R, T, heads, kv_heads, head_dim, document;
} Case;

static MixerProblem problem_of(const Case *c, char name[64], DeviceKind device) {
    snprintf(name, 64, "dilated:%lld,%lld", (long long)c->W, (long long)c->R);
    return (MixerProblem){.mixer = name,
                          .device = device,
                          .T = c->T,
                          .B = 2,
                          .C = c->heads * c->head_dim,
                          .heads = c->heads,
                          .kv_heads = c->kv_heads,
                          .document = c->document,
                          .seed = 17};
}

static double *doubles(const float *from, int64_t count) {
    double *to = allocate(count, sizeof *to);
    for (int64_t i = 0; i < count; i++) to[i] = from[i];
    return to;
}

static Definition definition_of(const Case *c, const MixerAnswer *a) {
    Definition s = {.W = c->W,
                    .R = c->R,
                    .T = c->T,
                    .B = 2,
                    .C = c->heads * c->head_dim,
                    .H = c->heads,
                    .KV = c->kv_heads,
                    .D = c->head_dim,
                    .first = a->first};
    int64_t n = s.B * s.T * s.C, qkv = (s.H + 2 * s.KV) * s.D * s.C, out = s.C * s.H * s.D;
    s.x = doubles(a->x, n);
    s.d_out = doubles(a->d_out, n);
    s.qkv_weight = doubles(mixer_weight(a, ATTENTION_QKV), qkv);
    s.weight = doubles(mixer_weight(a, ATTENTION_OUT), out);
    s.out = allocate(2 * n + qkv + out, sizeof(double));
    s.d_x = s.out + n, s.d_qkv_weight = s.d_x + n, s.d_weight = s.d_qkv_weight + qkv;
    return s;
}

static void definition_free(Definition *s) {
    free((void *)s->x);
    free((void *)s->d_out);
    free((void *)s->qkv_weight);
    free((void *)s->weight);
    free(s->out);
}

// What is allowed, in units of storage's rounding u. In fp32 every product and the softmax of up to T terms round some
// ten times on the way, at random, and backward twice as often. In bf16 (u = 2^-9) only what is stored is rounded: q,
// k, v, attended, out, and backward their gradients; scores of variance 1 turn that of q and k into as much of p.
// Errors of single elements go with the size of their row, and rows that many queries see have large gradients.
enum { ALLOWED_FORWARD = 8, ALLOWED_BACKWARD = 16 };

static void expect(const MixerProblem *p, int ranks, const MixerAnswer *a, const Definition *s) {
    double u = p->device == DEVICE_CPU ? 0x1p-24 : 0x1p-9;
    int64_t n = s->B * s->T * s->C, qkv = (s->H + 2 * s->KV) * s->D * s->C, out = s->C * s->H * s->D;
    mixer_expect(p, ranks, "out", mixer_error(a->out, s->out, n), ALLOWED_FORWARD * u);
    mixer_expect(p, ranks, "d_x", mixer_error(a->d_x, s->d_x, n), ALLOWED_BACKWARD * u);
    mixer_expect(p, ranks, "d W^QKV", mixer_error(mixer_gradient(a, ATTENTION_QKV), s->d_qkv_weight, qkv),
                 ALLOWED_BACKWARD * u);
    mixer_expect(p, ranks, "d W^O", mixer_error(mixer_gradient(a, ATTENTION_OUT), s->d_weight, out),
                 ALLOWED_BACKWARD * u);
    if (p->document > 0) { // these hide more
        assert_true(a->forward_bytes <= a->stated_forward && a->backward_bytes <= a->stated_backward);
        return;
    }
    assert_int_equal(a->forward_bytes, a->stated_forward);
    assert_int_equal(a->backward_bytes, a->stated_backward);
}

// Over each of these numbers of ranks, by ring and by gather in turn; the definition is worked out once.
static void check(Case c, DeviceKind device, const int *ranks, int count) {
    char name[64];
    Definition s = {0};
    for (int i = 0; i < count; i++) {
        MixerProblem p = problem_of(&c, name, device);
        if (c.T < 2 * ranks[i]) continue;
        p.exchange = i % 2 == 0 ? EXCHANGE_RING : EXCHANGE_GATHER;
        MixerAnswer a = mixer_run(&p, ranks[i]);
        if (s.out == NULL) {
            s = definition_of(&c, &a);
            define(&s, true);
        }
        s.first = a.first;
        expect(&p, ranks[i], &a, &s);
        mixer_free(&a);
    }
    definition_free(&s);
}

// ---- tests
// ------------------------------------------------------------------------------------------------------------

static void reference_has_its_own_derivative(void **state) {
    (void)state;
    char name[64];
    Case c = {7, 2, 12, 4, 2, 8, 5};
    MixerProblem p = problem_of(&c, name, DEVICE_CPU);
    MixerAnswer a = mixer_run(&p, 1);
    Definition s = definition_of(&c, &a);
    int64_t n = s.B * s.T * s.C, qkv = (s.H + 2 * s.KV) * s.D * s.C, out = s.C * s.H * s.D;
    define(&s, true);
    struct {
        double *value, *derivative;
        int64_t count;
    } of[] = {{(double *)s.x, s.d_x, n},
              {(double *)s.qkv_weight, s.d_qkv_weight, qkv},
              {(double *)s.weight, s.d_weight, out}};
    for (int k = 0; k < 3; k++)
        for (int64_t i = k; i < of[k].count; i += of[k].count / 23) {
            double was = of[k].value[i], h = 1e-5, loss[2];
            for (int side = 0; side < 2; side++) {
                of[k].value[i] = was + (side == 0 ? h : -h);
                define(&s, false);
                loss[side] = dot(s.out, s.d_out, n);
            }
            of[k].value[i] = was;
            double slope = (loss[0] - loss[1]) / (2 * h);
            if (fabs(slope - of[k].derivative[i]) > 1e-7 * (1 + fabs(slope)))
                fail_msg("tensor %d, element %lld: %.12g, by differences %.12g", k, (long long)i, of[k].derivative[i],
                         slope);
        }
    definition_free(&s);
    mixer_free(&a);
}

static void it_is_its_definition(void **state) {
    (void)state;
    const int ranks[] = {1, 2, 3, 4, 8, 4, 1};
    const Case cases[] = {
        {4, 4, 16, 4, 4, 8, 0},    {100, 2, 16, 2, 2, 8, 0},   {9, 3, 37, 6, 3, 8, 0},    {37, 4, 37, 4, 4, 8, 0},
        {10, 2, 37, 4, 2, 8, 7},   {1000, 3, 37, 6, 6, 6, 11}, {32, 2, 129, 4, 2, 16, 0}, {50, 4, 129, 8, 4, 8, 0},
        {129, 8, 129, 8, 8, 4, 0}, {17, 4, 129, 4, 4, 8, 20},  {5, 1, 129, 2, 2, 8, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) check(cases[i], DEVICE_CPU, ranks, 7);
    const int few[] = {4, 1, 3, 8};
    check((Case){256, 4, 1000, 4, 4, 8, 0}, DEVICE_CPU, few, 4);
    check((Case){1000, 2, 1000, 4, 2, 8, 130}, DEVICE_CPU, few, 4);
}

static void it_is_its_definition_on_gpus(void **state) {
    (void)state;
    if (cuda_devices_here() == 0) skip();
    const int one[] = {1}, two[] = {2, 2};
    check((Case){16, 2, 37, 4, 2, 8, 0}, cuda_device_kind(), one, 1);
    check((Case){100, 4, 70, 4, 4, 8, 9}, cuda_device_kind(), two, 2);
    check((Case){30, 2, 40, 2, 2, 64, 11}, cuda_device_kind(), one, 1);
}

static void same_bits(DeviceKind device, Case c, int ranks) {
    char name[64];
    MixerProblem p = problem_of(&c, name, device);
    mixer_expect_same_bits(&p, ranks);
}

static void bits_stay(void **state) {
    (void)state;
    same_bits(DEVICE_CPU, (Case){40, 4, 129, 8, 4, 8, 30}, 3);
    if (cuda_devices_here() > 0) same_bits(cuda_device_kind(), (Case){16, 2, 37, 2, 2, 8, 0}, 2);
}

// A window of W costs that of W / R, and of a block 1/R travels.
static void a_head_in_R_is_sent(void **state) {
    (void)state;
    char name[64];
    MixerProblem p = problem_of(&(Case){64, 4, 256, 4, 4, 8, 0}, name, DEVICE_CPU);
    MixerAnswer dilated = mixer_run(&p, 4);
    p = problem_of(&(Case){64, 1, 256, 4, 4, 8, 0}, name, DEVICE_CPU);
    MixerAnswer window = mixer_run(&p, 4);
    assert_int_equal(4 * dilated.forward_bytes, window.forward_bytes);
    assert_int_equal(4 * dilated.backward_bytes, window.backward_bytes);
    const Mixer *mixer = layer_kind(&dilated.config, 0).tokens;
    double ratio = mixer->flops(&window.config, 0, 256) / mixer->flops(&dilated.config, 0, 256);
    assert_true(fabs(ratio - 4) < 1e-9);
    mixer_free(&dilated);
    mixer_free(&window);
}

static void it_generates_what_it_trains(void **state) {
    (void)state;
    const int64_t pieces[] = {1, 5, 128};
    char name[64];
    for (int64_t document = 0; document <= 11; document += 11) {
        MixerProblem p = problem_of(&(Case){60, 4, 150, 8, 4, 8, document}, name, DEVICE_CPU);
        MixerAnswer whole = mixer_run(&p, 1);
        double *expected = doubles(whole.out, p.T * p.C);
        for (int i = 0; i < 3; i++) {
            float *out = mixer_generate(&p, pieces[i]);
            mixer_expect(&p, 1, "generation", mixer_error(out, expected, p.T * p.C), ALLOWED_FORWARD * 0x1p-24);
            free(out);
        }
        free(expected);
        mixer_free(&whole);
    }
}

int main(void) {
    setenv("EMULATED_ARCH", "90", 1); // Hopper's kernels serve heads of 64
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_has_its_own_derivative),
        cmocka_unit_test(it_is_its_definition),
        cmocka_unit_test(it_is_its_definition_on_gpus),
        cmocka_unit_test(bits_stay),
        cmocka_unit_test(a_head_in_R_is_sent),
        cmocka_unit_test(it_generates_what_it_trains),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
