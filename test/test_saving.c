// Nothing is lost to what happens beside training: signals, a folder or a log that cannot be written, a data file that
// is cut short, two runs in one folder; and a resumed run goes on as it was.
//
// Every case runs the program on a tiny model, for more steps than anybody waits for, until something ends it.
#include "test/compare.h"
#include "test/folder.h"
#include "test/ranks.h"

#include <dirent.h>

enum { TIME_LIMIT = 30 };

// ---- one run --------------------------------------------------------------------------------------------------------

// A command of a tiny model for `steps` steps in folder/NAME, with a log there; more words may follow. The paths are
// kept in the command's own static room, for one command at a time.
static void tiny_command(Command *command, const char *name, const char *steps, bool resume) {
    static char data[PROGRAM_PATH], out[PROGRAM_PATH], log[PROGRAM_PATH];
    in_folder(data, "text");
    in_folder(out, name);
    snprintf(log, sizeof log, "%.4000s.jsonl", out);
    add_words(command, train_gpt_path(), "--device", "cpu", "--data", data, "--out", out, "--log", log, NULL);
    add_words(command, "--steps", steps, "--context", "32", "--sample-tokens", "0", "--eval-windows", "1", NULL);
    add_words(command, "--threads", "1", "--keep", "0", NULL);
    if (resume) add_word(command, "--resume");
    else add_words(command, "--layers", "1", "--heads", "2", "--dim", "16", NULL);
}

static int64_t steps_logged(const char *name) {
    char path[PROGRAM_PATH], file[256];
    snprintf(file, sizeof file, "%s.jsonl", name);
    if (!path_exists(in_folder(path, file))) return 0;
    Log log = read_log(path);
    return log.count == 0 ? 0 : log.step[log.count - 1];
}

static void wait_for_step(const char *name, int64_t step) {
    for (double until = program_clock() + 20 * program_slowness(); program_clock() < until; program_sleep(0.01))
        if (steps_logged(name) >= step) return;
    fail_msg("no step %lld within 20 s", (long long)step);
}

// The newest whole checkpoint in folder/NAME; -1: none. Fails if a run that has ended left anything half-written.
static int64_t newest_of(const char *name, bool ended) {
    char path[PROGRAM_PATH];
    int64_t step = -1;
    DIR *directory = opendir(in_folder(path, name));
    assert_non_null(directory);
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (strncmp(entry->d_name, "step-", 5) != 0) continue;
        bool whole = entry->d_name[5 + strspn(entry->d_name + 5, "0123456789")] == '\0';
        if (!whole && ended) fail_msg("%s/%s was left", path, entry->d_name);
        if (!whole) continue;
        if (atoll(entry->d_name + 5) > step) step = atoll(entry->d_name + 5);
    }
    closedir(directory);
    return step;
}

static int64_t newest(const char *name) { return newest_of(name, true); }

static void expect(RunningProgram *program, int exit_code, const char *said) {
    ProgramResult result = finish_program(program, TIME_LIMIT);
    if (result.timed_out || result.exit_code != exit_code || !strstr(result.err, said))
        fail_msg("exit code %d, expected %d with \"%s\": %s%s", result.exit_code, exit_code, said, result.out,
                 result.err);
    free_result(&result);
}

static RunningProgram start_tiny(const char *name, const char *option, const char *value) {
    Command command = {0};
    tiny_command(&command, name, "100000000", false);
    if (option != NULL) add_words(&command, option, value, NULL);
    return start_program(command.argv);
}

// ---- signals --------------------------------------------------------------------------------------------------------

