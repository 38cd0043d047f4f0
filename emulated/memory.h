// The memory of the emulated GPUs, and the host's pinned memory: who owns which address.
//
// All of it lies in one stretch of addresses that is set aside at the start. Allocations follow one another with
// unreadable pages between, and an address is never given out twice, so that a stray access meets nobody's memory.
#ifndef EMULATED_MEMORY_H
#define EMULATED_MEMORY_H

#include <stddef.h>
#include <stdint.h>

enum { PINNED = -1 }; // in place of the index of a GPU

// 256-byte aligned memory filled with 0xff, which is not a number in every floating-point format; NULL: not enough.
void *memory_allocate(size_t bytes, int device);
bool memory_free(void *memory, bool pinned); // false: it is no allocation of this kind
// The device that owns the byte, or PINNED; false if it is not allocated. *rest: bytes from here to the allocation's
// end.
bool memory_owner(const void *address, int *device, size_t *rest);
void memory_info(size_t *available, size_t *total);
bool memory_enable_peer(int device, int peer); // false: it was so before

// For kernels:
enum MemoryState { MEMORY_FOUND, MEMORY_OUTSIDE, MEMORY_FREED, MEMORY_OF_PEER, MEMORY_OF_HOST };
MemoryState memory_find(const void *address, size_t bytes, int device, bool write);
void memory_describe(const void *address, char *text, size_t size); // "allocation of 1024 bytes at offset 1028"

// The allocations that this host thread's kernel used last.
enum { RECENT = 8 };
struct RecentMemory {
    uintptr_t begin[RECENT], bytes[RECENT];
    unsigned next;
};
extern __thread RecentMemory recent_memory;
static inline bool memory_seen_recently(const void *address, size_t bytes) {
    for (int i = 0; i < RECENT; i++) {
        const uintptr_t offset = (uintptr_t)address - recent_memory.begin[i];
        if (offset < recent_memory.bytes[i]) return bytes <= recent_memory.bytes[i] - offset;
    }
    return false;
}
void memory_forget_recent();

#endif
