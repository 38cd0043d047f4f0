// What Device.context points to on CUDA: one rank's view of one GPU.
#ifndef LAYERS_CUDA_CONTEXT_H
#define LAYERS_CUDA_CONTEXT_H

#include <cublasLt.h>

#include "layers/cuda/cuda.h"
#include "layers/device.h"

struct MatmulPlans; // layers/cuda/cublaslt.h: cuBLASLt's algorithms, by shape
struct UploadRing;  // layers/cuda/upload.cu: pinned memory on the way to the GPU

struct CudaContext {
    int gpu;                   // index
    cudaDeviceProp properties; // multiProcessorCount, sharedMemPerBlockOptin, ...
    cudaStream_t stream[2];    // by Stream
    cublasLtHandle_t cublas;
    void *workspace; // cuBLASLt's
    size_t workspace_bytes;
    struct MatmulPlans *plans;
    struct UploadRing *uploads;
    void *scratch; // for sums over blocks, in STREAM_WORK; grows when more is asked for (cuda_scratch)
    size_t scratch_bytes;
    uint64_t peers_tried; // a bit for each GPU whose memory this one has asked to reach (streams.cu)
};

static inline CudaContext *context_of(Device *device) { return static_cast<CudaContext *>(device->context); }
static inline cudaStream_t stream_of(Device *device) { return context_of(device)->stream[STREAM_WORK]; }
static inline int multiprocessors(Device *device) { return context_of(device)->properties.multiProcessorCount; }

// At least `bytes` of device memory for the kernels of one call in STREAM_WORK, 256-byte aligned; the next call's
// kernels may use the same. Never asks the GPU to wait but when it grows, which stops after the first step.
void *cuda_scratch(Device *device, size_t bytes);

#endif
