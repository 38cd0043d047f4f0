// The loader serves each token of an epoch's windows once, whatever the ranks, the batch size and the interruptions.
//
// The data are shards of uint32 tokens in which each token is its own place, so what arrives says where it came from.
#include "test/token_files.h"

#include "dataloader/loader.h"

enum { VOCABULARY = 128256, MAX_RANKS = 8 };

// A source of `count` tokens 0, 1, 2, ... in several files.
static TokenSource *open_places(const char *folder, int64_t count) {
    enum { FILES = 3 };
    char path[FILES][PROGRAM_PATH], name[16];
    const char *argument[FILES];
    uint32_t *token = malloc((size_t)count * sizeof *token);
    assert_non_null(token);
    for (int64_t i = 0; i < count; i++) token[i] = (uint32_t)i;
    for (int f = 0; f < FILES; f++) {
        int64_t begin = f * count / FILES, end = (f + 1) * count / FILES;
        snprintf(name, sizeof name, "%d.bin", f);
        write_shard(path_join(path[f], folder, name), 4, token + begin, (size_t)(end - begin));
        argument[f] = path[f];
    }
    free(token);
    Error err = {0};
    TokenSource *source = tokens_open(argument, FILES, TOKENS_AUTO, &err);
    must(source != NULL, &err);
    return source;
}

static Loader start(const TokenSource *source, int64_t begin, int64_t end, int64_t context, uint64_t seed,
                    bool shuffle) {
    Loader loader;
    Error err = {0};
    must(loader_init(&loader, source, begin, end, context, seed, shuffle, &err), &err);
    return loader;
}

// Serves one window to P ranks, counts the inputs, and checks targets and positions against them.
static void serve(const Loader *loader, int64_t first, int ranks, int *served) {
    int64_t T = loader->context, total = 0;
    int32_t *inputs = malloc((size_t)T * sizeof *inputs), *targets = malloc((size_t)T * sizeof *targets);
    int32_t *positions = malloc((size_t)T * sizeof *positions);
    assert_true(inputs && targets && positions);
    Error err = {0};
    for (int rank = 0; rank < ranks; rank++) {
        Shard shard = shard_of(T, ranks, rank);
        must(loader_read(loader, first, &shard, VOCABULARY, inputs, targets, positions, &err), &err);
        for (int64_t i = 0; i < shard.tokens; i++) {
            assert_in_range(positions[i], 0, T - 1);
            assert_int_equal(inputs[i], first + positions[i]);
            assert_int_equal(targets[i], inputs[i] + 1);
            served[inputs[i]]++;
        }
        int64_t n = 0; // in the order of the shard
        for (int c = 0; c < shard.count; c++)
            for (int64_t i = 0; i < shard.chunk[c].length; i++)
                assert_int_equal(positions[n++], shard.chunk[c].start + i);
        assert_int_equal(n, shard.tokens);
        total += shard.tokens;
    }
    assert_int_equal(total, T);
    free(inputs), free(targets), free(positions);
}

// Over an epoch the tokens of the grid are inputs once, all others never; the grid is as long as fits into the split.
static void check_epoch(Loader *loader, int ranks, int64_t batch) {
    int64_t count = tokens_count(loader->source), windows = loader_windows(loader), T = loader->context;
    int *served = calloc((size_t)count, sizeof *served);
    int64_t *first = malloc((size_t)(windows + batch) * sizeof *first);
    assert_true(served && first);
    for (int64_t i = 0; i < windows; i += batch) {
        int64_t n = windows - i < batch ? windows - i : batch; // this epoch's part of the last batch
        loader_next(loader, n, first + i);
    }
    for (int64_t i = 0; i < windows; i++) serve(loader, first[i], ranks, served);

    int64_t grid = loader->begin;
    while (grid < loader->end && served[grid] == 0) grid++;
    assert_true(grid + windows * T + 1 <= loader->end);
    assert_true(loader->end - loader->begin < (windows + 1) * T + 1);
    for (int64_t i = 0; i < count; i++) assert_int_equal(served[i], i >= grid && i < grid + windows * T);
    free(first);
    free(served);
}

