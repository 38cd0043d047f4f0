// Engine `nccl`: ranks are processes, each with a GPU of its own, and NCCL alone connects them. It starts by itself
// where every process knows one address: with NCCL_COMM_ID in the environment, all get the same id, and rank 0 listens
// there until all have come ("NCCL Environment Variables").
//
// What ranks say to each other from host memory goes by way of a small buffer on the GPU. A message is only noted where
// it is begun; the first wait hands all that are noted to NCCL together, in STREAM_EXCHANGE like everything else
// between GPUs (comm/collectives.c), so that none of them can wait for another. There are no tags: what two ranks say
// to each other, in whatever group, is matched in the order begun.
//
// A rank polls for the end of its operation, and gives up at the time-out or when NCCL reports an error, as it does
// when another process has gone. Signs of life of other ranks cannot be seen: see comm_doing_slowly.
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/deadline.h"
#include "base/launcher.h"
#include "base/pulse.h"
#include "comm/collectives.h"
#include "comm/device_group.h"
#include "comm/process_group.h"
#include "layers/device.h"

static const size_t BUFFER_BYTES = 1 << 20, ALIGNMENT = 256;
static const double SHORTEST_PAUSE = 1e-6, LONGEST_PAUSE = 1e-3, LONGEST_STEP = 0.25, SLOW = 10; // s, s, s, time-outs

typedef struct Message {  // one side of it
    struct Message *next; // of those pending
    bool receives, pending;
    int peer; // rank of the world
    void *data;
    size_t bytes;
    char *on_device;
    bool own_memory; // on_device is not in the buffer
} Message;

typedef struct World {
    Device *device;
    void *member; // of NCCL's communicator of all ranks
    CommPlace place;
    Event *before, *behind; // the operations under way
    char *buffer;           // on the device
    size_t used;
    Message *first, *last; // pending, in the order begun
    double timeout;
    Deadline *deadline; // for calls that connect with other ranks; NULL: none
    _Atomic(const char *) doing;
    _Atomic double slow_until; // another rank may be, as the ranks said
    bool slow_work_over;       // this rank's, at least: the others' is when an operation has ended
    atomic_llong beats;        // signs of life of this rank
} World;

static World *world_of(Comm *comm) { return process_group(comm)->world; }
static const CommCollectives *calls(const World *world) { return world->device->collectives; }

static void nccl_doing(Comm *comm, const char *what, bool slowly) {
    World *world = world_of(comm);
    atomic_store(&world->doing, what);
    world->slow_work_over = !slowly;
    if (slowly) atomic_store(&world->slow_until, clock_seconds() + SLOW * world->timeout);
}

static const char *nccl_said(Comm *comm) { return atomic_load(&world_of(comm)->doing); }
static void beat(void *world) { atomic_fetch_add(&((World *)world)->beats, 1); }

static bool is_slow(World *world) { return clock_seconds() < atomic_load(&world->slow_until); }

// While another rank may be slow, it is taken to give signs of life.
static int64_t nccl_moved(Comm *comm) {
    World *world = world_of(comm);
    if (is_slow(world)) beat(world);
    return atomic_load(&world->beats);
}

// NCCL and the launcher find that this process has gone, and end the others.
static void end_all(Comm *comm, const Error *err) __attribute__((noreturn));
static void end_all(Comm *comm, const Error *err) {
    (void)comm;
    error_print(err);
    _exit(err->exit_code ? err->exit_code : EXIT_RUNTIME);
}

static void expect(Comm *comm, bool ok, const Error *err) {
    if (ok) return;
    // The process whose end this follows from speaks first, and the launcher may end this one.
    clock_sleep(comm->timeout < 4 ? comm->timeout / 2 : 2);
    comm_give_up(comm, "rank %d (%s): %s failed (doing: %s): %s", comm->world_rank, world_of(comm)->place.text,
                 comm->operation, comm_activity(comm), err->message);
}

