// Vocabularies that are no multiple of anything, on a GPU's kernels: the classifier's rows are padded there
// (device_padded_vocab_size), and nothing outside of the device's memory may know. Runs of the program on the emulated
// device are held against the CPU's, which pads nothing; test/padding_probe.c looks at the memory itself.
//
// Tolerances are those of test/test_training_cuda.c, which derives them: what differs is bf16, not the padding.
#include "test/compare.h"
#include "test/cuda_device.h"
#include "test/folder.h"
#include "test/small_model.h"

#include "base/random.h"
#include "checkpoint/parameter_file.h"
#include "checkpoint/sha256.h"
#include "model/config.h"

static const double FIRST_LOSS = 1e-4, LOSSES = 3e-3; // relative
static const Tolerance GRADIENTS = {3e-2, 5e-2}, LOGITS = {2e-2, 2e-2};

enum { STEPS = 3, C = 64, TIME_LIMIT = 60 };

// ---- models and runs ------------------------------------------------------------------------------------------------

typedef struct Kind {
    const char *name, *arch;
    int64_t V, Vp;
    bool untied;
} Kind;

static const Kind BYTES = {"bytes", "llama", 257, 320, false}, BYTES_UNTIED = {"bytes_untied", "llama", 257, 320, true},
                  NUMBERS = {"numbers", "gpt2", 1030, 1152, false},
                  NUMBERS_UNTIED = {"numbers_untied", "llama", 1030, 1152, true};

typedef struct Training {
    const Kind *kind;
    const char *out; // what follows the kind's name in that of the run's own folder
    const char *device;
    int sp, dp; // 0: 1
    bool resume;
} Training;

static char *run_path(char path[PROGRAM_PATH], const Kind *kind, const char *out, const char *file) {
    char within[256];
    snprintf(within, sizeof within, "%s%s/%s", kind->name, out, file);
    return path_join(path, folder, within);
}

static const char *probed_program(void) {
    static char path[PROGRAM_PATH];
    snprintf(path, sizeof path, "%s", train_gpt_path());
    *strrchr(path, '/') = '\0';
    strcat(path, "/test/train_gpt_probed");
    return path;
}

// Text, and token numbers; the small ones are frequent, and the largest occur.
static int make_data(void **state) {
    enum { COUNT = 6000 };
    char text[COUNT], path[PROGRAM_PATH];
    uint16_t numbers[COUNT];
    make_folder(state);
    for (uint64_t i = 0; i < COUNT; i++) {
        uint64_t below = 1 + random_below(1, RANDOM_STREAM_DATA, 2 * i, (uint64_t)NUMBERS.V);
        numbers[i] = (uint16_t)random_below(1, RANDOM_STREAM_DATA, 2 * i + 1, below);
        text[i] = (char)('a' + numbers[i] % 23);
    }
    numbers[0] = numbers[COUNT - 1] = (uint16_t)(NUMBERS.V - 1);
    write_file(path_join(path, folder, "data.text"), text, sizeof text);
    write_file(path_join(path, folder, "data.numbers"), numbers, sizeof numbers);
    return 0;
}

static void add_data(Command *command, const Kind *kind, char path[PROGRAM_PATH]) {
    bool bytes = kind->V == 257;
    add_words(command, "--data", path_join(path, folder, bytes ? "data.text" : "data.numbers"), NULL);
    if (!bytes) add_words(command, "--data-format", "uint16", NULL);
}

// Three steps of two sequences of 48 tokens. What it said on standard error: to be freed.
static char *train(const Training *t) {
    Command command = {0};
    char data[PROGRAM_PATH], out[PROGRAM_PATH], log[PROGRAM_PATH];
    const Kind *kind = t->kind;
    run_path(out, kind, t->out, "");
    if (mkdir(out, 0777) != 0) assert_int_equal(errno, EEXIST);
    run_path(log, kind, t->out, "log.jsonl");
    add_words(&command, probed_program(), "--out", out, "--log", log, "--device", t->device, NULL);
    add_data(&command, kind, data);
    if (t->resume) add_word(&command, "--resume");
    else {
        add_words(&command, "--arch", kind->arch, "--layers", "1", "--heads", "2", "--dim", "64", "--dump", out, NULL);
        if (kind->untied) add_word(&command, "--untied");
        add_number(&command, "--vocab-size", (double)kind->V);
    }
    add_words(&command, "--steps", "3", "--context", "48", "--batch", "2", "--lr", "1e-2", "--warmup", "1", NULL);
    add_words(&command, "--weight-decay", "0.3", "--eval-windows", "1", "--save-every", "1", "--keep", "0", NULL);
    add_words(&command, "--sample-tokens", "0", "--threads", "1", "--engine", "local", NULL);
    add_number(&command, "--sp", t->sp > 0 ? t->sp : 1);
    add_number(&command, "--dp", t->dp > 0 ? t->dp : 1);
    ProgramResult result = run_command(&command, TIME_LIMIT);
    char *said = strdup(result.err);
    free_result(&result);
    return said;
}

