// Matrix products by cuBLASLt, for whoever on a GPU has matrices to multiply: row-major as everything here, bf16 in,
// fp32 sums, bf16 or fp32 out.
#ifndef LAYERS_CUDA_CUBLASLT_H
#define LAYERS_CUDA_CUBLASLT_H

#include <cublasLt.h>

#include "layers/device.h"

// d (rows, columns) = alpha a b + beta d, then the epilogue. a is (rows, inner), or (inner, rows) if transpose_a; b is
// (inner, columns), or (columns, inner) if transpose_b; both bf16. Strides: elements from one row to the next.
struct Product {
    int64_t rows, columns, inner;
    bool transpose_a, transpose_b;
    bool float_out; // d is fp32, else bf16
    const void *a, *b;
    void *d; // no part of a or b
    int64_t a_stride, b_stride, d_stride;
    float alpha = 1, beta = 0;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT; // none
    const void *bias;                                        // (columns), bf16, or NULL
    void *aux; // (rows, columns), dense, bf16, or NULL: written by GELU_AUX, read by DGELU
};

// Enters the product into the stream of work. False: cuBLASLt does not have it with this epilogue, and nothing was
// done. Without an epilogue that ends the program.
bool cublaslt_multiply(Device *device, const Product *product);

// Which algorithm each product has, as far as it is known: asking takes longer than a small product does. Unless told
// otherwise it is the library's first proposal. cuda_tune (layers.h) tells, or has proposals timed.
struct MatmulPlans *matmul_plans_new(void);
void matmul_plans_free(struct MatmulPlans *plans); // may be NULL

#endif
