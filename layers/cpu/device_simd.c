// The vectorised layers of one instruction set, as entries of a Device.
#include "layers/cpu/layers.h"

void SIMD_NAME(cpu_layers)(Device *device) {
    device->add_float = SIMD_NAME(add_float);
    device->layernorm_forward = SIMD_NAME(layernorm_forward);
    device->layernorm_backward = SIMD_NAME(layernorm_backward);
    device->rmsnorm_forward = SIMD_NAME(rmsnorm_forward);
    device->rmsnorm_backward = SIMD_NAME(rmsnorm_backward);
    device->matmul_forward = SIMD_NAME(matmul_forward);
    device->matmul_backward = SIMD_NAME(matmul_backward);
    device->rotary = SIMD_NAME(rotary);
    device->gelu_forward = SIMD_NAME(gelu_forward);
    device->gelu_backward = SIMD_NAME(gelu_backward);
    device->swiglu_forward = SIMD_NAME(swiglu_forward);
    device->swiglu_backward = SIMD_NAME(swiglu_backward);
    device->classifier = SIMD_NAME(classifier);
    device->adamw = SIMD_NAME(adamw);
    device->sum_of_squares = SIMD_NAME(sum_of_squares);
    device->sum = SIMD_NAME(sum);
}
