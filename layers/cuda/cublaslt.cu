// The one way to cuBLASLt: a product is looked up among the plans made so far, planned if it is new, and run.
//
// cuBLASLt counts by columns: it takes a row-major matrix (rows, K) for a matrix (K, rows), its transpose. So it is
// asked for the transpose of what is wanted, d^T = b^T a^T, with the factors swapped: our a is its B, our b is its A.
#include "layers/cuda/cublaslt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layers/cuda/algorithms.h"
#include "layers/cuda/context.h"
#include "layers/cuda/layers.h"

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
    int64_t made;  // the newest is at (made - 1) % MAX_PLANS, over the oldest
    char *choices; // lines of algorithms.h, those that were timed here last
    bool measure;  // times what no line says
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

// A long sum may be split over the GPU and its parts added up. That has to happen in fp32 and in an order that is the
// same in every run: parts that are stored side by side and added by a kernel of their own. (Added in place they take
// turns, and in which order is not promised.)
int ask_for_proposals(const CudaContext *context, const Plan *plan, int wanted, Proposal *proposals) {
    cublasLtMatmulPreference_t preference;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    if (plan->key.float_out) reductions |= CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE; // fp32 too
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)CUDA_WORKSPACE_BYTES);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)plan->key.alignment_b);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)plan->key.alignment_a);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)plan->key.alignment_d);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)plan->key.alignment_d);

    int found = 0, good = 0;
    memset(proposals, 0, (size_t)wanted * sizeof *proposals);
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(context->cublas, plan->operation, plan->b, plan->a, plan->d,
                                                           plan->d, preference, wanted, proposals, &found);
    CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    if (status != CUBLAS_STATUS_SUCCESS) return 0;
    for (int i = 0; i < found; i++)
        if (proposals[i].state == CUBLAS_STATUS_SUCCESS) proposals[good++] = proposals[i];
    return good;
}

cublasStatus_t run(Device *device, const Plan *plan, const Product *p, const cublasLtMatmulAlgo_t *algorithm) {
    return cublasLtMatmul(context_of(device)->cublas, plan->operation, &p->alpha, p->b, plan->b, p->a, plan->a,
                          &p->beta, p->d, plan->d, p->d, plan->d, algorithm, cuda_workspace(device),
                          CUDA_WORKSPACE_BYTES, stream_of(device));
}

// ---- choosing ------------------------------------------------------------------------------------------------------

// The product, and where it runs: all that the choice depends on.
void describe_in_words(char *text, size_t size, const CudaContext *context, const PlanKey *k) {
    snprintf(text, size,
             "%s, %d multiprocessors, cuBLASLt %zu: (%lld, %lld)%s x (%lld, %lld)%s in %s, strides %lld %lld %lld, "
             "epilogue %d, aligned %d %d %d %d %d",
             context->properties.name, context->properties.multiProcessorCount, cublasLtGetVersion(),
             (long long)(k->transpose_a ? k->inner : k->rows), (long long)(k->transpose_a ? k->rows : k->inner),
             k->transpose_a ? "^T" : "", (long long)(k->transpose_b ? k->columns : k->inner),
             (long long)(k->transpose_b ? k->inner : k->columns), k->transpose_b ? "^T" : "",
             k->float_out ? "fp32" : "bf16", (long long)k->a_stride, (long long)k->b_stride, (long long)k->d_stride,
             k->epilogue, k->alignment_a, k->alignment_b, k->alignment_d, k->alignment_bias, k->alignment_aux);
}

struct Trial {
    Device *device;
    const Plan *plan;
    const Product *product;
    const Proposal *proposals;
};
bool run_proposal(void *argument, int i) {
    const Trial *t = static_cast<const Trial *>(argument);
    return run(t->device, t->plan, t->product, &t->proposals[i].algo) == CUBLAS_STATUS_SUCCESS;
}

void add_choice(MatmulPlans *plans, const char *line) {
    const size_t length = plans->choices == NULL ? 0 : strlen(plans->choices), bytes = strlen(line) + 1;
    char *longer = static_cast<char *>(realloc(plans->choices, length + bytes));
    if (longer == NULL) cuda_give_up(__FILE__, __LINE__, "no memory for the choices of matrix products");
    memcpy(longer + length, line, bytes);
    plans->choices = longer;
}

