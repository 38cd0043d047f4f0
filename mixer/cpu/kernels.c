// The table of the CPU's kernels for token mixers.
#include "mixer/kernels.h"

#include "mixer/linear.h"

#include <stddef.h>

const MixerKernels mixer_kernels_cpu = {
    .linear = &linear_kernels_cpu,
};
