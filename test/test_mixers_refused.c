// What cannot be, of token mixers: one line that says what and, for a usage error, exit code 2. Whatever combination is
// given either trains or is refused so; and --help names every mixer.
#include "test/mixer_training.h"

// Words with single spaces between, beside a small run.
static void add_options(Command *command, const char *options, char words[1024]) {
    char data[PROGRAM_PATH];
    static char kept[PROGRAM_PATH];
    snprintf(kept, sizeof kept, "%s", path_join(data, folder, "text"));
    *command = (Command){0};
    add_words(command, train_gpt_path(), "--data", kept, NULL);
    snprintf(words, 1024, "%s", options);
    for (char *word = strtok(words, " "); word != NULL; word = strtok(NULL, " ")) add_word(command, word);
    static const char *const usual[][2] = {
        {"--device", "cpu"}, {"--layers", "2"}, {"--heads", "2"},   {"--dim", "16"},         {"--context", "40"},
        {"--steps", "1"},    {"--sp", "1"},     {"--threads", "1"}, {"--eval-windows", "1"}, {"--sample-tokens", "0"}};
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++) {
        char spaced[40];
        snprintf(spaced, sizeof spaced, "%s ", usual[i][0]);
        bool sized = strstr(options, "--init") != NULL && i >= 1 && i <= 3;
        if (strstr(options, spaced) == NULL && !sized) add_words(command, usual[i][0], usual[i][1], NULL);
    }
}

static bool in_table(const char *name) {
    for (int i = 0; token_mixers[i] != NULL; i++)
        if (strcmp(token_mixers[i]->name, name) == 0) return true;
    return false;
}

static void refused(const char *options, const char *begins) {
    Command command;
    char words[1024], line[1024];
    add_options(&command, options, words);
    ProgramResult result = run_program(command.argv, 20);
    expect_one_line(&command, &result, 2);
    snprintf(line, sizeof line, "train_gpt: %s", begins);
    if (strncmp(result.err, line, strlen(line)) != 0) fail_msg("%s: not \"%s\", but: %s", options, begins, result.err);
    if (strstr(result.out, "step 1/") != NULL) fail_msg("%s: said so only after training", options);
    if (getenv("VERBOSE") != NULL) print_message("# %s", result.err);
    free_result(&result);
}

// Refusals of mixers that the table has.
static void refused_of(const char *name, const char *options, const char *begins) {
    if (in_table(name)) refused(options, begins);
}

static void patterns_are_refused(void **state) {
    (void)state;
    refused("--mixer=", "--mixer: the value is empty");
    refused("--mixer ,", "--mixer ,: there is no \"\"; give names out of: attention");
    refused("--mixer attention,", "--mixer attention,: there is no \"\"");
    refused("--mixer attention,,attention", "--mixer attention,,attention: there is no \"\"");
    refused("--mixer softmax", "--mixer softmax: there is no \"softmax\"; give names out of: attention");
    refused("--mixer attention:5", "--mixer attention:5: \"attention\" takes no option");
    refused("--mixer attention:", "--mixer attention:: \"attention\" takes no option");
    refused(
        "--mixer attention,attention,attention,attention,attention,attention,attention,attention,attention,attention,"
        "attention,attention,attention,attention,attention,attention,attention",
        "--mixer "
        "attention,attention,attention,attention,attention,attention,attention,attention,attention,attention,...: "
        "a pattern has at most 16 names");
}

// Out of what each one takes, in kind and in size: alone, and behind a sound layer of attention.
static void options_are_refused(void **state) {
    (void)state;
    static const char *const never[] = {"-1",  "1e300",  "zzz",   "1,2,3",   "0",      "0,0",  "1,0",
                                        "0,1", "64,1.5", "1.5,2", "1e300,2", "64,1e9", "0x10", "1e999"};
    for (int i = 0; token_mixers[i] != NULL; i++)
        for (size_t k = 0; k < sizeof never / sizeof *never; k++)
            for (int behind = 0; behind <= 1; behind++) {
                char options[200], begins[100];
                snprintf(options, sizeof options, "--mixer %s%s:%s", behind ? "attention," : "", token_mixers[i]->name,
                         never[k]);
                snprintf(begins, sizeof begins, "--mixer %s%s:", behind ? "attention," : "", token_mixers[i]->name);
                Command command;
                char words[1024];
                add_options(&command, options, words);
                ProgramResult result = run_program(command.argv, 20);
                expect_one_line(&command, &result, 2);
                if (strncmp(result.err, "train_gpt: --mixer ", 19) != 0 ||
                    strstr(result.err, token_mixers[i]->name) == NULL)
                    fail_msg("%s: %s", options, result.err);
                free_result(&result);
            }
}

