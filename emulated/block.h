// A block of a kernel while it runs: its threads are fibers of one host thread.
//
// A fiber runs until it waits: at a barrier, or in a warp collective for the other lanes. Then the next one that is
// ready goes on, in an order drawn at random; so a kernel must not depend on any. If none is, another block may go on
// (grid.h).
#ifndef EMULATED_BLOCK_H
#define EMULATED_BLOCK_H

#include <cuda_runtime.h>

#include "emulated/fiber.h"

enum { MAX_THREADS = 1024, WARP_LANES = 32, MAX_WARPS = MAX_THREADS / WARP_LANES };

struct Block;
struct Thread;
struct AsyncCopies;
struct Grid;
struct HopperBlock;

enum ThreadState : uint8_t {
    THREAD_NEW,
    THREAD_READY,
    THREAD_AT_BARRIER,
    THREAD_IN_COLLECTIVE,
    THREAD_PARKED, // until somebody wakes it: see Parking
    THREAD_ENDED
};

// Why a thread is parked, for a report if nobody ever wakes it.
struct Parking {
    const char *name;
    int rank; // where several threads wait, that of the smallest rank explains most
    void (*explain)(const Thread *thread, char *text, size_t size); // "for ..."
};

struct Thread {
    char *stack; // FIBER_STACK_BYTES from here; NULL before the thread has begun
    Block *block;
    uint3 index;
    uint16_t number; // of its block
    ThreadState state;
    FiberContext context;
    void *where;         // in the kernel it waits: an address of code
    const char *waiting; // "__syncthreads", "__shfl_sync", ...
    unsigned mask;       // of the collective it waits in
    const Parking *parking;
    const void *parked_on; // what it waits for: an mbarrier, a word of memory, ...
    uint64_t parked_for;   // its phase, value, ...
    // What it hands to the collective (in) and gets from it (out).
    uint64_t in[4], out[2];
    AsyncCopies *copies; // cp.async not waited for; NULL: never had one
};

// A collective that some lanes of a warp have reached.
struct WarpOperation {
    const char *name;
    void (*complete)(Thread *lane, unsigned lanes); // fills `out` of all `lanes`; lane: the warp's 32 threads
};
struct Collective {
    const WarpOperation *operation;
    unsigned mask, arrived;
};
struct Warp {
    Collective open[WARP_LANES]; // each with at least one lane that waits
    int open_count;
    unsigned existing, ended; // lanes
    uint32_t syncs;           // __syncwarp of the whole warp so far
};

// SHARED_SPACE bytes hold all shared memory of a block, with room between arrays that belongs to nobody.
enum { SHARED_SPACE = 320 << 10, SHARED_ZONE = 1 << 10, SHARED_ARRAYS = 32 };
enum { SHARED_MOST_DYNAMIC = 227 << 10, SHARED_MOST_STATIC = 48 << 10 };
// What is known of a byte of shared memory. Any other value is a mistake to touch.
enum { BYTE_OUTSIDE = 0, BYTE_UNWRITTEN = 1, BYTE_WRITTEN = 3, BYTE_IN_FLIGHT = 5, BYTE_OF_MBARRIER = 7 };
struct SharedArray {
    const void *site;
    const char *name;
    uint32_t begin, bytes;
};

struct RaceShadow;
struct BankCount {
    uint64_t accesses, wavefronts;
};

struct Block {    // one at a time per host thread that runs kernels, or some (grid.h)
    char *shared; // SHARED_SPACE bytes
    uint8_t *byte_state;
    RaceShadow *races;   // NULL: not looked for
    HopperBlock *hopper; // NULL: the GPU is none
    Grid *grid;
    const EmulatedLaunch *launch;
    int device;
    uint3 index;
    uint32_t ordinal; // of the grid's blocks, in the order of their beginning
    int count;        // threads
    int at_barrier;   // of them
    int ended;
    uint32_t barriers; // passed so far by all
    uint32_t votes, votes_before;
    uint16_t ready[2 * MAX_THREADS]; // a ring of thread numbers
    uint32_t first_ready, ready_count;
    FiberStacks stacks;
    Warp warp[MAX_WARPS];
    Thread thread[MAX_THREADS];
    uint32_t dynamic_bytes, shared_used;
    int array_count;
    SharedArray array[SHARED_ARRAYS];
    BankCount banks;
    Block *next_free;
};

// The thread whose kernel code runs on this host thread; NULL in host code.
extern __thread Thread *emulated_thread;

// Takes part in `operation`; returns when all lanes of mask have, and `out` is there. `where`: the caller's code.
void warp_collective(const WarpOperation *operation, unsigned mask, void *where);
// Lets the other ready threads run; returns when this one, having been put into the ring, is first in it.
void block_wait(Thread *thread);
void block_make_ready(Block *block, Thread *thread, bool first);
// Waits until block_wake is called for what it is parked on.
void block_park(Thread *thread, const Parking *parking, const void *on, uint64_t value, void *where);
// Makes the threads ready that are parked on this, in a random order: all, or those that wait for `value`.
void block_wake(Block *block, const void *on);
void block_wake_value(Block *block, const void *on, uint64_t value);

// For grid.cpp. block_begin: all threads are new, and ready in a random order. block_run goes on with a ready thread,
// and returns when the block has ended, or waits for another one, or lets others go first (block_leave, by a thread of
// it).
void block_open(Block *block, Grid *grid);
void block_begin(Block *block);
void block_run(Block *block);
void block_leave(Thread *thread);
[[noreturn]] void block_stuck(Block *block);

// A walk over 0..n-1 in a random order: start, start + stride, ... modulo n.
struct Walk {
    uint64_t at, stride, n;
};
Walk walk_start(uint64_t n);
uint64_t walk_next(Walk *walk);

#define CALLER __builtin_return_address(0)

#endif
