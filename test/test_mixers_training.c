// Every token mixer in the whole program: the same losses over any number of ranks, alone and beside others; the bytes
// that are sent as they are planned; the same bits when blocks are replayed or a run is resumed.
//
// Tolerances on the CPU. Ranks change the order of fp32 sums and nothing else: each differs by some roundings (6e-8 of
// it), a loss, which is a mean over 300 tokens, by less. AdamW divides each gradient by its own size, so where one is
// nearly 0 the roundings decide the step, and twenty steps carry that on: 1e-8 of the loss is seen after them, 3e-7 of
// that of `conv`, whose filter passes through sines of 10 times its values; ten times the latter is allowed. In bf16
// what ranks sum otherwise is rounded to 2^-9 of it: a value that lies between two falls to either side, in each layer,
// for some of the values. Of a loss, a mean over 80 tokens, 2e-4 is seen, and five times that allowed.
#include "test/mixer_training.h"

#include "attention/attention.h"
#include "terminal/report.h"

static const double CPU_LIMIT = 3e-6, BF16_LIMIT = 1e-3;

// ---- ranks ----------------------------------------------------------------------------------------------------------

static void check_grids(MixerTraining t, const int grids[][2], int count, double limit) {
    Log one, other;
    t.sp = t.dp = 1;
    if (!mixer_train(&t, &one)) return;
    double most = 0;
    for (int i = 0; i < count; i++) {
        char what[MIXERS_TEXT + 100];
        t.sp = grids[i][0], t.dp = grids[i][1];
        snprintf(what, sizeof what, "%s, %s, sp %d, dp %d", t.mixers, t.arch, t.sp, t.dp);
        assert_true(mixer_train(&t, &other));
        double difference = expect_same_losses(what, &one, &other, limit);
        if (difference > most) most = difference;
    }
    print_message("# %s, %s: losses %.4f to %.4f, apart by %.1e\n", t.mixers, t.arch, one.loss[0],
                  one.loss[one.count - 1], most);
    if (t.device == NULL) assert_true(one.loss[one.count - 1] < one.loss[0] - 0.5); // it learns
}

static const int GRIDS[][2] = {{2, 1}, {4, 1}, {2, 2}};

static void ranks_change_no_loss(void **state) {
    (void)state;
    MixerPatterns alone = mixer_patterns(true, false), mixed = mixer_patterns(false, true);
    for (int i = 0; i < alone.count; i++)
        check_grids((MixerTraining){.mixers = alone.text[i], .arch = "llama"}, GRIDS, 3, CPU_LIMIT);
    for (int i = 0; i < mixed.count; i++)
        check_grids((MixerTraining){.mixers = mixed.text[i], .arch = "llama", .layers = 3}, GRIDS, 3, CPU_LIMIT);
}

static void ranks_change_no_loss_of_gpt2(void **state) {
    (void)state;
    MixerPatterns patterns = mixer_patterns(true, false);
    for (int i = 0; i < patterns.count; i++)
        check_grids((MixerTraining){.mixers = patterns.text[i], .arch = "gpt2"}, GRIDS + 1, 1, CPU_LIMIT);
}

static void ranks_change_no_loss_of_documents(void **state) {
    (void)state;
    MixerChoices choices = mixer_choices();
    for (int i = 0; i < choices.count; i++) {
        // conv, fourier and mlp see all tokens alike: refused.
        Command command;
        ProgramResult result;
        MixerTraining t = {.mixers = choices.text[i], .arch = "llama", .documents = true, .steps = 1};
        mixer_command(&command, &t);
        bool served = run_or_refused(&command, choices.text[i], MIXER_TIME_LIMIT, &result);
        if (!served) print_message("# %s", result.err);
        free_result(&result);
        const char *const never[] = {"conv", "fourier", "mlp"};
        bool expected = true;
        for (int k = 0; k < 3; k++) expected = expected && strcmp(choices.mixer[i]->name, never[k]) != 0;
        if (served != expected) fail_msg("--document-mask: %s is %sserved", choices.text[i], served ? "" : "not ");
        t.steps = 20;
        if (served) check_grids(t, GRIDS + 1, 2, CPU_LIMIT);
    }
}

