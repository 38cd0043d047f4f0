// The one way to cuBLASLt: a product is looked up among the plans made so far, planned if it is new, and run.
//
// cuBLASLt counts by columns: it takes a row-major matrix (rows, K) for a matrix (K, rows), its transpose. So it is
// asked for the transpose of what is wanted, d^T = b^T a^T, with the factors swapped: our a is its B, our b is its A.
#include "layers/cuda/cublaslt.h"

#include <stdlib.h>
#include <string.h>

#include "layers/cuda/context.h"

namespace {

enum { MAX_PLANS = 256, BEST_ALIGNMENT = 256 /* bytes; what cuBLASLt assumes unless told */ };

// What cuBLASLt's choice depends on. Compared as bytes: no padding.
struct PlanKey {
    int64_t rows, columns, inner, a_stride, b_stride, d_stride;
    int32_t transpose_a, transpose_b, float_out, epilogue;
    int32_t alignment_a, alignment_b, alignment_d, alignment_bias, alignment_aux, unused;
};
static_assert(sizeof(PlanKey) == 6 * 8 + 10 * 4, "no padding");

struct Plan {
    PlanKey key;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, d; // of our a, b, d
    cublasLtMatmulAlgo_t algorithm;
    bool possible; // false: cuBLASLt has no algorithm for it
};

} // namespace

struct MatmulPlans {
    Plan plan[MAX_PLANS];
    int64_t made; // the newest is at (made - 1) % MAX_PLANS, over the oldest
};

namespace {

#define CUBLAS_CHECK(call) cublas_check((call), #call, __LINE__)
void cublas_check(cublasStatus_t status, const char *call, int line) {
    if (status != CUBLAS_STATUS_SUCCESS) cuda_give_up(__FILE__, line, "%s: %s", call, cublasLtGetStatusString(status));
}

void plan_free(Plan *plan) {
    CUBLAS_CHECK(cublasLtMatmulDescDestroy(plan->operation));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(plan->a));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(plan->b));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(plan->d));
}

int32_t alignment_of(const void *address) { // NULL: as good as any
    int32_t alignment = BEST_ALIGNMENT;
    while ((uintptr_t)address % (uintptr_t)alignment != 0) alignment /= 2;
    return alignment;
}

PlanKey key_of(const Product *p) {
    PlanKey key;
    memset(&key, 0, sizeof key);
    key.rows = p->rows, key.columns = p->columns, key.inner = p->inner;
    key.a_stride = p->a_stride, key.b_stride = p->b_stride, key.d_stride = p->d_stride;
    key.transpose_a = p->transpose_a, key.transpose_b = p->transpose_b, key.float_out = p->float_out;
    key.epilogue = (int32_t)p->epilogue;
    key.alignment_a = alignment_of(p->a), key.alignment_b = alignment_of(p->b), key.alignment_d = alignment_of(p->d);
    key.alignment_bias = alignment_of(p->bias), key.alignment_aux = alignment_of(p->aux);
    return key;
}

template <typename T> void set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, T value) {
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value));
}
template <typename T>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
}

void set_pointers(const Plan *plan, const Product *p) {
    if (p->bias != NULL) set(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p->bias);
    if (p->aux != NULL) set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p->aux);
}

// Of a row-major matrix, which has its columns for rows.
cublasLtMatrixLayout_t layout_of(cudaDataType_t type, int64_t rows, int64_t columns, int64_t stride) {
    cublasLtMatrixLayout_t layout;
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&layout, type, (uint64_t)columns, (uint64_t)rows, stride));
    return layout;
}

void describe(Plan *plan, const Product *p) {
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, (int32_t)(p->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N));
    set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, (int32_t)(p->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N));
    set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)p->epilogue);
    if (p->aux != NULL) set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p->columns);
    plan->a = p->transpose_a ? layout_of(CUDA_R_16BF, p->inner, p->rows, p->a_stride)
                             : layout_of(CUDA_R_16BF, p->rows, p->inner, p->a_stride);
    plan->b = p->transpose_b ? layout_of(CUDA_R_16BF, p->columns, p->inner, p->b_stride)
                             : layout_of(CUDA_R_16BF, p->inner, p->columns, p->b_stride);
    plan->d = layout_of(p->float_out ? CUDA_R_32F : CUDA_R_16BF, p->rows, p->columns, p->d_stride);
}

// A long sum may be split over the GPU and its parts added up. That happens in fp32 (so not in a bf16 output) and in a
// fixed order, the same in every run.
void choose_algorithm(const CudaContext *context, Plan *plan) {
    cublasLtMatmulPreference_t preference;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    if (plan->key.float_out) reductions |= CUBLASLT_REDUCTION_SCHEME_INPLACE;
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)CUDA_WORKSPACE_BYTES);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)plan->key.alignment_b);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)plan->key.alignment_a);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)plan->key.alignment_d);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)plan->key.alignment_d);

    cublasLtMatmulHeuristicResult_t result;
    memset(&result, 0, sizeof result);
    int results = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(context->cublas, plan->operation, plan->b, plan->a, plan->d,
                                                           plan->d, preference, 1, &result, &results);
    CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    plan->possible = status == CUBLAS_STATUS_SUCCESS && results == 1 && result.state == CUBLAS_STATUS_SUCCESS;
    plan->algorithm = result.algo;
}

Plan *plan_of(const CudaContext *context, const Product *p) {
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

} // namespace

MatmulPlans *matmul_plans_new(void) {
    MatmulPlans *plans = static_cast<MatmulPlans *>(calloc(1, sizeof(MatmulPlans)));
    if (plans == NULL) cuda_give_up(__FILE__, __LINE__, "no memory for the plans of matrix products");
    return plans;
}

void matmul_plans_free(MatmulPlans *plans) {
    if (plans == NULL) return;
    for (int64_t i = 0; i < plans->made && i < MAX_PLANS; i++) plan_free(&plans->plan[i]);
    free(plans);
}

bool cublaslt_multiply(Device *device, const Product *p) {
    const CudaContext *context = context_of(device);
    Plan *plan = plan_of(context, p);
    cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (plan->possible) {
        set_pointers(plan, p);
        status = cublasLtMatmul(context->cublas, plan->operation, &p->alpha, p->b, plan->b, p->a, plan->a, &p->beta,
                                p->d, plan->d, p->d, plan->d, &plan->algorithm, cuda_workspace(device),
                                CUDA_WORKSPACE_BYTES, stream_of(device));
        if (status == CUBLAS_STATUS_SUCCESS) return true;
        plan->possible = false;
    }
    if (p->epilogue != CUBLASLT_EPILOGUE_DEFAULT && status == CUBLAS_STATUS_NOT_SUPPORTED) return false;
    cuda_give_up(__FILE__, __LINE__, "cuBLASLt: %s: product of (%lld, %lld) and (%lld, %lld), epilogue %d",
                 cublasLtGetStatusString(status), (long long)p->rows, (long long)p->inner, (long long)p->inner,
                 (long long)p->columns, (int)p->epilogue);
}
