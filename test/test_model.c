// The whole program against PyTorch: for each golden (test/goldens/make_model_goldens.py), train_gpt starts from its
// checkpoint and takes ten AdamW steps on its tokens; the first step's logits and every gradient, all losses, and the
// weights at the end must be those that PyTorch computed in float64. Then the same with the sequence sharded in every
// way.
//
// Tolerances. float32 rounds to u = 6e-8. A logit or a gradient is the end of a chain of some ten sums of 30 to 70
// products, each with an error of a few u when summed in any order: 1e-6 is to be expected. PyTorch itself, run in
// float32 over the same goldens, is off by at most 4e-7 (logits), 2e-6 (gradients; the largest is Qwen2's bias on
// keys, a small difference of large terms) and 2e-6 (weights after ten steps, where Adam's division by a small root
// amplifies) in norm, and up to twice that for single elements. The limits are about three times as wide, so that
// another order of summation passes and a wrong term does not: the smallest thing that could be wrong in these models
// (a norm's epsilon, which is 1e-3 here; a rope scaling; erf for tanh) changes gradients by 1e-4 and more.
#include "test/compare.h"
#include "test/program.h"

#include "model/config.h"

static const Tolerance LOGITS = {2e-6, 4e-6};
static const Tolerance GRADIENTS = {5e-6, 5e-6};
static const Tolerance TRAINED = {5e-6, 1e-5};
static const double LOSSES = 1e-6; // relative

enum { CONTEXT = 37, STEPS = 10, TIME_LIMIT = 60 };

typedef struct Case {
    const char *golden; // folder of the checkpoint
    int batch;
    const char *attention;
    int sp, dp;
    const char *expected; // folder of tokens and expected values, where it is another
    bool always;          // also under sanitizers
} Case;

static const Case cases[] = {
    {"gpt2", 1, "auto", 1, 1, NULL, true},
    {"llama", 2, "auto", 1, 1, NULL, false},
    {"tied", 1, "auto", 1, 1, NULL, false},
    {"qwen2", 1, "auto", 1, 1, NULL, true},
    {"llama3", 1, "auto", 1, 1, NULL, false},
    {"yarn", 1, "auto", 1, 1, NULL, false},
    {"linear", 1, "auto", 1, 1, NULL, false},
    {"sharded", 1, "auto", 1, 1, "linear", true}, // written by the transformers library, in several files
    {"gpt2", 1, "vanilla", 1, 1, NULL, false},
    {"llama", 2, "vanilla", 1, 1, NULL, true},
    {"gpt2", 1, "ring", 2, 1, NULL, false},
    {"gpt2", 1, "ring", 3, 1, NULL, true},
    {"gpt2", 1, "ring", 4, 1, NULL, false},
    {"gpt2", 1, "gather", 2, 1, NULL, false},
    {"gpt2", 1, "gather", 3, 1, NULL, false},
    {"gpt2", 1, "gather", 4, 1, NULL, false},
    {"gpt2", 1, "ulysses", 2, 1, NULL, false},
    {"gpt2", 1, "ulysses", 4, 1, NULL, true},
    {"gpt2", 1, "ulysses-ring", 4, 1, NULL, false},
    {"llama", 2, "ring", 2, 1, NULL, false},
    {"llama", 2, "ring", 3, 1, NULL, false},
    {"llama", 2, "ring", 4, 1, NULL, false},
    {"llama", 2, "gather", 2, 1, NULL, false},
    {"llama", 2, "gather", 3, 1, NULL, true},
    {"llama", 2, "gather", 4, 1, NULL, false},
    {"llama", 2, "ulysses", 2, 1, NULL, false},
    {"llama", 2, "ulysses-ring", 4, 1, NULL, true},
    {"llama", 2, "auto", 1, 2, NULL, false},
    {"llama", 2, "auto", 2, 2, NULL, true},
    {"qwen2", 1, "auto", 3, 1, NULL, false},
    {"yarn", 1, "auto", 4, 1, NULL, false},
};
enum { CASES = sizeof cases / sizeof *cases };

static void assert_losses_near(const float *expected, const Log *log) {
    assert_int_equal(log->count, STEPS);
    for (int i = 0; i < STEPS; i++) {
        assert_int_equal(log->step[i], i + 1);
        if (!(fabs(log->loss[i] - expected[i]) <= LOSSES * fabs(expected[i])))
            fail_msg("loss of step %d: %.9g, not %.9g", i + 1, log->loss[i], expected[i]);
    }
    // The validation data are the training data: their loss at the end is the loss before an eleventh step.
    if (!(fabs(log->validation_loss - expected[STEPS]) <= LOSSES * fabs(expected[STEPS])))
        fail_msg("validation loss: %.9g, not %.9g", log->validation_loss, expected[STEPS]);
}

