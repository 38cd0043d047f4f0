// cuBLASLt on the CPU: descriptors, what the library would refuse, and the product as an operation of the stream. The
// arithmetic is in product.cpp.
#include "emulated/cublasLt.h"

#include "emulated/memory.h"
#include "emulated/product.h"
#include "emulated/report.h"
#include "emulated/settings.h"
#include "emulated/stream.h"

struct EmulatedCublas {
    int unused;
};
struct EmulatedLayout {
    cudaDataType type;
    int64_t rows, columns, leading;
};
struct EmulatedMatmul {
    int32_t transpose_a, transpose_b;
    uint32_t epilogue;
    const void *bias;
    void *aux;
    int64_t aux_leading;
};
struct EmulatedPreference {
    uint64_t workspace_bytes;
    uint32_t reductions, alignment[4];
};

template <typename T> static cublasStatus_t create(T **made, T value) {
    if (made == NULL) return CUBLAS_STATUS_INVALID_VALUE;
    *made = static_cast<T *>(malloc(sizeof(T)));
    if (*made == NULL) return CUBLAS_STATUS_ALLOC_FAILED;
    **made = value;
    return CUBLAS_STATUS_SUCCESS;
}
static cublasStatus_t destroy(void *made) {
    free(made);
    return CUBLAS_STATUS_SUCCESS;
}
static cublasStatus_t set(void *member, size_t member_bytes, const void *value, size_t bytes) {
    if (value == NULL || bytes != member_bytes) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(member, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) { return create(handle, EmulatedCublas{0}); }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return destroy(handle); }

const char *cublasLtGetStatusString(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED: return "out of memory";
    case CUBLAS_STATUS_INVALID_VALUE: return "invalid value";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "execution failed";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "not supported";
    }
    return "unknown status";
}

size_t cublasLtGetVersion() { return 130000; }

