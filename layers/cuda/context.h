// What Device.context points to on CUDA: one rank's view of one GPU.
#ifndef LAYERS_CUDA_CONTEXT_H
#define LAYERS_CUDA_CONTEXT_H

#include <cublasLt.h>

#include "layers/cuda/cuda.h"
#include "layers/cuda/scratch.h"
#include "layers/device.h"

struct MatmulPlans; // layers/cuda/cublaslt.h: cuBLASLt's algorithms, by shape
struct UploadRing;  // layers/cuda/upload.cu: pinned memory on the way to the GPU
struct RealTransforms; // mixer/cuda/transforms.cu: cuFFT's plans
struct TensorMaps;  // attention/cuda/hopper/tensor_maps.cu

struct CudaContext {
    int gpu;                   // index
    cudaDeviceProp properties; // multiProcessorCount, sharedMemPerBlockOptin, ...
    bool mma_alone;            // CUDA_ATTENTION=mma: attention by mma.sync on Hopper, too, to compare
    cudaStream_t stream[2];    // by Stream
    cublasLtHandle_t cublas;
    struct MatmulPlans *plans;
    struct UploadRing *uploads;
    struct TensorMaps *tensor_maps; // by malloc; NULL: none so far
    int *work_taken;                // how attention/cuda/hopper deals out its work; 0 between launches
    bool nccl_works_beside;         // other ranks are reached by NCCL, whose kernels take multiprocessors
    uint64_t peers_tried;           // a bit for each GPU whose memory this one has asked to reach (streams.cu)
    struct RealTransforms *transforms; // NULL: none so far
};

static inline CudaContext *context_of(Device *device) { return static_cast<CudaContext *>(device->context); }
static inline cudaStream_t stream_of(Device *device) { return context_of(device)->stream[STREAM_WORK]; }
static inline int multiprocessors(Device *device) { return context_of(device)->properties.multiProcessorCount; }

// Memory of the device for the kernels of one call in STREAM_WORK, out of what was lent to it, 256-byte aligned; the
// next call's kernels may use the same. `who` calls. Before it lies cuBLASLt's workspace.
static inline void *cuda_scratch(Device *device, const char *who, size_t bytes) {
    return static_cast<char *>(device_scratch(device, who, CUDA_WORKSPACE_BYTES + bytes)) + CUDA_WORKSPACE_BYTES;
}
static inline void *cuda_workspace(Device *device) { return device_scratch(device, "cuBLASLt", CUDA_WORKSPACE_BYTES); }

#endif
