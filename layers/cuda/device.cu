// A GPU as a Device: bf16 storage, two streams, and the table of CUDA's functions.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/collectives.h"
#include "layers/cuda/context.h"
#include "layers/cuda/cublaslt.h"
#include "layers/cuda/layers.h"
#include "layers/cuda/open.h"
#include "mixer/cuda/kernels.h"
#include "mixer/cuda/transforms.h"

#ifdef __CUDACC__
const char NAME[] = "cuda", WHO_SETS_THE_NUMBER[] = "CUDA_VISIBLE_DEVICES";
#else
const char NAME[] = "emulated", WHO_SETS_THE_NUMBER[] = "EMULATED_GPUS";
#endif

int cuda_device_count(const char **why) {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaSuccess && count > 0) return count;
    (void)cudaGetLastError();
    if (status == cudaSuccess || status == cudaErrorNoDevice) *why = "this machine has no NVIDIA GPU";
    else if (status == cudaErrorInsufficientDriver)
        *why = "there is no NVIDIA driver, or it is older than this program's CUDA";
    else *why = cudaGetErrorString(status);
    return 0;
}

namespace {

// ---- opening and closing -------------------------------------------------------------------------------------------

bool can_serve(const cudaDeviceProp *p, int index, Error *err) {
    if (p->major >= 8) return true;
    return error_set(err,
                     "GPU %d, %s, has compute capability %d.%d; 8.0 (Ampere) or later is needed, for matrix products "
                     "in bf16: take another GPU by --devices, or --device cpu",
                     index, p->name, p->major, p->minor);
}

// An error here is the machine's (memory taken by others, a GPU in exclusive use), so it comes back to the caller.
bool worked(cudaError_t status, const char *what, int index, Error *err) {
    if (status == cudaSuccess) return true;
    (void)cudaGetLastError();
    return error_set(err, "GPU %d: %s failed: %s; nvidia-smi shows who uses it", index, what,
                     cudaGetErrorString(status));
}

// Also of what was only half filled: nothing is asked of a GPU that did not open.
void free_context(CudaContext *c) {
    for (int i = 0; i < 2; i++)
        if (c->stream[i] != NULL) CUDA_CHECK(cudaStreamDestroy(c->stream[i]));
    matmul_plans_free(c->plans);
    upload_ring_free(c->uploads);
    real_transforms_free(c->transforms);
    if (c->cublas != NULL) cublasLtDestroy(c->cublas);
    if (c->work_taken != NULL) CUDA_CHECK(cudaFree(c->work_taken));
    free(c->tensor_maps);
    free(c);
}

// CUDA_ATTENTION=mma in the environment: for comparisons, and a way out should Hopper's kernels be at fault.
bool read_environment(CudaContext *c, Error *err) {
    const char *wanted = getenv("CUDA_ATTENTION");
    c->mma_alone = wanted != NULL && strcmp(wanted, "mma") == 0;
    if (wanted == NULL || c->mma_alone) return true;
    return error_usage(err, "CUDA_ATTENTION is \"%s\"; it must be mma (kernels for every GPU), or not be set", wanted);
}

bool fill_context(CudaContext *c, int index, Error *err) {
    if (!read_environment(c, err)) return false;
    c->gpu = index;
    if (!worked(cudaSetDevice(index), "opening it", index, err)) return false;
    if (!worked(cudaGetDeviceProperties(&c->properties, index), "asking its properties", index, err)) return false;
    if (!can_serve(&c->properties, index, err)) return false;
    // Not the default stream, which would wait for the other's and other ranks'. Exchanges go first where both have
    // something ready: a large kernel of the work, let in before them, would fill the GPU until nearly its end.
    int least, greatest;
    if (!worked(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for priorities", index, err)) return false;
    for (int i = 0; i < 2; i++) {
        const int priority = i == STREAM_EXCHANGE ? greatest : least;
        if (!worked(cudaStreamCreateWithPriority(&c->stream[i], cudaStreamNonBlocking, priority), "making a stream",
                    index, err))
            return false;
    }
    if (!worked(cudaMalloc((void **)&c->work_taken, sizeof(int)), "taking 4 bytes of its memory", index, err) ||
        !worked(cudaMemset(c->work_taken, 0, sizeof(int)), "clearing memory", index, err))
        return false;
    if (cublasLtCreate(&c->cublas) != CUBLAS_STATUS_SUCCESS)
        return error_set(err, "GPU %d: cuBLASLt does not start; nvidia-smi shows how much memory is free", index);
    c->plans = matmul_plans_new();
    c->uploads = upload_ring_new();
    return true;
}

void cuda_close(Device *device) {
    CudaContext *c = context_of(device);
    CUDA_CHECK(cudaSetDevice(c->gpu)); // the thread may have opened others since
    cuda_synchronize(device);
    free_context(c);
    *device = Device{};
}

// ---- the table -----------------------------------------------------------------------------------------------------

void fill_table(Device *device) {
    device->name = NAME;
    device->element_bytes = sizeof(uint16_t); // bf16
    device->host_memory = false;
    device->threads = 1;
    device->attention = cuda_attention_kernels(device);
    device->mixers = cuda_mixer_kernels();
    device->collectives = &cuda_nccl_collectives;

    device->close = cuda_close;
    device->synchronize = cuda_synchronize;
    device->memory_available = cuda_memory_available;
    device->matrix_rate = cuda_matrix_rate;
    device->tune = cuda_tune;
    device->tuned = cuda_tuned;

    device->allocate = cuda_allocate;
    device->release = cuda_release;
    device->zero = cuda_zero;
    device->upload = cuda_upload;
    device->download = cuda_download;
    device->copy = cuda_copy;
    device->copy_strided = cuda_copy_strided;
    device->to_storage = cuda_to_storage;
    device->to_float = cuda_to_float;
    device->to_storage_strided = cuda_to_storage_strided;
    device->add_float = cuda_add_float;

    device->embedding_forward = cuda_embedding_forward;
    device->embedding_backward = cuda_embedding_backward;
    device->layernorm_forward = cuda_layernorm_forward;
    device->layernorm_backward = cuda_layernorm_backward;
    device->rmsnorm_forward = cuda_rmsnorm_forward;
    device->rmsnorm_backward = cuda_rmsnorm_backward;
    device->matmul_forward = cuda_matmul_forward;
    device->matmul_backward = cuda_matmul_backward;
    device->rotary = cuda_rotary;
    device->matmul_gelu_forward = cuda_matmul_gelu_forward;
    device->matmul_gelu_backward = cuda_matmul_gelu_backward;
    device->gelu_forward = cuda_gelu_forward;
    device->gelu_backward = cuda_gelu_backward;
    device->swiglu_forward = cuda_swiglu_forward;
    device->swiglu_backward = cuda_swiglu_backward;
    device->classifier = cuda_classifier;
    device->adamw = cuda_adamw;
    device->sum = cuda_sum;
    device->sum_of_squares = cuda_sum_of_squares;

    device->event_create = cuda_event_create;
    device->event_release = cuda_event_release;
    device->event_record = cuda_event_record;
    device->stream_wait = cuda_stream_wait;
    device->event_done = cuda_event_done;
    device->copy_on = cuda_copy_on;
    device->sum_terms = cuda_sum_terms;
}

} // namespace

bool cuda_device(Device *device, int index, Error *err) {
    const char *why = "";
    const int count = cuda_device_count(&why);
    if (count == 0) return error_set(err, "--device %s: %s; use --device cpu", NAME, why);
    if (index < 0 || index >= count)
        return error_usage(
            err,
            "there is no GPU %d: this machine has %d, counted from 0 (see %s); start fewer ranks, or let "
            "them share by --devices",
            index, count, WHO_SETS_THE_NUMBER);
    CudaContext *c = (CudaContext *)calloc(1, sizeof *c);
    if (c == NULL) return error_set(err, "out of memory");
    if (!fill_context(c, index, err)) {
        free_context(c);
        return false;
    }
    *device = Device{};
    device->context = c;
    fill_table(device);
    snprintf(device->description, sizeof device->description, "%.70s, %.0f GiB", c->properties.name,
             (double)c->properties.totalGlobalMem / (1 << 30));
    return true;
}

void cuda_device_elsewhere(Device *device) {
    CudaContext c = {};
    Error none;
    (void)read_environment(&c, &none);
    c.properties.major = 9;
    *device = Device{};
    device->context = &c;
    fill_table(device);
    device->context = NULL;
}
