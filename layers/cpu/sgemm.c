// Which matrix product computes, by the processor and the environment.
#include "layers/cpu/sgemm.h"

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

const MatrixProduct *cpu_chosen_product(Error *err) {
    const char *wanted = getenv("MATMUL");
    Error unsaid;
    if (wanted == NULL || *wanted == '\0') {
        const MatrixProduct *library = simd_level() == SIMD_PORTABLE ? cpu_library_product(&unsaid) : NULL;
        return library != NULL ? library : cpu_builtin_product();
    }
    if (strcmp(wanted, "builtin") == 0) return cpu_builtin_product();
    if (strcmp(wanted, "cblas") == 0) return cpu_library_product(err);
    error_usage(err, "MATMUL=%s in the environment: give builtin or cblas, or leave it out", wanted);
    return NULL;
}

const MatrixProduct *cpu_matrix_product(void) {
    Error unsaid;
    const MatrixProduct *chosen = cpu_chosen_product(&unsaid);
    return chosen != NULL ? chosen : cpu_builtin_product();
}

void cpu_sgemm(float *room, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
               const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    cpu_matrix_product()->sgemm(room, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
