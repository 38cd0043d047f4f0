// What a run is evaluated on: --eval-tokens, the same targets whatever the context, and --eval-by-position, whose mean
// is the validation loss, whatever the ranks.
#include "test/tiny_run.h"

#include <math.h>

enum { MOST = 64 };

// The file's losses, the means of its parts; returns how many.
static int read_positions(const char *name, double loss[MOST], int windows) {
    char path[PROGRAM_PATH];
    char *text = read_file(in_folder(path, name), NULL), *line = strchr(text, '\n');
    int n = 0;
    char header[200] = "position,loss,windows";
    int parts = windows < 8 ? windows : 8;
    for (int part = 1; part <= parts; part++) snprintf(strchr(header, '\0'), 20, ",part_%d", part);
    line[0] = '\0';
    assert_string_equal(text, header);
    line[0] = '\n';
    for (; line != NULL && line[1] != '\0'; line = strchr(line + 1, '\n'), n++) {
        int position, of;
        assert_in_range(n, 0, MOST - 1);
        int used = 0;
        if (sscanf(line, "\n%d,%lf,%d%n", &position, &loss[n], &of, &used) != 3) fail_msg("%s", line);
        assert_int_equal(position, n);
        assert_int_equal(of, windows);
        double sum = 0, part_loss; // of a part's windows, of which there are as many as numbers from its begin to its end
        const char *part = line + used;
        for (int k = 0; k < parts; k++, part += used) {
            if (sscanf(part, ",%lf%n", &part_loss, &used) != 1) fail_msg("%s", line);
            sum += part_loss * (windows * (k + 1) / parts - windows * k / parts);
        }
        assert_true(*part == '\n');
        if (fabs(sum / windows - loss[n]) > 2e-5) fail_msg("position %d: the parts' mean is %g", n, sum / windows);
    }
    free(text);
    return n;
}

static double mean(const double *loss, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += loss[i];
    return sum / n;
}

static double validation_loss(const char *said) {
    double loss = 0;
    const char *line = strstr(said, "validation loss ");
    if (line == NULL || sscanf(line, "validation loss %lf", &loss) != 1) fail_msg("no validation loss in %s", said);
    return loss;
}

// Losses are printed with 4 digits after the point, and written with 6 in all: of losses below 10, half a unit of the
// one is 5e-5, of the other 5e-6.
static void mean_is_the_validation_loss(void **state) {
    (void)state;
    static const char *const ranks[] = {"--sp 1", "--sp 2", "--sp 3", "--sp 2 --dp 2 --batch 2",
                                        "--device emulated --sp 2"};
    double first[MOST] = {0}, loss[MOST];
    for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++) {
        char options[200];
        snprintf(options, sizeof options, "%s --eval-windows 5 --steps 0 --out @/run%zu --eval-by-position @/p.csv",
                 ranks[i], i);
        char *said = check_run(0, options, "");
        assert_int_equal(read_positions("p.csv", loss, 5), 16);
        if (fabs(mean(loss, 16) - validation_loss(said)) > 6e-5)
            fail_msg("%s: mean %g in %s", ranks[i], mean(loss, 16), said);
        if (i == 0) memcpy(first, loss, sizeof first);
        bool bf16 = strstr(ranks[i], "emulated") != NULL; // logits of about 1, each rounded to 2^-9 of itself
        for (int p = 0; p < 16; p++)
            if (fabs(loss[p] - first[p]) > (bf16 ? 0.02 : 2e-5))
                fail_msg("%s: %g at position %d, not %g", ranks[i], loss[p], p, first[p]);
        free(said);
    }
}

