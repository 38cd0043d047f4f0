// Nothing that happens while a checkpoint is saved or afterwards (a kill, a full disk, a flipped bit, a cut file) loses
// the last good one or lets a bad one pass for good.
#include "test/checkpoint_cases.h"

#include <math.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "base/pulse.h"
#include "base/random.h"
#include "checkpoint/disk.h"
#include "checkpoint/sha256.h"
#include "mixer/channel_mlp.h"

// ---- damage ----

static const char *const files[] = {
    "config.json",         "model.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors",
    "training_state.json", "tokenizer.json",    "SHA256SUMS"};
enum { FILES = sizeof files / sizeof files[0] };
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { FLIPS = 4, CUTS = 3 };
#else
enum { FLIPS = 12, CUTS = 6 };
#endif

static void expect_passed_over(const char *what) { // the newest, step 2, is damaged; step 1 is whole
    char path[PROGRAM_PATH], said[8000];
    Error err;
    if (!find_newest(path, said, &err)) fail_msg("%s: %s", what, err.message);
    if (strcmp(path, in_out("step-00000001")) != 0) fail_msg("%s passed for good", what);
    assert_non_null(strstr(said, "train_gpt: passing over checkpoint "));
    assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1); // one line
}

static void test_damage(void **state) {
    (void)state;
    save_good(&llama, &llama_table, 1, 0);
    save_good(&llama, &llama_table, 2, 0);
    for (size_t i = 0; i < FILES; i++) {
        char path[PROGRAM_PATH], what[200];
        size_t bytes;
        path_join(path, in_out("step-00000002"), files[i]);
        char *text = read_file(path, &bytes);
        for (uint64_t draw = 0; draw < FLIPS; draw++) { // a bit, at the ends and anywhere between
            size_t at = draw == 0 ? 0 : draw == 1 ? bytes - 1 : random_below(i, 1, draw, bytes);
            char flipped = (char)(1 << random_below(i, 2, draw, 8));
            snprintf(what, sizeof what, "%s with bit %d of byte %zu flipped", files[i], flipped, at);
            text[at] = (char)(text[at] ^ flipped);
            write_file(path, text, bytes);
            text[at] = (char)(text[at] ^ flipped);
            expect_passed_over(what);
        }
        for (uint64_t draw = 0; draw < CUTS; draw++) {
            size_t length = draw == 0 ? 0 : draw == 1 ? bytes - 2 : random_below(i, 3, draw, bytes - 1);
            snprintf(what, sizeof what, "%s cut to %zu bytes", files[i], length);
            write_file(path, text, length);
            expect_passed_over(what);
        }
        text[bytes] = 'x'; // in place of the end that read_file puts there
        write_file(path, text, bytes + 1);
        expect_passed_over("a file with a byte more");
        assert_int_equal(unlink(path), 0);
        expect_passed_over("a missing file");
        write_file(path, text, bytes);
        expect_newest(2);
        free(text);
    }
    write_file(in_out("step-00000002/notes.txt"), "{}", 2); // a file put there by hand is no damage
    expect_newest(2);
}

static void test_verify_names_the_file(void **state) {
    (void)state;
    Error err;
    save_good(&llama, &llama_table, 1, 0);
    const char *path = in_out("step-00000001");
    assert_true(checkpoint_verify(path, &err));
    write_file(in_out("step-00000001/config.json"), "{}", 2);
    assert_false(checkpoint_verify(path, &err));
    assert_non_null(
        strstr(err.message, "step-00000001/config.json: damaged (its SHA-256 is not the one saved with it)"));
    assert_int_equal(unlink(in_out("step-00000001/config.json")), 0);
    assert_false(checkpoint_verify(path, &err));
    assert_non_null(strstr(err.message, "config.json: cannot open: No such file"));
    assert_false(checkpoint_verify(in_out("absent"), &err));
    assert_non_null(strstr(err.message, "absent/SHA256SUMS: cannot open"));
}

// ---- a kill at any moment ----

// Saves step after step from `first` on, each fourth one twice, and tells the pipe of each one that stands.
static void save_until_killed(int64_t first, int report) {
    for (int64_t step = first;; step++) {
        Error err;
        for (int times = 0; times < (step % 4 == 0 ? 2 : 1); times++)
            if (!save_step(&llama, &llama_table, step, 2, &err) || write(report, &step, sizeof step) != sizeof step)
                _exit(1);
    }
}

static int64_t last_report(int report, int64_t before) {
    int64_t step;
    while (read(report, &step, sizeof step) == sizeof step) before = step;
    return before;
}

