// The options that a resumed run keeps unless they are given anew: those of the optimizer and its schedule, and what
// of the data a token sees.
#ifndef RUN_KEPT_OPTIONS_H
#define RUN_KEPT_OPTIONS_H

#include "checkpoint/checkpoint.h"
#include "terminal/options.h"

void kept_options_of(const Options *options, KeptOptions *kept);
// Sets those that the command line does not give to what the checkpoint says; what it gives and the checkpoint has
// otherwise is told in changes[size]: "--lr 0.002 (was 0.001), ...". A checkpoint may know only some of them, or none.
bool kept_options_restore(Options *options, const KeptOptions *kept, char *changes, size_t size, Error *err);

#endif
