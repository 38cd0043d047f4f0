// Warp collectives: a lane that arrives leaves its operands and waits; the last one works out the results of all.
#include "emulated/hopper.h"
#include "emulated/report.h"
#include "emulated/settings.h"

void warp_collective(const WarpOperation *operation, unsigned mask, void *where) {
    Thread *thread = emulated_thread;
    Block *block = thread->block;
    Warp *warp = &block->warp[thread->number / WARP_LANES];
    Thread *lane = &block->thread[thread->number / WARP_LANES * WARP_LANES];
    const unsigned me = 1u << thread->number % WARP_LANES;
    if (!(mask & me))
        report(thread, where, "calls %s with mask 0x%08x, which leaves itself out", operation->name, mask);
    mask &= warp->existing; // a block whose size is not a multiple of 32 may still name the whole warp

    // Lanes may be at different places, and so several collectives be open. But if a lane that I call waits for me in
    // another one, neither of us can ever go on.
    Collective *open = NULL;
    for (int i = 0; i < warp->open_count; i++) {
        Collective *other = &warp->open[i];
        if (!(other->mask & me)) continue;
        if (other->mask == mask && other->operation == operation) {
            open = other;
        } else if (other->arrived & mask) {
            report(thread, where, "calls %s with mask 0x%08x, while lane %d waits in %s with mask 0x%08x",
                   operation->name, mask, __builtin_ctz(other->arrived & mask), other->operation->name, other->mask);
        }
    }
    if (open == NULL) {
        open = &warp->open[warp->open_count++];
        *open = Collective{operation, mask, 0};
    }
    open->arrived |= me;
    if (open->arrived != mask) {
        thread->state = THREAD_IN_COLLECTIVE;
        thread->waiting = operation->name;
        thread->where = where;
        thread->mask = mask;
        block_wait(thread);
        return;
    }
    *open = warp->open[--warp->open_count];
    operation->complete(lane, mask);
    // The others become ready in a random order; now and then all other warps go first.
    const uint32_t random = random_bits();
    const bool first = random & 3;
    for (uint32_t i = 0; i < WARP_LANES; i++) {
        const uint32_t other = (random >> 8) + i * (random >> 16 | 1);
        if (mask & ~me & 1u << other % WARP_LANES) block_make_ready(block, &lane[other % WARP_LANES], first);
    }
    if (!first) {
        block_make_ready(block, thread, false);
        block_wait(thread);
    }
}

// ---- __syncwarp -----------------------------------------------------------------------------------------------------

static void complete_sync(Thread *lane, unsigned lanes) {
    Warp *warp = &lane->block->warp[lane->number / WARP_LANES];
    if ((lanes | warp->ended) == warp->existing) warp->syncs++;
    order_meet(lane->block, lane->number, WARP_LANES, lanes);
}
void __syncwarp(unsigned mask) {
    static const WarpOperation operation = {"__syncwarp", complete_sync};
    warp_collective(&operation, mask, CALLER);
}

// ---- shuffles -------------------------------------------------------------------------------------------------------

// PTX ISA, shfl.sync: lanes are cut into segments of `width`; a lane whose source lies outside its segment keeps its
// own value. From a lane that does not take part comes nothing: here, a pattern that is not a number.
static void complete_shuffle(Thread *lane, unsigned lanes) {
    for (int i = 0; i < WARP_LANES; i++) {
        if (!(lanes >> i & 1)) continue;
        const EmulatedShuffle how = (EmulatedShuffle)lane[i].in[1];
        const int operand = (int)lane[i].in[2], width = (int)lane[i].in[3], segment = i & ~(width - 1);
        int source = i;
        switch (how) {
        case SHUFFLE_INDEX: source = segment + (operand & (width - 1)); break;
        case SHUFFLE_UP: source = i - operand >= segment ? i - operand : i; break;
        case SHUFFLE_DOWN: source = i + operand < segment + width ? i + operand : i; break;
        case SHUFFLE_XOR: source = (i ^ operand) < segment + width ? i ^ operand : i; break;
        }
        lane[i].out[0] = lanes >> source & 1 ? lane[source].in[0] : ~(uint64_t)0;
    }
}
uint64_t emulated_shuffle(EmulatedShuffle how, unsigned mask, uint64_t value, int operand, int width) {
    static const WarpOperation operation[] = {{"__shfl_sync", complete_shuffle},
                                              {"__shfl_up_sync", complete_shuffle},
                                              {"__shfl_down_sync", complete_shuffle},
                                              {"__shfl_xor_sync", complete_shuffle}};
    Thread *thread = emulated_thread;
    if (width < 1 || width > WARP_LANES || (width & (width - 1)) != 0)
        report(thread, CALLER, "%s with width %d, which is not a power of two up to 32", operation[how].name, width);
    thread->in[0] = value;
    thread->in[1] = how;
    thread->in[2] = (uint32_t)operand;
    thread->in[3] = (uint32_t)width;
    warp_collective(&operation[how], mask, CALLER);
    return thread->out[0];
}

