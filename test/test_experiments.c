// The experiment context_by_application in its quick form, whose data have known answers: of a text whose second half
// repeats the first, a context of 32 tokens knows the half of all targets that a context of 8 cannot, those behind 16
// tokens; of the same text shuffled neither knows any. That it is the same experiment when it is killed; and how
// corpora are cut (test/check_splits.py).
#include "test/shell.h"

#include <math.h>

enum { HALF = 16, BINS = 10, TOKENS = 245760, MOST_LINES = 200 }; // BINS: half octaves of 1 to 32
static const double unknown = 4; // bits of one of 16 symbols, all as likely

// ---- known answers --------------------------------------------------------------------------------------------------

static double bits_of(const char *application, const char *arm) {
    char path[PROGRAM_PATH], pattern[128];
    char *rows = read_file(in_folder(path, "whole/results.csv"), NULL);
    snprintf(pattern, sizeof pattern, "\n%s,%s,2,%d,", application, arm, TOKENS);
    const char *row = strstr(rows, pattern);
    if (row == NULL) fail_msg("no row %s in %s", pattern, rows);
    double bits = strtod(row + strlen(pattern), NULL);
    free(rows);
    return bits;
}

// Bits by the number of tokens read, into bits[1 ... 2 HALF].
static void read_positions(const char *application, double bits[2 * HALF + 1]) {
    char path[PROGRAM_PATH], pattern[128];
    char *rows = read_file(in_folder(path, "whole/positions.csv"), NULL);
    int n = snprintf(pattern, sizeof pattern, "\n%s,32,2,%d,", application, TOKENS), found = 0;
    for (const char *row = rows; (row = strstr(row, pattern)) != NULL; row += n) {
        double read, value;
        assert_int_equal(sscanf(row + n, "%lf,%lf", &read, &value), 2);
        assert_in_range((int)read, 1, 2 * HALF);
        bits[(int)read] = value;
        found++;
    }
    free(rows);
    assert_int_equal(found, BINS);
}

static char *table;

// What cannot be known costs 4 bits, give or take what a model imagines (a tenth of a bit here), and what can be 0 in
// the end: half of 4 lies between.
static void test_known_answers(void **state) {
    (void)state;
    skip_without_plots();
    char *said = run_shell("\"$tree\"/scripts/experiments/context_by_application --form quick --out whole --train-gpt "
                           "\"$program\" && cat whole/table.md",
                           0);
    expect_in(said, "12/12  ");
    expect_in(said, "All 12 results are there.");
    table = strstr(said, "Bits per symbol") == NULL ? NULL : strdup(strstr(said, "Bits per symbol"));
    free(said);
    assert_true(bits_of("repeats", "8") > unknown - 0.25);
    assert_true(bits_of("repeats", "32") < unknown - 1); // 2 less, once all is learned
    assert_true(fabs(bits_of("shuffled", "8") - bits_of("shuffled", "32")) < 0.1);

    double bits[2 * HALF + 1] = {0};
    read_positions("repeats", bits);
    for (int read = 1; read <= 2 * HALF; read++) { // no bin reaches into both halves; the last target is of the next text
        if (bits[read] == 0) continue;
        bool known = read >= HALF && read < 2 * HALF;
        if (known ? bits[read] > unknown / 2 : bits[read] < unknown / 2) fail_msg("%d read: %g bits", read, bits[read]);
    }
    read_positions("shuffled", bits);
    for (int read = 1; read <= 2 * HALF; read++)
        if (bits[read] != 0 && fabs(bits[read] - unknown) > 0.5) fail_msg("%d read: %g bits", read, bits[read]);
    free(run_shell("for plot in gain bits positions; do\n"
                   "grep -q '<svg' whole/$plot.svg && [ -s whole/$plot.png ] || exit 1; done",
                   0));
}

// ---- killed and resumed ---------------------------------------------------------------------------------------------

