// Starting ranks: which engine, and whether it can serve what was asked.
#include <string.h>

#include "comm/engine.h"

bool comm_engine_from_name(const char *name, CommEngine *engine) {
    static const char *const names[] = {
        [COMM_AUTO] = "auto", [COMM_LOCAL] = "local", [COMM_MPI] = "mpi", [COMM_SOCKETS] = "sockets"};
    for (int i = 0; i < (int)(sizeof names / sizeof names[0]); i++) {
        if (strcmp(name, names[i]) == 0) {
            *engine = (CommEngine)i;
            return true;
        }
    }
    return false;
}

static CommEngine settle(CommEngine engine) {
    if (engine != COMM_AUTO) return engine;
    bool sockets = comm_sockets_meant();
    if (comm_launched_by_mpi() && (comm_has_mpi() || !sockets)) return COMM_MPI;
    return sockets ? COMM_SOCKETS : COMM_LOCAL;
}

bool comm_ranks_are_processes(CommEngine engine) { return settle(engine) != COMM_LOCAL; }

bool comm_run(const CommLaunch *launch, void (*rank_main)(Comm *world, void *argument), void *argument, Error *err) {
    CommLaunch settled = *launch;
    bool under_launcher = comm_launched_by_mpi();
    int processes = comm_process_count();
    if (settled.ranks < 1)
        return error_usage(err, "%d ranks asked for: --sp and --dp must be at least 1", settled.ranks);
    if (settled.timeout_seconds <= 0) settled.timeout_seconds = 600;
    if (settled.start_seconds <= 0) settled.start_seconds = settled.timeout_seconds;
    settled.engine = settle(settled.engine);
    if (settled.engine == COMM_LOCAL) {
        if (processes > 1) {
            return error_usage(err, "--engine local: each of the %d processes started would train alone; leave out %s",
                               processes,
                               under_launcher ? "mpirun, or use --engine mpi"
                                              : "torchrun (and RANK, WORLD_SIZE), or use --engine sockets");
        }
        return comm_run_local(&settled, rank_main, argument, err);
    }
    if (settled.engine == COMM_SOCKETS) return comm_run_sockets(&settled, rank_main, argument, err);
    if (!comm_has_mpi()) {
        return error_usage(err, "this program was built without MPI: %s, or build it where MPI is found",
                           under_launcher
                               ? "start it without mpirun (ranks are then threads), or set MASTER_ADDR and MASTER_PORT"
                               : "use --engine local");
    }
    if (!under_launcher && settled.ranks > 1) {
        return error_usage(
            err, "--engine mpi: start a process for each of the %d ranks (mpirun -np %d), or use --engine local",
            settled.ranks, settled.ranks);
    }
    return comm_run_mpi(&settled, rank_main, argument, err);
}
