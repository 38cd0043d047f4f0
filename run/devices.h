// Which device computes, and which GPU serves which rank: what --device and --devices come to on this machine.
#ifndef RUN_DEVICES_H
#define RUN_DEVICES_H

#include "attention/kernel.h"
#include "layers/device.h"
#include "terminal/options.h"

enum { DEVICES_MOST_RANKS = 512 }; // that can be threads of one process

typedef struct Devices {
    DeviceKind kind;                   // not auto
    char description[96];              // of the first one; "" where none is at hand
    bool at_hand;                      // false only while a plan is made where there is no GPU
    bool shared;                       // two ranks of this process, or by --devices two processes here, have one GPU
    size_t element_bytes;              // of storage
    const AttentionKernels *kernels;   // NULL where not at hand
    const struct MixerKernels *mixers; // NULL as well
    int ranks;                         // of this process
    int index[DEVICES_MOST_RANKS];     // the GPU of each of them, from 0
    int distinct;                      // GPUs among these
    double memory[DEVICES_MOST_RANKS]; // bytes free on it; of the first rank on each GPU
    double matrix_rate;                // FLOP/s of all of them together in matrix products; 0: not measured
    bool rate_given;                   // ... and is not measured, but MATRIX_RATE in the environment
} Devices;

// --sp where the command line leaves it open: its default, but no more than --devices names or than there are GPUs for.
int64_t devices_usual_ranks(const Options *options);

// What this process's `ranks` ranks compute on; `processes`: each rank is a process of its own. auto is cuda where
// there is a GPU, else cpu. Rank i has GPU i, or entry i of --devices; a process that of its place among those of this
// machine. Errors (usage): no such device or GPU, more ranks than GPUs without --devices, a list that does not fit.
// Without a GPU, --plan for cuda is served all the same.
bool devices_choose(Devices *devices, const Options *options, int ranks, bool processes, Error *err);

// Measures matrix_rate, with `threads` threads where processors compute; MATRIX_RATE in the environment says it
// instead. The emulated device is not measured: its speed means nothing. Errors (usage): MATRIX_RATE is no rate.
bool devices_measure(Devices *devices, int threads, Error *err);

// Opens the device of one rank of this process, on the thread that calls.
bool devices_open(const Devices *devices, int rank, int threads, Device *device, Error *err);

// Where this much memory for each rank, and `extra` beside rank 0's, comes nearest to what there is: `need` bytes of
// `have`, on `gpu` (-1: this machine's own memory). have is negative where it is not known.
typedef struct DevicesNeed {
    int gpu;
    double need, have;
} DevicesNeed;
DevicesNeed devices_need(const Devices *devices, const size_t *rank_bytes, size_t extra);
// The error that it does not fit; false. sample_tokens: what `extra` was for.
bool devices_too_small(const DevicesNeed *tightest, int64_t sample_tokens, Error *err);

#endif
