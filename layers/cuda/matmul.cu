// Matrix products of the layers, by cuBLASLt (cublaslt.h): bf16 in, fp32 sums, bf16 or fp32 out.
//
// Bias and GELU ride along as "epilogues": they work on the sums before these are rounded and written, which saves a
// pass over memory. Where cuBLASLt cannot (alignment, or it has no such algorithm), the product is added to rows that
// were set to the bias, so that nothing is rounded before the sum is whole; for GELU a kernel of our own follows.
#include "layers/cuda/bf16.h"
#include "layers/cuda/bias.h"
#include "layers/cuda/columns.h"
#include "layers/cuda/context.h"
#include "layers/cuda/cublaslt.h"
#include "layers/cuda/layers.h"

namespace {

// ---- the three products of a layer ---------------------------------------------------------------------------------

// cuBLASLt's kernels count rows in 32 bits, so more than this many are given to it in pieces.
const int64_t ROWS_AT_ONCE = 1 << 24;

const bf16 *row_of(const void *matrix, int64_t row, int64_t width) {
    return static_cast<const bf16 *>(matrix) + row * width;
}
bf16 *row_of(void *matrix, int64_t row, int64_t width) { return static_cast<bf16 *>(matrix) + row * width; }

// out (rows, N) = or += x weight^T, through the epilogue. False: it cannot.
bool forward_product(Device *device, void *out, const void *x, const void *weight, cublasLtEpilogue_t epilogue,
                     const void *bias, void *pre, int64_t rows, int64_t K, int64_t N, bool accumulate) {
    for (int64_t first = 0; first < rows; first += ROWS_AT_ONCE) {
        Product p = {};
        p.rows = smaller_of(ROWS_AT_ONCE, rows - first), p.columns = N, p.inner = K;
        p.transpose_b = true;
        p.a = row_of(x, first, K), p.a_stride = K;
        p.b = weight, p.b_stride = K;
        p.d = row_of(out, first, N), p.d_stride = N;
        p.beta = accumulate ? 1.0f : 0.0f;
        p.epilogue = epilogue;
        p.bias = bias;
        p.aux = pre == NULL ? NULL : row_of(pre, first, N);
        if (!cublaslt_multiply(device, &p)) return false;
    }
    return true;
}

// d_x (rows, K) = or += d_out weight, through the epilogue. False: it cannot.
bool input_gradient(Device *device, void *d_x, const void *d_out, const void *weight, cublasLtEpilogue_t epilogue,
                    const void *pre, int64_t rows, int64_t K, int64_t N, bool accumulate) {
    for (int64_t first = 0; first < rows; first += ROWS_AT_ONCE) {
        Product p = {};
        p.rows = smaller_of(ROWS_AT_ONCE, rows - first), p.columns = K, p.inner = N;
        p.a = row_of(d_out, first, N), p.a_stride = N;
        p.b = weight, p.b_stride = K;
        p.d = row_of(d_x, first, K), p.d_stride = K;
        p.beta = accumulate ? 1.0f : 0.0f;
        p.epilogue = epilogue;
        p.aux = pre == NULL ? NULL : const_cast<bf16 *>(row_of(pre, first, K)); // only read
        if (!cublaslt_multiply(device, &p)) return false;
    }
    return true;
}

// d_weight (N, K) += d_out^T x
void weight_gradient(Device *device, float *d_weight, const void *d_out, const void *x, int64_t rows, int64_t K,
                     int64_t N) {
    for (int64_t first = 0; first < rows; first += ROWS_AT_ONCE) {
        Product p = {};
        p.rows = N, p.columns = K, p.inner = smaller_of(ROWS_AT_ONCE, rows - first);
        p.transpose_a = true;
        p.float_out = true;
        p.a = row_of(d_out, first, N), p.a_stride = N;
        p.b = row_of(x, first, K), p.b_stride = K;
        p.d = d_weight, p.d_stride = K;
        p.beta = 1.0f;
        cublaslt_multiply(device, &p);
    }
}

// ---- layers --------------------------------------------------------------------------------------------------------

// Epilogues read bias and aux 16 bytes at a time, and no preference tells cuBLASLt that they are less aligned; aux (the
// GELU's input) also needs rows of a multiple of 8 values (cublasLt.h, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD). Where the
// matrices are not whole packets of 16 bytes either, what an epilogue does is not to be relied upon: on an H200, the
// bias of rows of 257 came to sums that had been rounded already. So it is not asked there.
bool epilogue_fits(int64_t K, int64_t N, const void *a, const void *b, const void *d, const void *bias,
                   const void *aux) {
    return N % 8 == 0 && fits_packets(K, a, b, d, bias, aux);
}

} // namespace

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

namespace {

// Some values in [-1, 1): products of zeros would draw less power, and so run at higher clocks, than real ones do.
__global__ void fill_kernel(bf16 *x, int64_t count) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) x[i] = to_bf16((float)((uint32_t)i * 2654435761u >> 24) * 0x1p-7f - 1.0f);
}

// Seconds that one of `repeats` products of (size, size) matrices takes; 0 where there is no memory for them.
double seconds_per_product(Device *device, int64_t size, int repeats) {
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
double matrix_rate(Device *device) {
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

} // namespace

double cuda_matrix_rate(Device *device) {
    if (device->scratch != NULL) return matrix_rate(device);
    Error unused = {};
    if (!device_lend_scratch(device, CUDA_WORKSPACE_BYTES, &unused)) return 0;
    const double rate = matrix_rate(device);
    device_return_scratch(device);
    return rate;
}
