// Collectives made of messages between two ranks, for engines whose ranks are processes. Private to comm/.
//
// Each is an entry of CommOperations as it stands, and needs message_begin and message_end of the same table.
#ifndef COMM_PAIRWISE_H
#define COMM_PAIRWISE_H

#include "comm/engine.h"

void pairwise_barrier(Comm *comm);
void pairwise_broadcast(Comm *comm, void *data, size_t bytes, int root);
void pairwise_all_reduce_sum(Comm *comm, double *values, int count);
void pairwise_reduce_scatter_sum(Comm *comm, float *out, float *in, const int64_t *counts);
void pairwise_all_gather(Comm *comm, void *data, const size_t *bytes);

// What becomes of a split: my group's members as ranks of `comm`, in their order, my place among them, and a number for
// it that no member has used for another group. Groups of other colours get the same number, but share no ranks with
// it. *next_number is this process's own, the lowest it has not used yet. `members` is to be freed.
typedef struct PairwiseSplit {
    int rank, size, number;
    int *members;
} PairwiseSplit;
PairwiseSplit pairwise_split(Comm *comm, int color, int key, int *next_number);

#endif
