// The table of the CPU's kernels for token mixers.
#include "mixer/kernels.h"

#include <stddef.h>

extern const struct DeltaKernels delta_kernels_cpu;

const MixerKernels mixer_kernels_cpu = {
    .delta = &delta_kernels_cpu,
};
