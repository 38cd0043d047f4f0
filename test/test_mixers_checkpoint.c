// Every token mixer and its checkpoints: a run that stops and goes on ends at the same bits; its config.json says what
// its layers are, under a model_type of the program's own; it serves as the beginning of another run; and what its
// model says token by token is what training's pass over the same tokens has.
#include "test/mixer_training.h"

// ---- resuming -------------------------------------------------------------------------------------------------------

static void expect_same_checkpoint(const char *a, const char *b, const char *step) {
    static const char *const files[] = {"config.json", "model.safetensors", "exp_avg.safetensors",
                                        "exp_avg_sq.safetensors", "training_state.json"};
    char x[PROGRAM_PATH], y[PROGRAM_PATH], name[64];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(name, sizeof name, "%s/%s", step, files[i]);
        assert_same_bytes(training_path(x, a, name), training_path(y, b, name));
    }
}

// Puts a copy of checkpoint `step` of run `from` into a new run `to`, as if that had been stopped there.
static void copy_checkpoint(const char *from, const char *step, const char *to) {
    char source[PROGRAM_PATH], target[PROGRAM_PATH];
    path_join(target, folder, to);
    assert_int_equal(mkdir(target, 0777), 0);
    const char *const copy[] = {"cp", "-r", training_path(source, from, step), target, NULL};
    ProgramResult result = run_program(copy, 10);
    assert_int_equal(result.exit_code, 0);
    free_result(&result);
}

// Six steps at once, and three and three.
static void check_resume(MixerTraining t, int i) {
    char whole[40], half[40];
    Log at_once, resumed;
    snprintf(whole, sizeof whole, "whole-%s-%d", t.device == NULL ? "cpu" : t.device, i);
    snprintf(half, sizeof half, "half-%s-%d", t.device == NULL ? "cpu" : t.device, i);
    t.steps = t.device == NULL ? 6 : 2, t.save_every = t.steps / 2;
    t.out = whole;
    if (!mixer_train(&t, &at_once)) return;
    copy_checkpoint(whole, t.steps == 6 ? "step-00000003" : "step-00000001", half);
    t.out = half, t.resume = true;
    assert_true(mixer_train(&t, &resumed));
    expect_same_checkpoint(whole, half, t.steps == 6 ? "step-00000006" : "step-00000002");
    assert_true(resumed.validation_loss == at_once.validation_loss);
}

static void runs_resume_to_the_bit(void **state) {
    (void)state;
    MixerPatterns patterns = mixer_patterns(true, false);
    for (int i = 0; i < patterns.count; i++)
        check_resume(
            (MixerTraining){
                .mixers = patterns.text[i], .arch = i % 3 == 2 ? "gpt2" : "llama", .sp = 1 + i % 3, .dp = 1 + i % 2},
            i);
}

static void runs_resume_to_the_bit_on_cuda(void **state) {
    (void)state;
    const char *why;
    if (program_slowness() > 1 || device_count(DEVICE_EMULATED, &why) == 0) skip();
    MixerPatterns patterns = mixer_patterns(true, false);
    for (int i = 0; i < patterns.count; i += 3) // a checkpoint does not ask which mixer a tensor is of
        check_resume(
            (MixerTraining){
                .mixers = patterns.text[i], .device = "emulated", .layers = 1, .context = 40, .sp = 1 + i % 2},
            i);
}

// ---- what a checkpoint says -----------------------------------------------------------------------------------------

static void expect_in_file(const char *out, const char *file, const char *part, bool there) {
    char path[PROGRAM_PATH];
    char *text = read_file(training_path(path, out, file), NULL);
    if ((strstr(text, part) != NULL) != there) fail_msg("%s is %sin %s", part, there ? "not " : "", text);
    free(text);
}

// The validation loss of --init from a checkpoint, as printed, at some number of ranks.
static void validation_of(const char *out, int sp, char loss[16]) {
    char data[PROGRAM_PATH], model[PROGRAM_PATH];
    Command command = {0};
    add_words(&command, train_gpt_path(), "--device", "cpu", "--data", path_join(data, folder, "text"), NULL);
    add_words(&command, "--init", training_path(model, out, "step-00000003"), "--steps", "0", "--eval-windows", "2",
              NULL);
    add_words(&command, "--threads", "1", "--sample-tokens", "0", NULL);
    add_number(&command, "--sp", sp);
    ProgramResult result = run_command(&command, MIXER_TIME_LIMIT);
    const char *said = strstr(result.out, "validation loss ");
    if (said == NULL || sscanf(said, "validation loss %15s", loss) != 1) fail_msg("no loss in %s", result.out);
    free_result(&result);
}

