// The gated delta rule on the CPU against its definition in double precision, over any number of ranks, with documents,
// grouped heads and the convolution; generation, and bytes.
#include "mixer/delta.h"
#include "mixer/kernels.h"
#include "test/delta_reference.h"
#include "test/program.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Errors in norm, of fp32 with u = 6e-8. Each output goes through sums of some hundred terms and a triangular system
// whose inverse is about 1 to 3 in norm (keys have length 1, beta is below 1), each with an error that grows like the
// root of the number of terms: some 10 u each, and about ten such steps one after the other backward.
static const double ALLOWED = 1e-5;

// ---- the reference itself -------------------------------------------------------------------------------------------

static double *random_doubles(int64_t count, uint64_t stream, double std) {
    double *x = allocate(count + 1, sizeof *x);
    for (int64_t i = 0; i < count; i++) x[i] = std * random_normal(5, stream, (uint64_t)i);
    return x;
}

static double loss_of(const DeltaReference *r, int64_t n) {
    DeltaReference forward = *r;
    forward.d_x = NULL;
    delta_reference(&forward);
    double loss = 0;
    for (int64_t i = 0; i < n; i++) loss += r->out[i] * r->d_out[i];
    return loss;
}

// Central differences: with steps of 1e-5 their error is about 1e-10 of third derivatives that are of the order of 1,
// and 1e-16 / 1e-5 of rounding.
static void derivative_is_that_of_differences(void **state) {
    (void)state;
    enum { B = 2, T = 9, C = 8 };
    Error err;
    ModelConfig config = {.architecture = ARCH_LLAMA,
                          .vocab_size = 8,
                          .layers = 1,
                          .heads = 2,
                          .kv_heads = 1,
                          .head_dim = 4,
                          .dim = C,
                          .ffn_dim = C,
                          .max_positions = T,
                          .norm_epsilon = 1e-5,
                          .tied_embeddings = true,
                          .rope_theta = 10000,
                          .bos_token = -1,
                          .eos_token = -1};
    ParameterTable table;
    if (!mixers_read(&config, "delta:conv", "mixer", &err) || !parameters_list(&table, &config, 8, &err))
        fail_msg("%s", err.message);
    const int32_t first[B * T] = {0, 0, 0, 0, 0, 5, 5, 5, 5, 0, 1, 1, 1, 1, 1, 1, 1, 8};
    int64_t n = B * T * C;
    double *weights = random_doubles(table.total, 1, 0.7), *x = random_doubles(n, 2, 1),
           *d_out = random_doubles(n, 3, 1);
    double *out = allocate(n, sizeof *out), *d_x = allocate(n, sizeof *d_x);
    double *gradients = allocate(table.total, sizeof *gradients);
    DeltaReference r = {&config, &table, first, B, T, weights, x, d_out, out, d_x, gradients};
    delta_reference(&r);
    double worst = 0, step = 1e-5;
    for (int64_t i = 0; i < n + table.total; i++) {
        double *value = i < n ? &x[i] : &weights[i - n], was = *value, expected = i < n ? d_x[i] : gradients[i - n];
        *value = was + step;
        double above = loss_of(&r, n);
        *value = was - step;
        double below = loss_of(&r, n);
        *value = was;
        worst = fmax(worst, fabs((above - below) / (2 * step) - expected) / (1 + fabs(expected)));
    }
    if (!(worst < 1e-7)) fail_msg("differs by %.2e from finite differences", worst);
    free(weights), free(x), free(d_out), free(out), free(d_x), free(gradients);
    parameters_free(&table);
}

// ---- the kernels ----------------------------------------------------------------------------------------------------

static MixerProblem problem_of(const char *mixer, int64_t T, int64_t document) {
    return (MixerProblem){.mixer = mixer,
                          .device = DEVICE_CPU,
                          .T = T,
                          .B = 2,
                          .C = 64,
                          .heads = 4,
                          .kv_heads = 2,
                          .document = document,
                          .seed = 11,
                          .fill = delta_fill};
}

static void over_ranks(const MixerProblem *problem) {
    static const int ranks[] = {1, 2, 3, 4, 8, 0};
    expect_delta(problem, ranks, ALLOWED);
}

static void is_its_definition(void **state) {
    (void)state;
    const int64_t lengths[] = {16, 37, 129, 1000};
    for (int i = 0; i < 4; i++) {
        MixerProblem problem = problem_of("delta", lengths[i], 0);
        over_ranks(&problem);
    }
}

static void convolves_before(void **state) {
    (void)state;
    static const int64_t lengths[] = {16, 37, 129, 1000};
    static const int few[] = {1, 4, 0};
    for (int i = 0; i < 4; i++) {
        MixerProblem problem = problem_of("delta:conv", lengths[i], 0);
        if (lengths[i] < 1000) over_ranks(&problem);
        else expect_delta(&problem, few, ALLOWED);
    }
}

static void restarts_at_documents(void **state) {
    (void)state;
    const int64_t documents[] = {1, 5, 64, 100};
    for (int i = 0; i < 4; i++) {
        MixerProblem problem = problem_of(i % 2 == 0 ? "delta:conv" : "delta", 300, documents[i]);
        over_ranks(&problem);
    }
}

