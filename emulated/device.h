// Which GPU a host thread uses, and the error that its last call left.
#ifndef EMULATED_DEVICE_H
#define EMULATED_DEVICE_H

#include <cuda_runtime.h>

int device_current();
// Keeps an error for cudaGetLastError, and returns it.
cudaError_t device_error(cudaError_t error);

#endif
