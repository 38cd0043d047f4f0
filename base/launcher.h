// What a launcher (mpirun, mpiexec, srun, torchrun) has told this process, by its environment.
#ifndef BASE_LAUNCHER_H
#define BASE_LAUNCHER_H

#include "base/error.h"

bool launched_by_mpi(void);      // mpirun, mpiexec or srun, and not torchrun in turn
bool launched_by_torchrun(void); // RANK and WORLD_SIZE, or what is left of them, give a place among others

// This process's rank among `count` (0: the launcher does not say); false: there is no launcher. mpi_first: whose word
// counts where both have spoken.
bool launcher_place(bool mpi_first, int *rank, int *count);
int launcher_processes_here(int all);      // how many of all processes are on this machine
int launcher_rank_here(int rank, int all); // which of these is process `rank`

typedef struct MeetingPlace {
    int rank, size;
    char address[300]; // "host:port", "[IPv6]:port": of rank 0, as NCCL_COMM_ID has it
} MeetingPlace;
// This process's place among `ranks`, and where they can meet: MASTER_ADDR and MASTER_PORT (under torchrun, which holds
// that port, another one), or the first machine of a Slurm step. What is wrong with it is a usage error.
bool launcher_meeting_place(MeetingPlace *place, int ranks, Error *err);

#endif
