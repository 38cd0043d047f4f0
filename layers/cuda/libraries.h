// Libraries that are opened when they are first called (layers/cuda/libraries.cu), or not at all.
#ifndef LAYERS_CUDA_LIBRARIES_H
#define LAYERS_CUDA_LIBRARIES_H

// NCCL is installed here. The emulated device brings its own (emulated/nccl.cpp).
bool nccl_opens(void);
// So is cuFFT; emulated/cufft.cpp.
bool cufft_opens(void);

#endif
