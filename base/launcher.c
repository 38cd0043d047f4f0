// What mpirun, srun and torchrun say in the environment: this process's place, and where rank 0 is.
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/launcher.h"

// A launcher tells each process its place in these variables: Open MPI's mpirun; MPICH's and Intel's mpiexec; srun,
// whose count is that of the job step (a batch script has a job, but is no step of several tasks).
static const struct Launcher {
    const char *rank, *count;
} launchers[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
    {"PMI_RANK", "PMI_SIZE"},
    {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"},
};

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

bool launched_by_mpi(void) {
    int rank, count;
    return launched(&rank, &count);
}

// A place among several, even a wrong one, which launcher_meeting_place then tells. One of the two names alone may be
// anybody's, where there is no MASTER_ADDR beside it.
bool launched_by_torchrun(void) {
    const char *rank = text_from_environment("RANK"), *size = text_from_environment("WORLD_SIZE");
    if (rank != NULL && size != NULL) return strcmp(size, "1") != 0;
    if (rank == NULL && size == NULL) return false;
    return text_from_environment("MASTER_ADDR") != NULL && (size == NULL || strcmp(size, "1") != 0);
}

// ---- where NCCL's ranks meet ----------------------------------------------------------------------------------------

static bool read_number(const char *name, int *number, Error *err) {
    if (number_from_environment(name, number)) return true;
    const char *text = text_from_environment(name);
    if (text == NULL) return error_usage(err, "--engine nccl: %s is not in the environment", name);
    return error_usage(err, "%s is \"%s\" in the environment: that is no number", name, text);
}

// RANK and WORLD_SIZE, or where these are missing the place that mpirun, mpiexec or srun gave.
static bool read_place(MeetingPlace *place, int ranks, Error *err) {
    const char *rank = text_from_environment("RANK"), *size = text_from_environment("WORLD_SIZE");
    if (rank == NULL && size == NULL) {
        if (launched(&place->rank, &place->size) && place->size > 0) return true;
        return error_usage(err,
                           "--engine nccl: start a process for each of the %d ranks (torchrun, srun), or use "
                           "--engine local",
                           ranks);
    }
    if (rank == NULL) return error_usage(err, "WORLD_SIZE is in the environment, but RANK is not");
    if (size == NULL) return error_usage(err, "RANK is in the environment, but WORLD_SIZE is not");
    return read_number("RANK", &place->rank, err) && read_number("WORLD_SIZE", &place->size, err);
}

static bool set_address(MeetingPlace *place, const char *host, size_t length, int port, Error *err) {
    bool ipv6 = memchr(host, ':', length) != NULL && host[0] != '[';
    int written = snprintf(place->address, sizeof place->address, "%s%.*s%s:%d", ipv6 ? "[" : "", (int)length, host,
                           ipv6 ? "]" : "", port);
    return written < (int)sizeof place->address || error_usage(err, "%.60s...: too long a name for a machine", host);
}

// The first machine of a list as Slurm writes it, "gpu[07-09,12],login1" or "gpu7,gpu8".
static bool first_of_slurm(MeetingPlace *place, const char *list, int port, Error *err) {
    char host[sizeof place->address];
    size_t length = 0;
    const char *at = list;
    while (*at != '\0' && *at != ',' && length < sizeof host - 1) {
        if (*at != '[') {
            host[length++] = *at++;
            continue;
        }
        for (at++; isdigit((unsigned char)*at) && length < sizeof host - 1; at++) host[length++] = *at;
        at += strcspn(at, "]");
        if (*at == ']') at++;
    }
    return set_address(place, host, length, port, err);
}

bool launcher_meeting_place(MeetingPlace *place, int ranks, Error *err) {
    *place = (MeetingPlace){0};
    int port = 0, job;
    if (!read_place(place, ranks, err)) return false;
    if (place->size < 1) return error_usage(err, "WORLD_SIZE is 0 in the environment: it is the number of ranks");
    if (place->rank >= place->size)
        return error_usage(err, "RANK is %d and WORLD_SIZE %d in the environment: ranks are 0 to %d", place->rank,
                           place->size, place->size - 1);
    if (place->size != ranks)
        return error_usage(err, "--sp x --dp = %d ranks, but %d processes were started: start %d, or change --sp, --dp",
                           ranks, place->size, ranks);
    const char *address = text_from_environment("MASTER_ADDR"), *nodes = text_from_environment("SLURM_STEP_NODELIST");
    if (nodes == NULL) nodes = text_from_environment("SLURM_JOB_NODELIST");
    if (address == NULL && nodes != NULL && number_from_environment("SLURM_JOB_ID", &job)) {
        enum { FIRST_PORT = 20000, PORTS = 12000 }; // below those that a system gives to whoever asks for any
        return first_of_slurm(place, nodes, FIRST_PORT + job % PORTS, err);
    }
    if (address == NULL)
        return error_usage(err,
                           "MASTER_ADDR is not in the environment: give the address of rank 0's machine (127.0.0.1 "
                           "if all ranks are on this one)");
    if (!read_number("MASTER_PORT", &port, err)) return false;
    if (port < 1 || port > 65535)
        return error_usage(err, "MASTER_PORT is %d in the environment: ports are 1 to 65535", port);
    if (under_torchrun()) port += port < 65535 ? 1 : -1; // which holds MASTER_PORT itself
    return set_address(place, address, strlen(address), port, err);
}

// ---- any of them --------------------------------------------------------------------------------------------------

bool launcher_place(bool mpi_first, int *rank, int *count) {
    if (mpi_first && launched(rank, count)) return true;
    if (launched_by_torchrun() && number_from_environment("RANK", rank) && number_from_environment("WORLD_SIZE", count))
        return true;
    return launched(rank, count);
}

static bool first_number(const char *const *names, int count, int *number) {
    for (int i = 0; i < count; i++)
        if (number_from_environment(names[i], number)) return true;
    return false;
}

int launcher_processes_here(int all) {
    static const char *const counts[] = {"LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS",
                                         "SLURM_NTASKS_PER_NODE"};
    int here;
    if (first_number(counts, sizeof counts / sizeof *counts, &here) && here > 0) return here;
    return all > 0 ? all : 1; // not told: all of them, so that none takes processors from another
}

int launcher_rank_here(int rank, int all) {
    static const char *const ranks[] = {"LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"};
    int here;
    if (first_number(ranks, sizeof ranks / sizeof *ranks, &here)) return here;
    return rank % launcher_processes_here(all); // machines are filled one after the other, as a rule
}
