// Groups whose buffers lie in the memory of a device (comm_on_device): what their two kinds share. Private to comm/.
//
// Such a group stands on a group of the same ranks in host memory, its `host`.
#ifndef COMM_DEVICE_GROUP_H
#define COMM_DEVICE_GROUP_H

#include "comm/engine.h"
#include "layers/device.h"

typedef struct DeviceGroup { // both kinds begin with this
    Comm base;
    float *staging;
    size_t staging_bytes;
    bool staging_is_lent; // by comm_lend_staging
} DeviceGroup;

static inline DeviceGroup *device_group(Comm *comm) { return (DeviceGroup *)comm; }

// The two kinds. Collective; `host` becomes the group's.
Comm *comm_peers(Comm *host, Device *device);       // copies between the devices of one process (comm/peer.c)
Comm *comm_collectives(Comm *host, Device *device); // the device's own collectives (comm/collectives.c)

void device_group_init(DeviceGroup *group, const CommOperations *operations, Comm *host, Device *device);
// Collective: waits until every rank and this device have done all they were told, then frees what init and staging
// made.
void device_group_close(DeviceGroup *group);
// Memory of the device for terms of a sum, at least `bytes`: lent, or made, or made larger, where a
// call needs it.
float *device_group_staging(Comm *comm, size_t bytes);
// out = the sum of `count` terms of `length` floats, in their order, in STREAM_WORK. `out` may be one of them; `room`
// is one of the first two, and may be written over.
void device_sum_terms(Device *device, float *out, const float **term, int count, int64_t length, float *room);

// A thread that watches over the operations of a group that has NCCL, since the rank's own thread does not wait for
// them: the first that fails, or does not end within the time-out, ends all ranks with a message (comm/watchdog.c).
typedef struct Watchdog Watchdog;

// Begins to watch `comm`; until watchdog_member, only that its calls return.
Watchdog *watchdog_start(Comm *comm);
// What `join` of the device's collectives returned: from now on its errors are looked for.
void watchdog_member(Watchdog *dog, void *member);
void watchdog_stop(Watchdog *dog);

// Around every call that hands operations to the device, once STREAM_EXCHANGE waits for the work they need: that time
// is not theirs. `name`: a string literal.
void watchdog_enter(Watchdog *dog, const char *name);
void watchdog_leave(Watchdog *dog);

// Collective over `size` ranks that know the same address ("host:port", in NCCL_COMM_ID too); returns when all have
// come. `device` is this thread's, and stays open. The group's buffers lie in host memory. NULL: error.
Comm *nccl_open(Device *device, const char *address, int rank, int size, double timeout, Error *err);
void nccl_close(Comm *all); // collective

#endif
