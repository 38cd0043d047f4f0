// cuBLASLt, cuFFT and NCCL, opened when they are first called rather than when the program starts: the same binary then runs
// where they are not installed, and a run on the CPU does not load half a gigabyte of them. Every function that the
// project calls is defined here under its own name, and hands its arguments on.
#include <cublasLt.h>
#include <cufft.h>
#include <dlfcn.h>
#include <nccl.h>
#include <stdio.h>

#include "base/error.h"
#include "layers/cuda/cuda.h"
#include "layers/cuda/libraries.h"

namespace {

enum { MOST_NAMES = 4 };

struct Library {
    const char *title, *names[MOST_NAMES];
    void *handle;
};

// First the version that this was built with: a newer one may want a newer driver than there is.
#define TEXT(x) #x
#define WITH_VERSION(name, version) name "." TEXT(version)
Library cublas_lt = {
    "cuBLASLt",
    {WITH_VERSION("libcublasLt.so", CUBLAS_VER_MAJOR), "libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"},
    nullptr};
Library cufft = {"cuFFT", {"libcufft.so.12", "libcufft.so.11", "libcufft.so"}, nullptr};
Library nccl = {"NCCL", {"libnccl.so.2", "libnccl.so"}, nullptr};

void *open_library(const char *name) {
    char path[1024];
    void *handle = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
    const char *folders[] = {CUDA_LIBRARIES, CUDA_LIBRARIES "/../lib"}; // of the toolkit that this was built with
    for (int i = 0; i < 2 && handle == nullptr; i++) {
        snprintf(path, sizeof path, "%s/%s", folders[i], name);
        handle = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    }
    return handle;
}

// Several threads may come here at once: each finds the same handle, since dlopen counts its users.
void *handle_of(Library *library) {
    void *handle = __atomic_load_n(&library->handle, __ATOMIC_ACQUIRE);
    for (int i = 0; handle == nullptr && i < MOST_NAMES && library->names[i] != nullptr; i++)
        handle = open_library(library->names[i]);
    __atomic_store_n(&library->handle, handle, __ATOMIC_RELEASE);
    return handle;
}

void *function(Library *library, const char *name) {
    void *handle = handle_of(library);
    void *found = handle == nullptr ? nullptr : dlsym(handle, name);
    if (found != nullptr) return found;
    Error err;
    if (handle == nullptr)
        error_set(&err, "%s is not found: install it, or name the folder of %s in LD_LIBRARY_PATH, or use --device cpu",
                  library->title, library->names[0]);
    else error_set(&err, "%s has no %s: it is too old for this program; install a newer one", library->title, name);
    die(&err);
}

} // namespace

