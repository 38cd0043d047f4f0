// What makes of train_gpt a program that counts what it allocates (test/test_memory.c): the linker passes its calls of
// malloc and the like, and of reporter_step, through the functions here (--wrap, in the Makefile). Calls inside of
// libraries are not among them.
//
// From the end of the first step to the end of the last but one, each call is kept with the place it came from, but for
// those of a change of the context (--context-schedule), which makes groups of ranks anew. Then one
// line on standard error says what there was: "counted CALLS PEAK_RSS RSS DEVICE_CALLS DEVICE_PEAK", bytes, the last two of
// emulated GPUs; and a line "from ADDRESS" for each place, an address in the program's file.
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "terminal/report.h"

#ifdef HAVE_EMULATED
#include "emulated/use.h"
#else
typedef struct EmulatedUse {
    int64_t calls, peak;
} EmulatedUse;
static EmulatedUse emulated_use(void) { return (EmulatedUse){0}; }
#endif

enum { MOST_PLACES = 64 };

static atomic_bool counting;
static atomic_llong calls;
static _Atomic uintptr_t places[MOST_PLACES];

static _Thread_local bool changing; // the context

static void count(const void *from) {
    if (!atomic_load(&counting) || changing) return;
    atomic_fetch_add(&calls, 1);
    for (int i = 0; i < MOST_PLACES; i++) {
        uintptr_t free_place = 0;
        if (atomic_load(&places[i]) == (uintptr_t)from) return;
        if (atomic_compare_exchange_strong(&places[i], &free_place, (uintptr_t)from)) return;
        if (free_place == (uintptr_t)from) return;
    }
}

#define CALLER __builtin_return_address(0)

void *__real_malloc(size_t);
void *__real_calloc(size_t, size_t);
void *__real_realloc(void *, size_t);
void __real_free(void *);
int __real_posix_memalign(void **, size_t, size_t);
void *__real_aligned_alloc(size_t, size_t);
void *__real_mmap(void *, size_t, int, int, int, off_t);
FILE *__real_fopen(const char *, const char *);
int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
void __real_reporter_step(Reporter *, const StepReport *);
struct Rank;
struct Phase;
void __real_rank_take_phase(struct Rank *, const struct Phase *);

void *__wrap_malloc(size_t bytes) {
    count(CALLER);
    return __real_malloc(bytes);
}
void *__wrap_calloc(size_t number, size_t bytes) {
    count(CALLER);
    return __real_calloc(number, bytes);
}
void *__wrap_realloc(void *memory, size_t bytes) {
    count(CALLER);
    return __real_realloc(memory, bytes);
}
void __wrap_free(void *memory) {
    if (memory != NULL) count(CALLER);
    __real_free(memory);
}
int __wrap_posix_memalign(void **memory, size_t alignment, size_t bytes) {
    count(CALLER);
    return __real_posix_memalign(memory, alignment, bytes);
}
void *__wrap_aligned_alloc(size_t alignment, size_t bytes) {
    count(CALLER);
    return __real_aligned_alloc(alignment, bytes);
}
void *__wrap_mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
    count(CALLER);
    return __real_mmap(at, bytes, protection, flags, file, offset);
}
FILE *__wrap_fopen(const char *path, const char *mode) {
    count(CALLER);
    return __real_fopen(path, mode);
}
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*main)(void *), void *argument) {
    count(CALLER);
    return __real_pthread_create(thread, attributes, main, argument);
}

void __wrap_rank_take_phase(struct Rank *rank, const struct Phase *phase) {
    changing = true;
    __real_rank_take_phase(rank, phase);
    changing = false;
}

// A line of /proc/self/status, "VmHWM:   1234 kB", in bytes.
static long long status_bytes(const char *status, const char *key) {
    const char *line = strstr(status, key);
    return line == NULL ? -1 : 1024 * atoll(line + strlen(key) + 1);
}

static void say(const EmulatedUse *before) {
    static char status[8192];
    extern char __executable_start[]; // the linker's: where the program was loaded
    const uintptr_t start = (uintptr_t)__executable_start;
    EmulatedUse use = emulated_use();
    int file = open("/proc/self/status", O_RDONLY);
    if (file < 0 || read(file, status, sizeof status - 1) <= 0) abort();
    close(file);
    fprintf(stderr, "counted %lld %lld %lld %lld %lld\n", (long long)atomic_load(&calls), status_bytes(status, "VmHWM"),
            status_bytes(status, "VmRSS"), (long long)(use.calls - before->calls), (long long)use.peak);
    for (int i = 0; i < MOST_PLACES && atomic_load(&places[i]) != 0; i++) { // inside the call, not behind it
        uintptr_t address = atomic_load(&places[i]) - 1;
        fprintf(stderr, "from 0x%lx\n", (unsigned long)(start < 0x1000000 ? address : address - start));
    }
}

void __wrap_reporter_step(Reporter *reporter, const StepReport *report) {
    static EmulatedUse before;
    bool last = report->step == report->steps - 1;
    __real_reporter_step(reporter, report);
    if (last) atomic_store(&counting, false);
    if (last) say(&before);
    if (report->step > 1) return;
    before = emulated_use();
    atomic_store(&counting, true);
}
