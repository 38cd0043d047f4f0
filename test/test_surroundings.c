// What a run is started in: outputs that are closed, full or read by nobody, limits of memory and threads, libraries
// that are broken, variables that were meant for other programs.
#include "base/cpu_features.h"
#include "test/shell.h"
#include "test/tiny_run.h"

// ---- standard output and error that are not there -------------------------------------------------------------------

// The tiny run with `options`, its outputs redirected by a shell as `redirection` says.
static ProgramResult run_redirected(const char *redirection, const char *options) {
    Command command = {0};
    char script[100], *text = malloc(16 * PROGRAM_PATH);
    if (text == NULL) fail_msg("out of memory");
    snprintf(script, sizeof script, "exec %s; exec \"$@\"", redirection);
    add_words(&command, "sh", "-c", script, folder, NULL); // $0 is the folder
    build_command(&command, text, 16 * PROGRAM_PATH, options);
    ProgramResult result = run_program(command.argv, 20);
    free(text);
    return result;
}

static void check_log(const char *name, int steps) {
    char path[PROGRAM_PATH], *log = read_file(in_folder(path, name), NULL), *line = log;
    for (int step = 1; step <= steps; step++) {
        char start[30];
        snprintf(start, sizeof start, "{\"step\": %d,", step);
        assert_memory_equal(line, start, strlen(start));
        line += strcspn(line, "\n") + 1;
    }
    assert_string_equal(line, "");
    free(log);
}

// The log must not take the number of a descriptor that is closed, nor must checkpoints.
static void closed_descriptors(void **state) {
    (void)state;
    static const char *const closed[] = {"0<&-", ">&-", "2>&-", "0<&- >&-", "0<&- >&- 2>&-"};
    for (size_t i = 0; i < sizeof closed / sizeof *closed; i++) {
        ProgramResult result = run_redirected(closed[i], "--log @/log");
        assert_false(result.timed_out);
        assert_int_equal(result.exit_code, 0);
        assert_string_equal(result.err, "");
        check_log("log", 2);
        free_result(&result);
    }
}

// What is printed is lost, the run is not; and it is said once.
static void full_output(void **state) {
    (void)state;
    if (!path_exists("/dev/full")) skip();
    static const char *const lines[] = {"--help", "--version", "--plan", "--out @/printed-nowhere --log @/log",
                                        "--sp 2 --dp 2 --batch 2"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        ProgramResult result = run_redirected(">/dev/full", lines[i]);
        assert_false(result.timed_out);
        assert_string_equal(result.err, "train_gpt: standard output: cannot write: No space left on device; lines are "
                                        "lost: make room, or send it elsewhere\n");
        assert_int_equal(result.exit_code, 1);
        free_result(&result);
    }
    check_log("log", 2);
    check_one_good_checkpoint("printed-nowhere");
    ProgramResult result = run_redirected("2>/dev/full", "--sample-tokens 4");
    assert_int_equal(result.exit_code, 0);
    free_result(&result);
}

// As `| head` leaves it: a pipe that nobody reads.
static void reader_that_has_gone(void **state) {
    (void)state;
    char path[PROGRAM_PATH];
    if (mkfifo(in_folder(path, "unread"), 0600) != 0) fail_msg("cannot make %s: %s", path, strerror(errno));
    static const char *const lines[] = {"--help", "--plan", "--steps 20 --log @/log"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        ProgramResult result = run_redirected("3<>\"$0/unread\" >\"$0/unread\" 3<&-", lines[i]);
        assert_false(result.timed_out);
        assert_string_equal(result.err, "");
        assert_int_equal(result.exit_code, 0);
        free_result(&result);
    }
    check_log("log", 20);
}

// ---- limits, and the environment of libraries ----------------------------------------------------------------------

// Runs the tiny training with `options` after a shell's `limits`, such as "ulimit -v 100000".
static ProgramResult run_limited(const char *limits, const char *options) {
    Command command = {0};
    static char shell[200], text[16 * PROGRAM_PATH];
    snprintf(shell, sizeof shell, "%s && exec \"$@\"", limits);
    add_words(&command, "sh", "-c", shell, "sh", NULL);
    build_command(&command, text, sizeof text, options);
    return run_program(command.argv, 20);
}

// Standard error is the program's one line, or nothing where all went well.
static bool ended_well(const ProgramResult *r) {
    const char *end = strchr(r->err, '\n');
    if (r->timed_out) return false;
    if (r->exit_code == 0) return *r->err == '\0';
    return r->exit_code <= 2 && strncmp(r->err, "train_gpt: ", 11) == 0 && end != NULL && end[1] == '\0';
}

