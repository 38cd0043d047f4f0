// Linear attention against its definition: P built as a matrix in double precision, over any number of ranks, with
// documents, groups of heads and decays; its gradients against that of P, which finite differences prove; and
// generation.
#include "test/linear_dense.h"
#include "test/program.h"

// ---- the definition -------------------------------------------------------------------------------------------------

// u = 2^-24. All of P is positive and its rows sum up to 1, so forward errors do not grow with T: those of the sums
// within a block (64 terms) and a few more for each of the products around, some ten roundings in the mean. The first
// rows, which see few keys, are larger than most, and so are their errors: mixer_expect's largest by up to sqrt(T). In
// the gradient by the scores two numbers are subtracted that are larger than what is left.
static const double u = 1.0 / (1 << 24);
static const int all_ranks[] = {1, 2, 3, 4, 8, 0}, some_ranks[] = {1, 2, 4, 0};

// Sanitizers make the dense definition slow, which has nothing to do with them.
static bool too_slow(int64_t T) { return program_slowness() > 1 && T > 300; }

static void linear_is_its_definition(void **state) {
    (void)state;
    static const int64_t lengths[] = {16, 37, 129, 1000};
    for (int i = 0; i < 4 && !too_slow(lengths[i]); i++) {
        MixerProblem p = {.mixer = "linear",
                          .device = DEVICE_CPU,
                          .T = lengths[i],
                          .B = 2,
                          .C = 32,
                          .heads = 4,
                          .kv_heads = 2,
                          .seed = 3 + (uint64_t)i};
        expect_linear(&p, all_ranks, 32 * u, 64 * u);
    }
}

static void documents_restart_it(void **state) {
    (void)state;
    static const int64_t lengths[] = {37, 300, 1000}, documents[] = {5, 70, 333};
    for (int i = 0; i < 3 && !too_slow(lengths[i]); i++) {
        MixerProblem p = {.mixer = "linear",
                          .device = DEVICE_CPU,
                          .T = lengths[i],
                          .B = 2,
                          .C = 32,
                          .heads = 4,
                          .seed = 13 + (uint64_t)i,
                          .document = documents[i]};
        expect_linear(&p, i == 0 ? all_ranks : some_ranks, 32 * u, 64 * u);
    }
}

// Several windows and blocks, heads of a whole strip and more, and decays from one end to the other. Also more heads
// than eight, whose decays stand closer.
static void decays_and_windows(void **state) {
    (void)state;
    static const struct {
        const char *mixer;
        int64_t T, C, heads, kv_heads;
    } cases[] = {{"linear:1", 1400, 32, 1, 1}, {"linear:0.5", 300, 48, 2, 2},  {"linear:0.999", 700, 64, 1, 1},
                 {"linear", 200, 48, 12, 3},   {"linear:0.5", 2056, 16, 2, 1}, {"linear:0.999999", 2056, 16, 2, 1}};
    for (int i = 0; i < 6; i++) {
        if (too_slow(cases[i].T)) continue;
        MixerProblem p = {.mixer = cases[i].mixer,
                          .device = DEVICE_CPU,
                          .T = cases[i].T,
                          .B = 1,
                          .C = cases[i].C,
                          .heads = cases[i].heads,
                          .kv_heads = cases[i].kv_heads,
                          .seed = 33 + (uint64_t)i};
        expect_linear(&p, some_ranks, 32 * u, 64 * u);
    }
}

static void expect_near_one(const MixerProblem *p, const char *what, const float *got, const float *of_one,
                            int64_t count, double allowed) {
    double *expected = allocate(count, sizeof *expected);
    for (int64_t i = 0; i < count; i++) expected[i] = of_one[i];
    mixer_expect(p, 4, what, mixer_error(got, expected, count), allowed);
    free(expected);
}

