// The gated delta rule's CUDA kernels, emulated or on a GPU, against its definition in double precision.
#include "test/cuda_device.h"
#include "test/delta_reference.h"

#include <stdlib.h>
#include <string.h>

// Errors in norm, of bf16 with u = 2^-9 = 0.2%. Every tensor between two kernels is rounded (raw rows, q, k, v,
// updates, states, outputs, and as many gradients), and so are both factors of each product on tensor cores: some 15
// roundings one after the other, independent of each other, so about 4 u, and 10 u for what the inverse and the norms
// make larger. Sums and states are fp32 and add nothing to speak of.
static const double ALLOWED = 10.0 / 512;

static MixerProblem problem_of(const char *mixer, int64_t T, int64_t head_dim, int64_t document) {
    return (MixerProblem){.mixer = mixer,
                          .device = cuda_device_kind(),
                          .T = T,
                          .B = 1,
                          .C = 2 * head_dim,
                          .heads = 2,
                          .kv_heads = 1,
                          .document = document,
                          .seed = 11,
                          .fill = delta_fill};
}

static void expect_within(const MixerProblem *problem, int ranks, double allowed) {
    if (cuda_devices_here() == 0) skip();
    const int list[] = {1, ranks > 1 ? ranks : 0, 0};
    expect_delta(problem, list, allowed);
}
static void expect(const MixerProblem *problem, int ranks) { expect_within(problem, ranks, ALLOWED); }

static void heads_of_32(void **state) {
    (void)state;
    MixerProblem problem = problem_of("delta", 140, 32, 0);
    expect(&problem, 1);
}

static void heads_of_16(void **state) {
    (void)state;
    MixerProblem problem = problem_of("delta:conv", 70, 16, 30);
    expect(&problem, 1);
}

static void heads_of_64(void **state) {
    (void)state;
    MixerProblem problem = problem_of("delta", 100, 64, 0);
    expect(&problem, 1);
}

static void heads_of_128(void **state) {
    (void)state;
    MixerProblem problem = problem_of("delta", 80, 128, 50);
    expect(&problem, 1);
}

static void over_ranks(void **state) {
    (void)state;
    if (!only_emulated()) skip();
    MixerProblem problem = problem_of("delta:conv", 21, 16, 0);
    expect(&problem, 3);
    problem.document = 9;
    expect(&problem, 2);
}

// Chunks of one block and a few tokens of another. Errors of queries, keys and outputs are divided by their lengths,
// and of some 10^3 heads of 16 numbers the shortest has half the length of the others (chi-squared, 16 degrees of
// freedom, 0.001: 3.9): twice the error.
static void many_blocks_over_ranks(void **state) {
    (void)state;
    MixerProblem problem = problem_of("delta:conv", 610, 16, 0);
    problem.fill = delta_fill_slow;
    expect_within(&problem, cuda_device_is_gpu() ? 1 : 4, 2 * ALLOWED);
}

static void has_the_same_bits_again(void **state) {
    (void)state;
    if (cuda_devices_here() == 0) skip();
    MixerProblem problem = problem_of("delta:conv", 270, 16, 120);
    mixer_expect_same_bits(&problem, cuda_device_is_gpu() ? 1 : 2);
}

static void generates_what_it_was_trained_for(void **state) {
    (void)state;
    if (cuda_devices_here() == 0) skip();
    MixerProblem problem = problem_of("delta:conv", 12, 16, 5);
    MixerAnswer trained = mixer_run(&problem, 1);
    int64_t n = problem.T * problem.C;
    double *expected = allocate(n, sizeof *expected);
    for (int64_t k = 0; k < n; k++) expected[k] = trained.out[k];
    float *out = mixer_generate(&problem, 5);
    mixer_expect(&problem, 1, "generated", mixer_error(out, expected, n), ALLOWED);
    free(out);
    free(expected);
    mixer_free(&trained);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_of_32),
        cmocka_unit_test(heads_of_16),
        cmocka_unit_test(heads_of_64),
        cmocka_unit_test(heads_of_128),
        cmocka_unit_test(over_ranks),
        cmocka_unit_test(many_blocks_over_ranks),
        cmocka_unit_test(has_the_same_bits_again),
        cmocka_unit_test(generates_what_it_was_trained_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
