// The experiment mixers in its quick form, which has known answers, and that it is the same when it is killed.
//
// Two layers of attention recall at distances of 4 (1 to 7, dataloader/task_recall.c) and of 32 (17 to 47). With
// windows of 8, which reach back 14 tokens in two layers, they recall at 4 and can know nothing at 32. Who guesses has
// 1/8 right, of 64 windows with 16 pairs, with a standard deviation of sqrt(1/8 * 7/8 / 1024) = 0.0103; each pair is
// asked twice, but the second guess may be the first one again.
//
// Of a text whose second half repeats the first, 16 tokens back, a context of 8 knows nothing, and one of 32 half of
// all targets; but not with windows of 8. At T = 8 these are attention to all, the very same model.
#include "test/shell.h"

#include <math.h>

#define WINDOW "\"attention, window 8\""
#define EXPERIMENT "\"$tree\"/scripts/experiments/mixers --form quick --train-gpt \"$program\" --out "

static const double unknown = 4; // bits of one of 16 symbols, all as likely

// What stands behind `start` in a file of results, to be read with `format`.
static double value_of(const char *file, const char *start, const char *format) {
    char path[PROGRAM_PATH], pattern[128];
    char *rows = read_file(in_folder(path, file), NULL);
    snprintf(pattern, sizeof pattern, "\n%s,", start);
    const char *row = strstr(rows, pattern);
    double value;
    if (row == NULL || sscanf(row + strlen(pattern), format, &value) != 1) fail_msg("no row %s in %s", pattern, rows);
    free(rows);
    return value;
}

static double accuracy_of(const char *mixer, int distance) {
    char start[64];
    snprintf(start, sizeof start, "%s,%d,1", mixer, distance);
    return value_of("whole/recall.csv", start, "%*d,%lf");
}

static double bits_of(const char *mixer, int context) {
    char start[64];
    snprintf(start, sizeof start, "repeats,%s,1,%d", mixer, context);
    return value_of("whole/bits.csv", start, "%*d,%*d,%*d,%lf");
}

static double parameters_of(const char *mixer, int context) {
    char start[64];
    snprintf(start, sizeof start, "repeats,%s,1,%d", mixer, context);
    return value_of("whole/bits.csv", start, "%*d,%lf");
}

// In the bin that begins at 16 tokens read, the first whose target has been seen, and in the one before.
static double bits_after(const char *mixer, const char *read) {
    char start[64];
    snprintf(start, sizeof start, "repeats,%s,1,32,%s", mixer, read);
    return value_of("whole/positions.csv", start, "%lf");
}

static char *table;

static void known_answers(void **state) {
    (void)state;
    skip_without_plots();
    free(run_shell(EXPERIMENT "whole", 0));
    table = run_shell("cat whole/table.md", 0);
    const double chance = 1.0 / 8, deviation = 0.0103;
    assert_true(accuracy_of("attention", 4) > 0.9);
    assert_true(accuracy_of(WINDOW, 4) > 0.9);
    assert_true(accuracy_of("attention", 32) > 0.9);
    assert_true(fabs(accuracy_of(WINDOW, 32) - chance) < 5 * deviation);
    assert_true(accuracy_of("mlp", 32) < 0.5);

    assert_true(bits_of("attention", 8) > unknown - 0.25);
    assert_true(bits_of("mlp", 8) > unknown - 0.25);
    assert_true(bits_of(WINDOW, 8) == bits_of("attention", 8));
    assert_true(bits_of("attention", 32) < unknown - 0.5); // 2 less, once all is learned
    assert_true(bits_of(WINDOW, 32) > unknown - 0.25);
    assert_true(bits_after("attention", "13.45") > unknown - 0.5);
    assert_true(bits_after("attention", "18.89") < unknown - 1);
    assert_true(bits_after(WINDOW, "18.89") > unknown - 0.5);

    // The width of an MLP of three matrices in each of two layers comes in steps of 8.
    assert_true(parameters_of(WINDOW, 32) == parameters_of("attention", 32));
    assert_true(fabs(parameters_of("mlp", 8) - parameters_of("attention", 8)) <= 2 * 3 * 64 * 8 / 2);
    free(run_shell("for plot in recall bits positions; do\n"
                   "grep -q '<svg' whole/$plot.svg && [ -s whole/$plot.png ] || exit 1; done\n"
                   "[ $(wc -l < whole/recall.csv) = 7 ] && [ $(wc -l < whole/bits.csv) = 6 ] &&\n"
                   "grep -q '^| attention | 1*[0-9][0-9]\\.[0-9] | 1*[0-9][0-9]\\.[0-9] |$' whole/table.md",
                   0));
}

