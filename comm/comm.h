// Ranks, and what they say to each other.
//
// A Comm is a group of ranks and my place in it. Engines: `local`, ranks are threads of this process; `mpi`, ranks are
// processes that speak MPI; `nccl`, ranks are processes with a GPU each, which NCCL alone connects. Every operation is
// collective over the group unless it says otherwise, and every rank must make the same calls in the same order. Sums
// are always taken in the order of ranks, so the same ranks give the same bits. doc/comm.md explains the whole.
//
// Nothing here returns an error: a rank that cannot go on calls comm_fail, which prints one line and ends all ranks; a
// rank that does not answer within the time-out is named and ends all of them too. One that is at work of its own is
// waited for as long as it gives signs of life (base/pulse.h). No call waits for ever, and waiting ranks sleep rather
// than spin, since there may be more ranks than processors.
#ifndef COMM_COMM_H
#define COMM_COMM_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

typedef struct Comm Comm;

// ---- starting ranks -----------------------------------------------------------------------------------------------

struct Device; // layers/device.h

// auto: mpi under mpirun or srun, where it is compiled in; else nccl under torchrun, mpirun or srun; else local.
typedef enum CommEngine { COMM_AUTO, COMM_LOCAL, COMM_MPI, COMM_NCCL } CommEngine;

CommEngine comm_engine_here(CommEngine engine);   // what `auto` means for this process; any other is itself
bool comm_ranks_are_processes(CommEngine engine); // this process would be one rank; else all of them, as threads
bool comm_has_mpi(void);                          // compiled in
int comm_process_count(void);                     // by the launcher's environment; 1 without one, 0 if it does not say
int comm_process_rank(void);      // before comm_run: rank of this process by the launcher's environment, 0 without one
int comm_processes_here(void);    // how many of the launched processes share this machine (1 without a launcher)
int comm_process_rank_here(void); // which of these this process is, from 0: for the choice of a GPU

typedef struct CommLaunch {
    CommEngine engine;
    int ranks;              // wanted; with mpi and nccl it must equal the number of processes
    double timeout_seconds; // a rank that gives no sign of life for longer is reported; <= 0: 600
    double start_seconds;   // so long ranks that are processes wait for each other to start; <= 0: timeout_seconds
    struct Device *device;  // nccl: this process's GPU, open until comm_run has returned; NULL: it has none
} CommLaunch;

// Runs rank_main(world, argument) on every rank and returns when all have. local: one thread per rank, all in this
// process, `argument` shared. mpi and nccl: this process is one rank.
//
// nccl: each process is told its place by RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, or by mpirun or srun; and
// by MASTER_ADDR and MASTER_PORT where NCCL's ranks meet, on rank 0's machine (under torchrun, which holds that port
// itself, the one after it). Under srun those two may be left out: base/launcher.h.
bool comm_run(const CommLaunch *launch, void (*rank_main)(Comm *world, void *argument), void *argument, Error *err);

// ---- the group ----------------------------------------------------------------------------------------------------

int comm_rank(const Comm *comm);
int comm_size(const Comm *comm);
// Ranks with the same colour form a new group, ordered by key.
Comm *comm_split(Comm *comm, int color, int key);
void comm_free(Comm *comm); // of a split group; local to this rank (but see comm_on_device), may be NULL
// Bytes this rank has handed to other ranks through this group (its own part never counts).
int64_t comm_bytes_sent(const Comm *comm);

// Ends all ranks, from any one: prints the error's line once, as it is, and exits with its code. Not collective.
void comm_fail(Comm *comm, const Error *err) __attribute__((noreturn));
// What this rank is doing, for the time-out's message ("step 12, all-reduce of gradients"). A string literal.
void comm_doing(Comm *comm, const char *what);
// The same, of work in which one rank may keep the others waiting for long (a save, a look through files). Where its
// signs of life are seen, that makes no difference; with nccl, where they are not, waits may then last ten time-outs.
void comm_doing_slowly(Comm *comm, const char *what);

// ---- memory of a device -------------------------------------------------------------------------------------------

// A new group of the same ranks whose buffers (of reduce_scatter_sum, all_gather and exchanges; not the few values of
// all_reduce_sum; there is no broadcast) lie in the memory of `device`, and in its stream: what the device was told
// before is done before, what it is told afterwards sees the result. The host does not wait for the device. Groups
// split from it are of the same kind. Where the device's memory is the host's, it is a group like any other.
// Collective. `collectives`: by the device's own (NCCL), each rank with a GPU to itself. Else by copies between the
// devices of this process, some of which may be one GPU (engine local only). The same on every rank. Sums have the same
// bits as in host memory, and bytes are counted the same. Such a group is freed by all its ranks together, after their
// exchanges and before their devices are closed.
Comm *comm_on_device(Comm *comm, struct Device *device, bool collectives);
// What reduce_scatter_sum of a group on a device needs of its memory beside the vectors, at most COMM_STAGING_BYTES,
// where the longest segment has so many floats. It is lent, before the first sum and until the group is freed; a group
// to which nothing is lent takes as much at its first sum.
enum { COMM_STAGING_BYTES = 32 << 20 };
size_t comm_staging_bytes(int ranks, int64_t longest_segment);
void comm_lend_staging(Comm *comm, void *memory, size_t bytes); // a group in host memory needs none

