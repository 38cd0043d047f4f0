// What engines share whose ranks are processes: groups, which are lists of ranks of the world. Private to comm/.
#ifndef COMM_PROCESS_GROUP_H
#define COMM_PROCESS_GROUP_H

#include "comm/engine.h"

typedef struct ProcessGroup {
    Comm base;
    void *world;  // the engine's own
    int number;   // of this group, 0: of all ranks
    int member[]; // (size): ranks of the world
} ProcessGroup;
static inline ProcessGroup *process_group(Comm *comm) { return (ProcessGroup *)comm; }

// All ranks. NULL: out of memory.
ProcessGroup *process_group_new(const CommOperations *operations, void *world, double timeout, int *next_number,
                                int rank, int size);
Comm *process_group_of(Comm *comm, const int *members, int size, int rank, int number); // CommOperations.group

#endif