// Ended with a signal each time another row is there: first so that it can save, then without warning.
static void test_killed(void **state) {
    (void)state;
    skip_without_plots();
    char *said = run_shell(
        "experiment() { exec \"$tree\"/scripts/experiments/context_by_application --form quick --out parts --train-gpt "
        "\"$program\"; }\n"
        "rows() { cat parts/results.csv 2> /dev/null | wc -l; }\n"
        "end_at() { experiment & while [ $(rows) -lt $2 ] && kill -0 $!; do sleep 0.05; done\n"
        "kill -$1 $!; wait $!; echo \"ended: $?\"; }\n"
        "end_at TERM 3; end_at KILL 6\n"
        "printf 'shuffled,8,2,1228' >> parts/results.csv\n"
        "experiment",
        0);
    expect_in(said, "context_by_application: stopped; the same command goes on\n");
    expect_in(said, "ended: 130\n");
    expect_in(said, "ended: 137\n");
    free(said);
    said = run_shell("cat parts/table.md", 0);
    assert_string_equal(said, table);
    free(said);
    free(run_shell("for o in whole parts; do\n"
                   "cut -d , -f 1-5 $o/results.csv | sort > $o/results; sort $o/positions.csv > $o/positions; done\n"
                   "cmp whole/results parts/results && cmp whole/positions parts/positions",
                   0));
}

// ---- bad input ------------------------------------------------------------------------------------------------------

static void expect_failure(const char *options, int exit_code, const char *message) {
    char command[512];
    snprintf(command, sizeof command,
             "\"$tree\"/scripts/experiments/context_by_application --train-gpt \"$program\" %s", options);
    char *said = run_shell(command, exit_code);
    expect_in(said, message);
    free(said);
}

static void test_bad_input(void **state) {
    (void)state;
    skip_without_plots();
    expect_failure("--out o --form quick --train-gpt none/train_gpt", 2,
                   "none/train_gpt is not there: build it (make), or give --train-gpt PATH\n");
    expect_failure("--out whole --form cpu --report-only", 1,
                   "whole/settings.json: results of another form (quick, not cpu); give another --out\n");
    expect_failure("--out o --form quick --jobs -1", 2, "--jobs -1: must not be negative\n");
    free(run_shell("mkdir -p o && echo application,other > o/results.csv", 0));
    expect_failure("--out o --form quick", 1, "o/results.csv: line 1 is not of this experiment; give another --out\n");
}

// ---- corpora --------------------------------------------------------------------------------------------------------

static void test_splits(void **state) {
    (void)state;
    skip_without_python();
    free(run_shell("python3 \"$tree\"/test/check_splits.py", 0));
}

// ---- the fit --------------------------------------------------------------------------------------------------------

// Of points on a law, with noise of a hundredth of a bit, the fit finds the law within twice what it says it may be off
// by; and it refuses points that do not determine one.
static void test_fit(void **state) {
    (void)state;
    skip_without_plots();
    char *said = run_shell(
        "cat > fits.py << 'END'\n"
        "import os, sys\n"
        "sys.dont_write_bytecode = True\n"
        "sys.path[:0] = [os.environ['tree'] + '/scripts/experiments', os.environ['tree'] + '/scripts']\n"
        "import plotting\n"
        "plotting.needs('scipy')\n"
        "import fit, random\n"
        "contexts = [2 ** i for i in range(5, 14)]\n"
        "draw = random.Random(1)\n"
        "for a, b, g in (25.4, 0.45, 1.56), (3.0, 0.8, 1.0):\n"
        "    losses = [(a / c) ** b + g + draw.gauss(0, 0.01) for c in contexts]\n"
        "    law, why = fit.fit(contexts, losses, [0.01] * 9)\n"
        "    assert law, why\n"
        "    for true, found, error in zip((a, b, g), law, law[3:]):\n"
        "        assert abs(found - true) < 2 * error and error < true, (true, found, error)\n"
        "    print(fit.fit(contexts[:3], losses[:3], [0.01] * 3)[1])\n"
        "print(fit.fit(contexts, losses, [None] * 9)[1])\n"
        "print(fit.fit(contexts, [2 + draw.gauss(0, 0.01) for _ in contexts], [0.01] * 9)[1])\n"
        "print(fit.fit(contexts, [4 if c < 256 else 1 for c in contexts], [0.01] * 9)[1])\n"
        "END\n"
        "python3 fits.py",
        0);
    expect_in(said, "3 contexts, 4 are needed\n3 contexts, 4 are needed\nno spread: one seed\n"
                    "does not fall with context\nnot of this form\n");
    free(said);
}

static int close_folder(void **state) {
    free(table);
    return remove_folder(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_bad_input),
        cmocka_unit_test(test_splits),
        cmocka_unit_test(test_fit),
    };
    return cmocka_run_group_tests_name("experiments", tests, make_folder, close_folder);
}
