// Groups on devices of one process: ranks are threads, and a message is one copy from memory to memory, which both
// devices can reach. So nothing need be installed, and several ranks may share a GPU.
//
// Nothing here waits for a device. The host threads only meet (comm/local.h) and tell their devices what waits for
// what: a rank records an event where its buffer is ready, whoever copies makes its stream wait for that event, copies
// and records another, and whoever owns a buffer makes its work wait for that one. Every wait is for an event recorded
// before, so the devices cannot wait in a circle.
//
// Each rank calls its own Device only. An event may be recorded only by its device, but waited for by any, so events
// are what ranks lend each other. The invariant: AN EVENT IS RECORDED AGAIN ONLY WHEN NOBODY HAS YET TO WAIT FOR IT. (A
// wait takes the event as it stands when the host asks for it; afterwards the event may change.) Messages count those
// who have yet to wait in the event itself, SharedEvent.awaited. Collectives have two events of their own for each
// rank, kept by their barriers.
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
    SharedEvent *events;     // this rank's, for messages; as many as were ever under way at once
    struct PeerGroup **peer; // (size)
    // Of the collective under way. Others read these between its barriers.
    void *data;
    Event *ready, *finished;
} PeerGroup;

// Events for messages are made with the group, so that none is in the middle of training: as many as an all-to-all of
// attention has under way, 4 exchanges with every rank of 3 events each, and 2 each of the all-to-all before, whose
// other side may not have waited yet.
enum { EVENTS_PER_RANK = 4 * (3 + 2) };

static PeerGroup *peer_group(Comm *comm) { return (PeerGroup *)comm; }

// ---- point to point -----------------------------------------------------------------------------------------------

