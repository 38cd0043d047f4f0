// What g++ -fsanitize=thread calls at each access to memory in a .cu file. ThreadSanitizer's library would look for
// races between host threads there; this one looks at what a kernel touches. Names: GCC's sanitizer.def.
#include "emulated/checks.h"

#include "emulated/hopper.h"
#include "emulated/memory.h"
#include "emulated/report.h"
#include "emulated/shared.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define UNLIKELY(x) __builtin_expect(x, 0)

void describe(const Thread *thread, const void *address, char *text, size_t size) {
    if (shared_contains(thread->block, address)) shared_describe(thread->block, address, text, size);
    else memory_describe(address, text, size);
}

void report_misaligned(const Thread *thread, const char *does, const void *address, uint32_t bytes, const void *where) {
    char place[200];
    describe(thread, address, place, sizeof place);
    report(thread, where, "%s %u bytes misaligned: %s", does, bytes, place);
}

// A vector type's own check (vector_types.h).
void emulated_misaligned(const void *address, int bytes) {
    if (emulated_thread == NULL) return; // host code may
    report_misaligned(emulated_thread, "moves", address, (uint32_t)bytes, CALLER);
}

// The states of all bytes at once. Where all have been written, a read is right and a write changes no state.
static ALWAYS_INLINE bool all_written(const uint8_t *state, uint32_t bytes) {
    uint64_t low = 0, high = 0;
    memcpy(&low, state, bytes < 8 ? bytes : 8);
    if (bytes == 16) memcpy(&high, state + 8, 8);
    const uint64_t all = 0x0303030303030303u;
    return low == (bytes < 8 ? all & ((1ull << 8 * (bytes & 7)) - 1) : all) && (bytes < 16 || high == all);
}

static ALWAYS_INLINE void check(const void *address, uint32_t bytes, bool write, bool aligned, const void *where) {
    Thread *thread = emulated_thread;
    if (thread == NULL) return; // host code
    if ((size_t)((const char *)address - thread->stack) < FIBER_STACK_BYTES) return;
    if (aligned && UNLIKELY((uintptr_t)address % bytes != 0))
        report_misaligned(thread, write ? "writes" : "reads", address, bytes, where);
    const Block *block = thread->block;
    const size_t offset = (size_t)((const char *)address - block->shared);
    if (offset < SHARED_SPACE) {
        if (block->races == NULL && all_written(block->byte_state + offset, bytes)) {
            if (UNLIKELY(block->hopper != NULL && write)) hopper_wrote(thread, (uint32_t)offset, bytes, where);
            return;
        }
        shared_access(thread, address, bytes, write ? ACCESS_WRITE : ACCESS_READ, where);
    } else if (UNLIKELY(!memory_seen_recently(address, bytes))) {
        check_global(thread, address, bytes, write, where);
    }
}

void check_global(Thread *thread, const void *address, uint32_t bytes, bool write, const void *where) {
    const char *does = write ? "writes" : "reads";
    char place[200];
    switch (memory_find(address, bytes, thread->block->device, write)) {
    case MEMORY_FOUND: return;
    case MEMORY_OUTSIDE:
        describe(thread, address, place, sizeof place);
        report(thread, where, "%s %u bytes out of bounds: %s", does, bytes, place);
    case MEMORY_FREED:
        describe(thread, address, place, sizeof place);
        report(thread, where, "%s %u bytes of freed memory: %s", does, bytes, place);
    case MEMORY_OF_PEER:
        describe(thread, address, place, sizeof place);
        report(thread, where, "%s %u bytes of another GPU, to which GPU %d has no access: %s", does, bytes,
               thread->block->device, place);
    case MEMORY_OF_HOST: report(thread, where, "%s %u bytes of the host's memory, at %p", does, bytes, address);
    }
}

void check_access(const void *address, uint32_t bytes, bool write, bool atomic, const void *where) {
    Thread *thread = emulated_thread;
    if (thread == NULL || bytes == 0) return;
    if ((size_t)((const char *)address - thread->stack) < FIBER_STACK_BYTES) return;
    if (bytes <= 16 && (bytes & (bytes - 1)) == 0 && (uintptr_t)address % bytes != 0)
        report_misaligned(thread, write ? "writes" : "reads", address, bytes, where);
    if (shared_contains(thread->block, address)) {
        shared_access(thread, address, bytes, atomic ? ACCESS_ATOMIC : write ? ACCESS_WRITE : ACCESS_READ, where);
    } else if (!memory_seen_recently(address, bytes)) {
        check_global(thread, address, bytes, write, where);
    }
}

