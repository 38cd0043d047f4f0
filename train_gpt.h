// What a rank holds: the memory that the story in train_gpt.cu is about, and what it shares with run/. The letters of the
// dimensions are explained there.
#ifndef TRAIN_GPT_H
#define TRAIN_GPT_H

#include "attention/attention.h"
#include "base/arena.h"
#include "comm/comm.h"
#include "dataloader/loader.h"
#include "layers/device.h"
#include "model/model.h"
#include "run/accuracy.h"
#include "run/run.h"

// The two sums of a step that the host reads. They stand side by side on the device, to come in one download.
typedef struct StepSums {
    double losses;  // nats, of this rank's tokens
    double squares; // of this rank's slice of the summed gradient
} StepSums;

typedef struct Rank {
    const Run *run;
    const Phase *phase; // that the memory is laid out for
    Device device;
    bool device_is_mine;                    // to close
    Comm *world, *sequence;                 // all ranks; the P ranks that share my sequences. On the host
    Comm *world_tensors, *sequence_tensors; // the same ranks, for what lies in the device's memory
    int replica;                            // which of the --dp
    Arena arena;
    Attention attention;
    Model model;                    // weights, gradients, my tokens of a sequence
    Pass pass;                      // activations, and their gradients
    int64_t slice_begin, slice_end; // the part of the flat parameters whose optimizer state is mine
    int64_t *slice_counts;          // (world) sizes of all ranks' slices
    size_t *slice_bytes;            // (world) of the vector that is being gathered
    float *master;                  // (slice) fp32 weights; on the CPU part of the weights
    float *exp_avg, *exp_avg_sq;    // (slice) AdamW's moments
    StepSums *sums;                 // on the device
    float *terms;                   // of sums over ranks, on their way; NULL: the ranks read each other's memory
    size_t terms_bytes;
    Loader loader;
    int32_t *documents; // host: (2, T) pass.first_visible of one sequence, on its way there; pass.least_visible
    double flops_saved; // by documents, in this step's sequences of this replica so far
    int32_t *staging;   // host: (3, Tl) inputs, targets and positions on their way to the device
    float *host_vector; // host: (total) on its way to a file, NULL at other times
    float *dump_logits; // host: (n, V) of the pass at work, NULL: not wanted
    float *dump_room;   // (classifier_rows, V) for these, where the device's memory is not the host's
    Accuracy accuracy;  // of a task's answers
    KeptFiles *kept;    // rank 0: what checkpoints take along of the model that the run began with, NULL: nothing
} Rank;

// Threads of a rank.
int threads_per_rank(const Run *run);
// Lays out what the layers work in, for passes of this size on so many threads, or attention in so many bytes, and
// lends it to the device.
void lend_scratch(Device *device, const Run *run, const MixerSize *size, size_t attention, int threads, Arena *arena);
// Fills the micro-batch with the shards of `count` sequences; missing sequences repeat the first one.
bool load(Rank *r, const Loader *loader, const int64_t *window, int64_t count, Error *err);
// pass->tokens, pass->positions -> pass->normed, the output of the final norm, which the classifier reads.
void forward(Model *model, Pass *pass);
// The mean loss (nats per token) of the tokens that were loaded last, with the weights as they are now. Collective.
double loss_of_last_tokens(Rank *r);
// Every rank's slice of a flat vector (total, of elements of that size) to every rank. Collective.
void gather_slices(Rank *r, void *flat, size_t element_bytes);

// ---- run/rank.c: its beginning and end ---------------------------------------------------------------------------------

// The device, memory, groups and weights of this rank; ends all ranks where one of them cannot have them. `device`: one
// that is open already, and stays so; NULL: the rank opens its own. Collective.
Rank *rank_open(const Run *run, Comm *world, const Device *device);
// Lays the memory out for passes of this phase, of run->phase, if it is not: weights, gradients and moments stay, tokens
// and activations do not. Collective.
void rank_take_phase(Rank *r, const Phase *phase);
void rank_leave_groups(Rank *r); // the last that ranks do together
// Bytes that token mixers have sent to other ranks so far.
int64_t bytes_sent_by_mixers(const Rank *r);
void rank_close(Rank *r);
// Bytes of memory that rank `world_rank` of r->run would take; leaves in r->arena the list of its buffers.
size_t rank_bytes(Rank *r, int world_rank);

// ---- run/generation.c: text from the model -----------------------------------------------------------------------------

// Bytes of the device that generation takes beside the ranks' memory.
size_t bytes_of_generator(const Run *run, const Device *device);
// Continues run->prompt and prints it. By one rank alone, when the others have finished.
bool print_sample(Rank *r, Error *err);

#endif