static void ranks_change_no_loss_on_cuda(void **state) {
    (void)state;
    const char *why;
    if (program_slowness() > 1 || device_count(DEVICE_EMULATED, &why) == 0) skip();
    MixerPatterns patterns = mixer_patterns(true, false);
    MixerTraining t = {.arch = "llama", .device = "emulated", .steps = 2, .context = 40, .layers = 1};
    for (int i = 0; i < patterns.count; i++) {
        t.mixers = patterns.text[i];
        check_grids(t, GRIDS + i % 2, i % 4 == 1 ? 2 : 1, BF16_LIMIT); // one in four also on 2 by 2
    }
    patterns = mixer_patterns(false, true);
    if (patterns.count < 2) return;
    t.mixers = patterns.text[1], t.layers = 3;
    check_grids(t, GRIDS + 2, 1, BF16_LIMIT);
}

// ---- bytes ----------------------------------------------------------------------------------------------------------

static double number_behind(const char *text, const char *mark) {
    const char *at = NULL;
    for (const char *next = text; (next = strstr(next, mark)) != NULL; next++) at = next; // the last
    if (at == NULL) fail_msg("there is no %s in %s", mark, text);
    return strtod(at + strlen(mark), NULL);
}

// What the layers state that a rank sends in one step of two passes.
static double stated_bytes(const ModelConfig *config, const AttentionConfig *sharding, int rank, bool replayed) {
    const int64_t passes = 2;
    double sum = 0;
    for (int64_t l = 0; l < config->layers; l++) {
        const Mixer *mixer = layer_kind(config, l).tokens;
        if (mixer->bytes_sent == NULL) continue;
        AttentionBytes bytes = mixer->bytes_sent(config, l, sharding, rank);
        sum += (double)(passes * (bytes.forward * (replayed ? 2 : 1) + bytes.backward));
    }
    return sum;
}

// --plan says what the busiest rank sends.
static void check_planned(const MixerTraining *t, double most) {
    Command command;
    char bytes[32], line[200];
    format_bytes(bytes, most);
    mixer_command(&command, t);
    add_word(&command, "--plan");
    ProgramResult result = run_command(&command, MIXER_TIME_LIMIT);
    char *begin = strstr(result.out, "bytes sent by token mixers"), *end = begin;
    if (begin == NULL) fail_msg("%s: no bytes in %s", t->mixers, result.out);
    if (strncmp(begin, "bytes sent by token mixers per rank and step:", 45) == 0) end = strchr(begin, '\n');
    else // the row of the exchange that is used
        for (end = strstr(begin, " *\n"), begin = end; begin[-1] != '\n';) begin--;
    snprintf(line, sizeof line, "%.*s", (int)(end - begin), begin);
    const char *found = strstr(line, bytes);
    if (found == NULL || found[-1] != ' ' || found[strlen(bytes)] != '\0')
        fail_msg("%s: %s are sent, and the plan has \"%s\"", t->mixers, bytes, line);
    free_result(&result);
}

// What the program counted in the last step, of the rank that writes the log; what its mixers state; what is planned.
static void check_bytes(const MixerTraining *t) {
    char path[PROGRAM_PATH];
    ModelConfig config;
    Error err;
    if (!mixer_train(t, NULL)) return;
    char *text = read_file(path_join(path, folder, "log"), NULL);
    double counted = number_behind(text, "\"bytes_sent\": "), most = 0;
    free(text);
    if (!config_read(&config, training_path(path, t->out, "step-00000001/config.json"), &err))
        fail_msg("%s", err.message);
    AttentionConfig sharding = {.context = 75,
                                .ranks = t->sp,
                                .shape = {t->device == NULL ? 2 : 1, config.heads, config.kv_heads, config.head_dim, 1},
                                .element_bytes = t->device == NULL ? 4 : 2,
                                .windows = {{0, config.layers}},
                                .window_count = 1};
    if (!attention_resolve(&sharding, &err)) fail_msg("%s", err.message);
    bool replayed = t->recompute != NULL && strcmp(t->recompute, "block") == 0;
    double stated = stated_bytes(&config, &sharding, 0, replayed);
    if (stated != counted)
        fail_msg("%s, %s, sp %d%s: %.0f bytes were sent, and %.0f are stated", t->mixers,
                 t->device == NULL ? "cpu" : t->device, t->sp, replayed ? ", replayed" : "", counted, stated);
    assert_true(counted > 0);
    for (int rank = 0; rank < t->sp; rank++) most = fmax(most, stated_bytes(&config, &sharding, rank, replayed));
    MixerTraining planned = *t;
    planned.out = NULL;
    check_planned(&planned, most);
}

