// Algorithms of matrix products that are chosen by the clock (layers/cuda/algorithms.cu, run/tuning.c), emulated or on
// a GPU (test/cuda_cases.h).
//
// The emulated cuBLASLt has five, whose speeds a test sets (EMULATED_ALGORITHMS: seconds of each, which nobody waits
// for). Number 0 is never twice the same, so it must never be chosen; 1 is the library's first proposal without it; 4
// is for results in fp32 alone. Each groups its sums in its own way, so the bits tell which one was at work.
#include "test/compare.h"
#include "test/cuda_cases.h"
#include "test/tiny_run.h"

// ---- the device -----------------------------------------------------------------------------------------------------

enum { ROWS = 320, K = 288, N = 48, TEXT = 4096 };

// A forward product and the gradient of its weight, in a process of its own.
typedef struct Trial {
    const char *speeds, *seed; // NULL: not set
    bool measure;
    int other_products; // in between, so that the choice is looked up anew
    char choices[TEXT]; // in force at the beginning, and at the end
    float out[ROWS * N], d_weight[N * K];
} Trial;

typedef struct Tensors {
    CudaTensor x, weight, bias, d_out, out, d_weight;
} Tensors;

typedef struct Inputs { // the same in every process
    float *x, *weight, *bias, *d_out;
} Inputs;

static Inputs make_inputs(void) {
    return (Inputs){rounded(random_floats(ROWS * K, 1, 0, 1), ROWS * K),
                    rounded(random_floats(N * K, 2, 0, 0.06), N * K), rounded(random_floats(N, 3, 0, 1), N),
                    rounded(random_floats(ROWS * N, 4, 0, 1), ROWS * N)};
}
static void free_inputs(Inputs *in) { free(in->x), free(in->weight), free(in->bias), free(in->d_out); }

static Tensors make_tensors(void) {
    Inputs in = make_inputs();
    Tensors t = {cuda_storage(in.x, ROWS * K),     cuda_storage(in.weight, N * K), cuda_storage(in.bias, N),
                 cuda_storage(in.d_out, ROWS * N), cuda_storage(NULL, ROWS * N),   cuda_floats(NULL, N * K)};
    free_inputs(&in);
    return t;
}

static void multiply(Device *device, const Tensors *t, int64_t rows) {
    device->matmul_forward(device, t->out.data, t->x.data, t->weight.data, t->bias.data, rows, K, N);
    device->matmul_backward(device, NULL, t->d_weight.data, NULL, t->d_out.data, t->x.data, NULL, rows, K, N, false);
}

static void try_in_child(void *argument) {
    Trial *trial = argument;
    if (trial->speeds != NULL) setenv("EMULATED_ALGORITHMS", trial->speeds, 1);
    if (trial->seed != NULL) setenv("EMULATED_SEED", trial->seed, 1);
    Device *device = cuda_device_of_test();
    Tensors t = make_tensors();
    device->tune(device, trial->choices, trial->measure);
    if (trial->measure) { // whose results are good for nothing
        multiply(device, &t, ROWS);
        snprintf(trial->choices, TEXT, "%s", device->tuned(device));
        device->tune(device, trial->choices, false);
    }
    for (int rows = 1; rows <= trial->other_products; rows++) multiply(device, &t, rows);
    device->zero(device, t.d_weight.data, N * K * sizeof(float));
    multiply(device, &t, ROWS);
    float *out = cuda_fetch(&t.out);
    memcpy(trial->out, out, sizeof trial->out);
    cuda_fetch_raw(&t.d_weight, trial->d_weight);
    cuda_free(&t.x), cuda_free(&t.weight), cuda_free(&t.bias), cuda_free(&t.d_out);
    cuda_free(&t.out), cuda_free(&t.d_weight);
    free(out);
}

static void run_trial(Trial *trial) { assert_int_equal(status_in_child(try_in_child, trial), 0); }

