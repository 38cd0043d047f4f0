// Ordinary multi-head attention (Vaswani et al., "Attention is all you need", 2017, equation 1): for every head the
// whole T x T matrix of probabilities is computed and stored in bf16, masked entries included, by the library's matrix
// products with a softmax kernel between them. It is what the other kernels are measured against: memory traffic grows
// with T^2, and half of the work is thrown away.
//
// One product per head, one after another: the plainest way, which leaves a large GPU partly idle on short contexts.
//
// Backward computes the probabilities again, since the matrix in memory is that of the layer that came last:
//   dV = P^T dO,   dS = P * (dO V^T - delta),   dQ = scale dS K,   dK = scale dS^T Q
// dS takes the place of P. dK and dV are summed in fp32 over the query heads that share a key/value head.
#include <math.h>

#include "attention/cuda/kernels.h"
#include "attention/cuda/tile.h"
#include "layers/cuda/context.h"

enum { THREADS = 256 };

// ---- matrix products ----------------------------------------------------------------------------

// d (rows, columns) = alpha a b + beta d, where a is (rows, inner), or (inner, rows) if transpose_a, and b is
// (inner, columns), or (columns, inner) if transpose_b.
struct Product {
    int64_t rows, columns, inner;
    bool transpose_a, transpose_b, float_out;
};

// The same product over and over, one head after another: described, and its algorithm chosen, once.
struct Multiplier {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulHeuristicResult_t chosen;
};

#define CUBLAS_CHECK(call) cublas_check((call), #call, __LINE__)
static void cublas_check(cublasStatus_t status, const char *call, int line) {
    if (status != CUBLAS_STATUS_SUCCESS) cuda_give_up(__FILE__, line, "%s: %s", call, cublasLtGetStatusString(status));
}

static void set_transpose(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t which, bool transpose) {
    const int32_t value = transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(operation, which, &value, sizeof value));
}

// cuBLASLt counts by columns, so that a row-major matrix is to it a transposed one.
static cublasLtMatrixLayout_t layout_of(cudaDataType_t type, int64_t rows, int64_t columns, int64_t stride) {
    cublasLtMatrixLayout_t layout;
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&layout, type, (uint64_t)columns, (uint64_t)rows, stride));
    return layout;
}

static void choose(const CudaContext *context, Multiplier *m, const uint32_t alignment[3]) {
    const cublasLtMatmulPreferenceAttributes_t attributes[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const uint32_t aligned[] = {alignment[1], alignment[0], alignment[2], alignment[2]}; // the factors are swapped
    const uint64_t workspace = context->workspace_bytes;
    cublasLtMatmulPreference_t preference;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                      sizeof workspace));
    for (int i = 0; i < 4; i++)
        CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attributes[i], &aligned[i], sizeof aligned[i]));
    int found = 0;
    CUBLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(context->cublas, m->operation, m->a, m->b, m->d, m->d, preference, 1,
                                                &m->chosen, &found));
    CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    if (found == 0) cuda_give_up(__FILE__, __LINE__, "cuBLASLt has no algorithm for vanilla attention");
}

// The largest power of 2, at most 16, that divides the bytes from one row to the next. Heads and batches are whole
// rows, or whole pieces of 16 bytes, apart.
static uint32_t alignment_of(int64_t stride, size_t element_bytes) {
    const int64_t bytes = stride * (int64_t)element_bytes;
    return (uint32_t)smaller_of(bytes & -bytes, (int64_t)16);
}

static Multiplier multiplier(Device *device, Product p, int64_t a_stride, int64_t b_stride, int64_t d_stride) {
    Multiplier m = {};
    const cudaDataType_t type = p.float_out ? CUDA_R_32F : CUDA_R_16BF;
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&m.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set_transpose(m.operation, CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_b); // d^T = b^T a^T
    set_transpose(m.operation, CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_a);
    m.a = layout_of(CUDA_R_16BF, p.transpose_b ? p.columns : p.inner, p.transpose_b ? p.inner : p.columns, b_stride);
    m.b = layout_of(CUDA_R_16BF, p.transpose_a ? p.inner : p.rows, p.transpose_a ? p.rows : p.inner, a_stride);
    m.d = layout_of(type, p.rows, p.columns, d_stride);
    const uint32_t alignment[3] = {alignment_of(a_stride, 2), alignment_of(b_stride, 2),
                                   alignment_of(d_stride, p.float_out ? 4 : 2)};
    choose(context_of(device), &m, alignment);
    return m;
}

static void multiply(Device *device, const Multiplier *m, void *d, const void *a, const void *b, float alpha,
                     float beta) {
    const CudaContext *context = context_of(device);
    CUBLAS_CHECK(cublasLtMatmul(context->cublas, m->operation, &alpha, b, m->a, a, m->b, &beta, d, m->d, d, m->d,
                                &m->chosen.algo, context->workspace, context->workspace_bytes, stream_of(device)));
}

static void release(Multiplier *m) {
    CUBLAS_CHECK(cublasLtMatmulDescDestroy(m->operation));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(m->a));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(m->b));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(m->d));
}

