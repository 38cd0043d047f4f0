// A rank that fails, hangs, leaves or is killed while the others wait for it, in every operation, on all engines: all
// ranks end soon, with the right exit code and with one line that names the right rank.
//
// The program starts itself as the one that fails: `test_comm_failure RANKS TROUBLE OPERATION`.
#include <pthread.h>

#include "base/launcher.h"
#include "base/pulse.h"
#include "test/folder.h"
#include "test/ranks.h"

static const char *const operations[] = {"exchange",   "barrier",        "broadcast", "all-reduce",
                                         "all-gather", "reduce-scatter", "split"};
enum { OPERATIONS = sizeof operations / sizeof operations[0], SHORT = 1, LONG = 60 }; // time-outs, seconds

// ---- the program that fails ---------------------------------------------------------------------------------------

typedef struct Scene {
    const char *trouble, *operation;
} Scene;

static void hang(void) {
    for (;;) pause();
}

static void receive_from(Comm *comm, int from) {
    int got;
    CommRequest request = comm_exchange_begin(comm, NULL, 0, from, &got, sizeof got, from);
    comm_wait(comm, &request);
}

// Long work of a rank's own, in which it gives signs of life.
static void work(double seconds) {
    for (double end = program_clock() + seconds; program_clock() < end;) {
        program_sleep(0.01);
        pulse_beat();
    }
}

// Stops this process after a while, wherever it is then.
static void *stop_later(void *seconds) {
    program_sleep(*(const double *)seconds);
    raise(SIGSTOP);
    return NULL;
}

// What ranks do in training, and a little more: waits of every kind, between two moments of work.
static void go_round(Comm *comm) {
    int rank = comm_rank(comm), size = comm_size(comm), got;
    double sum = 1;
    for (int i = 0;; i++) {
        CommRequest request = comm_exchange_begin(comm, &rank, sizeof rank, (rank + 1) % size, &got, sizeof got,
                                                  (rank + size - 1) % size);
        comm_wait(comm, &request);
        comm_all_reduce_sum(comm, &sum, 1);
        if (i % 3 == 0) comm_barrier(comm);
        if (i % 50 == 0) program_sleep(0.002);
    }
}

// The others wait for the last rank in this.
static void operate(Comm *comm, const char *operation) {
    enum { COUNT = 8 };
    int size = comm_size(comm), last = size - 1;
    float floats[COUNT * 16] = {0};
    double doubles[COUNT] = {0};
    int64_t counts[16];
    size_t bytes[16];
    for (int i = 0; i < size; i++) counts[i] = COUNT, bytes[i] = COUNT;
    if (strcmp(operation, "barrier") == 0) comm_barrier(comm);
    if (strcmp(operation, "broadcast") == 0) comm_broadcast(comm, floats, sizeof floats, last);
    if (strcmp(operation, "all-reduce") == 0) comm_all_reduce_sum(comm, doubles, COUNT);
    if (strcmp(operation, "reduce-scatter") == 0) comm_reduce_scatter_sum(comm, floats, floats, counts);
    if (strcmp(operation, "all-gather") == 0) comm_all_gather(comm, floats, bytes);
    if (strcmp(operation, "exchange") == 0) receive_from(comm, last);
    if (strcmp(operation, "split") == 0) comm_free(comm_split(comm, 0, 0));
}