static Trial *new_trials(int count) { // that a child can write to
    Trial *trials =
        mmap(NULL, (size_t)count * sizeof *trials, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(trials != MAP_FAILED);
    return trials;
}

static bool same_bits(const Trial *a, const Trial *b) {
    return memcmp(a->out, b->out, sizeof a->out) == 0 && memcmp(a->d_weight, b->d_weight, sizeof a->d_weight) == 0;
}

// Of the line about results in `type`.
static int chosen(const Trial *trial, const char *type) {
    const char *line = strstr(trial->choices, type);
    int number = -1;
    if (line == NULL || sscanf(strstr(line, " -> "), " -> algorithm %d,", &number) != 1)
        fail_msg("no choice in %s in: %s", type, trial->choices);
    return number;
}

static void the_fastest_is_chosen(void **state) {
    (void)state;
    if (!only_emulated()) skip();
    static const struct {
        const char *speeds;
        int bf16, fp32;
    } cases[] = {
        {"0,1,90,90,90", 1, 1}, {"0,90,1,90,90", 2, 2},       {"0,90,90,1,90", 3, 3},
        {"0,90,90,2,1", 3, 4},  {"0,100,99,98.5,98.5", 1, 1}, // no difference that could be told from noise
    };
    enum { CASES = sizeof cases / sizeof *cases };
    Trial *trials = new_trials(CASES + 1);
    run_trial(&trials[CASES]); // untuned
    for (int i = 0; i < CASES; i++) {
        trials[i].speeds = cases[i].speeds, trials[i].measure = true;
        run_trial(&trials[i]);
        assert_int_equal(chosen(&trials[i], "bf16"), cases[i].bf16);
        assert_int_equal(chosen(&trials[i], "fp32"), cases[i].fp32);
        assert_true(same_bits(&trials[i], &trials[CASES]) == (cases[i].fp32 == 1));
        for (int j = 0; j < i; j++) // and it is the one that works
            assert_true((memcmp(trials[i].d_weight, trials[j].d_weight, sizeof trials[i].d_weight) == 0) ==
                        (cases[i].fp32 == cases[j].fp32));
    }
    munmap(trials, (CASES + 1) * sizeof *trials);
}

// What was chosen stays chosen, whatever the speeds, the order of threads, and other products in between.
static void choices_give_the_same_bits(void **state) {
    (void)state;
    Trial *trials = new_trials(2);
    trials[0] = (Trial){.speeds = "0,9,8,7,6", .seed = "1", .measure = true};
    run_trial(&trials[0]);
    memcpy(trials[1].choices, trials[0].choices, TEXT);
    trials[1].speeds = "0,1,2,3,4", trials[1].seed = "20261126", trials[1].other_products = 280;
    run_trial(&trials[1]);
    assert_true(same_bits(&trials[0], &trials[1]));
    munmap(trials, 2 * sizeof *trials);
}

// Whatever is chosen, the results are right; and the bias is in the sum before that is rounded.
static void tuned_products_are_right(void **state) {
    (void)state;
    Trial *trial = new_trials(1);
    *trial = (Trial){.speeds = "0,9,8,7,6", .measure = true};
    run_trial(trial);
    Inputs in = make_inputs();
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < N; j++) {
            double sum = in.bias[j], size = fabs(sum);
            for (int k = 0; k < K; k++) {
                const double product = (double)in.x[i * K + k] * in.weight[j * K + k];
                sum += product, size += fabs(product);
            }
            expect_storage("out", i * N + j, trial->out[i * N + j], sum, product_tolerance(K + 1, size));
        }
    for (int j = 0; j < N; j++)
        for (int k = 0; k < K; k++) {
            double sum = 0, size = 0;
            for (int i = 0; i < ROWS; i++) {
                const double product = (double)in.d_out[i * N + j] * in.x[i * K + k];
                sum += product, size += fabs(product);
            }
            expect_near("d_weight", j * K + k, trial->d_weight[j * K + k], sum, product_tolerance(ROWS, size));
        }
    free_inputs(&in);
    munmap(trial, sizeof *trial);
}

// Lines that are damaged, or name what the library does not propose, are as good as none; the first good one counts.
static void damaged_choices(void **state) {
    (void)state;
    if (!only_emulated()) skip();
    Trial *trials = new_trials(4);
    run_trial(&trials[0]); // untuned
    trials[1] = (Trial){.speeds = "0,90,90,2,1", .measure = true};
    run_trial(&trials[1]);
    assert_false(same_bits(&trials[0], &trials[1]));

    static const char *const damages[][2] = {{"algorithm ", "algorithm 7"}, // which there is not
                                             {"-> algorithm 4", "-> algorithm 0"},
                                             {"reduction ", "reduktion "},
                                             {"(", "\xff\x01("},
                                             {" -> ", " => "}};
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        char *to = trials[2].choices;
        *to = '\0';
        for (const char *line = trials[1].choices, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
            const char *place = strstr(line, damages[i][0]);
            if (place == NULL || place > end) continue; // left out
            const char *rest = place + strlen(damages[i][0]);
            to += sprintf(to, "%.*s%s%.*s\n", (int)(place - line), line, damages[i][1], (int)(end - rest), rest);
        }
        assert_true(to > trials[2].choices);
        run_trial(&trials[2]);
        assert_true(same_bits(&trials[2], &trials[0]));
        const int length =
            snprintf(trials[3].choices, TEXT, "\n%.1900s# a note\n%.1900s", trials[2].choices, trials[1].choices);
        assert_true(length < 1900);
        run_trial(&trials[3]);
        assert_true(same_bits(&trials[3], &trials[1]));
    }
    munmap(trials, 4 * sizeof *trials);
}

