// The table of the CPU's kernels for token mixers.
#include "mixer/kernels.h"

extern const struct ScanKernels scan_kernels_cpu;
extern const struct LinearKernels linear_kernels_cpu;
extern const struct DeltaKernels delta_kernels_cpu;
extern const struct ConvolutionKernels convolution_kernels_cpu;
extern const struct TriangleKernels triangle_kernels_cpu;

const MixerKernels mixer_kernels_cpu = {
    .scan = &scan_kernels_cpu,
    .linear = &linear_kernels_cpu,
    .delta = &delta_kernels_cpu,
    .convolution = &convolution_kernels_cpu,
    .triangle = &triangle_kernels_cpu,
};
