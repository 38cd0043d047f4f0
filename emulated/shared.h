// A block's shared memory: arrays with room between them, and for every byte whether it may be touched.
#ifndef EMULATED_SHARED_H
#define EMULATED_SHARED_H

#include "emulated/block.h"

bool shared_open(Block *block);         // once per Block; false: no memory
void shared_begin_launch(Block *block); // forgets the arrays of the kernel before
void shared_begin_block(Block *block);  // all bytes unwritten again

static inline bool shared_contains(const Block *block, const void *address) {
    return (size_t)((const char *)address - block->shared) < SHARED_SPACE;
}
// Into `text`: "dynamic shared memory (512 bytes) + 516"; for reports.
void shared_describe(const Block *block, const void *address, char *text, size_t size);

enum AccessKind {
    ACCESS_READ,
    ACCESS_WRITE,
    ACCESS_ATOMIC,
    ACCESS_COPY_BEGIN, // cp.async
    ACCESS_COPY_END,
    ACCESS_BULK_BEGIN // tma_load
};
// Checks an access by `thread` of any size and alignment, and takes note of it. `where`: an address in the code.
void shared_access(Thread *thread, const void *address, uint32_t bytes, AccessKind kind, const void *where);

#endif
