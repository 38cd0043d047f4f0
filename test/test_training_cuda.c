// Training as a whole on a GPU's kernels: by default those that the processor runs (--device emulated);
// TEST_DEVICE=cuda takes a GPU. Held against the CPU device, which is fp32 throughout; against itself, to the bit; and
// checkpoints go from one device to the other.
//
// Tolerances. Storage is bf16: a value is rounded to 8 bits, by U = 2^-8 at most and U/2 (0.2%) on average. What is
// compared are means and norms over thousands of such values, whose errors have either sign.
//
// Losses. A logit comes out of a dozen roundings of numbers of its own size, and logits of a new model are about 0.2:
// each is off by sqrt(12) U/2 0.2 = 1.4e-3 or so, a token's loss by as much, and the mean over 128 tokens by 1.2e-4,
// that is 2e-5 of ln 257. Five times that is allowed at the first step. The steps after it have other weights: AdamW's
// first step is lr in the direction of each gradient's sign, whatever its size, and the signs of the smallest are
// wrong. 8e-4 of the loss is seen, 3e-3 allowed.
//
// Logits: sqrt(12) U/2 = 0.7% of their norm; 2% is allowed. Gradients come out of some tens of roundings on the way
// down and back up: sqrt(40) U/2 = 1.2% of a tensor's norm; 3% is allowed, and of the norm of all at every step.
#include "test/compare.h"
#include "test/cuda_device.h"
#include "test/folder.h"

#include <limits.h>

#include "base/random.h"
#include "layers/device.h"

static const double FIRST_LOSS = 1e-4, LOSSES = 3e-3, GRADIENT_NORM = 3e-2; // relative
static const Tolerance GRADIENTS = {3e-2, 5e-2}, LOGITS = {2e-2, 2e-2};

enum { STEPS = 3, TIME_LIMIT = 60 };

static const char *device_name;
static int devices; // of this kind

// ---- one run ------------------------------------------------------------------------------------------------------

typedef struct Training {
    const char *out;    // name inside `folder`, of the run's own folder
    const char *device; // NULL: the one to be tested
    const char *arch;   // gpt2 or llama
    int sp, dp;         // 0: 1
    const char *attention;
    bool limited; // a window in the first layer, and documents
    bool resume;
} Training;

static char *run_path(char path[PROGRAM_PATH], const char *out, const char *file) {
    char within[256];
    snprintf(within, sizeof within, "%s/%s", out, file);
    return path_join(path, folder, within);
}

static void write_corpus(void) {
    static const char *const words[] = {"attention", "is", "a", "walk", "over", "pairs", "of", "chunks", ".\n"};
    enum { WORDS = sizeof words / sizeof *words, BYTES = 8 << 10 };
    char text[BYTES + 16], path[PROGRAM_PATH];
    size_t used = 0;
    for (uint64_t i = 0; used < BYTES; i++)
        used += (size_t)sprintf(text + used, "%s ", words[random_below(7, RANDOM_STREAM_DATA, i, WORDS)]);
    write_file(path_join(path, folder, "corpus.txt"), text, used);
}

// Where there are fewer GPUs than ranks, ranks share them.
static void add_device(Command *command, const char *name, int ranks) {
    static char list[64];
    size_t used = 0;
    add_words(command, "--device", name, NULL);
    if (strcmp(name, "cpu") == 0 || ranks <= devices) return;
    for (int i = 0; i < ranks; i++)
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%d", i > 0 ? "," : "", i % devices);
    add_words(command, "--devices", list, NULL);
}

// Three steps of two sequences of 64 tokens: two layers of width 64, heads of 32, in one checkpoint each step.
static void train(const Training *t) {
    Command command = {0};
    char corpus[PROGRAM_PATH], out[PROGRAM_PATH], log[PROGRAM_PATH];
    int sp = t->sp > 0 ? t->sp : 1, dp = t->dp > 0 ? t->dp : 1;
    path_join(corpus, folder, "corpus.txt");
    path_join(out, folder, t->out);
    if (mkdir(out, 0777) != 0) assert_int_equal(errno, EEXIST);
    path_join(log, out, "log.jsonl");
    add_words(&command, train_gpt_path(), "--data", corpus, "--out", out, "--log", log, "--steps", "3", NULL);
    if (t->resume) add_word(&command, "--resume");
    else {
        add_words(&command, "--arch", t->arch, "--layers", "2", "--heads", "2", "--dim", "64", "--dump", out, NULL);
        if (t->limited)
            add_words(&command, "--window", "20,0", "--document-mask", "--document-end", "10", NULL); // ends of lines
        if (strcmp(t->arch, "llama") == 0) add_words(&command, "--kv-heads", "1", "--ffn", "128", NULL);
    }
    add_words(&command, "--context", "64", "--batch", "2", "--lr", "1e-2", "--warmup", "1", "--eval-windows", "1",
              NULL);
    add_words(&command, "--save-every", "1", "--keep", "0", "--sample-tokens", "0", "--threads", "2", NULL);
    add_words(&command, "--attention", t->attention ? t->attention : "auto", "--engine", "local", NULL);
    add_number(&command, "--sp", sp);
    add_number(&command, "--dp", dp);
    add_device(&command, t->device ? t->device : device_name, sp * dp);
    ProgramResult result = run_command(&command, TIME_LIMIT);
    free_result(&result);
}

