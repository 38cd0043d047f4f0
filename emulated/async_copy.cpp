// cp.async: copies that arrive when they are waited for, and not before.
#include "emulated/async_copy.h"

#include "emulated/checks.h"
#include "emulated/report.h"
#include "emulated/shared.h"

enum { COPY_BYTES = 16 };

static AsyncCopies *copies_of(Thread *thread) {
    if (thread->copies == NULL) {
        thread->copies = (AsyncCopies *)calloc(1, sizeof(AsyncCopies));
        if (thread->copies == NULL) report_host("no memory for asynchronous copies");
    }
    return thread->copies;
}

void emulated_cp_async_16(void *to, const void *from, bool valid) {
    Thread *thread = emulated_thread;
    Block *block = thread->block;
    if (!shared_contains(block, to)) report(thread, CALLER, "cp.async to %p, which is not shared memory", to);
    if ((uintptr_t)to % COPY_BYTES != 0) report_misaligned(thread, "cp.async writes", to, COPY_BYTES, CALLER);
    if ((uintptr_t)from % COPY_BYTES != 0) report_misaligned(thread, "cp.async reads", from, COPY_BYTES, CALLER);
    if (valid) {
        if (shared_contains(block, from)) report(thread, CALLER, "cp.async from shared memory");
        check_global(thread, from, COPY_BYTES, false, CALLER);
    }
    shared_access(thread, to, COPY_BYTES, ACCESS_COPY_BEGIN, CALLER);
    memset(to, 0xff, COPY_BYTES);

    AsyncCopies *copies = copies_of(thread);
    if (copies->count == copies->capacity) {
        copies->capacity = copies->capacity ? 2 * copies->capacity : 16;
        copies->copy = (AsyncCopy *)realloc(copies->copy, copies->capacity * sizeof(AsyncCopy));
        if (copies->copy == NULL) report_host("no memory for asynchronous copies");
    }
    copies->copy[copies->count++] = AsyncCopy{(char *)to, valid ? (const char *)from : NULL, copies->committed, CALLER};
}

void emulated_cp_async_commit() { copies_of(emulated_thread)->committed++; }

void emulated_cp_async_wait(int pending) {
    Thread *thread = emulated_thread;
    AsyncCopies *copies = copies_of(thread);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < copies->count; i++) {
        const AsyncCopy *copy = &copies->copy[i];
        if (copy->group + (uint32_t)pending >= copies->committed) { // among the last `pending`, or not closed at all
            copies->copy[kept++] = *copy;
            continue;
        }
        shared_access(thread, copy->to, COPY_BYTES, ACCESS_COPY_END, copy->where);
        if (copy->from != NULL) {
            memcpy(copy->to, copy->from, COPY_BYTES);
        } else {
            memset(copy->to, 0, COPY_BYTES);
        }
    }
    copies->count = kept;
}