static void what_is_attentions_is_refused(void **state) {
    (void)state;
    for (int i = 0; token_mixers[i] != NULL; i++) {
        if (token_mixers[i]->attends) continue;
        MixerChoices choices = mixer_choices();
        const char *text = NULL;
        for (int k = choices.count - 1; k >= 0; k--)
            if (choices.mixer[k] == token_mixers[i]) text = choices.text[k];
        static const char *const of_attention[] = {"--attention ring --sp 2", "--attention ulysses --sp 2",
                                                   "--attention vanilla", "--attention ulysses-ring --ulysses 2 --sp 2",
                                                   "--window 16"};
        for (int k = 0; k < 5; k++) {
            char options[300], begins[300];
            snprintf(options, sizeof options, "--mixer %s %s", text, of_attention[k]);
            snprintf(begins, sizeof begins, "--%s is attention's, and --mixer %s has none: leave it out",
                     k < 4 ? "attention" : "window", text);
            refused(options, begins);
        }
        char options[300], begins[100];
        snprintf(options, sizeof options, "--mixer %s --context 7 --sp 4", text);
        refused(options, "--context 7 is too short for --sp 4: a rank owns two chunks, give at least 8");
        snprintf(options, sizeof options, "--mixer %s --layers 1 --device emulated --dim 20 --heads 1", text);
        (void)begins;
        const char *why;
        if (device_count(DEVICE_EMULATED, &why) > 0) refused(options, "--device emulated takes a width");
    }
}

// Of attention's exchanges those that share out heads, and the one that stores P; a window and heads that leave some
// head without keys.
static void what_dilated_cannot_is_refused(void **state) {
    (void)state;
    if (!in_table("dilated")) skip();
    refused("--mixer dilated:16,2 --attention vanilla", "--attention vanilla does not serve dilated layers (--mixer)");
    refused("--mixer dilated:16,2 --attention ulysses --sp 2",
            "--attention ulysses does not serve dilated layers (--mixer)");
    refused("--mixer attention,dilated:16,2 --attention ulysses-ring --ulysses 2 --sp 2",
            "--attention ulysses-ring does not serve dilated layers (--mixer)");
    refused("--mixer dilated:1,2", "--mixer dilated:1,2: a window of 1 has no key for every head; give a window of 2");
    refused("--mixer attention,dilated:3,4 --heads 4",
            "--mixer dilated:3,4: a window of 3 has no key for every head; give a window of 4");
    refused("--mixer dilated:16,2 --heads 3 --dim 24",
            "--mixer dilated:16,2: 2 does not divide the model's 3 key/value heads");
    refused("--mixer attention,dilated:16,4 --heads 4 --kv-heads 2",
            "--mixer dilated:16,4: 4 does not divide the model's 2 key/value heads");
    refused("--mixer dilated:100,65 --heads 65 --dim 130",
            "--mixer dilated:100,65: give a window and a dilation in whole numbers, the latter from 1 to 64");
}

// Heads that a GPU's kernels of states do not have; decays; and fewer channels than ranks to share them.
static void sizes_are_refused(void **state) {
    (void)state;
    static const char *const with_states[] = {"linear", "linear:0.9", "delta", "delta:conv"};
    static const char *const with_channels[] = {"conv", "conv:gated", "fourier"};
    char options[200], begins[200];
    const char *why;
    bool emulated = device_count(DEVICE_EMULATED, &why) > 0;
    for (int i = 0; emulated && i < 4; i++)
        for (int width = 24; width <= 144; width += 120) {
            snprintf(options, sizeof options, "--mixer %s%s --device emulated --dim %d --heads %d",
                     i % 2 == 0 ? "" : "mean,", with_states[i], width == 24 ? 48 : 144, width == 24 ? 2 : 1);
            snprintf(begins, sizeof begins,
                     "--mixer %s: heads of %d on a GPU: give multiples of 16 up to 128, or --device cpu",
                     with_states[i], width);
            refused_of(i < 2 ? "linear" : "delta", options, begins);
        }
    refused_of("linear", "--mixer linear:0", "--mixer linear:0: a decay of 0: give one above 0 and at most 1");
    refused_of("linear", "--mixer attention,linear:1.5",
               "--mixer linear:1.5: a decay of 1.5: give one above 0 and at most 1");
    for (int i = 0; i < 3; i++) {
        snprintf(options, sizeof options, "--mixer attention,%s --dim 4 --sp 5", with_channels[i]);
        snprintf(begins, sizeof begins,
                 "--mixer %s: each rank needs a channel: 5 ranks share a sequence (--sp), and --dim is 4",
                 with_channels[i]);
        refused_of(i < 2 ? "conv" : "fourier", options, begins);
    }
}

