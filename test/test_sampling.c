// The choice of the next token: the likeliest at temperature 0, only the top k, and frequencies of the softmax.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>

#include "base/random.h"
#include "model/sampling.h"

enum { V = 7 };
static const float LOGITS[V] = {0.5f, -1.0f, 2.0f, 2.5f, -INFINITY, 0.0f, 1.0f};

static void temperature_zero_takes_the_likeliest(void **state) {
    (void)state;
    float room[V];
    for (int i = 0; i < 10; i++) assert_int_equal(sample_token(LOGITS, room, V, 0, 0, i / 10.0), 3);
}

static void top_k_keeps_the_k_likeliest(void **state) {
    (void)state;
    float room[V];
    int seen[V] = {0};
    for (int i = 0; i < 1000; i++) seen[sample_token(LOGITS, room, V, 5.0, 3, i / 1000.0)]++;
    for (int v = 0; v < V; v++) assert_int_equal(seen[v] > 0, v == 2 || v == 3 || v == 6);
}

// uniform runs evenly over [0, 1), so each token's share of n draws is its probability to within one draw.
static void frequencies_are_those_of_the_softmax(void **state) {
    (void)state;
    enum { N = 10000 };
    const double temperature = 0.7;
    float room[V];
    int seen[V] = {0};
    double sum = 0;
    for (int i = 0; i < N; i++) seen[sample_token(LOGITS, room, V, temperature, 0, (i + 0.5) / N)]++;
    for (int v = 0; v < V; v++) sum += exp(LOGITS[v] / temperature);
    for (int v = 0; v < V; v++) assert_true(fabs(seen[v] - N * exp(LOGITS[v] / temperature) / sum) <= 1.0);
}

static void the_last_draw_stays_in_range(void **state) {
    (void)state;
    float room[V];
    int32_t token = sample_token(LOGITS, room, V, 1.0, 0, nextafter(1.0, 0.0));
    assert_true(token >= 0 && token < V && isfinite(LOGITS[token]));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(temperature_zero_takes_the_likeliest),
        cmocka_unit_test(top_k_keeps_the_k_likeliest),
        cmocka_unit_test(frequencies_are_those_of_the_softmax),
        cmocka_unit_test(the_last_draw_stays_in_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
