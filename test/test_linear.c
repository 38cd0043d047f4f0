// Linear attention against its definition: P built as a matrix in double precision, over any number of ranks, with
// documents, groups of heads and decays; its gradients against that of P, which finite differences prove; and
// generation.
#include "test/mixer_problem.h"

#include "mixer/linear.h"

// Everything in double precision. w: by LINEAR_Q, ...
typedef struct Dense {
    int64_t B, T, C, H, KV, D;
    double decay; // of all heads; 0: by head
    const int32_t *first;
    double *x, *d_out, *w[4];
    double *out, *d_x, *d_w[4];
} Dense;

static int64_t weight_rows(const Dense *s, int i) {
    return i == LINEAR_OUT ? s->C : i == LINEAR_Q ? s->H * s->D : s->KV * s->D;
}
static int64_t weight_columns(const Dense *s, int i) { return i == LINEAR_OUT ? s->H * s->D : s->C; }

static double *zeros(int64_t count) { return allocate(count, sizeof(double)); }
static double *doubles(const float *from, int64_t count) {
    double *to = zeros(count);
    for (int64_t i = 0; i < count; i++) to[i] = from[i];
    return to;
}

static double phi(double u) { return u > 0 ? u + 1 : exp(u); }
static double phi_slope(double u) { return u > 0 ? 1 : exp(u); }

static double decay_of(const Dense *s, int64_t h) {
    if (s->decay > 0) return s->decay;
    double n = s->H <= 8 ? (double)h : 7.0 * (double)h / (double)(s->H - 1);
    return 1 - pow(2, -5 - n);
}

// out (n, rows) = x (n, columns) w^T; and back: d_x += d_out w, d_w += d_out^T x.
static void product(double *out, const double *x, const double *w, int64_t n, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < rows; r++) {
            double sum = 0;
            for (int64_t c = 0; c < columns; c++) sum += x[i * columns + c] * w[r * columns + c];
            out[i * rows + r] = sum;
        }
}
static void product_back(double *d_x, double *d_w, const double *d_out, const double *x, const double *w, int64_t n,
                         int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c++) {
                d_x[i * columns + c] += d_out[i * rows + r] * w[r * columns + c];
                d_w[r * columns + c] += d_out[i * rows + r] * x[i * columns + c];
            }
}

// One head of one sequence: q, y of stride H D, k, v of stride KV D; the gradients += where d_y is not NULL.
typedef struct Head {
    const double *q, *k, *v, *d_y;
    double *y, *d_q, *d_k, *d_v;
} Head;

static void mix_head(const Dense *s, Head a, int64_t b, int64_t h) {
    int64_t wide = s->H * s->D, keys = s->KV * s->D, T = s->T, D = s->D;
    double *power = zeros(T), *P = zeros(T), *d_P = zeros(T);
    for (int64_t n = 0; n < T; n++) power[n] = pow(decay_of(s, h), (double)n);
    for (int64_t i = 0; i < T; i++) {
        int64_t first = s->first == NULL ? 0 : s->first[b * T + i];
        const double *q = a.q + i * wide;
        double den = 0, mean = 0;
        for (int64_t j = first; j <= i; j++) {
            double dot = 0;
            for (int64_t d = 0; d < D; d++) dot += phi(q[d]) * phi(a.k[j * keys + d]);
            den += P[j] = power[i - j] * dot;
        }
        for (int64_t d = 0; d < D; d++) {
            double sum = 0;
            for (int64_t j = first; j <= i; j++) sum += P[j] / den * a.v[j * keys + d];
            a.y[i * wide + d] = sum;
        }
        if (a.d_y == NULL) continue;
        const double *d_y = a.d_y + i * wide;
        for (int64_t j = first; j <= i; j++) {
            d_P[j] = 0;
            for (int64_t d = 0; d < D; d++) d_P[j] += d_y[d] * a.v[j * keys + d];
            mean += P[j] / den * d_P[j];
        }
        for (int64_t j = first; j <= i; j++) {
            double d_score = (d_P[j] - mean) / den * power[i - j];
            for (int64_t d = 0; d < D; d++) {
                const double *k = a.k + j * keys;
                a.d_v[j * keys + d] += P[j] / den * d_y[d];
                a.d_q[i * wide + d] += d_score * phi(k[d]) * phi_slope(q[d]);
                a.d_k[j * keys + d] += d_score * phi(q[d]) * phi_slope(k[d]);
            }
        }
    }
    free(power), free(P), free(d_P);
}

