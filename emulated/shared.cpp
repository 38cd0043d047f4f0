// A block's shared memory: poisoned at its start, and checked like device memory.
#include "emulated/shared.h"

#include <sys/mman.h>

#include "emulated/hopper.h"
#include "emulated/races.h"
#include "emulated/report.h"
#include "emulated/settings.h"

bool shared_open(Block *block) {
    block->shared = (char *)mmap(NULL, SHARED_SPACE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    block->byte_state = (uint8_t *)calloc(SHARED_SPACE + 16, 1);
    return block->shared != MAP_FAILED && block->byte_state != NULL;
}

void shared_begin_launch(Block *block) {
    memset(block->byte_state, BYTE_OUTSIDE, block->shared_used);
    block->array_count = 0;
    block->dynamic_bytes = (uint32_t)block->launch->shared_bytes;
    block->shared_used = SHARED_ZONE + block->dynamic_bytes;
}

void shared_begin_block(Block *block) {
    memset(block->byte_state + SHARED_ZONE, BYTE_UNWRITTEN, block->dynamic_bytes);
    memset(block->shared + SHARED_ZONE, 0xff, block->dynamic_bytes);
    for (int i = 0; i < block->array_count; i++) {
        memset(block->byte_state + block->array[i].begin, BYTE_UNWRITTEN, block->array[i].bytes);
        memset(block->shared + block->array[i].begin, 0xff, block->array[i].bytes);
    }
    races_begin_block(block);
}

void *emulated_dynamic_shared() { return emulated_thread->block->shared + SHARED_ZONE; }

void *emulated_shared_array(const void *site, const char *name, size_t bytes, size_t alignment) {
    Thread *thread = emulated_thread;
    Block *block = thread->block;
    size_t total = bytes;
    for (int i = 0; i < block->array_count; i++) {
        if (block->array[i].site == site) return block->shared + block->array[i].begin;
        total += block->array[i].bytes;
    }
    if (total > SHARED_MOST_STATIC || total + block->dynamic_bytes > SHARED_MOST_DYNAMIC ||
        block->array_count == SHARED_ARRAYS) {
        report(thread, CALLER,
               "the array %s makes it %zu bytes of static and %u of dynamic shared memory, more than there is", name,
               total, block->dynamic_bytes);
    }
    // As little aligned as its type allows: whoever needs more has to say so.
    uint32_t begin = (block->shared_used + 64 + (uint32_t)alignment - 1) / (uint32_t)alignment * (uint32_t)alignment;
    if (begin / alignment % 2 == 0) begin += (uint32_t)alignment;
    block->array[block->array_count++] = SharedArray{site, name, begin, (uint32_t)bytes};
    memset(block->byte_state + begin, BYTE_UNWRITTEN, bytes);
    memset(block->shared + begin, 0xff, bytes);
    block->shared_used = begin + (uint32_t)bytes;
    return block->shared + begin;
}

void shared_describe(const Block *block, const void *address, char *text, size_t size) {
    const long offset = (const char *)address - block->shared;
    long best = offset - SHARED_ZONE; // from the array that begins last at or before the address
    snprintf(text, size, "dynamic shared memory (%u bytes) at offset %ld", block->dynamic_bytes, best);
    for (int i = 0; i < block->array_count; i++) {
        const long into = offset - (long)block->array[i].begin;
        const bool nearer = into >= 0 ? best < 0 || into < best || block->dynamic_bytes == 0
                                      : (best >= (long)block->dynamic_bytes && into > -16);
        if (!nearer) continue;
        best = into;
        snprintf(text, size, "shared array %s (%u bytes) at offset %ld", block->array[i].name, block->array[i].bytes,
                 into);
    }
}

void shared_access(Thread *thread, const void *address, uint32_t bytes, AccessKind kind, const void *where) {
    Block *block = thread->block;
    const uint32_t begin = (uint32_t)((const char *)address - block->shared);
    char place[200];
    const bool reads = kind == ACCESS_READ || kind == ACCESS_ATOMIC;
    const char *does = kind == ACCESS_READ         ? "reads"
                       : kind == ACCESS_ATOMIC     ? "atomically changes"
                       : kind == ACCESS_WRITE      ? "writes"
                       : kind == ACCESS_BULK_BEGIN ? "copies (tma_load)"
                                                   : "copies (cp.async)";
    for (uint32_t i = begin; i < begin + bytes; i++) {
        const uint8_t state = i < SHARED_SPACE ? block->byte_state[i] : (uint8_t)BYTE_OUTSIDE;
        if (state == BYTE_WRITTEN) continue;
        if (state == BYTE_OUTSIDE) {
            shared_describe(block, address, place, sizeof place);
            report(thread, where, "%s %u bytes out of bounds: %s", does, bytes, place);
        }
        if (state == BYTE_IN_FLIGHT && kind != ACCESS_COPY_END) {
            shared_describe(block, address, place, sizeof place);
            report(thread, where, "%s %u bytes of an asynchronous copy that has not been waited for: %s", does, bytes,
                   place);
        }
        if (state == BYTE_OF_MBARRIER) {
            shared_describe(block, address, place, sizeof place);
            report(thread, where, "%s %u bytes of an mbarrier: %s", does, bytes, place);
        }
        if (state == BYTE_UNWRITTEN && reads) {
            shared_describe(block, address, place, sizeof place);
            report(thread, where, "%s %u bytes never written by this block: %s", does, bytes, place);
        }
    }
    const bool begins = kind == ACCESS_COPY_BEGIN || kind == ACCESS_BULK_BEGIN;
    if (kind != ACCESS_READ) memset(block->byte_state + begin, begins ? BYTE_IN_FLIGHT : BYTE_WRITTEN, bytes);
    if (block->hopper != NULL && kind != ACCESS_READ && kind != ACCESS_BULK_BEGIN)
        hopper_wrote(thread, begin, bytes, where);
    // Races are looked for where __syncthreads and __syncwarp are all that orders threads.
    if (block->races != NULL && (block->hopper == NULL || block->hopper->barriers == 0))
        races_access(thread, begin, bytes, kind, where);
}
