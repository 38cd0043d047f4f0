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

CommRequest pairwise_exchange_begin(Comm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                    size_t receive_bytes, int from);
void pairwise_wait(Comm *comm, const CommRequest *request);
Comm *pairwise_group(Comm *comm, const int *members, int size, int rank, int number);

typedef struct ProcessGroup { // the groups of such engines
    Comm base;
    void *world;  // the engine's own
    int number;   // of this group, 0: of all ranks
    int member[]; // (size): ranks of the world
} ProcessGroup;
static inline ProcessGroup *process_group(Comm *comm) { return (ProcessGroup *)comm; }
// All ranks, or so it begins. NULL: out of memory.
ProcessGroup *process_group_new(const CommOperations *operations, void *world, double timeout, int *next_number,
                                int rank, int size);

#endif
