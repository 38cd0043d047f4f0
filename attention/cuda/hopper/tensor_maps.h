// Tensor maps of views, kept from one launch to the next: making one is a call of the driver, several are needed for
// each launch, and a training step asks for the same ones as the step before.
#ifndef ATTENTION_CUDA_HOPPER_TENSOR_MAPS_H
#define ATTENTION_CUDA_HOPPER_TENSOR_MAPS_H

#include "attention/kernel.h"
#include "layers/cuda/ptx_hopper.h"

namespace hopper {

// A map (tensor_map, layers/cuda/ptx_hopper.h) of `batch` sequences of `tokens` tokens of `channels` values, in boxes
// of `rows` tokens of `parts` times 64 channels. By the rank's own thread.
CUtensorMap tensor_map_of(Device *, TokenView, int64_t batch, int64_t tokens, int64_t channels, int rows, int parts);

} // namespace hopper

#endif
