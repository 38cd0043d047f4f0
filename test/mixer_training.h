// Small runs of the whole program with one pattern of token mixers or another, on a text made here (test/folder.h), and
// what came out of them.
#ifndef TEST_MIXER_TRAINING_H
#define TEST_MIXER_TRAINING_H

#include "test/compare.h"
#include "test/folder.h"
#include "test/mixer_choices.h"

typedef struct MixerTraining {
    const char *out;       // name of the run's folder within the test's; NULL: it saves nothing
    const char *mixers;    // the pattern
    const char *device;    // NULL: cpu
    const char *arch;      // NULL: llama
    const char *recompute; // NULL: none
    const char *schedule;  // NULL: cosine
    int sp, dp;            // 0: 1
    int steps;             // 0: 20
    int layers;            // 0: 2
    int context;           // 0: 75
    int save_every;        // 0: only at the end
    bool resume;           // of `out`; what a model is made of is left out
    bool documents;        // sentences are taken for them
} MixerTraining;

enum { MIXER_TIME_LIMIT = 90 };

int make_mixer_text(void **state); // the folder and in it "text"; a cmocka fixture

char *training_path(char path[PROGRAM_PATH], const char *out, const char *file); // folder/out/file

void mixer_command(Command *command, const MixerTraining *t);
// Trains; false where a mixer refused, which on the CPU it must not. *log may be NULL.
bool mixer_train(const MixerTraining *t, Log *log);

// Losses of the same steps, within `limit` of them; 0: to the bit. Returns the largest relative difference.
double expect_same_losses(const char *what, const Log *a, const Log *b, double limit);

// Every choice in a pattern of its own, then patterns of several mixers out of those that the table has: what tests of
// the whole program go through.
typedef struct MixerPatterns {
    int count;
    char text[CHOICES_MOST][MIXERS_TEXT];
} MixerPatterns;
MixerPatterns mixer_patterns(bool alone, bool mixed);

#endif
