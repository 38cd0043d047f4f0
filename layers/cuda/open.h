// The doors of the CUDA device for the rest of the program, which never includes a CUDA header. The same sources make
// both variants; the one that runs on the CPU is compiled with cuda_device and cuda_device_elsewhere defined as
// emulated_device and emulated_device_elsewhere.
#ifndef LAYERS_CUDA_OPEN_H
#define LAYERS_CUDA_OPEN_H

#include "layers/device.h"

#ifdef __cplusplus
extern "C" {
#endif

// Makes a Device of GPU `index` (from 0), and that GPU the current one of the calling thread.
bool cuda_device(Device *device, int index, Error *err);
// How many GPUs there are; 0 and *why if none can be used.
int cuda_device_count(const char **why);

// The table of a GPU that is not here, for a plan: a Hopper, whose attention takes more scratch memory than any other's.
// Of its functions, those that say how many bytes something takes may be called.
void cuda_device_elsewhere(Device *device);

bool emulated_device(Device *device, int index, Error *err);
void emulated_device_elsewhere(Device *device);

#ifdef __cplusplus
}
#endif
#endif
