// What the first step computed, for comparison with other programs: logits and gradients as safetensors.
#ifndef CHECKPOINT_DUMP_H
#define CHECKPOINT_DUMP_H

#include "comm/comm.h"
#include "model/parameters.h"

// FOLDER/logits.safetensors: "logits" (B, T, V) in the order of the sequence, gathered from the ranks that share it.
// `local` (B, Tl, V) is this rank's part. Collective over `sequence`; its rank 0 makes the folder and writes.
bool dump_logits(const char *folder, Comm *sequence, const float *local, int64_t B, int64_t T, int64_t V, Error *err);
// FOLDER/gradients.safetensors: the gradient of every parameter under its Hugging Face name and shape. One rank calls
// this.
bool dump_gradients(const char *folder, const ParameterTable *table, const float *gradients, Error *err);

#endif