static Message *post(Comm *comm, bool receives, void *data, size_t bytes, int peer) {
    World *world = world_of(comm);
    Message *message = comm_allocate(comm, 1, sizeof *message);
    *message = (Message){NULL, receives, true, process_group(comm)->member[peer], data, bytes, NULL, false};
    size_t room = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    message->own_memory = room > BUFFER_BYTES - world->used;
    if (message->own_memory) {
        Error err = {0};
        message->on_device = world->device->allocate(world->device, room, &err);
        if (message->on_device == NULL) comm_fail(comm, &err);
    } else {
        message->on_device = world->buffer + world->used;
        world->used += room;
    }
    if (world->first == NULL) world->first = message;
    else world->last->next = message;
    world->last = message;
    return message;
}

static void hand_over(Comm *comm) {
    World *world = world_of(comm);
    Device *device = world->device;
    Error err = {0};
    for (Message *m = world->first; m != NULL; m = m->next)
        if (!m->receives) device->upload(device, m->on_device, m->data, m->bytes);
    device->event_record(device, STREAM_WORK, world->before);
    device->stream_wait(device, STREAM_EXCHANGE, world->before);
    device->event_record(device, STREAM_EXCHANGE, world->before);
    if (world->deadline != NULL) // it may be the first time that this rank talks to another
        deadline_set(world->deadline, (is_slow(world) ? SLOW : 1) * world->timeout, comm->operation);
    expect(comm, calls(world)->begin(&err), &err);
    for (Message *m = world->first; m != NULL; m = m->next)
        expect(comm,
               m->receives ? calls(world)->receive(world->member, m->on_device, m->bytes, m->peer, &err)
                           : calls(world)->send(world->member, m->on_device, m->bytes, m->peer, &err),
               &err);
    expect(comm, calls(world)->end(world->member, &err), &err);
    if (world->deadline != NULL) deadline_set(world->deadline, HUGE_VAL, "");
    device->event_record(device, STREAM_EXCHANGE, world->behind);
}

// What the device was told before is not waited for with a time-out here: it may be long, and who told it watches it.
static void wait_until_over(Comm *comm) {
    World *world = world_of(comm);
    Device *device = world->device;
    Timer timer = timer_start(LONGEST_STEP);
    bool begun = false;
    int64_t moved = nccl_moved(comm);
    for (double pause = SHORTEST_PAUSE; !device->event_done(device, world->behind); pause *= 1.125) {
        Error err = {0};
        expect(comm, calls(world)->sound(world->member, &err), &err);
        begun = begun || device->event_done(device, world->before);
        int64_t now = nccl_moved(comm);
        if (!begun || now != moved) timer = timer_start(LONGEST_STEP);
        moved = now;
        if (timer_elapsed(&timer) > world->timeout) {
            comm_give_up(comm,
                         "rank %d (%s): %s has not ended for %.3g s (doing: %s): another rank hangs or has gone, or "
                         "allow more time with --timeout",
                         comm->world_rank, world->place.text, comm->operation, timer.waited, comm_activity(comm));
        }
        if (pause > LONGEST_PAUSE) pause = LONGEST_PAUSE;
        clock_sleep(pause);
    }
}

