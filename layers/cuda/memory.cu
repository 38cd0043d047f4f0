// Memory of a GPU: where it comes from, and moves within it and to the host.
#include <stdio.h>

#include "layers/cuda/context.h"
#include "layers/cuda/layers.h"

namespace {

double mebibytes(size_t bytes) { return (double)bytes / (1 << 20); }

} // namespace

void *cuda_allocate(Device *device, size_t bytes, Error *err) {
    void *memory = NULL;
    const size_t at_least_one = bytes > 0 ? bytes : 1;
    if (cudaMalloc(&memory, at_least_one) != cudaSuccess) { // aligned to 256 bytes by its contract
        (void)cudaGetLastError();                           // or the next check would report it again
        size_t available = 0, total = 0;
        CUDA_CHECK(cudaMemGetInfo(&available, &total));
        error_set(
            err,
            "out of memory: %.1f MiB are not to be had on GPU %d, where %.1f of %.1f MiB are free; take a shorter "
            "--context or a smaller model (see --plan), or more GPUs",
            mebibytes(bytes), context_of(device)->gpu, mebibytes(available), mebibytes(total));
        return NULL;
    }
    cuda_zero(device, memory, at_least_one);
    CUDA_CHECK(cudaStreamSynchronize(stream_of(device))); // STREAM_EXCHANGE may be the first to write to it
    return memory;
}

void cuda_release(Device *device, void *memory, size_t bytes) {
    (void)device, (void)bytes;
    CUDA_CHECK(cudaFree(memory)); // waits for kernels that may still use it
}

void cuda_zero(Device *device, void *memory, size_t bytes) {
    if (bytes > 0) CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, stream_of(device)));
}

void cuda_download(Device *device, void *host, const void *from, size_t bytes) {
    if (bytes > 0) CUDA_CHECK(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, stream_of(device)));
    CUDA_CHECK(cudaStreamSynchronize(stream_of(device)));
}

void cuda_copy(Device *device, void *to, const void *from, size_t bytes) {
    if (bytes == 0 || to == from) return;
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_of(device)));
}

void cuda_synchronize(Device *device) {
    CUDA_CHECK(cudaStreamSynchronize(context_of(device)->stream[STREAM_WORK]));
    CUDA_CHECK(cudaStreamSynchronize(context_of(device)->stream[STREAM_EXCHANGE]));
}

int64_t cuda_memory_available(Device *device) {
    size_t available = 0, total = 0;
    (void)device;
    CUDA_CHECK(cudaMemGetInfo(&available, &total));
    return (int64_t)available;
}