static void memory_limits(void **state) {
    (void)state;
    if (program_slowness() > 1) skip(); // sanitizers take terabytes of addresses
    const int kilobytes[] = {50000, 100000, 200000, 300000, 400000, 500000, 800000};
    const char *const runs[] = {"--help", "--plan", "--sp 2 --threads 4"};
    struct stat program;
    assert_int_equal(stat(train_gpt_path(), &program), 0);
    for (size_t i = 0; i < sizeof kilobytes / sizeof *kilobytes; i++) {
        for (int run = 0; run < 3; run++) {
            char limit[40];
            snprintf(limit, sizeof limit, "ulimit -v %d", kilobytes[i]);
            ProgramResult result = run_limited(limit, runs[run]);
            // Else it alone, or with its libraries, takes more: the kernel ends it, or the loader does.
            bool loaded = program.st_size < kilobytes[i] * INT64_C(1024) && result.exit_code != 127;
            if (loaded && !ended_well(&result))
                fail_msg("%s: %s: exit code %d%s: %s", limit, runs[run], result.exit_code,
                         result.timed_out ? ", too late" : "", result.err);
            if (loaded && kilobytes[i] >= 800000) assert_int_equal(result.exit_code, 0); // it needs a fraction of that
            free_result(&result);
        }
    }
}

static void threads_that_cannot_be_made(void **state) {
    (void)state;
#ifndef HAVE_OPENMP
    skip();
#endif
    if (program_slowness() > 1 || cpu_count() < 2) skip();
    const char limits[] = "ulimit -s 2000000 && ulimit -v 1000000"; // one thread's stack is more than all there is
    const char *const allowed[] = {"sh", "-c", limits, NULL};
    ProgramResult result = run_program(allowed, 20);
    bool may = result.exit_code == 0;
    free_result(&result);
    if (!may) skip();
    result = run_limited(limits, "--threads 2");
    assert_string_equal(result.err, "train_gpt: only 1 of 2 threads of a rank could be made: give a smaller --threads, "
                                    "or see ulimit -u, -v, -d and -s\n");
    assert_int_equal(result.exit_code, 1);
    free_result(&result);
}

// A broken library is nothing to a run that does not ask for one, and one line to a run that does.
static void broken_blas(void **state) {
    (void)state;
    static const char *const names[] = {"libopenblas.so.0", "libopenblas.so", "libblis.so.4", "libcblas.so.3"};
    char path[PROGRAM_PATH], file[PROGRAM_PATH];
    const char *before = getenv("LD_LIBRARY_PATH");
    char *usual = strdup(before != NULL ? before : ""), *search = malloc(strlen(usual) + PROGRAM_PATH);
    if (usual == NULL || search == NULL) fail_msg("out of memory");
    if (mkdir(in_folder(path, "broken"), 0755) != 0) fail_msg("cannot make %s: %s", path, strerror(errno));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        write_file(path_join(file, path, names[i]), "no ELF\n", 7);
    sprintf(search, "%s%s%s", path, *usual ? ":" : "", usual);
    setenv("LD_LIBRARY_PATH", search, 1);
    char *normal = try_run(0, "", "");
    setenv("MATMUL", "cblas", 1);
#ifdef HAVE_CBLAS
    char *wanted = try_run(2, "",
                           "MATMUL=cblas: no CBLAS library can be opened (*libopenblas.so.0: *): install OpenBLAS, or "
                           "leave MATMUL out");
#else
    char *wanted = try_run(2, "", "MATMUL=cblas: this program was built without CBLAS libraries; leave MATMUL out");
#endif
    char *help = try_run(0, "--help", "");
    unsetenv("MATMUL");
    setenv("SIMD", "portable", 1); // where a library is the first choice
    char *portable = try_run(0, "", "");
    unsetenv("SIMD");
    if (before != NULL) setenv("LD_LIBRARY_PATH", usual, 1);
    else unsetenv("LD_LIBRARY_PATH");
    assert_true(normal != NULL && wanted != NULL && help != NULL && portable != NULL);
    assert_non_null(strstr(portable, "built-in blocked product, portable vectors"));
    free(normal), free(wanted), free(help), free(portable), free(usual), free(search);
}

