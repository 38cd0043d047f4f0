// Barriers in shared memory that count arrivals and bytes.
//
// What the 8 bytes of one hold is the emulator's business alone: ordinary accesses to them are reported.
#include "emulated/checks.h"
#include "emulated/hopper.h"
#include "emulated/report.h"
#include "emulated/shared.h"

static const uint64_t MAGIC = 0x6d62617272696572; // what is in memory is this plus the barrier's number

Mbarrier *mbarrier_of(Thread *thread, const void *address, const char *does, const void *where) {
    HopperBlock *hopper = hopper_of(thread, does, where);
    const uint32_t at = (uint32_t)((const char *)address - thread->block->shared);
    char place[200];
    describe(thread, address, place, sizeof place);
    if (!shared_contains(thread->block, address) || (uintptr_t)address % 8 != 0)
        report(thread, where, "%s an mbarrier that is not 8 aligned bytes of shared memory: %s", does, place);
    uint64_t number;
    memcpy(&number, address, sizeof number);
    number -= MAGIC;
    if (thread->block->byte_state[at] != BYTE_OF_MBARRIER || number >= (uint64_t)hopper->barriers ||
        hopper->barrier[number].at != at)
        report(thread, where, "%s an mbarrier that was never set up: %s", does, place);
    return &hopper->barrier[number];
}

void emulated_mbarrier_init(uint64_t *address, int arrivals) {
    Thread *thread = emulated_thread;
    HopperBlock *hopper = hopper_of(thread, "mbarrier.init", CALLER);
    const uint32_t at = (uint32_t)((const char *)address - thread->block->shared);
    char place[200];
    describe(thread, address, place, sizeof place);
    if (!shared_contains(thread->block, address) || (uintptr_t)address % 8 != 0)
        report(thread, CALLER, "sets up an mbarrier that is not 8 aligned bytes of shared memory: %s", place);
    if (arrivals < 1 || arrivals > (1 << 20) - 1)
        report(thread, CALLER, "sets up an mbarrier for %d arrivals; it is 1 to 1,048,575: %s", arrivals, place);
    if (thread->block->byte_state[at] == BYTE_OF_MBARRIER)
        report(thread, CALLER, "sets up an mbarrier again: %s", place);
    shared_access(thread, address, 8, ACCESS_WRITE, CALLER);
    if (hopper->barriers == MOST_MBARRIERS) report(thread, CALLER, "sets up more than %d mbarriers", MOST_MBARRIERS);
    const uint64_t content = MAGIC + (uint64_t)hopper->barriers;
    memcpy(address, &content, sizeof content);
    memset(thread->block->byte_state + at, BYTE_OF_MBARRIER, 8);
    hopper->barrier[hopper->barriers++] = Mbarrier{at, arrivals, arrivals, 0, 0, thread->number, false};
}

void emulated_mbarrier_init_fence() {
    Thread *thread = emulated_thread;
    HopperBlock *hopper = hopper_of(thread, "fence.mbarrier_init", CALLER);
    for (int i = 0; i < hopper->barriers; i++)
        if (hopper->barrier[i].made_by == thread->number) hopper->barrier[i].announced = true;
}

// ---- phases ---------------------------------------------------------------------------------------------------------

static void end_phase_if_complete(Block *block, Mbarrier *barrier) {
    if (barrier->pending > 0 || barrier->bytes != 0) return;
    const uint32_t ended = barrier->phase++;
    barrier->pending = barrier->arrivals;
    block_wake_value(block, barrier, ended);
}

void mbarrier_bytes_came(Block *block, Mbarrier *barrier, int64_t bytes) {
    barrier->bytes -= bytes;
    end_phase_if_complete(block, barrier);
}

void emulated_mbarrier_arrive(uint64_t *address, int bytes) {
    Thread *thread = emulated_thread;
    char place[200];
    Mbarrier *barrier = mbarrier_of(thread, address, "arrives at", CALLER);
    if (bytes < 0) report(thread, CALLER, "announces %d bytes to an mbarrier", bytes);
    if (barrier->pending == 0) {
        describe(thread, address, place, sizeof place);
        report(thread, CALLER, "arrives at an mbarrier whose %d arrivals of phase %u have all been made: %s",
               barrier->arrivals, barrier->phase, place);
    }
    barrier->bytes += bytes;
    barrier->pending--;
    end_phase_if_complete(thread->block, barrier);
    hopper_pause(thread);
}

static void explain_wait(const Thread *thread, char *text, size_t size) {
    const Mbarrier *barrier = (const Mbarrier *)thread->parked_on;
    char place[200], bytes[100] = "";
    shared_describe(thread->block, thread->block->shared + barrier->at, place, sizeof place);
    if (barrier->bytes > 0)
        snprintf(bytes, sizeof bytes, ", and %lld bytes announced have not come", (long long)barrier->bytes);
    if (barrier->bytes < 0)
        snprintf(bytes, sizeof bytes, ", and %lld bytes have come that were not announced", -(long long)barrier->bytes);
    snprintf(text, size, "for the end of phase %u (parity %u) of the mbarrier in %s: %d of %d arrivals made%s",
             barrier->phase, barrier->phase % 2, place, barrier->arrivals - barrier->pending, barrier->arrivals, bytes);
}

void emulated_mbarrier_wait(uint64_t *address, int parity) {
    static const Parking parking = {"mbarrier_wait", 3, explain_wait};
    Thread *thread = emulated_thread;
    Mbarrier *barrier = mbarrier_of(thread, address, "waits for", CALLER);
    if (parity != 0 && parity != 1) report(thread, CALLER, "waits for parity %d of an mbarrier: 0 or 1", parity);
    hopper_pause(thread);
    if ((barrier->phase & 1) != (uint32_t)parity) return;
    const uint32_t phase = barrier->phase;
    block_park(thread, &parking, barrier, phase, CALLER);
    if (barrier->phase > phase + 1) {
        char place[200];
        describe(thread, address, place, sizeof place);
        report(thread, CALLER,
               "waits for phase %u of an mbarrier, and before it looks again phase %u has ended too: %s", phase,
               phase + 1, place);
    }
}