// A launcher's signals reach the ranks a moment apart, and more than once: that is one request.
static void signals_a_moment_apart(void **state) {
    (void)state;
    if (!mpi_can_be_tested()) skip();
    Command command = {0};
    pid_t rank[2];
    assert_true(add_mpirun(&command, 2));
    tiny_command(&command, "apart", "100000000", false);
    add_words(&command, "--sp", "2", NULL);
    RunningProgram program = start_program(command.argv);
    wait_for_step("apart", 2);
    assert_int_equal(program_children(program.pid, rank, 2), 2);
    for (int i = 0; i < 2; i++) {
        for (int again = 0; again < 2; again++) kill(rank[i], SIGTERM);
        program_sleep(0.2);
    }
    ProgramResult result = finish_program(&program, TIME_LIMIT);
    if (result.exit_code != 128 + SIGTERM) fail_msg("exit code %d: %s%s", result.exit_code, result.out, result.err);
    free_result(&result);
    assert_int_equal(newest("apart"), steps_logged("apart"));
}

// What was ignored when it started stays so: by nohup, or by the shell that put it into the background.
static void ignored_signals_stay_ignored(void **state) {
    (void)state;
    Command command = {0};
    add_words(&command, "sh", "-c", "trap '' HUP INT; exec \"$@\"", "sh", NULL);
    tiny_command(&command, "nohup", "100000000", false);
    RunningProgram program = start_program(command.argv);
    wait_for_step("nohup", 1);
    kill(program.pid, SIGHUP);
    kill(program.pid, SIGINT);
    wait_for_step("nohup", steps_logged("nohup") + 20);
    kill(program.pid, SIGTERM);
    expect(&program, 128 + SIGTERM, "asked to stop: the step at work is finished and saved in ");
}

static void hangup_saves(void **state) {
    (void)state;
    RunningProgram program = start_tiny("hangup", NULL, NULL);
    wait_for_step("hangup", 1);
    kill(program.pid, SIGHUP);
    expect(&program, 128 + SIGHUP, "asked to stop");
    assert_int_equal(newest("hangup"), steps_logged("hangup"));
}

// SIGUSR1 saves, and training goes on.
static void user_signal_saves(void **state) {
    (void)state;
    RunningProgram program = start_tiny("usr1", "--sp", "2");
    wait_for_step("usr1", 2);
    int64_t asked_at = steps_logged("usr1"), saved;
    kill(program.pid, SIGUSR1);
    double until = program_clock() + 10 * program_slowness();
    while ((saved = newest_of("usr1", false)) < 0 && program_clock() < until) program_sleep(0.05);
    assert_true(saved >= asked_at);
    wait_for_step("usr1", saved + 5);
    kill(program.pid, SIGTERM);
    expect(&program, 128 + SIGTERM, "");
    assert_true(newest("usr1") > saved);
}

static void user_signal_without_out(void **state) {
    (void)state;
    char data[PROGRAM_PATH], log[PROGRAM_PATH];
    const char *const argv[] = {train_gpt_path(),
                                "--device",
                                "cpu",
                                "--data",
                                in_folder(data, "text"),
                                "--steps",
                                "100000000",
                                "--context",
                                "32",
                                "--layers",
                                "1",
                                "--heads",
                                "2",
                                "--dim",
                                "16",
                                "--log",
                                in_folder(log, "no_out.jsonl"),
                                "--sp",
                                "1",
                                "--threads",
                                "1",
                                NULL};
    RunningProgram program = start_program(argv);
    wait_for_step("no_out", 1);
    kill(program.pid, SIGUSR1);
    wait_for_step("no_out", steps_logged("no_out") + 3);
    kill(program.pid, SIGTERM);
    expect(&program, 128 + SIGTERM, "SIGUSR1 asks to save, but no --out was given; training goes on");
}

