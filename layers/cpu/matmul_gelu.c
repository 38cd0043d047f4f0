// A matrix product with GELU behind it, or before it: on processors, one layer after the other. GELU is a small part of
// the work there, and the product's result is still in the caches.
#include "layers/cpu/layers.h"

void cpu_matmul_gelu_forward(Device *device, void *out, void *pre, const void *x, const void *weight, const void *bias,
                             int64_t rows, int64_t K, int64_t N) {
    device->matmul_forward(device, pre, x, weight, bias, rows, K, N);
    device->gelu_forward(device, out, pre, rows * N);
}

void cpu_matmul_gelu_backward(Device *device, void *d_pre, float *d_weight, float *d_bias, const void *d_out,
                              const void *x, const void *pre, const void *weight, int64_t rows, int64_t K, int64_t N) {
    device->matmul_backward(device, d_pre, d_weight, d_bias, d_out, x, weight, rows, K, N, false);
    device->gelu_backward(device, d_pre, d_pre, pre, rows * K);
}
