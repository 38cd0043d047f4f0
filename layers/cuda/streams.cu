// What ranks need of each other's GPUs: events to wait for, copies from one to another, sums of what came.
//
// These functions may be given the Device of another rank, by another thread whose current GPU is another one. Events
// and kernels belong to the GPU that is current when they are made, so each function makes its Device's GPU current
// first, and puts the thread's own back.
#include <stdlib.h>

#include "layers/cuda/context.h"
#include "layers/cuda/elementwise.h"
#include "layers/cuda/layers.h"

struct Event {
    cudaEvent_t cuda;
};

namespace {

// Makes the GPU of `device` current; returns the one that was.
int enter(Device *device) {
    int before;
    CUDA_CHECK(cudaGetDevice(&before));
    if (before != context_of(device)->gpu) CUDA_CHECK(cudaSetDevice(context_of(device)->gpu));
    return before;
}

void leave(Device *device, int before) {
    if (before != context_of(device)->gpu) CUDA_CHECK(cudaSetDevice(before));
}

} // namespace

Event *cuda_event_create(Device *device) {
    Event *event = (Event *)malloc(sizeof *event);
    if (event == NULL) cuda_give_up(__FILE__, __LINE__, "out of memory");
    const int before = enter(device);
    CUDA_CHECK(cudaEventCreateWithFlags(&event->cuda, cudaEventDisableTiming));
    leave(device, before);
    return event;
}

void cuda_event_release(Device *device, Event *event) {
    if (event == NULL) return;
    const int before = enter(device);
    CUDA_CHECK(cudaEventDestroy(event->cuda));
    leave(device, before);
    free(event);
}

void cuda_event_record(Device *device, Stream stream, Event *event) {
    const int before = enter(device);
    CUDA_CHECK(cudaEventRecord(event->cuda, context_of(device)->stream[stream]));
    leave(device, before);
}

void cuda_stream_wait(Device *device, Stream stream, Event *event) {
    const int before = enter(device);
    CUDA_CHECK(cudaStreamWaitEvent(context_of(device)->stream[stream], event->cuda, 0));
    leave(device, before);
}

bool cuda_event_done(Device *device, Event *event) {
    const int before = enter(device);
    const cudaError_t status = cudaEventQuery(event->cuda);
    leave(device, before);
    if (status == cudaErrorNotReady) {
        (void)cudaGetLastError(); // "not yet" is not an error
        return false;
    }
    CUDA_CHECK(status);
    return true;
}

// ---- copies --------------------------------------------------------------------------------------------------------

namespace {

// Lets this device read and write the GPU on which `memory` lies, where the two can: its copies then go straight over
// the link, instead of through the host's memory. Done at the first copy between the two, since access to a GPU that no
// rank of this process works on would only take up memory there.
void reach(Device *device, const void *memory) {
    CudaContext *c = context_of(device);
    cudaPointerAttributes where;
    CUDA_CHECK(cudaPointerGetAttributes(&where, memory));
    if (where.device < 0 || where.device == c->gpu || where.device >= 64) return;
    const uint64_t bit = (uint64_t)1 << where.device;
    if (c->peers_tried & bit) return;
    c->peers_tried |= bit;
    int can = 0;
    CUDA_CHECK(cudaDeviceCanAccessPeer(&can, c->gpu, where.device));
    if (!can) return;
    // It fails where another rank on this GPU has done it, and beyond eight others on some machines: the copies work
    // all the same, by way of the host.
    if (cudaDeviceEnablePeerAccess(where.device, 0) != cudaSuccess) (void)cudaGetLastError();
}

} // namespace

void cuda_copy_on(Device *device, Stream stream, void *to, const void *from, size_t bytes) {
    if (bytes == 0 || to == from) return;
    const int before = enter(device);
    reach(device, to);
    reach(device, from);
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, context_of(device)->stream[stream]));
    leave(device, before);
}

// ---- sums ----------------------------------------------------------------------------------------------------------

namespace {

struct Terms { // goes to the kernel by value: 2 KiB of the 4 that arguments may have
    const float *term[DEVICE_MOST_TERMS];
};

template <int N> __device__ inline void sum_values(const Terms &terms, int term_count, float *out, int64_t i) {
    float sum[N];
    load(sum, terms.term[0] + i);
    for (int t = 1; t < term_count; t++) {
        float term[N];
        load(term, terms.term[t] + i);
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] += term[k];
    }
    store(out + i, sum);
}

template <int N> __global__ void sum_terms_kernel(Terms terms, int term_count, float *out, int64_t count) {
    const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i + N <= count) sum_values<N>(terms, term_count, out, i);
    else
        for (int64_t j = i; j < count; j++) sum_values<1>(terms, term_count, out, j);
}

} // namespace

void cuda_sum_terms(Device *device, Stream stream, float *out, const float *const *terms, int term_count,
                    int64_t count) {
    if (count == 0) return;
    if (term_count > DEVICE_MOST_TERMS)
        cuda_give_up(__FILE__, __LINE__, "a sum over %d ranks; at most %d at a time", term_count, DEVICE_MOST_TERMS);
    Terms all = {};
    bool wide = aligned(out);
    for (int t = 0; t < term_count; t++) {
        all.term[t] = terms[t];
        wide = wide && aligned(terms[t]);
    }
    const int before = enter(device);
    const cudaStream_t on = context_of(device)->stream[stream];
    if (wide)
        launch(sum_terms_kernel<4>, grid_for(count, 4 * MAP_THREADS), MAP_THREADS, 0, on, all, term_count, out, count);
    else launch(sum_terms_kernel<1>, grid_for(count, MAP_THREADS), MAP_THREADS, 0, on, all, term_count, out, count);
    leave(device, before);
}
