// Putting a group on a device: which kind of group it is to be.
#include "comm/device_group.h"
#include "comm/local.h"

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
