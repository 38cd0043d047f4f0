// Matrix products of the layers, by cuBLASLt: bf16 in, fp32 sums, bf16 or fp32 out.
//
// cuBLASLt counts by columns: it takes a row-major matrix (rows, K) for a matrix (K, rows), its transpose. So it is
// asked for the transpose of what is wanted, with the factors swapped:
//   out = x weight^T        out^T (N, rows) = weight x^T         A = weight, transposed;  B = x
//   d_x = d_out weight      d_x^T (K, rows) = weight^T d_out^T   A = weight;              B = d_out
//   d_weight = d_out^T x    d_weight^T (K, N) = x^T d_out        A = x;                   B = d_out, transposed
//
// Bias and GELU ride along as "epilogues": they work on the sums before these are rounded and written, which saves a
// pass over memory. Where cuBLASLt cannot (alignment, or it has no such algorithm), the product is added to rows that
// were set to the bias, so that nothing is rounded before the sum is whole; for GELU a kernel of our own follows.
//
// Asking cuBLASLt which algorithm is best takes longer than a small product does, so its answers are kept
// (MatmulPlans).
#include "layers/cuda/bf16.h"
#include "layers/cuda/bias.h"
#include "layers/cuda/columns.h"
#include "layers/cuda/context.h"
#include "layers/cuda/layers.h"

#include <stdlib.h>
#include <string.h>

// ---- plans ---------------------------------------------------------------------------------------------------------
enum { MAX_PLANS = 256, BEST_ALIGNMENT = 256 /* bytes; what cuBLASLt assumes unless told */ };

// What cuBLASLt's choice depends on. Compared as bytes: no padding.
struct PlanKey {
    int64_t m, n, k;
    int32_t transpose_a, transpose_b, float_out, epilogue;
    int32_t alignment_a, alignment_b, alignment_d, alignment_bias, alignment_aux, unused;
};
static_assert(sizeof(PlanKey) == 3 * 8 + 10 * 4, "no padding");

struct Plan {
    PlanKey key;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algorithm;
    bool possible; // false: cuBLASLt has no algorithm for it
};

struct MatmulPlans {
    Plan plan[MAX_PLANS];
    int64_t made; // the newest is at (made - 1) % MAX_PLANS, over the oldest
};

// D (m, n) = op(A) (m, k) op(B) (k, n) + beta D, in cuBLASLt's order of axes.
struct Product {
    int64_t m, n, k;
    bool transpose_a, transpose_b, float_out;
    const void *a, *b;
    void *d;
    float beta;
    cublasLtEpilogue_t epilogue;
    const void *bias; // (m)
    void *aux;        // (m, n), bf16: written by GELU_AUX, read by DGELU
};

struct MatmulPlans *matmul_plans_new(void) {
    MatmulPlans *plans = static_cast<MatmulPlans *>(calloc(1, sizeof(MatmulPlans)));
    if (plans == NULL) cuda_give_up(__FILE__, __LINE__, "no memory for the plans of matrix products");
    return plans;
}

#define CUBLAS_CHECK(call) cublas_check((call), #call, __LINE__)
static void cublas_check(cublasStatus_t status, const char *call, int line) {
    if (status != CUBLAS_STATUS_SUCCESS) cuda_give_up(__FILE__, line, "%s: %s", call, cublasLtGetStatusString(status));
}

static void plan_free(Plan *plan) {
    CUBLAS_CHECK(cublasLtMatmulDescDestroy(plan->operation));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(plan->a));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(plan->b));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(plan->d));
}

void matmul_plans_free(struct MatmulPlans *plans) {
    if (plans == NULL) return;
    for (int64_t i = 0; i < plans->made && i < MAX_PLANS; i++) plan_free(&plans->plan[i]);
    free(plans);
}

static int32_t alignment_of(const void *address) { // NULL: as good as any
    int32_t alignment = BEST_ALIGNMENT;
    while ((uintptr_t)address % (uintptr_t)alignment != 0) alignment /= 2;
    return alignment;
}

static PlanKey key_of(const Product *p) {
    PlanKey key;
    memset(&key, 0, sizeof key);
    key.m = p->m, key.n = p->n, key.k = p->k;
    key.transpose_a = p->transpose_a, key.transpose_b = p->transpose_b, key.float_out = p->float_out;
    key.epilogue = (int32_t)p->epilogue;
    key.alignment_a = alignment_of(p->a), key.alignment_b = alignment_of(p->b), key.alignment_d = alignment_of(p->d);
    key.alignment_bias = alignment_of(p->bias), key.alignment_aux = alignment_of(p->aux);
    return key;
}