// ---- votes ----------------------------------------------------------------------------------------------------------

static void complete_ballot(Thread *lane, unsigned lanes) {
    uint64_t votes = 0;
    for (int i = 0; i < WARP_LANES; i++)
        if (lanes >> i & 1) votes |= (uint64_t)(lane[i].in[0] != 0) << i;
    for (int i = 0; i < WARP_LANES; i++)
        if (lanes >> i & 1) lane[i].out[0] = votes;
}
unsigned __ballot_sync(unsigned mask, int predicate) {
    static const WarpOperation operation = {"a vote", complete_ballot};
    Thread *thread = emulated_thread;
    thread->in[0] = predicate != 0;
    warp_collective(&operation, mask, CALLER);
    return (unsigned)thread->out[0];
}

static void complete_match(Thread *lane, unsigned lanes) {
    for (int i = 0; i < WARP_LANES; i++) {
        if (!(lanes >> i & 1)) continue;
        lane[i].out[0] = 0;
        for (int j = 0; j < WARP_LANES; j++)
            if (lanes >> j & 1) lane[i].out[0] |= (uint64_t)(lane[j].in[0] == lane[i].in[0]) << j;
    }
}
unsigned __match_any_sync(unsigned mask, uint64_t value) {
    static const WarpOperation operation = {"__match_any_sync", complete_match};
    Thread *thread = emulated_thread;
    thread->in[0] = value;
    warp_collective(&operation, mask, CALLER);
    return (unsigned)thread->out[0];
}

static unsigned combine(EmulatedReduce how, unsigned a, unsigned b) {
    switch (how) {
    case REDUCE_ADD: return a + b;
    case REDUCE_MIN: return (int)a < (int)b ? a : b;
    case REDUCE_MAX: return (int)a > (int)b ? a : b;
    case REDUCE_MIN_UNSIGNED: return a < b ? a : b;
    case REDUCE_MAX_UNSIGNED: return a > b ? a : b;
    case REDUCE_AND: return a & b;
    case REDUCE_OR: return a | b;
    case REDUCE_XOR: return a ^ b;
    }
    return 0;
}
static void complete_reduce(Thread *lane, unsigned lanes) {
    const int begin = __builtin_ctz(lanes);
    unsigned result = (unsigned)lane[begin].in[0];
    for (int i = begin + 1; i < WARP_LANES; i++)
        if (lanes >> i & 1) result = combine((EmulatedReduce)lane[i].in[1], result, (unsigned)lane[i].in[0]);
    for (int i = begin; i < WARP_LANES; i++)
        if (lanes >> i & 1) lane[i].out[0] = result;
}
unsigned emulated_reduce(EmulatedReduce how, unsigned mask, unsigned value) {
    static const WarpOperation operation = {"__reduce_sync", complete_reduce};
    Thread *thread = emulated_thread;
    thread->in[0] = value;
    thread->in[1] = how;
    warp_collective(&operation, mask, CALLER);
    return (unsigned)thread->out[0];
}

unsigned __activemask() {
    const Warp *warp = &emulated_thread->block->warp[emulated_thread->number / WARP_LANES];
    return warp->existing & ~warp->ended;
}
