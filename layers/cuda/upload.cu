// From the host to a GPU without waiting for it: what is sent is first copied to pinned memory, from which the GPU
// fetches it when its turn comes; so the host may change its own at once, and go on.
//
// The pinned memory is a ring of slots, filled one after the other; each has an event that says when the last that went
// into it was fetched. The host waits only where it is a whole ring ahead of the GPU: 16 MiB, which is 1.4 million
// tokens with their targets and positions.
#include <stdlib.h>
#include <string.h>

#include "layers/cuda/context.h"
#include "layers/cuda/layers.h"

const size_t SLOT_BYTES = (size_t)256 << 10;
enum { SLOTS = CUDA_UPLOAD_BYTES / (256 << 10) };

struct UploadRing {
    unsigned char *pinned; // SLOTS of SLOT_BYTES
    cudaEvent_t fetched[SLOTS];
    int slot;    // being filled
    size_t used; // bytes of it
};

UploadRing *upload_ring_new(void) {
    UploadRing *ring = (UploadRing *)calloc(1, sizeof *ring);
    if (ring == NULL) cuda_give_up(__FILE__, __LINE__, "out of memory");
    CUDA_CHECK(cudaMallocHost((void **)&ring->pinned, SLOTS * SLOT_BYTES));
    for (int i = 0; i < SLOTS; i++) CUDA_CHECK(cudaEventCreateWithFlags(&ring->fetched[i], cudaEventDisableTiming));
    return ring;
}

void upload_ring_free(UploadRing *ring) {
    if (ring == NULL) return;
    for (int i = 0; i < SLOTS; i++) CUDA_CHECK(cudaEventDestroy(ring->fetched[i]));
    CUDA_CHECK(cudaFreeHost(ring->pinned));
    free(ring);
}

namespace {

void upload_slot(Device *device, UploadRing *ring, void *to, const void *host, size_t bytes) {
    if (bytes > SLOT_BYTES - ring->used) {
        ring->slot = (ring->slot + 1) % SLOTS;
        ring->used = 0;
        CUDA_CHECK(cudaEventSynchronize(ring->fetched[ring->slot])); // at once if it was never recorded
    }
    unsigned char *pinned = ring->pinned + (size_t)ring->slot * SLOT_BYTES + ring->used;
    ring->used = smaller_of(SLOT_BYTES, ceil_div<size_t>(ring->used + bytes, 256) * 256); // the next is aligned too
    memcpy(pinned, host, bytes);
    CUDA_CHECK(cudaMemcpyAsync(to, pinned, bytes, cudaMemcpyHostToDevice, stream_of(device)));
    CUDA_CHECK(cudaEventRecord(ring->fetched[ring->slot], stream_of(device)));
}

} // namespace

void cuda_upload(Device *device, void *to, const void *host, size_t bytes) {
    for (size_t begin = 0; begin < bytes; begin += SLOT_BYTES)
        upload_slot(device, context_of(device)->uploads, (char *)to + begin, (const char *)host + begin,
                    smaller_of(SLOT_BYTES, bytes - begin));
}