template <typename T>
static void set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, T value) {
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value));
}
template <typename T>
static void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
}

static void set_pointers(const Plan *plan, const Product *p) {
    if (p->bias != NULL) set(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p->bias);
    if (p->aux != NULL) set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p->aux);
}

static cublasLtMatrixLayout_t layout_of(cudaDataType_t type, int64_t rows, int64_t columns) {
    cublasLtMatrixLayout_t layout;
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&layout, type, (uint64_t)rows, (uint64_t)columns, rows));
    return layout;
}

static void describe(Plan *plan, const Product *p) {
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, (int32_t)(p->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N));
    set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, (int32_t)(p->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N));
    set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)p->epilogue);
    if (p->aux != NULL) set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p->m);
    plan->a = layout_of(CUDA_R_16BF, p->transpose_a ? p->k : p->m, p->transpose_a ? p->m : p->k);
    plan->b = layout_of(CUDA_R_16BF, p->transpose_b ? p->n : p->k, p->transpose_b ? p->k : p->n);
    plan->d = layout_of(p->float_out ? CUDA_R_32F : CUDA_R_16BF, p->m, p->n);
}

// A long sum may be split over the GPU and its parts added up. That happens in fp32 (so not in a bf16 output) and in a
// fixed order, the same in every run.
static void choose_algorithm(const CudaContext *context, Plan *plan) {
    cublasLtMatmulPreference_t preference;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    if (plan->key.float_out) reductions |= CUBLASLT_REDUCTION_SCHEME_INPLACE;
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)context->workspace_bytes);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)plan->key.alignment_a);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)plan->key.alignment_b);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)plan->key.alignment_d);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)plan->key.alignment_d);

    cublasLtMatmulHeuristicResult_t result;
    memset(&result, 0, sizeof result);
    int results = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(context->cublas, plan->operation, plan->a, plan->b, plan->d,
                                                           plan->d, preference, 1, &result, &results);
    CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    plan->possible = status == CUBLAS_STATUS_SUCCESS && results == 1 && result.state == CUBLAS_STATUS_SUCCESS;
    plan->algorithm = result.algo;
}

static Plan *plan_of(const CudaContext *context, const Product *p) {
    MatmulPlans *plans = context->plans;
    const PlanKey key = key_of(p);
    for (int64_t i = 0; i < plans->made && i < MAX_PLANS; i++)
        if (memcmp(&plans->plan[i].key, &key, sizeof key) == 0) return &plans->plan[i];

    Plan *plan = &plans->plan[plans->made % MAX_PLANS];
    if (plans->made >= MAX_PLANS) plan_free(plan);
    plans->made++;
    plan->key = key;
    describe(plan, p);
    set_pointers(plan, p); // the choice looks at their alignment
    choose_algorithm(context, plan);
    return plan;
}

// False: cuBLASLt does not have this product with this epilogue, and nothing was done. Without an epilogue that ends
// the program.
static bool multiply(Device *device, const Product *p) {
    const CudaContext *context = context_of(device);
    Plan *plan = plan_of(context, p);
    cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (plan->possible) {
        const float alpha = 1.0f;
        set_pointers(plan, p);
        status = cublasLtMatmul(context->cublas, plan->operation, &alpha, p->a, plan->a, p->b, plan->b, &p->beta, p->d,
                                plan->d, p->d, plan->d, &plan->algorithm, context->workspace, context->workspace_bytes,
                                stream_of(device));
        if (status == CUBLAS_STATUS_SUCCESS) return true;
        plan->possible = false;
    }
    if (p->epilogue != CUBLASLT_EPILOGUE_DEFAULT && status == CUBLAS_STATUS_NOT_SUPPORTED) return false;
    cuda_give_up(__FILE__, __LINE__, "cuBLASLt: %s: product of (%lld, %lld) and (%lld, %lld), epilogue %d",
                 cublasLtGetStatusString(status), (long long)p->m, (long long)p->k, (long long)p->k, (long long)p->n,
                 (int)p->epilogue);
}

// ---- the three products of a layer ---------------------------------------------------------------------------------

// cuBLASLt's kernels count rows in 32 bits, so more than this many are given to it in pieces.
static const int64_t ROWS_AT_ONCE = 1 << 24;

