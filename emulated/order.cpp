// What happens before what in a block with mbarriers, by vector clocks (Mattern, "Virtual time and global states of
// distributed systems", 1989): so that a missing wait or a slot released too early is found in whatever order the
// threads happen to run.
//
// Each thread counts its steps: an arrival, a barrier and a fence each end one. Its clock says for every thread, itself
// included, how many of that one's steps come before what it does now, and for every mbarrier, how many of its phases
// it knows to have ended. Whoever arrives leaves his clock at the barrier, and whoever waits there takes it along.
#include "emulated/hopper.h"

#include "emulated/report.h"
#include "emulated/settings.h"
#include "emulated/shared.h"

static int width_of(const Block *block) { return (block->count + MOST_MBARRIERS + 7) / 8 * 8; }
static int *clock_at(const Block *block, int row) {
    return block->hopper->clocks + (size_t)row * block->hopper->clock_width;
}
static int *clock_of(const Thread *thread) { return clock_at(thread->block, thread->number); }
static int *coming(Block *block, int mbarrier) { return clock_at(block, block->count + 2 * mbarrier); }
static int *ended(Block *block, int mbarrier) { return clock_at(block, block->count + 2 * mbarrier + 1); }
static int *named(Block *block, int id) { return clock_at(block, block->count + 2 * MOST_MBARRIERS + id); }

typedef int Clocks __attribute__((vector_size(32)));
static inline __attribute__((always_inline)) void join_by_8(int *to, const int *from, int width) {
    for (int i = 0; i < width; i += 8) {
        Clocks a, b;
        memcpy(&a, to + i, sizeof a);
        memcpy(&b, from + i, sizeof b);
        a = a > b ? a : b;
        memcpy(to + i, &a, sizeof a);
    }
}
#if defined(__x86_64__)
__attribute__((target("avx2"))) static void join_avx2(int *to, const int *from, int width) {
    join_by_8(to, from, width);
}
#endif
static void join(int *to, const int *from, int width) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) return join_avx2(to, from, width);
#endif
    join_by_8(to, from, width);
}

void order_begin(Block *block) {
    HopperBlock *hopper = block->hopper;
    const int width = width_of(block), rows = block->count + 2 * MOST_MBARRIERS + NAMED_BARRIERS;
    const size_t bytes = (size_t)width * (size_t)rows * sizeof(int);
    if (hopper->clock_bytes < bytes) {
        free(hopper->clocks);
        hopper->clocks = (int *)malloc(bytes);
        if (hopper->clocks == NULL) report_host("no memory for the clocks of a block");
        hopper->clock_bytes = bytes;
    }
    hopper->clock_width = width;
    memset(hopper->clocks, 0, bytes);
    for (int i = 0; i < block->count; i++) clock_at(block, i)[i] = 1;
    for (uint32_t i = 0; i < WORDS; i++) hopper->word[i].writer = hopper->word[i].reader = NOBODY_WROTE;
    hopper->ordered = true;
}

// ---- who waits for whom ---------------------------------------------------------------------------------------------

static void leave_clock(Thread *thread, int *at) {
    join(at, clock_of(thread), thread->block->hopper->clock_width);
    clock_of(thread)[thread->number]++;
}
static void take_clock(Thread *thread, const int *from) {
    join(clock_of(thread), from, thread->block->hopper->clock_width);
}

void order_arrives(Thread *thread, int mbarrier) { leave_clock(thread, coming(thread->block, mbarrier)); }
void order_phase_ends(Block *block, int mbarrier, uint32_t phases) {
    int *at = coming(block, mbarrier);
    at[block->count + mbarrier] = (int)phases;
    memcpy(ended(block, mbarrier), at, (size_t)block->hopper->clock_width * sizeof(int));
}
void order_waited(Thread *thread, int mbarrier) { take_clock(thread, ended(thread->block, mbarrier)); }

void order_comes_to(Thread *thread, int id) { leave_clock(thread, named(thread->block, id)); }
void order_leaves(Thread *thread, int id) { take_clock(thread, named(thread->block, id)); }

// __syncthreads, __syncwarp: each knows what all know.
void order_meet(Block *block, int first, int count, unsigned lanes) {
    if (block->hopper == NULL || !block->hopper->ordered) return;
    const int width = block->hopper->clock_width;
    int all[MAX_THREADS + MOST_MBARRIERS + 8];
    memset(all, 0, sizeof all);
    for (int i = first; i < first + count; i++)
        if (lanes >> i % WARP_LANES & 1) join(all, clock_at(block, i), width);
    for (int i = first; i < first + count; i++) {
        if (!(lanes >> i % WARP_LANES & 1)) continue;
        memcpy(clock_at(block, i), all, (size_t)width * sizeof(int));
        clock_at(block, i)[i]++;
    }
}

// A fence ends a step, so that what comes before it can be told from what comes after.
void order_fence(Thread *thread) {
    HopperThread *mine = &thread->block->hopper->thread[thread->number];
    if (mine->fences == mine->fence_capacity) {
        mine->fence_capacity = mine->fence_capacity ? 2 * mine->fence_capacity : 16;
        mine->fence_step = (int *)realloc(mine->fence_step, mine->fence_capacity * sizeof(int));
        if (mine->fence_step == NULL) report_host("no memory for fences");
    }
    mine->fence_step[mine->fences] = thread->block->hopper->ordered ? clock_of(thread)[thread->number]++ : 0;
}

