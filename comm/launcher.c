// What a launcher (mpirun, mpiexec, srun, torchrun) has told this process, by its environment; MPI itself is not asked.
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/engine.h"
#include "comm/rendezvous.h"

// A launcher tells each process its place in these variables: Open MPI's mpirun; MPICH's and Intel's mpiexec; srun,
// whose count is that of the job step (a batch script has a job, but is no step of several tasks).
static const struct Launcher {
    const char *rank, *count;
} launchers[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
    {"PMI_RANK", "PMI_SIZE"},
    {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"},
};

bool comm_has_mpi(void) {
#ifdef HAVE_MPI
    return true;
#else
    return false;
#endif
}

static const char *text_from_environment(const char *name) { // NULL: not there, or empty
    const char *text = getenv(name);
    return text != NULL && *text != '\0' ? text : NULL;
}

static bool number_from_environment(const char *name, int *number) {
    const char *text = text_from_environment(name);
    if (text == NULL || !isdigit((unsigned char)*text)) return false;
    char *end;
    long value = strtol(text, &end, 10);
    if (*end != '\0' || value > 1 << 24) return false;
    *number = (int)value;
    return true;
}

// torchrun under srun, once for each machine: then each process is torchrun's, and srun's place is that of its machine.
static bool under_torchrun(void) { return text_from_environment("TORCHELASTIC_RUN_ID") != NULL; }

static bool launched(int *rank, int *count) {
    if (under_torchrun()) return false;
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

// ---- RANK and WORLD_SIZE ------------------------------------------------------------------------------------------

// A place among several, even a wrong one, which comm_meeting_place then tells. One of the two names alone may be
// anybody's.
bool comm_sockets_meant(void) {
    const char *rank = text_from_environment("RANK"), *size = text_from_environment("WORLD_SIZE");
    if (rank != NULL && size != NULL) return strcmp(size, "1") != 0;
    if (rank == NULL && size == NULL) // as mpirun or srun would have it, of a program without MPI
        return comm_launched_by_mpi() && !comm_has_mpi() && text_from_environment("MASTER_ADDR") != NULL;
    return text_from_environment("MASTER_ADDR") != NULL && (size == NULL || strcmp(size, "1") != 0);
}

static bool read_number(const char *name, int *number, Error *err) {
    if (number_from_environment(name, number)) return true;
    const char *text = text_from_environment(name);
    if (text == NULL) return error_usage(err, "--engine sockets: %s is not in the environment", name);
    return error_usage(err, "%s is \"%s\" in the environment: that is no number", name, text);
}

bool comm_meeting_place(MeetingPlace *place, int ranks, Error *err) {
    const char *rank = text_from_environment("RANK"), *size = text_from_environment("WORLD_SIZE");
    bool by_launcher = rank == NULL && size == NULL && launched(&place->rank, &place->size) && place->size > 0;
    if (!by_launcher && rank == NULL && size == NULL) {
        return error_usage(err,
                           "--engine sockets: start a process for each of the %d ranks, with RANK, WORLD_SIZE, "
                           "MASTER_ADDR and MASTER_PORT in its environment (as torchrun does), or use --engine local",
                           ranks);
    }
    if (!by_launcher && rank == NULL) return error_usage(err, "WORLD_SIZE is in the environment, but RANK is not");
    if (!by_launcher && size == NULL) return error_usage(err, "RANK is in the environment, but WORLD_SIZE is not");
    if (!by_launcher && !(read_number("RANK", &place->rank, err) && read_number("WORLD_SIZE", &place->size, err)))
        return false;
    if (place->size < 1) return error_usage(err, "WORLD_SIZE is 0 in the environment: it is the number of ranks");
    if (place->rank >= place->size)
        return error_usage(err, "RANK is %d and WORLD_SIZE %d in the environment: ranks are 0 to %d", place->rank,
                           place->size, place->size - 1);
    if (place->size != ranks)
        return error_usage(err,
                           "--sp x --dp = %d ranks, but WORLD_SIZE is %d: start %d processes, or change --sp, --dp",
                           ranks, place->size, ranks);
    place->address = text_from_environment("MASTER_ADDR");
    if (place->size == 1) return true; // meets nobody
    if (place->address == NULL)
        return error_usage(err,
                           "MASTER_ADDR is not in the environment: give the address of rank 0's machine (127.0.0.1 "
                           "if all ranks are on this one)");
    if (!read_number("MASTER_PORT", &place->port, err)) return false;
    if (place->port < 1 || place->port > 65535)
        return error_usage(err, "MASTER_PORT is %d in the environment: ports are 1 to 65535", place->port);
    if (under_torchrun()) place->port += place->port < 65535 ? 1 : -1;
    return true;
}

// ---- any of them --------------------------------------------------------------------------------------------------

static bool placed(int *rank, int *count) { // as the engine is chosen
    if (comm_has_mpi() && launched(rank, count)) return true;
    if (comm_sockets_meant() && number_from_environment("RANK", rank) && number_from_environment("WORLD_SIZE", count))
        return true;
    return launched(rank, count);
}

int comm_process_rank(void) {
    int rank, count;
    return placed(&rank, &count) ? rank : 0;
}

int comm_process_count(void) {
    int rank, count;
    return placed(&rank, &count) ? count : 1;
}

int comm_processes_here(void) {
    static const char *const counts[] = {"LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS",
                                         "SLURM_NTASKS_PER_NODE"};
    int rank, all, here;
    if (!placed(&rank, &all)) return 1;
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        if (number_from_environment(counts[i], &here) && here > 0) return here;
    return all > 0 ? all : 1; // not told: all of them, so that none takes processors from another
}

int comm_process_rank_here(void) {
    static const char *const ranks[] = {"LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"};
    int rank, all, here;
    if (!placed(&rank, &all)) return 0;
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0]; i++)
        if (number_from_environment(ranks[i], &here)) return here;
    return rank % comm_processes_here(); // machines are filled one after the other, as a rule
}