// ---- descriptors ---------------------------------------------------------------------------------------------------

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t leading_dimension) {
    return create(layout, EmulatedLayout{type, (int64_t)rows, (int64_t)columns, leading_dimension});
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return destroy(layout); }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *operation, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    return create(operation, EmulatedMatmul{CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, NULL, NULL, 0});
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) { return destroy(operation); }

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t o, cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes) {
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA: return set(&o->transpose_a, sizeof o->transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB: return set(&o->transpose_b, sizeof o->transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return set(&o->epilogue, sizeof o->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return set(&o->bias, sizeof o->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: return set(&o->aux, sizeof o->aux, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: return set(&o->aux_leading, sizeof o->aux_leading, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    return create(preference, EmulatedPreference{0, 7, {256, 256, 256, 256}});
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) { return destroy(preference); }

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
                                                    size_t bytes) {
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return set(&p->workspace_bytes, sizeof p->workspace_bytes, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: return set(&p->reductions, sizeof p->reductions, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return set(&p->alignment[0], sizeof(uint32_t), value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return set(&p->alignment[1], sizeof(uint32_t), value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return set(&p->alignment[2], sizeof(uint32_t), value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return set(&p->alignment[3], sizeof(uint32_t), value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

// ---- what is refused -----------------------------------------------------------------------------------------------

static size_t bytes_of(cudaDataType type) { return type == CUDA_R_32F ? 4 : 2; }
static bool is_aligned(const void *address, size_t bytes) { return (uintptr_t)address % bytes == 0; }
static bool adds_bias(const EmulatedMatmul *o) {
    return o->epilogue == CUBLASLT_EPILOGUE_BIAS || o->epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}
static bool writes_aux(const EmulatedMatmul *o) {
    return o->epilogue == CUBLASLT_EPILOGUE_GELU_AUX || o->epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}
static bool has_aux(const EmulatedMatmul *o) { return writes_aux(o) || o->epilogue == CUBLASLT_EPILOGUE_DGELU; }

// Do the matrices fit each other and the epilogue? Fills in m, n, k, epilogue.
static cublasStatus_t check_shapes(const EmulatedMatmul *o, const EmulatedLayout *a, const EmulatedLayout *b,
                                   const EmulatedLayout *c, const EmulatedLayout *d, cublasLtMatmulAlgo_t *shape) {
    const EmulatedLayout *all[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        if (all[i]->rows <= 0 || all[i]->columns <= 0 || all[i]->leading < all[i]->rows)
            return CUBLAS_STATUS_INVALID_VALUE;
    shape->m = o->transpose_a ? a->columns : a->rows;
    shape->k = o->transpose_a ? a->rows : a->columns;
    shape->n = o->transpose_b ? b->rows : b->columns;
    shape->epilogue = static_cast<cublasLtEpilogue_t>(o->epilogue);
    if ((o->transpose_b ? b->columns : b->rows) != shape->k || c->type != d->type || c->rows != shape->m ||
        d->rows != shape->m || c->columns != shape->n || d->columns != shape->n)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (a->type != CUDA_R_16BF || b->type != CUDA_R_16BF || o->epilogue > CUBLASLT_EPILOGUE_DGELU)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (o->epilogue != CUBLASLT_EPILOGUE_DEFAULT && d->type != CUDA_R_16BF) return CUBLAS_STATUS_NOT_SUPPORTED;
    if ((adds_bias(o) && o->bias == NULL) || (has_aux(o) && o->aux == NULL)) return CUBLAS_STATUS_INVALID_VALUE;
    if (has_aux(o) && (o->aux_leading % 8 != 0 || o->aux_leading < shape->m)) return CUBLAS_STATUS_INVALID_VALUE;
    return CUBLAS_STATUS_SUCCESS;
}

// Which products have epilogues is not documented. Here: those of whole packets, with an even n.
static bool has_epilogue(const cublasLtMatmulAlgo_t *shape, const EmulatedLayout *a, const EmulatedLayout *b,
                         const EmulatedLayout *d, const EmulatedPreference *preference) {
    for (int i = 0; i < 4; i++)
        if (preference->alignment[i] % 16 != 0) return false;
    return a->leading % 8 == 0 && b->leading % 8 == 0 && d->leading % 8 == 0 && shape->n % 2 == 0;
}

// The bytes, 16 at most, of which where each column of a matrix (a row of ours) begins and ends is a multiple. Kernels
// for less than 16 are slow on a GPU.
static unsigned run_alignment(const EmulatedLayout *layout, uint32_t address) {
    const uint64_t bits = 16 | address | (uint64_t)(layout->leading | layout->rows) * bytes_of(layout->type);
    return (unsigned)(bits & -bits);
}

static void tell_product(const cublasLtMatmulAlgo_t *shape, const EmulatedLayout *a, const EmulatedLayout *b,
                         const EmulatedLayout *d, const uint32_t *alignment) {
    fprintf(stderr, "emulated GPU: product of m %lld, n %lld, k %lld: A aligned to %u bytes, B to %u, D to %u\n",
            (long long)shape->m, (long long)shape->n, (long long)shape->k, run_alignment(a, alignment[0]),
            run_alignment(b, alignment[1]), run_alignment(d, alignment[3]));
}

// In the order in which the library proposes them.
struct Algorithm {
    int32_t parts;
    uint32_t reduction;
    int64_t stretch; // so much of k is summed on its own
};
static const Algorithm algorithms[] = {{4, CUBLASLT_REDUCTION_SCHEME_INPLACE, 16},
                                       {1, CUBLASLT_REDUCTION_SCHEME_NONE, 256},
                                       {1, CUBLASLT_REDUCTION_SCHEME_NONE, 64},
                                       {2, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, 32},
                                       {2, CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE, 16}};
enum { ALGORITHMS = sizeof algorithms / sizeof algorithms[0] };
static_assert((int)ALGORITHMS == (int)EMULATED_ALGORITHMS, "settings.h");

static size_t workspace_of(const Algorithm *algorithm, const cublasLtMatmulAlgo_t *shape) {
    const size_t some = 64 << 10, sum = (size_t)(shape->m * shape->n) * sizeof(float);
    const bool stored = (algorithm->reduction & ~(uint32_t)CUBLASLT_REDUCTION_SCHEME_INPLACE) != 0;
    return some + (stored ? (size_t)algorithm->parts * sum : 0);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int *found) {
    *found = 0;
    if (handle == NULL || wanted <= 0) return CUBLAS_STATUS_INVALID_VALUE;
    cublasLtMatmulHeuristicResult_t result = {};
    cublasStatus_t status = check_shapes(operation, a, b, c, d, &result.algo);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (operation->epilogue != CUBLASLT_EPILOGUE_DEFAULT && !has_epilogue(&result.algo, a, b, d, preference))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    memcpy(result.algo.alignment, preference->alignment, sizeof result.algo.alignment);
    if (settings()->products) tell_product(&result.algo, a, b, d, preference->alignment);
    result.state = CUBLAS_STATUS_SUCCESS;
    for (int id = 0; id < ALGORITHMS && *found < wanted; id++) {
        const Algorithm *algorithm = &algorithms[id];
        if ((algorithm->reduction & ~preference->reductions) != 0) continue;
        const size_t needs = workspace_of(algorithm, &result.algo);
        if (needs > preference->workspace_bytes) continue;
        result.algo.id = id, result.algo.parts = algorithm->parts, result.algo.reduction = algorithm->reduction;
        result.workspaceSize = result.algo.workspace_bytes = needs;
        results[(*found)++] = result;
    }
    return *found > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algorithm,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, void *value,
                                                    size_t bytes, size_t *written) {
    const uint32_t values[] = {(uint32_t)algorithm->id, 0, (uint32_t)algorithm->parts, algorithm->reduction};
    if (attribute > CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME || bytes != sizeof values[0])
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(value, &values[attribute], bytes);
    *written = bytes;
    return CUBLAS_STATUS_SUCCESS;
}

// ---- the product ---------------------------------------------------------------------------------------------------

// The library cannot tell whose memory a pointer is, but its kernels end with an illegal address.
static void expect_device_memory(const char *what, const void *first, int64_t count, size_t element_bytes) {
    int device = PINNED;
    size_t rest = 0;
    const size_t bytes = (size_t)count * element_bytes;
    if (!memory_owner(first, &device, &rest) || device == PINNED || rest < bytes)
        report_host("cublasLtMatmul: %s is %zu bytes from %p on, which are not all of one allocation of a GPU", what,
                    bytes, first);
}
static int64_t extent(const EmulatedLayout *layout) { return (layout->columns - 1) * layout->leading + layout->rows; }

struct Job {
    EmulatedProduct product;
    void *workspace;
    size_t workspace_bytes;
    cudaStream_t stream;
    double seconds; // longer than it takes
};
static void run_job(void *argument) {
    Job *job = static_cast<Job *>(argument);
    memset(job->workspace, 0xff, job->workspace_bytes); // whoever keeps something there is to notice
    emulated_product(&job->product);
    stream_lengthen(job->stream, job->seconds);
}

static bool keeps_promises(const cublasLtMatmulAlgo_t *chosen, const cublasLtMatmulAlgo_t *now, const void *a,
                           const void *b, const void *c, const void *d, size_t workspace_bytes) {
    return chosen->m == now->m && chosen->n == now->n && chosen->k == now->k && chosen->epilogue == now->epilogue &&
           is_aligned(a, chosen->alignment[0]) && is_aligned(b, chosen->alignment[1]) &&
           is_aligned(c, chosen->alignment[2]) && is_aligned(d, chosen->alignment[3]) &&
           workspace_bytes >= chosen->workspace_bytes;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t o, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                              const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algorithm, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
    if (handle == NULL || algorithm == NULL || algorithm->id < 0 || algorithm->id >= ALGORITHMS)
        return CUBLAS_STATUS_INVALID_VALUE;
    cublasLtMatmulAlgo_t now = {};
    cublasStatus_t status = check_shapes(o, a_layout, b_layout, c_layout, d_layout, &now);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (!keeps_promises(algorithm, &now, a, b, c, d, workspace_bytes)) return CUBLAS_STATUS_INVALID_VALUE;

    if ((adds_bias(o) && !is_aligned(o->bias, 16)) || (has_aux(o) && !is_aligned(o->aux, 16)))
        report_host(
            "cublasLtMatmul: misaligned address: the epilogue reads its bias %p and auxiliary matrix %p by 16 bytes",
            o->bias, o->aux);
    expect_device_memory("A", a, extent(a_layout), bytes_of(a_layout->type));
    expect_device_memory("B", b, extent(b_layout), bytes_of(b_layout->type));
    expect_device_memory("C", c, extent(c_layout), bytes_of(c_layout->type));
    expect_device_memory("D", d, extent(d_layout), bytes_of(d_layout->type));
    if (adds_bias(o)) expect_device_memory("the bias", o->bias, now.m, 2);
    if (has_aux(o)) expect_device_memory("the auxiliary matrix", o->aux, (now.n - 1) * o->aux_leading + now.m, 2);
    if (algorithm->workspace_bytes > 0)
        expect_device_memory("the workspace", workspace, (int64_t)algorithm->workspace_bytes, 1);

    Job *job = static_cast<Job *>(malloc(sizeof(Job)));
    if (job == NULL) return CUBLAS_STATUS_ALLOC_FAILED;
    EmulatedProduct p = {};
    p.m = now.m, p.n = now.n, p.k = now.k;
    p.a = static_cast<const uint16_t *>(a), p.b = static_cast<const uint16_t *>(b), p.c = c, p.d = d;
    p.lda = a_layout->leading, p.ldb = b_layout->leading, p.ldc = c_layout->leading, p.ldd = d_layout->leading;
    p.transpose_a = o->transpose_a == CUBLAS_OP_T, p.transpose_b = o->transpose_b == CUBLAS_OP_T;
    p.float_out = d_layout->type == CUDA_R_32F;
    memcpy(&p.alpha, alpha, sizeof p.alpha);
    memcpy(&p.beta, beta, sizeof p.beta);
    p.bias = adds_bias(o) ? static_cast<const uint16_t *>(o->bias) : NULL;
    p.aux = has_aux(o) ? static_cast<uint16_t *>(o->aux) : NULL;
    p.ldaux = o->aux_leading;
    p.gelu = writes_aux(o);
    p.stretch = algorithms[algorithm->id].stretch;
    p.any_order = algorithm->reduction == CUBLASLT_REDUCTION_SCHEME_INPLACE;
    *job = Job{p, workspace, algorithm->workspace_bytes, stream, settings()->algorithm_seconds[algorithm->id]};
    const Operation operation = {NULL, run_job, free, job, "cublasLtMatmul"};
    return stream_enqueue(stream, &operation) == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
