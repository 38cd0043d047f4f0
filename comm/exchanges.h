// Entries of CommOperations as they stand, for groups whose collectives are made of exchanges. Private to comm/.
#ifndef COMM_EXCHANGES_H
#define COMM_EXCHANGES_H

#include "comm/engine.h"

void exchanged_all_gather(Comm *comm, void *data, const size_t *bytes);
// On a device, terms come into the group's staging memory, at most COMM_STAGING_BYTES.
void exchanged_reduce_scatter_sum(Comm *comm, float *out, float *in, const int64_t *counts);
// In host memory alone:
void exchanged_barrier(Comm *comm);
void exchanged_broadcast(Comm *comm, void *data, size_t bytes, int root);
void exchanged_all_reduce_sum(Comm *comm, double *values, int count);

#endif