// Heads that are no whole vectors, and one key for all.
static void takes_heads_of_any_size(void **state) {
    (void)state;
    static const int ranks[] = {1, 2, 0};
    for (int64_t C = 12; C <= 120; C += 54) {
        MixerProblem problem = problem_of("delta:conv", 150, 70);
        problem.C = C, problem.heads = 3, problem.kv_heads = 1;
        expect_delta(&problem, ranks, ALLOWED);
    }
}

// Over 8,200 tokens, so that chunks end in a block of a token or two. What states collect in all 129 blocks,
// GOLDEN_ALLOWED below, is within ALLOWED; over ranks, mixer_expect_flat says how much more there may be.
static void takes_extreme_decays_over_ranks(void **state) {
    (void)state;
    static const int ranks[] = {1, 4, 8, 0};
    for (int i = 0; i < 2; i++) {
        MixerProblem problem = problem_of("delta", program_slowness() > 1 ? 2056 : 8200, 0);
        problem.B = 1, problem.C = 32, problem.heads = 2, problem.kv_heads = 1;
        problem.fill = i == 0 ? delta_fill_fast : delta_fill_slow;
        expect_delta(&problem, ranks, ALLOWED);
    }
}

static void has_the_same_bits_again(void **state) {
    (void)state;
    MixerProblem problem = problem_of("delta:conv", 300, 120);
    MixerAnswer one = mixer_run(&problem, 3), two = mixer_run(&problem, 3);
    size_t n = (size_t)(problem.B * problem.T * problem.C) * sizeof(float);
    assert_memory_equal(one.out, two.out, n);
    assert_memory_equal(one.d_x, two.d_x, n);
    assert_memory_equal(one.gradients, two.gradients, (size_t)one.table.total * sizeof(float));
    mixer_free(&one);
    mixer_free(&two);
}

static void generates_what_it_was_trained_for(void **state) {
    (void)state;
    const int64_t pieces[] = {1, 7, 100};
    for (int i = 0; i < 6; i++) {
        MixerProblem problem = problem_of(i < 3 ? "delta" : "delta:conv", 150, i % 2 == 0 ? 0 : 40);
        problem.B = 1;
        MixerAnswer trained = mixer_run(&problem, 1);
        int64_t n = problem.T * problem.C;
        double *expected = allocate(n, sizeof *expected);
        for (int64_t k = 0; k < n; k++) expected[k] = trained.out[k];
        float *out = mixer_generate(&problem, pieces[i % 3]);
        mixer_expect(&problem, 1, "generated", mixer_error(out, expected, n), ALLOWED);
        free(out);
        free(expected);
        mixer_free(&trained);
    }
}

// ---- PyTorch's, over many tokens ------------------------------------------------------------------------------------

// As in test/goldens/make_delta.py, which tells what is in delta.bin.
enum { GOLDEN_T = 8192, GOLDEN_H = 3, GOLDEN_D = 16, GOLDEN_COLUMNS = 4 * GOLDEN_D + 2 };
// A token of each row that a block has, twice or so, and the last one.
enum { EVERY = 67, GOLDEN_ROWS = (GOLDEN_T - 2) / EVERY + 2 };
// A token's transition is at most 1 in norm, since keys have length 1 and beta and e^a are at most 1. So the rounding
// of each of 128 blocks, some 10 u of what the state holds (u = 2^-24), is handed on and never grows; independent of
// each other they make sqrt(128) times that, if nothing is ever forgotten.
static const double GOLDEN_ALLOWED = 10 * 11.4 / (1 << 24);