static void test_kill(void **state) {
    (void)state;
    enum { KILLS = 20 };
    int64_t saved = 1;
    double started = program_clock();
    save_good(&llama, &llama_table, 1, 2);
    double one_save = program_clock() - started;
    for (uint64_t kills = 0; kills < KILLS; kills++) {
        int ends[2], status;
        assert_int_equal(pipe(ends), 0);
        fflush(NULL);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) save_until_killed(saved + 1, ends[1]);
        close(ends[1]);
        program_sleep(random_uniform(11, 0, kills) * 3 * one_save);
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status)); // it was still saving, and without an error
        saved = last_report(ends[0], saved);
        close(ends[0]);

        char path[PROGRAM_PATH], said[8000];
        TrainingState found;
        Error err;
        if (!find_newest(path, said, &err)) fail_msg("%s", err.message);
        assert_string_equal(said, ""); // what bears a final name is whole
        assert_true(checkpoint_read_state(path, &found, &err));
        assert_true(found.step == saved || found.step == saved + 1); // perhaps killed before it could tell
        saved = found.step;
        expect_checkpoint(path, &llama_table, saved);
    }
    save_good(&llama, &llama_table, saved + 1, 1); // and nothing is left lying about
    char command[2 * PROGRAM_PATH];
    snprintf(command, sizeof command, "test $(ls -A '%s' | wc -l) = 1", out);
    assert_int_equal(system(command), 0);
}

// ---- a full disk ----

static void expect_failed_save(int64_t step, const char *reason) {
    Error err = {0};
    if (save_step(&llama, &llama_table, step, 1, &err)) fail_msg("saved on a full disk");
    if (!strstr(err.message, reason)) fail_msg("%s", err.message);
    assert_null(strchr(err.message, '\n'));
}

static void test_file_size_limit(void **state) { // from the first file's first byte to the model's last
    (void)state;
    struct rlimit before, limit;
    save_good(&llama, &llama_table, 1, 0);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    static const rlim_t sizes[] = {0, 100, 700, 5000, 20000, 82000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        limit = before;
        limit.rlim_cur = sizes[i];
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        Error err;
        bool ok = save_step(&llama, &llama_table, 2, 1, &err);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_false(ok);
        if (!strstr(err.message, "cannot write: File too large")) fail_msg("limit %d: %s", (int)sizes[i], err.message);
        assert_false(path_exists(in_out("step-00000002.partial")) || path_exists(in_out("step-00000002")));
        expect_newest(1);
        expect_checkpoint(in_out("step-00000001"), &llama_table, 1);
    }
    signal(SIGXFSZ, SIG_DFL);
    save_good(&llama, &llama_table, 2, 1); // with room again
    expect_newest(2);
}

static void count_beat(void *count) { ++*(int *)count; }

// Written in pieces, with signs of life between them, and still whole, or refused where the disk is full.
static void test_large_file(void **state) {
    (void)state;
    enum { BYTES = 33 << 20, LIMIT = 20 << 20 };
    char path[PROGRAM_PATH], hex[SHA256_HEX_CHARS];
    uint32_t *data = malloc(BYTES);
    assert_non_null(data);
    for (uint32_t i = 0; i < BYTES / sizeof *data; i++) data[i] = i * 2654435761u;
    DiskFile file;
    Error err;
    int beats = 0;
    pulse_connect(count_beat, &beats);
    path_join(path, folder, "large");
    assert_true(disk_create(&file, path, &err));
    assert_true(disk_write(&file, "head", 4, &err) && disk_write(&file, data, BYTES, &err) &&
                disk_write(&file, "tail", 4, &err) && disk_close(&file, &err));
    assert_true(beats >= 4);
    beats = 0;
    assert_true(disk_sum(path, hex, &err));
    assert_true(beats >= 4);
    pulse_connect(NULL, NULL);
    assert_string_equal(hex, file.hex);
    size_t bytes;
    char *back = read_file(path, &bytes);
    assert_int_equal(bytes, BYTES + 8);
    assert_true(memcmp(back, "head", 4) == 0 && memcmp(back + 4, data, BYTES) == 0);
    free(back);

    struct rlimit before, limit;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = LIMIT;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_true(disk_create(&file, path, &err));
    bool ok = disk_write(&file, data, BYTES, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_false(ok);
    assert_non_null(strstr(err.message, "File too large"));
    disk_discard(&file);
    free(data);
}

enum { NOT_ALLOWED = 77 };

// In a process and a mount namespace of its own; a small file system in memory stands at `out`. Its exit code is the
// result.
static void fill_small_disk(void) {
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mkdir(out, 0777) != 0 || mount("tmpfs", out, "tmpfs", 0, "size=2m") != 0)
        _exit(NOT_ALLOWED);
    Error err;
    if (!save_step(&llama, &llama_table, 1, 0, &err)) _exit(2);
    unsigned failed = 0;
    for (int64_t pages = 0; failed != (1u << FILES) - 1; pages++) { // from no page left until every file was the one
        char filler[PROGRAM_PATH], path[PROGRAM_PATH];
        int64_t room = 4096 * pages;
        int descriptor = open(path_join(filler, out, "filler"), O_CREAT | O_WRONLY, 0666);
        if (descriptor < 0) _exit(3);
        static char bytes[4096];
        off_t size = 0;
        while (write(descriptor, bytes, sizeof bytes) == (ssize_t)sizeof bytes) size += (off_t)sizeof bytes;
        if (ftruncate(descriptor, size > room ? size - room : 0) != 0 || close(descriptor) != 0) _exit(4);
        if (save_step(&llama, &llama_table, 2, 1, &err)) _exit(5);
        for (int i = 0; i < FILES; i++)
            if (strstr(err.message, files[i])) failed |= 1u << i;
        if (!strstr(err.message, "No space left on device")) _exit(6);
        if (path_exists(in_out("step-00000002.partial")) || path_exists(in_out("step-00000002"))) _exit(7);
        if (!checkpoint_find(out, path, sizeof path, &err) || !strstr(path, "step-00000001")) _exit(8);
        if (unlink(filler) != 0) _exit(9);
    }
    if (!save_step(&llama, &llama_table, 2, 1, &err)) _exit(10);
    _exit(0);
}

