// A Hopper block's beginning and end, and its shared memory: what was written by ordinary stores and is not fenced.
#include "emulated/hopper.h"

#include "emulated/report.h"
#include "emulated/settings.h"
#include "emulated/shared.h"

void hopper_open(Block *block) {
    if (settings()->arch != 90) {
        free(block->hopper);
        block->hopper = NULL;
    } else if (block->hopper == NULL) {
        block->hopper = (HopperBlock *)calloc(1, sizeof(HopperBlock));
        if (block->hopper == NULL) report_host("no memory for a block of a Hopper kernel");
    }
}

void hopper_begin_block(Block *block) {
    HopperBlock *hopper = block->hopper;
    memset(hopper->reading, 0, sizeof hopper->reading);
    memset(hopper->unfenced, 0, sizeof hopper->unfenced);
    for (int i = 0; i < block->count; i++) {
        hopper->thread[i].fences = hopper->thread[i].bulk_groups = 0;
        hopper->thread[i].bulk_open = hopper->thread[i].bulk_copies = 0;
        hopper->thread[i].products = hopper->thread[i].groups = hopper->thread[i].finished = 0;
        hopper->thread[i].registers_fenced = false;
        hopper->thread[i].held_count = 0;
    }
    hopper->barriers = hopper->word_waiters = hopper->acquired_count = 0;
    hopper->releases = 0;
    memset(hopper->named, 0, sizeof hopper->named);
    bulk_begin_block(block);
    wgmma_begin_block(block);
    warpgroup_begin_block(block);
}

void hopper_end_thread(Thread *thread) {
    wgmma_end_thread(thread);
    bulk_end_thread(thread);
    if (thread->block->ended < thread->block->count - 1) return;
    bulk_end_block(thread);
    warpgroup_end_block(thread);
}

void hopper_end_grid(Grid *grid) {
    bulk_end_grid(grid);
    turns_end_grid(grid);
}

HopperBlock *hopper_of(Thread *thread, const char *instruction, const void *where) {
    if (thread->block->hopper == NULL) {
        report(thread, where, "executes %s, which only a GPU of compute capability 9.0 has: EMULATED_ARCH=90",
               instruction);
    }
    return thread->block->hopper;
}

bool hopper_go_on(Block *block) { return block->hopper != NULL && bulk_arrive(block); }

void hopper_pause(Thread *thread) {
    const uint32_t random = random_bits();
    if (random % 8 == 0) bulk_arrive(thread->block);
    if (random / 8 % 16 == 0) bulk_write_some(thread->block->grid);
    if (random / 128 % 128 == 0) {
        block_leave(thread);
    } else if (random / 16384 % 4 == 0) {
        block_make_ready(thread->block, thread, false);
        block_wait(thread);
    }
}

// ---- who wrote ------------------------------------------------------------------------------------------------------

// reading: who overwrites what a product or a bulk copy still has to read.
static void check_readers(Thread *thread, uint32_t begin, uint32_t bytes, const void *where) {
    Block *block = thread->block;
    for (uint32_t piece = begin / PIECE; piece <= (begin + bytes - 1) / PIECE; piece++) {
        if (block->hopper->reading[piece] == 0) continue;
        bulk_overwritten(block, piece, thread, where);
        wgmma_overwritten(block, piece, thread, where);
    }
}

void hopper_wrote(Thread *thread, uint32_t begin, uint32_t bytes, const void *where) {
    HopperBlock *hopper = thread->block->hopper;
    check_readers(thread, begin, bytes, where);
    for (uint32_t piece = begin / PIECE; piece <= (begin + bytes - 1) / PIECE; piece++) {
        if (!hopper->unfenced[piece]) { // of its words none is remembered
            for (int i = 0; i < 4; i++) hopper->word[piece * 4 + i].writer = NOBODY_WROTE;
            hopper->unfenced[piece] = 1;
        }
    }
    const WrittenWord now = {hopper->thread[thread->number].fences, thread->number};
    for (uint32_t word = begin / 4; word <= (begin + bytes - 1) / 4; word++) hopper->word[word] = now;
}

void hopper_copy_writes(Thread *thread, uint32_t begin, uint32_t bytes, const void *where) {
    check_readers(thread, begin, bytes, where);
    memset(thread->block->hopper->unfenced + begin / PIECE, 0, (bytes + PIECE - 1) / PIECE);
}

bool hopper_unfenced(HopperBlock *hopper, uint32_t piece, uint16_t *writer) {
    if (!hopper->unfenced[piece]) return false;
    for (int i = 0; i < 4; i++) {
        const WrittenWord *word = &hopper->word[piece * 4 + i];
        *writer = word->writer;
        if (word->writer != NOBODY_WROTE && hopper->thread[word->writer].fences == word->fences) return true;
    }
    hopper->unfenced[piece] = 0;
    return false;
}

// ---- fences ---------------------------------------------------------------------------------------------------------

uint32_t emulated_shared_address(const void *address) {
    Thread *thread = emulated_thread;
    if (!shared_contains(thread->block, address))
        report(thread, CALLER, "asks where %p is in shared memory: it is not", address);
    return (uint32_t)((const char *)address - thread->block->shared);
}

void emulated_fence_proxy_async() {
    Thread *thread = emulated_thread;
    hopper_of(thread, "fence.proxy.async", CALLER)->thread[thread->number].fences++;
}
