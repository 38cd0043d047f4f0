// Engine `mpi`: ranks are processes, on one machine or many.
//
// Everything is built from MPI_Isend, MPI_Irecv and MPI_Test. Blocking calls of MPI spin, and wait for ever; here a
// rank that waits polls, sleeps an eighth of the time it has waited so far (at most a millisecond) between two looks,
// and gives up at the time-out. The tags of a group's messages are made from its number, its context, which no member
// has had before. Whom each rank waits for and what it is doing stands in a table (comm/status.h).
#include "comm/process_group.h"

#ifdef HAVE_MPI

#include <math.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/deadline.h"
#include "base/pulse.h"
#include "comm/status.h"

static const size_t LARGEST_MESSAGE = (size_t)1 << 30;                                // bytes; MPI counts with an int
static const double SHORTEST_PAUSE = 1e-7, LONGEST_PAUSE = 1e-3, LONGEST_STEP = 0.25; // seconds

typedef struct World {
    int size;
    double timeout;
    int next_context, largest_tag;
    StatusTable table;
    ProcessGroup *all, *end; // all ranks; the same, for the barrier at their end alone
    Deadline *deadline;
} World;

typedef ProcessGroup MpiComm; // its number is its context

enum { MESSAGES, STATUS, TAGS }; // what each group has tags for

typedef struct Transfer { // one side of a message, in as many pieces as its size demands
    bool receives;
    int peer;
    size_t bytes;
    int pieces;
    MPI_Request request[];
} Transfer;

static MpiComm *mpi(Comm *comm) { return process_group(comm); }
static World *world_of(MpiComm *c) { return c->world; }

static void mpi_doing(Comm *comm, const char *what, bool slowly) {
    (void)slowly; // its signs of life are seen
    status_say(&world_of(mpi(comm))->table, what);
}
static const char *mpi_said(Comm *comm) { return world_of(mpi(comm))->table.mine->doing; }
static int64_t mpi_moved(Comm *comm) { return status_moved(&world_of(mpi(comm))->table); }

// The first rank of a machine speaks; the others leave it a few seconds to end them.
static void end_all(Comm *comm, const Error *err) __attribute__((noreturn));
static void end_all(Comm *comm, const Error *err) {
    int code = err->exit_code ? err->exit_code : EXIT_RUNTIME;
    if (atomic_exchange(world_of(mpi(comm))->table.failed, 1) == 0) error_print(err);
    else clock_sleep(5);
    MPI_Abort(MPI_COMM_WORLD, code);
    _exit(code);
}

static void check(MpiComm *c, int code, int peer) {
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length;
    MPI_Error_string(code, text, &length);
    comm_give_up(&c->base, "MPI failed in %s between ranks %d and %d: %s", c->base.operation, c->member[c->base.rank],
                 c->member[peer], text);
}

static void fail_for_silence(MpiComm *c, double seconds) {
    Error err;
    comm_silence_error(&err, status_of_rank, &world_of(c)->table, world_of(c)->size, c->member[c->base.rank], seconds);
    end_all(&c->base, &err);
}

static void beat(void *pointer) {
    World *world = pointer;
    check(world->all, status_beat(&world->table), world->all->base.rank);
}

static int tag_of(const MpiComm *c, int kind) { return c->number * TAGS + kind; }

static Transfer *start(MpiComm *c, bool receives, void *data, size_t bytes, int peer) {
    int pieces = (int)((bytes + LARGEST_MESSAGE - 1) / LARGEST_MESSAGE);
    Transfer *transfer = comm_allocate(&c->base, 1, sizeof *transfer + (size_t)pieces * sizeof transfer->request[0]);
    *transfer = (Transfer){.receives = receives, .peer = peer, .bytes = bytes, .pieces = pieces};
    for (int i = 0; i < pieces; i++) {
        size_t begin = (size_t)i * LARGEST_MESSAGE;
        int count = (int)(bytes - begin < LARGEST_MESSAGE ? bytes - begin : LARGEST_MESSAGE);
        char *piece = (char *)data + begin;
        MPI_Request *request = &transfer->request[i];
        int other = c->member[peer], tag = tag_of(c, MESSAGES);
        check(c,
              receives ? MPI_Irecv(piece, count, MPI_BYTE, other, tag, MPI_COMM_WORLD, request)
                       : MPI_Isend(piece, count, MPI_BYTE, other, tag, MPI_COMM_WORLD, request),
              peer);
    }
    return transfer;
}

static bool arrived(MpiComm *c, MPI_Request *request, int peer, MPI_Status *status) {
    int flag = 0;
    check(c, MPI_Test(request, &flag, status), peer);
    return flag;
}

static void wait_for_request(MpiComm *c, MPI_Request *request, int peer, MPI_Status *status) {
    if (arrived(c, request, peer, status)) return;
    double timeout = world_of(c)->timeout, pause = 0;
    StatusTable *table = &world_of(c)->table;
    Timer timer = timer_start(LONGEST_STEP);
    check(c, status_wait(table, c->member[peer], c->base.operation), peer);
    while (!arrived(c, request, peer, status)) {
        timer_elapsed(&timer);
        if (comm_timer_look_due(&timer, timeout)) {
            uint64_t state;
            check(c, status_chain(table, &state), peer);
            comm_timer_saw(&timer, state);
        }
        if (timer.waited >= timeout) fail_for_silence(c, timer.waited);
        check(c, status_look(table), peer);
        pause = pause == 0 ? SHORTEST_PAUSE : pause * 1.125;
        if (pause > LONGEST_PAUSE) pause = LONGEST_PAUSE;
        clock_sleep(pause);
    }
    check(c, status_beat(table), peer);
}

