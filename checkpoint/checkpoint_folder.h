// What the checkpoint files share: the names in a folder of checkpoints and in one checkpoint, and its state file.
#ifndef CHECKPOINT_CHECKPOINT_FOLDER_H
#define CHECKPOINT_CHECKPOINT_FOLDER_H

#include "checkpoint/checkpoint.h"
#include "checkpoint/disk.h"

enum { CHECKPOINT_FILES = 5 };
// In the order of SHA256SUMS: config, the three vectors in the order of CheckpointVector, state.
extern const char *const checkpoint_file_names[CHECKPOINT_FILES];
extern const char *const checkpoint_sums_name;

// A name that stands in the folder itself, is not hidden, and that sha256sum writes as it is.
bool checkpoint_is_plain_name(const char *name);

// OUT/step-00000100, with `suffix` after it, into path[DISK_PATH_MAX].
bool checkpoint_path(char *path, const char *out, int64_t step, const char *suffix, Error *err);

// The steps of OUT's folders named step-NUMBER followed by `suffix`, ascending; *steps is to be freed. No OUT: none.
bool checkpoint_list(const char *out, const char *suffix, int64_t **steps, int *count, Error *err);

// Gives checkpoints their names back that a run killed while it replaced them by others of the same step had set aside.
bool checkpoint_restore_replaced(const char *out, Error *err);

bool checkpoint_write_state(const char *path, const TrainingState *state, char hex[SHA256_HEX_CHARS], Error *err);

#endif
