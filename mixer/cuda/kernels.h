// The table of CUDA's kernels for token mixers, for layers/cuda/device.cu.
#ifndef MIXER_CUDA_KERNELS_H
#define MIXER_CUDA_KERNELS_H

#include "mixer/kernels.h"

const MixerKernels *cuda_mixer_kernels(void);

#endif
