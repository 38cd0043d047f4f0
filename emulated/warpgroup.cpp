// What warps of a warpgroup do beside products: leave registers to others, meet at named barriers, store matrices.
#include "emulated/checks.h"
#include "emulated/hopper.h"
#include "emulated/report.h"
#include "emulated/shared.h"

// ---- registers ------------------------------------------------------------------------------------------------------

// A multiprocessor has 65,536 registers; a thread gets a multiple of 8, at most 255 (256 are taken).
static int registers_at_launch(const Block *block) {
    const int most = 65536 / block->count / 8 * 8;
    return most > 256 ? 256 : most;
}

void warpgroup_begin_block(Block *block) {
    HopperBlock *hopper = block->hopper;
    hopper->registers_left = 0;
    memset(hopper->changes, 0, sizeof hopper->changes);
    for (int w = 0; w < MAX_WARPS; w++) hopper->registers[w] = (uint16_t)registers_at_launch(block);
}

static void explain_registers(const Thread *thread, char *text, size_t size) {
    const Block *block = thread->block;
    const int at_launch = registers_at_launch(block);
    int most = 0;
    for (int w = 0; w * WARP_LANES < block->count; w++) {
        const Thread *first = &block->thread[w * WARP_LANES];
        const bool waits = first->state == THREAD_PARKED && first->parking == thread->parking;
        most += waits ? (int)first->parked_for : block->hopper->registers[w];
    }
    snprintf(
        text, size,
        "for registers that nobody leaves: all warps together would have %d x 32, the block was launched with %d x "
        "32 (%d a thread)",
        most, at_launch * ((block->count + WARP_LANES - 1) / WARP_LANES), at_launch);
}

static void complete_registers(Thread *, unsigned) {}

void emulated_setmaxnreg(int registers, bool more) {
    static const Parking parking = {"setmaxnreg_inc", 0, explain_registers};
    static const WarpOperation operation[] = {{"setmaxnreg_dec", complete_registers},
                                              {"setmaxnreg_inc", complete_registers}};
    Thread *thread = emulated_thread;
    Block *block = thread->block;
    HopperBlock *hopper = hopper_of(thread, "setmaxnreg", CALLER);
    const int warp = thread->number / WARP_LANES;
    warp_collective(&operation[more], ~0u, CALLER);
    // The first lane does it for its warp, the others wait until it has.
    if (thread->number % WARP_LANES == 0) {
        const int before = hopper->registers[warp];
        if (more ? registers < before : registers > before) {
            report(thread, CALLER, "%s to %d registers, which has %d", more ? "setmaxnreg_inc" : "setmaxnreg_dec",
                   registers, before);
        }
        while (hopper->registers_left < registers - before)
            block_park(thread, &parking, &hopper->registers_left, (uint64_t)registers, CALLER);
        hopper->registers_left -= registers - before;
        hopper->registers[warp] = (uint16_t)registers;
        hopper->changes[warp]++;
        hopper->changed_at[warp] = CALLER;
        if (registers < before) block_wake(block, &hopper->registers_left);
    }
    warp_collective(&operation[more], ~0u, CALLER);
}

void warpgroup_end_block(Thread *last) {
    const Block *block = last->block;
    const HopperBlock *hopper = block->hopper;
    for (int w = 0; w * WARP_LANES < block->count; w++) {
        const int first = w / 4 * 4;
        if (hopper->changes[w] == hopper->changes[first] && hopper->registers[w] == hopper->registers[first]) continue;
        report(&block->thread[w * WARP_LANES], hopper->changed_at[hopper->changes[w] > 0 ? w : first],
               "setmaxnreg was executed by a part of a warpgroup: warp %d has %d registers, warp %d has %d", w,
               hopper->registers[w], first, hopper->registers[first]);
    }
}

// ---- named barriers -------------------------------------------------------------------------------------------------

static void explain_named(const Thread *thread, char *text, size_t size) {
    const NamedBarrier *barrier = (const NamedBarrier *)thread->parked_on;
    snprintf(text, size, "for named barrier %d, to which %d of %d threads have come", (int)thread->parked_for,
             barrier->arrived, barrier->threads);
}

void emulated_named_barrier(int id, int threads, bool wait) {
    static const Parking parking = {"named_barrier_wait", 4, explain_named};
    Thread *thread = emulated_thread;
    HopperBlock *hopper = hopper_of(thread, "bar with a number", CALLER);
    if (id < 1 || id >= NAMED_BARRIERS) report(thread, CALLER, "named barrier %d: 1 to 15", id);
    if (threads <= 0 || threads % WARP_LANES != 0 || threads > thread->block->count)
        report(thread, CALLER, "named barrier %d for %d threads: whole warps, and no more than there are", id, threads);
    NamedBarrier *barrier = &hopper->named[id];
    if (barrier->threads != 0 && barrier->threads != threads) {
        report(thread, CALLER, "named barrier %d for %d threads, while others have come to it for %d", id, threads,
               barrier->threads);
    }
    barrier->threads = threads;
    if (++barrier->arrived == threads) {
        *barrier = NamedBarrier{0, 0};
        block_wake(thread->block, barrier);
        hopper_pause(thread);
    } else if (wait) {
        block_park(thread, &parking, barrier, (uint64_t)id, CALLER);
    } else {
        hopper_pause(thread);
    }
}

// ---- stmatrix -------------------------------------------------------------------------------------------------------

// PTX ISA, "stmatrix": register i of lane l holds two neighbours of row l / 4 of matrix i, columns 2 (l % 4) and the
// next.
static void complete_stmatrix(Thread *lane, unsigned lanes) {
    if (lanes != ~0u) report(lane, lane->where, "stmatrix by a part of a warp");
    for (int l = 0; l < WARP_LANES; l++) {
        char *row = (char *)lane[l].in[0];
        if (!shared_contains(lane->block, row))
            report(&lane[l], lane[l].where, "stmatrix to %p, which is not shared memory", row);
        if ((uintptr_t)row % 16 != 0) report_misaligned(&lane[l], "stmatrix writes", row, 16, lane[l].where);
    }
    for (int l = 0; l < WARP_LANES; l++) {
        uint32_t word[4];
        memcpy(word, &lane[l].in[1], sizeof word);
        for (int matrix = 0; matrix < 4; matrix++) {
            Thread *owner = &lane[8 * matrix + l / 4];
            char *to = (char *)owner->in[0] + l % 4 * 4;
            // For the fence, it is lane l that writes.
            shared_access(&lane[l], to, 4, ACCESS_WRITE, lane[l].where);
            memcpy(to, &word[matrix], 4);
        }
    }
}

void emulated_stmatrix_x4(void *row, EmulatedWords4 r) {
    static const WarpOperation operation = {"stmatrix", complete_stmatrix};
    Thread *thread = emulated_thread;
    hopper_of(thread, "stmatrix", CALLER);
    thread->in[0] = (uint64_t)row;
    memcpy(&thread->in[1], r.word, sizeof r.word);
    thread->where = CALLER;
    warp_collective(&operation, ~0u, CALLER);
}
