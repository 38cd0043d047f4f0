// The bigram yardstick against its formula, and on texts whose entropy is known.
#include "test/token_files.h"

#include <math.h>

#include "base/random.h"
#include "dataloader/bigram.h"

enum { V = BYTE_VOCABULARY };

static TokenSource *open_text(const unsigned char *text, size_t size) {
    Error err = {0};
    TokenSource *source = tokens_open_memory(text, size, &err);
    must(source != NULL, &err);
    return source;
}

// The loss of a model fitted on all of `training` over the windows of T tokens that start at the given places.
static double measure(const TokenSource *training, const TokenSource *validation, int64_t T, const int64_t *first,
                      int64_t windows) {
    Loader loader;
    Error err = {0};
    must(loader_init(&loader, validation, 0, tokens_count(validation), T, 0, false, &err), &err);
    double loss;
    must(bigram_loss(training, 0, tokens_count(training), &loader, first, windows, &loss, &err), &err);
    return loss;
}

// English-like statistics from nothing: a text of `letters` symbols in which each is followed by one of two.
static void write_text(unsigned char *text, size_t size, int letters, uint64_t seed) {
    int letter = 0;
    for (size_t i = 0; i < size; i++) {
        text[i] = (unsigned char)('a' + letter);
        letter = (2 * letter + (random_uniform(seed, 0, i) < 0.25)) % letters;
    }
}

// The formula written down again, in the simplest way, over tokens.
typedef struct Naive {
    double pair[V][V], first[V], second[V], total;
} Naive;

static void naive_count(Naive *n, const int32_t *token, int64_t begin, int64_t end) {
    *n = (Naive){0};
    for (int64_t i = begin; i + 1 < end; i++) {
        n->pair[token[i]][token[i + 1]]++;
        n->first[token[i]]++;
        n->second[token[i + 1]]++;
        n->total++;
    }
}

static double naive_loss(const Naive *n, double alpha, const int32_t *token, int64_t begin, int64_t end) {
    double sum = 0.0;
    for (int64_t i = begin; i + 1 < end; i++) {
        int a = token[i], b = token[i + 1];
        double unigram = (n->second[b] + 1) / (n->total + V);
        sum -= log((n->pair[a][b] + alpha * unigram) / (n->first[a] + alpha));
    }
    return sum / (double)(end - begin - 1);
}

// Both sum the same terms, in different orders: relative rounding errors below N 2^-53 = 4e-13 for N = 4,000 terms.
static void test_against_the_formula(void **state) {
    (void)state;
    enum { SIZE = 4000, COUNT = SIZE + 1 };
    static unsigned char text[SIZE], other[SIZE];
    static int32_t token[COUNT], held_out[COUNT];
    write_text(text, SIZE, 23, 1);
    write_text(other, SIZE, 23, 2);
    memcpy(other, "\xff\xfe\n", 3); // and some that the model has never seen
    TokenSource *training = open_text(text, SIZE), *validation = open_text(other, SIZE);
    Error err = {0};
    must(tokens_read(training, 0, COUNT, V, token, &err), &err);
    must(tokens_read(validation, 0, COUNT, V, held_out, &err), &err);

    Naive *n = malloc(sizeof *n);
    assert_non_null(n);
    int64_t cut = COUNT - COUNT / 10;
    naive_count(n, token, 0, cut);
    double alpha = 0.0, least = INFINITY;
    for (double candidate = 0x1p-6; candidate <= 0x1p20; candidate *= 2) {
        double loss = naive_loss(n, candidate, token, cut - 1, COUNT);
        if (loss < least) least = loss, alpha = candidate;
    }
    naive_count(n, token, 0, COUNT);
    int64_t all = 0;
    double expected = naive_loss(n, alpha, held_out, 0, COUNT);
    assert_true(fabs(measure(training, validation, SIZE, &all, 1) - expected) < 4e-13 * expected);

    int64_t some[] = {0, 1000, 1500, 3900}; // the mean over windows, which may overlap
    expected = 0.0;
    for (int i = 0; i < 4; i++) expected += naive_loss(n, alpha, held_out, some[i], some[i] + 101) / 4;
    assert_true(fabs(measure(training, validation, 100, some, 4) - expected) < 4e-13 * expected);
    free(n);
    tokens_close(training);
    tokens_close(validation);
}

// exp(-loss) of windows of one target is p(b | a); over all b, seen or not, these add up to 1. The last b is the end of
// the document. 257 roundings of 2^-53, and those of log and exp of numbers up to 16: 1e-12 is ample.
static void test_probabilities_add_up(void **state) {
    (void)state;
    enum { SIZE = 3000 };
    static unsigned char text[SIZE], pairs[2 * 256 + 1];
    write_text(text, SIZE, 26, 3);
    TokenSource *training = open_text(text, SIZE);
    static const unsigned char contexts[] = {'a', 'q', 0};
    for (int c = 0; c < 3; c++) {
        for (int b = 0; b < 256; b++) {
            pairs[2 * b] = contexts[c];
            pairs[2 * b + 1] = (unsigned char)b;
        }
        pairs[512] = contexts[c];
        TokenSource *validation = open_text(pairs, sizeof pairs);
        double sum = 0.0;
        for (int64_t b = 0; b < V; b++) {
            int64_t first = 2 * b;
            sum += exp(-measure(training, validation, 1, &first, 1));
        }
        assert_true(fabs(sum - 1.0) < 1e-12);
        tokens_close(validation);
    }
    tokens_close(training);
}

