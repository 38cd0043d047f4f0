// The table of CUDA's kernels for token mixers.
#include "mixer/cuda/kernels.h"

const MixerKernels *cuda_mixer_kernels(void) {
    static constexpr MixerKernels kernels = {};
    return &kernels;
}
