// Engine `mpi`: ranks are processes, on one machine or many.
//
// Everything is built from MPI_Isend, MPI_Irecv and MPI_Test. Blocking calls of MPI spin, and wait for ever; here a
// rank that waits polls, sleeps an eighth of the time it has waited so far (at most a millisecond) between two looks,
// and gives up at the time-out. Sums are taken by the receiver, in the order of ranks, so they have the same bits as
// with ranks as threads.
//
// A group is a list of ranks of MPI_COMM_WORLD and a number, its context, from which the tags of its messages are
// made. A split agrees on a context that no member has seen, so two groups that share two ranks never share a tag.
//
// Ranks on the same machine share a page on which each writes whom it waits for and what it is doing, for the
// time-out's message, and on which the first to fail says so, so that one line is printed and not many.
#include "comm/pairwise.h"

#ifdef HAVE_MPI

#include <math.h>
#include <mpi.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const size_t LARGEST_MESSAGE = (size_t)1 << 30;         // bytes; MPI counts with an int
static const double LONGEST_PAUSE = 1e-3, LONGEST_STEP = 0.25; // seconds

typedef struct Status { // a rank's lines on its machine's page
    atomic_int failed;  // only the first rank's counts
    atomic_int awaits;
    char operation[24], doing[96]; // read by others only when giving up; half a word would do no harm
} Status;

typedef struct Place { // "process 1234 on host"
    char name[80];
} Place;

typedef struct World {
    int size;
    double timeout;
    int next_context, largest_tag;
    MPI_Win page;
    Status **status; // (size): NULL for ranks on other machines
    Status *mine;
    atomic_int *failed; // of this machine
    Place *place;       // (size)
} World;

typedef struct MpiComm {
    Comm base;
    World *world;
    int context;
    int member[]; // (size): ranks of the world
} MpiComm;

typedef enum Stream { EXCHANGES, COLLECTIVES, STREAMS } Stream; // messages of the two are matched apart

typedef struct Transfer { // one side of a message, in as many pieces as its size demands
    bool receives;
    int peer;
    size_t bytes;
    int pieces;
    MPI_Request request[];
} Transfer;

static MpiComm *mpi(Comm *comm) { return (MpiComm *)comm; }

// ---- failing ------------------------------------------------------------------------------------------------------

static void write_text(char *to, size_t size, const char *text) {
    size_t length = text != NULL ? strnlen(text, size - 1) : 0;
    if (length > 0) memcpy(to, text, length);
    to[length] = '\0';
}

static void mpi_doing(Comm *comm, const char *what) {
    Status *mine = mpi(comm)->world->mine;
    write_text(mine->doing, sizeof mine->doing, what);
}

static const char *mpi_said(Comm *comm) { return mpi(comm)->world->mine->doing; }

static void sleep_for(double seconds) {
    struct timespec pause = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
    nanosleep(&pause, NULL);
}

