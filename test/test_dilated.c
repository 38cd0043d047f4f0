// Dilated attention against its definition (test/softmax_dense.h), over any number of ranks.
#include "test/cuda_device.h"
#include "test/softmax_dense.h"

// ---- a problem and its definition -----------------------------------------------------------------------------------

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

static void check(Case c, DeviceKind device, const int *ranks, int count) {
    static const Exchange exchanges[] = {EXCHANGE_RING, EXCHANGE_GATHER};
    char name[64];
    expect_softmax(problem_of(&c, name, device), ranks, count, exchanges, 2);
}

// ---- tests ----------------------------------------------------------------------------------------------------------

static void reference_has_its_own_derivative(void **state) {
    (void)state;
    char name[64];
    Case c = {7, 2, 12, 4, 2, 8, 5};
    MixerProblem p = problem_of(&c, name, DEVICE_CPU);
    MixerAnswer a = mixer_run(&p, 1);
    SoftmaxDense s = softmax_dense(&p, &a);
    expect_softmax_derivative(&s);
    softmax_dense_free(&s);
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
        double *expected = allocate(p.T * p.C, sizeof *expected);
        for (int64_t i = 0; i < p.T * p.C; i++) expected[i] = whole.out[i];
        for (int i = 0; i < 3; i++) {
            float *out = mixer_generate(&p, pieces[i]);
            mixer_expect(&p, 1, "generation", mixer_error(out, expected, p.T * p.C), SOFTMAX_FORWARD * 0x1p-24);
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
