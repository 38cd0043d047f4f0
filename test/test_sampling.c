// The choice of the next token: the likeliest at temperature 0, only the top k, and frequencies of the softmax. And a
// sample's two ends: its prompt, and what is printed of it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "model/sampling.h"
#include "terminal/sample.h"

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

// A prompt that nobody gave leaves room for the sample; a given one that fills the positions is refused.
static void prompts_leave_room(void **state) {
    (void)state;
    const int64_t no_end = INT64_MAX;
    const struct {
        const char *text;
        int64_t positions, count; // 0: refused
    } cases[] = {{NULL, no_end, 64}, {NULL, 1024, 64},  {NULL, 128, 64},   {NULL, 127, 64},
                 {NULL, 64, 32},     {NULL, 16, 8},     {NULL, 2, 1},      {"seven..", no_end, 7},
                 {"seven..", 8, 7},  {"seven..", 7, 0}, {"seven..", 2, 0}, {"", no_end, 0}};
    char data[200] = {0};
    Error err;
    TokenSource *source = tokens_open_memory((const unsigned char *)data, sizeof data, &err);
    assert_non_null(source);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t count;
        int32_t *prompt = prompt_tokens(cases[i].text, source, 10, 257, cases[i].positions, &count, &err);
        assert_int_equal(prompt != NULL, cases[i].count > 0);
        if (prompt != NULL) assert_int_equal(count, cases[i].count);
        free(prompt);
    }
    int64_t count; // what is left of the data
    int32_t *prompt = prompt_tokens(NULL, source, 180, 257, no_end, &count, &err);
    assert_non_null(prompt);
    assert_int_equal(count, tokens_count(source) - 180);
    free(prompt);
    tokens_close(source);
}

static void a_short_sample_says_why(void **state) {
    (void)state;
    const struct {
        int64_t prompt, count, wanted, positions;
        const char *text;
    } cases[] = {
        {1, 3, 2, INT64_MAX, "sample: 2 tokens after a prompt of 1\n65 66 67\n"},
        {1, 3, 2, 3, "sample: 2 tokens after a prompt of 1\n65 66 67\n"},
        {1, 3, 9, 3, "sample: 2 tokens of 9 after a prompt of 1: the model has 3 positions\n65 66 67\n"},
        {1, 3, 9, 4, "sample: 2 tokens of 9 after a prompt of 1: the model ended the text\n65 66 67\n"},
    };
    const int32_t tokens[] = {65, 66, 67};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = NULL;
        size_t size;
        FILE *out = open_memstream(&text, &size);
        assert_non_null(out);
        print_generated(out, NULL, tokens, cases[i].prompt, cases[i].count, cases[i].wanted, cases[i].positions);
        assert_int_equal(fclose(out), 0);
        assert_string_equal(text, cases[i].text);
        free(text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(temperature_zero_takes_the_likeliest),
        cmocka_unit_test(top_k_keeps_the_k_likeliest),
        cmocka_unit_test(frequencies_are_those_of_the_softmax),
        cmocka_unit_test(the_last_draw_stays_in_range),
        cmocka_unit_test(prompts_leave_room),
        cmocka_unit_test(a_short_sample_says_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
