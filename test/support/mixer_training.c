// Bodies of test/mixer_training.h.
#include "test/mixer_training.h"

#include "base/random.h"

// Sentences that a model can learn something of: 48 KiB, the same in every run.
int make_mixer_text(void **state) {
    static const char *const words[] = {"attention", "is",  "a",      "walk", "over", "pairs",   "of",
                                        "chunks",    "and", "the",    "next", "one",  "travels", "while",
                                        "this",      "is",  "worked", "on",   "it."};
    enum { WORDS = sizeof words / sizeof *words, BYTES = 48 << 10 };
    char *text = malloc(BYTES + 16), path[PROGRAM_PATH];
    make_folder(state);
    assert_non_null(text);
    size_t used = 0;
    for (uint64_t i = 0; used < BYTES; i++)
        used += (size_t)sprintf(text + used, "%s ", words[random_below(7, RANDOM_STREAM_DATA, i, WORDS)]);
    write_file(path_join(path, folder, "text"), text, used);
    free(text);
    return 0;
}

char *training_path(char path[PROGRAM_PATH], const char *out, const char *file) {
    char within[256];
    snprintf(within, sizeof within, "%s/%s", out, file);
    return path_join(path, folder, within);
}

static const char *or_else(const char *given, const char *otherwise) { return given != NULL ? given : otherwise; }

static void number(Command *command, const char *option, int given, int otherwise) {
    add_number(command, option, given > 0 ? given : otherwise);
}

// Heads of 32 in a width of 64 on GPUs, whose kernels want some width; smaller ones on the CPU.
static void add_model(Command *command, const MixerTraining *t) {
    bool small = strcmp(or_else(t->device, "cpu"), "cpu") == 0;
    add_words(command, "--mixer", t->mixers, "--arch", or_else(t->arch, "llama"), NULL);
    add_words(command, "--heads", "2", "--dim", small ? "32" : "64", NULL);
    number(command, "--layers", t->layers, 2);
    number(command, "--context", t->context, 75);
    if (t->documents) add_words(command, "--document-mask", "--document-end", "46", NULL); // 46: a full stop
}

void mixer_command(Command *command, const MixerTraining *t) {
    static char data[PROGRAM_PATH], out[PROGRAM_PATH], log[PROGRAM_PATH];
    *command = (Command){0};
    add_words(command, train_gpt_path(), "--device", or_else(t->device, "cpu"), NULL);
    add_words(command, "--data", path_join(data, folder, "text"), "--log", path_join(log, folder, "log"), NULL);
    add_words(command, "--recompute", or_else(t->recompute, "none"), NULL);
    if (t->resume) add_word(command, "--resume");
    else add_model(command, t);
    if (t->out != NULL) add_words(command, "--keep", "0", "--out", path_join(out, folder, t->out), NULL);
    if (t->save_every > 0) add_number(command, "--save-every", t->save_every);
    add_words(command, "--schedule", or_else(t->schedule, "cosine"), "--lr", "4e-3", NULL);
    add_number(command, "--warmup", t->steps > 0 && t->steps < 5 ? 1 : 5);
    bool emulated = t->device != NULL && strcmp(t->device, "emulated") == 0; // which is slow
    add_words(command, "--batch", emulated ? "2" : "4", "--micro-batch", emulated ? "1" : "2", NULL);
    add_words(command, "--eval-windows", "2", "--sample-tokens", "0", "--threads", "1", NULL);
    number(command, "--steps", t->steps, 20);
    number(command, "--sp", t->sp, 1);
    number(command, "--dp", t->dp, 1);
}

// Which of a pattern's choices the program says cannot serve: it must be the one that the line begins with.
static bool refused(const Command *command, const char *mixers, double limit) {
    ModelConfig config = {0};
    Error err;
    char choice[MIXERS_TEXT], begins[MIXERS_TEXT + 32];
    ProgramResult result = run_program(command->argv, limit);
    bool served = result.exit_code == 0 && !result.timed_out, named = false;
    if (!served) {
        expect_one_line(command, &result, 2);
        if (!mixers_read(&config, mixers, "", &err)) fail_msg("%s", err.message);
        for (int i = 0; i < config.mixers; i++) {
            mixer_write(&config.mixer[i], choice);
            snprintf(begins, sizeof begins, "train_gpt: --mixer %s: ", choice);
            named = named || strncmp(result.err, begins, strlen(begins)) == 0;
        }
        if (!named) {
            print_command(command);
            fail_msg("not refused by its mixer: %s", result.err);
        }
        print_message("# left out: %s", result.err);
    }
    free_result(&result);
    return !served;
}

bool mixer_train(const MixerTraining *t, Log *log) {
    Command command;
    char path[PROGRAM_PATH];
    bool cpu = strcmp(or_else(t->device, "cpu"), "cpu") == 0;
    mixer_command(&command, t);
    if (refused(&command, t->mixers, MIXER_TIME_LIMIT)) {
        if (cpu) fail_msg("every token mixer must serve on the CPU, and %s does not", t->mixers);
        return false;
    }
    if (log != NULL) *log = read_log(path_join(path, folder, "log"));
    return true;
}

double expect_same_losses(const char *what, const Log *a, const Log *b, double limit) {
    double most = 0;
    int from = 0; // b may have begun later
    assert_true(a->count > 0 && b->count > 0);
    while (from < a->count && a->step[from] != b->step[0]) from++;
    assert_int_equal(a->count - from, b->count);
    for (int i = 0; i < b->count; i++) {
        double difference = fabs(a->loss[from + i] - b->loss[i]) / a->loss[from + i];
        if (!(difference <= limit))
            fail_msg("%s: step %lld has the loss %.9g and %.9g, apart by %.1e of it (allowed %.1e)", what,
                     (long long)b->step[i], a->loss[from + i], b->loss[i], difference, limit);
        if (difference > most) most = difference;
    }
    return most;
}

static bool in_table(const char *mixers) {
    ModelConfig config = {0};
    Error unused;
    return mixers_read(&config, mixers, "", &unused);
}

MixerPatterns mixer_patterns(bool alone, bool mixed) {
    static const char *const several[] = {"conv:gated,attention", "linear,delta:conv,attention", "fourier,mean,mlp",
                                          "attention,linear:0.9", "dilated:16,2,delta"};
    MixerPatterns patterns = {0};
    MixerChoices choices = mixer_choices();
    for (int i = 0; alone && i < choices.count; i++) strcpy(patterns.text[patterns.count++], choices.text[i]);
    for (size_t i = 0; mixed && i < sizeof several / sizeof *several; i++)
        if (in_table(several[i])) strcpy(patterns.text[patterns.count++], several[i]);
    return patterns;
}
