// A CBLAS library's matrix product. The library is opened when its product is first wanted, and not linked with: then
// it takes no memory and starts no threads in a program that does without it, and a broken one keeps nobody from
// starting.
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "layers/cpu/sgemm.h"

// As cblas.h of every such library has it; sizes are int.
typedef void CblasSgemm(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float *a,
                        int lda, const float *b, int ldb, float beta, float *c, int ldc);
enum { ROW_MAJOR = 101, NO_TRANSPOSE = 111, TRANSPOSE = 112 };

static CblasSgemm *cblas_sgemm;

static bool fits_int(int64_t a, int64_t b, int64_t c) { return a <= INT_MAX && b <= INT_MAX && c <= INT_MAX; }

static void cblas_product(float *room, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                          const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    if (!fits_int(m, n, k) || !fits_int(lda, ldb, ldc)) {
        cpu_builtin_product()->sgemm(room, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
        return;
    }
    cblas_sgemm(ROW_MAJOR, transpose_a ? TRANSPOSE : NO_TRANSPOSE, transpose_b ? TRANSPOSE : NO_TRANSPOSE, (int)m,
                (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

static void cblas_product_bias(float *room, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                               const float *b, int64_t ldb, const float *bias, float *c, int64_t ldc) {
    for (int64_t i = 0; i < m && bias != NULL; i++) memcpy(c + i * ldc, bias, (size_t)n * sizeof *c);
    cblas_product(room, false, true, m, n, k, 1.0f, a, lda, b, ldb, bias != NULL ? 1.0f : 0.0f, c, ldc);
}

static MatrixProduct library = {NULL, cblas_product, cblas_product_bias}; // the name: of the file that was opened
static Error missing;                                                     // why there is none

#ifdef HAVE_CBLAS
// Each thread that calls OpenBLAS makes it take some 130 MiB of addresses, and where it cannot have them it asks again
// for ever. How many threads that will be is not known here, so there is no library where the kernel limits addresses.
static bool memory_is_limited(void) {
    struct rlimit addresses, data;
    return (getrlimit(RLIMIT_AS, &addresses) == 0 && addresses.rlim_cur != RLIM_INFINITY) ||
           (getrlimit(RLIMIT_DATA, &data) == 0 && data.rlim_cur != RLIM_INFINITY);
}

// NULL where it cannot be opened or is no CBLAS; dlerror() then says why.
static CblasSgemm *open_library(const char *name) {
    void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    return handle != NULL ? (CblasSgemm *)dlsym(handle, "cblas_sgemm") : NULL;
}

static void open_first(void) {
    static const char *const names[] = {"libopenblas.so.0", "libopenblas.so", "libblis.so.4", "libcblas.so.3"};
    // Products are called from threads of ours, one for each processor: the library is to start none of its own.
    static const char *const settings[] = {"OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS"};
    if (memory_is_limited()) {
        error_usage(&missing, "MATMUL=cblas: such a library may wait for ever for memory where that is limited: lift "
                              "the limit (ulimit -v, ulimit -d), or leave MATMUL out");
        return;
    }
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) setenv(settings[i], "1", 1);
    for (size_t i = 0; i < sizeof names / sizeof *names && cblas_sgemm == NULL; i++) {
        library.name = names[i];
        cblas_sgemm = open_library(names[i]);
        if (cblas_sgemm == NULL && i == 0) // what is said of the first is what to mend
            error_usage(&missing,
                        "MATMUL=cblas: no CBLAS library can be opened (%s): install OpenBLAS, or leave MATMUL out",
                        dlerror());
    }
}
#else
static void open_first(void) {
    error_usage(&missing, "MATMUL=cblas: this program was built without CBLAS libraries; leave MATMUL out");
}
#endif

const MatrixProduct *cpu_library_product(Error *err) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, open_first); // fails only where `once` is no such thing
    if (cblas_sgemm != NULL) return &library;
    *err = missing;
    return NULL;
}
