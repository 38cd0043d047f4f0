// Groups of processes: which ranks of the world they are.
#include "comm/process_group.h"

#include <stdlib.h>

ProcessGroup *process_group_new(const CommOperations *operations, void *world, double timeout, int *next_number,
                                int rank, int size) {
    ProcessGroup *group = calloc(1, sizeof *group + (size_t)size * sizeof group->member[0]);
    if (group == NULL) return NULL;
    group->base = (Comm){.operations = operations,
                         .rank = rank,
                         .world_rank = rank,
                         .size = size,
                         .next_number = next_number,
                         .timeout = timeout,
                         .operation = "start"};
    group->world = world;
    for (int i = 0; i < size; i++) group->member[i] = i;
    return group;
}

Comm *process_group_of(Comm *comm, const int *members, int size, int rank, int number) {
    ProcessGroup *parent = process_group(comm);
    ProcessGroup *made =
        process_group_new(comm->operations, parent->world, comm->timeout, comm->next_number, rank, size);
    if (made == NULL) comm_give_up(comm, "out of memory for a group of %d ranks", size);
    made->number = number;
    for (int i = 0; i < size; i++) made->member[i] = parent->member[members[i]];
    return &made->base;
}