// Nobody reads the run's full pipe, and it waits to print a line (mpirun reads none while it ends its ranks): what a
// signal asks comes first.
static void full_pipe_does_not_hold_a_save(void **state) {
    (void)state;
    char path[PROGRAM_PATH];
    Command command = {0};
    if (mkfifo(in_folder(path, "fifo"), 0666) != 0) fail_msg("cannot make %s", path);
    int reader = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    assert_true(reader >= 0 && fcntl(reader, F_SETPIPE_SZ, 4096) >= 0);
    add_words(&command, "sh", "-c", "out=$1; shift; exec \"$@\" > \"$out\"", "sh", path, NULL);
    tiny_command(&command, "piped", "100000000", false);
    RunningProgram program = start_program(command.argv);
    wait_for_step("piped", 5);
    for (int64_t before = 0; before != steps_logged("piped"); program_sleep(0.5 * program_slowness()))
        before = steps_logged("piped");
    kill(program.pid, SIGTERM);
    double until = program_clock() + 10 * program_slowness();
    while (newest_of("piped", false) < 0 && program_clock() < until) program_sleep(0.05);
    assert_true(newest_of("piped", false) >= steps_logged("piped"));
    close(reader);
    expect(&program, 128 + SIGTERM, "asked to stop");
}

// Two seconds after the first, the same signal means it. The step at work is a long one: attention over 64 sequences.
static void asked_again_ends_at_once(void **state) {
    (void)state;
    char data[PROGRAM_PATH], log[PROGRAM_PATH];
    const char *const argv[] = {train_gpt_path(),
                                "--device",
                                "cpu",
                                "--data",
                                in_folder(data, "text"),
                                "--layers",
                                "1",
                                "--heads",
                                "1",
                                "--dim",
                                "64",
                                "--context",
                                "16384",
                                "--batch",
                                "64",
                                "--sp",
                                "1",
                                "--threads",
                                "1",
                                "--log",
                                in_folder(log, "long.jsonl"),
                                NULL};
    RunningProgram program = start_program(argv);
    double until = program_clock() + 20 * program_slowness();
    while (!path_exists(log) && program_clock() < until) program_sleep(0.05); // opened right before the first step
    program_sleep(0.5 * program_slowness());
    kill(program.pid, SIGTERM);
    program_sleep(1);
    kill(program.pid, SIGTERM); // the same request
    program_sleep(1.5);
    double last = program_clock();
    kill(program.pid, SIGTERM);
    ProgramResult result = finish_program(&program, TIME_LIMIT);
    assert_int_equal(result.exit_code, 128 + SIGTERM);
    assert_false(result.timed_out);
    if (!strstr(result.err, "asked to stop")) fail_msg("it ended before: %s%s", result.out, result.err);
    assert_true(program_clock() - last < 1.5 * program_slowness());
    free_result(&result);
}

// ---- saving ---------------------------------------------------------------------------------------------------------

static void saves_by_time(void **state) {
    (void)state;
    RunningProgram program = start_tiny("minutes", "--save-minutes", "0.005");
    wait_for_step("minutes", 1);
    int64_t first, second;
    double until = program_clock() + 20 * program_slowness();
    while ((first = newest_of("minutes", false)) < 0 && program_clock() < until) program_sleep(0.05);
    while ((second = newest_of("minutes", false)) <= first && program_clock() < until) program_sleep(0.05);
    assert_true(first > 0 && second > first);
    kill(program.pid, SIGTERM);
    expect(&program, 128 + SIGTERM, "");
}

// A log on a full disk (here: a limit on the size of files, which checkpoints of this size stay below) ends nothing.
static void full_log_ends_nothing(void **state) {
    (void)state;
    if (!path_exists("/dev/full")) skip();
    Command command = {0};
    tiny_command(&command, "full_log", "30", false);
    for (int i = 0; i < command.count; i++)
        if (strcmp(command.argv[i], "--log") == 0) command.argv[i + 1] = "/dev/full";
    RunningProgram program = start_program(command.argv);
    expect(&program, 1,
           "train_gpt: --log /dev/full: cannot write: No space left on device; training goes on without it\n");
    assert_int_equal(newest("full_log"), 30);
}

static void write_text(const char *name, size_t bytes) {
    char path[PROGRAM_PATH], *text = malloc(bytes);
    assert_non_null(text);
    for (size_t i = 0; i < bytes; i++) text[i] = (char)('a' + (i * i + i / 7) % 26);
    write_file(in_folder(path, name), text, bytes);
    free(text);
}

