// What a run says: numbers as people read them, the line on a terminal and off it, the log.
#include "test/token_files.h"

#include <math.h>
#include <sys/ioctl.h>

#include "terminal/report.h"

static const StepReport STEP = {
    .step = 12,
    .steps = 1000,
    .loss = 2.34567,
    .learning_rate = 3e-4,
    .gradient_norm = 0.8125,
    .tokens_per_second = 12345,
    .machine_fraction = 0.631,
    .seconds_left = 125,
    .validation_loss = NAN,
    .accuracy = NAN,
    .seconds = 0.1,
    .bytes_sent = 1 << 20,
};

static void test_formats(void **state) {
    (void)state;
    typedef struct Case { void (*format)(char[32], double); double value; const char *text; } Case;
    const Case cases[] = {
        {format_bytes, 0, "0 B"},
        {format_bytes, 1023, "1023 B"},
        {format_bytes, 1024, "1.00 KiB"},
        {format_bytes, 1.24 * 1073741824, "1.24 GiB"},
        {format_bytes, 12.44 * 1048576, "12.4 MiB"},
        {format_bytes, 123.6 * 1048576, "124 MiB"},
        {format_bytes, 1048576 - 1, "1.00 MiB"}, // and not 1024 KiB
        {format_bytes, 9.996 * 1024, "10.0 KiB"},
        {format_bytes, 99.96 * 1024, "100 KiB"},
        {format_bytes, -1, "?"},
        {format_bytes, NAN, "?"},
        {format_bytes, INFINITY, "?"},
        {format_count, 0, "0"},
        {format_count, 999, "999"},
        {format_count, 999.7, "1.00K"},
        {format_count, 3.1e6, "3.10M"},
        {format_count, 124439808, "124M"},
        {format_count, 1.5e9, "1.50B"},
        {format_count, 2.5e12, "2.50T"},
        {format_seconds, 0, "0 s"},
        {format_seconds, 0.42, "0.4 s"},
        {format_seconds, 9.96, "10 s"},
        {format_seconds, 59.4, "59 s"},
        {format_seconds, 59.6, "1 m 00 s"},
        {format_seconds, 125, "2 m 05 s"},
        {format_seconds, 3599.7, "1 h 00 m"},
        {format_seconds, 3 * 3600 + 7 * 60 + 59, "3 h 07 m"},
        {format_seconds, 86400 * 2.2, "2 d 04 h"},
        {format_seconds, INFINITY, "?"},
        {format_seconds, NAN, "?"},
        {format_seconds, -3, "?"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[32];
        cases[i].format(text, cases[i].value);
        assert_string_equal(text, cases[i].text);
    }
    const double extremes[] = {1e18, 1e30, 1e300, 1e-300}; // whatever comes, it fits
    for (int i = 0; i < 4; i++) {
        char text[3][32];
        format_bytes(text[0], extremes[i]);
        format_count(text[1], extremes[i]);
        format_seconds(text[2], extremes[i]);
        for (int f = 0; f < 3; f++) assert_in_range(strlen(text[f]), 1, 31);
    }
}

static char *printed_text(const void *bytes, size_t count) {
    FILE *file = tmpfile();
    assert_non_null(file);
    print_text(file, bytes, count);
    rewind(file);
    char *text = read_stream(file, NULL);
    fclose(file);
    return text;
}

static void test_text_is_harmless(void **state) {
    (void)state;
    const char *const cases[][2] = {
        {"plain text,\n\ttabs too", "plain text,\n\ttabs too"},
        {"\x1b[2J\a\b\r\x7f", "\\x1b[2J\\x07\\x08\\x0d\\x7f"},
        {"d\xc3\xa9j\xc3\xa0 \xe2\x82\xac \xf0\x9f\x98\x80", "d\xc3\xa9j\xc3\xa0 \xe2\x82\xac \xf0\x9f\x98\x80"},
        {"\xc2\x9b" "31m", "\\xc2\\x9b31m"},                       // U+009B is ESC [ in one character
        {"\xc0\x8a", "\\xc0\\x8a"},                                // overlong
        {"\xe0\x80\x8a", "\\xe0\\x80\\x8a"},
        {"\xf0\x80\x80\x8a", "\\xf0\\x80\\x80\\x8a"},
        {"\xed\xa0\x80", "\\xed\\xa0\\x80"},                       // a surrogate
        {"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"},              // past U+10FFFF
        {"\xff\xfe", "\\xff\\xfe"},
        {"\x80z", "\\x80z"},                                       // a continuation of nothing
        {"\xe2\x82z", "\\xe2\\x82z"},                              // broken off by another character
        {"z\xe2\x82", "z\\xe2\\x82"},                              // and by the end
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = printed_text(cases[i][0], strlen(cases[i][0]));
        assert_string_equal(text, cases[i][1]);
        free(text);
    }
    char *text = printed_text("a\0b", 3);
    assert_string_equal(text, "a\\x00b");
    free(text);
}

static void test_arena(void **state) {
    (void)state;
    Arena arena = {0};
    arena_take(&arena, "small", 1024);
    arena_take(&arena, "large buffers", 3 << 20);
    arena_take(&arena, "middle", 1 << 20);
    FILE *file = tmpfile();
    assert_non_null(file);
    print_arena(file, &arena);
    rewind(file);
    char *text = read_stream(file, NULL);
    fclose(file);
    assert_string_equal(text, "  large buffers    3.00 MiB   75.0%\n"
                              "  middle           1.00 MiB   25.0%\n"
                              "  small            1.00 KiB    0.0%\n"
                              "  total            4.00 MiB  100.0%\n");
    free(text);
}

// Reports two steps and one with a validation loss; what a child of this process writes on its standard output.
static void report_three_steps(void) {
    Reporter reporter;
    Error err = {0};
    if (!reporter_open(&reporter, NULL, false, 0, &err)) _exit(1);
    StepReport report = STEP;
    reporter_step(&reporter, &report);
    report.step = 500;
    report.validation_loss = 2.5;
    report.accuracy = 0.984;
    reporter_step(&reporter, &report);
    report.step = 1000;
    report.validation_loss = report.accuracy = NAN;
    reporter_step(&reporter, &report);
    reporter_line_end(&reporter);
    reporter_line_end(&reporter); // nothing more to end
    printf("after\n");
    if (!reporter_close(&reporter)) _exit(2);
    fflush(stdout);
    _exit(0);
}

// The output of that with `out` as standard output, read from `in`.
static char *run_child(int in, int out, const char *terminal) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setenv("TERM", terminal, 1);
        dup2(out, STDOUT_FILENO);
        report_three_steps();
    }
    close(out);
    char *text = calloc(1 << 16, 1);
    assert_non_null(text);
    size_t used = 0;
    ssize_t n; // a terminal whose other side is closed answers with an error
    while ((n = read(in, text + used, (1 << 16) - 1 - used)) > 0) used += (size_t)n;
    close(in);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    return text;
}

