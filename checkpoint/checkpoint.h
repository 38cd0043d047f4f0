// Checkpoints: folders OUT/step-00000100 that Hugging Face's from_pretrained loads and that training resumes from.
//
//   config.json, model.safetensors                 the model
//   exp_avg.safetensors, exp_avg_sq.safetensors    AdamW's moments, under the parameters' names and shapes
//   training_state.json                            step, seed, the loader's place, ...
//   tokenizer.json, generation_config.json, ...    what the folder held that the model came from (kept_files.h)
//   SHA256SUMS                                     of the files above; `sha256sum -c SHA256SUMS` checks it too
//
// Nothing depends on how many ranks wrote it. It is written beside (step-00000100.partial), every file and the folder
// synced, then renamed: what bears the final name is whole. Old ones are removed only after the new one stands.
#ifndef CHECKPOINT_CHECKPOINT_H
#define CHECKPOINT_CHECKPOINT_H

#include "checkpoint/kept_files.h"
#include "dataloader/loader.h"
#include "model/config.h"
#include "model/parameters.h"

// Choices of the run that wrote the checkpoint, for one that resumes it; what they mean is the caller's.
enum { KEPT_OPTIONS_MAX = 16, KEPT_OPTION_TEXT = 255 };
typedef struct KeptOption {
    char name[24], value[KEPT_OPTION_TEXT + 1];
} KeptOption;
typedef struct KeptOptions {
    int count; // 0: written by a version that kept none
    KeptOption option[KEPT_OPTIONS_MAX];
} KeptOptions;

typedef struct TrainingState {
    int64_t step; // optimizer steps done
    uint64_t seed;
    LoaderState loader;
    int64_t context, batch;    // the loader's place counts windows of this context: a resume with another is an error
    int64_t steps;             // of the whole run: the schedule's length
    uint64_t data_fingerprint; // of the training data's sizes, so that a resume on other data is noticed
    uint64_t data_content;     // and of their content; 0: not kept (checkpoints of earlier versions)
    int64_t data_tokens;       // with it, for messages: training tokens
    char data_name[200];       // and what the data were called
    double validation_loss;    // last measured; NaN: never
    KeptOptions kept;
} TrainingState;

// Makes the folder OUT if need be, finds out whether checkpoints can be written there, and keeps it for this process until
// it ends. Fails (usage) where they cannot, or where another run has it. One process of a run calls this, before any
// other function here.
bool checkpoint_claim(const char *out, Error *err);

// ---- writing; one process writes, and asks for the flat vectors one after the other ----

typedef struct CheckpointWriter CheckpointWriter;
typedef enum CheckpointVector { CHECKPOINT_PARAMETERS, CHECKPOINT_EXP_AVG, CHECKPOINT_EXP_AVG_SQ } CheckpointVector;

// Makes OUT if need be, removes partial folders left by a killed run, opens the new partial one and writes config.json
// and `kept` (NULL: a new model), which must outlive the writer.
CheckpointWriter *checkpoint_begin(const char *out, int64_t step, const ModelConfig *config,
                                   const ParameterTable *table, const KeptFiles *kept, Error *err);
// Removes the partial folder if it fails.
bool checkpoint_write(CheckpointWriter *writer, CheckpointVector which, const float *flat /* table->total */,
                      Error *err);
// State and sums, sync, rename; then removes all but the newest `keep` checkpoints (0: keeps all). Frees the writer,
// also on failure, and then removes the partial folder.
bool checkpoint_commit(CheckpointWriter *writer, const TrainingState *state, int keep, Error *err);
void checkpoint_abandon(CheckpointWriter *writer); // removes what was written and frees; may be NULL

// ---- reading ----

// The newest checkpoint in OUT whose name is final and whose sizes and sums hold, into path[size]. Damaged newer ones
// are passed over, each with one line on standard error. Error if there is none.
bool checkpoint_find(const char *out, char *path, size_t size, Error *err);
// The path of the newest checkpoint in OUT, whole or damaged, into path[size]; false: none, or too long.
bool checkpoint_newest(const char *out, char *path, size_t size);
// Whether OUT holds any checkpoint, whole or damaged.
bool checkpoint_any(const char *out);
// Checks SHA256SUMS of one checkpoint folder.
bool checkpoint_verify(const char *path, Error *err);
bool checkpoint_read_state(const char *path, TrainingState *state, Error *err);
// Elements [begin, end) of a flat vector; zeros in its gap. Checks every tensor's presence, dtype and shape against the
// table, and names the first that differs, or that holds NaN or infinity in this range. Also reads any Hugging Face
// folder of the same classes (CHECKPOINT_PARAMETERS), sharded ones included; names with or without the "transformer." /
// "model." prefix; a tied classifier may be absent or equal.
bool checkpoint_read(const char *path, CheckpointVector which, const ParameterTable *table, int64_t begin, int64_t end,
                     float *out, Error *err);

#endif