static void run_dense(Dense *s, bool backward) {
    int64_t n = s->B * s->T, wide = s->H * s->D, keys = s->KV * s->D;
    double *q = zeros(n * wide), *k = zeros(n * keys), *v = zeros(n * keys), *y = zeros(n * wide);
    double *d_q = zeros(n * wide), *d_k = zeros(n * keys), *d_v = zeros(n * keys), *d_y = zeros(n * wide);
    product(q, s->x, s->w[LINEAR_Q], n, wide, s->C);
    product(k, s->x, s->w[LINEAR_K], n, keys, s->C);
    product(v, s->x, s->w[LINEAR_V], n, keys, s->C);
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
    product(s->out, y, s->w[LINEAR_OUT], n, s->C, wide);
    if (backward) {
        double *unused = zeros(n * wide);
        product_back(unused, s->d_w[LINEAR_OUT], s->d_out, y, s->w[LINEAR_OUT], n, s->C, wide);
        product_back(s->d_x, s->d_w[LINEAR_Q], d_q, s->x, s->w[LINEAR_Q], n, wide, s->C);
        product_back(s->d_x, s->d_w[LINEAR_K], d_k, s->x, s->w[LINEAR_K], n, keys, s->C);
        product_back(s->d_x, s->d_w[LINEAR_V], d_v, s->x, s->w[LINEAR_V], n, keys, s->C);
        free(unused);
    }
    free(q), free(k), free(v), free(y), free(d_q), free(d_k), free(d_v), free(d_y);
}

static Dense dense_of(const MixerProblem *p, const MixerAnswer *a) {
    Dense s = {.B = p->B,
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
        int64_t size = weight_rows(&s, i) * weight_columns(&s, i);
        s.w[i] = doubles(mixer_weight(a, i), size), s.d_w[i] = zeros(size);
    }
    return s;
}

static void dense_free(Dense *s) {
    free(s->x), free(s->d_out), free(s->out), free(s->d_x);
    for (int i = 0; i < 4; i++) free(s->w[i]), free(s->d_w[i]);
}

// ---- the definition -------------------------------------------------------------------------------------------------

// u = 2^-24. All of P is positive and its rows sum up to 1, so forward errors do not grow with T: those of the sums
// within a block (64 terms) and a few more for each of the products around, some ten roundings in the mean. In the
// gradient by the scores two numbers are subtracted that are larger than what is left, by about sqrt(T) at worst where
// all keys weigh alike.
static void expect_definition(const MixerProblem *p, const int *ranks, double forward, double backward) {
    Dense s = {0};
    for (int r = 0; ranks[r] != 0; r++) {
        if (p->T < 2 * ranks[r]) continue;
        MixerAnswer a = mixer_run(p, ranks[r]);
        if (s.x == NULL) {
            s = dense_of(p, &a);
            s.first = a.first;
            run_dense(&s, true);
        }
        int64_t n = p->B * p->T * p->C;
        static const char *names[] = {"d_w_q", "d_w_k", "d_w_v", "d_w_out"};
        mixer_expect(p, ranks[r], "out", mixer_error(a.out, s.out, n), forward);
        mixer_expect(p, ranks[r], "d_x", mixer_error(a.d_x, s.d_x, n), backward);
        for (int i = 0; i < 4; i++)
            mixer_expect(p, ranks[r], names[i],
                         mixer_error(mixer_gradient(&a, i), s.d_w[i], weight_rows(&s, i) * weight_columns(&s, i)),
                         backward);
        assert_int_equal(a.forward_bytes, a.stated_forward);
        assert_int_equal(a.backward_bytes, a.stated_backward);
        mixer_free(&a);
    }
    dense_free(&s);
}

