// Products of bf16 matrices on the CPU, for cublasLt.cpp.
#ifndef EMULATED_PRODUCT_H
#define EMULATED_PRODUCT_H

#include <stdbool.h>
#include <stdint.h>

// By columns: element (i, j) of a matrix x is x[i + j * ldx].
struct EmulatedProduct {
    int64_t m, n, k;
    const uint16_t *a, *b; // bf16; op(a) (m, k), op(b) (k, n)
    const void *c;         // (m, n), of d's type
    void *d;
    int64_t lda, ldb, ldc, ldd;
    bool transpose_a, transpose_b;
    bool float_out;  // d is fp32, otherwise bf16
    int64_t stretch; // of k, at most 256: so much is summed on its own
    bool any_order;  // in which these sums are added up; else from first to last
    float alpha, beta;
    const uint16_t *bias; // (m), bf16; NULL: none
    uint16_t *aux;        // (m, n), bf16; NULL: no GELU
    int64_t ldaux;
    bool gelu; // aux = result, d = gelu(result); otherwise, with aux, d = result * gelu'(aux)
};

// d = epilogue(alpha op(a) op(b) + beta c). Sums are in fp32.
void emulated_product(const EmulatedProduct *product);

#endif