static void play(Comm *comm, void *argument) {
    const Scene *scene = argument;
    const char *trouble = scene->trouble;
    int rank = comm_rank(comm), last = comm_size(comm) - 1;
    bool is_last = rank == last;
    Error err;
    error_set(&err, "data/x.bin: 7 bytes, but a header has 1024: write the file again");
    err.exit_code = 3;
    comm_doing(comm, is_last ? "reading data" : "step 12");
    if (rank == 0) printf("working");    // which the failing rank must flush, where it can: as a thread
    if (strcmp(trouble, "chain") == 0) { // 0 waits for 1, 1 for 2, ... and the last one hangs
        if (is_last) hang();
        receive_from(comm, rank + 1);
    } else if (strcmp(trouble, "circle") == 0) {
        receive_from(comm, (rank + 1) % comm_size(comm));
    } else if (strcmp(trouble, "sizes") == 0) {
        char data[16] = {0};
        CommRequest request = comm_exchange_begin(comm, data, is_last ? 8 : 0, 0, data, rank == 0 ? 16 : 0, last);
        comm_wait(comm, &request);
        comm_barrier(comm);
    } else if (strcmp(trouble, "stopped") == 0) {
        if (is_last) program_sleep(0.5);
        operate(comm, scene->operation);
        if (is_last) printf(" and done");
    } else if (strcmp(trouble, "slow") == 0) { // for several time-outs, of which the last after its last word
        if (is_last) work(3 * SHORT);
        operate(comm, scene->operation);
        if (is_last) work(2 * SHORT);
    } else if (strcmp(trouble, "stall") == 0) {
        if (is_last) work(2 * SHORT);
        if (is_last) hang();
        operate(comm, scene->operation);
    } else if (strcmp(trouble, "stop") == 0) { // at a moment that the operation's place tells
        double after = atof(scene->operation);
        pthread_t stopper;
        if (is_last) pthread_create(&stopper, NULL, stop_later, &after);
        go_round(comm);
    } else if (strcmp(trouble, "end") == 0) {
        if (is_last) raise(SIGSTOP);
    } else if (strcmp(trouble, "late") == 0) {
        operate(comm, scene->operation);
    } else if (strcmp(trouble, "group") ==
               0) { // the last rank of one group fails; another group waits for other reasons
        Comm *pair = comm_split(comm, rank / 2, 0);
        if (is_last) comm_fail(pair, &err);
        if (rank == last - 1) comm_barrier(pair);
        hang();
    } else {
        if (is_last) {
            program_sleep(0.1); // the others wait by now
            if (strcmp(trouble, "fail") == 0) comm_fail(comm, &err);
            if (strcmp(trouble, "hang") == 0) hang();
            if (strcmp(trouble, "kill") == 0) raise(SIGKILL);
            if (strcmp(trouble, "exit") == 0) _exit(0);
            return; // "leave"
        }
        if (strcmp(trouble, "all") == 0) comm_fail(comm, &err);
        operate(comm, scene->operation);
    }
}

static int play_alone(const char *ranks, const char *trouble, const char *operation) {
    Scene scene = {trouble, operation};
    bool is_short = strcmp(trouble, "fail") != 0 && strcmp(trouble, "all") != 0 && strcmp(trouble, "kill") != 0;
    CommLaunch launch = {.engine = COMM_AUTO, .ranks = atoi(ranks), .timeout_seconds = is_short ? SHORT : LONG};
    Error err = {0};
    alarm(60);
    bool is_late = comm_process_rank() == launch.ranks - 1;
    if (strcmp(trouble, "never") != 0) launch.start_seconds = LONG;
    if (strcmp(trouble, "late") == 0 && is_late) program_sleep(2 * SHORT);
    if (strcmp(trouble, "never") == 0 && is_late) raise(SIGSTOP);
    if (!comm_run(&launch, play, &scene, &err)) die(&err);
    return 0;
}

// ---- watching it --------------------------------------------------------------------------------------------------

typedef struct Way { // in which ranks are started
    CommEngine engine;
    bool apart;         // processes that share no page
} Way;
static const Way local = {.engine = COMM_LOCAL};
static const Way mpi = {.engine = COMM_MPI};
// As if each rank were on a machine of its own: Open MPI then has no memory that ranks could share.
static const Way mpi_apart = {.engine = COMM_MPI, .apart = true};

static RunningProgram start_scene(Way way, int ranks, const char *trouble, const char *operation) {
    char count[16];
    snprintf(count, sizeof count, "%d", ranks);
    Command command = {0};
    if (way.apart) add_words(&command, "env", "OMPI_MCA_osc=pt2pt", NULL);
    if (way.engine == COMM_MPI) add_mpirun_in_folder(&command, ranks);
    add_words(&command, own_path(), count, trouble, operation, NULL);
    return start_program(command.argv);
}

