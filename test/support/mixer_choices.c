// The choices of test/mixer_choices.h.
#include "test/mixer_choices.h"

// Numbers that a mixer takes, for sequences of some 40 tokens and more.
static const char *const numbers[][2] = {{"dilated", "16,2"}, {"linear", "0.9"}};

static void add(MixerChoices *choices, const Mixer *mixer, const char *option) {
    if (choices->count == CHOICES_MOST) fail_msg("too many token mixers for this list");
    snprintf(choices->text[choices->count], MIXERS_TEXT, "%s%s%s", mixer->name, option[0] == '\0' ? "" : ":", option);
    choices->mixer[choices->count++] = mixer;
}

MixerChoices mixer_choices(void) {
    MixerChoices choices = {0};
    for (int i = 0; token_mixers[i] != NULL; i++) {
        const Mixer *mixer = token_mixers[i];
        const char *example = NULL;
        if (mixer->least_values == 0) add(&choices, mixer, "");
        if (mixer->word != NULL) add(&choices, mixer, mixer->word);
        if (mixer->most_values == 0) continue;
        for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
            if (strcmp(numbers[k][0], mixer->name) == 0) example = numbers[k][1];
        if (example == NULL) fail_msg("%s takes numbers: an example of them belongs into test/support", mixer->name);
        add(&choices, mixer, example);
    }
    return choices;
}

void expect_one_line(const Command *command, const ProgramResult *result, int exit_code) {
    const char *end = strchr(result->err, '\n');
    bool one = strncmp(result->err, "train_gpt: ", 11) == 0 && end != NULL && end[1] == '\0';
    if (result->timed_out || result->exit_code != exit_code || !one) {
        print_command(command);
        fail_msg("exit code %d%s, not %d and one line: %s", result->exit_code, result->timed_out ? " (ended)" : "",
                 exit_code, result->err);
    }
}

bool run_or_refused(const Command *command, const char *choice, double time_limit, ProgramResult *result) {
    char begins[MIXERS_TEXT + 32];
    *result = run_program(command->argv, time_limit);
    if (result->exit_code == 0 && !result->timed_out) return true;
    expect_one_line(command, result, 2);
    snprintf(begins, sizeof begins, "train_gpt: --mixer %s: ", choice);
    if (strncmp(result->err, begins, strlen(begins)) != 0) {
        print_command(command);
        fail_msg("not refused by its mixer: %s", result->err);
    }
    return false;
}
