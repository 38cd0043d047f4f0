// The CPU as a Device: fp32 storage, and layers in the best instruction set of the processor.
#include "attention/kernel.h"
#include "base/cpu_features.h"
#include "layers/cpu/layers.h"
#include "layers/cpu/sgemm.h"

static void choose_layers(Device *device) {
    switch (simd_level()) {
#if defined(__x86_64__)
    case SIMD_AVX512: cpu_layers_avx512(device); return;
    case SIMD_AVX2: cpu_layers_avx2(device); return;
#endif
    default: cpu_layers_portable(device); return;
    }
}

void cpu_device(Device *device, int threads) {
    *device = (Device){
        .name = "cpu",
        .element_bytes = sizeof(float),
        .threads = threads,
        .context = (void *)cpu_matrix_product(), // constant; matmul_simd.c reads it
        .attention = &attention_kernels_cpu,
        .allocate = cpu_allocate,
        .release = cpu_release,
        .zero = cpu_zero,
        .upload = cpu_copy,
        .download = cpu_copy,
        .copy = cpu_copy,
        .copy_strided = cpu_copy_strided,
        .to_storage = cpu_to_storage,
        .to_float = cpu_to_float,
        .to_storage_strided = cpu_to_storage_strided,
        .embedding_forward = cpu_embedding_forward,
        .embedding_backward = cpu_embedding_backward,
    };
    choose_layers(device);
}

const char *cpu_matrix_library(void) { return cpu_matrix_product()->name; }
