// Starting ranks: which engine, and whether it can serve what was asked.
#include "base/launcher.h"
#include "comm/engine.h"

bool comm_has_mpi(void) {
#ifdef HAVE_MPI
    return true;
#else
    return false;
#endif
}

typedef struct Place {
    int rank, count;
    bool launched;
} Place;

static Place place_of_this(void) {
    Place place = {0, 1, false};
    int rank, count;
    if (launcher_place(comm_has_mpi(), &rank, &count)) place = (Place){rank, count, true};
    return place;
}

int comm_process_rank(void) { return place_of_this().rank; }
int comm_process_count(void) { return place_of_this().count; }

int comm_processes_here(void) {
    Place place = place_of_this();
    return place.launched ? launcher_processes_here(place.count) : 1;
}

int comm_process_rank_here(void) {
    Place place = place_of_this();
    return place.launched ? launcher_rank_here(place.rank, place.count) : 0;
}

CommEngine comm_engine_here(CommEngine engine) {
    if (engine != COMM_AUTO) return engine;
    if (launched_by_mpi()) return comm_has_mpi() ? COMM_MPI : COMM_NCCL;
    return launched_by_torchrun() ? COMM_NCCL : COMM_LOCAL;
}

bool comm_ranks_are_processes(CommEngine engine) { return comm_engine_here(engine) != COMM_LOCAL; }

// Processes that compute on processors.
static bool refuse_processors(int ranks, Error *err) {
    const char *threads = "or leave the launcher out: ranks are then threads of one process";
    const char *no_mpi = "this program was built without MPI, and NCCL serves GPUs alone: build it where MPI is found";
    const char *torchrun = "torchrun (RANK and WORLD_SIZE) starts ranks for GPUs alone: on processors use mpirun -np";
    if (launched_by_mpi() && !comm_has_mpi()) return error_usage(err, "%s, %s", no_mpi, threads);
    if (launched_by_torchrun()) return error_usage(err, "%s %d, %s", torchrun, ranks, threads);
    return error_usage(err, "--engine nccl serves GPUs alone: on processors use --engine mpi or --engine local");
}

bool comm_run(const CommLaunch *launch, void (*rank_main)(Comm *world, void *argument), void *argument, Error *err) {
    CommLaunch settled = *launch;
    bool under_launcher = launched_by_mpi();
    int processes = comm_process_count();
    if (settled.ranks < 1)
        return error_usage(err, "%d ranks asked for: --sp and --dp must be at least 1", settled.ranks);
    if (settled.timeout_seconds <= 0) settled.timeout_seconds = 600;
    if (settled.start_seconds <= 0) settled.start_seconds = settled.timeout_seconds;
    settled.engine = comm_engine_here(settled.engine);
    if (settled.engine == COMM_LOCAL) {
        if (processes > 1) {
            return error_usage(err, "--engine local: each of the %d processes started would train alone; leave out %s",
                               processes,
                               under_launcher ? "mpirun, or use --engine mpi"
                                              : "torchrun (and RANK, WORLD_SIZE), or use --engine nccl on GPUs");
        }
        return comm_run_local(&settled, rank_main, argument, err);
    }
    if (settled.engine == COMM_NCCL) {
        if (settled.device == NULL) return refuse_processors(settled.ranks, err);
        return comm_run_nccl(&settled, rank_main, argument, err);
    }
    if (!comm_has_mpi()) {
        return error_usage(err, "this program was built without MPI: %s, or build it where MPI is found",
                           under_launcher ? "start it without mpirun (ranks are then threads)" : "use --engine local");
    }
    if (!under_launcher && settled.ranks > 1) {
        return error_usage(
            err, "--engine mpi: start a process for each of the %d ranks (mpirun -np %d), or use --engine local",
            settled.ranks, settled.ranks);
    }
    return comm_run_mpi(&settled, rank_main, argument, err);
}
