// What a run is evaluated on, and what it says of that at its end.
#ifndef RUN_VALIDATION_H
#define RUN_VALIDATION_H

#include "run/saving.h"

typedef struct Validation {
    Loader loader;
    int64_t *window, windows; // their first tokens, and how many
} Validation;

// Loss, and what stands beside it: a task's accuracy, perplexity, or bits per symbol and the yardstick of bigrams.
void validation_print(const Run *run, const Validation *validation, const Training *training);

#endif
