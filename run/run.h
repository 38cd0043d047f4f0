// What the command line comes to: the data, the model, and how attention is distributed. Everything that the ranks of a
// process share, read-only once they run.
#ifndef RUN_RUN_H
#define RUN_RUN_H

#include "attention/attention.h"
#include "checkpoint/checkpoint.h"
#include "dataloader/tokens.h"
#include "model/config.h"
#include "model/model.h"
#include "run/devices.h"
#include "terminal/options.h"

// Steps that train on sequences of one length: where there is no --context-schedule, all of them (run/phases.c).
typedef struct Phase {
    int64_t end;                // its last step
    int64_t context;            // T, tokens of a sequence
    int64_t batch, micro_batch; // sequences of a step, all ranks together; of one pass
    AttentionConfig attention;  // of one micro-batch, resolved
} Phase;
enum { RUN_MAX_PHASES = 17 };

typedef struct Run {
    Options options;
    ModelConfig config;
    ParameterTable table;
    Phase phase[RUN_MAX_PHASES];     // the last one is that of --context, which also evaluates
    int phases;
    bool attends;                    // some layer uses attention
    TokenSource *train, *validation; // the same source unless --val-data is given
    int64_t train_end;               // training tokens are [0, train_end)
    int64_t validation_begin, validation_end;
    const Task *task;                // that makes both; NULL: data
    int64_t window_answers;          // targets of a window that count: all of them, or those that the task asks for
    bool train_checked;                // its token numbers are known to be below the vocabulary
    int32_t document_end;              // --document-mask: the token that ends a document
    Recompute recompute;
    int64_t steps;                     // of the whole run
    char resume_from[1024];            // checkpoint folder, "" for none
    TrainingState resumed;             // its state; zero for a new run
    char changes[600];                 // "--lr 0.002 (was 0.001)": what a resumed run does otherwise than before
    int32_t *prompt;                   // of the sample; NULL where none is wanted
    int64_t prompt_tokens, sample_end; // the sample is tokens [prompt_tokens, sample_end)
    bool processes;                    // ranks are processes, not threads of this one
    int ranks_here;                    // of this process
    int threads;                       // of this process
    Devices devices;                   // of its ranks
} Run;

// From parsed options to all of the above; devices.matrix_rate is not measured. Opens the data; reads the state of the run to resume, or the
// model to start from; or sizes a new model.
// `writes`: this process will write the checkpoints, and --out becomes its own.
bool run_open(Run *run, bool writes, Error *err);
const Phase *run_phase(const Run *run, int64_t step); // of this step, counted from 1
const Phase *run_whole(const Run *run);               // of --context
int64_t run_most_sequences(const Run *run);           // of a step, in any phase
// The sizes of a pass on rank `rank` of those that share a sequence.
MixerSize run_mixer_size(const Run *run, const Phase *phase, int rank);
// Of the training split's content: a resume on another would not know its place in it. Never 0.
uint64_t run_data_fingerprint(const Run *run);
// Fills the state's fields about the data.
void run_describe_data(const Run *run, TrainingState *state);
void run_close(Run *run);
// The few lines at the start of a run. rank_arena: one rank's memory.
void run_print_header(const Run *run, FILE *out, const Arena *rank_arena);

#endif