static void test_every_token_once(void **state) {
    TokenSource *source = open_places(*state, 2000);
    static const int64_t contexts[] = {16, 37, 129, 1000};
    for (size_t t = 0; t < 4; t++) {
        for (int ranks = 1; ranks <= MAX_RANKS; ranks++) {
            for (int shuffle = 0; shuffle < 2; shuffle++) {
                Loader loader = start(source, 101, 1900, contexts[t], 7, shuffle);
                for (int epoch = 0; epoch < 3; epoch++) {
                    check_epoch(&loader, ranks, 1 + 3 * epoch);
                    assert_int_equal(loader.state.epoch, epoch);
                }
            }
        }
    }
    tokens_close(source);
}

static void test_smallest_windows(void **state) {
    TokenSource *source = open_places(*state, 60);
    for (int64_t T = 1; T <= 20; T++) {
        for (int ranks = 1; ranks <= MAX_RANKS && 2 * ranks <= T; ranks++) {
            for (int64_t count = T + 1; count <= 3 * T; count++) {
                Loader loader = start(source, 0, count, T, 3, true);
                assert_int_equal(loader_windows(&loader), (count - 1) / T);
                check_epoch(&loader, ranks, 2);
            }
        }
    }
    tokens_close(source);
}

// The windows come in one order however many are asked for at a time, through the ends of epochs.
static void test_batches_do_not_matter(void **state) {
    TokenSource *source = open_places(*state, 1000);
    enum { N = 420 }; // windows; an epoch has 30, which 4, 7 and 420 do not divide or do
    int64_t one_by_one[N], in_batches[N];
    Loader loader = start(source, 0, 1000, 33, 5, true);
    assert_int_equal(loader_windows(&loader), 30);
    for (int i = 0; i < N; i++) loader_next(&loader, 1, &one_by_one[i]);
    static const int64_t batches[] = {2, 4, 7, 60, N};
    for (size_t b = 0; b < 5; b++) {
        loader = start(source, 0, 1000, 33, 5, true);
        for (int64_t i = 0; i < N; i += batches[b]) loader_next(&loader, batches[b], &in_batches[i]);
        assert_memory_equal(one_by_one, in_batches, sizeof one_by_one);
        assert_int_equal(loader.state.epoch, N / 30 - 1);
        assert_int_equal(loader.state.cursor, 30);
    }
    tokens_close(source);
}

// A loader that is given the two numbers continues as the first one would have, from any point.
static void test_resume_is_exact(void **state) {
    TokenSource *source = open_places(*state, 1000);
    enum { N = 100, MORE = 40 };
    Loader loader = start(source, 50, 990, 40, 11, true);
    for (int served = 0; served < N; served++) {
        Loader resumed = start(source, 50, 990, 40, 11, true);
        resumed.state = loader.state;
        Loader continued = loader;
        int64_t a[MORE], b[MORE];
        loader_next(&continued, MORE, a);
        loader_next(&resumed, MORE, b);
        assert_memory_equal(a, b, sizeof a);
        int64_t ignored;
        loader_next(&loader, 1, &ignored);
    }
    tokens_close(source);
}

static void take_epoch(const TokenSource *source, uint64_t seed, uint64_t epoch, bool shuffle, int64_t out[30]) {
    Loader loader = start(source, 0, 1000, 33, seed, shuffle);
    assert_int_equal(loader_windows(&loader), 30);
    loader.state = (LoaderState){epoch, 0};
    loader_next(&loader, 30, out);
}

// In how many places two orders of 30 windows agree, wherever their grids start: by chance, in about one.
static int same_places(const int64_t a[30], const int64_t b[30]) {
    int64_t least_a = a[0], least_b = b[0];
    for (int i = 0; i < 30; i++) {
        if (a[i] < least_a) least_a = a[i];
        if (b[i] < least_b) least_b = b[i];
    }
    int same = 0;
    for (int i = 0; i < 30; i++) same += a[i] - least_a == b[i] - least_b;
    return same;
}

