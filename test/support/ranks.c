// Bodies of test/ranks.h.
#include "test/ranks.h"

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

void add_mpirun_in(Command *command, int ranks, const char *folder) {
    static int launches = 0;
    static char variable[PROGRAM_PATH]; // until the program has started
    int length = snprintf(variable, sizeof variable, "TMPDIR=%s/%d", folder, launches++);
    if (length >= (int)sizeof variable || mkdir(strchr(variable, '/'), 0700) != 0) fail_msg("cannot make %s", variable);
    add_words(command, "env", variable, NULL);
    add_mpirun(command, ranks);
}

int listen_on(int port) { // -1: somebody else does
    struct sockaddr_in here = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (listener < 0) fail_msg("cannot make a socket: %s", strerror(errno));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) == 0 && listen(listener, 8) == 0) return listener;
    close(listener);
    return -1;
}

int free_port(void) {
    static unsigned calls = 0;
    for (int attempt = 0; attempt < 1000; attempt++) {
        unsigned mixed = ((unsigned)getpid() * 2654435761u + calls++ * 40503u * 256u) >> 8;
        int port = 12000 + 2 * (int)(mixed % 9000), first = listen_on(port), second = listen_on(port + 1);
        if (first >= 0) close(first);
        if (second >= 0) close(second);
        if (first >= 0 && second >= 0) return port;
    }
    fail_msg("no port is free on this machine");
    return -1;
}

void set_place(const char *rank, const char *size, const char *address, const char *port) {
    const char *const given[][2] = {
        {"RANK", rank}, {"WORLD_SIZE", size}, {"MASTER_ADDR", address}, {"MASTER_PORT", port}};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++) {
        if (given[i][1] != NULL) setenv(given[i][0], given[i][1], 1);
        else unsetenv(given[i][0]);
    }
}

void add_sockets_launcher(Command *command, int ranks) {
    char *count = command->text[PROGRAM_MAX_ARGUMENTS - 2], *port = command->text[PROGRAM_MAX_ARGUMENTS - 1];
    snprintf(count, sizeof command->text[0], "%d", ranks);
    snprintf(port, sizeof command->text[0], "%d", free_port());
    add_words(command, own_path(), "launch", count, port, NULL);
}

int launch_ranks(char **words) {
    enum { MOST = 64 };
    int ranks = atoi(words[2]), code = -1;
    pid_t pids[MOST];
    for (int rank = 0; rank < ranks && rank < MOST; rank++) {
        pids[rank] = fork();
        if (pids[rank] < 0) return 98;
        if (pids[rank] > 0) continue;
        char number[16];
        snprintf(number, sizeof number, "%d", rank);
        set_place(number, words[2], "127.0.0.1", words[3]);
        execv(words[4], words + 4);
        _exit(127);
    }
    for (int rank = 0; rank < ranks; rank++) {
        int status;
        if (waitpid(pids[rank], &status, 0) != pids[rank]) return 97;
        if (!WIFEXITED(status)) continue;
        if (code >= 0 && code != WEXITSTATUS(status)) return 99;
        code = WEXITSTATUS(status);
    }
    return code;
}

bool is_launcher(int argc, char **argv) { return argc > 4 && strcmp(argv[1], "launch") == 0; }

int make_folder_for_ranks(void **state) {
    static char folder[PROGRAM_PATH];
    *state = make_temp_folder(folder);
    return 0;
}

int remove_folder_of_ranks(void **state) {
    remove_tree(*state);
    return 0;
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
