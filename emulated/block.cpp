// A block of threads: fibers that take turns, and where they meet.
#include "emulated/block.h"

#include <time.h>

#include "emulated/async_copy.h"
#include "emulated/grid.h"
#include "emulated/hopper.h"
#include "emulated/races.h"
#include "emulated/report.h"
#include "emulated/settings.h"
#include "emulated/shared.h"

__thread Thread *emulated_thread;

// ---- who runs next --------------------------------------------------------------------------------------------------

enum { RING = 2 * MAX_THREADS };

void block_make_ready(Block *block, Thread *thread, bool first) {
    if (thread->state != THREAD_NEW) thread->state = THREAD_READY;
    const uint32_t place = first ? --block->first_ready : block->first_ready + block->ready_count;
    block->ready[place % RING] = thread->number;
    block->ready_count++;
}

static Thread *take_ready(Block *block) {
    block->ready_count--;
    return &block->thread[block->ready[block->first_ready++ % RING]];
}

static uint64_t greatest_common_divisor(uint64_t a, uint64_t b) {
    while (b != 0) {
        const uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

Walk walk_start(uint64_t n) {
    Walk walk = {random_bits() % n, 1, n};
    do walk.stride = n <= 2 ? 1 : 1 + (random_bits() % (n - 1));
    while (greatest_common_divisor(walk.stride, n) != 1);
    return walk;
}
uint64_t walk_next(Walk *walk) {
    const uint64_t now = walk->at;
    walk->at = now >= walk->n - walk->stride ? now - (walk->n - walk->stride) : now + walk->stride;
    return now;
}

// "; 96 threads wait in named_barrier_wait, ...": what the others do, by the name of what they wait in.
static void count_waiting(const Block *block, const Thread *but, char *text, size_t size) {
    const char *name[8];
    int threads[8], names = 0;
    for (int i = 0; i < block->count; i++) {
        const Thread *thread = &block->thread[i];
        if (thread == but || thread->state == THREAD_ENDED) continue;
        int k = 0;
        while (k < names && name[k] != thread->waiting) k++;
        if (k == 8) continue;
        if (k == names) {
            name[names] = thread->waiting;
            threads[names++] = 0;
        }
        threads[k]++;
    }
    size_t used = (size_t)snprintf(text, size, "; %d threads have ended", block->ended);
    for (int k = 0; k < names && used < size; k++)
        used += (size_t)snprintf(text + used, size - used, ", %d wait in %s", threads[k], name[k]);
}

// What else threads are parked on, each thing once.
static void list_parked(const Block *block, const Thread *but, char *text, size_t size) {
    const void *told[6] = {but->parked_on};
    int count = 1;
    for (int i = 0; i < block->count && count < 6; i++) {
        const Thread *thread = &block->thread[i];
        char what[300];
        int k = 0;
        if (thread->state != THREAD_PARKED) continue;
        while (k < count && told[k] != thread->parked_on) k++;
        if (k < count) continue;
        told[count++] = thread->parked_on;
        thread->parking->explain(thread, what, sizeof what);
        const int used = snprintf(text, size, "\n    thread (%u,%u,%u) waits in %s, %s", thread->index.x,
                                  thread->index.y, thread->index.z, thread->waiting, what);
        if (used < 0 || (size_t)used >= size) return;
        text += used;
        size -= (size_t)used;
    }
}

// The first of the lanes that a collective misses.
static const Thread *missing_lane(const Block *block, const Thread *waiting, unsigned *missing) {
    const Warp *warp = &block->warp[waiting->number / WARP_LANES];
    *missing = 0;
    for (int i = 0; i < warp->open_count; i++) {
        if (warp->open[i].mask & 1u << waiting->number % WARP_LANES)
            *missing = warp->open[i].mask & ~warp->open[i].arrived;
    }
    return &block->thread[waiting->number / WARP_LANES * WARP_LANES + __builtin_ctz(*missing)];
}

// Nobody can go on, but not everybody has ended.
void block_stuck(Block *block) {
    char who[300] = "", others[300], more[1500] = "";
    const Thread *waiting = NULL, *parked = NULL;
    unsigned missing;
    for (int i = 0; i < block->count; i++) { // a collective that misses lanes explains more than a barrier
        const Thread *thread = &block->thread[i];
        if (thread->state == THREAD_IN_COLLECTIVE && missing_lane(block, thread, &missing)->state != THREAD_PARKED)
            waiting = thread;
        if (thread->state == THREAD_AT_BARRIER && waiting == NULL) waiting = thread;
        if (thread->state == THREAD_PARKED && (parked == NULL || thread->parking->rank < parked->parking->rank))
            parked = thread;
    }
    if (parked != NULL && (waiting == NULL || waiting->state != THREAD_IN_COLLECTIVE)) {
        parked->parking->explain(parked, who, sizeof who);
        count_waiting(block, parked, others, sizeof others);
        list_parked(block, parked, more, sizeof more);
        report(parked, parked->where, "waits in %s for ever, %s%s%s", parked->waiting, who, others, more);
    }
    if (waiting->state == THREAD_IN_COLLECTIVE) {
        const Thread *lane = missing_lane(block, waiting, &missing);
        snprintf(who, sizeof who, "lane %d %s%s", lane->number % WARP_LANES,
                 lane->state == THREAD_ENDED ? "has ended" : "waits in ",
                 lane->state == THREAD_ENDED ? "" : lane->waiting);
        report(waiting, waiting->where, "waits in %s, mask 0x%08x, for lanes 0x%08x that never come: %s",
               waiting->waiting, waiting->mask, missing, who);
    }
    for (int i = 0; i < block->count; i++) {
        const Thread *thread = &block->thread[i];
        if (thread->state == THREAD_AT_BARRIER) continue;
        snprintf(who, sizeof who, "thread (%u,%u,%u) has ended", thread->index.x, thread->index.y, thread->index.z);
        break;
    }
    report(waiting, waiting->where, "waits at a barrier, %s, that only %d of %d threads reach: %s", waiting->waiting,
           block->at_barrier, block->count, who);
}

// The next thread of the block; NULL: it waits for another block.
static Thread *next_ready(Block *block) {
    while (block->ready_count == 0) {
        if (hopper_go_on(block)) continue;
        if (hopper_waits_for_others(block)) return NULL;
        block_stuck(block);
    }
    return take_ready(block);
}

// ---- a thread's life ------------------------------------------------------------------------------------------------

static void switch_to_grid(FiberContext *from, Block *block) {
    emulated_thread = NULL;
    fiber_switch(from, &block->grid->scheduler);
}

static void thread_main() {
    for (;;) {
        Thread *thread = emulated_thread;
        Block *block = thread->block;
        block->launch->run(block->launch->call);
        if (block->hopper != NULL) hopper_end_thread(thread);
        thread->state = THREAD_ENDED;
        block->ended++;
        block->warp[thread->number / WARP_LANES].ended |= 1u << thread->number % WARP_LANES;
        Thread *next = block->ended < block->count ? next_ready(block) : NULL;
        if (next != NULL) {
            emulated_thread = next;
            if (next->state == THREAD_NEW) { // has no stack yet: it can have this one
                next->state = THREAD_READY;
                next->stack = thread->stack;
                continue;
            }
            fiber_stack_put(&block->stacks, thread->stack);
            fiber_switch(&thread->context, &next->context);
        }
        fiber_stack_put(&block->stacks, thread->stack);
        switch_to_grid(&thread->context, block);
    }
}

static void switch_to(Block *block, FiberContext *from, Thread *next) {
    if (next->state == THREAD_NEW) {
        next->state = THREAD_READY;
        next->stack = fiber_stack_get(&block->stacks);
        fiber_start(&next->context, next->stack, thread_main, (unsigned)((uintptr_t)next->stack / FIBER_STACK_BYTES));
    }
    emulated_thread = next;
    fiber_switch(from, &next->context);
}

void block_run(Block *block) { switch_to(block, &block->grid->scheduler, take_ready(block)); }

void block_wait(Thread *thread) {
    Block *block = thread->block;
    Thread *next = next_ready(block);
    if (next == NULL) switch_to_grid(&thread->context, block);
    else if (next != thread) switch_to(block, &thread->context, next);
}

void block_leave(Thread *thread) {
    block_make_ready(thread->block, thread, false);
    switch_to_grid(&thread->context, thread->block);
}

// ---- parked threads -------------------------------------------------------------------------------------------------

void block_park(Thread *thread, const Parking *parking, const void *on, uint64_t value, void *where) {
    thread->state = THREAD_PARKED;
    thread->parking = parking;
    thread->waiting = parking->name;
    thread->where = where;
    thread->parked_on = on;
    thread->parked_for = value;
    block_wait(thread);
}

static void wake(Block *block, const void *on, const uint64_t *value) {
    const int from = (int)random_below((uint32_t)block->count);
    for (int i = 0; i < block->count; i++) {
        Thread *thread = &block->thread[(from + i) % block->count];
        if (thread->state == THREAD_PARKED && thread->parked_on == on &&
            (value == NULL || thread->parked_for == *value))
            block_make_ready(block, thread, false);
    }
}
void block_wake(Block *block, const void *on) { wake(block, on, NULL); }
void block_wake_value(Block *block, const void *on, uint64_t value) { wake(block, on, &value); }

// ---- barriers -------------------------------------------------------------------------------------------------------

static void barrier(const char *name, void *where) {
    Thread *thread = emulated_thread;
    Block *block = thread->block;
    thread->state = THREAD_AT_BARRIER;
    thread->waiting = name;
    thread->where = where;
    if (++block->at_barrier == block->count) {
        block->at_barrier = 0;
        block->barriers++;
        block->votes_before = block->votes;
        block->votes = 0;
        Walk walk = walk_start((uint64_t)block->count);
        for (int i = 0; i < block->count; i++) {
            Thread *released = &block->thread[walk_next(&walk)];
            if (__builtin_expect(released->waiting != name, 0)) {
                report(thread, where, "is at %s while thread (%u,%u,%u) is at %s", name, released->index.x,
                       released->index.y, released->index.z, released->waiting);
            }
            block_make_ready(block, released, false);
        }
    }
    block_wait(thread);
}

void __syncthreads() {
    static const char name[] = "__syncthreads";
    barrier(name, CALLER);
}
static int vote(const char *name, int predicate, void *where) {
    Block *block = emulated_thread->block;
    block->votes += predicate != 0;
    barrier(name, where);
    return (int)block->votes_before;
}
int __syncthreads_count(int predicate) {
    static const char name[] = "__syncthreads_count";
    return vote(name, predicate, CALLER);
}
int __syncthreads_or(int predicate) {
    static const char name[] = "__syncthreads_or";
    return vote(name, predicate, CALLER) != 0;
}
int __syncthreads_and(int predicate) {
    static const char name[] = "__syncthreads_and";
    return vote(name, predicate, CALLER) == emulated_thread->block->count;
}

// ---- coordinates ----------------------------------------------------------------------------------------------------

uint3 emulated_thread_index() { return emulated_thread->index; }
uint3 emulated_block_index() { return emulated_thread->block->index; }
dim3 emulated_block_dim() { return emulated_thread->block->launch->block; }
dim3 emulated_grid_dim() { return emulated_thread->block->launch->grid; }

long long clock64() {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}
void __trap() { report(emulated_thread, CALLER, "__trap"); }

// ---- a block's beginning --------------------------------------------------------------------------------------------

void block_open(Block *block, Grid *grid) {
    const dim3 size = grid->launch->block;
    block->grid = grid;
    block->launch = grid->launch;
    block->device = grid->device;
    block->count = (int)(size.x * size.y * size.z);
    block->banks = BankCount{0, 0};
    for (int i = 0; i < block->count; i++) {
        const unsigned n = (unsigned)i;
        block->thread[i].block = block;
        block->thread[i].number = (uint16_t)i;
        block->thread[i].index = uint3{n % size.x, n / size.x % size.y, n / size.x / size.y};
    }
    races_open(block);
    hopper_open(block);
    shared_begin_launch(block);
}

void block_begin(Block *block) {
    block->at_barrier = block->ended = 0;
    block->votes = block->votes_before = 0;
    block->first_ready = block->ready_count = 0;
    shared_begin_block(block);
    block->barriers = 0;
    for (int i = 0; i < block->count; i++) {
        block->thread[i].state = THREAD_NEW;
        block->thread[i].stack = NULL;
        async_copy_forget(&block->thread[i]);
    }
    for (int w = 0; w * WARP_LANES < block->count; w++) {
        Warp *warp = &block->warp[w];
        const int lanes = block->count - w * WARP_LANES;
        warp->existing = lanes >= WARP_LANES ? ~0u : (1u << lanes) - 1;
        warp->ended = 0;
        warp->open_count = 0;
        warp->syncs = 0;
    }
    if (block->hopper != NULL) hopper_begin_block(block);
    Walk walk = walk_start((uint64_t)block->count);
    for (int i = 0; i < block->count; i++) block_make_ready(block, &block->thread[walk_next(&walk)], false);
}