static void finish(MpiComm *c, Transfer *transfer) {
    size_t bytes = 0;
    for (int i = 0; i < transfer->pieces; i++) {
        MPI_Status status;
        int count = 0;
        wait_for_request(c, &transfer->request[i], transfer->peer, &status);
        if (transfer->receives) check(c, MPI_Get_count(&status, MPI_BYTE, &count), transfer->peer);
        bytes += (size_t)count;
    }
    if (transfer->receives && bytes != transfer->bytes) {
        comm_sizes_error(&c->base, c->member[transfer->peer], c->member[c->base.rank], bytes, transfer->bytes);
    }
    free(transfer);
    pulse_beat();
}

static CommRequest mpi_exchange_begin(Comm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                      size_t receive_bytes, int from) {
    CommRequest request = {NULL, NULL};
    if (receive_bytes > 0) request.receive = start(mpi(comm), true, receive, receive_bytes, from);
    if (send_bytes > 0) request.send = start(mpi(comm), false, (void *)(uintptr_t)send, send_bytes, to);
    return request;
}

static void mpi_wait(Comm *comm, const CommRequest *request) {
    if (request->receive != NULL) finish(mpi(comm), request->receive);
    if (request->send != NULL) finish(mpi(comm), request->send);
}

static Comm *mpi_group(Comm *comm, const int *members, int size, int rank, int number) {
    if (number >= world_of(mpi(comm))->largest_tag / TAGS)
        comm_give_up(comm, "more groups of ranks than MPI has tags for");
    return process_group_of(comm, members, size, rank, number);
}

static const CommOperations mpi_operations = {
    .group = mpi_group,
    .release = comm_free_memory,
    .set_activity = mpi_doing,
    .activity = mpi_said,
    .heartbeats = mpi_moved,
    .end_all = end_all,
    .barrier = exchanged_barrier,
    .broadcast = exchanged_broadcast,
    .all_reduce_sum = exchanged_all_reduce_sum,
    .reduce_scatter_sum = exchanged_reduce_scatter_sum,
    .all_gather = exchanged_all_gather,
    .exchange_begin = mpi_exchange_begin,
    .wait = mpi_wait,
};

// The last barrier has the time-out too: a rank with a long last word gives signs of life.
static void run_rank(World *world, void (*rank_main)(Comm *, void *), void *argument) {
    MpiComm *c = world->all;
    deadline_set(world->deadline, HUGE_VAL, "");
    pulse_connect(beat, world);
    rank_main(&c->base, argument);
    world->end->base.operation = "end";
    atomic_store(&world->table.mine->finished, 1);
    if (world->size > 1) exchanged_barrier(&world->end->base);
    pulse_connect(NULL, NULL);
    deadline_set(world->deadline, world->timeout, "end");
}

static bool run_in_world(const CommLaunch *launch, Deadline *deadline, void (*rank_main)(Comm *, void *),
                         void *argument, Error *err) {
    World world = {.timeout = launch->timeout_seconds, .next_context = 2, .deadline = deadline};
    int rank, *largest_tag, found;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world.size);
    if (comm_process_count() > world.size) {
        return error_usage(err,
                           "%d processes were started, but this MPI sees %d: start them with its own mpirun (or srun "
                           "--mpi=pmix)",
                           comm_process_count(), world.size);
    }
    if (world.size != launch->ranks) {
        return error_usage(err,
                           "--sp x --dp = %d ranks, but %d process%s started: use mpirun -np %d, or change --sp, --dp",
                           launch->ranks, world.size, world.size == 1 ? " was" : "es were", launch->ranks);
    }
    if (MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &largest_tag, &found) != MPI_SUCCESS || !found)
        return error_set(err, "MPI does not say how many tags it has");
    world.largest_tag = *largest_tag;
    world.all = process_group_new(&mpi_operations, &world, world.timeout, &world.next_context, rank, world.size);
    world.end = process_group_new(&mpi_operations, &world, world.timeout, &world.next_context, rank, world.size);
    if (world.all == NULL || world.end == NULL) return error_set(err, "out of memory for %d ranks", world.size);
    world.end->number = 1;
    bool ok = status_open(&world.table, rank, world.size, tag_of(world.all, STATUS), world.timeout);
    if (ok) run_rank(&world, rank_main, argument);
    ok = (ok && status_close(&world.table)) ||
         error_set(err, "MPI fails between %d ranks, or memory is short", world.size);
    comm_free_memory(&world.all->base);
    comm_free_memory(&world.end->base);
    return ok;
}

bool comm_run_mpi(const CommLaunch *launch, void (*rank_main)(Comm *, void *), void *argument, Error *err) {
    int level;
    Deadline *deadline = deadline_start(comm_process_rank(), err);
    if (deadline == NULL) return false;
    deadline_set(deadline, launch->start_seconds, "start");
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level) != MPI_SUCCESS) {
        deadline_stop(deadline);
        return error_set(err, "MPI does not start");
    }
    bool ok = level >= MPI_THREAD_FUNNELED ? run_in_world(launch, deadline, rank_main, argument, err)
                                           : error_set(err, "this MPI cannot serve programs with threads");
    if (MPI_Finalize() != MPI_SUCCESS && ok) ok = error_set(err, "MPI does not end");
    deadline_stop(deadline);
    return ok;
}

#else // built without MPI; comm_run says so before it comes here

bool comm_run_mpi(const CommLaunch *launch, void (*rank_main)(Comm *, void *), void *argument, Error *err) {
    (void)launch, (void)rank_main, (void)argument;
    return error_usage(err, "this program was built without MPI");
}

#endif