static char *on_a_terminal(int columns, const char *terminal) {
    int in = posix_openpt(O_RDWR | O_NOCTTY);
    if (in < 0 || grantpt(in) != 0 || unlockpt(in) != 0) return NULL;
    int out = open(ptsname(in), O_RDWR | O_NOCTTY);
    if (out < 0) return NULL;
    struct winsize size = {.ws_row = 24, .ws_col = (unsigned short)columns};
    assert_int_equal(ioctl(out, TIOCSWINSZ, &size), 0);
    return run_child(in, out, terminal);
}

static const char *const PLAIN[] = {
    "step   12/1000  loss  2.3457  lr 3.00e-04  norm  0.812    12345 tokens/s   63.1% of machine    2 m 05 s left",
    ("step  500/1000  loss  2.3457  lr 3.00e-04  norm  0.812    12345 tokens/s   63.1% of machine    2 m 05 s left"
     "  validation 2.5000  accuracy 98.4%"),
    "step 1000/1000  loss  2.3457  lr 3.00e-04  norm  0.812    12345 tokens/s   63.1% of machine",
};

static void test_lines_off_a_terminal(void **state) {
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    char *text = run_child(ends[0], ends[1], "xterm"), expected[1000];
    snprintf(expected, sizeof expected, "%s\n%s\n%s\nafter\n", PLAIN[0], PLAIN[1], PLAIN[2]);
    assert_string_equal(text, expected);
    free(text);
}

static void test_live_line(void **state) {
    (void)state;
    char *text = on_a_terminal(140, "xterm"), expected[1000];
    if (text == NULL) skip(); // no pseudo-terminals here
    const char *rest[] = {strstr(PLAIN[0], "  loss"), strstr(PLAIN[2], "  loss")};
    // 139 columns less "step 12/1000", the rest and " []" leave 28 for the bar; at the end, without "left", all 30.
    snprintf(expected, sizeof expected,
             "\rstep   12/1000 [>%27s]%s\033[K"
             "\r\033[K%s\r\n"
             "\rstep 1000/1000 [==============================]%s\033[K\r\nafter\r\n",
             "", rest[0], PLAIN[1], rest[1]);
    assert_string_equal(text, expected);
    free(text);
}

