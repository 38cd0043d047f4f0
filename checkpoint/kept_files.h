// What a model's folder holds beside its weights, and checkpoints of the model take along: tokenizer, generation's
// settings, licence, the other keys of config.json. This program needs none of it, and whoever uses the model does.
//
// Kept byte for byte: every regular file (or link to one: so are models stored by the library's cache) that stands in
// the folder itself, is not hidden, is not written by this program, and is not
//   - weights or data, in any format, by the end of its name: the weights are other ones now;
//   - another trainer's state, which tells of another run;
//   - an adapter's configuration, which would have the library ask for the adapter's weights.
// It is held in memory from the start of the run, since the folder may be gone when the next checkpoint is written: a
// resumed run removes the one that it began with. So there is a limit: 64 MiB a file and 256 MiB in all, several times
// what the largest tokenizers take. A file beyond it is left out, with a line on standard error.
#ifndef CHECKPOINT_KEPT_FILES_H
#define CHECKPOINT_KEPT_FILES_H

#include <stddef.h>

#include "base/json.h"

typedef struct KeptFile {
    char *name; // in the folder
    char *bytes;
    size_t size;
} KeptFile;

typedef struct KeptFiles {
    KeptFile *file; // sorted by name
    int count;
    JsonDocument *config; // the folder's config.json
} KeptFiles;

// NULL with *err filled where the folder, its config.json or one of these files cannot be read.
KeptFiles *kept_files_read(const char *folder, Error *err);
void kept_files_free(KeptFiles *kept); // may be NULL

#endif