static int count_of(const char *text, const char *part) {
    int count = 0;
    for (const char *at = text; (at = strstr(at, part)) != NULL; at++) count++;
    return count;
}

// One line of ours, beginning with "train_gpt: " and `begin` and saying `part`; one for each machine. mpirun adds a few
// of its own.
static void check_line(const ProgramResult *result, Way way, const char *begin, const char *part) {
    char start[200];
    snprintf(start, sizeof start, "train_gpt: %s", begin);
    const char *line = strstr(result->err, start);
    int lines = count_of(result->err, "train_gpt: "), same = count_of(result->err, start);
    if (lines != (way.apart ? same : 1) || line == NULL || strstr(line, part) == NULL ||
        (way.engine != COMM_MPI && (line != result->err || count_of(line, "\n") != 1))) {
        fail_msg("expected one line \"%s...%s...\", got: %s", start, part, result->err);
    }
}

static void end_scene(RunningProgram *program, Way way, int exit_code, const char *begin, const char *part,
                      double limit) {
    ProgramResult result = finish_program(program, 30);
    check_line(&result, way, begin, part);
    assert_int_equal(result.exit_code, exit_code);
    if (way.engine != COMM_MPI && exit_code == 1) assert_string_equal(result.out, "working");
    if (result.seconds > limit * program_slowness()) fail_msg("took %.1f s", result.seconds);
    free_result(&result);
}

static double soon(Way way) { return way.engine == COMM_MPI ? 10 : 2; } // seconds; mpirun takes time to start and end

static void fail_in_operations(Way way, int stride) {
    for (int i = 0; i < OPERATIONS; i += stride) {
        RunningProgram program = start_scene(way, 3, "fail", operations[i]);
        end_scene(&program, way, 3, "data/x.bin: 7 bytes, but a header has 1024: write the file again\n", "",
                  soon(way));
    }
}

static void hang_in_operations(Way way, int stride) {
    RunningProgram programs[OPERATIONS];
    for (int i = 0; i < OPERATIONS; i += stride) programs[i] = start_scene(way, 3, "hang", operations[i]);
    for (int i = 0; i < OPERATIONS; i += stride) {
        char part[100];
        snprintf(part, sizeof part, "waits for it in %s (doing: step 12)", operations[i]);
        end_scene(&programs[i], way, 1, "rank 2", part, SHORT + soon(way));
    }
}

static void test_fail_local(void **state) {
    (void)state;
    fail_in_operations(local, 1);
}

static void test_fail_together_local(void **state) {
    (void)state;
    for (int i = 0; i < 20; i++) {
        RunningProgram program = start_scene(local, 8, "all", "barrier");
        end_scene(&program, local, 3, "data/x.bin", "write the file again\n", soon(local));
    }
}

static void test_hang_local(void **state) {
    (void)state;
    hang_in_operations(local, 1);
}

static void odd_scenes(Way way) {
    double limit = SHORT + soon(way);
    RunningProgram chain = start_scene(way, 4, "chain", "-"), circle = start_scene(way, 3, "circle", "-");
    RunningProgram sizes = start_scene(way, 2, "sizes", "-"), group = start_scene(way, 4, "group", "-");
    RunningProgram leave = start_scene(way, 2, "leave", "exchange");
    end_scene(&chain, way, 1, "rank 3", "(doing: reading data): rank 2 waits for it in exchange (doing: step 12)",
              limit);
    end_scene(&circle, way, 1, "the ranks have waited for each other", "programming error\n", limit);
    end_scene(&sizes, way, 1, "rank 1 sends 8 bytes to rank 0, which expects 16", "\n", limit);
    end_scene(&group, way, 3, "data/x.bin", "\n", limit);
    end_scene(&leave, way, 1, "rank 1", "has finished, but rank 0 waits for it in exchange", limit);
}

