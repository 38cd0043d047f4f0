// Sums over rows: of bias gradients, and of what the blocks of a kernel left as partial sums.
#ifndef LAYERS_CUDA_BIAS_H
#define LAYERS_CUDA_BIAS_H

#include "layers/cuda/context.h"

// out (rows, N) += bias (N), bf16: for products whose library cannot add it.
void add_bias(Device *device, void *out, const void *bias, int64_t rows, int64_t N);

// sum[c] += partial[0 * stride + c] + ... + partial[(blocks - 1) * stride + c], for c < N, in an order that depends on
// `blocks` alone.
void add_partial_sums(Device *device, float *sum, const float *partial, int64_t blocks, int64_t stride, int64_t N);

#endif