static void checkpoints_are_models(void **state) {
    (void)state;
    MixerPatterns patterns = mixer_patterns(true, true);
    for (int i = 0; i < patterns.count; i++) {
        char out[40], key[MIXERS_TEXT + 40], loss[16], printed[16];
        Log log;
        bool gpt2 = i % 2 == 1, ours = strcmp(patterns.text[i], "attention") != 0;
        snprintf(out, sizeof out, "model-%d", i);
        MixerTraining t = {.mixers = patterns.text[i], .arch = gpt2 ? "gpt2" : "llama", .steps = 3, .out = out};
        t.layers = 3;
        assert_true(mixer_train(&t, &log));
        snprintf(key, sizeof key, "\"token_mixers\": \"%s\"", patterns.text[i]);
        expect_in_file(out, "step-00000003/config.json", key, ours);
        snprintf(key, sizeof key, "\"model_type\": \"%s%s\"", ours ? "train_gpt_" : "", gpt2 ? "gpt2" : "llama");
        expect_in_file(out, "step-00000003/config.json", key, true);
        expect_in_file(out, "step-00000003/config.json", "[\"TrainGpt", ours);
        snprintf(printed, sizeof printed, "%.4f", log.validation_loss);
        validation_of(out, 4, loss);
        if (fabs(strtod(loss, NULL) - log.validation_loss) > 0.6e-4)
            fail_msg("%s: validation loss %s in training, and %s by --init on 4 ranks", t.mixers, printed, loss);
    }
}

static void refuse(const Command *command, const char *part) {
    ProgramResult result = run_program(command->argv, MIXER_TIME_LIMIT);
    expect_one_line(command, &result, 2);
    if (strstr(result.err, part) == NULL) fail_msg("\"%s\" is not in: %s", part, result.err);
    free_result(&result);
}

// What is given again on --resume must be what the model is; with --init it cannot be given.
static void options_given_again(void **state) {
    (void)state;
    MixerPatterns patterns = mixer_patterns(true, false);
    char model[PROGRAM_PATH];
    for (int i = 0; i < patterns.count; i += 2) {
        char out[40], part[MIXERS_TEXT + 100], twice[2 * MIXERS_TEXT];
        const char *other = patterns.text[(i + 1) % patterns.count];
        snprintf(out, sizeof out, "again-%d", i);
        MixerTraining t = {.mixers = patterns.text[i], .steps = 1, .out = out};
        Command command;
        assert_true(mixer_train(&t, NULL));
        t.resume = true, t.steps = 2;
        mixer_command(&command, &t);
        snprintf(twice, sizeof twice, "%s,%s", t.mixers, t.mixers); // says the same of every layer
        add_words(&command, "--mixer", twice, NULL);
        ProgramResult result = run_command(&command, MIXER_TIME_LIMIT);
        free_result(&result);
        if (patterns.count > 1) {
            mixer_command(&command, &t);
            add_words(&command, "--mixer", other, NULL);
            snprintf(part, sizeof part, "has %s; leave it out", t.mixers);
            refuse(&command, part);
        }
        mixer_command(&command, &t);
        add_words(&command, "--mixer", "linear,,", NULL);
        refuse(&command, "--mixer linear,,: there is no \"");
        command = (Command){0};
        add_words(&command, train_gpt_path(), "--device", "cpu", "--mixer", t.mixers, NULL);
        add_words(&command, "--init", training_path(model, out, "step-00000001"), NULL);
        refuse(&command, "--mixer and --init exclude each other");
    }
}

