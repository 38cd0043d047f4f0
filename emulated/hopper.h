// What a block of a Hopper kernel has beside its threads: barriers that count bytes, copies and products under way, and
// who wrote which shared memory by which way. All of it exists where the emulated GPU is a Hopper (EMULATED_ARCH=90).
#ifndef EMULATED_HOPPER_H
#define EMULATED_HOPPER_H

#include "emulated/block.h"
#include "emulated/grid.h"

enum { PIECE = 16, PIECES = SHARED_SPACE / PIECE, WORDS = SHARED_SPACE / 4 };
enum { WARPGROUP_THREADS = 128, MOST_WARPGROUPS = MAX_THREADS / WARPGROUP_THREADS };
enum { MOST_MBARRIERS = 256, NAMED_BARRIERS = 16, NOBODY_WROTE = 0xffff };

struct Mbarrier {
    uint32_t at; // offset in shared memory
    int arrivals, pending;
    int64_t bytes;  // announced in this phase and not come, or (< 0) come and not announced
    uint32_t phase; // number of the one that is under way
    uint16_t made_by;
    bool announced; // to the copy engine
};
struct NamedBarrier {
    int threads, arrived; // threads: 0 before the first arrival
};
struct Load;      // bulk_copy.cpp
struct Warpgroup; // wgmma.cpp
struct Accumulator;

// The last ordinary write to 4 bytes: it has been fenced if that thread has made more fences since.
struct WrittenWord {
    uint32_t fences;
    uint16_t writer;
};
// Another block's release of a word that this block has acquired: the last of them, by their count.
struct Acquired {
    uint32_t block, releases;
};
enum { MOST_HELD = 16, MOST_ACQUIRED = 64 };
struct Held { // an accumulator of products under way
    Accumulator *accumulator;
    uint32_t *d;
    uint32_t last; // product that changes it
};
struct HopperThread {
    uint32_t fences; // fence_proxy_async so far
    uint32_t bulk_groups;
    int bulk_open, bulk_copies; // copies in the group not closed; copies under way
    uint32_t products, groups;  // started; closed
    uint32_t finished;          // products waited for
    bool registers_fenced;      // wgmma_fence since the last wait
    int held_count;
    Held held[MOST_HELD];
};
struct HopperBlock {
    uint16_t reading[PIECES]; // products and bulk copies under way that read it
    uint8_t unfenced[PIECES]; // 1: it has words that may not be fenced
    WrittenWord word[WORDS];
    HopperThread thread[MAX_THREADS];
    Mbarrier barrier[MOST_MBARRIERS];
    int barriers;
    NamedBarrier named[NAMED_BARRIERS];
    Load *loads;
    int load_count, load_capacity;
    Warpgroup *group[MOST_WARPGROUPS];
    int registers_left;                                // of the block's, in units of a warp's register
    uint16_t registers[MAX_WARPS], changes[MAX_WARPS]; // each warp's now; how often it has changed them
    void *changed_at[MAX_WARPS];                       // where in the kernel
    int word_waiters;
    uint32_t releases; // of this block
    Acquired acquired[MOST_ACQUIRED];
    int acquired_count;
};

void hopper_open(Block *block);        // for a launch
void hopper_begin_block(Block *block); // for a block
void hopper_end_thread(Thread *thread);
void hopper_end_grid(Grid *grid);
// Something that the block's threads need not ask for happens, a copy arrives; false: there is nothing.
bool hopper_go_on(Block *block);
static inline bool hopper_waits_for_others(const Block *block) {
    return block->hopper != NULL && block->hopper->word_waiters > 0;
}
void hopper_look_at_words(Block *block); // wakes those whose word has got its value

// The calling thread's block. Reports if the GPU is no Hopper.
HopperBlock *hopper_of(Thread *thread, const char *instruction, const void *where);
// Now and then: lets others go first, or a copy arrive.
void hopper_pause(Thread *thread);

// ---- who wrote shared memory, and who reads it ----------------------------------------------------------------------

void hopper_wrote(Thread *thread, uint32_t begin, uint32_t bytes, const void *where); // ordinary writes
// An asynchronous copy begins to write; its bytes need no fence.
void hopper_copy_writes(Thread *thread, uint32_t begin, uint32_t bytes, const void *where);
// Is there an ordinary write to this piece that its thread has not fenced? *writer: the thread.
bool hopper_unfenced(HopperBlock *hopper, uint32_t piece, uint16_t *writer);
// Products and bulk copies under way that read the piece, which `thread` is about to overwrite.
void wgmma_overwritten(Block *block, uint32_t piece, Thread *thread, const void *where);
void bulk_overwritten(Block *block, uint32_t piece, Thread *thread, const void *where);

// ---- parts ----------------------------------------------------------------------------------------------------------

Mbarrier *mbarrier_of(Thread *thread, const void *address, const char *does, const void *where);
void mbarrier_bytes_came(Block *block, Mbarrier *barrier, int64_t bytes);
void bulk_begin_block(Block *block);
void bulk_end_thread(Thread *thread);
void bulk_end_block(Thread *last);
void bulk_end_grid(Grid *grid);
bool bulk_arrive(Block *block); // one of the loads, chosen at random, arrives; false: there is none
void bulk_write_some(Grid *grid);
void wgmma_begin_block(Block *block);
void wgmma_end_thread(Thread *thread);
void warpgroup_begin_block(Block *block);
void warpgroup_end_block(Thread *last);
void turns_added(Thread *thread, uintptr_t begin, size_t bytes, uint32_t operation, const void *where);
void turns_written(Thread *thread, uint32_t operation); // bulk_wait has seen it done
void turns_end_grid(Grid *grid);

#endif