static void test_odd_local(void **state) {
    (void)state;
    odd_scenes(local);
}

// Stopped as by Ctrl-Z for longer than the time-out, while one rank waits for another: time that nobody had is no
// silence.
static void stop_and_continue(Way way) {
    RunningProgram program = start_scene(way, 2, "stopped", "barrier");
    program_sleep(0.25);
    kill(-program.pid, SIGSTOP);
    program_sleep(SHORT + 0.5);
    kill(-program.pid, SIGCONT);
    ProgramResult result = finish_program(&program, 10);
    assert_string_equal(result.err, "");
    if (strcmp(result.out, " and doneworking") != 0) // of two processes, either may be the first to end
        assert_string_equal(result.out, "working and done");
    assert_int_equal(result.exit_code, 0);
    free_result(&result);
}

static void test_stopped_and_continued(void **state) {
    (void)state;
    stop_and_continue(local);
}

// A rank at long work is waited for as long as it gives signs of life, and named when it gives none any more.
typedef struct Patience {
    Way way;
    RunningProgram slow, stall;
} Patience;

static void start_patience(Patience *scene, Way way) {
    scene->way = way;
    scene->slow = start_scene(way, 3, "slow", "barrier");
    scene->stall = start_scene(way, 3, "stall", "all-reduce");
}

static void end_patience(Patience *scene) {
    end_scene(&scene->stall, scene->way, 1, "rank 2", "waits for it in all-reduce (doing: step 12)",
              3 * SHORT + 10);
    if (program_clock() - scene->stall.started < 3 * SHORT) fail_msg("was not waited for");
    ProgramResult result = finish_program(&scene->slow, 30);
    if (result.exit_code != 0) fail_msg("exit code %d, %s", result.exit_code, result.err);
    free_result(&result);
}

static void test_slow(void **state) {
    (void)state;
    Patience scenes[3];
    int count = mpi_can_be_tested() ? 3 : 1;
    start_patience(&scenes[0], local);
    if (count > 1) {
        start_patience(&scenes[1], mpi);
        start_patience(&scenes[2], mpi_apart);
    }
    for (int i = 0; i < count; i++) end_patience(&scenes[i]);
}

// A process that was stopped, wherever it was then, is the one that is named.
static void test_stopped_process(void **state) {
    (void)state;
    enum { ROUNDS = 2, AT_ONCE = 9 };
    if (!mpi_can_be_tested()) skip();
    for (int round = 0; round < ROUNDS; round++) {
        RunningProgram programs[AT_ONCE];
        for (int i = 0; i < AT_ONCE; i++) {
            char after[16];
            snprintf(after, sizeof after, "%g", 0.3 + 0.0137 * (round * AT_ONCE + i));
            programs[i] = start_scene(i % 2 == 0 ? mpi : mpi_apart, 2 + i % 3, "stop", after);
        }
        for (int i = 0; i < AT_ONCE; i++) {
            char begin[32];
            Way way = i % 2 == 0 ? mpi : mpi_apart;
            snprintf(begin, sizeof begin, "rank %d (process ", 1 + i % 3);
            end_scene(&programs[i], way, 1, begin, ") has not answered for 1", SHORT + soon(way));
        }
    }
}

// Stopped before it has started, or when it has nothing more to do; and one that only comes late.
static void test_start_and_end_mpi(void **state) {
    (void)state;
    if (!mpi_can_be_tested()) skip();
    RunningProgram never = start_scene(mpi, 3, "never", "barrier"), end = start_scene(mpi, 3, "end", "-");
    RunningProgram late = start_scene(mpi, 3, "late", "barrier"),
                   exits = start_scene(mpi, 3, "exit", "barrier");
    end_scene(&never, mpi, 1, "the ranks have not all come to their start", "", SHORT + soon(mpi));
    end_scene(&end, mpi, 1, "rank 2 (process ", "waits for it in end", SHORT + soon(mpi));
    ProgramResult result = finish_program(&late, 30);
    if (result.exit_code != 0) fail_msg("exit code %d, %s", result.exit_code, result.err);
    free_result(&result);
    result = finish_program(&exits, 30);
    if (result.exit_code == 0 || result.timed_out) fail_msg("exit code %d, %s", result.exit_code, result.err);
    free_result(&result);
}