// Extreme decays and many blocks, on four ranks against one (whose kernels long_sequences_do_not_drift holds against
// PyTorch's numbers), since the definition would take too long. Either is within 32 u of it, or 64 u, so these
// differences, of errors that are independent but for what both share, are no larger than that.
static void long_sequences_over_ranks(void **state) {
    (void)state;
    static const char *const mixers[] = {"linear:0.5", "linear:0.999999"};
    for (int i = 0; i < 2; i++) {
        MixerProblem p = {.mixer = mixers[i],
                          .device = DEVICE_CPU,
                          .T = program_slowness() > 1 ? 2056 : 8200,
                          .B = 1,
                          .C = 32,
                          .heads = 2,
                          .kv_heads = 1,
                          .seed = 53 + (uint64_t)i};
        MixerAnswer one = mixer_run(&p, 1), four = mixer_run(&p, 4);
        expect_near_one(&p, "out", four.out, one.out, p.T * p.C, 32 * u);
        expect_near_one(&p, "d_x", four.d_x, one.d_x, p.T * p.C, 64 * u);
        for (int k = 0; k < one.table.count; k++) {
            const Parameter *parameter = &one.table.parameter[k];
            if (strstr(parameter->name, "linear.") != NULL)
                expect_near_one(&p, parameter->name, four.gradients + parameter->offset,
                                one.gradients + parameter->offset, parameter->size, 64 * u);
        }
        mixer_free(&one);
        mixer_free(&four);
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
    LinearDense s = linear_dense(&p, &a);
    int64_t n = p.B * p.T * p.C;
    linear_dense_run(&s, true);
    for (int tensor = -1; tensor < 4; tensor++) {
        double *values = tensor < 0 ? s.x : s.w[tensor], *gradient = tensor < 0 ? s.d_x : s.d_w[tensor];
        int64_t count = tensor < 0 ? n : linear_weight_rows(&s, tensor) * linear_weight_columns(&s, tensor);
        for (int64_t i = 0; i < count; i += 7) {
            double kept = values[i], difference = 0;
            for (int side = 0; side < 2; side++) {
                values[i] = kept + (side == 0 ? 1e-5 : -1e-5);
                linear_dense_run(&s, false);
                for (int64_t k = 0; k < n; k++) difference += (side == 0 ? 1 : -1) * s.out[k] * s.d_out[k];
            }
            values[i] = kept;
            assert_true(fabs(difference / 2e-5 - gradient[i]) < 1e-7 * (1 + fabs(gradient[i])));
        }
    }
    linear_dense_free(&s);
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
        for (int ranks = 1; ranks <= 2; ranks++) mixer_expect_same_bits(&p, ranks);
    }
}

