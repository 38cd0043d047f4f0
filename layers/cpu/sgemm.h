// Single-precision matrix products on one thread: our own, or a CBLAS library's.
//
// C (m, n) = alpha op(A) op(B) + beta C, row-major, op(X) = X or its transpose. op(A) is (m, k) and op(B) is (k, n);
// lda, ldb and ldc are the lengths of a stored row of A, B and C. With beta == 0, C is not read. C may not overlap A or
// B. Any m, n, k >= 0. Callers that want several threads cut the product themselves (layers/cpu/matmul_simd.c).
#ifndef LAYERS_CPU_SGEMM_H
#define LAYERS_CPU_SGEMM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

// `room`: SGEMM_ROOM floats from a cache line on, for the panels in which A and B are packed; of this call alone.
enum { SGEMM_ROOM = 132 << 10 };

typedef void Sgemm(float *room, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                   const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

// C (m, n) = A (m, k) B (n, k)^T + bias (n) in every row; bias may be NULL.
typedef void SgemmBias(float *room, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                       int64_t ldb, const float *bias, float *c, int64_t ldc);

typedef struct MatrixProduct {
    const char *name; // for people
    Sgemm *sgemm;
    SgemmBias *sgemm_bias;
} MatrixProduct;

// Our own product is the default where it has the vectors it was made for (AVX2, AVX-512): there it is as fast as the
// libraries and its sums do not depend on how a product is cut among threads. Elsewhere a CBLAS library's is, where one
// can be opened. MATMUL=builtin or MATMUL=cblas in the environment decides instead. The environment and simd_level()
// are read here, so call it once and keep the answer, which is constant. A library is opened at the first call that
// chooses it, which sets variables of the environment for it: make that before other threads read them.
//
// NULL and *err (usage) where MATMUL is neither of these, or a library was asked for and there is none.
const MatrixProduct *cpu_chosen_product(Error *err);
const MatrixProduct *cpu_matrix_product(void);        // the same, but our own where that fails
const MatrixProduct *cpu_builtin_product(void);       // ours, in the instruction set of simd_level()
const MatrixProduct *cpu_library_product(Error *err); // the library's, or NULL and *err (layers/cpu/cblas.c)

// cpu_matrix_product()->sgemm, looked up anew at every call (about 0.1 microsecond).
Sgemm cpu_sgemm;

#endif