// ---- rows of T x T matrices ---------------------------------------------------------------------
// One block per row. Threads take PACKET neighbouring values each, in one access where rows begin at multiples of 16
// bytes (T % PACKET == 0).

__device__ inline void load_some(float out[PACKET], const bf16 *from, int64_t left, bool aligned) {
    if (aligned) load_packet(out, from);
    else
        for (int i = 0; i < PACKET; i++) out[i] = i < left ? to_float(from[i]) : 0;
}
__device__ inline void store_some(bf16 *to, const float in[PACKET], int64_t left, bool aligned) {
    if (aligned) store_packet(to, in);
    else
        for (int i = 0; i < PACKET && i < left; i++) to[i] = to_bf16(in[i]);
}

// Scores become probabilities: row i of each matrix sees the first i + 1. Row r of all is row r % T of its matrix.
__global__ void softmax_kernel(bf16 *scores, float *log_sum_exp, int64_t T) {
    SHARED_ARRAY(float, scratch, THREADS / WARP);
    const int64_t seen = blockIdx.x % T + 1, first = threadIdx.x * PACKET, step = THREADS * PACKET;
    bf16 *row = scores + blockIdx.x * T;
    const bool aligned = T % PACKET == 0;
    float x[PACKET], max = -INFINITY, sum = 0;
    for (int64_t j = first; j < seen; j += step) {
        load_some(x, row + j, T - j, aligned);
        for (int i = 0; i < PACKET; i++)
            if (j + i < seen) max = fmaxf(max, x[i]);
    }
    max = block_max(max, scratch);
    if (max == -INFINITY) max = 0; // nothing but -inf, or NaN, which stays
    for (int64_t j = first; j < seen; j += step) {
        load_some(x, row + j, T - j, aligned);
        for (int i = 0; i < PACKET; i++)
            if (j + i < seen) sum += expf(x[i] - max);
    }
    sum = block_sum(sum, scratch);
    const float inverse = sum == 0 ? 0 : 1 / sum;
    for (int64_t j = first; j < T; j += step) {
        if (j < seen) load_some(x, row + j, T - j, aligned);
        for (int i = 0; i < PACKET; i++) x[i] = j + i < seen ? expf(x[i] - max) * inverse : 0;
        store_some(row + j, x, T - j, aligned);
    }
    if (threadIdx.x == 0) log_sum_exp[blockIdx.x] = max + logf(sum);
}

// The same when the log-sum-exp is known, for one matrix.
__global__ void probabilities_kernel(bf16 *scores, const float *log_sum_exp, int64_t T) {
    const int64_t seen = blockIdx.x + 1, step = THREADS * PACKET;
    bf16 *row = scores + blockIdx.x * T;
    const bool aligned = T % PACKET == 0;
    const float of_row = log_sum_exp[blockIdx.x];
    for (int64_t j = threadIdx.x * PACKET; j < T; j += step) {
        float x[PACKET] = {};
        if (j < seen) load_some(x, row + j, T - j, aligned);
        for (int i = 0; i < PACKET; i++) x[i] = j + i < seen ? expf(x[i] - of_row) : 0;
        store_some(row + j, x, T - j, aligned);
    }
}

// P becomes dS = P * (dP - delta), for one matrix.
__global__ void score_gradient_kernel(bf16 *probabilities, const bf16 *d_probabilities, const float *delta, int64_t T) {
    const int64_t seen = blockIdx.x + 1, step = THREADS * PACKET; // beyond, P is 0 and stays so
    bf16 *row = probabilities + blockIdx.x * T;
    const bf16 *d_row = d_probabilities + blockIdx.x * T;
    const bool aligned = T % PACKET == 0;
    const float of_row = delta[blockIdx.x];
    for (int64_t j = threadIdx.x * PACKET; j < seen; j += step) {
        float p[PACKET], d[PACKET];
        load_some(p, row + j, T - j, aligned);
        load_some(d, d_row + j, T - j, aligned);
        for (int i = 0; i < PACKET; i++) p[i] = j + i < seen ? p[i] * (d[i] - of_row) : 0;
        store_some(row + j, p, T - j, aligned);
    }
}

// ---- all heads ----------------------------------------------------------------------------------

static bf16 *head_of(TokenView view, int64_t b, int64_t h, int64_t D) {
    return static_cast<bf16 *>(view.data) + b * view.batch_stride + h * D;
}
static bf16 *matrix_of(void *probabilities, const AttentionShape *shape, int64_t T, int64_t b, int64_t h) {
    return static_cast<bf16 *>(probabilities) + (b * shape->heads + h) * T * T;
}
static unsigned blocks_of(int64_t rows) {
    if (rows > INT32_MAX) cuda_give_up(__FILE__, __LINE__, "%lld rows of probabilities at once", (long long)rows);
    return (unsigned)rows;
}
static Product scores_product(int64_t T, int64_t D) { return Product{T, T, D, false, true, false}; } // Q K^T

