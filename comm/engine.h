// What an engine supplies, and what engines share. Private to comm/.
//
// comm.c settles everything that does not depend on how ranks reach each other: groups of one, messages to oneself,
// empty messages and the count of bytes. An engine sees groups of two ranks or more, and messages of one byte or more
// between different ranks.
#ifndef COMM_ENGINE_H
#define COMM_ENGINE_H

#include "base/clock.h"
#include "comm/comm.h"

typedef struct CommOperations {
    // A new group of `size` of this group's ranks, of which this rank is `rank`; members (size): their ranks here.
    // Collective over this group; groups made at once have one number, which no member has had before.
    Comm *(*group)(Comm *, const int *members, int size, int rank, int number);
    Comm *(*on_device)(Comm *host, struct Device *); // of groups on a device: another one on `host`
    void (*release)(Comm *);
    void (*barrier)(Comm *);
    void (*broadcast)(Comm *, void *data, size_t bytes, int root);
    void (*all_reduce_sum)(Comm *, double *values, int count);
    void (*reduce_scatter_sum)(Comm *, float *out, float *in, const int64_t *counts);
    void (*all_gather)(Comm *, void *data, const size_t *bytes);
    // Posts both sides before it works on either. A side without bytes is not there; a side already complete comes
    // back as NULL in the request.
    CommRequest (*exchange_begin)(Comm *, const void *send, size_t send_bytes, int to, void *receive,
                                  size_t receive_bytes, int from);
    void (*wait)(Comm *, const CommRequest *);
    void (*batch_begin)(Comm *); // NULL, and `batch_end` too, where exchanges are not better begun together
    void (*batch_end)(Comm *);
    void (*set_activity)(Comm *, const char *what, bool slowly);
    const char *(*activity)(Comm *); // what this rank is doing, as it last said; may be NULL
    int64_t (*heartbeats)(Comm *);   // signs of life of all ranks so far, as many as are known here. From any thread
    void (*end_all)(Comm *, const Error *) __attribute__((noreturn));
} CommOperations;

// An engine's own group begins with this.
struct Comm {
    const CommOperations *operations;
    int rank, size;
    int world_rank;        // rank of the group that comm_run made; an engine fills in `rank`, comm_split the rest
    struct Device *device; // in whose memory the buffers lie; NULL: in the host's
    Comm *host;       // of a group on a device: the same ranks in host memory, its own, for all that is no matter of
                      // the device (barriers, sums of a few doubles, splits, time-outs and failures); else NULL
    int *next_number; // of groups, where the engine tells them apart by numbers; this process's own
    double timeout;   // seconds
    int64_t bytes_sent;
    const char *operation; // under way, for the time-out's message
    void *scratch;         // comm_scratch's
    size_t scratch_bytes;
};

// What the table says of the group in host memory.
const char *comm_activity(Comm *comm);
int64_t comm_heartbeats(Comm *comm);
void comm_host_barrier(Comm *comm, const char *operation);

// Host memory, zeroed; ends all ranks if there is none.
void *comm_allocate(Comm *comm, size_t count, size_t size);
// Host memory of the group's own, until the next call or the group's end: so what is done in every step takes none.
void *comm_scratch(Comm *comm, size_t bytes);
// An engine's last word on a group: frees it, and what comm_scratch made.
void comm_free_memory(Comm *comm);

bool comm_run_local(const CommLaunch *launch, void (*rank_main)(Comm *, void *), void *argument, Error *err);
bool comm_run_mpi(const CommLaunch *launch, void (*rank_main)(Comm *, void *), void *argument, Error *err);
bool comm_run_nccl(const CommLaunch *launch, void (*rank_main)(Comm *, void *), void *argument, Error *err);

// ---- exchanges as parts of a collective

// comm_exchange_begin and comm_wait, but that the collective has counted the bytes and given its name.
CommRequest comm_exchange_part(Comm *comm, const void *send, size_t send_bytes, int to, void *receive,
                               size_t receive_bytes, int from);
void comm_wait_part(Comm *comm, CommRequest *request);

// Entries of CommOperations as they stand, for groups whose collectives are made of exchanges (comm/exchanges.c).
void exchanged_all_gather(Comm *comm, void *data, const size_t *bytes);
// On a device, terms come into the group's staging memory, at most COMM_STAGING_BYTES.
void exchanged_reduce_scatter_sum(Comm *comm, float *out, float *in, const int64_t *counts);
// In host memory alone:
void exchanged_barrier(Comm *comm);
void exchanged_broadcast(Comm *comm, void *data, size_t bytes, int root);
void exchanged_all_reduce_sum(Comm *comm, double *values, int count);

// ---- sums ---------------------------------------------------------------------------------------------------------

// out[i] = ((term[0][i] + term[1][i]) + term[2][i]) + ...; out may be any of the terms. Every engine sums with this,
// so they all give the same bits.
void comm_sum_floats(float *out, const float *const *terms, int term_count, int64_t count);

// ---- waiting, and giving up ---------------------------------------------------------------------------------------

// A rank that waits looks a few times per time-out how those it waits for stand. What it sees (any number that changes
// when they move) starts its timer anew if it is not what it saw before.
double comm_look_interval(double timeout);                    // seconds between two looks
bool comm_timer_look_due(const Timer *timer, double timeout); // always when it is at its end
void comm_timer_saw(Timer *timer, uint64_t state);

typedef struct CommPlace { // "process 1234 on host"
    char text[80];
} CommPlace;
CommPlace comm_place_here(void);

enum { COMM_WORKING = -1, COMM_FINISHED = -2 };

typedef struct CommStatus { // where a rank of the world stands, as far as can be seen from here
    int waits_for;          // the rank it waits for, or COMM_WORKING, or COMM_FINISHED
    bool finished;          // it has returned from rank_main; it may still wait for others to do so
    bool stopped;           // it says that it waits, but does not look whether its wait is over: it has been stopped
    int64_t beats;          // its signs of life so far
    const char *operation;  // in which it waits
    const char *doing;      // what it said it was doing, or NULL
    const char *place;      // where it runs, or NULL
} CommStatus;

// Rank `waiting` waits for one that waits for one, and so on: where all of these stand, in one number, which changes
// when any of them moves.
uint64_t comm_chain_state(CommStatus (*status)(const void *world, int rank), const void *world, int world_size,
                          int waiting);

// The line about rank `waiting`, for which nothing has moved for `seconds`: who it is that does not answer.
void comm_silence_error(Error *err, CommStatus (*status)(const void *world, int rank), const void *world,
                        int world_size, int waiting, double seconds);

// comm_fail with a message made here.
void comm_give_up(Comm *, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3)));
void comm_sizes_error(Comm *, int from, int to, size_t sent, size_t expected) __attribute__((noreturn));

#endif