#define FORWARD(library, type, name, parameters, arguments)                                                            \
    extern "C" type name parameters {                                                                                  \
        typedef type Function parameters;                                                                              \
        static void *found;                                                                                            \
        void *known = __atomic_load_n(&found, __ATOMIC_RELAXED);                                                       \
        if (known == nullptr) __atomic_store_n(&found, known = function(&library, #name), __ATOMIC_RELAXED);           \
        return reinterpret_cast<Function *>(known) arguments;                                                          \
    }
#define CUBLAS(name, parameters, arguments) FORWARD(cublas_lt, cublasStatus_t, name, parameters, arguments)
#define CUFFT(name, parameters, arguments) FORWARD(cufft, cufftResult, name, parameters, arguments)
#define NCCL(name, parameters, arguments) FORWARD(nccl, ncclResult_t, name, parameters, arguments)

// ---- cuBLASLt -------------------------------------------------------------------------------------------------------

CUBLAS(cublasLtCreate, (cublasLtHandle_t * handle), (handle))
CUBLAS(cublasLtDestroy, (cublasLtHandle_t handle), (handle))
FORWARD(cublas_lt, const char *, cublasLtGetStatusString, (cublasStatus_t status), (status))
FORWARD(cublas_lt, size_t, cublasLtGetVersion, (), ())
CUBLAS(cublasLtMatmul,
       (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void *alpha, const void *a,
        cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout, const void *beta,
        const void *c, cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
        const cublasLtMatmulAlgo_t *algorithm, void *workspace, size_t workspace_bytes, cudaStream_t stream),
       (handle, operation, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algorithm, workspace,
        workspace_bytes, stream))
CUBLAS(cublasLtMatmulAlgoGetHeuristic,
       (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
        cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int wanted,
        cublasLtMatmulHeuristicResult_t results[], int *found_count),
       (handle, operation, a, b, c, d, preference, wanted, results, found_count))
CUBLAS(cublasLtMatmulAlgoConfigGetAttribute,
       (const cublasLtMatmulAlgo_t *algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute, void *value,
        size_t bytes, size_t *written),
       (algorithm, attribute, value, bytes, written))
CUBLAS(cublasLtMatmulDescCreate, (cublasLtMatmulDesc_t * operation, cublasComputeType_t compute, cudaDataType_t scale),
       (operation, compute, scale))
CUBLAS(cublasLtMatmulDescDestroy, (cublasLtMatmulDesc_t operation), (operation))
CUBLAS(cublasLtMatmulDescSetAttribute,
       (cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const void *value, size_t bytes),
       (operation, attribute, value, bytes))
CUBLAS(cublasLtMatmulPreferenceCreate, (cublasLtMatmulPreference_t * preference), (preference))
CUBLAS(cublasLtMatmulPreferenceDestroy, (cublasLtMatmulPreference_t preference), (preference))
CUBLAS(cublasLtMatmulPreferenceSetAttribute,
       (cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
        size_t bytes),
       (preference, attribute, value, bytes))
CUBLAS(cublasLtMatrixLayoutCreate,
       (cublasLtMatrixLayout_t * layout, cudaDataType type, uint64_t rows, uint64_t columns, int64_t leading),
       (layout, type, rows, columns, leading))
CUBLAS(cublasLtMatrixLayoutDestroy, (cublasLtMatrixLayout_t layout), (layout))

// ---- cuFFT ----------------------------------------------------------------------------------------------------------

bool cufft_opens(void) { return handle_of(&cufft) != nullptr; }

CUFFT(cufftCreate, (cufftHandle * plan), (plan))
CUFFT(cufftDestroy, (cufftHandle plan), (plan))
CUFFT(cufftSetAutoAllocation, (cufftHandle plan, int automatic), (plan, automatic))
CUFFT(cufftMakePlanMany64,
      (cufftHandle plan, int rank, long long *n, long long *in_embed, long long in_stride, long long in_distance,
       long long *out_embed, long long out_stride, long long out_distance, cufftType type, long long batch,
       size_t *work_bytes),
      (plan, rank, n, in_embed, in_stride, in_distance, out_embed, out_stride, out_distance, type, batch, work_bytes))
CUFFT(cufftSetStream, (cufftHandle plan, cudaStream_t stream), (plan, stream))
CUFFT(cufftSetWorkArea, (cufftHandle plan, void *work), (plan, work))
CUFFT(cufftExecR2C, (cufftHandle plan, cufftReal *in, cufftComplex *out), (plan, in, out))
CUFFT(cufftExecC2R, (cufftHandle plan, cufftComplex *in, cufftReal *out), (plan, in, out))

// ---- NCCL -----------------------------------------------------------------------------------------------------------

bool nccl_opens(void) { return handle_of(&nccl) != nullptr; }

NCCL(ncclGetUniqueId, (ncclUniqueId * id), (id))
NCCL(ncclCommInitRank, (ncclComm_t * comm, int ranks, ncclUniqueId id, int rank), (comm, ranks, id, rank))
NCCL(ncclCommDestroy, (ncclComm_t comm), (comm))
NCCL(ncclCommGetAsyncError, (ncclComm_t comm, ncclResult_t *error), (comm, error))
FORWARD(nccl, const char *, ncclGetErrorString, (ncclResult_t result), (result))
FORWARD(nccl, const char *, ncclGetLastError, (ncclComm_t comm), (comm))
NCCL(ncclGroupStart, (), ())
NCCL(ncclGroupEnd, (), ())
NCCL(ncclSend, (const void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream),
     (data, count, type, peer, comm, stream))
NCCL(ncclRecv, (void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream),
     (data, count, type, peer, comm, stream))
NCCL(ncclBroadcast,
     (const void *in, void *out, size_t count, ncclDataType_t type, int root, ncclComm_t comm, cudaStream_t stream),
     (in, out, count, type, root, comm, stream))
NCCL(ncclAllGather,
     (const void *in, void *out, size_t count, ncclDataType_t type, ncclComm_t comm, cudaStream_t stream),
     (in, out, count, type, comm, stream))
