// The device on which CUDA's kernels are tested: "emulated", or a GPU where TEST_DEVICE=cuda stands in the environment.
#ifndef TEST_CUDA_DEVICE_H
#define TEST_CUDA_DEVICE_H

#include "layers/device.h"

const char *cuda_device_name(void);
DeviceKind cuda_device_kind(void);
int cuda_devices_here(void);   // 0: none, and why is printed
bool cuda_device_is_gpu(void); // by TEST_DEVICE
bool only_emulated(void);      // there is one, and it is emulated: what it alone can show may be tested. Else says so

#endif
