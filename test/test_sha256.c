// SHA-256 of known texts, in pieces of any length; and a checkpoint's sums by another program.
#include "test/checkpoint_cases.h"

#include "checkpoint/sha256.h"

static void test_sha256(void **state) {
    (void)state;
    char hex[SHA256_HEX_CHARS], *million = malloc(1000000);
    Sha256 sum;
    assert_non_null(million);
    memset(million, 'a', 1000000);
    static const struct {
        size_t length;
        const char
            *hex; // NIST's examples, and lengths about the padding's boundaries (sha256sum's sums of so many "a")
    } cases[] = {
        {0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {1, "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"},
        {55, "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318"},
        {56, "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a"},
        {63, "7d3e74a05d7db15bce4ad9ec0658ea98e3f06eeecf16b4c6fff2da457ddc2f34"},
        {64, "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb"},
        {119, "31eba51c313a5c08226adf18d4a359cfdfd8d2e816b13f4af952f7ea6584dcfb"},
        {1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (size_t piece = 1; piece < 200000; piece = 3 * piece + 4) { // in pieces of any length
            sha256_begin(&sum);
            for (size_t done = 0; done < cases[i].length; done += piece)
                sha256_add(&sum, million + done, cases[i].length - done < piece ? cases[i].length - done : piece);
            sha256_end(&sum, hex);
            assert_string_equal(hex, cases[i].hex);
        }
    }
    sha256_begin(&sum);
    sha256_add(&sum, "abc", 3);
    sha256_end(&sum, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    free(million);
}

// The file is the one that the coreutils check.
static void test_sha256sum_agrees(void **state) {
    (void)state;
    save_good(&llama, &llama_table, 5, 0);
    if (system("sha256sum --version > /dev/null 2>&1") != 0) {
        print_message("# no sha256sum here: left out\n");
        return;
    }
    char command[2 * PROGRAM_PATH];
    snprintf(command, sizeof command, "cd '%s' && sha256sum --strict --quiet -c SHA256SUMS", in_out("step-00000005"));
    assert_int_equal(system(command), 0);
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, make_checkpoints, remove_folder)
    const struct CMUnitTest tests[] = {
        TEST(test_sha256),
        TEST(test_sha256sum_agrees),
    };
#undef TEST
    return cmocka_run_group_tests(tests, make_models, free_models);
}
