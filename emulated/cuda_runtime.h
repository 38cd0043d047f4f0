// Takes the place of the CUDA Toolkit's header when g++ compiles the project's .cu files: the part of the CUDA runtime
// that the project uses, implemented on the CPU. Read README.md in this folder first.
#ifndef EMULATED_CUDA_RUNTIME_H
#define EMULATED_CUDA_RUNTIME_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ __attribute__((section("emulated_constant")))
#define __grid_constant__

#include "emulated/vector_types.h"
#include "emulated/runtime_api.h"
#include "emulated/device_functions.h"
#include "emulated/launch.h"
#include "emulated/ptx.h"
#include "emulated/ptx_hopper.h"

#endif