static double uniform(uint64_t stream, uint64_t i) {
    uint64_t z = ((stream << 40) + i + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (double)((z ^ z >> 31) >> 32) / 2147483648.0 - 1;
}

static void fill_uniform(float *to, uint64_t stream, double length) { // length 0: as they are
    for (int64_t t = 0; t < GOLDEN_T; t++) {
        double square = 0;
        for (int64_t c = 0; c < GOLDEN_D; c++) square += pow(uniform(stream, (uint64_t)(t * GOLDEN_D + c)), 2);
        for (int64_t c = 0; c < GOLDEN_D; c++)
            to[t * GOLDEN_D + c] =
                (float)(uniform(stream, (uint64_t)(t * GOLDEN_D + c)) * (length > 0 ? length / sqrt(square) : 1));
    }
}

static void fill_rates(float *beta, float *log_decay, uint64_t h) {
    for (uint64_t t = 0; t < GOLDEN_T; t++) {
        beta[t] = (float)((uniform(10 * h + 4, t) + 1) / 2);
        bool half = h == 0 || (h == 2 && uniform(10 * h + 5, t) < -0.95);
        log_decay[t] = (float)(half ? log(0.5) : log1p(-1e-6));
    }
}

static void expect_golden(const char *what, const float *got, int64_t width, const float *golden, int64_t h,
                          int64_t column, double allowed) {
    double square = 0, wrong = 0;
    for (int64_t row = 0; row < GOLDEN_ROWS; row++)
        for (int64_t c = 0, t = row < GOLDEN_ROWS - 1 ? row * EVERY : GOLDEN_T - 1; c < width; c++) {
            double expected = golden[(h * GOLDEN_ROWS + row) * GOLDEN_COLUMNS + column + c];
            square += expected * expected;
            wrong += pow(got[(h * GOLDEN_T + t) * width + c] - expected, 2);
        }
    if (!(sqrt(wrong / square) < allowed))
        fail_msg("%s of head %d is off by %.2e (allowed %.2e)", what, (int)h, sqrt(wrong / square), allowed);
}

static void is_what_pytorch_computes_at_extreme_decays(void **state) {
    (void)state;
    enum {
        N = GOLDEN_T / DELTA_BLOCK,
        ROWS = GOLDEN_H * GOLDEN_T,
        VALUES = ROWS * GOLDEN_D,
        STATES = GOLDEN_H * N * 256
    };
    Device device, *d = &device;
    Error err;
    if (!device_open(d, DEVICE_CPU, 0, 1, &err)) fail_msg("%s", err.message);
    const DeltaKernels *k = d->mixers->delta;
    const DeltaShape s = {1, GOLDEN_H, GOLDEN_H, GOLDEN_D, 1, {{0, GOLDEN_T}, {0, 0}}, NULL, GOLDEN_T};
    if (!device_lend_scratch(d, delta_scratch_bytes_cpu(&s, 1), &err)) fail_msg("%s", err.message);
    float *x = allocate(11 * VALUES + 2 * STATES + 4 * ROWS, sizeof *x); // (1, H, N, 64, D) is (H, T, D)
    float *out = x + 3 * VALUES, *d_out = x + 4 * VALUES, *updates = x + 5 * VALUES, *residuals = x + 6 * VALUES;
    float *states = x + 11 * VALUES, *d_states = states + STATES, *rates = d_states + STATES;
    const DeltaTokens t = {x, x + VALUES, x + 2 * VALUES, rates, rates + ROWS, allocate(GOLDEN_T, sizeof(int32_t))};
    const DeltaGradients g = {x + 7 * VALUES, x + 8 * VALUES, x + 9 * VALUES, rates + 2 * ROWS, rates + 3 * ROWS};
    for (int64_t i = 0; i < GOLDEN_T; i++) t.begin[i] = i < DELTA_BLOCK ? 0 : -1;
    for (uint64_t h = 0; h < GOLDEN_H; h++) {
        float *const to[] = {x, x + VALUES, x + 2 * VALUES, d_out};
        const double lengths[] = {1 / sqrt(GOLDEN_D), 1, 0, 0};
        for (uint64_t i = 0; i < 4; i++) fill_uniform(to[i] + h * GOLDEN_T * GOLDEN_D, 10 * h + i, lengths[i]);
        fill_rates(t.beta + h * GOLDEN_T, t.log_decay + h * GOLDEN_T, h);
    }
    k->forward(d, &s, &t, NULL, NULL, states, updates, out);
    k->backward(d, &s, &t, states, updates, d_out, NULL, d_states, residuals, &g);

    char path[PROGRAM_PATH];
    size_t bytes;
    float *golden = (float *)(void *)read_file(project_path(path, "test/goldens/delta.bin"), &bytes);
    assert_int_equal(bytes, GOLDEN_H * GOLDEN_ROWS * GOLDEN_COLUMNS * sizeof *golden);
    for (int64_t h = 0; h < GOLDEN_H; h++) {
        expect_golden("o", out, GOLDEN_D, golden, h, 0, GOLDEN_ALLOWED);
        expect_golden("d_q", g.d_q, GOLDEN_D, golden, h, GOLDEN_D, GOLDEN_ALLOWED);
        expect_golden("d_k", g.d_k, GOLDEN_D, golden, h, 2 * GOLDEN_D, GOLDEN_ALLOWED);
        expect_golden("d_v", g.d_v, GOLDEN_D, golden, h, 3 * GOLDEN_D, GOLDEN_ALLOWED);
        expect_golden("d_beta", g.d_beta, 1, golden, h, 4 * GOLDEN_D, GOLDEN_ALLOWED);
        expect_golden("d_log_decay", g.d_log_decay, 1, golden, h, 4 * GOLDEN_D + 1, DELTA_OF_DECAYS * GOLDEN_ALLOWED);
    }
    free(golden);
    free(t.begin);
    free(x);
    device_return_scratch(d);
    d->close(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(derivative_is_that_of_differences),
        cmocka_unit_test(is_its_definition),
        cmocka_unit_test(convolves_before),
        cmocka_unit_test(restarts_at_documents),
        cmocka_unit_test(takes_heads_of_any_size),
        cmocka_unit_test(takes_extreme_decays_over_ranks),
        cmocka_unit_test(has_the_same_bits_again),
        cmocka_unit_test(generates_what_it_was_trained_for),
        cmocka_unit_test(is_what_pytorch_computes_at_extreme_decays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