// ---- comparing ------------------------------------------------------------------------------------------------------

static double far(double a, double b) { return fabs(a - b) / fabs(b); }

static void compare_losses(const Kind *kind, const char *got, const char *expected) {
    char path[PROGRAM_PATH];
    Log x = read_log(run_path(path, kind, got, "log.jsonl")), y = read_log(run_path(path, kind, expected, "log.jsonl"));
    assert_int_equal(y.count, STEPS);
    assert_int_equal(x.step[x.count - 1], STEPS);
    for (int i = 0; i < x.count; i++) {
        double error = far(x.loss[i], y.loss[x.step[i] - 1]), limit = x.step[i] == 1 ? FIRST_LOSS : LOSSES;
        if (!(error <= limit))
            fail_msg("%s%s: the loss of step %lld is off by %.1e", kind->name, got, (long long)x.step[i], error);
    }
    assert_true(far(x.validation_loss, y.validation_loss) <= LOSSES);
}

// Shapes are compared as well; those that V is in are told here once more.
static void expect_shape(const char *path, const char *name, int dimension, int64_t size) {
    Safetensors *file = open_tensors(path);
    assert_int_equal(find_tensor(file, name)->shape[dimension], size);
    safetensors_close(file);
}

static void compare_tensors_of(const Kind *kind, const char *got, const char *file, Tolerance tolerance) {
    char x[PROGRAM_PATH], y[PROGRAM_PATH];
    compare_files(run_path(x, kind, got, file), run_path(y, kind, "_cpu", file), tolerance);
}

// Of the file of gradients, which has no padding: squares of floats, summed in double as the program does, in another
// order. Some 1e5 of them are off by 1e5 2^-53 = 1e-11 at most.
static void expect_norm_of_file(const Kind *kind, const char *out) {
    char path[PROGRAM_PATH];
    double squares = 0;
    Safetensors *file = open_tensors(run_path(path, kind, out, "gradients.safetensors"));
    for (int i = 0; i < safetensors_count(file); i++) {
        const Tensor *tensor = safetensors_at(file, i);
        float *x = tensor_values(tensor);
        for (int64_t j = 0; j < tensor->count; j++) squares += (double)x[j] * x[j];
        free(x);
    }
    safetensors_close(file);
    Log log = read_log(run_path(path, kind, out, "log.jsonl"));
    if (!(far(log.gradient_norm[0], sqrt(squares)) <= 1e-11))
        fail_msg("%s%s: the norm of the gradients is %.17g, and of those in the file %.17g", kind->name, out,
                 log.gradient_norm[0], sqrt(squares));
}

// By what the probe said of each rank; all slices together hold the padding once. Is it cut between two of them?
static bool expect_zero_padding(const Kind *kind, const char *said, int ranks) {
    long long elements, mine, bytes, all = 0;
    int lines = 0;
    bool cut = false;
    for (const char *line = said; (line = strstr(line, "padding of ")) != NULL; line++, lines++) {
        if (sscanf(line, "padding of %lld elements, %lld of them in my slice: %lld", &elements, &mine, &bytes) != 3)
            fail_msg("the probe did not tell: %s", line);
        assert_int_equal(elements, (kind->Vp - kind->V) * C);
        if (bytes != 0) fail_msg("%s: %lld bytes of the padding are not zero", kind->name, bytes);
        all += mine;
        cut = cut || (mine > 0 && mine < elements);
    }
    assert_int_equal(lines, ranks);
    assert_int_equal(all, elements);
    return cut;
}

// ---- tests ----------------------------------------------------------------------------------------------------------