// What was trained before a data file was cut short is saved, at the step before the one that could not be read; the
// run resumes once the file is back, at the place in the data where it was.
static void data_cut_short(void **state) {
    (void)state;
    char data[PROGRAM_PATH], whole[PROGRAM_PATH], x[PROGRAM_PATH], y[PROGRAM_PATH], file[64], number[32];
    in_folder(data, "text");
    in_folder(whole, "whole");
    size_t bytes;
    char *text = read_file(data, &bytes);
    RunningProgram program = start_tiny("cut", "--sp", "2");
    wait_for_step("cut", 2);
    if (truncate(data, 1000) != 0) fail_msg("cannot cut %s", data);
    ProgramResult result = finish_program(&program, TIME_LIMIT);
    write_file(data, text, bytes);
    free(text);
    assert_int_equal(result.exit_code, 1);
    int64_t saved = newest("cut");
    char expected[300];
    snprintf(expected, sizeof expected, "; step %lld is saved in ", (long long)saved);
    if (saved < 2 || !strstr(result.err, "bytes while in use; put it back and resume") || !strstr(result.err, expected))
        fail_msg("saved %lld: %s", (long long)saved, result.err);
    assert_true(steps_logged("cut") == saved);
    free_result(&result);

    // A run that was never stopped arrives at the same bits.
    Command resumed = {0}, straight = {0};
    snprintf(number, sizeof number, "%lld", (long long)saved + 2);
    tiny_command(&resumed, "cut", number, true);
    add_words(&resumed, "--sp", "2", "--schedule", "constant", NULL);
    RunningProgram second = start_program(resumed.argv);
    expect(&second, 0, "");
    tiny_command(&straight, "uncut", number, false);
    add_words(&straight, "--sp", "2", "--schedule", "constant", NULL);
    RunningProgram third = start_program(straight.argv);
    expect(&third, 0, "");
    snprintf(file, sizeof file, "cut/step-%08lld/training_state.json", (long long)saved + 2);
    char *state_cut = read_file(in_folder(x, file), NULL);
    snprintf(file, sizeof file, "uncut/step-%08lld/training_state.json", (long long)saved + 2);
    char *state_uncut = read_file(in_folder(y, file), NULL);
    const char *key = "\"loader_cursor\": ";
    assert_memory_equal(strstr(state_cut, key), strstr(state_uncut, key), strlen(key) + 3);
    free(state_cut);
    free(state_uncut);
}

// The same where it is the validation data, at the first evaluation that cannot read them.
static void validation_cut_short(void **state) {
    (void)state;
    char path[PROGRAM_PATH];
    write_text("held_out", 200000);
    Command command = {0};
    tiny_command(&command, "held", "100000000", false);
    add_words(&command, "--val-data", in_folder(path, "held_out"), "--eval-every", "500", "--sp", "2", NULL);
    RunningProgram program = start_program(command.argv);
    wait_for_step("held", 2);
    if (truncate(path, 10) != 0) fail_msg("cannot cut %s", path);
    ProgramResult result = finish_program(&program, TIME_LIMIT);
    int64_t saved = newest("held");
    char expected[300];
    snprintf(expected, sizeof expected, "; step %lld is saved in ", (long long)saved);
    if (result.exit_code != 1 || saved < 500 || saved % 500 != 0 || !strstr(result.err, expected))
        fail_msg("exit code %d, saved %lld: %s", result.exit_code, (long long)saved, result.err);
    free_result(&result);
}

