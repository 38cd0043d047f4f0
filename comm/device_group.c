// What the two kinds of groups share whose buffers lie in the memory of a device, and which of them it is to be.
#include "comm/device_group.h"

#include "comm/local.h"

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
    if (group->staging != NULL && !group->staging_is_lent)
        device->release(device, group->staging, group->staging_bytes);
    comm_free(group->base.host);
}

void comm_lend_staging(Comm *comm, void *memory, size_t bytes) {
    if (comm->device == NULL || comm->size == 1) return;
    DeviceGroup *group = device_group(comm);
    group->staging = memory;
    group->staging_bytes = bytes;
    group->staging_is_lent = true;
}

float *device_group_staging(Comm *comm, size_t bytes) {
    DeviceGroup *group = device_group(comm);
    Device *device = comm->device;
    Error err = {0};
    if (bytes <= group->staging_bytes) return group->staging;
    if (group->staging_is_lent)
        comm_give_up(comm, "sums over ranks take %zu bytes, but %zu were lent", bytes, group->staging_bytes);
    if (group->staging != NULL) {
        device->synchronize(device);
        device->release(device, group->staging, group->staging_bytes);
    }
    group->staging = device->allocate(device, bytes, &err);
    if (group->staging == NULL) comm_fail(comm, &err);
    group->staging_bytes = bytes;
    return group->staging;
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

Comm *comm_on_device(Comm *comm, Device *device, bool collectives) {
    Comm *host = comm_split(comm, 0, comm->rank);
    if (device->host_memory) return host;
    if (comm->size == 1) return comm_peers(host, device); // talks to nobody
    if (collectives) {
        if (device->collectives == NULL)
            comm_give_up(comm, "device %s has no collectives: this program was built without NCCL", device->name);
        return comm_collectives(host, device);
    }
    if (!local_engine(comm)) {
        comm_give_up(comm,
                     "ranks that are processes reach each other's %s memory through NCCL alone, each with a GPU "
                     "of its own: for ranks that share a GPU, start one process without a launcher",
                     device->name);
    }
    return comm_peers(host, device);
}