void cuda_vanilla_forward(Device *device, const AttentionShape *shape, int64_t T, const Visibility *,
                          void *probabilities, TokenView out, float *log_sum_exp, TokenView q, TokenView k,
                          TokenView v) {
    const int64_t D = shape->head_dim, H = shape->heads, group = H / shape->kv_heads;
    if (shape->batch * T == 0) return;
    Multiplier scores = multiplier(device, scores_product(T, D), q.token_stride, k.token_stride, T);
    Multiplier values = multiplier(device, Product{T, D, T, false, false, false}, T, v.token_stride, out.token_stride);
    for (int64_t b = 0; b < shape->batch; b++)
        for (int64_t h = 0; h < H; h++)
            multiply(device, &scores, matrix_of(probabilities, shape, T, b, h), head_of(q, b, h, D),
                     head_of(k, b, h / group, D), shape->scale, 0);
    launch(softmax_kernel, blocks_of(shape->batch * H * T), THREADS, 0, stream_of(device),
           static_cast<bf16 *>(probabilities), log_sum_exp, T);
    for (int64_t b = 0; b < shape->batch; b++)
        for (int64_t h = 0; h < H; h++)
            multiply(device, &values, head_of(out, b, h, D), matrix_of(probabilities, shape, T, b, h),
                     head_of(v, b, h / group, D), 1, 0);
    release(&scores);
    release(&values);
}

// Room for dP of one head, and after it for dK and dV in fp32.
static size_t matrix_bytes(int64_t T) { return ((size_t)T * (size_t)T * sizeof(bf16) + 255) / 256 * 256; }
static size_t gradient_count(const AttentionShape *shape, int64_t T) {
    return (size_t)(shape->batch * T * shape->kv_heads * shape->head_dim);
}
size_t cuda_vanilla_row_bytes(const AttentionShape *shape, int64_t T) {
    return matrix_bytes(T) + 2 * gradient_count(shape, T) * sizeof(float);
}

void cuda_vanilla_backward(Device *device, const AttentionShape *shape, int64_t T, const Visibility *,
                           void *probabilities, void *rows, TokenView d_q, TokenView d_k, TokenView d_v, TokenView q,
                           TokenView k, TokenView v, TokenView out, const float *log_sum_exp, TokenView d_out,
                           float *delta) {
    (void)out; // delta has what is needed of it
    const int64_t D = shape->head_dim, H = shape->heads, KV = shape->kv_heads, group = H / KV, width = KV * D;
    if (shape->batch * T == 0) return;
    bf16 *d_probabilities = static_cast<bf16 *>(rows);
    float *d_k_sum = reinterpret_cast<float *>(static_cast<char *>(rows) + matrix_bytes(T));
    float *d_v_sum = d_k_sum + gradient_count(shape, T);

    Multiplier scores = multiplier(device, scores_product(T, D), q.token_stride, k.token_stride, T);
    Multiplier weights = multiplier(device, scores_product(T, D), d_out.token_stride, v.token_stride, T); // dO V^T
    Multiplier to_v = multiplier(device, Product{T, D, T, true, false, true}, T, d_out.token_stride, width);
    Multiplier to_k = multiplier(device, Product{T, D, T, true, false, true}, T, q.token_stride, width);
    Multiplier to_q = multiplier(device, Product{T, D, T, false, false, false}, T, k.token_stride, d_q.token_stride);
    const cudaStream_t stream = stream_of(device);
    for (int64_t b = 0; b < shape->batch; b++) {
        for (int64_t h = 0; h < H; h++) {
            const int64_t kv = h / group, row = (b * H + h) * T, sum_at = b * T * width + kv * D;
            const float others = h % group == 0 ? 0 : 1; // times what the heads before have added
            bf16 *P = matrix_of(probabilities, shape, T, b, h);
            const bf16 *d_o = head_of(d_out, b, h, D);
            multiply(device, &scores, P, head_of(q, b, h, D), head_of(k, b, kv, D), shape->scale, 0);
            launch(probabilities_kernel, blocks_of(T), THREADS, 0, stream, P, log_sum_exp + row, T);
            multiply(device, &to_v, d_v_sum + sum_at, P, d_o, 1, others);
            multiply(device, &weights, d_probabilities, d_o, head_of(v, b, kv, D), 1, 0);
            launch(score_gradient_kernel, blocks_of(T), THREADS, 0, stream, P, d_probabilities, delta + row, T);
            multiply(device, &to_q, head_of(d_q, b, h, D), P, head_of(k, b, kv, D), shape->scale, 0);
            multiply(device, &to_k, d_k_sum + sum_at, P, head_of(q, b, h, D), shape->scale, others);
        }
        device->to_storage_strided(device, head_of(d_k, b, 0, D), d_k.token_stride, d_k_sum + b * T * width, width, T,
                                   width);
        device->to_storage_strided(device, head_of(d_v, b, 0, D), d_v.token_stride, d_v_sum + b * T * width, width, T,
                                   width);
    }
    Multiplier *all[] = {&scores, &weights, &to_v, &to_k, &to_q};
    for (int i = 0; i < 5; i++) release(all[i]);
}