static void carry_out_all(Comm *comm) {
    World *world = world_of(comm);
    Device *device = world->device;
    hand_over(comm);
    wait_until_over(comm);
    for (Message *m = world->first, *next; m != NULL; m = next) {
        next = m->next; // whoever waits for it may free it from now on
        if (m->receives) device->download(device, m->data, m->on_device, m->bytes);
        if (m->own_memory) device->release(device, m->on_device, (m->bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
        m->pending = false;
    }
    world->first = world->last = NULL;
    world->used = 0;
    if (world->slow_work_over) atomic_store(&world->slow_until, 0);
    beat(world);
}

static CommRequest nccl_exchange_begin(Comm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                       size_t receive_bytes, int from) {
    CommRequest request = {NULL, NULL};
    if (receive_bytes > 0) request.receive = post(comm, true, receive, receive_bytes, from);
    if (send_bytes > 0) request.send = post(comm, false, (void *)(uintptr_t)send, send_bytes, to);
    return request;
}

static void nccl_wait(Comm *comm, const CommRequest *request) {
    Message *messages[] = {request->receive, request->send};
    for (int i = 0; i < 2; i++) {
        if (messages[i] != NULL && messages[i]->pending) carry_out_all(comm);
        free(messages[i]);
    }
}

static const CommOperations nccl_operations = {
    .group = process_group_of,
    .release = comm_free_memory,
    .set_activity = nccl_doing,
    .activity = nccl_said,
    .heartbeats = nccl_moved,
    .end_all = end_all,
    .barrier = exchanged_barrier,
    .broadcast = exchanged_broadcast,
    .all_reduce_sum = exchanged_all_reduce_sum,
    .reduce_scatter_sum = exchanged_reduce_scatter_sum,
    .all_gather = exchanged_all_gather,
    .exchange_begin = nccl_exchange_begin,
    .wait = nccl_wait,
};

static void free_world(World *world) {
    Device *device = world->device;
    if (world->member != NULL) calls(world)->leave(world->member);
    if (world->before != NULL) device->event_release(device, world->before);
    if (world->behind != NULL) device->event_release(device, world->behind);
    if (world->buffer != NULL) device->release(device, world->buffer, BUFFER_BYTES);
    free(world);
}

Comm *nccl_open(Device *device, const char *address, int rank, int size, double timeout, Error *err) {
    World *world = calloc(1, sizeof *world);
    ProcessGroup *all = world != NULL ? process_group_new(&nccl_operations, world, timeout, NULL, rank, size) : NULL;
    CommUniqueId id;
    if (all == NULL) {
        free(world);
        error_set(err, "out of memory for %d ranks", size);
        return NULL;
    }
    world->place = comm_place_here();
    world->device = device;
    world->timeout = timeout;
    world->buffer = device->allocate(device, BUFFER_BYTES, err);
    bool ok = world->buffer != NULL && calls(world)->unique_id_of(address, &id, err);
    if (ok) world->member = calls(world)->join(device, &id, rank, size, err);
    ok = ok && world->member != NULL;
    if (!ok) {
        free_world(world);
        free(all);
        return NULL;
    }
    world->before = device->event_create(device);
    world->behind = device->event_create(device);
    return &all->base;
}

void nccl_close(Comm *all) {
    World *world = world_of(all);
    all->operation = "end";
    if (all->size > 1) exchanged_barrier(all);
    free_world(world);
    comm_free_memory(all);
}

bool comm_run_nccl(const CommLaunch *launch, void (*rank_main)(Comm *, void *), void *argument, Error *err) {
    Device *device = launch->device;
    MeetingPlace place;
    if (!launcher_meeting_place(&place, launch->ranks, err)) return false;
    if (device->collectives == NULL || !device->collectives->available())
        return error_set(err, "--engine nccl: NCCL is not installed here (libnccl.so.2); install it, or start one "
                              "process without a launcher: ranks are then threads");
    Deadline *deadline = deadline_start(comm_process_rank(), err);
    if (deadline == NULL) return false;
    deadline_set(deadline, launch->start_seconds, "start");
    setenv("NCCL_COMM_ID", place.address, 1); // rank 0 listens there as it joins
    Comm *all = nccl_open(device, place.address, place.rank, place.size, launch->timeout_seconds, err);
    unsetenv("NCCL_COMM_ID"); // groups made later have ids of their own
    if (all == NULL) {
        deadline_stop(deadline);
        return false;
    }
    deadline_set(deadline, HUGE_VAL, "");
    world_of(all)->deadline = deadline;
    pulse_connect(beat, world_of(all));
    rank_main(all, argument);
    pulse_connect(NULL, NULL);
    nccl_close(all);
    deadline_stop(deadline);
    return true;
}
