// The copy engine. A load's destination is poisoned when it starts, and what it brings arrives at a random moment, at
// the latest when all threads wait. A store reads shared memory as late as it may (bulk_wait_read), and what was
// overwritten before is reported; it writes global memory as late as it may (bulk_wait, or the end of the grid).
#include "emulated/checks.h"
#include "emulated/hopper.h"
#include "emulated/report.h"
#include "emulated/settings.h"
#include "emulated/shared.h"

enum { ROW = 128, TILE_ALIGNMENT = 1024 }; // bytes

struct Load {
    CUtensorMap map;
    int at[4];
    char *to;
    Mbarrier *barrier;
    uint16_t thread;
    void *where;
};
enum CopyKind { TILE_STORE, PLAIN_STORE, ADDITION };
struct BulkCopy { // to global memory
    CopyKind kind;
    CUtensorMap map;
    int at[4];
    char *to;
    uint32_t from, bytes; // from: offset in shared memory
    uint32_t group, number;
    Block *block;
    Thread *thread;
    void *where;
    bool read;  // shared memory, as far as threads know
    char *data; // what it found there
};
struct BulkCopies {
    BulkCopy *copy; // in the order begun
    int count, capacity;
    uint32_t begun;
};

static uint32_t box_bytes(const CUtensorMap *map) { return (uint32_t)(map->rows * map->parts * ROW); }

// ---- boxes ----------------------------------------------------------------------------------------------------------

// Where row `row` of part `part` of a box lies in the tensor; NULL: outside.
static char *global_row(const CUtensorMap *map, const int at[4], int part, int row) {
    const int64_t token = (int64_t)at[1] + row, channels = (int64_t)at[2] + part, sequence = at[3];
    if (token < 0 || token >= map->size[1] || channels < 0 || channels >= map->size[2] || sequence < 0 ||
        sequence >= map->size[3])
        return NULL;
    return map->data + token * map->stride[0] + channels * map->stride[1] + sequence * map->stride[2];
}

// Copies a row of 128 bytes between memory and a tile, whose pieces are swizzled by the row's number.
static void copy_row(char *tile, uint32_t row, char *memory, bool to_tile) {
    char *place = tile + row * ROW;
    for (uint32_t piece = 0; piece < ROW / PIECE; piece++) {
        char *swizzled = place + (piece ^ row % 8) * PIECE, *plain = memory + piece * PIECE;
        memcpy(to_tile ? swizzled : plain, to_tile ? plain : swizzled, PIECE);
    }
}

static void check_tile(Thread *thread, const char *what, const void *tile, const CUtensorMap *map, const int at[4],
                       void *where) {
    char place[200];
    if (!shared_contains(thread->block, tile)) report(thread, where, "%s: %p is not shared memory", what, tile);
    describe(thread, tile, place, sizeof place);
    if (((const char *)tile - thread->block->shared) % TILE_ALIGNMENT != 0)
        report(thread, where, "%s: a swizzled tile is aligned to 1,024 bytes: %s", what, place);
    if (at[0] != 0) report(thread, where, "%s at channel %d of a part: boxes hold whole parts, from 0 on", what, at[0]);
    if (map->rows * map->parts <= 0) report(thread, where, "%s by a tensor map that was never made", what);
}

// ---- loads ----------------------------------------------------------------------------------------------------------

void emulated_tma_load(void *to, const CUtensorMap *map, uint64_t *address, const int (&at)[4]) {
    Thread *thread = emulated_thread;
    Block *block = thread->block;
    Mbarrier *barrier = mbarrier_of(thread, address, "tma_load to", CALLER);
    HopperBlock *hopper = block->hopper;
    check_tile(thread, "tma_load", to, map, at, CALLER);
    if (!barrier->announced) {
        char place[200];
        describe(thread, address, place, sizeof place);
        report(thread, CALLER, "tma_load to an mbarrier after whose mbarrier_init was no mbarrier_init_fence: %s",
               place);
    }
    const uint32_t begin = (uint32_t)((char *)to - block->shared), bytes = box_bytes(map);
    shared_access(thread, to, bytes, ACCESS_BULK_BEGIN, CALLER);
    hopper_copy_writes(thread, begin, bytes, CALLER);
    memset(to, 0xff, bytes);
    if (hopper->load_count == hopper->load_capacity) {
        hopper->load_capacity = hopper->load_capacity ? 2 * hopper->load_capacity : 16;
        hopper->loads = (Load *)realloc(hopper->loads, (size_t)hopper->load_capacity * sizeof(Load));
        if (hopper->loads == NULL) report_host("no memory for bulk copies");
    }
    hopper->loads[hopper->load_count++] =
        Load{*map, {at[0], at[1], at[2], at[3]}, (char *)to, barrier, thread->number, CALLER};
    hopper_pause(thread);
}

