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
#include "layers/cuda/bf16.h"
#include "layers/cuda/context.h"
#include "layers/cuda/cublaslt.h"
#include "layers/cuda/warp.h"

namespace {

enum { THREADS = 256 };

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

// The keys that row i of a matrix of sequence b sees: from `begin` to `end` - 1. Threads begin at `from`.
struct Seen {
    int64_t begin, end, from;
    __device__ bool operator()(int64_t j) const { return j >= begin && j < end; }
};
__device__ inline Seen keys_seen(const Visibility &v, int64_t b, int64_t i) {
    const int64_t of_window = v.window > 0 && i >= v.window ? i - v.window + 1 : 0;
    const int64_t of_document = v.first == NULL ? 0 : v.first[b * v.stride + i];
    const int64_t begin = larger_of(of_window, of_document), step = THREADS * PACKET;
    return Seen{begin, i + 1, begin / step * step + threadIdx.x * PACKET};
}

// Scores become probabilities. Row r of all is row r % T of its matrix.
__global__ void softmax_kernel(bf16 *scores, float *log_sum_exp, int64_t T, int heads, Visibility visibility) {
    SHARED_ARRAY(float, scratch, THREADS / WARP);
    const Seen seen = keys_seen(visibility, blockIdx.x / (T * heads), blockIdx.x % T);
    const int64_t step = THREADS * PACKET;
    bf16 *row = scores + blockIdx.x * T;
    const bool aligned = T % PACKET == 0;
    float x[PACKET], max = -INFINITY, sum = 0;
    for (int64_t j = seen.from; j < seen.end; j += step) {
        load_some(x, row + j, T - j, aligned);
        for (int i = 0; i < PACKET; i++)
            if (seen(j + i)) max = fmaxf(max, x[i]);
    }
    max = block_max(max, scratch);
    if (max == -INFINITY) max = 0; // nothing but -inf, or NaN, which stays
    for (int64_t j = seen.from; j < seen.end; j += step) {
        load_some(x, row + j, T - j, aligned);
        for (int i = 0; i < PACKET; i++)
            if (seen(j + i)) sum += expf(x[i] - max);
    }
    sum = block_sum(sum, scratch);
    const float inverse = sum == 0 ? 0 : 1 / sum;
    for (int64_t j = threadIdx.x * PACKET; j < T; j += step) {
        if (j < seen.end) load_some(x, row + j, T - j, aligned);
        for (int i = 0; i < PACKET; i++) x[i] = seen(j + i) ? expf(x[i] - max) * inverse : 0;
        store_some(row + j, x, T - j, aligned);
    }
    if (threadIdx.x == 0) log_sum_exp[blockIdx.x] = max + logf(sum);
}

// The same when the log-sum-exp is known, for one matrix of sequence b.
__global__ void probabilities_kernel(bf16 *scores, const float *log_sum_exp, int64_t T, int64_t b,
                                     Visibility visibility) {
    const Seen seen = keys_seen(visibility, b, blockIdx.x);
    const int64_t step = THREADS * PACKET;
    bf16 *row = scores + blockIdx.x * T;
    const bool aligned = T % PACKET == 0;
    const float of_row = log_sum_exp[blockIdx.x];
    for (int64_t j = threadIdx.x * PACKET; j < T; j += step) {
        float x[PACKET] = {};
        if (j < seen.end) load_some(x, row + j, T - j, aligned);
        for (int i = 0; i < PACKET; i++) x[i] = seen(j + i) ? expf(x[i] - of_row) : 0;
        store_some(row + j, x, T - j, aligned);
    }
}

// P becomes dS = P * (dP - delta), for one matrix of sequence b. Elsewhere P is 0 and stays so.
__global__ void score_gradient_kernel(bf16 *probabilities, const bf16 *d_probabilities, const float *delta, int64_t T,
                                      int64_t b, Visibility visibility) {
    const Seen seen = keys_seen(visibility, b, blockIdx.x);
    const int64_t step = THREADS * PACKET;
    bf16 *row = probabilities + blockIdx.x * T;
    const bf16 *d_row = d_probabilities + blockIdx.x * T;
    const bool aligned = T % PACKET == 0;
    const float of_row = delta[blockIdx.x];
    for (int64_t j = seen.from; j < seen.end; j += step) {
        float p[PACKET], d[PACKET];
        load_some(p, row + j, T - j, aligned);
        load_some(d, d_row + j, T - j, aligned);
        for (int i = 0; i < PACKET; i++) p[i] = seen(j + i) ? p[i] * (d[i] - of_row) : 0;
        store_some(row + j, p, T - j, aligned);
    }
}

// ---- products of a head ---------------------------------------------------------------------------------------------

// A matrix, row-major: one head's rows, or a (T, T) matrix of its scores. Strides: from one row to the next.
struct Matrix {
    void *data;
    int64_t stride;
};

Matrix head_of(TokenView view, int64_t b, int64_t h, int64_t D) {
    return Matrix{static_cast<bf16 *>(view.data) + b * view.batch_stride + h * D, view.token_stride};
}
Matrix scores_of(void *probabilities, const AttentionShape *shape, int64_t T, int64_t b, int64_t h) {
    return Matrix{static_cast<bf16 *>(probabilities) + (b * shape->heads + h) * T * T, T};
}
bf16 *rows_of(Matrix scores) { return static_cast<bf16 *>(scores.data); }

Product product(Matrix d, Matrix a, Matrix b, int64_t rows, int64_t columns, int64_t inner) {
    Product p = {};
    p.rows = rows, p.columns = columns, p.inner = inner;
    p.a = a.data, p.b = b.data, p.d = d.data;
    p.a_stride = a.stride, p.b_stride = b.stride, p.d_stride = d.stride;
    return p;
}

// d (T, T) = scale a b^T of rows a, b (T, D): Q K^T, dO V^T.
void multiply_transposed(Device *device, Matrix d, Matrix a, Matrix b, int64_t T, int64_t D, float scale) {
    Product p = product(d, a, b, T, T, D);
    p.transpose_b = true;
    p.alpha = scale;
    cublaslt_multiply(device, &p);
}

// d (T, D) = scale a b of scores a (T, T) and rows b (T, D): P V, dS K.
void multiply(Device *device, Matrix d, Matrix a, Matrix b, int64_t T, int64_t D, float scale) {
    Product p = product(d, a, b, T, D, T);
    p.alpha = scale;
    cublaslt_multiply(device, &p);
}

// d (T, D), fp32, = or += scale a^T b: P^T dO, dS^T Q.
void add_transposed(Device *device, Matrix d, Matrix a, Matrix b, int64_t T, int64_t D, float scale, bool accumulate) {
    Product p = product(d, a, b, T, D, T);
    p.transpose_a = true;
    p.float_out = true;
    p.alpha = scale;
    p.beta = accumulate ? 1.0f : 0.0f;
    cublaslt_multiply(device, &p);
}

// ---- all heads ------------------------------------------------------------------------------------------------------

unsigned blocks_of(int64_t rows) {
    if (rows > INT32_MAX) cuda_give_up(__FILE__, __LINE__, "%lld rows of probabilities at once", (long long)rows);
    return (unsigned)rows;
}

// Room for dP of one head, and after it for dK and dV in fp32.
size_t matrix_bytes(int64_t T) { return ((size_t)T * (size_t)T * sizeof(bf16) + 255) / 256 * 256; }
size_t gradient_count(const AttentionShape *shape, int64_t T) {
    return (size_t)(shape->batch * T * shape->kv_heads * shape->head_dim);
}

} // namespace