// A model without a mixer that looks back (a window of one token) and no knowledge of positions predicts a target from
// the token before alone: so every target has the loss that it has at any other context, and the sums agree.
static void same_targets_at_any_context(void **state) {
    (void)state;
    free(check_run(0, "--window 1 --steps 20 --out @/one", ""));
    static const int contexts[] = {4, 8, 16, 32, 64};
    double reference[MOST], loss[MOST];
    for (size_t i = 0; i < sizeof contexts / sizeof *contexts; i++) {
        char options[200];
        int T = contexts[i];
        snprintf(options, sizeof options,
                 "--init @/one/step-00000020 --steps 0 --context %d --eval-tokens 64 --eval-by-position @/p.csv", T);
        free(check_run(0, options, ""));
        assert_int_equal(read_positions("p.csv", loss, 64 / T), T);
        if (i == 0) memcpy(reference, loss, sizeof loss);
        if (fabs(mean(loss, T) - mean(reference, 4)) > 2e-5)
            fail_msg("context %d: mean %g, not %g", T, mean(loss, T), mean(reference, 4));
        for (int p = 0; T == 64 && p < 4; p++) { // of 4 tokens: position p is the mean of p, p + 4, p + 8 ...
            double sum = 0;
            for (int q = p; q < T; q += 4) sum += loss[q];
            if (fabs(sum / (T / 4) - reference[p]) > 2e-5)
                fail_msg("position %d of 4: %g, not %g", p, reference[p], sum / (T / 4));
        }
    }
}

// What a mixer has learned of near positions stays where a longer context comes, though filters are functions of the
// positions that the model was made for.
static void longer_contexts_leave_what_was_learned(void **state) {
    (void)state;
    static const char *const mixers[] = {"attention", "conv", "conv:gated", "fourier", "fourier,attention"};
    double own[MOST], longer[MOST];
    for (size_t i = 0; i < sizeof mixers / sizeof *mixers; i++) {
        char options[200];
        snprintf(options, sizeof options,
                 "--mixer %s --steps 20 --out @/near%zu --eval-tokens 16 --eval-by-position @/p.csv", mixers[i], i);
        free(check_run(0, options, ""));
        assert_int_equal(read_positions("p.csv", own, 1), 16);
        snprintf(options, sizeof options,
                 "--init @/near%zu/step-00000020 --steps 0 --context 32 --eval-tokens 32 --eval-by-position @/p.csv", i);
        free(check_run(0, options, ""));
        assert_int_equal(read_positions("p.csv", longer, 1), 32);
        for (int p = 0; p < 16; p++) // transforms of another length round differently
            if (fabs(longer[p] - own[p]) > 5e-5)
                fail_msg("%s: %g at position %d, not %g", mixers[i], longer[p], p, own[p]);
    }
}

// Written by the last evaluation alone, and only where it can be.
static void refuses(void **state) {
    (void)state;
    free(check_run(2, "--eval-tokens 40", "--eval-tokens 40: must be a multiple of --context 16"));
    free(check_run(2, "--eval-tokens 12000", "--eval-tokens 12000: @/text has 1200 tokens for validation, of which one "
                                             "is the last target; give less"));
    free(check_run(0, "--eval-tokens 1184", ""));
    free(check_run(2, "--eval-tokens 1200", "*give less"));
    free(check_run(1, "--eval-by-position @/no/x",
                   "--eval-by-position @/no/x: cannot write: No such file or directory; give a file that can be "
                   "written"));
    char pipe[PROGRAM_PATH];
    assert_int_equal(mkfifo(in_folder(pipe, "pipe"), 0666), 0);
    free(check_run(1, "--eval-by-position @/pipe",
                   "--eval-by-position @/pipe: cannot write: nobody reads this pipe; give a file that can be written"));
}

static int make_data(void **state) {
    if (make_folder(state) != 0) return -1;
    make_text("text", 12000);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mean_is_the_validation_loss), cmocka_unit_test(same_targets_at_any_context),
        cmocka_unit_test(longer_contexts_leave_what_was_learned), cmocka_unit_test(refuses)};
    return cmocka_run_group_tests_name("evaluation", tests, make_data, remove_folder);
}