static void test_order_differs_by_epoch_and_seed(void **state) {
    TokenSource *source = open_places(*state, 1000);
    int64_t reference[30], other[30];
    for (uint64_t seed = 1; seed <= 5; seed++) {
        take_epoch(source, seed, 0, true, reference);
        take_epoch(source, seed, 0, true, other);
        assert_int_equal(same_places(reference, other), 30);
        for (uint64_t epoch = 1; epoch <= 5; epoch++) {
            take_epoch(source, seed, epoch, true, other);
            assert_in_range(same_places(reference, other), 0, 10);
        }
        take_epoch(source, seed + 100, 0, true, other);
        assert_in_range(same_places(reference, other), 0, 10);
        take_epoch(source, seed, 0, false, other);
        assert_in_range(same_places(reference, other), 0, 10);
    }
    for (uint64_t epoch = 0; epoch < 3; epoch++) { // unshuffled: from the beginning, in order, always
        take_epoch(source, 1, epoch, false, other);
        for (int i = 0; i < 30; i++) assert_int_equal(other[i], 33 * i);
    }
    tokens_close(source);
}

// With one window of T = 40 among 60 tokens there are 20 places for it to start; 400 epochs see each of them (one is
// missed by chance once in 40 million runs, and the seed is fixed), so no token is left out for good.
static void test_the_grid_moves(void **state) {
    TokenSource *source = open_places(*state, 60);
    Loader loader = start(source, 0, 60, 40, 2, true);
    int seen[20] = {0};
    for (int epoch = 0; epoch < 400; epoch++) {
        int64_t first;
        loader_next(&loader, 1, &first);
        assert_in_range(first, 0, 19);
        seen[first]++;
    }
    for (int i = 0; i < 20; i++) assert_true(seen[i] > 0);
    tokens_close(source);
}

static void test_end_of_document_is_served(void **state) {
    (void)state;
    Error err = {0};
    TokenSource *source = tokens_open_memory("abcdef", 6, &err);
    assert_non_null(source);
    Loader loader = start(source, 0, 7, 6, 0, false);
    Shard shard = shard_of(6, 3, 2);
    int64_t first;
    int32_t inputs[6], targets[6];
    loader_next(&loader, 1, &first);
    must(loader_read(&loader, first, &shard, BYTE_VOCABULARY, inputs, targets, NULL, &err), &err);
    assert_int_equal(shard.tokens, 2); // chunks 2 and 3 of 6
    assert_int_equal(inputs[0], 'c');
    assert_int_equal(targets[0], 'd');
    assert_int_equal(targets[1], 'e');
    shard = shard_of(6, 3, 0);
    must(loader_read(&loader, first, &shard, BYTE_VOCABULARY, inputs, targets, NULL, &err), &err);
    assert_int_equal(inputs[1], 'f');
    assert_int_equal(targets[1], TOKEN_END_OF_DOCUMENT);
    tokens_close(source);
}

// Files are documents, and so are lines if one says so; a window knows nothing of what came before it.
static void test_documents_of_a_window(void **state) {
    char path[2][PROGRAM_PATH];
    const char *argument[] = {path[0], path[1]};
    write_file(path_join(path[0], *state, "a"), "ab\nc", 4);
    write_file(path_join(path[1], *state, "b"), "d\n\nef", 5);
    Error err = {0};
    TokenSource *source = tokens_open(argument, 2, TOKENS_BYTES, &err); // a b \n c end d \n \n e f end
    must(source != NULL, &err);
    Loader loader = start(source, 0, 11, 9, 0, false);
    int32_t first[9];
    const int32_t files[] = {0, 0, 0, 0, 4, 4, 4, 4, 4}, lines[] = {0, 0, 2, 2, 2, 2, 6, 7, 7};
    must(loader_read_documents(&loader, 1, BYTE_VOCABULARY, TOKEN_END_OF_DOCUMENT, first, &err), &err);
    assert_memory_equal(first, files, sizeof first);
    must(loader_read_documents(&loader, 1, BYTE_VOCABULARY, '\n', first, &err), &err);
    assert_memory_equal(first, lines, sizeof first);
    tokens_close(source);
}