// On any width the line stays within it, or rewriting would leave parts behind.
static void test_live_line_fits(void **state) {
    (void)state;
    for (int columns = 1; columns <= 220; columns += 7) {
        char *text = on_a_terminal(columns, "xterm");
        if (text == NULL) skip();
        char *end = strstr(text, "\033[K");
        assert_non_null(end);
        assert_true(text[0] == '\r');
        assert_true(end - (text + 1) < columns);
        free(text);
    }
}

static void test_dumb_terminal_gets_lines(void **state) {
    (void)state;
    char *text = on_a_terminal(140, "dumb");
    if (text == NULL) skip();
    assert_memory_equal(text, PLAIN[0], strlen(PLAIN[0]));
    assert_null(strchr(text, '\033'));
    free(text);
}

// Runs the reporter with standard output out of the way. False, without an error: the log could not be written.
static bool log_step(const char *path, bool append, const StepReport *report, Error *err) {
    fflush(stdout);
    int saved = dup(STDOUT_FILENO), nowhere = open("/dev/null", O_WRONLY);
    assert_true(saved >= 0 && nowhere >= 0);
    dup2(nowhere, STDOUT_FILENO);
    Reporter reporter;
    bool ok = reporter_open(&reporter, path, append, report->step - 1, err);
    if (ok) {
        reporter_log(&reporter, report);
        reporter_step(&reporter, report);
        ok = reporter_close(&reporter);
    }
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    close(nowhere);
    return ok;
}

static void test_share_of_the_machine(void **state) {
    (void)state;
    double rate = 200;
    assert_true(machine_share(50, &rate) == 0.25);
    assert_true(machine_share(400, &rate) == 1); // more than was measured: so the machine has that much
    assert_true(rate == 400);
    assert_true(machine_share(100, &rate) == 0.25);
    rate = 0; // not measured
    assert_true(isnan(machine_share(100, &rate)));
    assert_true(rate == 0);
}

static void test_log(void **state) {
    char path[PROGRAM_PATH];
    path_join(path, *state, "log.jsonl");
    Error err = {0};
    StepReport report = STEP;
    must(log_step(path, false, &report, &err), &err);
    char *text = read_file(path, NULL);
    assert_string_equal(text, "{\"step\": 12, \"loss\": 2.34567, \"lr\": 0.0003, \"grad_norm\": 0.8125, "
                              "\"tokens_per_second\": 12345, \"machine_fraction\": 0.631, \"seconds\": 0.1, "
                              "\"bytes_sent\": 1048576}\n");
    free(text);

    report.step = 13;
    report.loss = INFINITY;
    report.gradient_norm = NAN;
    report.validation_loss = 1.0 / 3.0;
    must(log_step(path, true, &report, &err), &err);
    text = read_file(path, NULL);
    char *second = strchr(text, '\n') + 1;
    assert_true(strstr(second, "{\"step\": 13, \"loss\": null, \"lr\": 0.0003, \"grad_norm\": null, ") == second);
    assert_string_equal(strstr(second, "\"val_loss\""), "\"val_loss\": 0.3333333333333333}\n");
    free(text);

    report.accuracy = 0.75; // of a synthetic task
    must(log_step(path, false, &report, &err), &err);
    text = read_file(path, NULL);
    assert_string_equal(strstr(text, "\"val_loss\""), "\"val_loss\": 0.3333333333333333, \"val_accuracy\": 0.75}\n");
    free(text);

    must(log_step(path, false, &report, &err), &err); // not appended: begun anew
    text = read_file(path, NULL);
    assert_memory_equal(text, "{\"step\": 13,", 12);
    assert_string_equal(strchr(text, '\n'), "\n");
    free(text);
}

