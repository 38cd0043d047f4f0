// cp.async: copies from global to shared memory that arrive as late as they may, at the wait for their group.
#ifndef EMULATED_ASYNC_COPY_H
#define EMULATED_ASYNC_COPY_H

#include "emulated/block.h"

struct AsyncCopy {
    char *to;
    const char *from; // NULL: zeros
    uint32_t group;   // number of the group, counted from 0
    void *where;
};
struct AsyncCopies {    // of one thread
    uint32_t committed; // groups closed so far
    uint32_t count, capacity;
    AsyncCopy *copy; // in the order begun
};

// At a thread's beginning.
static inline void async_copy_forget(Thread *thread) {
    if (thread->copies != NULL) thread->copies->committed = thread->copies->count = 0;
}

#endif
