// The ladder of attention kernels (dev/ladder/), every step against double precision, on the emulated device: the first
// six steps on one like an A100, all nine on one like an H100. 65 tokens: a whole tile of 64 and one more; 300: blocks
// of 128 and 192 queries with whole and masked tiles.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "test/program.h"

static void run_ladder(const char *arch, const char *tokens, const char *head_dim, const char *first, int wanted) {
    char path[PROGRAM_PATH];
    Command command = {0};
    add_words(&command, "env", arch, project_path(path, "dev/ladder-emulated"), tokens, head_dim, "1", first, NULL);
    ProgramResult result = run_command(&command, 60);
    int steps = 0;
    for (const char *line = result.out; (line = strstr(line, " error ")) != NULL; line++) steps++;
    if (result.exit_code != 0 || steps != wanted)
        fail_msg("%s, D = %s: exit code %d, %d steps: %s%s", arch, head_dim, result.exit_code, steps, result.out,
                 result.err);
    free_result(&result);
}

static void test_every_step(void **state) {
    (void)state;
#ifdef HAVE_EMULATED
    run_ladder("EMULATED_ARCH=80", "65", "64", "1", 6);
    run_ladder("EMULATED_ARCH=80", "65", "128", "1", 6);
    run_ladder("EMULATED_ARCH=90", "65", "64", "6", 4);
    run_ladder("EMULATED_ARCH=90", "300", "128", "7", 3);
#else
    print_message("# skipped: built without CUDA on the CPU\n");
    skip();
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_step)};
    return cmocka_run_group_tests_name("ladder", tests, NULL, NULL);
}
