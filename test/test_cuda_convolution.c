// The mixers conv, conv:gated and fourier on CUDA's kernels, emulated or on a GPU (test/cuda_device.h), against their
// definitions (test/convolution_reference.h).
#include "test/convolution_reference.h"
#include "test/cuda_device.h"

#include "mixer/convolution.h"
#include "mixer/kernels.h"

static void fill(const Parameter *parameter, float *values) { // the bias and the skip
    for (int64_t i = 0; i < parameter->size; i++)
        values[i] = (float)(0.3 * random_normal(11, (uint64_t)parameter->dimensions, (uint64_t)i));
}

static MixerProblem problem_of(const char *mixer, int64_t T, int64_t C) {
    return (MixerProblem){.mixer = mixer,
                          .device = cuda_device_kind(),
                          .T = T,
                          .B = 2,
                          .C = C,
                          .heads = 2,
                          .max_positions = 1024,
                          .weight_std = 0.05,
                          .seed = 5,
                          .fill = fill};
}

// Skips the test where there is no such device, or no library of transforms for it.
static void needs_transforms(void) {
    Device device;
    Error err;
    if (cuda_devices_here() == 0) skip();
    if (!device_open(&device, cuda_device_kind(), 0, 1, &err)) fail_msg("%s", err.message);
    bool opens = device.mixers->convolution->opens("conv", &err);
    device.close(&device);
    if (!opens) skip();
}

static const char *const mixers[] = {"conv", "conv:gated", "fourier"};
enum { MIXERS = sizeof mixers / sizeof *mixers };

// In units of 2^-9, what bf16 rounds by at most: some 0.4 in the mean. Fourier: v, what is mixed, and its gradients are
// rounded once each. Conv: the network's hidden layers, too. Sines of 10 W2 a + 10 w2, arguments of about 4, are off by
// 4 times what their sum was rounded by, and by 10 std(W2) sqrt(64) = 4 times what a was.
#define UNIT (1.0 / (1 << 9))
static const Allowed *allowed_of(const char *mixer) {
    static const Allowed fourier = {2 * UNIT, 2 * UNIT, {2 * UNIT, 2 * UNIT}};
    static const Allowed conv = {
        6 * UNIT, 6 * UNIT, {6 * UNIT, 6 * UNIT, 12 * UNIT, 8 * UNIT, 8 * UNIT, 8 * UNIT, 4 * UNIT}};
    return strcmp(mixer, "fourier") == 0 ? &fourier : &conv;
}

static void expect_definition(const MixerProblem *problem, int most_ranks) {
    ConvolutionReference r = {0};
    int devices = cuda_device_is_gpu() ? cuda_devices_here() : 64;
    for (int ranks = 1; ranks <= most_ranks && ranks <= devices; ranks++) {
        MixerAnswer answer = mixer_run(problem, ranks);
        if (ranks == 1) {
            r = reference_of(problem, &answer);
            reference_forward(&r);
            reference_backward(&r);
        }
        reference_expect(&r, problem, ranks, &answer, allowed_of(problem->mixer));
        assert_int_equal(answer.forward_bytes, answer.stated_forward);
        assert_int_equal(answer.backward_bytes, answer.stated_backward);
        mixer_free(&answer);
    }
    reference_free(&r);
}

static void conv_is_its_definition(void **state) {
    (void)state;
    needs_transforms();
    for (int i = 0; i < MIXERS; i++) {
        MixerProblem few = problem_of(mixers[i], 16, 20), more = problem_of(mixers[i], 77, 40);
        expect_definition(&few, 4);
        expect_definition(&more, 1);
    }
}

// On a GPU, lengths as they are there, against the CPU: several groups of channels (convolution_group), the last one
// not full. Weights that are rounded to bf16 on one side alone turn the sines' arguments by as much as their sums'
// rounding.
static void long_sequences(void **state) {
    (void)state;
    if (!cuda_device_is_gpu()) skip();
    needs_transforms();
    Error err;
    if (!convolution_kernels_cpu.opens("conv", &err)) skip();
    for (int i = 0; i < MIXERS; i++) {
        MixerProblem problem = problem_of(mixers[i], 65000, 128);
        problem.B = 1;
        assert_true(convolution_group(problem.T, problem.C) == 43);
        MixerProblem on_cpu = problem;
        on_cpu.device = DEVICE_CPU;
        MixerAnswer answer = mixer_run(&problem, 1), expected = mixer_run(&on_cpu, 1);
        int64_t n = problem.B * problem.T * problem.C;
        double *exact = allocate(n, sizeof *exact);
        for (int64_t k = 0; k < n; k++) exact[k] = (double)expected.out[k];
        mixer_expect(&problem, 1, "out", mixer_error(answer.out, exact, n), 4 * allowed_of(mixers[i])->out);
        for (int64_t k = 0; k < n; k++) exact[k] = (double)expected.d_x[k];
        mixer_expect(&problem, 1, "d_x", mixer_error(answer.d_x, exact, n), 4 * allowed_of(mixers[i])->d_x);
        free(exact);
        mixer_free(&answer), mixer_free(&expected);
    }
}

static void same_bits_again(void **state) {
    (void)state;
    needs_transforms();
    MixerProblem problem = problem_of("conv:gated", 21, 20);
    mixer_expect_same_bits(&problem, 1);
}

static void generation_is_training(void **state) {
    (void)state;
    needs_transforms();
    for (int i = 0; i < MIXERS; i++) {
        MixerProblem problem = problem_of(mixers[i], 20, 20);
        MixerAnswer answer = mixer_run(&problem, 1);
        ConvolutionReference r = reference_of(&problem, &answer);
        reference_forward(&r);
        for (int64_t piece = 3; piece <= 128; piece += 125) {
            float *out = mixer_generate(&problem, piece);
            mixer_expect(&problem, 1, "generated", mixer_error(out, r.out, problem.T * problem.C),
                         allowed_of(mixers[i])->out);
            free(out);
        }
        reference_free(&r);
        mixer_free(&answer);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conv_is_its_definition),
        cmocka_unit_test(long_sequences),
        cmocka_unit_test(same_bits_again),
        cmocka_unit_test(generation_is_training),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
