// Groups whose buffers lie in the memory of a device (comm_on_device): what their two kinds share. Private to comm/.
//
// Such a group stands on a group of the same ranks in host memory, its `host`, which serves whatever is no matter of
// the device: barriers, sums of a few doubles, splits, time-outs and failures.
#ifndef COMM_DEVICE_GROUP_H
#define COMM_DEVICE_GROUP_H

#include "comm/engine.h"
#include "layers/device.h"

typedef struct DeviceGroup { // both kinds begin with this
    Comm base;
    Comm *host; // its own; nobody else uses it
    float *staging;
    size_t staging_bytes;
    bool staging_is_lent;
    const float **term; // (size): where each rank's term of a sum is, for Device.sum_terms
} DeviceGroup;

static inline DeviceGroup *device_group(Comm *comm) { return (DeviceGroup *)comm; }

// The two kinds. Collective; `host` becomes the group's.
Comm *comm_peers(Comm *host, Device *device);       // copies between the devices of one process (comm/peer.c)
Comm *comm_collectives(Comm *host, Device *device); // the device's own collectives (comm/collectives.c)

void device_group_init(DeviceGroup *group, const CommOperations *operations, Comm *host, Device *device);
// Collective: waits until every rank and this device have done all they were told, then frees what init and staging
// made.
void device_group_close(DeviceGroup *group);
// Host memory, zeroed; ends all ranks if there is none.
void *device_group_allocate(Comm *comm, size_t count, size_t size);

// Entries of the table that only pass on to the host's group.
void device_group_doing(Comm *comm, const char *what, bool slowly);
const char *device_group_said(Comm *comm);
int64_t device_group_moved(Comm *comm);
void device_group_end_all(Comm *comm, const Error *err) __attribute__((noreturn));
void device_group_barrier(Comm *comm);
void device_group_all_reduce_sum(Comm *comm, double *values, int count);

// ---- sums of terms that come from other devices ---------------------------------------------------------------------

// Terms arrive piece by piece in a buffer of this device and are summed there in the order of ranks, so that they have
// the bits of every other engine. The buffer is lent (comm_lend_staging); where it is not, it is made at the first call,
// and made larger when a later one needs more, up to COMM_STAGING_BYTES for all terms together.
typedef struct SumPieces {
    int64_t floats;     // in a piece, the same on every rank
    int64_t mine;       // in this rank's segment
    int64_t offset;     // of this rank's segment, in floats
    int64_t longest;    // segment of any rank
    const float **term; // (size): the group's
} SumPieces;
SumPieces sum_pieces(Comm *comm, const int64_t *counts);
// out = the sum of the present piece's terms, `length` floats. `out` may be one of them; those of other ranks may be
// written over.
void sum_piece_terms(Comm *comm, Stream stream, const SumPieces *pieces, float *out, int64_t length);
float *sum_piece_of(Comm *comm, const SumPieces *pieces, int rank); // where the term of another rank is put
// Floats of a segment of `count` in the piece that starts at `begin`.
static inline int64_t sum_piece_length(const SumPieces *pieces, int64_t count, int64_t begin) {
    int64_t left = count - begin;
    return left < 0 ? 0 : left < pieces->floats ? left : pieces->floats;
}

#endif