static const double u = 1.0 / (1 << 24);
static const int all_ranks[] = {1, 2, 3, 4, 8, 0}, some_ranks[] = {1, 2, 4, 0};

static void linear_is_its_definition(void **state) {
    (void)state;
    static const int64_t lengths[] = {16, 37, 129, 1000};
    for (int i = 0; i < 4; i++) {
        MixerProblem p = {.mixer = "linear",
                          .device = DEVICE_CPU,
                          .T = lengths[i],
                          .B = 2,
                          .C = 32,
                          .heads = 4,
                          .kv_heads = 2,
                          .seed = 3 + (uint64_t)i};
        expect_definition(&p, all_ranks, 16 * u, 64 * u);
    }
}

static void documents_restart_it(void **state) {
    (void)state;
    static const int64_t lengths[] = {37, 300, 1000}, documents[] = {5, 70, 333};
    for (int i = 0; i < 3; i++) {
        MixerProblem p = {.mixer = "linear",
                          .device = DEVICE_CPU,
                          .T = lengths[i],
                          .B = 2,
                          .C = 32,
                          .heads = 4,
                          .seed = 13 + (uint64_t)i,
                          .document = documents[i]};
        expect_definition(&p, i == 0 ? all_ranks : some_ranks, 16 * u, 64 * u);
    }
}

// Several windows and blocks, heads of a whole strip and more, and decays from one end to the other. Also more heads
// than eight, whose decays stand closer.
static void decays_and_windows(void **state) {
    (void)state;
    static const struct {
        const char *mixer;
        int64_t T, C, heads, kv_heads;
    } cases[] = {{"linear:1", 1400, 32, 1, 1},
                 {"linear:0.5", 300, 48, 2, 2},
                 {"linear:0.999", 700, 64, 1, 1},
                 {"linear", 200, 48, 12, 3}};
    for (int i = 0; i < 4; i++) {
        MixerProblem p = {.mixer = cases[i].mixer,
                          .device = DEVICE_CPU,
                          .T = cases[i].T,
                          .B = 1,
                          .C = cases[i].C,
                          .heads = cases[i].heads,
                          .kv_heads = cases[i].kv_heads,
                          .seed = 33 + (uint64_t)i};
        expect_definition(&p, some_ranks, 16 * u, 64 * u);
    }
}

// Central differences of the dense forward in double precision: errors of h^2 and of 2^-53 / h, both near 10^-10 for h
// = 10^-5. phi bends at 0, where its slope does not jump; its second derivative does, which costs h where an input is
// there.
static void gradient_of_the_definition(void **state) {
    (void)state;
    MixerProblem p = {.mixer = "linear",
                      .device = DEVICE_CPU,
                      .T = 19,
                      .B = 2,
                      .C = 12,
                      .heads = 2,
                      .kv_heads = 1,
                      .document = 8,
                      .seed = 5};
    MixerAnswer a = mixer_run(&p, 1);
    Dense s = dense_of(&p, &a);
    int64_t n = p.B * p.T * p.C;
    run_dense(&s, true);
    for (int tensor = -1; tensor < 4; tensor++) {
        double *values = tensor < 0 ? s.x : s.w[tensor], *gradient = tensor < 0 ? s.d_x : s.d_w[tensor];
        int64_t count = tensor < 0 ? n : weight_rows(&s, tensor) * weight_columns(&s, tensor);
        for (int64_t i = 0; i < count; i += 7) {
            double kept = values[i], difference = 0;
            for (int side = 0; side < 2; side++) {
                values[i] = kept + (side == 0 ? 1e-5 : -1e-5);
                run_dense(&s, false);
                for (int64_t k = 0; k < n; k++) difference += (side == 0 ? 1 : -1) * s.out[k] * s.d_out[k];
            }
            values[i] = kept;
            assert_true(fabs(difference / 2e-5 - gradient[i]) < 1e-7 * (1 + fabs(gradient[i])));
        }
    }
    dense_free(&s);
    mixer_free(&a);
}

