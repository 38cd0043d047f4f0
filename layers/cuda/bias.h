// Biases: rows set to one, sums over rows for its gradient, and of what the blocks of a kernel left as partial sums.
#ifndef LAYERS_CUDA_BIAS_H
#define LAYERS_CUDA_BIAS_H

#include "layers/cuda/context.h"

// Every row of out (rows, N) = bias (N), bf16: what a product is added to whose library cannot add the bias itself.
void set_rows(Device *device, void *out, const void *bias, int64_t rows, int64_t N);

// sum[c] += partial[0 * stride + c] + ... + partial[(blocks - 1) * stride + c], for c < N, in an order that depends on
// `blocks` alone.
void add_partial_sums(Device *device, float *sum, const float *partial, int64_t blocks, int64_t stride, int64_t N);

#endif
