// Linear attention's CUDA kernels against the definition in double precision, over ranks, and the same bits twice. On
// the emulated device with few tokens and small heads; with TEST_DEVICE=cuda on a GPU, with all heads that there are
// kernels for.
#include "test/cuda_device.h"
#include "test/linear_dense.h"

typedef struct Case {
    const char *mixer;
    int64_t B, T, C, heads, kv_heads, document;
    bool on_emulated;
} Case;

static const Case cases[] = {
    {"linear", 2, 37, 32, 2, 1, 0, true},          {"linear", 2, 150, 32, 2, 2, 40, true},
    {"linear:0.9", 1, 129, 48, 1, 1, 0, true},     {"linear:1", 1, 70, 64, 1, 1, 0, true},
    {"linear", 1, 66, 128, 1, 1, 0, true},         {"linear", 1, 66, 160, 2, 1, 0, true},
    {"linear", 1, 1000, 32, 2, 1, 0, true},        {"linear", 1, 530, 32, 2, 2, 333, true},
    {"linear", 2, 1000, 128, 2, 2, 333, false},    {"linear", 1, 1000, 192, 2, 1, 0, false},
    {"linear:0.999", 1, 700, 128, 1, 1, 0, false}, {"linear", 1, 4500, 64, 1, 1, 0, false},
    {"linear", 1, 500, 112, 1, 1, 70, false},      {"linear", 1, 500, 160, 2, 1, 0, false},
};
enum { CASES = sizeof cases / sizeof *cases };

static bool is_served(const Case *c) { return c->on_emulated || cuda_device_is_gpu(); }

static MixerProblem problem_of(const Case *c, int i) {
    return (MixerProblem){.mixer = c->mixer,
                          .device = cuda_device_kind(),
                          .T = c->T,
                          .B = c->B,
                          .C = c->C,
                          .heads = c->heads,
                          .kv_heads = c->kv_heads,
                          .document = c->document,
                          .seed = 23 + (uint64_t)i};
}

// Storage is bf16, u = 2^-9: inputs are rounded alike for both sides. Rounded once on the way are q, k, v, their phi,
// P, the state, y and the result, whose errors are independent of each other: a few u together. The
// first rows of a document, which see few keys, are larger than most, the more so
// the longer it is (mixer_expect's largest).
static void linear_is_its_definition(void **state) {
    (void)state;
    const double u = 1.0 / (1 << 9);
    static const int one[] = {1, 0}, some[] = {1, 2, 3, 0}, four[] = {1, 4, 0};
    if (cuda_devices_here() == 0) skip();
    for (int i = 0; i < CASES; i++) {
        MixerProblem p = problem_of(&cases[i], i);
        double allowed = (p.T > 200 ? 24 : 8) * u;
        const int *ranks = cuda_device_is_gpu() ? one : i < 2 ? some : p.T > 200 ? four : one;
        if (is_served(&cases[i])) expect_linear(&p, ranks, allowed, allowed);
    }
}

static void same_bits_twice(void **state) {
    (void)state;
    if (cuda_devices_here() == 0) skip();
    MixerProblem p = problem_of(&cases[1], 1);
    mixer_expect_same_bits(&p, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(linear_is_its_definition), cmocka_unit_test(same_bits_twice)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