// ---- bits, generation, usage ----------------------------------------------------------------------------------------

static void expect_same(const float *a, const float *b, int64_t count) {
    assert_memory_equal(a, b, (size_t)count * sizeof *a);
}

// Also where threads are more than heads, so that blocks are dealt out among them.
static void same_bits_in_two_runs(void **state) {
    (void)state;
    for (int heads = 1; heads <= 4; heads += 3) {
        MixerProblem p = {
            .mixer = "linear", .device = DEVICE_CPU, .T = 700, .B = 1, .C = 32, .heads = heads, .seed = 9};
        for (int ranks = 1; ranks <= 2; ranks++) {
            MixerAnswer a = mixer_run(&p, ranks), b = mixer_run(&p, ranks);
            expect_same(a.out, b.out, p.T * p.C);
            expect_same(a.d_x, b.d_x, p.T * p.C);
            expect_same(a.gradients, b.gradients, a.table.total);
            mixer_free(&a), mixer_free(&b);
        }
    }
}

// The kernels themselves on 1, 2, 3 and 8 threads.
static void same_bits_on_any_number_of_threads(void **state) {
    (void)state;
    enum { T = 600, H = 2, D = 16, STATE = (D + 1) * D };
    float *results[4];
    static const int threads[] = {1, 2, 3, 8};
    float decay[H] = {-0.01f, -0.1f}, *x = allocate(4 * T * H * D, sizeof *x);
    for (int i = 0; i < 4 * T * H * D; i++)
        x[i] = (float)(i < 2 * T * H * D ? random_uniform(1, 1, (uint64_t)i) : random_normal(1, 2, (uint64_t)i));
    for (int n = 0; n < 4; n++) {
        Device d;
        Error err;
        cpu_device(&d, threads[n]);
        LinearShape shape = {
            .sequences = 1, .heads = H, .kv_heads = H, .head_dim = D, .log2_decay = decay, .context = T};
        assert_true(device_lend_scratch(&d, linear_scratch_bytes_cpu(&shape, threads[n]), &err));
        float *out = results[n] = allocate(T * H * D * 4 + T * H + 2 * H * STATE, sizeof *out);
        int64_t row = H * D, all = T * row;
        LinearTokens t = {.chunk = {0, T},
                          .q = {x, all, row},
                          .k = {x + all, all, row},
                          .v = {x + 2 * all, all, row},
                          .d_y = {x + 3 * all, all, row},
                          .y = {out, all, row},
                          .d_q = {out + all, all, row},
                          .d_k = {out + 2 * all, all, row},
                          .d_v = {out + 3 * all, all, row},
                          .inverse = {out + 4 * all, T * H, T},
                          .starts = out + 4 * all + T * H};
        linear_kernels_cpu.forward(&d, &shape, &t, NULL, NULL);
        linear_kernels_cpu.backward(&d, &shape, &t, NULL);
        if (n > 0) expect_same(results[0], out, T * H * D * 4 + T * H);
        device_return_scratch(&d);
    }
    for (int n = 0; n < 4; n++) free(results[n]);
    free(x);
}