static void documents_are_refused(void **state) {
    (void)state;
    refused_of("conv", "--mixer conv --document-mask", "--mixer conv: ");
    refused_of("conv", "--mixer conv:gated --document-mask", "--mixer conv:gated: ");
    refused_of("conv", "--mixer attention,conv --document-mask", "--mixer conv: ");
    refused_of("fourier", "--mixer fourier --document-mask", "--mixer fourier: ");
    refused_of("mlp", "--mixer mlp --document-mask", "--mixer mlp: ");
    refused_of("mlp", "--mixer mlp,attention --document-mask", "--mixer mlp: ");
}

// A matrix over positions has as many as it was trained with.
static void positions_are_refused(void **state) {
    (void)state;
    char options[2 * PROGRAM_PATH], path[PROGRAM_PATH];
    static const char *const archs[] = {"llama", "gpt2"};
    if (!in_table("mlp")) skip();
    for (int i = 0; i < 2; i++) {
        MixerTraining t = {.mixers = "attention,mlp", .context = 40, .arch = archs[i], .out = archs[i]};
        assert_true(mixer_train(&t, NULL));
        training_path(path, archs[i], "step-00000020");
        snprintf(options, sizeof options, "--init %s --context 41", path);
        refused(options, i == 0 ? "--mixer mlp: " : "--context 41: ");
        snprintf(options, sizeof options, "--init %s --context 41 --plan", path);
        refused(options, i == 0 ? "--mixer mlp: " : "--context 41: ");
        snprintf(options, sizeof options,
                 "--init %s --steps 0 --sample-tokens 1 --sample aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", path);
        refused(options, "--sample: the prompt has 41 tokens, but this model has 40 positions");
        // A shorter context is served, and text ends with the positions.
        Command command;
        char words[1024];
        snprintf(options, sizeof options,
                 "--init %s --context 20 --steps 0 --sample aaaa --sample-tokens 50 --temperature 0", path);
        add_options(&command, options, words);
        ProgramResult result = run_command(&command, MIXER_TIME_LIMIT);
        if (strstr(result.out, "sample: 36 tokens of 50 after a prompt of 4: the model has 40 positions") == NULL)
            fail_msg("%s: %s", t.arch, result.out);
        free_result(&result);
    }
}

// ---- --help ---------------------------------------------------------------------------------------------------------

static void help_names_every_mixer(void **state) {
    (void)state;
    Command command = {0};
    add_words(&command, train_gpt_path(), "--help", NULL);
    ProgramResult result = run_command(&command, 20);
    char *begin = strstr(result.out, "--mixer "), *end = begin == NULL ? NULL : strstr(begin, "\n  --window ");
    if (end == NULL) fail_msg("--help has no --mixer before --window");
    *end = '\0';
    for (char *c = begin; *c != '\0'; c++)
        if (*c == '\n') *c = ' ';
    for (int i = 0; token_mixers[i] != NULL; i++) {
        const Mixer *mixer = token_mixers[i];
        char word[100];
        snprintf(word, sizeof word, " %s%s", mixer->name, mixer->most_values == 2 ? ":" : "");
        if (strstr(begin, word) == NULL) fail_msg("--help does not name \"%s\" in: %s", word, begin);
        snprintf(word, sizeof word, "%s:%s", mixer->name, mixer->word != NULL ? mixer->word : "");
        if ((mixer->word != NULL || mixer->most_values > 0) && strstr(begin, word) == NULL)
            fail_msg("--help does not tell \"%s\" in: %s", word, begin);
    }
    free_result(&result);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(patterns_are_refused),
        cmocka_unit_test(options_are_refused),
        cmocka_unit_test(what_is_attentions_is_refused),
        cmocka_unit_test(what_dilated_cannot_is_refused),
        cmocka_unit_test(sizes_are_refused),
        cmocka_unit_test(documents_are_refused),
        cmocka_unit_test(positions_are_refused),
        cmocka_unit_test(help_names_every_mixer),
    };
    return cmocka_run_group_tests_name("mixers_refused", tests, make_mixer_text, remove_folder);
}
