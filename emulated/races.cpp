// Who last read and wrote each word of shared and global memory, and whether a barrier lies between.
#include "emulated/races.h"

#include "emulated/report.h"
#include "emulated/settings.h"

// The last write and the last reads of a byte. Time is counted in barriers of the block, and in __syncwarps of the
// warp; what happened before the last barrier is of no interest.
enum : uint16_t { NOBODY = 0xffff, SEVERAL_OF_WARP = 0x8000, SEVERAL = 0x7fff }; // SEVERAL_OF_WARP + warp

struct Seen {
    uint32_t barrier, sync;
    uint16_t who;
    bool atomic;
};
struct RaceShadow {
    uint32_t barrier_base; // so that a new block need not clear the table
    Seen write[SHARED_SPACE], read[SHARED_SPACE];
};

void races_open(Block *block) {
    if (!settings()->races) {
        free(block->races);
        block->races = NULL;
    } else if (block->races == NULL) {
        block->races = (RaceShadow *)calloc(1, sizeof(RaceShadow));
        if (block->races == NULL) report_host("no memory for the race checker");
    }
}

void races_begin_block(Block *block) {
    // Another block of the same fibers: later than everything so far.
    if (block->races != NULL) block->races->barrier_base += block->barriers + 1;
}

static unsigned warp_of(uint16_t thread) { return thread / WARP_LANES; }

// Is what was seen unordered with what `thread` does now?
static bool conflicts(const Seen *seen, const Thread *thread, uint32_t barrier, uint32_t sync) {
    if (seen->barrier != barrier || seen->who == thread->number) return false;
    if (seen->who == SEVERAL) return true;
    const unsigned warp = seen->who & SEVERAL_OF_WARP ? seen->who & 0xffu : warp_of(seen->who);
    return warp != warp_of(thread->number) || seen->sync == sync;
}

static void race(const Thread *thread, const void *where, const char *does, const Seen *seen, const char *did,
                 uint32_t byte) {
    char place[200], other[100] = "several threads";
    shared_describe(thread->block, thread->block->shared + byte, place, sizeof place);
    if (seen->who < MAX_THREADS) {
        const uint3 i = thread->block->thread[seen->who].index;
        snprintf(other, sizeof other, "thread (%u,%u,%u)", i.x, i.y, i.z);
    } else if (seen->who & SEVERAL_OF_WARP) {
        snprintf(other, sizeof other, "several threads of warp %u", seen->who & 0xffu);
    }
    const bool same_warp = seen->who < MAX_THREADS       ? warp_of(seen->who) == warp_of(thread->number)
                           : seen->who & SEVERAL_OF_WARP ? (seen->who & 0xffu) == warp_of(thread->number)
                                                         : false;
    report(thread, where, "race: %s %s, which %s %s with no %s between", does, place, other, did,
           same_warp ? "__syncwarp" : "__syncthreads");
}

void races_access(Thread *thread, uint32_t begin, uint32_t bytes, AccessKind kind, const void *where) {
    RaceShadow *races = thread->block->races;
    const uint32_t barrier = races->barrier_base + thread->block->barriers;
    const uint32_t sync = thread->block->warp[warp_of(thread->number)].syncs;
    const uint16_t me = thread->number;
    for (uint32_t i = begin; i < begin + bytes; i++) {
        Seen *write = &races->write[i], *read = &races->read[i];
        const char *does = kind == ACCESS_READ ? "reads" : "writes";
        if (conflicts(write, thread, barrier, sync) && !(kind == ACCESS_ATOMIC && write->atomic))
            race(thread, where, does, write, "wrote", i);
        if (kind != ACCESS_READ) {
            if (conflicts(read, thread, barrier, sync)) race(thread, where, does, read, "read", i);
            *write = Seen{barrier, sync, me, kind == ACCESS_ATOMIC};
        } else if (read->barrier != barrier) {
            *read = Seen{barrier, sync, me, false};
        } else if (read->who != me && read->who != SEVERAL) {
            const unsigned warp = read->who & SEVERAL_OF_WARP ? read->who & 0xffu : warp_of(read->who);
            // Reads of this warp before its last __syncwarp are ordered before all that it does now, and another
            // warp's write would meet this read as well.
            const uint16_t who = warp != warp_of(me)  ? (uint16_t)SEVERAL
                                 : read->sync != sync ? me
                                                      : (uint16_t)(SEVERAL_OF_WARP + warp);
            *read = Seen{barrier, sync, who, false};
        } else if (read->who == me) {
            read->sync = sync;
        }
    }
}