static const bf16 *row_of(const void *matrix, int64_t row, int64_t width) {
    return static_cast<const bf16 *>(matrix) + row * width;
}
static bf16 *row_of(void *matrix, int64_t row, int64_t width) { return static_cast<bf16 *>(matrix) + row * width; }

// out (rows, N) = or += x weight^T, through the epilogue. False: it cannot.
static bool forward_product(Device *device, void *out, const void *x, const void *weight, cublasLtEpilogue_t epilogue,
                            const void *bias, void *pre, int64_t rows, int64_t K, int64_t N, bool accumulate) {
    for (int64_t first = 0; first < rows; first += ROWS_AT_ONCE) {
        Product p = {};
        p.m = N, p.n = smaller_of(ROWS_AT_ONCE, rows - first), p.k = K;
        p.transpose_a = true;
        p.a = weight;
        p.b = row_of(x, first, K);
        p.d = row_of(out, first, N);
        p.beta = accumulate ? 1.0f : 0.0f;
        p.epilogue = epilogue;
        p.bias = bias;
        p.aux = pre == NULL ? NULL : row_of(pre, first, N);
        if (!multiply(device, &p)) return false;
    }
    return true;
}

// d_x (rows, K) = or += d_out weight, through the epilogue. False: it cannot.
static bool input_gradient(Device *device, void *d_x, const void *d_out, const void *weight,
                           cublasLtEpilogue_t epilogue, const void *pre, int64_t rows, int64_t K, int64_t N,
                           bool accumulate) {
    for (int64_t first = 0; first < rows; first += ROWS_AT_ONCE) {
        Product p = {};
        p.m = K, p.n = smaller_of(ROWS_AT_ONCE, rows - first), p.k = N;
        p.a = weight;
        p.b = row_of(d_out, first, N);
        p.d = row_of(d_x, first, K);
        p.beta = accumulate ? 1.0f : 0.0f;
        p.epilogue = epilogue;
        p.aux = pre == NULL ? NULL : const_cast<bf16 *>(row_of(pre, first, K)); // only read
        if (!multiply(device, &p)) return false;
    }
    return true;
}

// d_weight (N, K) += d_out^T x
static void weight_gradient(Device *device, float *d_weight, const void *d_out, const void *x, int64_t rows, int64_t K,
                            int64_t N) {
    for (int64_t first = 0; first < rows; first += ROWS_AT_ONCE) {
        Product p = {};
        p.m = K, p.n = N, p.k = smaller_of(ROWS_AT_ONCE, rows - first);
        p.transpose_b = true;
        p.float_out = true;
        p.a = row_of(x, first, K);
        p.b = row_of(d_out, first, N);
        p.d = d_weight;
        p.beta = 1.0f;
        p.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
        multiply(device, &p);
    }
}

// ---- layers --------------------------------------------------------------------------------------------------------

// Epilogues read bias and aux 16 bytes at a time, and no preference tells cuBLASLt that they are less aligned; aux (the
// GELU's input) also needs rows of a multiple of 8 values (cublasLt.h, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD). Where the
// matrices are not whole packets of 16 bytes either, what an epilogue does is not to be relied upon: on an H200, the
// bias of rows of 257 came to sums that had been rounded already. So it is not asked there.
static bool epilogue_fits(int64_t K, int64_t N, const void *a, const void *b, const void *d, const void *bias,
                          const void *aux) {
    return N % 8 == 0 && fits_packets(K, a, b, d, bias, aux);
}

void cuda_matmul_forward(Device *device, void *out, const void *x, const void *weight, const void *bias, int64_t rows,
                         int64_t K, int64_t N) {
    if (rows == 0 || N == 0 || K == 0) return;
    if (bias != NULL && epilogue_fits(K, N, x, weight, out, bias, NULL) &&
        forward_product(device, out, x, weight, CUBLASLT_EPILOGUE_BIAS, bias, NULL, rows, K, N, false))
        return;
    if (bias != NULL) set_rows(device, out, bias, rows, N);
    forward_product(device, out, x, weight, CUBLASLT_EPILOGUE_DEFAULT, NULL, NULL, rows, K, N, bias != NULL);
}

