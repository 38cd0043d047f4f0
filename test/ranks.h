// For tests that start themselves again as ranks: under mpirun, or as a program that is to fail.
#ifndef TEST_RANKS_H
#define TEST_RANKS_H

#include "comm/comm.h"
#include "test/program.h"

static inline const char *own_path(void) {
    static char path[PROGRAM_PATH];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length <= 0) fail_msg("cannot tell where this test lies: %s", strerror(errno));
    path[length] = 0;
    return path;
}

static inline bool mpi_can_be_tested(void) {
    Command probe = {0};
    const char *reason = NULL;
#ifdef __SANITIZE_THREAD__
    reason = "ThreadSanitizer reports what happens inside the MPI library";
#endif
    if (!comm_has_mpi()) reason = "built without MPI";
    else if (!reason && !add_mpirun(&probe, 1)) reason = "no mpirun here";
    if (reason) print_message("skipped: %s\n", reason);
    return reason == NULL;
}

// Programs under mpirun that start at the same moment trip over each other in its temporary folder: each gets its own
// inside `folder`.
static inline void add_mpirun_in(Command *command, int ranks, const char *folder) {
    static int launches = 0;
    static char variable[PROGRAM_PATH]; // until the program has started
    int length = snprintf(variable, sizeof variable, "TMPDIR=%s/%d", folder, launches++);
    if (length >= (int)sizeof variable || mkdir(strchr(variable, '/'), 0700) != 0) fail_msg("cannot make %s", variable);
    add_words(command, "env", variable, NULL);
    add_mpirun(command, ranks);
}

static inline int make_folder_for_ranks(void **state) {
    static char folder[PROGRAM_PATH];
    *state = make_temp_folder(folder);
    return 0;
}
static inline int remove_folder_of_ranks(void **state) {
    remove_tree(*state);
    return 0;
}

static inline void add_option(const char *variable, const char *option) {
    char options[1000];
    const char *given = getenv(variable);
    snprintf(options, sizeof options, "%s%s%s", given ? given : "", given && *given ? ":" : "", option);
    setenv(variable, options, 1);
}

// Of the programs this test starts, sanitizers shall not report what the MPI library never frees, nor that a program
// that ends at once, as a failing one must, leaves threads unjoined.
static inline void pass_over_what_is_not_ours(void) {
    add_option("ASAN_OPTIONS", "detect_leaks=0");
    add_option("TSAN_OPTIONS", "report_thread_leaks=0:atexit_sleep_ms=0");
}

#endif
