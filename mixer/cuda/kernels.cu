// The table of CUDA's kernels for token mixers.
#include "mixer/cuda/kernels.h"

extern const ScanKernels scan_kernels_cuda;
extern const LinearKernels linear_kernels_cuda;
extern const DeltaKernels delta_kernels_cuda;
extern const ConvolutionKernels convolution_kernels_cuda;
extern const TriangleKernels triangle_kernels_cuda;

const MixerKernels *cuda_mixer_kernels(void) {
    static constexpr MixerKernels kernels = {
        &scan_kernels_cuda,        // scan
        &linear_kernels_cuda,      // linear
        &delta_kernels_cuda,       // delta
        &convolution_kernels_cuda, // convolution
        &triangle_kernels_cuda,    // triangle
    };
    return &kernels;
}