static void test_logged_numbers_read_back_exactly(void **state) {
    char path[PROGRAM_PATH];
    path_join(path, *state, "log.jsonl");
    const double values[] = {0.1,   1.0 / 3,   2.0 / 3,  1e-310,  5e-324, 1.7976931348623157e308, 123456789.123456789,
                             -0.25, 6.02214e23, 1 + 0x1p-52, M_PI, 0.0,    9007199254740993.0,     1e22};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        Error err = {0};
        StepReport report = STEP;
        report.loss = values[i];
        must(log_step(path, false, &report, &err), &err);
        char *text = read_file(path, NULL), *key = strstr(text, "\"loss\": ");
        assert_non_null(key);
        assert_true(strtod(key + 8, NULL) == values[i]);
        free(text);
    }
}

// A run that was killed while it wrote leaves part of a line: the resumed one drops it.
static void test_appending_after_a_broken_line(void **state) {
    char path[PROGRAM_PATH];
    path_join(path, *state, "log.jsonl");
    const char *const before[] = {"", "{\"step\": 1}\n", "{\"step\": 1}\n{\"step\": 2, \"lo", "{\"st"};
    const char *const kept[] = {"", "{\"step\": 1}\n", "{\"step\": 1}\n", ""};
    for (int i = 0; i < 4; i++) {
        write_file(path, before[i], strlen(before[i]));
        Error err = {0};
        must(log_step(path, true, &STEP, &err), &err);
        char *text = read_file(path, NULL);
        size_t length = strlen(kept[i]);
        assert_memory_equal(text, kept[i], length);
        assert_memory_equal(text + length, "{\"step\": 12,", 12);
        assert_string_equal(strchr(text + length, '\n'), "\n");
        free(text);
    }
    // What was written of steps that are done again is cut off, from the first one on.
    static const char later[] = "{\"step\": 11, \"loss\": 1}\n{\"step\": 12, \"loss\": 2}\n{\"step\": 13}\n{\"step\": 9}\n";
    write_file(path, later, strlen(later));
    Error no_error = {0};
    must(log_step(path, true, &STEP, &no_error), &no_error);
    char *whole = read_file(path, NULL);
    size_t first = strcspn(later, "\n") + 1;
    assert_memory_equal(whole, later, first);
    assert_memory_equal(whole + first, "{\"step\": 12, \"loss\": 2.3", 24);
    assert_string_equal(strchr(whole + first, '\n'), "\n");
    free(whole);
    assert_int_equal(remove(path), 0); // nothing to append to yet
    Error err = {0};
    must(log_step(path, true, &STEP, &err), &err);
}

static void test_log_that_cannot_be_written(void **state) {
    char path[PROGRAM_PATH];
    Error err = {0};
    assert_false(log_step(path_join(path, *state, "no/such/folder"), false, &STEP, &err));
    assert_error(&err, "--log", "no/such/folder", "No such file", NULL);
    assert_false(log_step(*state, true, &STEP, &err));
    assert_error(&err, "--log", "directory", NULL);
    write_file(path_join(path, *state, "notes"), "my notes, whose last line has no end", 36);
    assert_false(log_step(path, true, &STEP, &err));
    assert_error(&err, "--log", "this file is none", NULL);
    char *notes = read_file(path, NULL);
    assert_string_equal(notes, "my notes, whose last line has no end");
    free(notes);
    assert_int_equal(mkfifo(path_join(path, *state, "pipe"), 0600), 0);
    for (int append = 0; append < 2; append++) {
        assert_false(log_step(path, append, &STEP, &err));
        assert_error(&err, "--log", "nobody reads this pipe", NULL);
    }
    if (!path_exists("/dev/full")) skip();
    for (int append = 0; append < 2; append++) { // said on standard error, and the step is reported all the same
        err = (Error){0};
        assert_false(log_step("/dev/full", append, &STEP, &err));
        assert_int_equal(err.exit_code, 0);
    }
}

#define TEST_WITH_FOLDER(f) cmocka_unit_test_setup_teardown(f, temp_folder_setup, temp_folder_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_share_of_the_machine),
        cmocka_unit_test(test_text_is_harmless),
        cmocka_unit_test(test_arena),
        cmocka_unit_test(test_lines_off_a_terminal),
        cmocka_unit_test(test_live_line),
        cmocka_unit_test(test_live_line_fits),
        cmocka_unit_test(test_dumb_terminal_gets_lines),
        TEST_WITH_FOLDER(test_log),
        TEST_WITH_FOLDER(test_logged_numbers_read_back_exactly),
        TEST_WITH_FOLDER(test_appending_after_a_broken_line),
        TEST_WITH_FOLDER(test_log_that_cannot_be_written),
    };
    return cmocka_run_group_tests_name("report", tests, NULL, NULL);
}