// ---- comparing ----------------------------------------------------------------------------------------------------

static double far(double a, double b) { return fabs(a - b) / fabs(b); }

// Of the steps that `got` has made.
static void compare_losses(const char *got, const char *expected, bool exactly) {
    char path[PROGRAM_PATH];
    Log x = read_log(run_path(path, got, "log.jsonl")), y = read_log(run_path(path, expected, "log.jsonl"));
    double loss = far(x.validation_loss, y.validation_loss), norm = 0, first = far(x.loss[0], y.loss[x.step[0] - 1]);
    assert_int_equal(y.count, STEPS);
    assert_int_equal(x.step[x.count - 1], STEPS);
    for (int i = 0; i < x.count; i++) {
        int64_t step = x.step[i] - 1;
        loss = fmax(loss, far(x.loss[i], y.loss[step]));
        norm = fmax(norm, far(x.gradient_norm[i], y.gradient_norm[step]));
    }
    print_message("# %s and %s: losses %.1e, at step %lld %.1e, norms of gradients %.1e\n", got, expected, loss,
                  (long long)x.step[0], first, norm);
    if (x.step[0] == 1 && !(first <= FIRST_LOSS))
        fail_msg("the first loss is off by %.2e (limit %.1e)", first, FIRST_LOSS);
    if (!(loss <= (exactly ? 0 : LOSSES)) || !(norm <= (exactly ? 0 : GRADIENT_NORM)))
        fail_msg("%s and %s: losses differ by %.2e (limit %.1e), gradients' norms by %.2e (limit %.1e)", got, expected,
                 loss, exactly ? 0 : LOSSES, norm, exactly ? 0 : GRADIENT_NORM);
}

static Distance compare_tensors_of(const char *got, const char *expected, const char *file, Tolerance tolerance) {
    char x[PROGRAM_PATH], y[PROGRAM_PATH];
    return compare_files(run_path(x, got, file), run_path(y, expected, file), tolerance);
}

static void compare_runs(const char *got, const char *expected, int replicas) {
    compare_losses(got, expected, false);
    Distance gradients = compare_tensors_of(got, expected, "gradients.safetensors", GRADIENTS);
    print_message("# first step: gradients %.1e (single ones %.1e)\n", gradients.norm, gradients.largest);
    if (replicas > 1) return; // the first one's logits are only half of all
    Distance logits = compare_tensors_of(got, expected, "logits.safetensors", LOGITS);
    print_message("# logits %.1e (%.1e)\n", logits.norm, logits.largest);
}

static void assert_same_checkpoint(const char *a, const char *b) {
    static const char *const files[] = {"config.json", "model.safetensors", "exp_avg.safetensors",
                                        "exp_avg_sq.safetensors", "training_state.json"};
    char x[PROGRAM_PATH], y[PROGRAM_PATH], name[64];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(name, sizeof name, "step-00000003/%s", files[i]);
        assert_same_bytes(run_path(x, a, name), run_path(y, b, name));
    }
}

// Goes on from the checkpoint after step 2 of run `from`, in a new run `to`.
static void resume(const char *from, const char *to, const char *device, int sp, int dp) {
    char source[PROGRAM_PATH], target[PROGRAM_PATH];
    run_path(source, from, "step-00000002");
    path_join(target, folder, to);
    assert_int_equal(mkdir(target, 0777), 0);
    const char *const copy[] = {"cp", "-r", source, target, NULL};
    ProgramResult result = run_program(copy, 10);
    assert_int_equal(result.exit_code, 0);
    free_result(&result);
    train(&(Training){.out = to, .device = device, .sp = sp, .dp = dp, .resume = true});
}

// ---- tests --------------------------------------------------------------------------------------------------------

