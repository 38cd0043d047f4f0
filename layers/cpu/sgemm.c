#include "layers/cpu/sgemm.h"

#include <stdlib.h>
#include <string.h>

#include "base/cpu_features.h"

extern const MatrixProduct builtin_product_portable, builtin_product_avx2, builtin_product_avx512; // sgemm_simd.c

static const MatrixProduct *builtin_product(SimdLevel level) {
#if defined(__x86_64__)
    if (level == SIMD_AVX512) return &builtin_product_avx512;
    if (level == SIMD_AVX2) return &builtin_product_avx2;
#endif
    (void)level;
    return &builtin_product_portable;
}

#ifdef HAVE_CBLAS
#include <cblas.h>
#include <limits.h>

// A CBLAS takes sizes as int. Larger products are cut: m and n into blocks of C, k into partial sums.
static const int64_t LARGEST = INT_MAX / 2 + 1;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static const float *element(const float *x, bool transposed, int64_t stride, int64_t row, int64_t column) {
    return transposed ? x + column * stride + row : x + row * stride + column;
}

static void cblas_product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                          const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    if (lda > INT_MAX || ldb > INT_MAX || ldc > INT_MAX) { // rows that no CBLAS can step over
        builtin_product(simd_level())->sgemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
        return;
    }
    for (int64_t i = 0; i < m; i += LARGEST) {
        for (int64_t j = 0; j < n; j += LARGEST) {
            int64_t p = 0;
            do { // at least once, so that k == 0 still scales C
                cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans,
                            transpose_b ? CblasTrans : CblasNoTrans, (int)smaller(LARGEST, m - i),
                            (int)smaller(LARGEST, n - j), (int)smaller(LARGEST, k - p), alpha,
                            element(a, transpose_a, lda, i, p), (int)lda, element(b, transpose_b, ldb, p, j), (int)ldb,
                            p == 0 ? beta : 1.0f, c + i * ldc + j, (int)ldc);
                p += LARGEST;
            } while (p < k);
        }
    }
}

static void cblas_product_bias(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                               const float *bias, float *c, int64_t ldc) {
    for (int64_t i = 0; i < m && bias != NULL; i++) memcpy(c + i * ldc, bias, (size_t)n * sizeof *c);
    cblas_product(false, true, m, n, k, 1.0f, a, lda, b, ldb, bias != NULL ? 1.0f : 0.0f, c, ldc);
}

static const MatrixProduct cblas = {HAVE_CBLAS, cblas_product, cblas_product_bias};
static const MatrixProduct *const library_product = &cblas;
#else
static const MatrixProduct *const library_product = NULL;
#endif

const MatrixProduct *cpu_matrix_product(void) {
    SimdLevel level = simd_level();
    bool use_library = level == SIMD_PORTABLE;
    const char *wanted = getenv("MATMUL");
    if (wanted != NULL && strcmp(wanted, "builtin") == 0) use_library = false;
    if (wanted != NULL && strcmp(wanted, "cblas") == 0) use_library = true;
    return use_library && library_product != NULL ? library_product : builtin_product(level);
}

void cpu_sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
               int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    cpu_matrix_product()->sgemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
