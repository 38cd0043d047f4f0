// The mixers conv, conv:gated and fourier against their definitions (test/convolution_reference.h), on the CPU, over
// any number of ranks; and what they refuse.
#include "test/convolution_reference.h"

#include "base/cpu_features.h"
#include "mixer/convolution.h"
#include "mixer/kernels.h"

static void fill(const Parameter *parameter, float *values) { // the bias and the skip
    for (int64_t i = 0; i < parameter->size; i++)
        values[i] = (float)(0.3 * random_normal(11, (uint64_t)parameter->dimensions, (uint64_t)i));
}

// 20 channels: no number of ranks above 2 but 4 divides them.
static MixerProblem problem_of(const char *mixer, int64_t T) {
    return (MixerProblem){.mixer = mixer,
                          .device = DEVICE_CPU,
                          .T = T,
                          .B = 2,
                          .C = 20,
                          .heads = 2,
                          .max_positions = 1024,
                          .weight_std = 0.1,
                          .seed = 5,
                          .fill = fill};
}

// Skips the test where FFTW is not installed.
static void needs_fftw(void) {
    Error err;
    if (!mixer_kernels_cpu.convolution->opens("conv", &err)) skip();
}

static const char *const mixers[] = {"conv", "conv:gated", "fourier"};
enum { MIXERS = sizeof mixers / sizeof *mixers };

// ---- the reference itself -------------------------------------------------------------------------------------------

// A central difference of the loss along one element, with an error of 1e-10 (of step^2) and rounding of 1e-16 / step.
static void expect_slope(ConvolutionReference *r, const char *what, double *element, double gradient, double typical) {
    const double step = 1e-5, kept = *element;
    *element = kept + step;
    reference_forward(r);
    double above = reference_loss(r);
    *element = kept - step;
    reference_forward(r);
    double slope = (above - reference_loss(r)) / (2 * step);
    *element = kept;
    if (!(fabs(slope - gradient) <= 1e-6 * typical))
        fail_msg("%s: %.10g by differences, %.10g by the derivative", what, slope, gradient);
}

static double root_mean_square(const double *x, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += x[i] * x[i];
    return sqrt(sum / (double)count);
}

static void reference_has_its_derivative(void **state) {
    (void)state;
    needs_fftw();
    for (int i = 0; i < MIXERS; i++) {
        MixerProblem problem = problem_of(mixers[i], 9);
        MixerAnswer answer = mixer_run(&problem, 1);
        ConvolutionReference r = reference_of(&problem, &answer);
        reference_forward(&r);
        reference_backward(&r);
        int64_t n = r.B * r.T * r.C;
        double typical = root_mean_square(r.d_x, n);
        for (int64_t k = 0; k < n; k += 7) expect_slope(&r, "d_x", r.x + k, r.d_x[k], typical);
        for (int t = 0; t < r.tensors; t++) {
            typical = root_mean_square(r.gradient[t], r.size[t]);
            for (int64_t k = 0; k < r.size[t]; k += r.size[t] / 19)
                expect_slope(&r, ref_names[t], r.weight[t] + k, r.gradient[t][k], typical);
        }
        reference_free(&r);
        mixer_free(&answer);
    }
}

// ---- any number of ranks --------------------------------------------------------------------------------------------

// In u = 2^-24. Fourier: a transform adds some u sqrt(log2 N), 3 u, to what it is given, and there are three, beside
// the rounding of cosines and of two matrix products of 20 terms. Conv: the filter comes of sines of 10 W1 f and 10 W2
// a, arguments of about 4 and 6, which are off by some 4 u after sums of 32 and 64 terms; and what the first sine is
// off, the second layer multiplies by 10 std(W2) sqrt(64) = 8. The skip's gradient has no such factor.
#define U (1.0 / (1 << 24))
static const Allowed *allowed_of(const char *mixer) {
    static const Allowed fourier = {16 * U, 16 * U, {16 * U, 16 * U}};
    static const Allowed conv = {96 * U, 96 * U, {96 * U, 96 * U, 96 * U, 96 * U, 96 * U, 96 * U, 16 * U}};
    return strcmp(mixer, "fourier") == 0 ? &fourier : &conv;
}

static void expect_stated_bytes(const MixerAnswer *a) {
    assert_int_equal(a->forward_bytes, a->stated_forward);
    assert_int_equal(a->backward_bytes, a->stated_backward);
}

static void any_number_of_ranks(void **state) {
    (void)state;
    needs_fftw();
    const int64_t lengths[] = {16, 37, 129, 1000};
    const int ranks[] = {1, 2, 3, 4, 8};
    for (int i = 0; i < MIXERS; i++)
        for (int l = 0; l < 4; l++) {
            MixerProblem problem = problem_of(mixers[i], lengths[l]);
            ConvolutionReference r = {0};
            for (int k = 0; k < 5; k++) {
                if (lengths[l] < 2 * ranks[k]) continue;
                MixerAnswer answer = mixer_run(&problem, ranks[k]);
                if (k == 0) {
                    r = reference_of(&problem, &answer);
                    reference_forward(&r);
                    reference_backward(&r);
                }
                reference_expect(&r, &problem, ranks[k], &answer, allowed_of(mixers[i]));
                expect_stated_bytes(&answer);
                mixer_free(&answer);
            }
            reference_free(&r);
        }
}

