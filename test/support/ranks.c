// Bodies of test/ranks.h.
#include "test/ranks.h"

#include "test/folder.h"

const char *own_path(void) {
    static char path[PROGRAM_PATH];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length <= 0) fail_msg("cannot tell where this test lies: %s", strerror(errno));
    path[length] = 0;
    return path;
}

// Why not, or NULL: a program that has nothing to do with MPI must come to its end under mpirun.
static const char *why_no_mpirun(void) {
    static char reason[300];
    static bool asked = false;
    Command probe = {0};
    if (asked) return reason[0] ? reason : NULL;
    asked = true;
    if (!add_mpirun(&probe, 1)) {
        snprintf(reason, sizeof reason, "no mpirun here");
        return reason;
    }
    add_word(&probe, "true");
    ProgramResult result = run_program(probe.argv, 20);
    if (result.exit_code != 0)
        snprintf(reason, sizeof reason, "mpirun cannot start programs here (exit code %d): %.200s", result.exit_code,
                 result.err);
    free_result(&result);
    return reason[0] ? reason : NULL;
}

bool mpi_can_be_tested(void) {
    const char *reason = NULL;
#ifdef __SANITIZE_THREAD__
    reason = "ThreadSanitizer reports what happens inside the MPI library";
#endif
    if (!comm_has_mpi()) reason = "built without MPI";
    else if (!reason) reason = why_no_mpirun();
    if (reason) print_message("skipped: %s\n", reason);
    return reason == NULL;
}

void add_mpirun_in_folder(Command *command, int ranks) {
    static int launches = 0;
    static char variable[PROGRAM_PATH]; // until the program has started
    int length = snprintf(variable, sizeof variable, "TMPDIR=%s/%d", folder, launches++);
    if (length >= (int)sizeof variable || mkdir(strchr(variable, '/'), 0700) != 0) fail_msg("cannot make %s", variable);
    add_words(command, "env", variable, NULL);
    add_mpirun(command, ranks);
}

void set_place(const char *rank, const char *size, const char *address, const char *port) {
    const char *const given[][2] = {
        {"RANK", rank}, {"WORLD_SIZE", size}, {"MASTER_ADDR", address}, {"MASTER_PORT", port}};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++) {
        if (given[i][1] != NULL) setenv(given[i][0], given[i][1], 1);
        else unsetenv(given[i][0]);
    }
}

static void add_option(const char *variable, const char *option) {
    char options[1000];
    const char *given = getenv(variable);
    snprintf(options, sizeof options, "%s%s%s", given ? given : "", given && *given ? ":" : "", option);
    setenv(variable, options, 1);
}

void pass_over_what_is_not_ours(void) {
    add_option("ASAN_OPTIONS", "detect_leaks=0");
    add_option("TSAN_OPTIONS", "report_thread_leaks=0:atexit_sleep_ms=0");
}