static bool check(const Kind *kind, const char *out, int sp, int dp) {
    char path[PROGRAM_PATH], *said = train(&(Training){kind, out, "emulated", sp, dp, false});
    bool cut = expect_zero_padding(kind, said, sp * dp);
    free(said);
    compare_losses(kind, out, "_cpu");
    compare_tensors_of(kind, out, "gradients.safetensors", GRADIENTS);
    if (dp == 1) compare_tensors_of(kind, out, "logits.safetensors", LOGITS); // else those of the first replica
    expect_norm_of_file(kind, out);
    bool gpt2 = strcmp(kind->arch, "gpt2") == 0;
    const char *const files[] = {"model", "exp_avg", "exp_avg_sq"};
    for (int i = 0; i < 3; i++) {
        char name[64];
        snprintf(name, sizeof name, "step-00000003/%s.safetensors", files[i]);
        run_path(path, kind, out, name);
        expect_shape(path, gpt2 ? "transformer.wte.weight" : "model.embed_tokens.weight", 0, kind->V);
        if (kind->untied) expect_shape(path, "lm_head.weight", 0, kind->V);
    }
    expect_shape(run_path(path, kind, out, "logits.safetensors"), "logits", 2, kind->V);
    return cut;
}

static void check_kind(const Kind *kind) {
    free(train(&(Training){kind, "_cpu", "cpu", 1, 1, false}));
    check(kind, "", 1, 1);
}

static void test_bytes(void **state) { (void)state, check_kind(&BYTES); }
static void test_bytes_untied(void **state) { (void)state, check_kind(&BYTES_UNTIED); }
static void test_numbers(void **state) { (void)state, check_kind(&NUMBERS); }
static void test_numbers_untied(void **state) { (void)state, check_kind(&NUMBERS_UNTIED); }

// Slices of the optimizer begin and end anywhere; of seven, one ends in the padding.
static void test_ranks(void **state) {
    (void)state;
    assert_true(check(&NUMBERS, "_7_1", 7, 1));
    check(&NUMBERS, "_2_2", 2, 2);
    check(&NUMBERS_UNTIED, "_2_2", 2, 2);
}

// Goes on from the checkpoint after step 2 of the run `from`, in a new one.
static void resume(const Kind *kind, const char *from, const char *to, const char *device, int sp) {
    char source[PROGRAM_PATH], target[PROGRAM_PATH];
    run_path(source, kind, from, "step-00000002");
    assert_int_equal(mkdir(run_path(target, kind, to, ""), 0777), 0);
    const char *const copy[] = {"cp", "-r", source, target, NULL};
    ProgramResult result = run_program(copy, 10);
    assert_int_equal(result.exit_code, 0);
    free_result(&result);
    char *said = train(&(Training){kind, to, device, sp, 1, true});
    if (strcmp(device, "cpu") != 0) expect_zero_padding(kind, said, sp);
    free(said);
}

static void test_resume(void **state) {
    (void)state;
    const Kind *const kinds[] = {&NUMBERS, &BYTES_UNTIED};
    static const char *const files[] = {"model", "exp_avg", "exp_avg_sq"};
    for (int k = 0; k < 2; k++) {
        resume(kinds[k], "", "_resumed", "emulated", 1);
        for (int i = 0; i < 3; i++) {
            char x[PROGRAM_PATH], y[PROGRAM_PATH], name[64];
            snprintf(name, sizeof name, "step-00000003/%s.safetensors", files[i]);
            assert_same_bytes(run_path(x, kinds[k], "_resumed", name), run_path(y, kinds[k], "", name));
        }
        resume(kinds[k], "", "_to_cpu", "cpu", 1);
        compare_losses(kinds[k], "_to_cpu", "_cpu");
        resume(kinds[k], "_cpu", "_from_cpu", "emulated", 2);
        compare_losses(kinds[k], "_from_cpu", "_cpu");
    }
}

// What is asked of cuBLASLt: rows of 16 bytes or a multiple. Without padding, those of the logits are of 2.
static void test_products_are_aligned(void **state) {
    (void)state;
    const Kind *const kinds[] = {&BYTES, &NUMBERS_UNTIED};
    setenv("EMULATED_PRODUCTS", "1", 1);
    for (int k = 0; k < 2; k++) {
        char *said = train(&(Training){kinds[k], "_products", "emulated", 1, 1, false});
        int as_rows = 0, as_inner = 0, as_columns = 0;
        for (const char *line = said; (line = strstr(line, "product of ")) != NULL; line++) {
            long long m, n, inner;
            int a, b, d;
            assert_int_equal(sscanf(line, "product of m %lld, n %lld, k %lld: A aligned to %d bytes, B to %d, D to %d",
                                    &m, &n, &inner, &a, &b, &d),
                             6);
            if (a != 16 || b != 16 || d != 16) fail_msg("%s: a %.90s", kinds[k]->name, line);
            as_rows += m == kinds[k]->Vp, as_inner += inner == kinds[k]->Vp, as_columns += n == kinds[k]->Vp;
            assert_true(m != kinds[k]->V && n != kinds[k]->V && inner != kinds[k]->V);
        }
        assert_true(as_rows > 0 && as_inner > 0 && as_columns > 0); // forward, and both gradients
        free(said);
    }
    unsetenv("EMULATED_PRODUCTS");
}

