// The group of all ranks of engine `nccl`. Private to comm/; a test opens it for ranks that are threads.
#ifndef COMM_NCCL_H
#define COMM_NCCL_H

#include "comm/engine.h"
#include "layers/device.h"

// Collective over `size` ranks that know the same address ("host:port", in NCCL_COMM_ID too); returns when all have
// come. `device` is this thread's, and stays open. The group's buffers lie in host memory. NULL: error.
Comm *nccl_open(Device *device, const char *address, int rank, int size, double timeout, Error *err);
void nccl_close(Comm *all); // collective

#endif
