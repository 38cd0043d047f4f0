// What the files that open a run share (run.c, run_data.c, resume.c); for them only.
#ifndef RUN_RUN_PARTS_H
#define RUN_RUN_PARTS_H

#include "run/run.h"

bool run_has_data(const Options *options);
// Opens the training and validation data, and splits them.
bool run_open_data(Run *run, Error *err);
// That the data are those of the run to resume.
bool run_check_same_data(const Run *run, const TrainingState *then, Error *err);

// Finds the checkpoint to resume from, and takes its context, by which the data are split.
bool run_find_resumed(Run *run, Error *err);
// With the data open: that it is the same run, and its options where none are given.
bool run_open_resumed(Run *run, Error *err);
// Sizes that were typed beside --resume must be those of the checkpoint.
bool run_same_sizes(const Options *options, const ModelConfig *config, const char *from, Error *err);

// Reads --context-schedule, and settles how attention is distributed in each phase.
bool run_make_phases(Run *run, Error *err);

// That every layer's token mixer can serve this run: its sizes, its device, its options.
bool run_check_mixers(const Run *run, Error *err);

#endif