bool order_knows_mbarrier(const Thread *thread, const Mbarrier *barrier) {
    return !thread->block->hopper->ordered || clock_of(thread)[barrier->made_by] >= barrier->made_step;
}
int order_step(const Thread *thread) { return thread->block->hopper->ordered ? clock_of(thread)[thread->number] : 0; }

// ---- accesses -------------------------------------------------------------------------------------------------------

static bool knows_write(const int *clock, const Word *word) {
    return word->writer == NOBODY_WROTE || clock[word->writer] >= word->write_step;
}

[[noreturn]] static void race(const Thread *thread, uint32_t word, const char *does, uint16_t other, const char *did,
                              const void *where) {
    const Block *block = thread->block;
    char place[200], who[100];
    shared_describe(block, block->shared + word * 4, place, sizeof place);
    if (other >= block->count) snprintf(who, sizeof who, "a tma_load");
    else
        snprintf(who, sizeof who, "thread (%u,%u,%u)", block->thread[other].index.x, block->thread[other].index.y,
                 block->thread[other].index.z);
    report(thread, where, "%s what %s %s, and nothing orders the two (%s): %s", does, who, did,
           other >= block->count ? "no mbarrier_wait for the phase that it ends"
                                 : "no arrival at a barrier there and wait here",
           place);
}

// bytes < 4: two threads may have a part of the word each.
void order_reads(Thread *thread, uint32_t begin, uint32_t bytes, const void *where) {
    HopperBlock *hopper = thread->block->hopper;
    const int *clock = clock_of(thread);
    for (uint32_t i = begin / 4; i <= (begin + bytes - 1) / 4; i++) {
        Word *word = &hopper->word[i];
        if ((bytes >= 4 || word->writer >= thread->block->count) && !knows_write(clock, word))
            race(thread, i, "reads", word->writer, "wrote", where);
        word->reader = thread->number;
        word->read_step = clock[thread->number];
    }
}

static void check_write(Thread *thread, uint32_t i, const char *does, const void *where) {
    const Word *word = &thread->block->hopper->word[i];
    const int *clock = clock_of(thread);
    if (!knows_write(clock, word)) race(thread, i, does, word->writer, "wrote", where);
    if (word->reader != NOBODY_WROTE && clock[word->reader] < word->read_step)
        race(thread, i, does, word->reader, "read", where);
}
void order_writes(Thread *thread, uint32_t begin, uint32_t bytes, const void *where) {
    HopperBlock *hopper = thread->block->hopper;
    const int step = hopper->ordered ? clock_of(thread)[thread->number] : 0;
    for (uint32_t i = begin / 4; i <= (begin + bytes - 1) / 4; i++) {
        Word *word = &hopper->word[i];
        if (hopper->ordered && bytes >= 4) check_write(thread, i, "overwrites", where);
        *word = Word{step, 0, hopper->thread[thread->number].fences, thread->number, NOBODY_WROTE};
    }
}
// A tma_load that the thread has started, whose bytes come before the mbarrier's present phase ends.
void order_copy_writes(Thread *thread, uint32_t begin, uint32_t bytes, int mbarrier, uint32_t phase,
                       const void *where) {
    HopperBlock *hopper = thread->block->hopper;
    const Word now = {(int)phase + 1, 0, 0, (uint16_t)(thread->block->count + mbarrier), NOBODY_WROTE};
    for (uint32_t i = begin / 4; i < (begin + bytes) / 4; i++) {
        check_write(thread, i, "starts a tma_load over", where);
        hopper->word[i] = now;
    }
}

// Products and bulk copies have read a piece, as the thread now knows.
void order_piece_was_read(const Thread *thread, uint32_t piece) {
    HopperBlock *hopper = thread->block->hopper;
    if (!hopper->ordered) return;
    const int step = clock_of(thread)[thread->number];
    for (int i = 0; i < 4; i++) {
        hopper->word[piece * 4 + i].reader = thread->number;
        hopper->word[piece * 4 + i].read_step = step;
    }
}

// May a product or a bulk copy that this thread starts read the piece? Otherwise what is wrong goes to `text`.
bool order_piece_is_ready(const Thread *thread, uint32_t piece, char *text, size_t size) {
    const Block *block = thread->block;
    const HopperBlock *hopper = block->hopper;
    const int *clock = hopper->ordered ? clock_of(thread) : NULL;
    const int words = hopper->unfenced[piece] ? 4 : 1; // what a copy wrote is alike
    for (int i = 0; i < words; i++) {
        const Word *word = &hopper->word[piece * 4 + i];
        if (word->writer == NOBODY_WROTE || (!hopper->ordered && words == 1)) continue;
        const bool by_copy = word->writer >= block->count;
        if (clock != NULL && clock[word->writer] < word->write_step) {
            if (by_copy) snprintf(text, size, "is what a tma_load brought, without mbarrier_wait for it");
            else snprintf(text, size, "is what thread %u wrote, and nothing orders the two", word->writer);
            return false;
        }
        if (by_copy) continue;
        const HopperThread *writer = &hopper->thread[word->writer];
        if (writer->fences == word->fences) {
            snprintf(text, size, "is what thread %u wrote without fence_proxy_async after it", word->writer);
            return false;
        }
        if (clock != NULL && clock[word->writer] <= writer->fence_step[word->fences]) {
            snprintf(text, size, "is what thread %u wrote, and its fence_proxy_async came after what orders the two",
                     word->writer);
            return false;
        }
    }
    return true;
}