// The kernels themselves on 1, 2, 3 and 8 threads.
static void same_bits_on_any_number_of_threads(void **state) {
    (void)state;
    enum { T = 600, H = 2, D = 16, STATE = (D + 1) * D };
    float *results[4];
    static const int threads[] = {1, 2, 3, 8};
    float decay[H] = {-0.01f, -0.1f}, *x = allocate(4 * T * H * D, sizeof *x);
    for (int n = 0; n < 4; n++) {
        for (int i = 0; i < 4 * T * H * D; i++) x[i] = (float)random_normal(1, 2, (uint64_t)i);
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
                          .fresh_keys = true,
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
        double *expected = allocate(p.T * p.C, sizeof *expected);
        for (int64_t i = 0; i < p.T * p.C; i++) expected[i] = a.out[i];
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

// ---- long sequences and extreme decays, against PyTorch
// ---------------------------------------------------------------

enum { LONG = 8192, WIDTH = 8 };

static void fill_golden(float *x, int64_t seed) { // as in test/goldens/make_retention.py
    for (int64_t i = 0; i < LONG * WIDTH; i++) {
        int64_t n = i + seed * 1000003;
        x[i] = (float)((n * n % 4093 * 31 + n * 7919) % 253 - 126) / 64;
    }
}

static float *golden_values(int64_t seed) {
    float *x = allocate(LONG * WIDTH, sizeof *x);
    fill_golden(x, seed);
    return x;
}

// A row is a sum over up to T tokens, which goes by 64 tokens of a block, then T / 64 blocks, a few roundings each;
// then a product over D. So are the numbers that it is divided by, and in the gradients G and delta. Each rounding is
// at most u times the sum of absolute values, `scale` in the golden: below 4 (64 + T / 64 + 64) u in all, whatever the
// decay.
static void long_sequences_do_not_drift(void **state) {
    (void)state;
    Device d;
    Error err;
    cpu_device(&d, 2);
    char path[PROGRAM_PATH], name[8];
    float *q = golden_values(1), *k = golden_values(2), *v = golden_values(3), *d_y = golden_values(4);
    float *y = allocate(LONG * WIDTH, sizeof *y), *inverse = allocate(LONG, sizeof *inverse), log2_decay;
    float *d_q = allocate(LONG * WIDTH, sizeof *d_q), *d_k = allocate(LONG * WIDTH, sizeof *d_k);
    float *d_v = allocate(LONG * WIDTH, sizeof *d_v);
    float *starts = allocate(linear_windows(4, LONG) * linear_state(WIDTH), sizeof *starts);
    LinearShape shape = {
        .sequences = 1, .heads = 1, .kv_heads = 1, .head_dim = WIDTH, .log2_decay = &log2_decay, .context = LONG};
    const int64_t all = LONG * WIDTH, row = WIDTH;
    LinearTokens t = {.chunk = {0, LONG},
                      .q = {q, all, row},
                      .k = {k, all, row},
                      .v = {v, all, row},
                      .fresh_keys = true,
                      .y = {y, all, row},
                      .inverse = {inverse, LONG, LONG},
                      .starts = starts,
                      .d_y = {d_y, all, row},
                      .d_q = {d_q, all, row},
                      .d_k = {d_k, all, row},
                      .d_v = {d_v, all, row}};
    assert_true(device_lend_scratch(&d, linear_scratch_bytes_cpu(&shape, 2), &err));
    char *text = read_file(project_path(path, "test/goldens/retention.txt"), NULL), *rest = text;
    double decay = 0, worst = 0;
    int lines = 0;
    for (char *line; (line = strtok_r(rest, "\n", &rest)) != NULL; lines++) {
        double its, value[WIDTH + 1];
        int token, read = 0;
        assert_int_equal(sscanf(line, "%lf %7s %d%n", &its, name, &token, &read), 3);
        line += read;
        for (int i = 0; i <= WIDTH; i++) value[i] = strtod(line, &line);
        if (its != decay) {
            decay = its;
            log2_decay = (float)log2(decay);
            fill_golden(q, 1);
            fill_golden(k, 2);
            linear_kernels_cpu.forward(&d, &shape, &t, NULL, NULL);
            linear_kernels_cpu.backward(&d, &shape, &t, NULL);
        }
        const float *got = strcmp(name, "y") == 0 ? y : name[2] == 'q' ? d_q : name[2] == 'k' ? d_k : d_v;
        for (int i = 0; i < WIDTH; i++) {
            double error = fabs(got[token * WIDTH + i] - value[i]) / value[WIDTH];
            if (!(error <= worst)) worst = error;
            if (!(error <= 4 * (64 + LONG / 64 + 64) * u))
                fail_msg("decay %g, %s of token %d: off by %.2e", decay, name, token, error);
        }
    }
    // Of y every 67th token and the last, of three gradients every 251st.
    assert_int_equal(lines, 2 * ((LONG - 2) / 67 + 2 + 3 * ((LONG - 2) / 251 + 2)));
    if (getenv("VERBOSE") != NULL) fprintf(stderr, "of 8,192 tokens: off by at most %.2e of the sums\n", worst);
    device_return_scratch(&d);
    free(text), free(q), free(k), free(v), free(d_y), free(y), free(inverse), free(d_q), free(d_k), free(d_v),
        free(starts);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(gradient_of_the_definition),
                                       cmocka_unit_test(linear_is_its_definition),
                                       cmocka_unit_test(documents_restart_it),
                                       cmocka_unit_test(decays_and_windows),
                                       cmocka_unit_test(long_sequences_over_ranks),
                                       cmocka_unit_test(same_bits_in_two_runs),
                                       cmocka_unit_test(same_bits_on_any_number_of_threads),
                                       cmocka_unit_test(generation_is_training),
                                       cmocka_unit_test(refusals),
                                       cmocka_unit_test(long_sequences_do_not_drift)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
