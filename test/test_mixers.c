// Softmax attention as a token mixer against its definition in double precision (test/softmax_dense.h), over any number
// of ranks, and generation. The other mixers have programs of their own.
#include "test/softmax_dense.h"

static void definition_has_its_own_derivative(void **state) {
    (void)state;
    MixerProblem p = {
        .mixer = "attention", .device = DEVICE_CPU, .T = 12, .B = 2, .C = 32, .heads = 4, .kv_heads = 2, .seed = 6};
    MixerAnswer a = mixer_run(&p, 1);
    SoftmaxDense s = softmax_dense(&p, &a);
    expect_softmax_derivative(&s);
    softmax_dense_free(&s);
    mixer_free(&a);
}

static void attention_is_its_definition(void **state) {
    (void)state;
    static const int ranks[] = {1, 2, 3, 4, 8, 8, 4, 3, 2, 4, 2};
    static const Exchange exchanges[] = {EXCHANGE_RING, EXCHANGE_GATHER, EXCHANGE_ULYSSES, EXCHANGE_AUTO};
    static const int64_t lengths[] = {16, 37, 129}, documents[] = {0, 7}, kv_heads[] = {4, 2, 1};
    for (int t = 0; t < 3; t++)
        for (int k = 0; k < 2; k++)
            expect_softmax((MixerProblem){.mixer = "attention",
                                          .device = DEVICE_CPU,
                                          .T = lengths[t],
                                          .B = 2,
                                          .C = 32,
                                          .heads = 4,
                                          .kv_heads = kv_heads[(t + k) % 3],
                                          .document = documents[k],
                                          .seed = 7 + (uint64_t)t},
                           ranks, 11, exchanges, 4);
}

static void attention_generates_what_it_trains(void **state) {
    (void)state;
    const int64_t pieces[] = {1, 5, 128};
    for (int64_t document = 0; document <= 11; document += 11) {
        MixerProblem p = {.mixer = "attention", .device = DEVICE_CPU, .T = 150, .B = 1, .C = 32, .heads = 4, .seed = 8};
        p.document = document;
        MixerAnswer whole = mixer_run(&p, 1);
        double *expected = allocate(p.T * p.C, sizeof *expected);
        for (int64_t i = 0; i < p.T * p.C; i++) expected[i] = whole.out[i];
        for (int i = 0; i < 3; i++) {
            float *out = mixer_generate(&p, pieces[i]);
            mixer_expect(&p, 1, "generation", mixer_error(out, expected, p.T * p.C), 1e-6);
            free(out);
        }
        free(expected);
        mixer_free(&whole);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(definition_has_its_own_derivative),
                                       cmocka_unit_test(attention_is_its_definition),
                                       cmocka_unit_test(attention_generates_what_it_trains)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