// A damaged value in config.json is one line, and names the file.
static void bad_files_are_refused(void **state) {
    (void)state;
    static const char *const values[] = {"\"\"", "\"zzz\"",         "\"attention,\"", "\"attention:7\"",
                                         "17",   "[\"attention\"]", "\"a\\nb\""};
    MixerTraining t = {.mixers = "attention,attention", .steps = 1, .out = "bad"};
    char path[PROGRAM_PATH], model[PROGRAM_PATH];
    assert_true(mixer_train(&t, NULL));
    char *config = read_file(training_path(path, "bad", "step-00000001/config.json"), NULL);
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        char *changed = malloc(strlen(config) + 200);
        assert_non_null(changed);
        const char *rest = strstr(config, "\"vocab_size\"");
        assert_non_null(rest);
        sprintf(changed,
                "{\"architectures\": [\"TrainGptLlamaForCausalLM\"], \"model_type\": \"train_gpt_llama\", "
                "\"token_mixers\": %s, %s",
                values[i], rest);
        write_file(path, changed, strlen(changed));
        free(changed);
        Command command = {0};
        add_words(&command, train_gpt_path(), "--device", "cpu", "--steps", "0", NULL);
        add_words(&command, "--init", training_path(model, "bad", "step-00000001"), NULL);
        ProgramResult result = run_program(command.argv, MIXER_TIME_LIMIT);
        expect_one_line(&command, &result, result.exit_code == 1 ? 1 : 2);
        if (strstr(result.err, "config.json: \"token_mixers\"") == NULL) fail_msg("%s", result.err);
        free_result(&result);
    }
    free(config);
}

// ---- generation -----------------------------------------------------------------------------------------------------

enum {
    PROMPT = 150,
    SAID = 40,
    SEEN = PROMPT + SAID
}; // the prompt goes through the model in two pieces, of 128 and 22

// What a model says after `prompt`, the likeliest token each time: prompt and answer, SEEN bytes, into a file.
static void say(const MixerTraining *t, const char *model, const char *prompt, const char *file) {
    char data[PROGRAM_PATH], path[PROGRAM_PATH];
    Command command = {0};
    add_words(&command, train_gpt_path(), "--device", t->device == NULL ? "cpu" : t->device, "--init", model, NULL);
    add_words(&command, "--data", path_join(data, folder, "text"), "--steps", "0", "--sp", "1", "--threads", "1", NULL);
    add_words(&command, "--sample", prompt, "--temperature", "0", NULL);
    add_number(&command, "--sample-tokens", SAID);
    if (t->documents) add_words(&command, "--document-mask", "--document-end", "46", NULL);
    ProgramResult result = run_command(&command, MIXER_TIME_LIMIT);
    char *said = strstr(result.out, "\nsample: ");
    said = said == NULL ? NULL : strstr(said, prompt);
    if (said == NULL || strlen(said) < SEEN) fail_msg("no sample in %s", result.out);
    write_file(path_join(path, folder, file), said, SEEN);
    free_result(&result);
}

// The logits (SEEN, V) of training's pass over the file, which is one window: an end of document follows it.
static float *logits_of(const MixerTraining *t, const char *model, const char *file, int64_t *vocabulary) {
    char data[PROGRAM_PATH], dump[PROGRAM_PATH];
    Command command = {0};
    add_words(&command, train_gpt_path(), "--device", t->device == NULL ? "cpu" : t->device, "--init", model, NULL);
    path_join(data, folder, file);
    add_words(&command, "--data", data, "--val-data", data, "--dump", path_join(dump, folder, "dump"), NULL);
    add_words(&command, "--steps", "1", "--sample-tokens", "0", "--threads", "1", "--eval-windows", "1", NULL);
    add_number(&command, "--context", SEEN);
    add_number(&command, "--sp", t->device == NULL ? 2 : 1);
    if (t->documents) add_words(&command, "--document-mask", "--document-end", "46", NULL);
    ProgramResult result = run_command(&command, MIXER_TIME_LIMIT);
    free_result(&result);
    Safetensors *tensors = open_tensors(training_path(data, "dump", "logits.safetensors"));
    const Tensor *logits = find_tensor(tensors, "logits");
    *vocabulary = logits->count / SEEN;
    assert_int_equal(*vocabulary * SEEN, logits->count);
    float *values = tensor_values(logits);
    safetensors_close(tensors);
    return values;
}