static SharedEvent *new_event(Comm *comm) {
    PeerGroup *c = peer_group(comm);
    SharedEvent *event = device_group_allocate(comm, 1, sizeof *event);
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
static Note *begin_side(Comm *comm, bool sends, void *data, size_t bytes, int peer, SharedEvent *ready) {
    if (bytes == 0) return NULL;
    Comm *host = device_group(comm)->host;
    Device *device = comm->device;
    Note *mine = local_new_note(host, sends, data, bytes, peer);
    mine->ready = ready;
    Note *other = local_post(host, mine);
    if (other == NULL) return mine;
    wait_for_event(device, STREAM_EXCHANGE, ready);
    wait_for_event(device, STREAM_EXCHANGE, other->ready);
    device->copy_on(device, STREAM_EXCHANGE, sends ? other->data : data, sends ? data : other->data, bytes);
    mine->copied = other->copied = record_event(comm, STREAM_EXCHANGE, 2);
    mine->done = true;
    local_tell(host, other, peer);
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
    Comm *host = device_group(comm)->host;
    Note *notes[] = {request->receive, request->send};
    host->operation = comm->operation;
    for (int i = 0; i < 2; i++) {
        if (notes[i] == NULL) continue;
        local_wait_for_note(host, notes[i]);
        wait_for_event(comm->device, STREAM_WORK, notes[i]->copied);
        local_drop_note(host, notes[i]);
    }
}

// ---- collectives --------------------------------------------------------------------------------------------------

// In STREAM_WORK throughout: what comes after a collective needs its result. Two barriers keep the events: `ready` is
// recorded before the first and waited for before the second; `finished` is recorded before the second, and waited for
// before the first of the next collective, which comes before it is recorded again.

// Others may read my data from this point on.
static void open_data(Comm *comm, void *data) {
    PeerGroup *c = peer_group(comm);
    c->data = data;
    comm->device->event_record(comm->device, STREAM_WORK, c->ready);
    device_group_barrier(comm);
}

// Another rank's data, once they are ready.
static void *data_of(Comm *comm, int rank) {
    PeerGroup *peer = peer_group(comm)->peer[rank];
    comm->device->stream_wait(comm->device, STREAM_WORK, peer->ready);
    return peer->data;
}

// Until the others have finished reading them.
static void close_data(Comm *comm) {
    PeerGroup *c = peer_group(comm);
    Device *device = comm->device;
    device->event_record(device, STREAM_WORK, c->finished);
    device_group_barrier(comm);
    for (int rank = 0; rank < comm->size; rank++)
        if (rank != comm->rank) device->stream_wait(device, STREAM_WORK, c->peer[rank]->finished);
}

static void peer_broadcast(Comm *comm, void *data, size_t bytes, int root) {
    open_data(comm, data);
    if (comm->rank != root) comm->device->copy_on(comm->device, STREAM_WORK, data, data_of(comm, root), bytes);
    close_data(comm);
}

static void peer_all_gather(Comm *comm, void *data, const size_t *bytes) {
    open_data(comm, data);
    for (int step = 1; step < comm->size; step++) { // each begins with its neighbour, so that not all read from one
        int rank = (comm->rank + step) % comm->size;
        size_t offset = 0;
        for (int before = 0; before < rank; before++) offset += bytes[before];
        if (bytes[rank] == 0) continue;
        comm->device->copy_on(comm->device, STREAM_WORK, (char *)data + offset, (char *)data_of(comm, rank) + offset,
                              bytes[rank]);
    }
    close_data(comm);
}

// A rank only writes its own segment, which nobody else reads.
static void peer_reduce_scatter_sum(Comm *comm, float *out, float *in, const int64_t *counts) {
    Device *device = comm->device;
    SumPieces pieces = sum_pieces(comm, counts);
    open_data(comm, in);
    for (int64_t begin = 0; begin < pieces.mine; begin += pieces.floats) {
        int64_t length = sum_piece_length(&pieces, pieces.mine, begin);
        for (int rank = 0; rank < comm->size; rank++) {
            pieces.term[rank] = in + pieces.offset + begin;
            if (rank == comm->rank) continue;
            float *piece = sum_piece_of(comm, &pieces, rank);
            device->copy_on(device, STREAM_WORK, piece, (float *)data_of(comm, rank) + pieces.offset + begin,
                            (size_t)length * sizeof *piece);
            pieces.term[rank] = piece;
        }
        sum_piece_terms(comm, STREAM_WORK, &pieces, out + begin, length);
    }
    close_data(comm);
}

// ---- groups -------------------------------------------------------------------------------------------------------

static Comm *peer_split(Comm *comm, int color, int key) {
    return comm_peers(comm_split(device_group(comm)->host, color, key), comm->device);
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
    device->event_release(device, c->ready);
    device->event_release(device, c->finished);
    free(c->peer);
    free(c);
}

static const CommOperations peer_operations = {
    .split = peer_split,
    .release = peer_release,
    .doing = device_group_doing,
    .said = device_group_said,
    .moved = device_group_moved,
    .end_all = device_group_end_all,
    .barrier = device_group_barrier,
    .broadcast = peer_broadcast,
    .all_reduce_sum = device_group_all_reduce_sum,
    .reduce_scatter_sum = peer_reduce_scatter_sum,
    .all_gather = peer_all_gather,
    .exchange_begin = peer_exchange_begin,
    .wait = peer_wait,
};

Comm *comm_peers(Comm *host, Device *device) {
    PeerGroup *c = device_group_allocate(host, 1, sizeof *c);
    device_group_init(&c->group, &peer_operations, host, device);
    c->ready = device->event_create(device);
    c->finished = device->event_create(device);
    if (host->size > 1) {
        c->peer = device_group_allocate(host, (size_t)host->size, sizeof(PeerGroup *));
        local_publish(host, c);
        for (int rank = 0; rank < host->size; rank++)
            c->peer[rank] = (PeerGroup *)(uintptr_t)local_published(host, rank);
        comm_barrier(host);
        for (int i = 0; i < EVENTS_PER_RANK * host->size; i++) new_event(&c->group.base);
    }
    return &c->group.base;
}
