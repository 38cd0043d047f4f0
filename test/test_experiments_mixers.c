// The experiment mixers in its quick form: who can recall what, ended in the middle and gone on with.
//
// Two layers of attention recall at distances of 8 and of about 48 tokens (33 to 63, dataloader/task_recall.c). With
// windows of 16, which reach back 30 tokens in two layers, they recall at 8 and can know nothing at 48. Of 32 windows
// with 2 x 16 answers each who guesses has 1/8 right, with a standard deviation of sqrt(1/8 * 7/8 / 1024) = 0.0103.
#include "test/shell.h"

#include <math.h>

static double accuracy_of(const char *mixer, int distance) {
    char path[PROGRAM_PATH], pattern[128];
    char *rows = read_file(in_folder(path, "out/recall.csv"), NULL);
    snprintf(pattern, sizeof pattern, "\n%s,%d,1,", mixer, distance);
    const char *row = strstr(rows, pattern);
    double accuracy;
    if (row == NULL || sscanf(row + strlen(pattern), "%*d,%lf", &accuracy) != 1) fail_msg("no row %s in %s", pattern, rows);
    free(rows);
    return accuracy;
}

static void known_answers(void **state) {
    (void)state;
    skip_without_plots();
    char *said = run_shell("experiment() { exec \"$tree\"/scripts/experiments/mixers --form quick --out out --train-gpt "
                           "\"$program\"; }\n"
                           "experiment & while [ $(cat out/recall.csv 2> /dev/null | wc -l) -lt 3 ] && kill -0 $!; do\n"
                           "sleep 0.05; done\n"
                           "kill -TERM $!; wait $!; echo \"ended: $?\"\n"
                           "experiment",
                           0);
    expect_in(said, "mixers: stopped; the same command goes on\nended: 130\n");
    free(said);
    const double chance = 1.0 / 8, deviation = 0.0103;
    assert_true(accuracy_of("attention", 8) > 0.95);
    assert_true(accuracy_of("\"attention, window 16\"", 8) > 0.95);
    assert_true(accuracy_of("attention", 48) > 0.9);
    assert_true(fabs(accuracy_of("\"attention, window 16\"", 48) - chance) < 5 * deviation);
    assert_true(accuracy_of("mean", 48) < 0.5);
    free(run_shell("[ $(sed 1d out/bits.csv | sed 's/\"[^\"]*\"/window/' | cut -d , -f 6 | uniq | wc -l) = 1 ] && "
                   "[ $(wc -l < out/bits.csv) = 4 ]",
                   0)); // the same number of parameters, in all three models
    free(run_shell("[ $(wc -l < out/recall.csv) = 7 ] && grep -q '<svg' out/recall.svg && [ -s out/recall.png ] &&\n"
                   "grep -q '^| attention | 1*[0-9][0-9]\\.[0-9] | 1*[0-9][0-9]\\.[0-9] |$' out/table.md",
                   0));
}

int main(void) {
    setenv("program", train_gpt_path(), 1);
    const struct CMUnitTest tests[] = {cmocka_unit_test(known_answers)};
    return cmocka_run_group_tests_name("experiments_mixers", tests, make_folder, remove_folder);
}