// Random bytes: nothing can be learned, so the loss is at least ln 256 less chance, and smoothing keeps it near: counting
// noise of N = 200,000 bytes over 256 unigrams costs about 256 / 2N = 6e-4 nats, and the 100,000 targets have a chance of
// their own below 1e-3. Without smoothing, three observations per pair would cost some 0.2 nats, or infinity.
static void test_random_bytes(void **state) {
    (void)state;
    enum { SIZE = 200000, T = 100000 };
    unsigned char *text = malloc(SIZE), *other = malloc(T);
    assert_true(text && other);
    for (uint64_t i = 0; i < SIZE; i++) text[i] = (unsigned char)philox4x32(1, 2, i).word[0];
    for (uint64_t i = 0; i < T; i++) other[i] = (unsigned char)philox4x32(1, 3, i).word[0];
    TokenSource *training = open_text(text, SIZE), *validation = open_text(other, T);
    int64_t first = 0;
    double loss = measure(training, validation, T, &first, 1);
    assert_true(loss > log(256) - 5e-3 && loss < log(256) + 5e-3);
    tokens_close(training);
    tokens_close(validation);
    free(text), free(other);
}

// A source of 20 letters, each followed by one of two with chances 1/4 and 3/4: its entropy is 0.562 nats a letter. The
// validation sample's own mean deviates by 0.48 / sqrt(100,000) = 0.0015; five times that is allowed.
static void test_known_entropy(void **state) {
    (void)state;
    enum { SIZE = 100000 };
    unsigned char *text = malloc(SIZE), *other = malloc(SIZE);
    assert_true(text && other);
    write_text(text, SIZE, 20, 4);
    write_text(other, SIZE, 20, 5);
    TokenSource *training = open_text(text, SIZE), *validation = open_text(other, SIZE);
    int64_t first = 0;
    double loss = measure(training, validation, SIZE - 1, &first, 1);
    double entropy = -0.25 * log(0.25) - 0.75 * log(0.75);
    assert_true(fabs(loss - entropy) < 5 * 0.0015);
    tokens_close(training);
    tokens_close(validation);
    free(text), free(other);
}

static void test_tiny_training_text(void **state) {
    (void)state;
    static const unsigned char text[] = "a", other[] = "zebra";
    TokenSource *training = open_text(text, 1), *validation = open_text(other, 5);
    int64_t first = 0;
    double loss = measure(training, validation, 5, &first, 1);
    assert_true(isfinite(loss) && loss > 0);
    tokens_close(training);
    tokens_close(validation);
}

// Of bases V is 6: after "A, end" a pair never seen has p = (0 + 1 x (0 + 1) / (1 + V)) / (0 + 1), and the pair itself
// (1 + 1 x (1 + 1) / (1 + V)) / (1 + 1).
static void test_small_vocabulary(void **state) {
    static const char *const names[] = {"a.fa", "b.fa"}, *const texts[] = {">a\nA\n", ">b\nCCA\n"};
    TokenSource *source[2];
    char path[PROGRAM_PATH];
    for (int i = 0; i < 2; i++) {
        write_file(path_join(path, *state, names[i]), texts[i], strlen(texts[i]));
        source[i] = open_one(path);
    }
    int64_t unseen = 0, seen = 2;
    assert_true(fabs(measure(source[0], source[1], 1, &unseen, 1) - log(7.0)) < 1e-12);
    assert_true(fabs(measure(source[0], source[1], 1, &seen, 1) + log((1 + 2.0 / 7) / 2)) < 1e-12);
    tokens_close(source[0]);
    tokens_close(source[1]);
}

static void test_errors(void **state) {
    char path[PROGRAM_PATH];
    write_shard(path_join(path, *state, "a.bin"), 2, (uint32_t[10]){0}, 10);
    TokenSource *shard = open_one(path), *text = open_text((const unsigned char *)"some text", 9);
    Loader loader;
    Error err = {0};
    must(loader_init(&loader, text, 0, 10, 4, 0, false, &err), &err);
    int64_t first = 0, wrong = 6;
    double loss;
    assert_false(bigram_loss(shard, 0, 10, &loader, &first, 1, &loss, &err));
    assert_error(&err, "a.bin", "bytes", NULL);
    write_file(path_join(path, *state, "a.fa"), ">a\nACGT\n", 8);
    TokenSource *bases = open_one(path);
    assert_false(bigram_loss(bases, 0, 5, &loader, &first, 1, &loss, &err)); // measured on another kind
    assert_error(&err, "the built-in text holds bytes", NULL);
    tokens_close(bases);
    assert_false(bigram_loss(text, 0, 10, &loader, &first, 0, &loss, &err));
    assert_error(&err, "window", NULL);
    assert_false(bigram_loss(text, 3, 4, &loader, &first, 1, &loss, &err));
    assert_false(bigram_loss(text, 0, 10, &loader, &wrong, 1, &loss, &err));
    assert_error(&err, "asked for", NULL);
    tokens_close(shard);
    tokens_close(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_the_formula),
        cmocka_unit_test(test_probabilities_add_up),
        cmocka_unit_test(test_random_bytes),
        cmocka_unit_test(test_known_entropy),
        cmocka_unit_test(test_tiny_training_text),
        cmocka_unit_test_setup_teardown(test_small_vocabulary, temp_folder_setup, temp_folder_teardown),
        cmocka_unit_test_setup_teardown(test_errors, temp_folder_setup, temp_folder_teardown),
    };
    return cmocka_run_group_tests_name("bigram", tests, NULL, NULL);
}
