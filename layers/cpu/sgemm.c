#include "layers/cpu/sgemm.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu_features.h"

extern const MatrixProduct builtin_product_portable, builtin_product_avx2, builtin_product_avx512; // sgemm_simd.c

const MatrixProduct *cpu_builtin_product(void) {
    switch (simd_level()) {
#if defined(__x86_64__)
    case SIMD_AVX512: return &builtin_product_avx512;
    case SIMD_AVX2: return &builtin_product_avx2;
#endif
    default: return &builtin_product_portable;
    }
}

#ifdef HAVE_CBLAS
#include <cblas.h>
#include <limits.h>

static bool fits_int(int64_t a, int64_t b, int64_t c) { return a <= INT_MAX && b <= INT_MAX && c <= INT_MAX; }

static void cblas_product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                          const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    if (!fits_int(m, n, k) || !fits_int(lda, ldb, ldc)) { // a CBLAS takes sizes as int
        cpu_builtin_product()->sgemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
        return;
    }
    cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans, (int)m,
                (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

static void cblas_product_bias(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                               int64_t ldb, const float *bias, float *c, int64_t ldc) {
    for (int64_t i = 0; i < m && bias != NULL; i++) memcpy(c + i * ldc, bias, (size_t)n * sizeof *c);
    cblas_product(false, true, m, n, k, 1.0f, a, lda, b, ldb, bias != NULL ? 1.0f : 0.0f, c, ldc);
}

// A library that starts threads of its own must not: every rank and every layer's task calls it from a thread of ours.
static void one_thread_per_call(void) {
#ifdef HAVE_OPENBLAS
    openblas_set_num_threads(1);
#endif
}

const MatrixProduct *cpu_library_product(void) {
    static const MatrixProduct cblas = {HAVE_CBLAS, cblas_product, cblas_product_bias};
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    return pthread_once(&once, one_thread_per_call) == 0 ? &cblas : NULL;
}
#else
const MatrixProduct *cpu_library_product(void) { return NULL; }
#endif

const MatrixProduct *cpu_matrix_product(void) {
    bool library = simd_level() == SIMD_PORTABLE;
    const char *wanted = getenv("MATMUL");
    if (wanted != NULL && strcmp(wanted, "builtin") == 0) library = false;
    if (wanted != NULL && strcmp(wanted, "cblas") == 0) library = true;
    const MatrixProduct *found = library ? cpu_library_product() : NULL;
    return found != NULL ? found : cpu_builtin_product();
}

void cpu_sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
               int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    cpu_matrix_product()->sgemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