static void same_bits_again(void **state) {
    (void)state;
    needs_fftw();
    for (int i = 0; i < MIXERS; i++) {
        MixerProblem problem = problem_of(mixers[i], 200);
        mixer_expect_same_bits(&problem, 3);
    }
}

// Every copy of the vectorised loops that this processor can run, and channels that fill its vectors and tiles.
static void every_instruction_set(void **state) {
    (void)state;
    needs_fftw();
    SimdLevel best = simd_level();
    for (SimdLevel level = SIMD_PORTABLE; level <= best; level++) {
        setenv("SIMD", simd_level_name(level), 1);
        for (int i = 0; i < MIXERS; i++) {
            MixerProblem problem = problem_of(mixers[i], 75);
            problem.C = 36;
            MixerAnswer answer = mixer_run(&problem, 1);
            ConvolutionReference r = reference_of(&problem, &answer);
            reference_forward(&r);
            reference_backward(&r);
            reference_expect(&r, &problem, 1, &answer, allowed_of(mixers[i]));
            reference_free(&r);
            mixer_free(&answer);
        }
    }
    unsetenv("SIMD");
}

// ---- sizes ----------------------------------------------------------------------------------------------------------

static void lengths_are_least(void **state) {
    (void)state;
    for (int64_t T = 1; T < 3000; T++) {
        int64_t least = 2 * T - 1 > 2 ? 2 * T - 1 : 2;
        for (;; least++) {
            int64_t rest = least;
            for (int factor = 2; factor <= 5; factor++)
                while (rest % factor == 0) rest /= factor;
            if (rest == 1 && least % 2 == 0) break;
        }
        assert_int_equal(convolution_length(T), least);
        assert_true(convolution_stride(T) >= least + 2 && convolution_stride(T) % 16 == 0);
    }
}

// ---- generation -----------------------------------------------------------------------------------------------------

static void generation_is_training(void **state) {
    (void)state;
    needs_fftw();
    const int64_t pieces[] = {1, 5, 128};
    for (int i = 0; i < MIXERS; i++) {
        MixerProblem problem = problem_of(mixers[i], 150);
        MixerAnswer answer = mixer_run(&problem, 1);
        ConvolutionReference r = reference_of(&problem, &answer);
        reference_forward(&r);
        for (int k = 0; k < 3; k++) {
            float *out = mixer_generate(&problem, pieces[k]);
            mixer_expect(&problem, 1, "generated", mixer_error(out, r.out, problem.T * problem.C),
                         allowed_of(mixers[i])->out);
            free(out);
        }
        reference_free(&r);
        mixer_free(&answer);
    }
}

// ---- what is refused ------------------------------------------------------------------------------------------------

static bool checks(const char *text, int ranks, bool documents, Error *err) {
    ModelConfig config = {.architecture = ARCH_LLAMA, .dim = 4, .layers = 1, .max_positions = 64};
    MixerUse use = {.size = {.config = &config,
                             .context = 64,
                             .ranks = ranks,
                             .documents = documents,
                             .kernels = &mixer_kernels_cpu},
                    .device = DEVICE_CPU,
                    .option = text};
    if (!mixers_read(&config, text, "--mixer", err)) return false;
    return layer_kind(&config, 0).tokens->check(&use, err);
}

static void what_cannot_be(void **state) {
    (void)state;
    needs_fftw();
    Error err = {0};
    for (int i = 0; i < MIXERS; i++) {
        char start[40];
        snprintf(start, sizeof start, "%s: ", mixers[i]);
        assert_true(checks(mixers[i], 4, false, &err));
        assert_false(checks(mixers[i], 4, true, &err));
        assert_int_equal(err.exit_code, EXIT_USAGE);
        assert_memory_equal(err.message, start, strlen(start));
        assert_non_null(strstr(err.message, "--document-mask"));
        assert_false(checks(mixers[i], 5, false, &err));
        assert_non_null(strstr(err.message, "each rank needs a channel"));
    }
    const char *const wrong[] = {"conv:4", "conv:gate", "fourier:gated", "fourier:1"};
    for (int i = 0; i < 4; i++) {
        assert_false(checks(wrong[i], 1, false, &err));
        assert_int_equal(err.exit_code, EXIT_USAGE);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_has_its_derivative),
        cmocka_unit_test(any_number_of_ranks),
        cmocka_unit_test(same_bits_again),
        cmocka_unit_test(every_instruction_set),
        cmocka_unit_test(lengths_are_least),
        cmocka_unit_test(generation_is_training),
        cmocka_unit_test(what_cannot_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
