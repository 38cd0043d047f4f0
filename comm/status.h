// What the ranks of engine `mpi` know of each other: whom each waits for, what it is doing, its signs of life.
//
// Ranks on one machine write this on a page that they share. Those on others are told in small messages, a few times
// per time-out: as ranks wait, and with their signs of life. MPI moves messages only inside its calls.
#ifndef COMM_STATUS_H
#define COMM_STATUS_H

#include "comm/engine.h"

#ifdef HAVE_MPI
#include <mpi.h>
#include <stdatomic.h>

typedef struct RankStatus {    // of one rank. Others read it at any time; half a word of the texts would do no harm
    atomic_int failed;         // of the machine's first rank: one of them has said why all end
    atomic_int waits_for;      // a rank, or COMM_WORKING
    atomic_int finished, last; // last: of its messages
    atomic_llong beats;        // signs of life
    atomic_llong looks;        // whether a wait is over: a rank that waits and does not look has been stopped
    char operation[24], doing[96];
} RankStatus;

typedef struct PeerStatus {
    RankStatus *status; // on the page, or `heard`
    RankStatus heard;   // of a rank on another machine: what it said last
    RankStatus message; // mine, as a message to it, on its way while `sending` is not MPI_REQUEST_NULL
    MPI_Request sending;
    int64_t looks; // when I last looked, and since when
    double since;
    CommPlace place;
} PeerStatus;

typedef struct StatusTable {
    int rank, size, tag;
    double timeout;
    MPI_Win page;
    PeerStatus *peer; // (size)
    RankStatus *mine;
    atomic_int *failed; // of this machine
    int others_apart;   // ranks that do not see my page
    double told_at;
    bool told_waiting;
} StatusTable;

// All ranks together; no other message may have `tag`. May wait for ever. False: MPI failed, or no memory.
bool status_open(StatusTable *table, int rank, int size, int tag, double timeout);
// All ranks together, when each has finished. May wait for ever.
bool status_close(StatusTable *table);

// Those that return an int return what MPI says.
int status_wait(StatusTable *table, int awaited, const char *operation); // this rank waits from now on
int status_look(StatusTable *table);                                     // it still does
int status_beat(StatusTable *table);                                     // it works, and gives a sign of life
void status_say(StatusTable *table, const char *doing);

CommStatus status_of_rank(const void *table, int rank);
int status_chain(StatusTable *table,
                 uint64_t *state); // comm_chain_state of this rank; to be called before status_of_rank
int64_t status_moved(const StatusTable *table);

#endif
#endif
