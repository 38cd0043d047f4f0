// What mpirun, mpiexec or srun have told this process, by its environment; MPI itself is not asked.
#include <stdlib.h>
#include <string.h>

#include "comm/engine.h"

// A launcher tells each process its place in these variables: Open MPI's mpirun; MPICH's and Intel's mpiexec; srun,
// whose count is that of the job step (a batch script has a job, but is no step of several tasks).
static const struct Launcher {
    const char *rank, *count;
} launchers[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
    {"PMI_RANK", "PMI_SIZE"},
    {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"},
};

static bool number_from_environment(const char *name, int *number) {
    const char *text = getenv(name);
    if (text == NULL || *text == '\0') return false;
    char *end;
    long value = strtol(text, &end, 10);
    if (*end != '\0' || value < 0 || value > 1 << 24) return false;
    *number = (int)value;
    return true;
}

static bool launched(int *rank, int *count) {
    for (int i = 0; i < (int)(sizeof launchers / sizeof launchers[0]); i++) {
        bool by_slurm = strncmp(launchers[i].rank, "SLURM", 5) == 0;
        if (!number_from_environment(launchers[i].rank, rank) || !number_from_environment(launchers[i].count, count))
            continue;
        if (by_slurm && *count < 2) continue; // a shell inside an allocation is a step of one task
        return true;
    }
    *count = 0;
    return number_from_environment("PMIX_RANK", rank);
}

bool comm_launched_by_mpi(void) {
    int rank, count;
    return launched(&rank, &count);
}

int comm_process_rank(void) {
    int rank, count;
    return launched(&rank, &count) ? rank : 0;
}

int comm_processes_here(void) {
    static const char *const counts[] = {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE"};
    int rank, all, here;
    if (!launched(&rank, &all)) return 1;
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        if (number_from_environment(counts[i], &here) && here > 0) return here;
    return all > 0 ? all : 1; // not told: all of them, so that none takes processors from another
}

int comm_process_count(void) {
    int rank, count;
    return launched(&rank, &count) ? count : 1;
}