// A window that is cut into sequences serves the same inputs and targets, in the same order, at positions from 0; so the
// place in the data is the same.
static void test_windows_are_cut(void **state) {
    TokenSource *source = open_places(*state, 1000);
    Loader whole = start(source, 0, 1000, 48, 5, true), cut = whole;
    Shard all = shard_of(48, 1, 0), piece = shard_of(12, 1, 0);
    Error err = {0};
    cut.sequence = 12;
    for (int step = 0; step < 30; step++) { // into the second epoch
        int64_t window[2], sequence[8];
        int32_t x[48], y[48], z[48], inputs[12], targets[12], positions[12];
        loader_next(&whole, 2, window);
        loader_next(&cut, 8, sequence);
        assert_memory_equal(&whole.state, &cut.state, sizeof cut.state);
        for (int i = 0; i < 8; i++) {
            must(loader_read(&whole, window[i / 4], &all, VOCABULARY, x, y, z, &err), &err);
            must(loader_read(&cut, sequence[i], &piece, VOCABULARY, inputs, targets, positions, &err), &err);
            assert_memory_equal(inputs, x + i % 4 * 12, sizeof inputs);
            assert_memory_equal(targets, y + i % 4 * 12, sizeof targets);
            assert_memory_equal(positions, z, sizeof positions);
        }
    }
    tokens_close(source);
}

static void test_bad_token_is_reported(void **state) {
    TokenSource *source = open_places(*state, 100);
    Loader loader = start(source, 0, 100, 50, 0, false);
    Shard shard = shard_of(50, 2, 0);
    int32_t inputs[50], targets[50];
    Error err = {0};
    // Rank 0 of 2 owns [0, 12) and [37, 50). A vocabulary of 50 lacks only its last target, in the second file.
    assert_false(loader_read(&loader, 0, &shard, 50, inputs, targets, NULL, &err));
    assert_error(&err, "1.bin", "token 50 at place 17", NULL);
    must(loader_read(&loader, 0, &shard, 51, inputs, targets, NULL, &err), &err);
    shard = shard_of(50, 2, 1); // which another rank does not read
    must(loader_read(&loader, 0, &shard, 50, inputs, targets, NULL, &err), &err);
    tokens_close(source);
}

static void test_split(void **state) {
    TokenSource *source = open_places(*state, 1234);
    Error err = {0};
    int64_t train_end;
    must(loader_split(source, 122, &train_end, &err), &err);
    assert_int_equal(train_end, 1234 - 123);
    assert_false(loader_split(source, 123, &train_end, &err));
    assert_error(&err, "0.bin", "1234", "123", "--val-data", "--context", NULL);
    tokens_close(source);
}

static void test_too_short(void **state) {
    TokenSource *source = open_places(*state, 100);
    Error err = {0};
    Loader loader;
    must(loader_init(&loader, source, 10, 21, 10, 0, true, &err), &err);
    assert_int_equal(loader_windows(&loader), 1);
    assert_false(loader_init(&loader, source, 10, 20, 10, 0, true, &err));
    assert_int_equal(err.exit_code, EXIT_RUNTIME);
    assert_error(&err, "0.bin", "10 tokens", "--context 10", NULL);
    assert_false(loader_init(&loader, source, 0, 101, 10, 0, true, &err));
    assert_false(loader_init(&loader, source, 0, 100, 0, 0, true, &err));
    assert_int_equal(err.exit_code, EXIT_USAGE);
    tokens_close(source);
}

#define TEST_WITH_FOLDER(f) cmocka_unit_test_setup_teardown(f, temp_folder_setup, temp_folder_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST_WITH_FOLDER(test_every_token_once),
        TEST_WITH_FOLDER(test_windows_are_cut),
        TEST_WITH_FOLDER(test_smallest_windows),
        TEST_WITH_FOLDER(test_batches_do_not_matter),
        TEST_WITH_FOLDER(test_resume_is_exact),
        TEST_WITH_FOLDER(test_order_differs_by_epoch_and_seed),
        TEST_WITH_FOLDER(test_the_grid_moves),
        cmocka_unit_test(test_end_of_document_is_served),
        TEST_WITH_FOLDER(test_documents_of_a_window),
        TEST_WITH_FOLDER(test_bad_token_is_reported),
        TEST_WITH_FOLDER(test_split),
        TEST_WITH_FOLDER(test_too_short),
    };
    return cmocka_run_group_tests_name("loader", tests, NULL, NULL);
}
