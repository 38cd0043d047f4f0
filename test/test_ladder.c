// The ladder of attention kernels (dev/ladder/), every step against double precision, on the emulated device. 65
// tokens: a whole tile of 64 and one more.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "test/program.h"

static void run_ladder(const char *head_dim) {
    char path[PROGRAM_PATH];
    Command command = {0};
    add_words(&command, project_path(path, "dev/ladder-emulated"), "65", head_dim, NULL);
    ProgramResult result = run_command(&command, 60);
    int steps = 0;
    for (const char *line = result.out; (line = strstr(line, " error ")) != NULL; line++) steps++;
    if (result.exit_code != 0 || steps != 6)
        fail_msg("D = %s: exit code %d, %d steps: %s%s", head_dim, result.exit_code, steps, result.out, result.err);
    free_result(&result);
}

static void test_every_step(void **state) {
    (void)state;
#ifdef HAVE_EMULATED
    run_ladder("64");
    run_ladder("128");
#else
    print_message("# skipped: built without CUDA on the CPU\n");
    skip();
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_step)};
    return cmocka_run_group_tests_name("ladder", tests, NULL, NULL);
}