// Text alone is wanted: nothing is evaluated first.
static void sample_alone(void **state) {
    (void)state;
    char data[PROGRAM_PATH];
    const char *const argv[] = {train_gpt_path(),
                                "--device",
                                "cpu",
                                "--data",
                                in_folder(data, "text"),
                                "--steps",
                                "0",
                                "--sample",
                                "abc",
                                "--sample-tokens",
                                "4",
                                "--context",
                                "32",
                                "--layers",
                                "1",
                                "--dim",
                                "16",
                                "--heads",
                                "2",
                                NULL};
    ProgramResult result = run_program(argv, TIME_LIMIT);
    assert_int_equal(result.exit_code, 0);
    assert_null(strstr(result.out, "validation loss"));
    assert_non_null(strstr(result.out, "sample: 4 tokens after a prompt of 3\n"));
    free_result(&result);
}

static void zero_steps_save(void **state) {
    (void)state;
    Command command = {0};
    tiny_command(&command, "zero", "0", false);
    RunningProgram program = start_program(command.argv);
    expect(&program, 0, "");
    assert_int_equal(newest("zero"), 0);
}

// ---- the folder -----------------------------------------------------------------------------------------------------

static void folder_of_another_run(void **state) {
    (void)state;
    RunningProgram first = start_tiny("locked", NULL, NULL);
    wait_for_step("locked", 1);
    Command second = {0}, third = {0};
    tiny_command(&second, "locked", "10", false);
    RunningProgram other = start_program(second.argv);
    expect(&other, 2, "is at work here; wait for its end, or give another folder");
    tiny_command(&third, "locked", "10", true);
    other = start_program(third.argv);
    expect(&other, 2, "is at work here; wait for its end, or give another folder");
    kill(first.pid, SIGKILL); // no farewell: the kernel releases the lock
    ProgramResult result = finish_program(&first, TIME_LIMIT);
    free_result(&result);
    other = start_program(second.argv);
    expect(&other, 0, "");
}

// Found out before the first step, by somebody whom permissions bind.
static void folder_without_permission(void **state) {
    (void)state;
    char path[PROGRAM_PATH], out[PROGRAM_PATH];
    assert_int_equal(mkdir(in_folder(path, "readonly"), 0555), 0);
    Command command = {0};
    if (geteuid() == 0) {
        const char *const words[] = {"setpriv", "--reuid=65534", "--clear-groups", train_gpt_path(), "--help", NULL};
        ProgramResult help = run_program(words, 20);
        int exit_code = help.exit_code;
        free_result(&help);
        if (exit_code != 0) skip(); // there is no setpriv, or the program lies where only root may go
        add_words(&command, "setpriv", "--reuid=65534", "--clear-groups", NULL);
    }
    add_words(&command, train_gpt_path(), "--device", "cpu", "--sp", "1", "--steps", "1", "--out", NULL);
    add_word(&command, path_join(out, folder, "readonly"));
    RunningProgram program = start_program(command.argv);
    expect(&program, 2, "readonly: cannot write in it: Permission denied; give a folder that can be written");
    command.argv[command.count - 1] = path_join(out, path, "deeper");
    program = start_program(command.argv);
    expect(&program, 2, "deeper: cannot make this folder: Permission denied; give a folder that can be written");
}

// ---- resuming -------------------------------------------------------------------------------------------------------

static double logged_rate(const char *name) { // of the last step
    char path[PROGRAM_PATH], file[256];
    snprintf(file, sizeof file, "%s.jsonl", name);
    char *text = read_file(in_folder(path, file), NULL), *last = text;
    for (char *at = text; (at = strstr(at, "\"lr\": ")); at += 6) last = at + 6;
    double rate = strtod(last, NULL);
    free(text);
    return rate;
}