// Of any size: accesses to parts of an array, structs, memcpy. No alignment is asked for.
static void check_range(const void *address, size_t bytes, bool write, const void *where) {
    Thread *thread = emulated_thread;
    if (thread == NULL || bytes == 0) return;
    if ((size_t)((const char *)address - thread->stack) < FIBER_STACK_BYTES) return;
    if (shared_contains(thread->block, address)) {
        shared_access(thread, address, (uint32_t)bytes, write ? ACCESS_WRITE : ACCESS_READ, where);
    } else {
        check_global(thread, address, (uint32_t)bytes, write, where);
    }
}

extern "C" {
#define CALLBACKS(bytes)                                                                                               \
    void __tsan_read##bytes(void *address) { check(address, bytes, false, true, CALLER); }                             \
    void __tsan_write##bytes(void *address) { check(address, bytes, true, true, CALLER); }                             \
    void __tsan_volatile_read##bytes(void *address) { check(address, bytes, false, true, CALLER); }                    \
    void __tsan_volatile_write##bytes(void *address) { check(address, bytes, true, true, CALLER); }                    \
    void __tsan_unaligned_read##bytes(void *address) { check(address, bytes, false, false, CALLER); }                  \
    void __tsan_unaligned_write##bytes(void *address) { check(address, bytes, true, false, CALLER); }                  \
    void __tsan_unaligned_volatile_read##bytes(void *address) { check(address, bytes, false, false, CALLER); }         \
    void __tsan_unaligned_volatile_write##bytes(void *address) { check(address, bytes, true, false, CALLER); }
CALLBACKS(1)
CALLBACKS(2)
CALLBACKS(4)
CALLBACKS(8)
CALLBACKS(16)
void __tsan_read_range(void *address, size_t bytes) { check_range(address, bytes, false, CALLER); }
void __tsan_write_range(void *address, size_t bytes) { check_range(address, bytes, true, CALLER); }
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void *, void *) {}
void __tsan_vptr_read(void *) {}
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}

// The compiler's own atomic operations, in host code or a kernel.
#define ATOMIC_READ_CHANGE_WRITE(bits, type, name)                                                                     \
    type __tsan_atomic##bits##_##name(volatile type *address, type value, int) {                                       \
        check_access((const void *)address, bits / 8, true, true, CALLER);                                             \
        return __atomic_##name(address, value, __ATOMIC_SEQ_CST);                                                      \
    }
#define ATOMIC_COMPARE(bits, type, strength)                                                                           \
    int __tsan_atomic##bits##_compare_exchange_##strength(volatile type *address, type *expected, type value, int,     \
                                                          int) {                                                       \
        check_access((const void *)address, bits / 8, true, true, CALLER);                                             \
        return __atomic_compare_exchange_n(address, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);       \
    }
#define ATOMICS(bits, type)                                                                                            \
    type __tsan_atomic##bits##_load(const volatile type *address, int) {                                               \
        check_access((const void *)address, bits / 8, false, true, CALLER);                                            \
        return __atomic_load_n(address, __ATOMIC_SEQ_CST);                                                             \
    }                                                                                                                  \
    void __tsan_atomic##bits##_store(volatile type *address, type value, int) {                                        \
        check_access((const void *)address, bits / 8, true, true, CALLER);                                             \
        __atomic_store_n(address, value, __ATOMIC_SEQ_CST);                                                            \
    }                                                                                                                  \
    type __tsan_atomic##bits##_exchange(volatile type *address, type value, int) {                                     \
        check_access((const void *)address, bits / 8, true, true, CALLER);                                             \
        return __atomic_exchange_n(address, value, __ATOMIC_SEQ_CST);                                                  \
    }                                                                                                                  \
    ATOMIC_READ_CHANGE_WRITE(bits, type, fetch_add)                                                                    \
    ATOMIC_READ_CHANGE_WRITE(bits, type, fetch_sub)                                                                    \
    ATOMIC_READ_CHANGE_WRITE(bits, type, fetch_and)                                                                    \
    ATOMIC_READ_CHANGE_WRITE(bits, type, fetch_or)                                                                     \
    ATOMIC_READ_CHANGE_WRITE(bits, type, fetch_xor)                                                                    \
    ATOMIC_READ_CHANGE_WRITE(bits, type, fetch_nand)                                                                   \
    ATOMIC_COMPARE(bits, type, strong)                                                                                 \
    ATOMIC_COMPARE(bits, type, weak)
ATOMICS(8, unsigned char)
ATOMICS(16, unsigned short)
ATOMICS(32, unsigned)
ATOMICS(64, unsigned long)
}
