// A grid while it runs. Its blocks come one after the other, in a random order, on one host thread. If a block waits
// for another one (wait_acquire), or has to do with Hopper's barriers, others begin beside it, as many as there are
// multiprocessors; they take turns at random, at places where they wait.
#ifndef EMULATED_GRID_H
#define EMULATED_GRID_H

#include "emulated/block.h"

enum { MOST_RESIDENT = 4, MULTIPROCESSORS = 4 };

struct BulkCopies; // bulk_copy.cpp
struct Turns;      // turns.cpp

struct Grid {
    const EmulatedLaunch *launch;
    int device;
    Walk walk; // over its blocks
    uint64_t blocks, begun;
    Block *resident[MOST_RESIDENT];
    int residents;
    FiberContext scheduler;
    BulkCopies *copies;
    Turns *turns;
};

// Runs all blocks of a launch on a device of that index.
void block_run_grid(const EmulatedLaunch *launch, int device);

#endif