static void test_full_disk(void **state) {
    (void)state;
    int status;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) fill_small_disk();
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == NOT_ALLOWED) {
        print_message("# this process may not mount a small file system: left out\n");
        return;
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_read_only_folder(void **state) {
    (void)state;
    enum { NOBODY = 65534 };
    uid_t user = geteuid();
    save_good(&llama, &llama_table, 1, 0);
    assert_true(chmod(folder, 0755) == 0 && chmod(out, 0555) == 0);
    if (user == 0) assert_int_equal(seteuid(NOBODY), 0); // root may write anywhere
    expect_failed_save(2, "Permission denied");
    assert_int_equal(seteuid(user), 0);
    assert_int_equal(chmod(out, 0755), 0);
    expect_newest(1);
}

// ---- numbers that are none ----

// A value that is not finite is found by the range that holds it, in any of the vectors, and by no other.
static void test_not_finite(void **state) {
    (void)state;
    static const float strange[] = {NAN, INFINITY, -INFINITY};
    static const char *const vectors[] = {"model", "exp_avg", "exp_avg_sq"};
    int64_t place = llama_table.layer[1].channels[MLP_DOWN] + 5, total = llama_table.total;
    float *flat = malloc((size_t)total * sizeof *flat);
    assert_non_null(flat);
    for (int which = 0; which < 3; which++) {
        Error err;
        TrainingState training = state_of(1);
        CheckpointWriter *writer = checkpoint_begin(out, 1, &llama, &llama_table, NULL, &err);
        assert_non_null(writer);
        for (int vector = 0; vector < 3; vector++) {
            for (int64_t i = 0; i < total; i++) flat[i] = 0.5f;
            if (vector == which) flat[place] = strange[which];
            assert_true(checkpoint_write(writer, (CheckpointVector)vector, flat, &err));
        }
        assert_true(checkpoint_commit(writer, &training, 0, &err));
        const char *path = in_out("step-00000001");
        for (int vector = 0; vector < 3; vector++) {
            CheckpointVector v = (CheckpointVector)vector;
            assert_true(checkpoint_read(path, v, &llama_table, 0, place, flat, &err));
            assert_true(checkpoint_read(path, v, &llama_table, place + 1, total, flat, &err));
            assert_int_equal(checkpoint_read(path, v, &llama_table, 0, total, flat, &err), vector != which);
        }
        assert_false(checkpoint_read(path, (CheckpointVector)which, &llama_table, place, place + 1, flat, &err));
        char expected[2 * PROGRAM_PATH];
        snprintf(expected, sizeof expected, "%s/%s.safetensors: tensor %s holds NaN or infinity: ", path,
                 vectors[which], "model.layers.1.mlp.down_proj.weight");
        assert_int_equal(strncmp(err.message, expected, strlen(expected)), 0);
    }
    free(flat);
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, make_checkpoints, remove_folder)
    const struct CMUnitTest tests[] = {
        TEST(test_damage),
        TEST(test_verify_names_the_file),
        TEST(test_kill),
        TEST(test_file_size_limit),
        TEST(test_large_file),
        TEST(test_full_disk),
        TEST(test_read_only_folder),
        TEST(test_not_finite),
    };
#undef TEST
    return cmocka_run_group_tests(tests, make_models, free_models);
}
