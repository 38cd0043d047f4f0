// Every token mixer against its definition, in double precision, over any number of ranks. Each mixer's own program says
// more; here is attention, and what all have in common.
#include "test/mixer_problem.h"

#include "mixer/attention.h"

// ---- attention: y_i = W^O sum_j softmax_j(q_i . k_j / sqrt(D)) v_j, rotated by positions ----------------------------

static void attention_is_its_definition(void **state) {
    (void)state;
    MixerProblem problem = {.mixer = "attention", .device = DEVICE_CPU, .T = 37, .B = 2, .C = 32, .heads = 4, .seed = 7};
    MixerAnswer one = mixer_run(&problem, 1);
    for (int ranks = 2; ranks <= 4; ranks++) {
        MixerAnswer more = mixer_run(&problem, ranks);
        int64_t n = problem.B * problem.T * problem.C;
        double *expected = allocate(n, sizeof *expected);
        for (int64_t i = 0; i < n; i++) expected[i] = one.d_x[i];
        mixer_expect(&problem, ranks, "d_x", mixer_error(more.d_x, expected, n), 1e-6);
        assert_int_equal(more.forward_bytes, more.stated_forward);
        assert_int_equal(more.backward_bytes, more.stated_backward);
        free(expected);
        mixer_free(&more);
    }
    mixer_free(&one);
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(attention_is_its_definition),
                                       cmocka_unit_test(attention_generates_what_it_trains)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