static void check_ranks(const char *arch, int sp, int dp, const char *attention) {
    char out[64], cpu[64];
    snprintf(out, sizeof out, "%s_%d_%d", arch, sp, dp);
    snprintf(cpu, sizeof cpu, "%s_cpu", arch);
    train(&(Training){.out = out, .arch = arch, .sp = sp, .dp = dp, .attention = attention});
    compare_runs(out, cpu, dp);
}

static void test_llama_1_1(void **state) { (void)state, check_ranks("llama", 1, 1, NULL); }
static void test_llama_2_1(void **state) { (void)state, check_ranks("llama", 2, 1, "ring"); }
static void test_llama_4_1(void **state) { (void)state, check_ranks("llama", 4, 1, "gather"); }
static void test_llama_2_2(void **state) { (void)state, check_ranks("llama", 2, 2, "ulysses"); }
static void test_gpt2_1_1(void **state) { (void)state, check_ranks("gpt2", 1, 1, NULL); }
static void test_gpt2_2_1(void **state) { (void)state, check_ranks("gpt2", 2, 1, "ulysses"); }
static void test_gpt2_4_1(void **state) { (void)state, check_ranks("gpt2", 4, 1, "ring"); }
static void test_gpt2_2_2(void **state) { (void)state, check_ranks("gpt2", 2, 2, NULL); }

static void test_vanilla(void **state) {
    (void)state;
    train(&(Training){.out = "vanilla", .arch = "gpt2", .attention = "vanilla"});
    compare_runs("vanilla", "gpt2_cpu", 1);
}

// A window and documents, on one rank, by stored probabilities, and on ranks between which they cut.
static void test_windows_and_documents(void **state) {
    (void)state;
    train(&(Training){.out = "limited_cpu", .device = "cpu", .arch = "llama", .limited = true});
    train(&(Training){.out = "limited", .arch = "llama", .limited = true});
    compare_runs("limited", "limited_cpu", 1);
    train(&(Training){.out = "limited_ring", .arch = "llama", .sp = 3, .attention = "ring", .limited = true});
    compare_runs("limited_ring", "limited_cpu", 1);
    train(&(Training){.out = "limited_vanilla", .arch = "llama", .attention = "vanilla", .limited = true});
    compare_runs("limited_vanilla", "limited_cpu", 1);
}

static void test_same_bits(void **state) {
    (void)state;
    train(&(Training){.out = "again", .arch = "llama", .sp = 2, .dp = 2, .attention = "ulysses"});
    compare_losses("again", "llama_2_2", true);
    assert_same_checkpoint("again", "llama_2_2");
}

// Without NCCL the GPUs of one process copy from each other; that makes no other bits.
static void test_without_nccl(void **state) {
    (void)state;
    if (strcmp(device_name, "emulated") != 0) skip();
    setenv("EMULATED_NCCL", "absent", 1);
    setenv("EMULATED_NCCL_FAIL", "0:0", 1); // it would be seen if it were used
    train(&(Training){.out = "without_nccl", .arch = "llama", .sp = 2, .dp = 2, .attention = "ulysses"});
    unsetenv("EMULATED_NCCL");
    unsetenv("EMULATED_NCCL_FAIL");
    assert_same_checkpoint("without_nccl", "llama_2_2");
}

// Weights go on from fp32, not from what was rounded to bf16: or the third step would have other bits.
static void test_resume_exactly(void **state) {
    (void)state;
    resume("gpt2_2_2", "resumed", NULL, 2, 2);
    compare_losses("resumed", "gpt2_2_2", true);
    assert_same_checkpoint("resumed", "gpt2_2_2");
}

static void test_checkpoints_go_between_devices(void **state) {
    (void)state;
    resume("llama_4_1", "to_cpu", "cpu", 2, 1);
    compare_losses("to_cpu", "llama_cpu", false);
    resume("llama_cpu", "from_cpu", NULL, 2, 1);
    compare_losses("from_cpu", "llama_cpu", false);
}

// The same words each time; and GPT-2 has its own way through the MLP.
static void test_sample(void **state) {
    (void)state;
    char model[PROGRAM_PATH], corpus[PROGRAM_PATH];
    char *said[3];
    for (int i = 0; i < 3; i++) {
        Command command = {0};
        run_path(model, i < 2 ? "llama_2_1" : "gpt2_2_1", "step-00000003");
        path_join(corpus, folder, "corpus.txt");
        add_words(&command, train_gpt_path(), "--init", model, "--data", corpus, "--steps", "0", "--sp", "1", NULL);
        add_words(&command, "--context", "64", "--eval-windows", "1", "--sample", "attention is a ", NULL);
        add_words(&command, "--sample-tokens", "6", "--device", device_name, NULL);
        ProgramResult result = run_command(&command, TIME_LIMIT);
        char *sample = strstr(result.out, "attention is a ");
        while (sample != NULL && strstr(sample + 1, "attention is a ")) sample = strstr(sample + 1, "attention is a ");
        assert_non_null(sample); // the last one: the command line has the prompt too
        assert_true(strlen(sample) > strlen("attention is a ") + 1);
        said[i] = strdup(sample);
        free_result(&result);
    }
    assert_string_equal(said[0], said[1]);
    for (int i = 0; i < 3; i++) free(said[i]);
}

