// Before the first step: is every token number of the data below the model's vocabulary?
#ifndef RUN_CHECK_TOKENS_H
#define RUN_CHECK_TOKENS_H

#include "comm/comm.h"
#include "run/run.h"

// Collective over all ranks. Those of one machine share the work, each with so many threads; where it lasts, rank 0
// says how far it is. Nothing is read where the kind of data allows no other numbers, where no step is left to do, or
// of training data that the run to resume has looked at. False on the rank that found one (file and place are named),
// which has to end the others.
bool check_tokens(const Run *run, Comm *world, int threads, Error *err);

#endif