// Each token said is the likeliest that training's pass has at its place, or as likely but for roundings. `allowed` is
// of the logits' spread.
static void check_generation(MixerTraining t, int i, double allowed) {
    char out[40], model[PROGRAM_PATH], path[PROGRAM_PATH], prompt[PROMPT + 1] = "";
    snprintf(out, sizeof out, "says-%s-%d%s", t.device == NULL ? "cpu" : t.device, i, t.documents ? "-documents" : "");
    t.out = out, t.context = SEEN;
    MixerTraining made = t; // on the CPU in any case, which is the fastest
    made.device = NULL, made.wide = t.device != NULL;
    assert_true(mixer_train(&made, NULL));
    char *text = read_file(path_join(path, folder, "text"), NULL);
    memcpy(prompt, text + 3000, PROMPT);
    free(text);
    char step[40];
    snprintf(step, sizeof step, "step-%08d", t.steps > 0 ? t.steps : 20);
    training_path(model, out, step);
    say(&t, model, prompt, "said");
    int64_t V;
    float *logits = logits_of(&t, model, "said", &V);
    char *said = read_file(path_join(path, folder, "said"), NULL);
    double most = 0;
    for (int64_t at = PROMPT - 1; at + 1 < SEEN; at++) {
        const float *row = logits + at * V;
        double best = row[0], mean = 0, squares = 0;
        for (int64_t v = 0; v < V; v++) {
            best = fmax(best, row[v]);
            mean += row[v] / (double)V;
        }
        for (int64_t v = 0; v < V; v++) squares += (row[v] - mean) * (row[v] - mean);
        double short_of = (best - row[(unsigned char)said[at + 1]]) / sqrt(squares / (double)V);
        if (!(short_of <= allowed))
            fail_msg("%s%s: after %lld tokens it says '%c', which in training is below the best by %.2e of the spread",
                     t.mixers, t.documents ? ", documents" : "", (long long)at + 1, said[at + 1], short_of);
        most = fmax(most, short_of);
    }
    if (most > 0) print_message("# %s: below the best by %.1e of the spread at most\n", t.mixers, most);
    free(said);
    free(logits);
}

static void generation_is_trainings(void **state) {
    (void)state;
    MixerPatterns patterns = mixer_patterns(true, true);
    for (int i = 0; i < patterns.count; i++) {
        check_generation(
            (MixerTraining){
                .mixers = patterns.text[i], .arch = i % 3 == 1 ? "gpt2" : "llama", .layers = 3, .steps = 50},
            i, 1e-4);
    }
}

static void generation_is_trainings_with_documents(void **state) {
    (void)state;
    MixerChoices choices = mixer_choices();
    static const char *const whole[] = {"conv", "fourier", "mlp"}; // which refuse documents
    for (int i = 0; i < choices.count; i++) {
        bool serves = true;
        for (int k = 0; k < 3; k++) serves = serves && strcmp(choices.mixer[i]->name, whole[k]) != 0;
        if (serves)
            check_generation((MixerTraining){.mixers = choices.text[i], .documents = true, .steps = 50}, i, 1e-4);
    }
}

// bf16 rounds to 2^-9 what the pieces of a prompt sum in another order.
static void generation_is_trainings_on_cuda(void **state) {
    (void)state;
    const char *why;
    if (program_slowness() > 1 || device_count(DEVICE_EMULATED, &why) == 0) skip();
    MixerPatterns patterns = mixer_patterns(true, false);
    for (int i = 0; i < patterns.count; i++)
        check_generation((MixerTraining){.mixers = patterns.text[i], .device = "emulated", .steps = 1, .layers = 1}, i,
                         0.05);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_resume_to_the_bit),
        cmocka_unit_test(runs_resume_to_the_bit_on_cuda),
        cmocka_unit_test(checkpoints_are_models),
        cmocka_unit_test(options_given_again),
        cmocka_unit_test(bad_files_are_refused),
        cmocka_unit_test(generation_is_trainings),
        cmocka_unit_test(generation_is_trainings_with_documents),
        cmocka_unit_test(generation_is_trainings_on_cuda),
    };
    const struct CMUnitTest under_sanitizers[] = {
        cmocka_unit_test(generation_is_trainings_with_documents),
        cmocka_unit_test(bad_files_are_refused),
    };
    if (program_slowness() > 1)
        return cmocka_run_group_tests_name("mixers_checkpoint", under_sanitizers, make_mixer_text, remove_folder);
    return cmocka_run_group_tests_name("mixers_checkpoint", tests, make_mixer_text, remove_folder);
}
