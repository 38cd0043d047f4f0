// Biases: rows set to one, sums over rows for its gradient, and of what the blocks of a kernel left as partial sums.
#ifndef LAYERS_CUDA_BIAS_H
#define LAYERS_CUDA_BIAS_H

#include "layers/cuda/context.h"

// Every row of out (rows, N) = bias (N), bf16: what a product is added to whose library cannot add the bias itself.
void set_rows(Device *device, void *out, const void *bias, int64_t rows, int64_t N);

// sum (N) += those of all blocks, partial (blocks, N), in an order that depends on `blocks` alone. Where `second` is
// not NULL there are two vectors: partial (blocks, 2, N), and second (N) += the latter of each block.
void add_partial_sums(Device *device, float *sum, float *second, const float *partial, int64_t blocks, int64_t N);

#endif
