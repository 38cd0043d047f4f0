// Tensor maps of views, kept from one launch to the next: making one is a call of the driver, several are needed for
// each launch, and a training step asks for the same ones as the step before.
#ifndef ATTENTION_CUDA_HOPPER_TENSOR_MAPS_H
#define ATTENTION_CUDA_HOPPER_TENSOR_MAPS_H

#include "attention/kernel.h"
#include "layers/cuda/ptx_hopper.h"

namespace hopper {

// A map (tensor_map, layers/cuda/ptx_hopper.h) of the shape's sequences of `tokens` tokens of `heads` heads, in boxes
// of `rows` tokens of one head. By the rank's own thread.
CUtensorMap tensor_map_of(Device *, const AttentionShape *, TokenView, int64_t tokens, int64_t heads, int rows);

} // namespace hopper

#endif
