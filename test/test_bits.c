// The released program's bits are those of the record (scripts/test-bits, which says what is compared and why).
#include "test/program.h"

static void same_bits_as_recorded(void **state) {
    (void)state;
    if (program_slowness() > 1) skip(); // sanitizers' builds round otherwise
    char script[PROGRAM_PATH];
    const char *const argv[] = {project_path(script, "scripts/test-bits"), train_gpt_path(), NULL};
    ProgramResult result = run_program(argv, 100);
    bool skipped = strncmp(result.out, "skipped: ", 9) == 0;
    if (skipped || result.exit_code != 0 || result.timed_out) print_message("%s%s", result.out, result.err);
    assert_int_equal(result.exit_code, 0);
    assert_false(result.timed_out);
    free_result(&result);
    if (skipped) skip();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_bits_as_recorded)};
    return cmocka_run_group_tests_name("bits", tests, NULL, NULL);
}
