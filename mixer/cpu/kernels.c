// The table of the CPU's kernels for token mixers.
#include "mixer/kernels.h"

#include "mixer/convolution.h"

const MixerKernels mixer_kernels_cpu = {
    .convolution = &convolution_kernels_cpu,
};