// ---- a model whose padding would win --------------------------------------------------------------------------------

// GPT-2's final norm gives ones, whatever comes, and the embedding is all -1/2: every logit of the vocabulary is -32,
// where a padded one would be 0.
static void write_model(const char *name) {
    ModelConfig config = small_gpt2(NUMBERS.V, 1);
    config.heads = config.kv_heads = 2, config.head_dim = C / 2, config.dim = C, config.ffn_dim = 4 * C;
    config.max_positions = 64;
    ParameterTable table;
    char path[PROGRAM_PATH], within[256], sum[SHA256_HEX_CHARS];
    Error err;
    if (!parameters_list(&table, &config, NUMBERS.V, &err)) fail_msg("%s", err.message);
    float *flat = malloc((size_t)table.total * sizeof *flat);
    assert_non_null(flat);
    parameters_initialize(&table, 1, 0, table.total, flat);
    for (int64_t i = 0; i < NUMBERS.V * C; i++) flat[table.token_table + i] = -0.5f;
    for (int64_t i = 0; i < C; i++) flat[table.final_norm.scale + i] = 0, flat[table.final_norm.bias + i] = 1;
    assert_int_equal(mkdir(path_join(path, folder, name), 0777), 0);
    snprintf(within, sizeof within, "%s/model.safetensors", name);
    bool ok = config_write(&config, NULL, path, &err) &&
              parameter_file_write(path_join(path, folder, within), &table, flat, sum, &err);
    if (!ok) fail_msg("%s", err.message);
    free(flat);
    parameters_free(&table);
}

static ProgramResult run_model(const char *name, const char *const *options) {
    Command command = {0};
    char data[PROGRAM_PATH], model[PROGRAM_PATH];
    add_words(&command, train_gpt_path(), "--init", path_join(model, folder, name), "--device", "emulated", NULL);
    add_data(&command, &NUMBERS, data);
    add_words(&command, "--steps", "0", "--sp", "1", "--context", "64", "--eval-windows", "1", NULL);
    for (; *options != NULL; options++) add_word(&command, *options);
    return run_command(&command, TIME_LIMIT);
}

static void test_padding_takes_no_part(void **state) {
    (void)state;
    write_model("model");
    ProgramResult result = run_model("model", (const char *const[]){"--sample-tokens", "0", NULL});
    const char *loss = strstr(result.out, "validation loss "); // ln 1030; with the padding it would be 32 + ln 122
    char expected[64];
    snprintf(expected, sizeof expected, "validation loss %.4f nats", log((double)NUMBERS.V));
    if (loss == NULL || strncmp(loss, expected, strlen(expected)) != 0) fail_msg("%.40s instead of %s", loss, expected);
    free_result(&result);

    static const char *const choices[][2] = {{"1", "0"}, {"100", "0"}, {"1", "5"}, {"0", "0"}}; // temperature, top k
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++) {
        result = run_model("model", (const char *const[]){"--sample", "1 2 3", "--sample-tokens", "20", "--temperature",
                                                          choices[i][0], "--top-k", choices[i][1], NULL});
        const char *sample = strstr(result.out, "after a prompt of 3\n");
        assert_non_null(sample);
        char *token = strchr(sample, '\n');
        int tokens = 0;
        for (char *end; *token != '\0'; token = end, tokens++) {
            long number = strtol(token, &end, 10);
            if (end == token) break;
            if (number < 0 || number >= NUMBERS.V) fail_msg("token %ld is none", number);
        }
        assert_int_equal(tokens, 23);
        free_result(&result);
    }
}

static void no_device(void **state) {
    (void)state;
    skip();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_bytes_untied),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_numbers_untied),
        cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_products_are_aligned),
        cmocka_unit_test(test_padding_takes_no_part),
    };
    const struct CMUnitTest under_sanitizers[] = {cmocka_unit_test(test_bytes_untied)};
    const struct CMUnitTest none[] = {cmocka_unit_test(no_device)};
    if (!only_emulated()) return cmocka_run_group_tests_name("odd vocabularies", none, NULL, NULL);
    if (program_slowness() > 1)
        return cmocka_run_group_tests_name("odd vocabularies", under_sanitizers, make_data, remove_folder);
    return cmocka_run_group_tests_name("odd vocabularies", tests, make_data, remove_folder);
}