static void test_fail_mpi(void **state) {
    (void)state;
    if (!mpi_can_be_tested()) skip();
    fail_in_operations(mpi, 2);
}

static void test_fail_together_mpi(void **state) {
    (void)state;
    if (!mpi_can_be_tested()) skip();
    RunningProgram program = start_scene(mpi, 4, "all", "barrier");
    end_scene(&program, mpi, 3, "data/x.bin", "write the file again\n", soon(mpi));
}

static void test_hang_mpi(void **state) {
    (void)state;
    if (!mpi_can_be_tested()) skip();
    hang_in_operations(mpi, 3);
}

static void test_odd_mpi(void **state) {
    (void)state;
    if (!mpi_can_be_tested()) skip();
    odd_scenes(mpi);
}

static void test_killed_process(void **state) {
    (void)state;
    if (!mpi_can_be_tested()) skip();
    RunningProgram program = start_scene(mpi, 3, "kill", "barrier");
    ProgramResult result = finish_program(&program, 30);
    assert_false(result.timed_out);
    assert_int_not_equal(result.exit_code, 0);
    if (result.seconds > soon(mpi) * program_slowness()) fail_msg("took %.1f s", result.seconds);
    free_result(&result);
}

// ---- launching wrongly --------------------------------------------------------------------------------------------

static void never(Comm *comm, void *argument) {
    (void)comm;
    *(bool *)argument = true;
}

static void expect_usage(CommEngine engine, int ranks, const char *part) {
    bool ran = false;
    Error err = {0};
    CommLaunch launch = {.engine = engine, .ranks = ranks, .timeout_seconds = 1};
    assert_false(comm_run(&launch, never, &ran, &err));
    assert_false(ran);
    assert_int_equal(err.exit_code, EXIT_USAGE);
    if (strstr(err.message, part) == NULL) fail_msg("expected \"%s\" in: %s", part, err.message);
}

static void test_launch(void **state) {
    (void)state;
    static const char *const variables[] = {
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "PMIX_RANK",
        "SLURM_PROCID",         "SLURM_STEP_NUM_TASKS"};
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++) unsetenv(variables[i]);
    assert_false(launched_by_mpi());
    assert_int_equal(comm_process_rank(), 0);
    expect_usage(COMM_LOCAL, 0, "at least 1");
    expect_usage(COMM_MPI, 3, comm_has_mpi() ? "mpirun -np 3" : "without MPI");
    setenv("SLURM_PROCID", "0", 1);
    setenv("SLURM_STEP_NUM_TASKS", "1", 1); // a shell inside an allocation
    assert_false(launched_by_mpi());
    setenv("SLURM_PROCID", "5", 1);
    setenv("SLURM_STEP_NUM_TASKS", "8", 1);
    assert_true(launched_by_mpi());
    assert_int_equal(comm_process_rank(), 5);
    expect_usage(COMM_LOCAL, 4, "would train alone");
    setenv("OMPI_COMM_WORLD_RANK", "2", 1);
    setenv("OMPI_COMM_WORLD_SIZE", "4", 1);
    assert_int_equal(comm_process_rank(), 2);
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++) unsetenv(variables[i]);
}

// Where ranks of engine `nccl` meet, as launchers say it.
static void expect_place(int rank, int size, const char *address) {
    MeetingPlace place;
    Error err = {0};
    if (!launcher_meeting_place(&place, size, &err)) fail_msg("%s: %s", address, err.message);
    assert_int_equal(place.rank, rank);
    assert_int_equal(place.size, size);
    assert_string_equal(place.address, address);
}
static void expect_no_place(int ranks, const char *part) {
    MeetingPlace place;
    Error err = {0};
    assert_false(launcher_meeting_place(&place, ranks, &err));
    assert_int_equal(err.exit_code, EXIT_USAGE);
    if (strstr(err.message, part) == NULL) fail_msg("expected \"%s\" in: %s", part, err.message);
}