static void refused(const char *const *options, const char *message) {
    Command command = {0};
    add_words(&command, train_gpt_path(), "--steps", "0", "--sample-tokens", "0", NULL);
    for (; *options != NULL; options++) add_word(&command, *options);
    ProgramResult result = run_program(command.argv, TIME_LIMIT);
    if (result.exit_code != 2 || strstr(result.err, message) == NULL)
        fail_msg("exit code %d and \"%s\" instead of \"%s\"", result.exit_code, result.err, message);
    free_result(&result);
}

static void test_what_is_refused(void **state) {
    (void)state;
    const char *d = device_name;
    refused((const char *const[]){"--device", d, "--sp", "4", "--devices", "0,0", NULL},
            "--devices 0,0 names 2 GPUs for 4 ranks of this process: give one for each (ranks may share)");
    refused((const char *const[]){"--device", d, "--sp", "2", "--devices", "0,x", NULL},
            "--devices 0,x: give the number of a GPU for each rank, such as 0,1,2,3");
    refused((const char *const[]){"--device", d, "--sp", "1", "--heads", "4", "--dim", "80", NULL},
            "takes a width, an MLP width and heads that are multiples of 8: this model has 80");
    refused((const char *const[]){"--device", d, "--sp", "1", "--heads", "1", "--dim", "144", NULL},
            "heads of 8 to 128, in multiples of 8; change --dim or --heads, or use --device cpu");
    if (strcmp(d, "emulated") == 0)
        refused((const char *const[]){"--device", d, "--sp", "2", "--engine", "nccl", NULL},
                "--device emulated: its ranks can only be threads of one process; use --engine local");
    refused((const char *const[]){"--device", d, "--sp", "1", "--devices", "65535", NULL}, "there is no GPU 65535");
    if (strcmp(d, "emulated") == 0) // there are 64 of it
        refused((const char *const[]){"--device", d, "--sp", "65", "--context", "2048", NULL},
                "start fewer ranks, or let them share by --devices");
    if (devices == INT_MAX) return;
    refused((const char *const[]){"--device", d, "--sp", "512", "--context", "2048", NULL},
            "let them share: --devices");
}

static void no_device(void **state) {
    (void)state;
    skip();
}

static int make_runs(void **state) {
    make_folder(state);
    write_corpus();
    train(&(Training){.out = "llama_cpu", .device = "cpu", .arch = "llama"});
    train(&(Training){.out = "gpt2_cpu", .device = "cpu", .arch = "gpt2"});
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_1_1),       cmocka_unit_test(test_llama_2_1),
        cmocka_unit_test(test_llama_4_1),       cmocka_unit_test(test_llama_2_2),
        cmocka_unit_test(test_gpt2_1_1),        cmocka_unit_test(test_gpt2_2_1),
        cmocka_unit_test(test_gpt2_4_1),        cmocka_unit_test(test_gpt2_2_2),
        cmocka_unit_test(test_vanilla),         cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_without_nccl),    cmocka_unit_test(test_resume_exactly),
        cmocka_unit_test(test_sample),          cmocka_unit_test(test_checkpoints_go_between_devices),
        cmocka_unit_test(test_what_is_refused), cmocka_unit_test(test_windows_and_documents),
    };
    const struct CMUnitTest under_sanitizers[] = {
        cmocka_unit_test(test_llama_2_2),
        cmocka_unit_test(test_gpt2_2_2),
        cmocka_unit_test(test_resume_exactly),
        cmocka_unit_test(test_what_is_refused),
    };
    const struct CMUnitTest none[] = {cmocka_unit_test(no_device)};
    device_name = cuda_device_name();
    devices = cuda_devices_here();
    if (devices == 0) return cmocka_run_group_tests_name("training on a GPU's kernels", none, NULL, NULL);
    if (program_slowness() > 1)
        return cmocka_run_group_tests_name("training on a GPU's kernels", under_sanitizers, make_runs, remove_folder);
    return cmocka_run_group_tests_name("training on a GPU's kernels", tests, make_runs, remove_folder);
}