static void bytes_are_sent_as_stated(void **state) {
    (void)state;
    int alone = mixer_choices().count;
    MixerPatterns patterns = mixer_patterns(true, true);
    const char *why;
    bool emulated = program_slowness() == 1 && device_count(DEVICE_EMULATED, &why) > 0;
    for (int i = 0; i < patterns.count; i++) {
        char out[40];
        snprintf(out, sizeof out, "bytes-%d", i);
        check_bytes(&(MixerTraining){.mixers = patterns.text[i], .sp = 4, .steps = 1, .layers = 3, .out = out});
        if (i >= alone || i % 4 == 3) continue;
        snprintf(out, sizeof out, "bytes-block-%d", i);
        check_bytes(
            &(MixerTraining){.mixers = patterns.text[i], .sp = 4, .steps = 1, .recompute = "block", .out = out});
        snprintf(out, sizeof out, "bytes-emulated-%d", i);
        if (emulated && i % 4 == 0) // counted as on the CPU, in elements of 2 bytes
            check_bytes(&(MixerTraining){
                .mixers = patterns.text[i], .sp = 2, .steps = 1, .device = "emulated", .layers = 1, .out = out});
    }
}

// ---- blocks replayed, and runs resumed ------------------------------------------------------------------------------

static void expect_same_checkpoint(const char *a, const char *b, int step) {
    static const char *const files[] = {"config.json", "model.safetensors", "exp_avg.safetensors",
                                        "exp_avg_sq.safetensors"};
    char x[PROGRAM_PATH], y[PROGRAM_PATH], name[64];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(name, sizeof name, "step-%08d/%s", step, files[i]);
        assert_same_bytes(training_path(x, a, name), training_path(y, b, name));
    }
}

static void check_recompute(MixerTraining t, int i) {
    static const char *const modes[] = {"none", "mlp", "block"};
    char out[3][60];
    t.steps = t.device == NULL ? 2 : 1;
    for (int k = 0; k < 3; k++) {
        if (k == 1 && i % 4 != 0) continue; // which concerns the MLP alone
        snprintf(out[k], sizeof out[k], "%s-%s-%d", modes[k], t.device == NULL ? "cpu" : t.device, i);
        t.out = out[k], t.recompute = modes[k];
        if (!mixer_train(&t, NULL)) return;
        if (k > 0) expect_same_checkpoint(out[0], out[k], t.steps);
    }
}

static void recompute_keeps_the_bits(void **state) {
    (void)state;
    MixerPatterns patterns = mixer_patterns(true, false);
    for (int i = 0; i < patterns.count; i++)
        check_recompute(
            (MixerTraining){
                .mixers = patterns.text[i], .sp = 1 + i % 3, .layers = 4, .arch = i % 4 == 3 ? "gpt2" : "llama"},
            i);
}

static void recompute_keeps_the_bits_on_cuda(void **state) {
    (void)state;
    const char *why;
    if (program_slowness() > 1 || device_count(DEVICE_EMULATED, &why) == 0) skip();
    MixerPatterns patterns = mixer_patterns(true, false);
    for (int i = 0; i < patterns.count; i++)
        check_recompute(
            (MixerTraining){.mixers = patterns.text[i], .sp = i % 4 == 1 ? 2 : 1, .context = 40, .device = "emulated"},
            i);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_change_no_loss),
        cmocka_unit_test(ranks_change_no_loss_of_gpt2),
        cmocka_unit_test(ranks_change_no_loss_of_documents),
        cmocka_unit_test(ranks_change_no_loss_on_cuda),
        cmocka_unit_test(bytes_are_sent_as_stated),
        cmocka_unit_test(recompute_keeps_the_bits),
        cmocka_unit_test(recompute_keeps_the_bits_on_cuda),
    };
    const struct CMUnitTest under_sanitizers[] = {cmocka_unit_test(ranks_change_no_loss_of_gpt2)}; // each mixer once
    if (program_slowness() > 1)
        return cmocka_run_group_tests_name("mixers_training", under_sanitizers, make_mixer_text, remove_folder);
    return cmocka_run_group_tests_name("mixers_training", tests, make_mixer_text, remove_folder);
}