// Holds each sequence of `got` against the expected one that it is nearest to: the loader takes the windows of a
// batch in an order of its own. (B, T, V); `got` has the sequences of the first replica.
static Distance compare_logits(const Tensor *got, const Tensor *expected, int64_t sequences) {
    int64_t T = expected->shape[1], V = expected->shape[2], size = T * V;
    assert_int_equal(got->dimensions, 3);
    assert_true(got->shape[0] == sequences && got->shape[1] == T && got->shape[2] == V);
    float *x = tensor_values(got), *y = tensor_values(expected);
    bool taken[2] = {false, false};
    Distance worst = {0, 0};
    for (int64_t b = 0; b < sequences; b++) {
        int64_t best = 0;
        Distance least = {INFINITY, INFINITY};
        for (int64_t e = 0; e < expected->shape[0]; e++) {
            Distance d = distance_of(x + b * size, y + e * size, size);
            if (!taken[e] && d.norm < least.norm) least = d, best = e;
        }
        taken[best] = true;
        worst = (Distance){fmax(worst.norm, least.norm), fmax(worst.largest, least.largest)};
    }
    free(x);
    free(y);
    return worst;
}

static char *golden_path(char out[PROGRAM_PATH], const char *golden, const char *file) {
    char name[256];
    snprintf(name, sizeof name, "test/goldens/%s/%s", golden, file);
    return project_path(out, name);
}

static void train_case(const Case *c, const char *out) {
    char checkpoint[PROGRAM_PATH], tokens[PROGRAM_PATH], log[PROGRAM_PATH];
    golden_path(checkpoint, c->golden, "");
    golden_path(tokens, c->expected ? c->expected : c->golden, "tokens.bin");
    path_join(log, out, "log.jsonl");
    Command command = {0};
    add_words(&command, train_gpt_path(), "--device", "cpu", "--init", checkpoint, "--data", tokens, "--val-data",
              tokens, NULL);
    add_words(&command, "--attention", c->attention, "--dump", out, "--out", out, "--log", log, NULL);
    add_words(&command, "--schedule", "constant", "--warmup", "0", "--lr", "5e-3", "--adam-epsilon", "1e-4", NULL);
    add_words(&command, "--beta1", "0.9", "--beta2", "0.95", "--weight-decay", "0.1", "--grad-clip", "1", NULL);
    add_words(&command, "--sample-tokens", "0", "--threads", "1", NULL);
    add_number(&command, "--context", CONTEXT);
    add_number(&command, "--steps", STEPS);
    add_number(&command, "--batch", c->batch);
    add_number(&command, "--sp", c->sp);
    add_number(&command, "--dp", c->dp);
    ProgramResult result = run_command(&command, TIME_LIMIT);
    free_result(&result);
}

// The checkpoint's config.json describes the model that was started from, to the letter: whatever the run changed there
// would change what other programs compute with the weights.
static void assert_same_config(const Case *c, const char *out) {
    char path[PROGRAM_PATH], again[PROGRAM_PATH];
    ModelConfig config;
    Error err = {0};
    if (!config_read(&config, golden_path(path, c->golden, "config.json"), &err)) fail_msg("%s", err.message);
    JsonDocument *source = json_read_file(path, &err);
    if (source == NULL) fail_msg("%s", err.message);
    if (!config_write(&config, json_root(source), path_join(again, out, "config.json"), &err))
        fail_msg("%s", err.message);
    json_free(source);
    assert_same_bytes(path_join(path, out, "step-00000010/config.json"), again);
}

static void test_case(void **state) {
    const Case *c = *state;
    char out[PROGRAM_PATH], path[PROGRAM_PATH];
    train_case(c, make_temp_folder(out));
    assert_same_config(c, out);

    golden_path(path, c->expected ? c->expected : c->golden, "expected.safetensors");
    Safetensors *expected = open_tensors(path);
    Log log = read_log(path_join(path, out, "log.jsonl"));
    float *losses = tensor_values(find_tensor(expected, "losses"));
    float *norm = tensor_values(find_tensor(expected, "gradient_norm"));
    assert_losses_near(losses, &log);
    assert_true(fabs(log.gradient_norm[0] - norm[0]) <= 2e-6 * norm[0]);
    free(losses);
    free(norm);

    Safetensors *got = open_tensors(path_join(path, out, "logits.safetensors"));
    Distance logits = compare_logits(find_tensor(got, "logits"), find_tensor(expected, "logits"), c->batch / c->dp);
    assert_near("logits", logits, LOGITS);
    safetensors_close(got);
    got = open_tensors(path_join(path, out, "gradients.safetensors"));
    Distance gradients = compare_tensors(got, expected, "gradient.", GRADIENTS);
    safetensors_close(got);
    got = open_tensors(path_join(path, out, "step-00000010/model.safetensors"));
    Distance trained = compare_tensors(got, expected, "trained.", TRAINED);
    safetensors_close(got);
    safetensors_close(expected);
    remove_tree(out);
    print_message("# off by at most: logits %.1e, gradients %.1e, trained weights %.1e\n", logits.norm, gradients.norm,
                  trained.norm);
}

int main(void) {
    static char names[CASES][80];
    struct CMUnitTest tests[CASES];
    size_t count = 0;
    for (int i = 0; i < CASES; i++) {
        const Case *c = &cases[i];
        if (program_slowness() > 1 && !c->always) continue;
        snprintf(names[i], sizeof names[i], "%s, attention %s, sp %d, dp %d", c->golden, c->attention, c->sp, c->dp);
        tests[count++] = (struct CMUnitTest){names[i], test_case, NULL, NULL, (void *)(uintptr_t)c};
    }
    return _cmocka_run_group_tests("whole model against PyTorch", tests, count, NULL, NULL);
}