void cuda_matmul_backward(Device *device, void *d_x, float *d_weight, float *d_bias, const void *d_out, const void *x,
                          const void *weight, int64_t rows, int64_t K, int64_t N, bool accumulate) {
    if (rows == 0 || N == 0 || K == 0) return;
    if (d_x != NULL)
        input_gradient(device, d_x, d_out, weight, CUBLASLT_EPILOGUE_DEFAULT, NULL, rows, K, N, accumulate);
    if (d_weight != NULL) weight_gradient(device, d_weight, d_out, x, rows, K, N);
    if (d_bias != NULL) cuda_bias_backward(device, d_bias, d_out, rows, N); // cuBLASLt's would overwrite it
}

// cuBLASLt's GELU is the tanh form, as is ours (activation.cu).
void cuda_matmul_gelu_forward(Device *device, void *out, void *pre, const void *x, const void *weight, const void *bias,
                              int64_t rows, int64_t K, int64_t N) {
    if (rows == 0 || N == 0 || K == 0) return;
    const cublasLtEpilogue_t epilogue = bias != NULL ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    if (epilogue_fits(K, N, x, weight, out, bias, pre) &&
        forward_product(device, out, x, weight, epilogue, bias, pre, rows, K, N, false))
        return;
    cuda_matmul_forward(device, pre, x, weight, bias, rows, K, N);
    cuda_gelu_forward(device, out, pre, rows * N);
}

void cuda_matmul_gelu_backward(Device *device, void *d_pre, float *d_weight, float *d_bias, const void *d_out,
                               const void *x, const void *pre, const void *weight, int64_t rows, int64_t K, int64_t N) {
    if (rows == 0 || N == 0 || K == 0) return;
    if (!epilogue_fits(K, N, d_out, weight, d_pre, NULL, pre) ||
        !input_gradient(device, d_pre, d_out, weight, CUBLASLT_EPILOGUE_DGELU, pre, rows, K, N, false)) {
        input_gradient(device, d_pre, d_out, weight, CUBLASLT_EPILOGUE_DEFAULT, NULL, rows, K, N, false);
        cuda_gelu_backward(device, d_pre, d_pre, pre, rows * K);
    }
    cuda_matmul_backward(device, NULL, d_weight, d_bias, d_out, x, NULL, rows, K, N, false);
}

// ---- the machine's own limit ---------------------------------------------------------------------------------------

// Some values in [-1, 1): products of zeros would draw less power, and so run at higher clocks, than real ones do.
__global__ void fill_kernel(bf16 *x, int64_t count) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) x[i] = to_bf16((float)((uint32_t)i * 2654435761u >> 24) * 0x1p-7f - 1.0f);
}

// Seconds that one of `repeats` products of (size, size) matrices takes; 0 where there is no memory for them.
static double seconds_per_product(Device *device, int64_t size, int repeats) {
    const int64_t count = size * size;
    const size_t bytes = 3 * (size_t)count * sizeof(bf16);
    Error unused = {};
    bf16 *matrices = static_cast<bf16 *>(cuda_allocate(device, bytes, &unused));
    if (matrices == NULL) return 0;
    cudaStream_t stream = stream_of(device);
    cudaEvent_t begin, end;
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));

    launch(fill_kernel, ceil_div<int64_t>(2 * count, 256), 256, 0, stream, matrices, 2 * count);
    for (int i = -1; i < repeats; i++) { // the first one may load code
        if (i == 0) CUDA_CHECK(cudaEventRecord(begin, stream));
        cuda_matmul_forward(device, matrices + 2 * count, matrices, matrices + count, NULL, size, size, size);
    }
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaEventSynchronize(end));
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    CUDA_CHECK(cudaEventDestroy(begin));
    CUDA_CHECK(cudaEventDestroy(end));
    cuda_release(device, matrices, bytes);
    return larger_of(1e-3 * (double)milliseconds, 1e-9) / repeats;
}

// Doubles the size until a product takes some milliseconds, then repeats that one for 0.2 s.
double cuda_matrix_rate(Device *device) {
    const int64_t largest = 8192;
    const double enough = 4e-3, total = 0.2;
    double rate = 0;
    for (int64_t size = 256; size <= largest; size *= 2) {
        double seconds = seconds_per_product(device, size, 1);
        if (seconds == 0) break;
        if (seconds > enough || size == largest)
            seconds = seconds_per_product(device, size, (int)larger_of(1.0, total / seconds));
        if (seconds == 0) break;
        rate = 2.0 * (double)size * (double)size * (double)size / seconds;
        if (seconds > enough) break;
    }
    return rate;
}