// What the command line does not say is as it was; what it says otherwise is told.
static void resumes_as_it_was(void **state) {
    (void)state;
    Command first = {0}, second = {0}, third = {0};
    tiny_command(&first, "kept", "4", false);
    add_words(&first, "--lr", "0.0011", "--warmup", "2", "--schedule", "constant", "--weight-decay", "0.3", "--beta2",
              "0.9", NULL);
    RunningProgram program = start_program(first.argv);
    expect(&program, 0, "");
    assert_true(logged_rate("kept") == 0.0011);
    tiny_command(&second, "kept", "6", true);
    add_words(&second, "--sp", "2", NULL);
    program = start_program(second.argv);
    ProgramResult result = finish_program(&program, TIME_LIMIT);
    if (result.exit_code != 0) fail_msg("%s%s", result.out, result.err);
    assert_non_null(strstr(result.out, "step-00000004, step 4; otherwise than before: --steps 6 (was 4)\n"));
    assert_non_null(strstr(result.out, "--weight-decay 0.3"));
    assert_non_null(strstr(result.out, "--beta2 0.9 "));
    free_result(&result);
    assert_true(logged_rate("kept") == 0.0011);

    tiny_command(&third, "kept", "6", true);
    third.argv[third.count - 1] = "--resume";
    add_words(&third, "--lr", "0.002", "--beta1", "0.9", NULL);
    for (int i = 0; i < third.count; i++)
        if (strcmp(third.argv[i], "6") == 0) third.argv[i] = "8";
    program = start_program(third.argv);
    result = finish_program(&program, TIME_LIMIT);
    if (result.exit_code != 0) fail_msg("%s%s", result.out, result.err);
    assert_non_null(strstr(result.out, "; otherwise than before: --steps 8 (was 6), --lr 0.002 (was 0.0011)\n"));
    free_result(&result);
    assert_true(logged_rate("kept") == 0.002);
}

static void nothing_left_to_do(void **state) {
    (void)state;
    Command first = {0}, second = {0};
    tiny_command(&first, "done", "3", false);
    RunningProgram program = start_program(first.argv);
    expect(&program, 0, "");
    tiny_command(&second, "done", "3", true);
    program = start_program(second.argv);
    ProgramResult result = finish_program(&program, TIME_LIMIT);
    assert_int_equal(result.exit_code, 0);
    assert_non_null(strstr(result.out, "resumed at step 3 of 3: no step is left to do; --steps gives more\n"));
    free_result(&result);
}

// After a kill and a resume the log has every step once.
static void log_after_kill_and_resume(void **state) {
    (void)state;
    char path[PROGRAM_PATH];
    RunningProgram program = start_tiny("killed", "--save-every", "7");
    wait_for_step("killed", 10);
    kill(program.pid, SIGKILL);
    ProgramResult result = finish_program(&program, TIME_LIMIT);
    free_result(&result);
    int64_t last = steps_logged("killed");
    char steps[32];
    snprintf(steps, sizeof steps, "%lld", (long long)last + 3);
    Command command = {0};
    tiny_command(&command, "killed", steps, true);
    program = start_program(command.argv);
    expect(&program, 0, "");
    Log log = read_log(in_folder(path, "killed.jsonl"));
    assert_int_equal(log.count, last + 3);
    for (int i = 0; i < log.count; i++) assert_int_equal(log.step[i], i + 1);
}

static int make_files(void **state) {
    make_folder(state);
    write_text("text", 200000);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(signals_a_moment_apart),
        cmocka_unit_test(ignored_signals_stay_ignored),
        cmocka_unit_test(hangup_saves),
        cmocka_unit_test(user_signal_saves),
        cmocka_unit_test(user_signal_without_out),
        cmocka_unit_test(full_pipe_does_not_hold_a_save),
        cmocka_unit_test(asked_again_ends_at_once),
        cmocka_unit_test(saves_by_time),
        cmocka_unit_test(full_log_ends_nothing),
        cmocka_unit_test(data_cut_short),
        cmocka_unit_test(validation_cut_short),
        cmocka_unit_test(sample_alone),
        cmocka_unit_test(zero_steps_save),
        cmocka_unit_test(folder_of_another_run),
        cmocka_unit_test(folder_without_permission),
        cmocka_unit_test(resumes_as_it_was),
        cmocka_unit_test(nothing_left_to_do),
        cmocka_unit_test(log_after_kill_and_resume),
    };
    return cmocka_run_group_tests_name("saving", tests, make_files, remove_folder);
}
