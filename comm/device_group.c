// What the two kinds of groups share whose buffers lie in the memory of a device.
#include "comm/device_group.h"

#include <stdlib.h>

void device_group_init(DeviceGroup *group, const CommOperations *operations, Comm *host, Device *device) {
    group->host = host;
    group->base = (Comm){.operations = operations,
                         .rank = host->rank,
                         .world_rank = host->world_rank,
                         .size = host->size,
                         .device = device,
                         .timeout = host->timeout,
                         .operation = "start"};
    group->term = device_group_allocate(host, (size_t)host->size, sizeof *group->term);
}

void device_group_close(DeviceGroup *group) {
    Device *device = group->base.device;
    if (group->base.size > 1) {
        group->base.operation = "free";
        device->synchronize(device);
        device_group_barrier(&group->base);
    }
    free(group->term);
    if (group->staging != NULL && !group->staging_is_lent)
        device->release(device, group->staging, group->staging_bytes);
    comm_free(group->host);
}

void *device_group_allocate(Comm *comm, size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (memory == NULL) comm_give_up(comm, "out of memory for messages between ranks");
    return memory;
}

// ---- passed on ----------------------------------------------------------------------------------------------------

static Comm *host_of(Comm *comm) {
    Comm *host = device_group(comm)->host;
    host->operation = comm->operation;
    return host;
}

void device_group_doing(Comm *comm, const char *what, bool slowly) {
    Comm *host = device_group(comm)->host;
    host->operations->doing(host, what, slowly);
}

const char *device_group_said(Comm *comm) {
    Comm *host = device_group(comm)->host;
    return host->operations->said != NULL ? host->operations->said(host) : NULL;
}

int64_t device_group_moved(Comm *comm) {
    Comm *host = device_group(comm)->host;
    return host->operations->moved(host);
}

void device_group_end_all(Comm *comm, const Error *err) { comm_fail(device_group(comm)->host, err); }

void device_group_barrier(Comm *comm) {
    Comm *host = host_of(comm);
    host->operations->barrier(host);
}

void device_group_all_reduce_sum(Comm *comm, double *values, int count) {
    Comm *host = host_of(comm);
    host->operations->all_reduce_sum(host, values, count);
}

// ---- sums ---------------------------------------------------------------------------------------------------------

static void have_staging(Comm *comm, size_t bytes) {
    DeviceGroup *group = device_group(comm);
    Device *device = comm->device;
    Error err = {0};
    if (bytes <= group->staging_bytes) return;
    if (group->staging_is_lent)
        comm_give_up(comm, "sums over ranks take %zu bytes, but %zu were lent", bytes, group->staging_bytes);
    if (group->staging != NULL) {
        device->synchronize(device);
        device->release(device, group->staging, group->staging_bytes);
    }
    group->staging = device->allocate(device, bytes, &err);
    if (group->staging == NULL) comm_fail(comm, &err);
    group->staging_bytes = bytes;
}

// Floats in a piece, the same on every rank.
static int64_t piece_floats(int ranks, int64_t longest) {
    const int64_t ALIGNMENT = 64, others = ranks - 1; // in floats: 256 bytes
    int64_t most = COMM_STAGING_BYTES / (int64_t)sizeof(float) / others / ALIGNMENT * ALIGNMENT;
    return longest < most ? (longest + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : most;
}

size_t comm_staging_bytes(int ranks, int64_t longest) {
    return ranks == 1 ? 0 : (size_t)(piece_floats(ranks, longest) * (ranks - 1)) * sizeof(float);
}

void comm_lend_staging(Comm *comm, void *memory, size_t bytes) {
    if (comm->device == NULL || comm->size == 1) return;
    device_group(comm)->staging = memory;
    device_group(comm)->staging_bytes = bytes;
    device_group(comm)->staging_is_lent = true;
}

SumPieces sum_pieces(Comm *comm, const int64_t *counts) {
    SumPieces pieces = {.mine = counts[comm->rank]};
    for (int rank = 0; rank < comm->size; rank++) {
        if (rank < comm->rank) pieces.offset += counts[rank];
        if (counts[rank] > pieces.longest) pieces.longest = counts[rank];
    }
    pieces.floats = piece_floats(comm->size, pieces.longest);
    pieces.term = device_group(comm)->term;
    have_staging(comm, comm_staging_bytes(comm->size, pieces.longest));
    return pieces;
}

float *sum_piece_of(Comm *comm, const SumPieces *pieces, int rank) {
    return device_group(comm)->staging + (rank < comm->rank ? rank : rank - 1) * pieces->floats;
}

// Of more terms than the device adds at once, what is summed so far stands in a piece that has been added, not in
// `out`: that may be a term still to come.
void sum_piece_terms(Comm *comm, Stream stream, const SumPieces *pieces, float *out, int64_t length) {
    Device *device = comm->device;
    float *sum = sum_piece_of(comm, pieces, comm->rank == 0 ? 1 : 0);
    const float **term = pieces->term;
    int left = comm->size;
    if (length == 0) return;
    while (left > DEVICE_MOST_TERMS) {
        device->sum_terms(device, stream, sum, term, DEVICE_MOST_TERMS, length);
        term += DEVICE_MOST_TERMS - 1;
        left -= DEVICE_MOST_TERMS - 1;
        *term = sum; // in the place of the last of those added
    }
    device->sum_terms(device, stream, out, term, left, length);
}