// ---- collectives --------------------------------------------------------------------------------------------------

void comm_barrier(Comm *comm);
void comm_broadcast(Comm *comm, void *data, size_t bytes, int root); // sent by root: (size - 1) * bytes
void comm_all_reduce_sum(Comm *comm, double *values, int count);     // few values; sent per rank: (size - 1) * all
// Rank r receives in `out` the sum over ranks of its segment; segments have counts[r] floats and stand one after the
// other in `in`. `out` may be that segment of `in` itself. Sent per rank: all of `in` but its own segment.
void comm_reduce_scatter_sum(Comm *comm, float *out, float *in, const int64_t *counts);
// Segment r (bytes[r]) of `data` comes from rank r, in place, to everyone. Sent per rank: (size - 1) * its own segment.
void comm_all_gather(Comm *comm, void *data, const size_t *bytes);

// ---- point to point, overlapped with work -------------------------------------------------------------------------

typedef struct CommRequest {
    void *send, *receive;
} CommRequest; // the engine's own

// Starts sending `send` to rank `to` and receiving from rank `from`; either may be myself only if both are, and either
// byte count may be 0 (nothing is sent or expected then). Between two ranks, messages are matched in the order begun,
// those that collectives are made of included.
// Buffers belong to the exchange until comm_wait. Not collective.
CommRequest comm_exchange_begin(Comm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                size_t receive_bytes, int from);
void comm_wait(Comm *comm, CommRequest *request);
// Around several comm_exchange_begin of one group, with nothing else of comm between: on a GPU they then start together
// (one kernel of NCCL's) instead of one after the other. What they send is ready, and where they receive is free, at
// comm_batch_begin already. Between host memories, and for copies between GPUs, it makes no difference.
void comm_batch_begin(Comm *comm);
void comm_batch_end(Comm *comm);

// ---- collectives overlapped with work -------------------------------------------------------------------------------

// Begun, worked beside, and waited for; in host memory and on devices. What a call is given belongs to it from its
// begin to its wait: buffers, which all lie in the group's memory, and `requests`, host memory of the caller's. All
// ranks of the group begin them in the same order. On a device what is sent is ready, and where it comes to is free,
// once the work told so far is done; work told after the wait sees the result.

void comm_wait_all(Comm *comm, CommRequest *requests, int count);

// As comm_all_gather. requests (size - 1). Sent per rank: (size - 1) * its own segment.
void comm_all_gather_begin(Comm *comm, void *data, const size_t *bytes, CommRequest *requests);
void comm_all_gather_wait(Comm *comm, CommRequest *requests);

// As comm_reduce_scatter_sum, the same bits: out (counts[rank]) = the sum of all ranks' segments `rank` of `in`, in the
// order of ranks; `out` may be that segment of `in`, which is not written otherwise. room (size - 1, counts[rank]):
// where the others' terms come to. requests (size - 1). begin and wait are given the same. Sent per rank: all of `in`
// but its own segment.
void comm_reduce_scatter_begin(Comm *comm, const float *in, const int64_t *counts, float *room, CommRequest *requests);
void comm_reduce_scatter_wait(Comm *comm, float *out, const float *in, const int64_t *counts, float *room,
                              CommRequest *requests);

// One small state of each rank to all, in place: states (size, bytes), of which this rank has filled its own. Not
// overlapped: it begins and waits. A scan over ranks then combines those before its own. requests (size - 1). Sent per
// rank: (size - 1) * bytes.
void comm_gather_states(Comm *comm, void *states, size_t bytes, CommRequest *requests);

// Neighbours' edges, the ranks standing in a line: `before` becomes the last before_bytes of the rank before (its
// my_last), `after` the first after_bytes of the rank behind (its my_first). The first rank's `before` and the last
// rank's `after` stay as they are. Sizes are the same on every rank, and may be 0. Wait: comm_wait_all of 2. Sent per
// rank: before_bytes unless it is the last, and after_bytes unless it is the first.
typedef struct CommHalo {
    const void *my_first, *my_last;
    void *before, *after;
    size_t before_bytes, after_bytes;
} CommHalo;
void comm_halo_begin(Comm *comm, const CommHalo *halo, CommRequest requests[2]);

// Piece r of `send` goes to rank r; piece r of `receive` comes from rank r. Pieces stand one after the other and may
// have any sizes, 0 too: receive_bytes[r] here is what send_bytes[this rank] is at rank r. `send` and `receive` do not
// overlap. requests (size). Wait: comm_wait_all of size. Sent per rank: all of `send` but the piece for itself.
void comm_all_to_all_begin(Comm *comm, const void *send, const size_t *send_bytes, void *receive,
                           const size_t *receive_bytes, CommRequest *requests);
// What receive_bytes has to be, where only the senders know: both (size), in host memory. Begins and waits; requests
// (size). Sent per rank: (size - 1) * sizeof(size_t).
void comm_all_to_all_sizes(Comm *comm, const size_t *send_bytes, size_t *receive_bytes, CommRequest *requests);

#endif