static void test_meeting_place(void **state) {
    (void)state;
    expect_no_place(4, "start a process for each of the 4 ranks");
    set_place("3", "4", "node7", "29500");
    expect_place(3, 4, "node7:29500");
    setenv("TORCHELASTIC_RUN_ID", "1", 1);
    expect_place(3, 4, "node7:29501"); // torchrun holds the other
    set_place("3", "4", "node7", "65535");
    expect_place(3, 4, "node7:65534");
    unsetenv("TORCHELASTIC_RUN_ID");
    set_place("0", "2", "fe80::1", "29500");
    expect_place(0, 2, "[fe80::1]:29500");
    expect_no_place(3, "--sp x --dp = 3 ranks, but 2 processes were started");
    set_place("2", "2", "node7", "29500");
    expect_no_place(2, "ranks are 0 to 1");
    set_place("1", "x", "node7", "29500");
    expect_no_place(2, "WORLD_SIZE is \"x\"");
    set_place("1", NULL, "node7", "29500");
    expect_no_place(2, "WORLD_SIZE is not");
    set_place("1", "2", NULL, "29500");
    expect_no_place(2, "MASTER_ADDR is not in the environment");
    set_place("1", "2", "node7", NULL);
    expect_no_place(2, "MASTER_PORT is not in the environment");
    set_place("1", "2", "node7", "70000");
    expect_no_place(2, "ports are 1 to 65535");

    static const char *const lists[][2] = {
        {"gpu[07-09,12],login1", "gpu07:25000"}, {"gpu7,gpu8", "gpu7:25000"}, {"a[3]b,c", "a3b:25000"}, {"n", "n:25000"}};
    set_place(NULL, NULL, NULL, NULL);
    setenv("SLURM_PROCID", "5", 1);
    setenv("SLURM_STEP_NUM_TASKS", "8", 1);
    setenv("SLURM_JOB_ID", "1205000", 1);
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        setenv("SLURM_STEP_NODELIST", lists[i][0], 1);
        expect_place(5, 8, lists[i][1]);
    }
    static const char *const variables[] = {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID",
                                            "SLURM_STEP_NODELIST"};
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) unsetenv(variables[i]);
}

static void test_wrong_number_of_processes(void **state) {
    (void)state;
    if (!mpi_can_be_tested()) skip();
    Command command = {0};
    add_mpirun_in_folder(&command, 2);
    add_words(&command, own_path(), "3", "fail", "barrier", NULL);
    ProgramResult result = run_program(command.argv, 30);
    assert_int_equal(result.exit_code, EXIT_USAGE);
    assert_non_null(strstr(result.err, "--sp x --dp = 3 ranks, but 2 processes were started: use mpirun -np 3"));
    free_result(&result);
}

int main(int argc, char **argv) {
    if (argc == 4) return play_alone(argv[1], argv[2], argv[3]);
    alarm(300);
    pass_over_what_is_not_ours();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_launch),
        cmocka_unit_test(test_meeting_place),
        cmocka_unit_test(test_fail_local),
        cmocka_unit_test(test_fail_together_local),
        cmocka_unit_test(test_hang_local),
        cmocka_unit_test(test_odd_local),
        cmocka_unit_test(test_stopped_and_continued),
        cmocka_unit_test(test_wrong_number_of_processes),
        cmocka_unit_test(test_fail_mpi),
        cmocka_unit_test(test_fail_together_mpi),
        cmocka_unit_test(test_hang_mpi),
        cmocka_unit_test(test_odd_mpi),
        cmocka_unit_test(test_killed_process),
        cmocka_unit_test(test_slow),
        cmocka_unit_test(test_stopped_process),
        cmocka_unit_test(test_start_and_end_mpi),
    };
    return cmocka_run_group_tests_name("comm failures", tests, make_folder, remove_folder);
}