bool bulk_arrive(Block *block) {
    HopperBlock *hopper = block->hopper;
    if (hopper->load_count == 0) return false;
    Load *chosen = &hopper->loads[random_below((uint32_t)hopper->load_count)];
    const Load load = *chosen;
    *chosen = hopper->loads[--hopper->load_count];
    Thread *thread = &block->thread[load.thread];
    for (int part = 0; part < load.map.parts; part++) {
        for (int row = 0; row < load.map.rows; row++) {
            static const char zeros[ROW] = {};
            char *memory = global_row(&load.map, load.at, part, row);
            if (memory != NULL) check_global(thread, memory, ROW, false, load.where);
            copy_row(load.to, (uint32_t)(part * load.map.rows + row), memory != NULL ? memory : (char *)zeros, true);
        }
    }
    memset(block->byte_state + (load.to - block->shared), BYTE_WRITTEN, box_bytes(&load.map));
    mbarrier_bytes_came(block, load.barrier, box_bytes(&load.map));
    return true;
}

// ---- stores ---------------------------------------------------------------------------------------------------------

static BulkCopy *begin_copy(Thread *thread, CopyKind kind, const void *from, uint32_t bytes, void *where) {
    Block *block = thread->block;
    Grid *grid = block->grid;
    HopperThread *mine = &block->hopper->thread[thread->number];
    const uint32_t begin = (uint32_t)((const char *)from - block->shared);
    shared_access(thread, from, bytes, ACCESS_READ, where);
    for (uint32_t piece = begin / PIECE; piece < (begin + bytes) / PIECE; piece++) {
        uint16_t writer;
        if (!hopper_unfenced(block->hopper, piece, &writer)) {
            block->hopper->reading[piece]++;
            continue;
        }
        char place[200];
        describe(thread, block->shared + piece * PIECE, place, sizeof place);
        report(thread, where, "a bulk copy reads what thread %u wrote without fence_proxy_async after it: %s", writer,
               place);
    }
    if (grid->copies == NULL) grid->copies = (BulkCopies *)calloc(1, sizeof(BulkCopies));
    BulkCopies *copies = grid->copies;
    if (copies != NULL && copies->count == copies->capacity) {
        copies->capacity = copies->capacity ? 2 * copies->capacity : 16;
        copies->copy = (BulkCopy *)realloc(copies->copy, (size_t)copies->capacity * sizeof(BulkCopy));
    }
    char *data = (char *)malloc(bytes);
    if (copies == NULL || copies->copy == NULL || data == NULL) report_host("no memory for bulk copies");
    BulkCopy *copy = &copies->copy[copies->count++];
    *copy = BulkCopy{};
    copy->kind = kind;
    copy->from = begin;
    copy->bytes = bytes;
    copy->group = mine->bulk_groups;
    copy->number = copies->begun++;
    copy->block = block;
    copy->thread = thread;
    copy->where = where;
    copy->data = data;
    mine->bulk_open++;
    mine->bulk_copies++;
    return copy;
}

void emulated_tma_store(const CUtensorMap *map, const void *from, const int (&at)[4]) {
    Thread *thread = emulated_thread;
    hopper_of(thread, "cp.async.bulk.tensor", CALLER);
    check_tile(thread, "tma_store", from, map, at, CALLER);
    BulkCopy *copy = begin_copy(thread, TILE_STORE, from, box_bytes(map), CALLER);
    copy->map = *map;
    memcpy(copy->at, at, sizeof copy->at);
    hopper_pause(thread);
}

void emulated_bulk_to_global(float *to, const float *from, int bytes, bool add) {
    Thread *thread = emulated_thread;
    const char *name = add ? "bulk_reduce_add" : "bulk_store";
    hopper_of(thread, "cp.async.bulk", CALLER);
    if (bytes <= 0 || bytes % PIECE != 0)
        report(thread, CALLER, "%s of %d bytes, which is no multiple of 16", name, bytes);
    if (!shared_contains(thread->block, from))
        report(thread, CALLER, "%s from %p, which is not shared memory", name, (const void *)from);
    if ((uintptr_t)from % PIECE != 0) report_misaligned(thread, name, from, PIECE, CALLER);
    if ((uintptr_t)to % PIECE != 0) report_misaligned(thread, name, to, PIECE, CALLER);
    if (shared_contains(thread->block, to)) report(thread, CALLER, "%s to shared memory", name);
    check_global(thread, to, (uint32_t)bytes, true, CALLER);
    BulkCopy *copy = begin_copy(thread, add ? ADDITION : PLAIN_STORE, from, (uint32_t)bytes, CALLER);
    copy->to = (char *)to;
    turns_added(thread, (uintptr_t)to, (size_t)bytes, copy->number, CALLER);
    hopper_pause(thread);
}

