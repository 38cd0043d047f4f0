// Every access to memory by a kernel is looked at before it happens.
#ifndef EMULATED_CHECKS_H
#define EMULATED_CHECKS_H

#include "emulated/block.h"

// For memory that is neither shared nor the thread's stack: an allocation that this device may use. where: in the code.
void check_global(Thread *thread, const void *address, uint32_t bytes, bool write, const void *where);
// For any memory; alignment too, unless `bytes` is no power of two up to 16.
void check_access(const void *address, uint32_t bytes, bool write, bool atomic, const void *where);

// Into `text`: "allocation of 1024 bytes on GPU 0 at offset 1028", "shared array partial (128 bytes) at offset -4", ...
void describe(const Thread *thread, const void *address, char *text, size_t size);
[[noreturn]] void report_misaligned(const Thread *thread, const char *does, const void *address, uint32_t bytes,
                                    const void *where);

#endif
