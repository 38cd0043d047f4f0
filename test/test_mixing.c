// --dump-mixing: what the file says of token mixers whose P is known, and what it refuses.
#include "test/tiny_run.h"

#include <math.h>

enum { T = 16, LAYERS = 3 };

// influence[layer][i][j]; -1: no row.
typedef struct Mixed {
    double influence[LAYERS][T][T];
    int rows;
} Mixed;

static Mixed read_mixing(const char *name, const char *const mixers[LAYERS]) {
    char path[PROGRAM_PATH];
    char *text = read_file(in_folder(path, name), NULL), *line = strchr(text, '\n');
    Mixed m;
    assert_memory_equal(text, "layer,mixer,i,j,value\n", strlen("layer,mixer,i,j,value\n"));
    for (int l = 0; l < LAYERS; l++)
        for (int i = 0; i < T; i++)
            for (int j = 0; j < T; j++) m.influence[l][i][j] = -1;
    for (m.rows = 0; line != NULL && line[1] != '\0'; line = strchr(line + 1, '\n'), m.rows++) {
        int layer, i, j;
        double value;
        char mixer[64];
        if (sscanf(line, "\n%d,\"%63[^\"]\",%d,%d,%lf", &layer, mixer, &i, &j, &value) != 5) fail_msg("%s", line);
        assert_in_range(layer, 0, LAYERS - 1);
        assert_string_equal(mixer, mixers[layer]);
        assert_in_range(i, 0, T - 1);
        assert_in_range(j, 0, T - 1);
        m.influence[layer][i][j] = value;
    }
    free(text);
    return m;
}

// Every token counts for all that see it, and for no other.
static void shows_who_sees_whom(void **state) {
    (void)state;
    free(check_run(0, "--layers 3 --mixer attention,dilated:6,2 --window 0,0,4 --dump-mixing @/mixing.csv", ""));
    const char *const mixers[LAYERS] = {"attention", "dilated:6,2", "attention"};
    Mixed m = read_mixing("mixing.csv", mixers);
    assert_int_equal(m.rows, LAYERS * T * (T + 1) / 2);
    const int window[LAYERS] = {T, 6, 4};
    for (int l = 0; l < LAYERS; l++)
        for (int i = 0; i < T; i++)
            for (int j = 0; j < T; j++) {
                double value = m.influence[l][i][j];
                bool right = j > i ? value == -1 : i - j < window[l] ? value > 0 : value == 0;
                if (!right) fail_msg("layer %d: token %d counts %g for token %d", l, j, value, i);
            }
}

// P of the mean is 1 / (i + 1) in row i, and fourier's and conv's depend on i - j alone: so do the norms of what comes
// through the projections around them, of one u. The file has four digits.
static void shows_known_matrices(void **state) {
    (void)state;
    free(check_run(0, "--layers 3 --mixer mean,conv,fourier --dump-mixing @/mixing.csv", ""));
    const char *const mixers[LAYERS] = {"mean", "conv", "fourier"};
    Mixed m = read_mixing("mixing.csv", mixers);
    for (int i = 0; i < T; i++)
        for (int j = 0; j <= i; j++) {
            const double expected[LAYERS] = {m.influence[0][0][0] / (i + 1), m.influence[1][i - j][0],
                                             m.influence[2][i - j][0]};
            for (int l = 0; l < LAYERS; l++)
                if (!(fabs(m.influence[l][i][j] - expected[l]) <= 2e-3 * expected[l]))
                    fail_msg("%s: %g at %d, %d, not %g", mixers[l], m.influence[l][i][j], i, j, expected[l]);
        }
}

// Layers that are replayed give the same file, and so does a model that is read and not trained.
static void same_file_again(void **state) {
    (void)state;
    char one_path[PROGRAM_PATH], other_path[PROGRAM_PATH];
    const char *const others[] = {
        "--layers 3 --mixer attention,dilated:6,2 --recompute block --dump-mixing @/other.csv",
        "--init @/model/step-00000002 --steps 0 --dump-mixing @/other.csv"};
    free(check_run(0, "--layers 3 --mixer attention,dilated:6,2 --out @/model --dump-mixing @/one.csv", ""));
    char *one = read_file(in_folder(one_path, "one.csv"), NULL);
    for (int i = 0; i < 2; i++) {
        free(check_run(0, others[i], ""));
        char *other = read_file(in_folder(other_path, "other.csv"), NULL);
        assert_string_equal(one, other);
        free(other);
    }
    free(one);
}

static void refuses_what_it_cannot_show(void **state) {
    (void)state;
    free(check_run(2, "--sp 2 --dump-mixing @/x", "--dump-mixing @/x: one rank has to hold all tokens; give --sp 1"));
    free(check_run(2, "--context 513 --dump-mixing @/x",
                   "--dump-mixing @/x: a row is written for every pair of 513 tokens; give --context 512 at most"));
    free(check_run(1, "--dump-mixing @/no/x",
                   "--dump-mixing @/no/x: cannot write: No such file or directory; give a file that can be written"));
    char pipe[PROGRAM_PATH];
    assert_int_equal(mkfifo(in_folder(pipe, "pipe"), 0666), 0);
    free(check_run(1, "--dump-mixing @/pipe",
                   "--dump-mixing @/pipe: cannot write: nobody reads this pipe; give a file that can be written"));
}

static int make_data(void **state) {
    if (make_folder(state) != 0) return -1;
    make_text("text", 12000);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(shows_who_sees_whom), cmocka_unit_test(shows_known_matrices),
                                       cmocka_unit_test(same_file_again),
                                       cmocka_unit_test(refuses_what_it_cannot_show)};
    return cmocka_run_group_tests_name("mixing", tests, make_data, remove_folder);
}
