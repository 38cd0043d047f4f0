// The vector functions of base/simd.h, in the instruction set that this file is compiled for, against the C library in
// double precision. The other copies are tested through the layers that use them.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/simd.h"

typedef vfloat Function(vfloat);

static float first_lane(Function *f, float x) {
    float out[SIMD_WIDTH];
    vstore(out, f(vset(x)));
    return out[0];
}

static double relative_error(Function *f, double x) {
    double exact = exp((double)(float)x);
    return fabs(first_lane(f, (float)x) - exact) / exact;
}

// Not a number in, none out, whatever its bits are (a payload must not carry over into the exponent); and nothing
// overflows on the way, which the build with sanitizers would say.
static void check_strange_values(Function *f) {
    for (uint32_t payload = 1; payload < UINT32_C(1) << 23; payload = 3 * payload / 2 + 1) {
        for (int sign = 0; sign < 2; sign++) {
            uint32_t bits = UINT32_C(0x7F800000) | payload | (uint32_t)sign << 31;
            float x;
            memcpy(&x, &bits, sizeof x);
            if (!isnan(first_lane(f, x))) fail_msg("bits %x give %g", (unsigned)bits, first_lane(f, x));
        }
    }
    static const float huge[] = {INFINITY, 3.4e38f, 1e30f, 1e10f, 200, 89, -89, -1e10f, -3.4e38f, -INFINITY};
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) {
        float y = first_lane(f, huge[i]);
        if (huge[i] < 0) assert_true(y == 0 || y < 1e-38f);
    }
}

// 2^-23 is the largest distance of neighbouring numbers, relative to them.
static void test_exp(void **state) {
    (void)state;
    for (int i = 0; i <= 1000000; i++) {
        double x = -87.3 + i * (87.3 + 88.7) / 1000000;
        if (relative_error(vexp, x) > 2 * 0x1p-23) fail_msg("exp(%.9g) is off by %.3g", x, relative_error(vexp, x));
    }
    assert_true(first_lane(vexp, 0) == 1);
    assert_true(first_lane(vexp, -INFINITY) == 0);
    assert_true(first_lane(vexp, -1000) == 0);
    assert_true(isfinite(first_lane(vexp, 1000)));
    check_strange_values(vexp);
}

static void test_exp_negative(void **state) {
    (void)state;
    for (int i = 0; i <= 1000000; i++) {
        double x = -87 + i * 87.001 / 1000000, limit = 1.5e-7 + 7.5e-8 * fabs(x);
        if (relative_error(vexp_negative, x) > limit)
            fail_msg("exp(%.9g) is off by %.3g", x, relative_error(vexp_negative, x));
    }
    assert_true(first_lane(vexp_negative, 0) == 1);
    assert_true(first_lane(vexp_negative, -INFINITY) == 0);
    assert_true(first_lane(vexp_negative, -1e30f) == 0);
    check_strange_values(vexp_negative);
    // On the way to 0 it neither jumps up nor turns negative.
    for (float x = -87; x > -90; x -= 1e-3f) {
        float y = first_lane(vexp_negative, x);
        assert_true(y >= 0 && y < 2e-38f);
    }
}

static void test_lanes(void **state) {
    (void)state;
    float x[SIMD_WIDTH], y[SIMD_WIDTH], out[SIMD_WIDTH];
    for (int i = 0; i < SIMD_WIDTH; i++) {
        x[i] = (float)(i * 5 % SIMD_WIDTH);
        y[i] = (float)(SIMD_WIDTH - 1 - i);
    }
    assert_true(vsum(vload(x)) == SIMD_WIDTH * (SIMD_WIDTH - 1) / 2);
    assert_true(vmaximum(vload(x)) == SIMD_WIDTH - 1);
    vstore(out, vmax(vload(x), vload(y)));
    for (int i = 0; i < SIMD_WIDTH; i++) assert_true(out[i] == fmaxf(x[i], y[i]));
    vstore(out, vmin(vload(x), vload(y)));
    for (int i = 0; i < SIMD_WIDTH; i++) assert_true(out[i] == fminf(x[i], y[i]));
    vstore(out, vselect(vload(x) > vload(y), vload(x), vset(-1)));
    for (int i = 0; i < SIMD_WIDTH; i++) assert_true(out[i] == (x[i] > y[i] ? x[i] : -1));
    // Where one is not a number, the second operand comes out: vexp relies on it.
    vstore(out, vmax(vset(1), vset(NAN)));
    assert_true(isnan(out[0]));
    vstore(out, vmin(vset(1), vset(NAN)));
    assert_true(isnan(out[0]));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_exp_negative),
        cmocka_unit_test(test_lanes),
    };
    return cmocka_run_group_tests_name("simd", tests, NULL, NULL);
}
