// Between blocks: words that one block sets and another waits for, and whether bulk copies to the same memory are
// ordered by them. A copy comes after one of another block if bulk_wait has seen that one done, its block has then
// released a word, and this block has acquired that word, or one that the other released later. Blocks are named by
// when they began.
#include "emulated/checks.h"
#include "emulated/hopper.h"
#include "emulated/report.h"
#include "emulated/settings.h"

enum : uintptr_t { PAGE_BYTES = 4096, PAGE_PIECES = PAGE_BYTES / PIECE };
enum : uint32_t { UNDER_WAY = ~0u };

// From an address (not 0) to a number; open addressing.
struct Map {
    struct Entry {
        uintptr_t key;
        uint64_t value;
    } * entry;
    size_t count, capacity; // capacity: a power of two
};
static uint64_t *map_at(Map *map, uintptr_t key) { // 0 at first
    if (2 * map->count >= map->capacity) {
        const Map old = *map;
        map->capacity = old.capacity > 0 ? 2 * old.capacity : 1024;
        map->count = 0;
        map->entry = (Map::Entry *)calloc(map->capacity, sizeof *map->entry);
        if (map->entry == NULL) report_host("no memory for the order of blocks");
        for (size_t i = 0; i < old.capacity; i++)
            if (old.entry[i].key != 0) *map_at(map, old.entry[i].key) = old.entry[i].value;
        free(old.entry);
    }
    size_t i = (key * 0x9e3779b97f4a7c15u >> 32) % map->capacity;
    while (map->entry[i].key != key && map->entry[i].key != 0) i = (i + 1) % map->capacity;
    if (map->entry[i].key == 0) map->count++;
    map->entry[i].key = key;
    return &map->entry[i].value;
}

struct Operation {            // a bulk copy to consecutive bytes
    uint32_t block, releases; // releases: of its block when bulk_wait had seen it done
};
struct Turns {
    Operation *operation;
    size_t operations; // allocated
    Map page;          // to uint32_t[PAGE_PIECES]: 1 + the operation that last wrote each piece
    Map word;          // to the block that released it last, and the count of its releases then
};

static Turns *turns_of(Grid *grid) {
    if (grid->turns == NULL) grid->turns = (Turns *)calloc(1, sizeof(Turns));
    if (grid->turns == NULL) report_host("no memory for the order of blocks");
    return grid->turns;
}

void turns_end_grid(Grid *grid) {
    Turns *turns = grid->turns;
    if (turns == NULL) return;
    for (size_t i = 0; i < turns->page.capacity; i++) free((void *)turns->page.entry[i].value);
    free(turns->page.entry);
    free(turns->word.entry);
    free(turns->operation);
    free(turns);
}

// ---- bulk copies ----------------------------------------------------------------------------------------------------

static bool comes_after(const Block *block, const Operation *before) {
    if (before->block == block->ordinal) return true; // a block's own copies: its threads' affair
    if (before->releases == UNDER_WAY) return false;
    const HopperBlock *hopper = block->hopper;
    for (int i = 0; i < hopper->acquired_count; i++) {
        if (hopper->acquired[i].block == before->block) return hopper->acquired[i].releases > before->releases;
    }
    return false;
}