// What is timed is chosen by its line too, so that it is what others find there: two proposals may have one name.
void choose_algorithm(Device *device, Plan *plan, const Product *p) {
    const CudaContext *context = context_of(device);
    MatmulPlans *plans = context->plans;
    Proposal proposals[ALGORITHMS_MOST];
    const bool tuned = plans->choices != NULL || plans->measure;
    const int count = ask_for_proposals(context, plan, tuned ? ALGORITHMS_MOST : 1, proposals);
    plan->possible = count > 0;
    if (count == 0) return;
    plan->algorithm = proposals[0].algo;
    if (!tuned) return;

    char product[ALGORITHM_LINE], line[ALGORITHM_LINE];
    describe_in_words(product, sizeof product, context, &plan->key);
    int chosen = plans->choices == NULL ? -1 : algorithm_chosen(plans->choices, product, proposals, count);
    if (chosen < 0 && plans->measure) {
        Trial trial = {device, plan, p, proposals};
        const int fastest = algorithm_fastest(stream_of(device), count, run_proposal, &trial);
        algorithm_line(line, product, &proposals[fastest].algo);
        add_choice(plans, line);
        chosen = algorithm_chosen(line, product, proposals, count);
    }
    if (chosen >= 0) plan->algorithm = proposals[chosen].algo;
}

Plan *plan_of(Device *device, const Product *p) {
    MatmulPlans *plans = context_of(device)->plans;
    const PlanKey key = key_of(p);
    for (int64_t i = 0; i < plans->made && i < MAX_PLANS; i++)
        if (memcmp(&plans->plan[i].key, &key, sizeof key) == 0) return &plans->plan[i];

    Plan *plan = &plans->plan[plans->made % MAX_PLANS];
    if (plans->made >= MAX_PLANS) plan_free(plan);
    plans->made++;
    plan->key = key;
    describe(plan, p);
    set_pointers(plan, p); // the choice looks at their alignment
    choose_algorithm(device, plan, p);
    return plan;
}

} // namespace

MatmulPlans *matmul_plans_new(void) {
    MatmulPlans *plans = static_cast<MatmulPlans *>(calloc(1, sizeof(MatmulPlans)));
    if (plans == NULL) cuda_give_up(__FILE__, __LINE__, "no memory for the plans of matrix products");
    return plans;
}

static void forget(MatmulPlans *plans) {
    for (int64_t i = 0; i < plans->made && i < MAX_PLANS; i++) plan_free(&plans->plan[i]);
    plans->made = 0;
}

void matmul_plans_free(MatmulPlans *plans) {
    if (plans == NULL) return;
    forget(plans);
    free(plans->choices);
    free(plans);
}

void cuda_tune(Device *device, const char *choices, bool measure) {
    MatmulPlans *plans = context_of(device)->plans;
    forget(plans);
    free(plans->choices);
    plans->choices = NULL;
    plans->measure = measure;
    if (*choices != '\0') add_choice(plans, choices);
}

const char *cuda_tuned(Device *device) {
    const char *choices = context_of(device)->plans->choices;
    return choices != NULL ? choices : "";
}

bool cublaslt_multiply(Device *device, const Product *p) {
    Plan *plan = plan_of(device, p);
    cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (plan->possible) {
        set_pointers(plan, p);
        status = run(device, plan, p, &plan->algorithm);
        if (status == CUBLAS_STATUS_SUCCESS) return true;
        plan->possible = false;
    }
    if (p->epilogue != CUBLASLT_EPILOGUE_DEFAULT && status == CUBLAS_STATUS_NOT_SUPPORTED) return false;
    cuda_give_up(__FILE__, __LINE__, "cuBLASLt: %s: product of (%lld, %lld) and (%lld, %lld), epilogue %d",
                 cublasLtGetStatusString(status), (long long)p->rows, (long long)p->inner, (long long)p->inner,
                 (long long)p->columns, (int)p->epilogue);
}
