// What the ranks of engine `mpi` know of each other: whom each waits for, what it is doing, its signs of life.
//
// Ranks on one machine write this on a page that they share. Ranks on other machines cannot see it, and tell each other
// in small messages, a few times per time-out: as they wait, and with their signs of life. MPI moves messages only
// inside its calls, so a rank that makes none is not heard; nor is it heard where it has nothing to say.
#ifndef COMM_BOARD_H
#define COMM_BOARD_H

#include "comm/engine.h"

#ifdef HAVE_MPI
#include <mpi.h>
#include <stdatomic.h>

typedef struct BoardStatus { // of one rank. Others read it at any time; half a word of the texts would do no harm
    atomic_int failed;       // of the machine's first rank: one of them has said why all end
    atomic_int awaits;       // a rank, or COMM_WORKING
    atomic_int finished;
    atomic_llong beats; // signs of life
    atomic_llong looks; // whether a wait is over: a rank that waits and does not look has been stopped
    char operation[24], doing[96];
} BoardStatus;

typedef struct Notice { // a status as a message
    int awaits, finished, last;
    int64_t beats, looks;
    char operation[24], doing[96];
} Notice;

typedef struct BoardPeer {
    BoardStatus *status; // on the page, or `heard`
    BoardStatus heard;   // of a rank on another machine: what it said last
    bool said_its_last;
    Notice notice; // to it, on its way while `sending` is not MPI_REQUEST_NULL
    MPI_Request sending;
    int64_t looks; // when I last looked, and since when
    double since;
    char place[80]; // "process 1234 on host"
} BoardPeer;

typedef struct Board {
    int rank, size, tag;
    double timeout;
    MPI_Win page;
    BoardPeer *peer; // (size)
    BoardStatus *mine;
    atomic_int *failed; // of this machine
    int others_apart;   // ranks that do not see my page
    double told_at;
    bool told_waiting;
} Board;

// All ranks together; no other message may have `tag`. May wait for ever. False: MPI failed, or no memory.
bool board_open(Board *board, int rank, int size, int tag, double timeout);
// All ranks together, when each has finished. May wait for ever.
bool board_close(Board *board);

// Those that return an int return what MPI says.
int board_wait(Board *board, int awaited, const char *operation); // this rank waits from now on
int board_look(Board *board);                                     // it still does
int board_beat(Board *board);                                     // it works, and gives a sign of life
void board_say(Board *board, const char *doing);

CommStanding board_standing(const void *board, int rank);
int board_chain(Board *board, uint64_t *state); // comm_chain_state of this rank; to be called before board_standing
int64_t board_moved(const Board *board);

#endif
#endif