static void read_shared(BulkCopy *copy) {
    if (copy->read) return;
    copy->read = true;
    memcpy(copy->data, copy->block->shared + copy->from, copy->bytes);
    for (uint32_t piece = copy->from / PIECE; piece < (copy->from + copy->bytes) / PIECE; piece++)
        copy->block->hopper->reading[piece]--;
}

// The copy's end; its place in the list is filled.
static void write_global(BulkCopies *copies, int index) {
    BulkCopy copy = copies->copy[index];
    memmove(&copies->copy[index], &copies->copy[index + 1], (size_t)(--copies->count - index) * sizeof copy);
    if (copy.kind == TILE_STORE) {
        for (int part = 0; part < copy.map.parts; part++) {
            for (int row = 0; row < copy.map.rows; row++) {
                char *memory = global_row(&copy.map, copy.at, part, row);
                if (memory == NULL) continue;
                check_global(copy.thread, memory, ROW, true, copy.where);
                copy_row(copy.data, (uint32_t)(part * copy.map.rows + row), memory, false);
            }
        }
    } else if (copy.kind == PLAIN_STORE) {
        memcpy(copy.to, copy.data, copy.bytes);
    } else {
        float *to = (float *)copy.to;
        for (uint32_t i = 0; i < copy.bytes / sizeof(float); i++) to[i] += ((const float *)copy.data)[i];
    }
    free(copy.data);
}

void bulk_write_some(Grid *grid) {
    BulkCopies *copies = grid->copies;
    if (copies == NULL || copies->count == 0) return;
    const int chosen = (int)random_below((uint32_t)copies->count);
    if (copies->copy[chosen].read && copies->copy[chosen].block == NULL) write_global(copies, chosen);
}

// ---- groups ---------------------------------------------------------------------------------------------------------

void emulated_bulk_commit() {
    Thread *thread = emulated_thread;
    HopperThread *mine = &hopper_of(thread, "cp.async.bulk.commit_group", CALLER)->thread[thread->number];
    mine->bulk_groups++;
    mine->bulk_open = 0;
}

void emulated_bulk_wait(bool written) {
    Thread *thread = emulated_thread;
    HopperThread *mine = &hopper_of(thread, "cp.async.bulk.wait_group", CALLER)->thread[thread->number];
    hopper_pause(thread);
    BulkCopies *copies = thread->block->grid->copies;
    for (int i = 0; copies != NULL && i < copies->count;) {
        BulkCopy *copy = &copies->copy[i];
        if (copy->thread != thread || copy->block == NULL || copy->group >= mine->bulk_groups) {
            i++;
            continue;
        }
        read_shared(copy);
        if (!written) {
            i++;
            continue;
        }
        turns_written(thread, copy->number);
        mine->bulk_copies--;
        write_global(copies, i);
    }
    hopper_pause(thread);
}

void bulk_overwritten(Block *block, uint32_t piece, Thread *thread, const void *where) {
    BulkCopies *copies = block->grid->copies;
    for (int i = 0; copies != NULL && i < copies->count; i++) {
        const BulkCopy *copy = &copies->copy[i];
        if (copy->block != block || copy->read || piece < copy->from / PIECE ||
            piece >= (copy->from + copy->bytes) / PIECE)
            continue;
        char place[200];
        describe(thread, block->shared + piece * PIECE, place, sizeof place);
        report(thread, where, "overwrites what a bulk copy of thread %u still reads (no bulk_commit, bulk_wait_read before): %s",
               copy->thread->number, place);
    }
}

// ---- beginning and end ----------------------------------------------------------------------------------------------

void bulk_begin_block(Block *block) { block->hopper->load_count = 0; }

void bulk_end_thread(Thread *thread) {
    HopperThread *mine = &thread->block->hopper->thread[thread->number];
    BulkCopies *copies = thread->block->grid->copies;
    if (mine->bulk_open > 0) report(thread, NULL, "ends with bulk copies that are in no group: no bulk_commit");
    if (mine->bulk_copies == 0) return;
    for (int i = 0; i < copies->count; i++) {
        BulkCopy *copy = &copies->copy[i];
        if (copy->block != thread->block || copy->thread != thread) continue;
        if (!copy->read)
            report(thread, copy->where, "ends while a bulk copy still reads shared memory: no bulk_wait_read");
        copy->block = NULL; // it writes on its own from now on; `thread` still says who
    }
}

void bulk_end_block(Thread *last) {
    HopperBlock *hopper = last->block->hopper;
    if (hopper->load_count == 0) return;
    const Load *load = &hopper->loads[0];
    report(&last->block->thread[load->thread], load->where, "tma_load is still under way when the block ends");
}

void bulk_end_grid(Grid *grid) {
    BulkCopies *copies = grid->copies;
    if (copies == NULL) return;
    while (copies->count > 0) write_global(copies, (int)random_below((uint32_t)copies->count));
    free(copies->copy);
    free(copies);
}
