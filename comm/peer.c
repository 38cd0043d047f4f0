// Groups on devices of one process: ranks are threads, and a message is one copy from memory to memory, which both
// devices can reach. So nothing need be installed, and several ranks may share a GPU.
//
// Nothing here waits for a device. The host threads only meet (comm/local.h) and tell their devices what waits for
// what: a rank records an event where its buffer is ready, whoever copies makes its stream wait for that event, copies
// and records another, and whoever owns a buffer makes its work wait for that one. Every wait is for an event recorded
// before, so the devices cannot wait in a circle.
//
// Each rank calls its own Device only; events are what ranks lend each other. AN EVENT IS RECORDED AGAIN ONLY WHEN
// NOBODY HAS YET TO WAIT FOR IT, which it counts itself. (A wait takes the event as it stands when the host asks for
// it.)
#include <stdatomic.h>
#include <stdlib.h>

#include "comm/device_group.h"
#include "comm/local.h"

typedef struct SharedEvent {
    struct SharedEvent *next; // of the same rank
    Event *event;
    atomic_int awaited; // streams that have yet to be told to wait for it
} SharedEvent;

typedef struct PeerGroup { // one rank's view
    DeviceGroup group;
    SharedEvent *events; // this rank's; as many as were ever under way at once
} PeerGroup;

// Events for messages are made with the group, so that none is in the middle of training: as many as an all-to-all of
// attention has under way, 4 exchanges with every rank of 3 events each, and 2 each of the all-to-all before, whose
// other side may not have waited yet.
enum { EVENTS_PER_RANK = 4 * (3 + 2) };

static PeerGroup *peer_group(Comm *comm) { return (PeerGroup *)comm; }

static SharedEvent *new_event(Comm *comm) {
    PeerGroup *c = peer_group(comm);
    SharedEvent *event = comm_allocate(comm, 1, sizeof *event);
    *event = (SharedEvent){.next = c->events, .event = comm->device->event_create(comm->device)};
    c->events = event;
    return event;
}

// An event at this point of my stream, for so many waits.
static SharedEvent *record_event(Comm *comm, Stream stream, int waits) {
    PeerGroup *c = peer_group(comm);
    Device *device = comm->device;
    SharedEvent *event = c->events;
    while (event != NULL && atomic_load(&event->awaited) > 0) event = event->next;
    if (event == NULL) event = new_event(comm);
    atomic_store(&event->awaited, waits);
    device->event_record(device, stream, event->event);
    return event;
}

// Makes my stream wait for it; one of the waits it was made for.
static void wait_for_event(Device *device, Stream stream, SharedEvent *event) {
    device->stream_wait(device, stream, event->event);
    atomic_fetch_sub(&event->awaited, 1);
}

// One side of a message. Whoever comes second copies.
static Message *begin_side(Comm *comm, bool sends, void *data, size_t bytes, int peer, SharedEvent *ready) {
    if (bytes == 0) return NULL;
    Comm *host = comm->host;
    Device *device = comm->device;
    Message *mine = local_new_message(host, sends, data, bytes, peer);
    mine->ready = ready;
    Message *other = local_post(host, mine);
    if (other == NULL) return mine;
    wait_for_event(device, STREAM_EXCHANGE, ready);
    wait_for_event(device, STREAM_EXCHANGE, other->ready);
    device->copy_on(device, STREAM_EXCHANGE, sends ? other->data : data, sends ? data : other->data, bytes);
    mine->copied = other->copied = record_event(comm, STREAM_EXCHANGE, 2);
    mine->done = true;
    local_complete(host, other, peer);
    return mine;
}

static CommRequest peer_exchange_begin(Comm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                       size_t receive_bytes, int from) {
    SharedEvent *ready = record_event(comm, STREAM_WORK, (send_bytes > 0) + (receive_bytes > 0));
    CommRequest request;
    request.receive = begin_side(comm, false, receive, receive_bytes, from, ready);
    request.send = begin_side(comm, true, (void *)send, send_bytes, to, ready);
    return request;
}

// The host waits until the other side has come; my work, not the host, waits for the copy.
static void peer_wait(Comm *comm, const CommRequest *request) {
    Comm *host = comm->host;
    Message *messages[] = {request->receive, request->send};
    host->operation = comm->operation;
    for (int i = 0; i < 2; i++) {
        if (messages[i] == NULL) continue;
        local_wait_for_message(host, messages[i]);
        wait_for_event(comm->device, STREAM_WORK, messages[i]->copied);
        local_free_message(host, messages[i]);
    }
}

static void peer_release(Comm *comm) {
    PeerGroup *c = peer_group(comm);
    Device *device = comm->device;
    device_group_close(&c->group);
    for (SharedEvent *event = c->events; event != NULL;) {
        SharedEvent *next = event->next;
        device->event_release(device, event->event);
        free(event);
        event = next;
    }
    comm_free_memory(comm);
}

static const CommOperations peer_operations = {
    .on_device = comm_peers,
    .release = peer_release,
    .reduce_scatter_sum = exchanged_reduce_scatter_sum,
    .all_gather = exchanged_all_gather,
    .exchange_begin = peer_exchange_begin,
    .wait = peer_wait,
};

Comm *comm_peers(Comm *host, Device *device) {
    PeerGroup *c = comm_allocate(host, 1, sizeof *c);
    device_group_init(&c->group, &peer_operations, host, device);
    for (int i = 0; host->size > 1 && i < EVENTS_PER_RANK * host->size; i++) new_event(&c->group.base);
    return &c->group.base;
}
