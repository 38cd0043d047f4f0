// Failures between devices: NCCL's own, a rank that hangs, messages of two sizes end the program with a line; long work
// and a rank that is slow do not. On the emulated device alone, which fails on demand; this test starts itself as the
// program that fails.
#include "test/cuda_device.h"
#include "test/folder.h"
#include "test/ranks.h"

#include <time.h>

#include "base/pulse.h"
#include "comm/device_group.h"

static void open_gpu(Device *device, Comm *world, int index) {
    Error err = {0};
    if (!device_open(device, DEVICE_EMULATED, index, 1, &err)) comm_fail(world, &err);
}

typedef struct Scene {
    const char *trouble;
    bool collectives, engine;
} Scene;

// A device with long work queued before the exchanges: nothing behind it is done until `work_ends`.
static bool (*true_done)(Device *, Event *);
static double work_ends;
static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
static bool done_after_long_work(Device *device, Event *event) {
    return seconds_now() >= work_ends && true_done(device, event);
}
static void work_long(Comm *world, Device *device, double seconds) {
    if (comm_rank(world) == 0) {
        true_done = device->event_done;
        work_ends = seconds_now() + seconds;
    }
    comm_barrier(world);
    device->event_done = done_after_long_work;
}

// A rank of engine `nccl` that hangs, or is slow where the ranks said that it may be.
static void play_engine(Comm *world, const char *trouble) {
    Device device;
    Error err = {0};
    bool hangs = strcmp(trouble, "hang") == 0, slow = strcmp(trouble, "slow") == 0;
    open_gpu(&device, world, comm_rank(world));
    Comm *all = nccl_open(&device, "127.0.0.1:29500", comm_rank(world), comm_size(world), 1, &err);
    if (all == NULL) comm_fail(world, &err);
    if (slow) comm_doing_slowly(all, "saving");
    comm_doing(all, comm_rank(world) == 0 ? "step 12" : "reading data");
    if (comm_rank(world) == 1 && (hangs || slow)) usleep(hangs ? 60000000 : 2500000);
    comm_barrier(all);
    double sum = 1;
    comm_all_reduce_sum(all, &sum, 1);
    if (comm_rank(world) == 0 && sum == comm_size(world)) printf("came through\n");
    fflush(stdout);
    nccl_close(all);
    device.close(&device);
}

static void play(Comm *world, void *argument) {
    const Scene *scene = argument;
    Device device;
    Error err = {0};
    if (scene->engine) {
        play_engine(world, scene->trouble);
        return;
    }
    bool two_on_one = strcmp(scene->trouble, "two on one") == 0;
    comm_doing(world, comm_rank(world) == 0 ? "step 12" : "reading data");
    open_gpu(&device, world, two_on_one ? 0 : comm_rank(world));
    bool long_work = strcmp(scene->trouble, "long work") == 0;
    if (long_work) work_long(world, &device, 2.5);
    Comm *comm = comm_on_device(world, &device, scene->collectives);
    if (strcmp(scene->trouble, "hang") == 0 && comm_rank(world) == 1)
        for (;;) pause();
    if (strcmp(scene->trouble, "slow") == 0 && comm_rank(world) == 1)
        for (double end = seconds_now() + 2.5; seconds_now() < end; usleep(10000)) pulse_beat();
    int bytes = strcmp(scene->trouble, "sizes") == 0 && comm_rank(world) == 1 ? 64 : 128;
    void *buffer = device.allocate(&device, 256, &err);
    for (int i = 0; i < 5; i++) {
        int other = 1 - comm_rank(world);
        CommRequest request = comm_exchange_begin(comm, buffer, (size_t)bytes, other, (char *)buffer + 128, 128, other);
        comm_wait(comm, &request);
        device.synchronize(&device);
    }
    while (long_work && seconds_now() < work_ends) usleep(10000);
    printf("came through\n");
    fflush(stdout);
    comm_free(comm);
    device.release(&device, buffer, 256);
    device.close(&device);
}

