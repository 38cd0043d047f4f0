// What the two kinds of groups share whose buffers lie in the memory of a device.
#include "comm/device_group.h"

#include <stdlib.h>

void device_group_init(DeviceGroup *group, const CommOperations *operations, Comm *host, Device *device) {
    group->base = (Comm){.operations = operations,
                         .rank = host->rank,
                         .world_rank = host->world_rank,
                         .size = host->size,
                         .device = device,
                         .host = host,
                         .timeout = host->timeout,
                         .operation = "start"};
}

void device_group_close(DeviceGroup *group) {
    Device *device = group->base.device;
    if (group->base.size > 1) {
        device->synchronize(device);
        comm_host_barrier(&group->base, "free");
    }
    if (group->staging != NULL) device->release(device, group->staging, group->staging_bytes);
    comm_free(group->base.host);
}

// ---- sums ---------------------------------------------------------------------------------------------------------

static void have_staging(Comm *comm, size_t bytes) {
    DeviceGroup *group = device_group(comm);
    Device *device = comm->device;
    Error err = {0};
    if (bytes <= group->staging_bytes) return;
    if (group->staging != NULL) {
        device->synchronize(device);
        device->release(device, group->staging, group->staging_bytes);
    }
    group->staging = device->allocate(device, bytes, &err);
    if (group->staging == NULL) comm_fail(comm, &err);
    group->staging_bytes = bytes;
}

// Of more terms than the device adds at once, what is summed so far stands in `room`, which has been added, and not in
// `out`: that may be a term still to come.
void device_sum_terms(Device *device, float *out, const float **term, int count, int64_t length, float *room) {
    if (length == 0) return;
    while (count > DEVICE_MOST_TERMS) {
        device->sum_terms(device, STREAM_WORK, room, term, DEVICE_MOST_TERMS, length);
        term += DEVICE_MOST_TERMS - 1;
        count -= DEVICE_MOST_TERMS - 1;
        *term = room; // in the place of the last of those added
    }
    device->sum_terms(device, STREAM_WORK, out, term, count, length);
}

static int64_t piece_of(int64_t count, int64_t begin, int64_t most) { // floats of a segment in the piece that begins there
    int64_t left = count - begin;
    return left < 0 ? 0 : left < most ? left : most;
}

void device_group_reduce_scatter_sum(Comm *comm, float *out, float *in, const int64_t *counts) {
    const int64_t ALIGNMENT = 64, others = comm->size - 1; // in floats: 256 bytes
    int size = comm->size, me = comm->rank;
    int64_t longest = 0, piece = COMM_STAGING_BYTES / (int64_t)sizeof *in / others / ALIGNMENT * ALIGNMENT;
    for (int rank = 0; rank < size; rank++) longest = counts[rank] > longest ? counts[rank] : longest;
    if (longest < piece) piece = (longest + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    have_staging(comm, (size_t)(piece * others) * sizeof(float));
    float *staging = device_group(comm)->staging;
    const float **term = comm_scratch(comm, (size_t)size * (sizeof *term + sizeof(CommRequest) + sizeof(int64_t)));
    CommRequest *request = (CommRequest *)(term + size);
    int64_t *offset = (int64_t *)(request + size);
    offset[0] = 0;
    for (int rank = 1; rank < size; rank++) offset[rank] = offset[rank - 1] + counts[rank - 1];
    for (int64_t begin = 0; begin < longest; begin += piece) {
        int64_t mine = piece_of(counts[me], begin, piece);
        comm_batch_begin(comm);
        for (int step = 1; step < size; step++) {
            int to = (me + step) % size, from = (me + size - step) % size;
            float *room = staging + (from < me ? from : from - 1) * piece;
            request[step] = comm_exchange_part(comm, in + offset[to] + begin,
                                               (size_t)piece_of(counts[to], begin, piece) * sizeof *in, to, room,
                                               (size_t)mine * sizeof *in, from);
            term[from] = room;
        }
        comm_batch_end(comm);
        for (int step = 1; step < size; step++) comm_wait_part(comm, &request[step]);
        term[me] = in + offset[me] + begin;
        device_sum_terms(comm->device, out + begin, term, size, mine, staging);
    }
}

void device_group_all_gather(Comm *comm, void *data, const size_t *bytes) {
    CommRequest *request = comm_scratch(comm, (size_t)comm->size * sizeof *request);
    comm_all_gather_parts(comm, data, bytes, request);
    for (int i = 0; i < comm->size - 1; i++) comm_wait_part(comm, &request[i]);
}