// Ended with a signal when there are rows: first so that it can say so, then without warning.
static void killed(void **state) {
    (void)state;
    skip_without_plots();
    char *said = run_shell("experiment() { exec " EXPERIMENT "parts; }\n"
                           "rows() { cat parts/$1.csv 2> /dev/null | wc -l; }\n"
                           "end_at() { experiment & while [ $(rows $2) -lt $3 ] && kill -0 $!; do sleep 0.05; done\n"
                           "kill -$1 $!; wait $!; echo \"ended: $?\"; }\n"
                           "end_at TERM recall 3; end_at KILL bits 3\n"
                           "printf 'repeats,mlp,1,8,18' >> parts/bits.csv\n"
                           "experiment",
                           0);
    expect_in(said, "mixers: stopped; the same command goes on\nended: 130\n");
    expect_in(said, "ended: 137\n");
    free(said);
    said = run_shell("cat parts/table.md", 0);
    assert_string_equal(said, table);
    free(said);
    free(run_shell("for o in whole parts; do for kind in bits recall; do\n" // less their seconds
                   "sed 's/,[^,]*$//' $o/$kind.csv | sort > $o/$kind; done\n"
                   "sort $o/positions.csv > $o/positions; done\n"
                   "for kind in bits recall positions; do cmp whole/$kind parts/$kind || exit 1; done",
                   0));
}

// Parameters are those of the application's vocabulary: ABC has 98 symbols, bytes and the end of a document are 257.
static void vocabulary(void **state) {
    (void)state;
    skip_without_plots();
    free(run_shell(
        "cat > parameters.py << 'END'\n"
        "import importlib.machinery, importlib.util, os, sys, types\n"
        "sys.dont_write_bytecode = True\n"
        "path = os.environ['tree'] + '/scripts/experiments/mixers'\n"
        "loader = importlib.machinery.SourceFileLoader('mixers', path)\n"
        "mixers = importlib.util.module_from_spec(importlib.util.spec_from_loader('mixers', loader))\n"
        "loader.exec_module(mixers)\n"
        "options = types.SimpleNamespace(form='quick', out='none', train_gpt=sys.argv[1])\n"
        "this = mixers.Experiment(options)\n"
        "def parameters(name):\n"
        "    with open(name, 'w') as file:\n"
        "        file.write('X:1\\nK:C\\n' + 'CDEF|' * 20 + '\\n')\n"
        "    this.splits[name] = mixers.splits.Split(name, name, 1, {})\n"
        "    return this.parameters(mixers.Task(name, 'mlp', 1, 8), 'mlp', 64)\n"
        "assert parameters('repeats') - parameters('music') == (257 - 98) * 64\n"
        "share = mixers.mixers_report.by_counting\n"
        "assert share(1) == 1 and share(2) == (1 + (1 / 8 * 2 + 7 / 8 * 1) / 2) / 2\n"
        "END\n"
        "python3 parameters.py \"$program\"",
        0));
}

static int close_folder(void **state) {
    free(table);
    return remove_folder(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),
        cmocka_unit_test(killed),
        cmocka_unit_test(vocabulary),
    };
    return cmocka_run_group_tests_name("experiments_mixers", tests, make_folder, close_folder);
}
