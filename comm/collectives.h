// What a device offers when it can carry collectives itself: NCCL, for GPUs (comm/cuda/nccl.cu). The table is thin: it
// starts, in STREAM_EXCHANGE, what NCCL knows how to do. The rest is in comm/collectives.c, in plain C.
#ifndef COMM_COLLECTIVES_H
#define COMM_COLLECTIVES_H

#include <stddef.h>

#include "base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct Device;

enum { COMM_UNIQUE_ID_BYTES = 128 }; // ncclUniqueId
typedef struct CommUniqueId {
    char bytes[COMM_UNIQUE_ID_BYTES];
} CommUniqueId;

// Functions that return false have filled the error. `member` is what `join` returned. All but watch_thread and sound
// are called by the rank's own thread.
typedef struct CommCollectives {
    bool (*available)(void); // what carries them is installed; where it is not, the rest may not be called

    bool (*unique_id)(CommUniqueId *, Error *); // on one rank; all ranks then need it to join
    // On every rank, the same: rank 0 listens at `address` ("host:port") when it joins. NCCL_COMM_ID must be that
    // address until all have joined.
    bool (*unique_id_of)(const char *address, CommUniqueId *, Error *);
    // Every rank with its own number; returns when all have joined. The device is this thread's. NULL: error.
    void *(*join)(struct Device *, const CommUniqueId *, int rank, int size, Error *);
    void (*leave)(void *member); // collective; everything begun has ended

    // Between `begin` and `end` they go together: in any order, none waits for another. Messages between two ranks are
    // matched in the order begun, with equal byte counts.
    bool (*begin)(Error *);
    bool (*end)(void *member, Error *);
    bool (*send)(void *member, const void *data, size_t bytes, int to, Error *);
    bool (*receive)(void *member, void *data, size_t bytes, int from, Error *);
    bool (*all_gather)(void *member, void *data, size_t bytes_each, Error *); // in place, segments of one size

    void (*watch_thread)(struct Device *); // what such a thread calls first
    bool (*sound)(void *member, Error *);  // false: something begun earlier has failed
} CommCollectives;

// NCCL's (comm/cuda/nccl.cu), which layers/cuda/device.cu puts into Device.collectives.
extern const CommCollectives cuda_nccl_collectives;

#ifdef __cplusplus
}
#endif
#endif
