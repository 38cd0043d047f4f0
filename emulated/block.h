// A block of a kernel while it runs: its threads are fibers of one host thread.
//
// A fiber runs until it waits: at a barrier, or in a warp collective for the other lanes. Then the next one that is
// ready goes on, in an order drawn at random; so a kernel must not depend on any.
#ifndef EMULATED_BLOCK_H
#define EMULATED_BLOCK_H

#include <cuda_runtime.h>

#include "emulated/fiber.h"

enum { MAX_THREADS = 1024, WARP_LANES = 32, MAX_WARPS = MAX_THREADS / WARP_LANES };

struct Block;
struct AsyncCopies;

enum ThreadState : uint8_t { THREAD_NEW, THREAD_READY, THREAD_AT_BARRIER, THREAD_IN_COLLECTIVE, THREAD_ENDED };

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
enum { BYTE_OUTSIDE = 0, BYTE_UNWRITTEN = 1, BYTE_WRITTEN = 3, BYTE_IN_FLIGHT = 5 };
struct SharedArray {
    const void *site;
    const char *name;
    uint32_t begin, bytes;
};

struct RaceShadow;
struct BankCount {
    uint64_t accesses, wavefronts;
};

struct Block {    // one per host thread that runs kernels
    char *shared; // SHARED_SPACE bytes
    uint8_t *byte_state;
    RaceShadow *races; // NULL: not looked for
    const EmulatedLaunch *launch;
    int device;
    uint3 index;
    int count;      // threads
    int at_barrier; // of them
    int ended;
    uint32_t barriers; // passed so far by all
    uint32_t votes, votes_before;
    uint16_t ready[2 * MAX_THREADS]; // a ring of thread numbers
    uint32_t first_ready, ready_count;
    FiberContext scheduler;
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

// Runs all blocks of a launch on a device of that index.
void block_run_grid(const EmulatedLaunch *launch, int device);

// Takes part in `operation`; returns when all lanes of mask have, and `out` is there. `where`: the caller's code.
void warp_collective(const WarpOperation *operation, unsigned mask, void *where);
// Lets the other ready threads run; returns when this one, having been put into the ring, is first in it.
void block_wait(Thread *thread);
void block_make_ready(Block *block, Thread *thread, bool first);

#define CALLER __builtin_return_address(0)

#endif
