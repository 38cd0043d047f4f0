// Bodies of test/layer_cases.h.
#include "test/layer_cases.h"

double sum_tolerance(int64_t terms, double sum_of_magnitudes) {
    return (4 + sqrt((double)terms)) * UNIT * sum_of_magnitudes;
}

float *floats(int64_t count) { return checked(calloc(count > 0 ? (size_t)count : 1, sizeof(float))); }

double *doubles(int64_t count) { return checked(calloc(count > 0 ? (size_t)count : 1, sizeof(double))); }

float *random_floats(int64_t count, uint64_t stream, double mean, double deviation) {
    float *x = floats(count);
    for (int64_t i = 0; i < count; i++) x[i] = (float)(mean + deviation * random_normal(7, stream, (uint64_t)i));
    return x;
}

int32_t *random_tokens(int64_t count, uint64_t stream, int64_t V) {
    int32_t *tokens = checked(calloc((size_t)count, sizeof *tokens));
    for (int64_t i = 0; i < count; i++) tokens[i] = (int32_t)random_below(7, stream, (uint64_t)i, (uint64_t)V);
    return tokens;
}

float *copy_of(const float *x, int64_t count) { return memcpy(floats(count), x, (size_t)count * sizeof *x); }

double *append(double *to, const float *x, int64_t count) { // returns where the next goes
    for (int64_t i = 0; i < count; i++) to[i] = x[i];
    return to + count;
}

void expect_near(const char *what, int64_t i, double got, double expected, double tolerance) {
    if (!(fabs(got - expected) <= tolerance)) // also where one is not a number
        fail_msg("%s[%lld] is %.9g instead of %.9g: off by %.2g, tolerance %.2g", what, (long long)i, got, expected,
                 fabs(got - expected), tolerance);
}

void expect_same_bits(const char *what, const float *a, const float *b, int64_t count) {
    if (memcmp(a, b, (size_t)count * sizeof *a) != 0) fail_msg("%s: other bits than before", what);
}

void for_each_device(void (*run)(Device *, void *), void *argument) {
    unsetenv("SIMD");
    SimdLevel best = simd_level();
    for (SimdLevel level = SIMD_PORTABLE; level <= best; level++) {
        setenv("SIMD", simd_level_name(level), 1);
        for (int threads = 1; threads <= 3; threads++) {
            Device device;
            cpu_device(&device, threads);
            lend_stated_scratch(&device, 8192, 8192, 0, 0);
            run(&device, argument);
            device_return_scratch(&device);
        }
    }
    unsetenv("SIMD");
}

void check_gradient(const Shape *s, Reference *forward, ReferenceBackward *backward, double *in, int64_t in_count,
                    int64_t out_count) {
    double *out = doubles(out_count), *d_out = doubles(out_count), *d_in = doubles(in_count), h = 1e-5;
    for (int64_t i = 0; i < out_count; i++) d_out[i] = random_normal(7, 99, (uint64_t)i);
    backward(s, in, d_out, d_in);
    for (int64_t i = 0; i < in_count; i++) {
        double value = in[i], f[2];
        for (int side = 0; side < 2; side++) {
            in[i] = side == 0 ? value + h : value - h;
            forward(s, in, out);
            f[side] = 0;
            for (int64_t j = 0; j < out_count; j++) f[side] += d_out[j] * out[j];
        }
        in[i] = value;
        expect_near("finite difference", i, d_in[i], (f[0] - f[1]) / (2 * h), 1e-8 * (1 + fabs(d_in[i])));
    }
    free(out);
    free(d_out);
    free(d_in);
}

double *random_doubles(int64_t count, double deviation) {
    double *x = doubles(count);
    for (int64_t i = 0; i < count; i++) x[i] = deviation * random_normal(7, 98, (uint64_t)i);
    return x;
}