// ---- the program ----------------------------------------------------------------------------------------------------

static const char *const USUAL = "--context 130 --dim 64 --ffn 128 --batch 2 --seed 3 --device";

// A run whose products have these speeds; its log goes to folder/name. Returns its output, to be freed.
static char *train(const char *speeds, const char *name, const char *options, const char *message) {
    char all[1000];
    if (cuda_devices_here() == 0) skip();
    setenv("EMULATED_ALGORITHMS", speeds, 1);
    snprintf(all, sizeof all, "%s --log @/%s %s %s", options, name, USUAL, cuda_device_name());
    char *output = check_run(0, all, message);
    unsetenv("EMULATED_ALGORITHMS");
    return output;
}

static char *text_in(const char *name) {
    char path[PROGRAM_PATH];
    return read_file(in_folder(path, name), NULL);
}

static bool same_logs(const char *a, const char *b) {
    char path[PROGRAM_PATH];
    Log x = read_log(in_folder(path, a)), y = read_log(in_folder(path, b));
    bool same = x.count == y.count && x.count == 2 && x.validation_loss == y.validation_loss;
    for (int i = 0; i < x.count && same; i++) same = x.loss[i] == y.loss[i] && x.gradient_norm[i] == y.gradient_norm[i];
    return same;
}

static void expect_said(char *output, const char *expected) { // of the products; frees it
    char *line = strstr(output, "\nproducts   "), pattern[300];
    assert_non_null(line);
    line[1 + strcspn(line + 1, "\n")] = '\0';
    snprintf(pattern, sizeof pattern, "\nproducts   %s", expected);
    if (!matches(pattern, line)) fail_msg("expected \"%s\", received \"%s\"", pattern + 1, line + 1);
    free(output);
}

// The rehearsal leaves nothing behind: with the library's own choice as the fastest, all is as without --tune.
static void a_rehearsal_leaves_no_trace(void **state) {
    (void)state;
    if (!only_emulated()) skip();
    static const char *const runs[] = {"--arch gpt2", "--sp 2 --attention ring --micro-batch 1",
                                       "--sp 2 --dp 2 --document-mask --document-end 101",
                                       "--recompute block --kv-heads 1"};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        char options[200];
        snprintf(options, sizeof options, "%s --tune @/trace%zu", runs[i], i);
        free(train("", "plain", runs[i], ""));
        expect_said(train("0,1,90,90,90", "tuned", options, ""), "by the algorithms in @/trace*, * of them timed now");
        assert_true(same_logs("plain", "tuned"));
    }
}

// Four ranks of two lengths time all by themselves, and chance decides; yet the run that timed and the one that reads
// have the same bits, as only ranks can that agree. The file stays as it is; and without it the bits are others.
static void the_file_decides(void **state) {
    (void)state;
    const char *with_file = "--sp 4 --devices 0,0,0,0 --attention gather --tune @/noise.txt";
    expect_said(train("", "timed", with_file, ""), "by the algorithms in @/noise.txt, * of them timed now");
    char *first = text_in("noise.txt");
    expect_said(train("", "read", with_file, ""), "by the algorithms in @/noise.txt");
    assert_true(same_logs("timed", "read"));
    char *second = text_in("noise.txt");
    assert_string_equal(first, second);
    free(first), free(second);

    if (!only_emulated()) return;
    expect_said(train("0,9,8,7,2", "split", "--tune @/split.txt", ""), "by the algorithms in @/split.txt, * timed now");
    expect_said(train("0,1,2,3,4", "other", "--tune @/split.txt", ""), "by the algorithms in @/split.txt");
    assert_true(same_logs("split", "other"));
    free(train("", "plain", "", ""));
    assert_false(same_logs("split", "plain"));
    free(train("", "plain", "--tune @/split.txt --steps 0 --sample-tokens 4", "")); // nothing is timed
}