// The program: play TROUBLE TRANSPORT ENGINE
static int run_scene(char **argv) {
    Scene scene = {argv[1], strcmp(argv[2], "collectives") == 0, strcmp(argv[2], "engine") == 0};
    CommEngine engine = strcmp(argv[3], "mpi") == 0 ? COMM_MPI : COMM_LOCAL;
    // Short only where time is what is tested: on a busy machine ranks may start seconds apart.
    bool about_time = strcmp(scene.trouble, "-") != 0;
    CommLaunch launch = {.engine = engine, .ranks = 2, .timeout_seconds = about_time ? 1 : 30};
    Error err = {0};
    alarm(60);
    if (!comm_run(&launch, play, &scene, &err)) die(&err);
    return 0;
}

// ---- the test -----------------------------------------------------------------------------------------------------

static void expect_failure(const char *setting, const char *trouble, const char *transport, const char *first,
                           const char *second) {
    Command command = {0};
    add_words(&command, "env", setting, own_path(), "play", trouble, transport, "local", NULL);
    ProgramResult result = run_program(command.argv, 30);
    const char *line = strchr(result.err, '\n');
    if (result.exit_code != 1 || strncmp(result.err, "train_gpt: ", 11) != 0 || line == NULL || line[1] != '\0' ||
        strstr(result.err, first) == NULL || strstr(result.err, second) == NULL)
        fail_msg("%s, %s: exit code %d, %s", trouble, transport, result.exit_code, result.err);
    free_result(&result);
}

static void test_failures(void **state) {
    (void)state;
    if (!only_emulated()) skip();
    expect_failure("EMULATED_NCCL_FAIL=1:3", "-", "collectives",
                   "): exchange between GPUs failed (doing: reading data): NCCL: ", "planted");
    expect_failure("EMULATED_NCCL_FAIL=0:0", "-", "collectives", "rank 0 (process ", "): exchange between GPUs failed");
    expect_failure("EMULATED_SEED=2", "hang", "collectives", "): exchange between GPUs has not ended for 1 s",
                   "step 12");
    expect_failure("EMULATED_SEED=2", "hang", "peers", "rank 1 has not answered for 1", "exchange");
    expect_failure("EMULATED_SEED=2", "sizes", "collectives", "a message of 64 bytes", "a message of 128 bytes");
    expect_failure("EMULATED_SEED=2", "sizes", "peers", "rank 1 sends 64 bytes to rank 0, which expects 128",
                   "programming error");
    expect_failure("EMULATED_NCCL_FAIL=1:0", "-", "engine", ": barrier failed (doing: ", "planted");
    expect_failure("EMULATED_SEED=2", "hang", "engine", "rank 0 (process ", ": barrier has not ended for 1");
    expect_failure("EMULATED_SEED=2", "two on one", "collectives",
                   "start between GPUs failed: NCCL: ", "same CUDA device");
}

// The time-out is 1 s. It is no silence that exchanges are begun at once, but come to their turn after 2.5 s of work;
// nor that one side begins them only then, having given signs of life.
static void test_long_work(void **state) {
    static const char *const trouble[] = {"long work", "slow", "slow"};
    (void)state;
    if (!only_emulated()) skip();
    for (int i = 0; i < 3; i++) {
        Command command = {0};
        add_words(&command, "env", "EMULATED_SEED=2", own_path(), "play", trouble[i], i < 2 ? "collectives" : "engine",
                  "local", NULL);
        ProgramResult result = run_program(command.argv, 60);
        if (result.exit_code != 0 || *result.err) fail_msg("exit code %d, %s", result.exit_code, result.err);
        free_result(&result);
    }
}

static void test_processes_need_collectives(void **state) {
    (void)state;
    if (!only_emulated() || !mpi_can_be_tested()) skip();
    Command command = {0};
    add_mpirun_in_folder(&command, 2);
    add_words(&command, own_path(), "play", "-", "peers", "mpi", NULL);
    ProgramResult result = run_program(command.argv, 60);
    if (result.exit_code != 1 || strstr(result.err, "through NCCL alone") == NULL)
        fail_msg("exit code %d, %s", result.exit_code, result.err);
    free_result(&result);
}

int main(int argc, char **argv) {
    if (argc == 5 && strcmp(argv[1], "play") == 0) return run_scene(argv + 1);
    alarm(300);
    pass_over_what_is_not_ours();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_long_work),
        cmocka_unit_test(test_processes_need_collectives),
    };
    return cmocka_run_group_tests_name("failures on devices", tests, make_folder, remove_folder);
}
