// Where the rows of one head lie in memory, on the device: addresses in the views of attention/kernel.h, and what a
// kernel may expect of them.
#ifndef ATTENTION_CUDA_VIEW_H
#define ATTENTION_CUDA_VIEW_H

#include "attention/kernel.h"
#include "layers/cuda/bf16.h"
#include "layers/cuda/cuda.h"

// The first of the head_dim values of token t, head h.
__device__ inline bf16 *token_at(TokenView view, int b, int64_t t, int h, int head_dim) {
    return static_cast<bf16 *>(view.data) + b * view.batch_stride + t * view.token_stride + h * head_dim;
}
__device__ inline float *float_at(FloatView view, int b, int64_t t, int h, int head_dim) {
    return view.data + b * view.batch_stride + t * view.token_stride + h * head_dim;
}
// The one value of token t, head h.
__device__ inline float *row_at(RowView view, int b, int h, int64_t t) {
    return view.data + b * view.batch_stride + h * view.head_stride + t;
}

// End the program unless every row begins at a multiple of so many bytes, which those of the model do: 16, so that bf16
// are read by packets; fp32, as its kernel needs.
inline void check_tokens(TokenView view, const char *what) {
    if ((uintptr_t)view.data % 16 != 0 || view.batch_stride % PACKET != 0 || view.token_stride % PACKET != 0)
        cuda_give_up(__FILE__, __LINE__, "%s: rows must start at multiples of 16 bytes", what);
}
inline void check_floats(FloatView view, int bytes, const char *what) {
    const int floats = bytes / (int)sizeof(float);
    if ((uintptr_t)view.data % (uintptr_t)bytes != 0 || view.batch_stride % floats != 0 ||
        view.token_stride % floats != 0)
        cuda_give_up(__FILE__, __LINE__, "%s: rows must start at multiples of %d bytes", what, bytes);
}

// The head size of the kernel that serves heads of this size: the next multiple of 32.
inline int kernel_head_dim(int64_t head_dim) { return (int)((head_dim + 31) / 32 * 32); }

#endif