// The first rank of a machine speaks; the others leave it a few seconds to end them.
static void end_all(Comm *comm, const Error *err) __attribute__((noreturn));
static void end_all(Comm *comm, const Error *err) {
    int code = err->exit_code ? err->exit_code : EXIT_RUNTIME;
    if (atomic_exchange(mpi(comm)->world->failed, 1) == 0) comm_print_failure(err);
    else sleep_for(5);
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

static void *allocate(MpiComm *c, size_t bytes) {
    void *memory = calloc(1, bytes > 0 ? bytes : 1);
    if (memory == NULL) comm_give_up(&c->base, "out of memory: %zu bytes for %s", bytes, c->base.operation);
    return memory;
}

static CommStanding standing(const void *pointer, int rank) {
    const World *world = pointer;
    CommStanding seen = {COMM_WORKING, "", NULL, world->place[rank].name};
    const Status *status = world->status[rank];
    if (status != NULL) {
        seen.awaits = atomic_load(&status->awaits);
        seen.operation = status->operation;
        seen.doing = status->doing;
    }
    return seen;
}

static void fail_for_silence(MpiComm *c, double seconds) {
    Error err;
    comm_silence_error(&err, standing, c->world, c->world->size, c->member[c->base.rank], seconds);
    end_all(&c->base, &err);
}

// ---- transfers ----------------------------------------------------------------------------------------------------

static int tag_of(const MpiComm *c, Stream stream) { return c->context * STREAMS + (int)stream; }

static Transfer *start(MpiComm *c, bool receives, void *data, size_t bytes, int peer, Stream stream) {
    int pieces = bytes == 0 ? 1 : (int)((bytes + LARGEST_MESSAGE - 1) / LARGEST_MESSAGE); // an empty message is one too
    Transfer *transfer = allocate(c, sizeof *transfer + (size_t)pieces * sizeof transfer->request[0]);
    *transfer = (Transfer){.receives = receives, .peer = peer, .bytes = bytes, .pieces = pieces};
    for (int i = 0; i < pieces; i++) {
        size_t begin = (size_t)i * LARGEST_MESSAGE;
        int count = (int)(bytes - begin < LARGEST_MESSAGE ? bytes - begin : LARGEST_MESSAGE);
        char *piece = (char *)data + begin;
        MPI_Request *request = &transfer->request[i];
        int other = c->member[peer], tag = tag_of(c, stream);
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
    Status *mine = c->world->mine;
    bool finished = atomic_load(&mine->awaits) == COMM_FINISHED; // stays so at the last barrier
    write_text(mine->operation, sizeof mine->operation, c->base.operation);
    if (!finished) atomic_store(&mine->awaits, c->member[peer]);
    CommPatience patience = comm_patience(LONGEST_STEP);
    while (!arrived(c, request, peer, status)) {
        double waited = comm_patience_spent(&patience);
        if (waited >= c->world->timeout) fail_for_silence(c, waited);
        sleep_for(waited / 8 < LONGEST_PAUSE ? waited / 8 : LONGEST_PAUSE);
    }
    if (!finished) atomic_store(&mine->awaits, COMM_WORKING);
}

static void finish(MpiComm *c, Transfer *transfer) {
    if (transfer == NULL) return;
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
}

static CommRequest mpi_exchange_begin(Comm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                      size_t receive_bytes, int from) {
    CommRequest request = {NULL, NULL};
    if (receive_bytes > 0) request.receive = start(mpi(comm), true, receive, receive_bytes, from, EXCHANGES);
    if (send_bytes > 0) request.send = start(mpi(comm), false, (void *)send, send_bytes, to, EXCHANGES);
    return request;
}

static void mpi_wait(Comm *comm, const CommRequest *request) {
    finish(mpi(comm), request->receive);
    finish(mpi(comm), request->send);
}

// ---- messages of collectives (comm/pairwise.c) --------------------------------------------------------------------

static void *message_begin(Comm *comm, bool receives, void *data, size_t bytes, int peer) {
    return start(mpi(comm), receives, data, bytes, peer, COLLECTIVES);
}

static void message_end(Comm *comm, void *message) { finish(mpi(comm), message); }

// ---- groups -------------------------------------------------------------------------------------------------------

static const CommOperations mpi_operations;

static MpiComm *new_comm(World *world, int rank, int size, int context) { // NULL: out of memory
    MpiComm *c = calloc(1, sizeof *c + (size_t)size * sizeof c->member[0]);
    if (c == NULL) return NULL;
    c->base = (Comm){.operations = &mpi_operations,
                     .rank = rank,
                     .world_rank = rank,
                     .size = size,
                     .timeout = world->timeout,
                     .operation = "start"};
    c->world = world;
    c->context = context;
    return c;
}

static void mpi_release(Comm *comm) { free(comm); }

// The number of a group is its context.
static Comm *mpi_split(Comm *comm, int color, int key) {
    MpiComm *parent = mpi(comm);
    World *world = parent->world;
    PairwiseSplit split = pairwise_split(comm, color, key, &world->next_context);
    if (split.number >= world->largest_tag / STREAMS) comm_give_up(comm, "more groups of ranks than MPI has tags for");
    MpiComm *made = new_comm(world, split.rank, split.size, split.number);
    if (made == NULL) comm_give_up(comm, "out of memory for a group of %d ranks", split.size);
    for (int i = 0; i < split.size; i++) made->member[i] = parent->member[split.members[i]];
    free(split.members);
    return &made->base;
}

static const CommOperations mpi_operations = {
    .split = mpi_split,
    .release = mpi_release,
    .doing = mpi_doing,
    .said = mpi_said,
    .end_all = end_all,
    .barrier = pairwise_barrier,
    .broadcast = pairwise_broadcast,
    .all_reduce_sum = pairwise_all_reduce_sum,
    .reduce_scatter_sum = pairwise_reduce_scatter_sum,
    .all_gather = pairwise_all_gather,
    .exchange_begin = mpi_exchange_begin,
    .wait = mpi_wait,
    .message_begin = message_begin,
    .message_end = message_end,
};

// ---- processes ----------------------------------------------------------------------------------------------------

// Lays out the page that the ranks of this machine share. Blocking, but all ranks have just started.
static bool open_page(World *world, int world_rank, Status *alone) {
    MPI_Comm machine;
    int size;
    if (MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine) != MPI_SUCCESS)
        return false;
    MPI_Comm_set_errhandler(machine, MPI_ERRORS_RETURN);
    MPI_Comm_size(machine, &size);
    bool shared =
        MPI_Win_allocate_shared(sizeof(Status), 1, MPI_INFO_NULL, machine, &world->mine, &world->page) == MPI_SUCCESS;
    if (!shared) { // no room for shared memory: each keeps its lines to itself
        world->page = MPI_WIN_NULL;
        world->mine = alone;
    }
    memset(world->mine, 0, sizeof *world->mine);
    atomic_store(&world->mine->awaits, COMM_WORKING);
    world->failed = &world->mine->failed;
    world->status[world_rank] = world->mine;
    MPI_Group everyone, neighbours;
    MPI_Comm_group(MPI_COMM_WORLD, &everyone);
    MPI_Comm_group(machine, &neighbours);
    for (int i = 0; shared && i < size; i++) {
        MPI_Aint bytes;
        int unit, its_rank;
        Status *status;
        MPI_Win_shared_query(world->page, i, &bytes, &unit, &status);
        MPI_Group_translate_ranks(neighbours, 1, &i, everyone, &its_rank);
        world->status[its_rank] = status;
        if (i == 0) world->failed = &status->failed;
    }
    MPI_Group_free(&everyone);
    MPI_Group_free(&neighbours);
    return MPI_Barrier(machine) == MPI_SUCCESS && MPI_Comm_free(&machine) == MPI_SUCCESS;
}

static void gather_places(MpiComm *c) {
    char host[MPI_MAX_PROCESSOR_NAME] = "";
    int length;
    size_t size = (size_t)c->base.size, *bytes = allocate(c, size * sizeof *bytes);
    MPI_Get_processor_name(host, &length);
    snprintf(c->world->place[c->base.rank].name, sizeof(Place), "process %ld on %.48s", (long)getpid(), host);
    for (size_t rank = 0; rank < size; rank++) bytes[rank] = sizeof(Place);
    if (size > 1) pairwise_all_gather(&c->base, c->world->place, bytes);
    free(bytes);
}

static bool run_rank(World *world, int rank, void (*rank_main)(Comm *, void *), void *argument, Error *err) {
    int *largest_tag, found;
    if (MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &largest_tag, &found) != MPI_SUCCESS || !found) {
        return error_set(err, "MPI does not say how many tags it has");
    }
    world->largest_tag = *largest_tag;
    world->next_context = 1;
    MpiComm *c = new_comm(world, rank, world->size, 0);
    if (c == NULL) return error_set(err, "out of memory for %d ranks", world->size);
    for (int i = 0; i < world->size; i++) c->member[i] = i;
    gather_places(c);
    rank_main(&c->base, argument);
    atomic_store(&world->mine->awaits, COMM_FINISHED);
    c->base.operation = "end";
    world->timeout = HUGE_VAL; // one rank may have a long last word; threads are joined without a time-out too
    if (world->size > 1) pairwise_barrier(&c->base);
    free(c);
    return true;
}

