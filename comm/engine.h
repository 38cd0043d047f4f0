// What an engine supplies, and what engines share. Private to comm/.
//
// comm.c settles everything that does not depend on how ranks reach each other: groups of one, messages to oneself,
// empty messages and the count of bytes. An engine sees groups of two ranks or more, and messages of one byte or more
// between different ranks.
#ifndef COMM_ENGINE_H
#define COMM_ENGINE_H

#include "comm/comm.h"

typedef struct CommOperations {
    Comm *(*split)(Comm *, int color, int key);
    void (*release)(Comm *);
    void (*doing)(Comm *, const char *what, bool slowly);
    const char *(*said)(Comm *); // what this rank is doing, as it last said; may be NULL
    int64_t (*moved)(Comm *);    // signs of life of all ranks so far, as many as are known here. From any thread
    void (*end_all)(Comm *, const Error *) __attribute__((noreturn));
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
    // Of engines whose collectives are made of messages (comm/pairwise.h): one side of a message of 0 bytes or more,
    // and its end. They are matched apart from exchanges. NULL in other engines.
    void *(*message_begin)(Comm *, bool receives, void *data, size_t bytes, int peer);
    void (*message_end)(Comm *, void *message);
} CommOperations;

// An engine's own group begins with this.
struct Comm {
    const CommOperations *operations;
    int rank, size;
    int world_rank;        // rank of the group that comm_run made; an engine fills in `rank`, comm_split the rest
    struct Device *device; // in whose memory the buffers lie; NULL: in the host's
    double timeout;        // seconds
    int64_t bytes_sent;
    const char *operation; // under way, for the time-out's message
};

bool comm_run_local(const CommLaunch *launch, void (*rank_main)(Comm *, void *), void *argument, Error *err);
bool comm_run_mpi(const CommLaunch *launch, void (*rank_main)(Comm *, void *), void *argument, Error *err);
bool comm_run_nccl(const CommLaunch *launch, void (*rank_main)(Comm *, void *), void *argument, Error *err);

// ---- what started this process ------------------------------------------------------------------------------------

bool comm_launched_by_torchrun(void); // the environment has a place for this process among others (RANK, WORLD_SIZE)
int comm_process_count(void);         // by the launcher's environment; 1 without one, 0 if it does not say

typedef struct MeetingPlace {
    int rank, size;
    char address[300]; // "host:port", "[IPv6]:port": of rank 0, as NCCL_COMM_ID has it
} MeetingPlace;
// This process's place for engine `nccl`, one of `ranks`, by the environment. What is wrong with it is a usage error.
bool comm_meeting_place(MeetingPlace *place, int ranks, Error *err);

// ---- split --------------------------------------------------------------------------------------------------------

typedef struct CommSeat {
    int color, key;
} CommSeat; // what each rank of the parent asked for

// Fills `members` with the parent's ranks of `color`, ordered by key, then by rank; returns how many.
int comm_seat_members(const CommSeat *seats, int parent_size, int color, int *members);

// ---- sums ---------------------------------------------------------------------------------------------------------

// out[i] = ((term[0][i] + term[1][i]) + term[2][i]) + ...; out may be any of the terms. Every engine sums with these,
// so they all give the same bits.
void comm_sum_floats(float *out, const float *const *terms, int term_count, int64_t count);
void comm_sum_doubles(double *out, const double *const *terms, int term_count, int count);

// ---- waiting, and giving up ---------------------------------------------------------------------------------------

double comm_seconds(void); // of a clock that only runs forward

// How long a wait has lasted since anything last moved. Time is added in steps of at most `longest_step`, so a program
// that was stopped and continued does not take its own absence for the silence of others.
typedef struct CommPatience {
    double waited, last, longest_step;
    double looked; // `waited` at the last look
    uint64_t seen; // then
} CommPatience;
CommPatience comm_patience(double longest_step);
double comm_patience_spent(CommPatience *patience);

// A rank that waits looks a few times per time-out how those it waits for stand. What it sees (any number that changes
// when they move) starts its patience anew if it is not what it saw before.
double comm_look_interval(double timeout);                                 // seconds between two looks
bool comm_patience_look_due(const CommPatience *patience, double timeout); // always when it is at its end
void comm_patience_saw(CommPatience *patience, uint64_t state);

enum { COMM_WORKING = -1, COMM_FINISHED = -2 };

typedef struct CommStanding { // where a rank of the world stands, as far as can be seen from here
    int awaits;               // the rank it waits for, or COMM_WORKING, or COMM_FINISHED
    bool finished;            // it has returned from rank_main; it may still wait for others to do so
    bool asleep;              // it says that it waits, but does not look whether its wait is over: it has been stopped
    int64_t beats;            // its signs of life so far
    const char *operation;    // in which it waits
    const char *doing;        // what it said it was doing, or NULL
    const char *place;        // where it runs, or NULL
} CommStanding;

// Rank `waiting` waits for one that waits for one, and so on: where all of these stand, in one number, which changes
// when any of them moves.
uint64_t comm_chain_state(CommStanding (*standing)(const void *world, int rank), const void *world, int world_size,
                          int waiting);

// The line about rank `waiting`, for which nothing has moved for `seconds`: who it is that does not answer.
void comm_silence_error(Error *err, CommStanding (*standing)(const void *world, int rank), const void *world,
                        int world_size, int waiting, double seconds);

// comm_fail with a message made here.
void comm_give_up(Comm *, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3)));
void comm_sizes_error(Comm *, int from, int to, size_t sent, size_t expected) __attribute__((noreturn));

// Flushes standard output and writes the error's line on standard error, in one piece.
void comm_print_failure(const Error *err);

#endif