// FFTW is asked for by two mixers alone, and a broken one is one line.
static void broken_fftw(void **state) {
    (void)state;
    char path[PROGRAM_PATH], file[PROGRAM_PATH];
    const char *before = getenv("LD_LIBRARY_PATH");
    char *usual = strdup(before != NULL ? before : "");
    if (usual == NULL) fail_msg("out of memory");
    if (mkdir(in_folder(path, "broken-fftw"), 0755) != 0) fail_msg("cannot make %s: %s", path, strerror(errno));
    write_file(path_join(file, path, "libfftw3f.so.3"), "no ELF\n", 7);
    setenv("LD_LIBRARY_PATH", path, 1);
    char *normal = try_run(0, "", "");
    char *wanted[2];
    static const char *const mixers[] = {"conv:gated", "fourier"};
    for (int i = 0; i < 2; i++) {
        char options[60], message[400];
        snprintf(options, sizeof options, "--mixer %s", mixers[i]);
        snprintf(message, sizeof message,
                 "--mixer %s: its convolutions are done by FFTW, whose library libfftw3f.so.3 cannot be opened (*): install it "
                 "(Debian: libfftw3-single3), or take another mixer",
                 mixers[i]);
        wanted[i] = try_run(2, options, message);
    }
    if (before != NULL) setenv("LD_LIBRARY_PATH", usual, 1);
    else unsetenv("LD_LIBRARY_PATH");
    assert_true(normal != NULL && wanted[0] != NULL && wanted[1] != NULL);
    free(normal), free(wanted[0]), free(wanted[1]), free(usual);
}

static void matmul_of_the_environment(void **state) {
    (void)state;
    setenv("MATMUL", "mkl", 1);
    char *output = try_run(2, "", "MATMUL=mkl in the environment: give builtin or cblas, or leave it out");
    unsetenv("MATMUL");
    assert_non_null(output);
    free(output);
#ifdef HAVE_CBLAS
    if (program_slowness() > 1) return;
    setenv("MATMUL", "cblas", 1);
    ProgramResult result = run_limited("ulimit -v 300000", "");
    unsetenv("MATMUL");
    assert_string_equal(result.err,
                        "train_gpt: MATMUL=cblas: such a library may wait for ever for memory where that is "
                        "limited: lift the limit (ulimit -v, ulimit -d), or leave MATMUL out\n");
    assert_int_equal(result.exit_code, 2);
    free_result(&result);
#endif
}

static void rate_of_the_environment(void **state) {
    (void)state;
    setenv("MATRIX_RATE", "2.5e11", 1);
    char *given = try_run(0, "", "");
    setenv("MATRIX_RATE", "fast", 1);
    char *refused = try_run(2, "",
                            "MATRIX_RATE=fast in the environment: give operations per second, such as 3.2e11, or "
                            "leave it out");
    setenv("MATRIX_RATE", "-1", 1);
    char *negative = try_run(2, "",
                             "MATRIX_RATE=-1 in the environment: give operations per second, such as 3.2e11, or "
                             "leave it out");
    unsetenv("MATRIX_RATE");
    char *measured = try_run(0, "", "");
    assert_true(given != NULL && refused != NULL && negative != NULL && measured != NULL);
    expect_in(given, " vectors: 250 GFLOP/s in matrix products, as MATRIX_RATE says\n");
    expect_in(measured, " GFLOP/s in matrix products, measured now\n");
    free(given), free(refused), free(negative), free(measured);
}

// Job scripts set these for programs of one OpenMP team; here they must not bring all ranks to one processor.
static void openmp_binds_nothing(void **state) {
    (void)state;
    char expected[60];
    snprintf(expected, sizeof expected, "machine    %d threads,", cpu_count());
    const char *const settings[][2] = {{"OMP_PROC_BIND", "true"}, {"OMP_PROC_BIND", "spread"}, {"OMP_PLACES", "cores"}};
    bool topology = path_exists("/sys/devices/system/cpu/cpu0/topology"); // else libgomp has a line of its own to say
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        if (!topology && strcmp(settings[i][0], "OMP_PLACES") == 0) continue;
        setenv(settings[i][0], settings[i][1], 1);
        char *output = try_run(0, "--threads 0 --sp 2", "");
        unsetenv(settings[i][0]);
        assert_non_null(output);
        if (strstr(output, expected) == NULL) fail_msg("%s: not \"%s\":\n%s", settings[i][0], expected, output);
        free(output);
    }
}

static int make_files(void **state) {
    make_folder(state);
    make_text("text", 20000);
    return 0;
}

int main(void) {
    unsetenv("MATRIX_RATE"); // which scripts/run-tests gives: limits are met while it is measured too
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(closed_descriptors),
        cmocka_unit_test(full_output),
        cmocka_unit_test(reader_that_has_gone),
        cmocka_unit_test(memory_limits),
        cmocka_unit_test(threads_that_cannot_be_made),
        cmocka_unit_test(broken_blas),
        cmocka_unit_test(broken_fftw),
        cmocka_unit_test(matmul_of_the_environment),
        cmocka_unit_test(rate_of_the_environment),
        cmocka_unit_test(openmp_binds_nothing),
    };
    return cmocka_run_group_tests(tests, make_files, remove_folder);
}
