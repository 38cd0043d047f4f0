// What a data file is taken for: token numbers without a header are asked for, whatever they are numbers of; and no
// bytes are, whatever they are bytes of, even where they are called train.bin.
#include "test/token_files.h"

#include <math.h>

#include "base/random.h"

enum { NUMBERS = 40000 };

static uint32_t random_word(uint64_t i) { return philox4x32(5, 0, i).word[0]; }
static double random_real(uint64_t i) { return (double)random_word(i) / 4294967296.0; }

// ---- contents: the i-th number, or the i-th byte --------------------------------------------------------------------

static uint32_t frequent_tokens(uint64_t i) { return (uint32_t)pow(50257, random_real(i)); } // Zipf's law, nearly
static uint32_t uniform_tokens(uint64_t i) { return random_word(i) % 50257; }
static uint32_t small_vocabulary(uint64_t i) { return (uint32_t)pow(32000, random_real(i)); }
static uint32_t letters(uint64_t i) { return 1 + random_word(i) % 64; } // nanoGPT's vocabulary of characters
static uint32_t large_vocabulary(uint64_t i) { return (uint32_t)pow(128256, random_real(i)); }

static uint32_t text(uint64_t i) { return i % 61 == 60 ? '\n' : (uint32_t) "etaoin shrdlu"[random_word(i) % 13]; }
static uint32_t latin1(uint64_t i) { return random_word(i) % 9 == 0 ? 0xe0 + random_word(i) % 32 : text(i); }
static uint32_t utf8(uint64_t i) { return (i % 3 == 0 ? 0xe3 : 0x80 + random_word(i) % 64) & 0xff; } // Japanese, say
static uint32_t bases(uint64_t i) { return i % 71 == 70 ? '\n' : (uint32_t) "ACGT"[random_word(i) % 4]; }
static uint32_t any_bytes(uint64_t i) { return random_word(i) & 0xff; }
static uint32_t labels(uint64_t i) { return random_word(i) % 10; }
static uint32_t pixels(uint64_t i) { return random_word(i) % 5 != 0 ? 0 : random_word(i + NUMBERS) & 0xff; }
static uint32_t zeros(uint64_t i) { return (void)i, 0; }

static uint32_t sound(uint64_t i) { // 16 bits, signed
    int16_t sample = (int16_t)(3000 * sin(0.05 * (double)(i / 2)) + (double)(random_word(i / 2) % 200));
    return (uint32_t)((uint16_t)sample >> 8 * (i % 2)) & 0xff;
}

static uint32_t records(uint64_t i) { // of a database: small numbers in wide fields
    static const int width[] = {0, 1, 0, 0, 2, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    return width[i % 16] == 0 ? 0 : random_word(i) % (width[i % 16] == 2 ? 40 : 256);
}

static void write_content(const char *path, uint32_t (*content)(uint64_t), int width, size_t count) {
    unsigned char *bytes = malloc((size_t)width * count + 4);
    assert_non_null(bytes);
    for (size_t i = 0; i < count; i++) put_le32(bytes + (size_t)width * i, content(i)); // the next one overwrites
    write_file(path, bytes, (size_t)width * count);
    free(bytes);
}

// ---- auto -----------------------------------------------------------------------------------------------------------

static void ask_for(const char *path, const char *format) {
    Error err = {0};
    char option[40];
    TokenSource *source = tokens_open(&path, 1, TOKENS_AUTO, &err);
    if (source != NULL) fail_msg("%s is taken for %s", path, tokens_kind(source));
    snprintf(option, sizeof option, "give --data-format %s,", format);
    assert_int_equal(err.exit_code, EXIT_USAGE);
    assert_error(&err, path, option, "--data-format bytes if", NULL);
}

static void take_for_bytes(const char *path) {
    TokenSource *source = open_one(path);
    assert_true(tokens_are_bytes(source) && !tokens_without_header(source));
    tokens_close(source);
}

static void test_numbers_are_asked_for(void **state) {
    static const struct Numbers {
        uint32_t (*content)(uint64_t);
        int width;
    } numbers[] = {{frequent_tokens, 2},  {uniform_tokens, 2},  {small_vocabulary, 2},
                   {letters, 2},          {frequent_tokens, 4}, {uniform_tokens, 4},
                   {small_vocabulary, 4}, {letters, 4},         {large_vocabulary, 4}};
    static const size_t counts[] = {300, 5000, NUMBERS}; // a copied file, and mapped ones of one block and of more
    char path[PROGRAM_PATH];
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
            if (numbers[i].content == uniform_tokens && numbers[i].width == 2 && counts[k] == 300) continue;
            write_content(path_join(path, *state, "train.bin"), numbers[i].content, numbers[i].width, counts[k]);
            ask_for(path, numbers[i].width == 2 ? "uint16" : "uint32");
        }
    }
    write_content(path_join(path, *state, "tokens"), frequent_tokens, 2, NUMBERS);
    ask_for(path, "uint16");
    write_content(path_join(path, *state, "photo.raw"), frequent_tokens, 2, NUMBERS); // its name says otherwise
    take_for_bytes(path);
}