size_t cuda_vanilla_row_bytes(const AttentionShape *shape, int64_t T) {
    return matrix_bytes(T) + 2 * gradient_count(shape, T) * sizeof(float);
}

void cuda_vanilla_forward(Device *device, const AttentionShape *shape, int64_t T, const Visibility *visibility,
                          void *probabilities, TokenView out, float *log_sum_exp, TokenView q, TokenView k,
                          TokenView v) {
    const int64_t D = shape->head_dim, H = shape->heads, group = H / shape->kv_heads;
    if (shape->batch * T == 0) return;
    for (int64_t b = 0; b < shape->batch; b++)
        for (int64_t h = 0; h < H; h++)
            multiply_transposed(device, scores_of(probabilities, shape, T, b, h), head_of(q, b, h, D),
                                head_of(k, b, h / group, D), T, D, shape->scale);
    launch(softmax_kernel, blocks_of(shape->batch * H * T), THREADS, 0, stream_of(device),
           static_cast<bf16 *>(probabilities), log_sum_exp, T, (int)H, *visibility);
    for (int64_t b = 0; b < shape->batch; b++)
        for (int64_t h = 0; h < H; h++)
            multiply(device, head_of(out, b, h, D), scores_of(probabilities, shape, T, b, h),
                     head_of(v, b, h / group, D), T, D, 1);
}

void cuda_vanilla_backward(Device *device, const AttentionShape *shape, int64_t T, const Visibility *visibility,
                           void *probabilities, void *rows, TokenView d_q, TokenView d_k, TokenView d_v, TokenView q,
                           TokenView k, TokenView v, TokenView out, const float *log_sum_exp, TokenView d_out,
                           float *delta) {
    (void)out; // delta has what is needed of it
    const int64_t D = shape->head_dim, H = shape->heads, KV = shape->kv_heads, group = H / KV, width = KV * D;
    if (shape->batch * T == 0) return;
    const Matrix d_P = {rows, T};
    float *d_k_sum = reinterpret_cast<float *>(static_cast<char *>(rows) + matrix_bytes(T));
    float *d_v_sum = d_k_sum + gradient_count(shape, T);
    const cudaStream_t stream = stream_of(device);
    for (int64_t b = 0; b < shape->batch; b++) {
        for (int64_t h = 0; h < H; h++) {
            const int64_t kv = h / group, row = (b * H + h) * T, sum_at = b * T * width + kv * D;
            const bool accumulate = h % group != 0; // to what the heads before have left
            const Matrix P = scores_of(probabilities, shape, T, b, h), Q = head_of(q, b, h, D);
            const Matrix K = head_of(k, b, kv, D), V = head_of(v, b, kv, D), d_O = head_of(d_out, b, h, D);
            multiply_transposed(device, P, Q, K, T, D, shape->scale);
            launch(probabilities_kernel, blocks_of(T), THREADS, 0, stream, rows_of(P), log_sum_exp + row, T, b,
                   *visibility);
            add_transposed(device, Matrix{d_v_sum + sum_at, width}, P, d_O, T, D, 1, accumulate);
            multiply_transposed(device, d_P, d_O, V, T, D, 1);
            launch(score_gradient_kernel, blocks_of(T), THREADS, 0, stream, rows_of(P), rows_of(d_P), delta + row, T, b,
                   *visibility);
            multiply(device, head_of(d_q, b, h, D), P, K, T, D, shape->scale);
            add_transposed(device, Matrix{d_k_sum + sum_at, width}, P, Q, T, D, shape->scale, accumulate);
        }
        device->to_storage_strided(device, head_of(d_k, b, 0, D).data, d_k.token_stride, d_k_sum + b * T * width, width,
                                   T, width);
        device->to_storage_strided(device, head_of(d_v, b, 0, D).data, d_v.token_stride, d_v_sum + b * T * width, width,
                                   T, width);
    }
}
