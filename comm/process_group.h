// What engines share whose ranks are processes: groups, which are lists of ranks of the world, and a time limit for
// their start and end. Private to comm/.
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

// A time limit for calls of a library that wait for other ranks without one (the start of MPI and NCCL, MPI's end). A
// thread keeps it, and ends this process with a line when the time is over.
typedef struct Deadline Deadline;

Deadline *deadline_start(Error *err); // no limit yet. NULL: error
// From now on so many seconds, for all ranks' "start" or "end" (`what`); HUGE_VAL: no limit. Time in which this process
// was stopped itself does not count.
void deadline_set(Deadline *deadline, double seconds, const char *what);
void deadline_stop(Deadline *deadline);

#endif
