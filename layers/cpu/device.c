// The CPU as a Device: fp32 storage, and layers in the best instruction set of the processor.
#include <stdio.h>

#include "attention/kernel.h"
#include "mixer/kernels.h"
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

// Every call is complete on return, and the device holds nothing of its own.
static void nothing(Device *device) { (void)device; }

static int64_t memory_left(Device *device) {
    (void)device;
    return memory_available();
}

static double matrix_rate(Device *device) { return cpu_matrix_rate(device->threads); }

void cpu_device(Device *device, int threads) {
    *device = (Device){
        .name = "cpu",
        .element_bytes = sizeof(float),
        .host_memory = true,
        .threads = threads,
        .context = (void *)cpu_matrix_product(), // constant; matmul_simd.c reads it
        .attention = &attention_kernels_cpu,
        .mixers = &mixer_kernels_cpu,
        .close = nothing,
        .synchronize = nothing,
        .memory_available = memory_left,
        .matrix_rate = matrix_rate,
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
        .matmul_gelu_forward = cpu_matmul_gelu_forward,
        .matmul_gelu_backward = cpu_matmul_gelu_backward,
    };
    snprintf(device->description, sizeof device->description, "%d %s, %s, %s vectors", threads,
             threads == 1 ? "thread" : "threads", cpu_matrix_library(), simd_level_name(simd_level()));
    choose_layers(device);
}

const char *cpu_matrix_library(void) { return cpu_matrix_product()->name; }