// Another run's products are added, and the file's own stay, those after a line that was cut short too.
static void a_file_grows(void **state) {
    (void)state;
    free(train("", "first", "--tune @/grows.txt", ""));
    char *before = text_in("grows.txt");
    const size_t length = strlen(before);
    before[length - 20] = '\0'; // the last line is cut short
    make_file("grows.txt", before, length - 20);
    expect_said(train("", "second", "--tune @/grows.txt", ""), "by the algorithms in @/grows.txt, 1 of them timed now");
    expect_said(train("", "third", "--tune @/grows.txt", ""), "by the algorithms in @/grows.txt");
    assert_true(same_logs("second", "third"));
    expect_said(train("", "longer", "--tune @/grows.txt --sp 2 --devices 0,0", ""),
                "by the algorithms in @/grows.txt, * timed now");
    char *after = text_in("grows.txt");
    assert_memory_equal(after, before, length - 20);
    free(before), free(after);
}

// What is wrong with the file is said in a line, it is left as it is, and the run goes on.
static void files_that_cannot_serve(void **state) {
    (void)state;
    char path[PROGRAM_PATH], *text, *again;
    make_text("mine", 3000);
    text = text_in("mine");
    expect_said(train("", "log", "--tune @/mine",
                      "--tune @/mine: holds something else, and stays as it is: give another file; what is timed now "
                      "serves this run alone"),
                "by * algorithms that were timed now");
    again = text_in("mine");
    assert_string_equal(again, text);
    free(text), free(again);
    free(train("", "log", "--tune @/none/file",
               "--tune @/none/file: cannot write: No such file or directory; what is timed now serves this run alone"));
    free(train("", "log", "--tune @",
               "--tune @: not a regular file but a folder; what is timed now serves this run alone"));
    assert_int_equal(mkfifo(in_folder(path, "pipe"), 0666), 0);
    free(train("", "log", "--tune @/pipe",
               "--tune @/pipe: not a regular file but a pipe; what is timed now serves this run alone"));
    make_file("empty", "", 0);
    expect_said(train("", "log", "--tune @/empty", ""), "by the algorithms in @/empty, * of them timed now");

    text = calloc(5 << 20, 1); // larger than any
    assert_non_null(text);
    make_file("large", text, 5 << 20);
    free(train("", "log", "--tune @/large",
               "--tune @/large: holds something else, and stays as it is: give another file; what is timed now serves "
               "this run alone"));
    free(text);
}

// Three runs at once share a file: none loses what another found.
static void runs_share_a_file(void **state) {
    (void)state;
    enum { RUNS = 3 };
    if (cuda_devices_here() == 0) skip();
    RunningProgram running[RUNS];
    static const char *const contexts[RUNS] = {"40", "50", "60"};
    char file[PROGRAM_PATH], options[200];
    in_folder(file, "shared.txt");
    for (int i = 0; i < RUNS; i++) {
        Command command = {0};
        add_words(&command, train_gpt_path(), "--tune", file, "--steps", "1", "--layers", "1", "--dim", "64", NULL);
        add_words(&command, "--heads", "2", "--sp", "1", "--eval-windows", "1", "--sample-tokens", "0", NULL);
        add_words(&command, "--context", contexts[i], "--device", cuda_device_name(), NULL);
        running[i] = start_program(command.argv);
    }
    for (int i = 0; i < RUNS; i++) {
        ProgramResult result = finish_program(&running[i], 60);
        assert_int_equal(result.exit_code, 0);
        assert_string_equal(result.err, "");
        free_result(&result);
    }
    for (int i = 0; i < RUNS; i++) {
        snprintf(options, sizeof options,
                 "--steps 1 --layers 1 --dim 64 --heads 2 --ffn 0 --tune @/shared.txt --context %s --device %s",
                 contexts[i], cuda_device_name());
        expect_said(check_run(0, options, ""), "by the algorithms in @/shared.txt");
    }
}

static int make_files(void **state) {
    if (make_folder(state) != 0) return -1;
    make_text("text", 20001);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        // the first four try in children, before a device is counted here
        cmocka_unit_test(the_fastest_is_chosen),
        cmocka_unit_test(choices_give_the_same_bits),
        cmocka_unit_test(tuned_products_are_right),
        cmocka_unit_test(damaged_choices),
        cmocka_unit_test(a_rehearsal_leaves_no_trace),
        cmocka_unit_test(the_file_decides),
        cmocka_unit_test(a_file_grows),
        cmocka_unit_test(files_that_cannot_serve),
        cmocka_unit_test(runs_share_a_file),
    };
    const struct CMUnitTest under_sanitizers[] = {
        // what reads files
        cmocka_unit_test(the_fastest_is_chosen),
        cmocka_unit_test(choices_give_the_same_bits),
        cmocka_unit_test(damaged_choices),
        cmocka_unit_test(files_that_cannot_serve),
    };
    if (program_slowness() > 1) return cmocka_run_group_tests(under_sanitizers, make_files, remove_folder);
    return cmocka_run_group_tests(tests, make_files, remove_folder);
}
