// The counter-based generator against the known answers that its authors publish, and what is built on it.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/random.h"

typedef struct KnownAnswer {
    uint32_t counter[4], key[2], answer[4];
} KnownAnswer;

// Random123's tests/kat_vectors, the three lines "philox4x32 10".
static const KnownAnswer KNOWN_ANSWERS[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

static uint64_t join(uint32_t low, uint32_t high) { return (uint64_t)high << 32 | low; }

static void test_known_answers(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof KNOWN_ANSWERS / sizeof *KNOWN_ANSWERS; i++) {
        const KnownAnswer *k = &KNOWN_ANSWERS[i];
        Philox4 r = philox4x32(join(k->key[0], k->key[1]), join(k->counter[2], k->counter[3]),
                               join(k->counter[0], k->counter[1]));
        for (int word = 0; word < 4; word++) assert_int_equal(r.word[word], k->answer[word]);
    }
}

// Every image is hit once, for every small n, around powers of four (where the network's width changes), and for one
// larger n; under several seeds and streams.
static void check_bijective(uint64_t seed, uint64_t stream, uint64_t n) {
    unsigned char *seen = calloc(n, 1);
    assert_non_null(seen);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t image = random_permute(seed, stream, n, i);
        assert_true(image < n);
        assert_int_equal(seen[image]++, 0);
    }
    free(seen);
}

static void test_permutation_is_bijective(void **state) {
    (void)state;
    static const uint64_t larger[] = {255, 256, 257, 1000, 1023, 1024, 1025, 4095, 4096, 4097, 30011};
    for (uint64_t seed = 0; seed < 3; seed++) {
        for (uint64_t n = 1; n <= 130; n++) check_bijective(seed, 7 * seed, n);
        for (size_t i = 0; i < sizeof larger / sizeof *larger; i++) check_bijective(seed << 40, seed, larger[i]);
    }
}

// Images of a few indices stay below n and differ, for n too large to list.
static void test_permutation_of_large_n(void **state) {
    (void)state;
    static const uint64_t sizes[] = {(UINT64_C(1) << 32) - 1, (UINT64_C(1) << 33) + 12345, (UINT64_C(1) << 62) + 1};
    for (size_t s = 0; s < 3; s++) {
        uint64_t image[200];
        for (uint64_t i = 0; i < 200; i++) {
            image[i] = random_permute(5, 6, sizes[s], sizes[s] - 1 - i);
            assert_true(image[i] < sizes[s]);
            for (uint64_t j = 0; j < i; j++) assert_true(image[i] != image[j]);
        }
    }
}

// Over 24,000 seeds each order of four things is expected 1,000 times. A few rounds over so few bits are no perfect
// shuffle, so the bound is a fifth of that, not a few times the deviation of 31 that pure chance would give.
static void test_permutation_has_no_favourites(void **state) {
    (void)state;
    int count[256] = {0};
    for (uint64_t seed = 0; seed < 24000; seed++) {
        int order = 0;
        for (uint64_t i = 0; i < 4; i++) order = order << 2 | (int)random_permute(seed, 1, 4, i);
        count[order]++;
    }
    int orders = 0;
    for (int i = 0; i < 256; i++) {
        if (count[i] == 0) continue;
        orders++;
        assert_in_range(count[i], 800, 1200);
    }
    assert_int_equal(orders, 24);
}

// Means over n independent draws lie within 5 standard errors of the true ones (chance of a false alarm: 6e-7 each, and
// the seeds are fixed).
static void check_mean(double sum, double n, double expected, double variance) {
    assert_true(fabs(sum / n - expected) < 5.0 * sqrt(variance / n));
}

static void test_uniform_moments(void **state) {
    (void)state;
    enum { N = 200000 };
    double sum = 0, square = 0, neighbours = 0, previous = 0;
    for (uint64_t i = 0; i < N; i++) {
        double u = random_uniform(12, 34, i);
        assert_true(u >= 0.0 && u < 1.0);
        sum += u;
        square += u * u;
        if (i > 0) neighbours += (u - 0.5) * (previous - 0.5);
        previous = u;
    }
    check_mean(sum, N, 1.0 / 2, 1.0 / 12);
    check_mean(square, N, 1.0 / 3, 1.0 / 5 - 1.0 / 9);
    check_mean(neighbours, N - 1, 0.0, 1.0 / 144);
}

// Moments of a normal variable: 0, 1, 0, 3. The variance of x^k is E x^2k - (E x^k)^2; E x^4, x^6, x^8 = 3, 15, 105.
static void test_normal_moments(void **state) {
    (void)state;
    enum { N = 200000 };
    double sum[5] = {0};
    for (uint64_t i = 0; i < N; i++) {
        double x = random_normal(3, 1001, i), power = 1.0;
        assert_true(isfinite(x));
        for (int k = 1; k <= 4; k++) sum[k] += power *= x;
    }
    check_mean(sum[1], N, 0, 1);
    check_mean(sum[2], N, 1, 3 - 1);
    check_mean(sum[3], N, 0, 15);
    check_mean(sum[4], N, 3, 105 - 9);
}

static void test_below(void **state) {
    (void)state;
    enum { BOUND = 10, N = 100000 };
    int count[BOUND] = {0};
    for (uint64_t i = 0; i < N; i++) {
        uint64_t r = random_below(1, 2, i, BOUND);
        assert_true(r < BOUND);
        count[r]++;
    }
    for (int i = 0; i < BOUND; i++) check_mean(count[i], N, 0.1, 0.1 * 0.9);
    for (uint64_t i = 0; i < 100; i++) assert_int_equal(random_below(1, 2, i, 1), 0);
    for (uint64_t i = 0; i < 100; i++) assert_true(random_below(1, 2, i, UINT64_MAX) < UINT64_MAX);
}

static void test_seed_stream_and_index_matter(void **state) {
    (void)state;
    double base = random_uniform(1, 2, 3);
    assert_true(base == random_uniform(1, 2, 3));
    for (int bit = 0; bit < 64; bit++) {
        uint64_t flip = UINT64_C(1) << bit;
        assert_true(base != random_uniform(1 ^ flip, 2, 3));
        assert_true(base != random_uniform(1, 2 ^ flip, 3));
        assert_true(base != random_uniform(1, 2, 3 ^ flip));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),
        cmocka_unit_test(test_permutation_is_bijective),
        cmocka_unit_test(test_permutation_of_large_n),
        cmocka_unit_test(test_permutation_has_no_favourites),
        cmocka_unit_test(test_uniform_moments),
        cmocka_unit_test(test_normal_moments),
        cmocka_unit_test(test_below),
        cmocka_unit_test(test_seed_stream_and_index_matter),
    };
    return cmocka_run_group_tests_name("random", tests, NULL, NULL);
}
