// From the host to a GPU without waiting for it: what is sent is first copied to pinned memory, from which the GPU
// fetches it when its turn comes; so the host may change its own at once, and go on.
//
// The pinned memory is a ring of slots, each with an event that says when it was fetched. The host waits only where it
// is a whole ring ahead of the GPU, which a step's tokens are not: the ring holds four million of them.
#include <stdlib.h>
#include <string.h>

#include "layers/cuda/context.h"
#include "layers/cuda/layers.h"

static const size_t SLOT_BYTES = (size_t)256 << 10;
enum { SLOTS = 64 };

struct UploadRing {
    unsigned char *pinned; // SLOTS of SLOT_BYTES
    cudaEvent_t fetched[SLOTS];
    int next;
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

static void upload_slot(Device *device, UploadRing *ring, void *to, const void *host, size_t bytes) {
    const int slot = ring->next;
    ring->next = (slot + 1) % SLOTS;
    unsigned char *pinned = ring->pinned + (size_t)slot * SLOT_BYTES;
    CUDA_CHECK(cudaEventSynchronize(ring->fetched[slot])); // at once if it was never recorded
    memcpy(pinned, host, bytes);
    CUDA_CHECK(cudaMemcpyAsync(to, pinned, bytes, cudaMemcpyHostToDevice, stream_of(device)));
    CUDA_CHECK(cudaEventRecord(ring->fetched[slot], stream_of(device)));
}

void cuda_upload(Device *device, void *to, const void *host, size_t bytes) {
    for (size_t begin = 0; begin < bytes; begin += SLOT_BYTES)
        upload_slot(device, context_of(device)->uploads, (char *)to + begin, (const char *)host + begin,
                    smaller_of(SLOT_BYTES, bytes - begin));
}