static void test_bytes_are_not(void **state) {
    static uint32_t (*const contents[])(uint64_t) = {text,   latin1, utf8,  bases, any_bytes,
                                                     labels, pixels, zeros, sound, records};
    static const size_t counts[] = {1, 2, 40, 600, 5000, 16 * NUMBERS};
    char path[PROGRAM_PATH];
    path_join(path, *state, "train.bin");
    for (size_t i = 0; i < sizeof contents / sizeof *contents; i++) {
        for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
            write_content(path, contents[i], 1, counts[k]);
            take_for_bytes(path);
        }
    }
    take_for_bytes("/proc/self/exe"); // machine code
}

// ---- what is said ---------------------------------------------------------------------------------------------------

static TokenSource *open_as(const char *path, TokenFormat format) {
    Error err = {0};
    TokenSource *source = tokens_open(&path, 1, format, &err);
    must(source != NULL, &err);
    return source;
}

static void refuse(const char *path, TokenFormat format, const char *says) {
    Error err = {0};
    TokenSource *source = tokens_open(&path, 1, format, &err);
    if (source != NULL) fail_msg("%s should not open", path);
    assert_int_equal(err.exit_code, EXIT_USAGE);
    assert_error(&err, path, says, NULL);
}

static void test_numbers_as_said(void **state) {
    char path[PROGRAM_PATH];
    static int32_t token[NUMBERS];
    Error err = {0};
    for (int width = 2; width <= 4; width += 2) {
        write_content(path_join(path, *state, "train.bin"), frequent_tokens, width, NUMBERS);
        TokenSource *source = open_as(path, width == 2 ? TOKENS_UINT16 : TOKENS_UINT32);
        assert_int_equal(tokens_count(source), NUMBERS);
        assert_int_equal(tokens_vocabulary(source), width == 2 ? 50257 : 128256);
        assert_true(tokens_without_header(source));
        assert_string_equal(tokens_kind(source), width == 2 ? "uint16 tokens" : "uint32 tokens");
        must(tokens_read(source, 0, NUMBERS, 50257, token, &err), &err);
        for (uint64_t i = 0; i < NUMBERS; i++) assert_int_equal(token[i], frequent_tokens(i));
        tokens_close(source);
        source = open_as(path, TOKENS_BYTES);
        assert_int_equal(tokens_count(source), width * NUMBERS + 1);
        tokens_close(source);
    }
}

static void test_what_contradicts_is_refused(void **state) {
    char path[PROGRAM_PATH];
    static const uint32_t token[300] = {1, 2, 3};
    write_shard(path_join(path, *state, "shard"), 2, token, 300);
    refuse(path, TOKENS_UINT16, "llm.c's header");
    refuse(path, TOKENS_UINT32, "llm.c's header");
    tokens_close(open_as(path, TOKENS_LLMC));
    tokens_close(open_as(path, TOKENS_BYTES));

    write_content(path_join(path, *state, "text"), text, 1, 4000);
    refuse(path, TOKENS_UINT16, "is text");
    refuse(path, TOKENS_UINT32, "is text");
    refuse(path, TOKENS_LLMC, "no token shard");

    write_content(path_join(path, *state, "cut"), frequent_tokens, 2, 1001);
    refuse(path, TOKENS_UINT32, "2002 bytes, which is no multiple of 4");
    assert_int_equal(truncate(path, 2001), 0);
    refuse(path, TOKENS_UINT16, "2001 bytes, which is no multiple of 2");

    write_file(path_join(path, *state, "a.npy"), "\x93NUMPY\x01\x00v\x00{'descr': '<u2'}", 26);
    refuse(path, TOKENS_AUTO, "a NumPy array");
    refuse(path, TOKENS_UINT16, "a NumPy array");
    tokens_close(open_as(path, TOKENS_BYTES));
}

#define TEST_WITH_FOLDER(f) cmocka_unit_test_setup_teardown(f, temp_folder_setup, temp_folder_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST_WITH_FOLDER(test_numbers_are_asked_for), TEST_WITH_FOLDER(test_bytes_are_not),
        TEST_WITH_FOLDER(test_numbers_as_said),       TEST_WITH_FOLDER(test_what_contradicts_is_refused),
    };
    return cmocka_run_group_tests_name("token kinds", tests, NULL, NULL);
}