// Each token's row from a state alone, as training has it from all blocks: the same sums in another order.
static void generation_is_training(void **state) {
    (void)state;
    static const int64_t pieces[] = {1, 7, 128};
    for (int documents = 0; documents <= 1; documents++) {
        MixerProblem p = {.mixer = "linear",
                          .device = DEVICE_CPU,
                          .T = 200,
                          .B = 1,
                          .C = 32,
                          .heads = 4,
                          .kv_heads = 2,
                          .seed = 43,
                          .document = documents * 30};
        MixerAnswer a = mixer_run(&p, 1);
        double *expected = doubles(a.out, p.T * p.C);
        for (int i = 0; i < 3; i++) {
            float *out = mixer_generate(&p, pieces[i]);
            mixer_expect(&p, 1, "generation", mixer_error(out, expected, p.T * p.C), 16 * u);
            free(out);
        }
        free(expected);
        mixer_free(&a);
    }
}

static void expect_refusal(const char *mixer, DeviceKind device, int64_t head_dim, const char *message) {
    ModelConfig config = {.layers = 1, .heads = 2, .kv_heads = 2, .head_dim = head_dim, .dim = 2 * head_dim};
    Error err;
    assert_true(mixers_read(&config, mixer, "mixer", &err));
    MixerUse use = {.size = {.config = &config, .rows = 8, .sequences = 1, .context = 8, .ranks = 1},
                    .device = device,
                    .option = mixer};
    bool fine = layer_kind(&config, 0).tokens->check(&use, &err);
    assert_int_equal(fine, message == NULL);
    if (message == NULL) return;
    assert_string_equal(err.message, message);
    assert_int_equal(err.exit_code, EXIT_USAGE);
}

static void refusals(void **state) {
    (void)state;
    expect_refusal("linear", DEVICE_CPU, 10, NULL);
    expect_refusal("linear:1", DEVICE_CUDA, 112, NULL);
    expect_refusal("linear:0", DEVICE_CPU, 8, "linear:0: a decay of 0: give one above 0 and at most 1");
    expect_refusal("linear:1.5", DEVICE_CPU, 8, "linear:1.5: a decay of 1.5: give one above 0 and at most 1");
    expect_refusal("linear", DEVICE_EMULATED, 24,
                   "linear: heads of 24 on a GPU: give multiples of 16 up to 128, or --device cpu");
    expect_refusal("linear", DEVICE_CUDA, 144,
                   "linear: heads of 144 on a GPU: give multiples of 16 up to 128, or --device cpu");
}

// ---- CUDA's kernels, by the emulated device
// ---------------------------------------------------------------------------

// Storage is bf16, u = 2^-9: inputs are rounded alike for both sides. Rounded once on the way are q, k, v, their phi,
// P, the state, y and the result, whose errors are independent of each other: a few u together. Gradients go by twice
// as many.
static void cuda_is_its_definition(void **state) {
    (void)state;
    static const struct {
        int64_t T, C, heads, kv_heads, document;
        const char *mixer;
    } cases[] = {{37, 32, 2, 1, 0, "linear"}, {150, 32, 2, 2, 40, "linear"}, {129, 48, 1, 1, 0, "linear:0.9"}};
    const double rounding = 1.0 / (1 << 9);
    static const int ranks[][4] = {{1, 2, 4, 0}, {1, 3, 0}, {1, 0}};
    for (int i = 0; i < 3; i++) {
        MixerProblem p = {.mixer = cases[i].mixer,
                          .device = DEVICE_EMULATED,
                          .T = cases[i].T,
                          .B = 2,
                          .C = cases[i].C,
                          .heads = cases[i].heads,
                          .kv_heads = cases[i].kv_heads,
                          .seed = 23 + (uint64_t)i,
                          .document = cases[i].document};
        expect_definition(&p, ranks[i], 4 * rounding, 8 * rounding);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradient_of_the_definition), cmocka_unit_test(linear_is_its_definition),
        cmocka_unit_test(documents_restart_it),       cmocka_unit_test(decays_and_windows),
        cmocka_unit_test(same_bits_in_two_runs),      cmocka_unit_test(same_bits_on_any_number_of_threads),
        cmocka_unit_test(generation_is_training),     cmocka_unit_test(refusals),
        cmocka_unit_test(cuda_is_its_definition)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
