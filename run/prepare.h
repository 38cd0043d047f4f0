// Everything up to the ranks' start.
#ifndef RUN_PREPARE_H
#define RUN_PREPARE_H

#include "run/run.h"

// From parsed options to a run that can start: data and model opened, its memory added up and found to fit, the machine
// measured. Prints the command, the header, and with --plan the plan. `speaks`: of several processes only one does, and
// measures.
bool prepare(Run *run, bool speaks, Error *err);

#endif