static bool run_in_world(const CommLaunch *launch, void (*rank_main)(Comm *, void *), void *argument, Error *err) {
    World world = {.timeout = launch->timeout_seconds, .page = MPI_WIN_NULL};
    Status alone;
    int rank;
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
    world.status = calloc((size_t)world.size, sizeof *world.status);
    world.place = calloc((size_t)world.size, sizeof *world.place);
    bool ok = world.status != NULL && world.place != NULL;
    if (!ok) error_set(err, "out of memory for %d ranks", world.size);
    if (ok && !open_page(&world, rank, &alone)) ok = error_set(err, "MPI failed to set up its ranks");
    if (ok) ok = run_rank(&world, rank, rank_main, argument, err);
    if (world.page != MPI_WIN_NULL) MPI_Win_free(&world.page);
    free(world.place);
    free(world.status);
    return ok;
}

bool comm_run_mpi(const CommLaunch *launch, void (*rank_main)(Comm *, void *), void *argument, Error *err) {
    int level;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level) != MPI_SUCCESS)
        return error_set(err, "MPI does not start");
    bool ok = level >= MPI_THREAD_FUNNELED ? run_in_world(launch, rank_main, argument, err)
                                           : error_set(err, "this MPI cannot serve programs with threads");
    if (MPI_Finalize() != MPI_SUCCESS && ok) ok = error_set(err, "MPI does not end");
    return ok;
}

#else // built without MPI; comm_run says so before it comes here

bool comm_run_mpi(const CommLaunch *launch, void (*rank_main)(Comm *, void *), void *argument, Error *err) {
    (void)launch, (void)rank_main, (void)argument;
    return error_usage(err, "this program was built without MPI");
}

#endif
