// Groups on GPUs by NCCL, of one process or of many. The group in host memory carries the start-up.
//
// Every operation of every group of a rank is begun in its device's STREAM_EXCHANGE, and all ranks make the same calls
// in the same order: so operations of two groups can never wait for each other crosswise, which they could on two
// streams (NCCL's guide, "Using multiple NCCL communicators concurrently"). STREAM_EXCHANGE waits for the work done so
// far before it touches a buffer; the work waits for it in comm_wait, or at the end of a collective.
//
// Sums are not NCCL's, whose order depends on the machine: terms are sent to the rank that sums them
// (comm/exchanges.c). A GPU sends as much as in a ring; but on several machines more of it crosses the network.
#include "comm/collectives.h"

#include <stdlib.h>

#include "comm/device_group.h"

typedef struct Batch { // an exchange under way, or all those of a batch
    struct Batch *next;
    Event *end;
    int waits; // that are still to come
} Batch;

typedef struct CollectiveGroup {
    DeviceGroup group;
    void *member; // of the device's collectives
    Watchdog *dog;
    Event *turn;  // from one stream to the other, at once
    Batch *spare; // to use again
    Batch *batch; // of the one being begun, or NULL
} CollectiveGroup;

static CollectiveGroup *collective_group(Comm *comm) { return (CollectiveGroup *)comm; }
static const CommCollectives *calls(Comm *comm) { return comm->device->collectives; }

static void expect(Comm *comm, bool ok, const Error *err) {
    if (!ok)
        comm_give_up(comm, "rank %d (%s): %s between GPUs failed: %s", comm->world_rank, comm_place_here().text,
                     comm->operation, err->message);
}

// What `later` is told from here on comes after what `earlier` was told so far.
static void follow(Comm *comm, Stream later, Stream earlier) {
    Event *turn = collective_group(comm)->turn;
    comm->device->event_record(comm->device, earlier, turn);
    comm->device->stream_wait(comm->device, later, turn);
}

static void begin_together(Comm *comm) {
    Error err = {0};
    watchdog_enter(collective_group(comm)->dog, comm->operation);
    expect(comm, calls(comm)->begin(&err), &err);
}

static void end_together(Comm *comm) {
    CollectiveGroup *c = collective_group(comm);
    Error err = {0};
    expect(comm, calls(comm)->end(c->member, &err), &err);
    watchdog_leave(c->dog);
}

static void send(Comm *comm, const void *data, size_t bytes, int to) {
    Error err = {0};
    if (bytes > 0) expect(comm, calls(comm)->send(collective_group(comm)->member, data, bytes, to, &err), &err);
}

static void receive(Comm *comm, void *data, size_t bytes, int from) {
    Error err = {0};
    if (bytes > 0) expect(comm, calls(comm)->receive(collective_group(comm)->member, data, bytes, from, &err), &err);
}

static Batch *new_batch(Comm *comm) {
    CollectiveGroup *c = collective_group(comm);
    Batch *batch = c->spare;
    if (batch != NULL) {
        c->spare = batch->next;
        return batch;
    }
    batch = comm_allocate(comm, 1, sizeof *batch);
    batch->end = comm->device->event_create(comm->device);
    return batch;
}

static void free_batch(CollectiveGroup *c, Batch *batch) {
    batch->next = c->spare;
    c->spare = batch;
}

static void collective_batch_begin(Comm *comm) {
    CollectiveGroup *c = collective_group(comm);
    c->batch = new_batch(comm);
    c->batch->waits = 0;
    follow(comm, STREAM_EXCHANGE, STREAM_WORK);
    begin_together(comm);
}

static void collective_batch_end(Comm *comm) {
    CollectiveGroup *c = collective_group(comm);
    end_together(comm);
    comm->device->event_record(comm->device, STREAM_EXCHANGE, c->batch->end);
    if (c->batch->waits == 0) free_batch(c, c->batch);
    c->batch = NULL;
}

static CommRequest collective_exchange_begin(Comm *comm, const void *data, size_t send_bytes, int to, void *into,
                                             size_t receive_bytes, int from) {
    CollectiveGroup *c = collective_group(comm);
    bool alone = c->batch == NULL;
    if (alone) collective_batch_begin(comm);
    Batch *batch = c->batch;
    batch->waits++;
    send(comm, data, send_bytes, to);
    receive(comm, into, receive_bytes, from);
    if (alone) collective_batch_end(comm);
    return (CommRequest){.receive = batch};
}

static void collective_wait(Comm *comm, const CommRequest *request) {
    CollectiveGroup *c = collective_group(comm);
    Batch *batch = request->receive;
    comm->device->stream_wait(comm->device, STREAM_WORK, batch->end);
    if (--batch->waits == 0) free_batch(c, batch);
}

static void collective_all_gather(Comm *comm, void *data, const size_t *bytes) {
    bool even = true;
    for (int rank = 1; rank < comm->size; rank++) even = even && bytes[rank] == bytes[0];
    if (!even) {
        exchanged_all_gather(comm, data, bytes);
        return;
    }
    if (bytes[0] == 0) return;
    Error err = {0};
    follow(comm, STREAM_EXCHANGE, STREAM_WORK);
    begin_together(comm);
    expect(comm, calls(comm)->all_gather(collective_group(comm)->member, data, bytes[0], &err), &err);
    end_together(comm);
    follow(comm, STREAM_WORK, STREAM_EXCHANGE);
}

static void collective_release(Comm *comm) {
    CollectiveGroup *c = collective_group(comm);
    Device *device = comm->device;
    device->synchronize(device); // while the watchdog looks
    watchdog_stop(c->dog);
    comm_host_barrier(comm, "free");
    calls(comm)->leave(c->member);
    for (Batch *batch = c->spare; batch != NULL;) {
        Batch *next = batch->next;
        device->event_release(device, batch->end);
        free(batch);
        batch = next;
    }
    device->event_release(device, c->turn);
    device_group_close(&c->group);
    comm_free_memory(comm);
}

static const CommOperations collective_operations = {
    .on_device = comm_collectives,
    .release = collective_release,
    .reduce_scatter_sum = exchanged_reduce_scatter_sum,
    .all_gather = collective_all_gather,
    .exchange_begin = collective_exchange_begin,
    .wait = collective_wait,
    .batch_begin = collective_batch_begin,
    .batch_end = collective_batch_end,
};

Comm *comm_collectives(Comm *host, Device *device) {
    if (host->size == 1) return comm_peers(host, device); // talks to nobody
    CollectiveGroup *c = comm_allocate(host, 1, sizeof *c);
    Comm *comm = &c->group.base;
    device_group_init(&c->group, &collective_operations, host, device);
    c->turn = device->event_create(device);
    c->dog = watchdog_start(comm);
    CommUniqueId id;
    Error err = {0};
    if (host->rank == 0) expect(comm, calls(comm)->unique_id(&id, &err), &err);
    comm_broadcast(host, &id, sizeof id, 0);
    watchdog_enter(c->dog, comm->operation);
    c->member = calls(comm)->join(device, &id, host->rank, host->size, &err);
    expect(comm, c->member != NULL, &err);
    watchdog_leave(c->dog);
    watchdog_member(c->dog, c->member);
    return comm;
}
