// Every token mixer of the program's table with every kind of option that it has, for tests of what holds for all of
// them: a new row is tested by itself.
#ifndef TEST_MIXER_CHOICES_H
#define TEST_MIXER_CHOICES_H

#include "test/program.h"

#include "model/mixer.h"

enum { CHOICES_MOST = 64 };

typedef struct MixerChoices {
    int count;
    char text[CHOICES_MOST][MIXERS_TEXT]; // as in --mixer: "conv", "conv:gated", ...
    const Mixer *mixer[CHOICES_MOST];
} MixerChoices;

// Fails the test where a mixer takes numbers and no example of them is known.
MixerChoices mixer_choices(void);

// Runs a command that must either succeed or be refused by the mixer of `choice`: exit code 2, and one line that begins
// with its option (false). The result is to be freed.
bool run_or_refused(const Command *command, const char *choice, double time_limit, ProgramResult *result);

// Fails the test unless the program ended with this code and said one line, which begins "train_gpt: ".
void expect_one_line(const Command *command, const ProgramResult *result, int exit_code);

#endif