void turns_added(Thread *thread, uintptr_t begin, size_t bytes, uint32_t number, const void *where) {
    Turns *turns = turns_of(thread->block->grid);
    if (number >= turns->operations) {
        turns->operations = 2 * (size_t)number + 64;
        turns->operation = (Operation *)realloc(turns->operation, turns->operations * sizeof(Operation));
        if (turns->operation == NULL) report_host("no memory for the order of blocks");
    }
    turns->operation[number] = Operation{thread->block->ordinal, UNDER_WAY};
    uint32_t *page = NULL, seen = 0;
    for (uintptr_t at = begin; at < begin + bytes; at += PIECE) {
        if (page == NULL || at % PAGE_BYTES == 0) {
            uint64_t *found = map_at(&turns->page, at / PAGE_BYTES);
            if (*found == 0) *found = (uint64_t)calloc(PAGE_PIECES, sizeof(uint32_t));
            if (*found == 0) report_host("no memory for the order of blocks");
            page = (uint32_t *)*found;
        }
        uint32_t *last = &page[at % PAGE_BYTES / PIECE];
        if (*last != 0 && *last != seen && !comes_after(thread->block, &turns->operation[*last - 1])) {
            char place[200];
            describe(thread, (const void *)at, place, sizeof place);
            report(
                thread, where,
                "a bulk copy to what block number %u (in the order of their beginning; this is number %u) copied to, "
                "without a turn between, by bulk_wait and store_release there and wait_acquire here: %s",
                turns->operation[*last - 1].block, thread->block->ordinal, place);
        }
        seen = *last;
        *last = number + 1;
    }
}

void turns_written(Thread *thread, uint32_t number) {
    Turns *turns = thread->block->grid->turns;
    if (turns != NULL && number < turns->operations)
        turns->operation[number].releases = thread->block->hopper->releases;
}

// ---- words ----------------------------------------------------------------------------------------------------------

static int value_of(const void *word) { return __atomic_load_n((const int *)word, __ATOMIC_ACQUIRE); }

static void explain_word(const Thread *thread, char *text, size_t size) {
    char place[200];
    describe(thread, thread->parked_on, place, sizeof place);
    snprintf(text, size, "for a word to become %d, which is %d: %s. Of %llu blocks %llu have begun, %d are at work",
             (int)thread->parked_for, value_of(thread->parked_on), place,
             (unsigned long long)thread->block->grid->blocks, (unsigned long long)thread->block->grid->begun,
             thread->block->grid->residents);
}

static const Parking parking = {"wait_acquire", 2, explain_word};

void emulated_wait_acquire(const int *word, int value) {
    Thread *thread = emulated_thread;
    Block *block = thread->block;
    HopperBlock *hopper = hopper_of(thread, "wait_acquire", CALLER);
    check_access(word, sizeof *word, false, true, CALLER);
    hopper_pause(thread);
    while (value_of(word) != value) {
        hopper->word_waiters++;
        block_park(thread, &parking, word, (uint64_t)(uint32_t)value, CALLER);
        hopper->word_waiters--;
    }
    const uint64_t release = *map_at(&turns_of(block->grid)->word, (uintptr_t)word);
    if (release == 0) return;
    const uint32_t by = (uint32_t)(release >> 32), count = (uint32_t)release;
    int i = 0;
    while (i < hopper->acquired_count && hopper->acquired[i].block != by) i++;
    if (i == hopper->acquired_count) {
        if (i == MOST_ACQUIRED) i = (int)random_below(MOST_ACQUIRED); // forgotten: a report may then be wrong
        else hopper->acquired_count++;
        hopper->acquired[i] = Acquired{by, 0};
    }
    if (hopper->acquired[i].releases < count) hopper->acquired[i].releases = count;
}

void hopper_look_at_words(Block *block) {
    if (!hopper_waits_for_others(block)) return;
    for (int i = 0; i < block->count; i++) {
        Thread *thread = &block->thread[i];
        if (thread->state == THREAD_PARKED && thread->parking == &parking &&
            value_of(thread->parked_on) == (int)thread->parked_for)
            block_make_ready(block, thread, false);
    }
}

void emulated_store_release(int *word, int value) {
    Thread *thread = emulated_thread;
    HopperBlock *hopper = hopper_of(thread, "store_release", CALLER);
    check_access(word, sizeof *word, true, true, CALLER);
    *map_at(&turns_of(thread->block->grid)->word, (uintptr_t)word) =
        (uint64_t)thread->block->ordinal << 32 | ++hopper->releases;
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
    hopper_pause(thread);
}
