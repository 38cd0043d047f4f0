// Ranks, and what they say to each other.
//
// A Comm is a group of ranks and my place in it. Engines: `local`, ranks are threads of this process; `mpi`, ranks are
// processes. Every operation is collective over the group unless it says otherwise, and every rank must make the same
// calls in the same order. Sums are always taken in the order of ranks, so the same ranks give the same bits.
//
// Nothing here returns an error: a rank that cannot go on calls comm_fail, which prints one line and ends all ranks; a
// rank that does not answer within the time-out is named and ends all of them too. No call waits for ever, and waiting
// ranks sleep rather than spin, since there may be more ranks than processors.
#ifndef COMM_COMM_H
#define COMM_COMM_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Comm Comm;

// ---- starting ranks -----------------------------------------------------------------------------------------------

typedef enum CommEngine { COMM_AUTO, COMM_LOCAL, COMM_MPI } CommEngine; // auto: mpi under mpirun or srun, else local

bool comm_engine_from_name(const char *name, CommEngine *engine);
bool comm_has_mpi(void);          // compiled in
bool comm_launched_by_mpi(void);  // this process was started by mpirun, mpiexec or srun
int comm_process_rank(void);      // before comm_run: rank of this process by the launcher's environment, 0 without one
int comm_processes_here(void);    // how many of the launched processes share this machine (1 without a launcher)

typedef struct CommLaunch {
    CommEngine engine;
    int ranks;              // wanted; with mpi it must equal the number of processes
    double timeout_seconds; // a rank silent for longer is reported; <= 0: 600
} CommLaunch;

// Runs rank_main(world, argument) on every rank and returns when all have. local: one thread per rank, all in this
// process, `argument` shared. mpi: this process is one rank.
bool comm_run(const CommLaunch *launch, void (*rank_main)(Comm *world, void *argument), void *argument, Error *err);

// ---- the group ----------------------------------------------------------------------------------------------------

int comm_rank(const Comm *comm);
int comm_size(const Comm *comm);
// Ranks with the same colour form a new group, ordered by key.
Comm *comm_split(Comm *comm, int color, int key);
void comm_free(Comm *comm); // of a split group; local to this rank, may be NULL
// Bytes this rank has handed to other ranks through this group (its own part never counts).
int64_t comm_bytes_sent(const Comm *comm);

// Ends all ranks, from any one: prints the error's line once, as it is, and exits with its code. Not collective.
void comm_fail(Comm *comm, const Error *err) __attribute__((noreturn));
// What this rank is doing, for the time-out's message ("step 12, all-reduce of gradients"). A string literal.
void comm_doing(Comm *comm, const char *what);

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

typedef struct CommRequest { void *send, *receive; } CommRequest; // the engine's own

// Starts sending `send` to rank `to` and receiving from rank `from`; either may be myself only if both are, and either
// byte count may be 0 (nothing is sent or expected then). Between two ranks, messages are matched in the order begun.
// Buffers belong to the exchange until comm_wait. Not collective.
CommRequest comm_exchange_begin(Comm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                size_t receive_bytes, int from);
void comm_wait(Comm *comm, CommRequest *request);

#ifdef __cplusplus
}
#endif
#endif
