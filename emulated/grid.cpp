// Which block runs next.
#include "emulated/grid.h"

#include <pthread.h>

#include "emulated/hopper.h"
#include "emulated/memory.h"
#include "emulated/report.h"
#include "emulated/settings.h"
#include "emulated/shared.h"

// ---- memory for blocks ----------------------------------------------------------------------------------------------

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Block *free_blocks; // with their stacks and shared memory, for whichever host thread runs a kernel next

static Block *block_get(Grid *grid) {
    pthread_mutex_lock(&lock);
    Block *block = free_blocks;
    if (block != NULL) free_blocks = block->next_free;
    pthread_mutex_unlock(&lock);
    if (block == NULL) {
        block = (Block *)calloc(1, sizeof(Block));
        if (block == NULL || !shared_open(block)) report_host("no memory to run a block");
    }
    block_open(block, grid);
    return block;
}
static void block_put(Block *block) {
    pthread_mutex_lock(&lock);
    block->next_free = free_blocks;
    free_blocks = block;
    pthread_mutex_unlock(&lock);
}

// ---- a grid ---------------------------------------------------------------------------------------------------------

// resident[0 .. residents) are at work; those after them, if not NULL, have done with a block and can have another.
static Block *begin_block(Grid *grid) {
    Block **place = &grid->resident[grid->residents++];
    if (*place == NULL) *place = block_get(grid);
    const dim3 size = grid->launch->grid;
    const uint64_t n = walk_next(&grid->walk);
    Block *block = *place;
    block->index = uint3{(unsigned)(n % size.x), (unsigned)(n / size.x % size.y), (unsigned)(n / size.x / size.y)};
    block->ordinal = (uint32_t)grid->begun++;
    block_begin(block);
    return block;
}
static void end_block(Grid *grid, Block *block) {
    int i = 0;
    while (grid->resident[i] != block) i++;
    grid->resident[i] = grid->resident[--grid->residents];
    grid->resident[grid->residents] = block;
}

// A block that can go on; NULL: all have ended.
static Block *choose(Grid *grid) {
    const bool more = grid->begun < grid->blocks && grid->residents < MOST_RESIDENT;
    if (grid->residents == 0) return more ? begin_block(grid) : NULL;
    Block *ready[MOST_RESIDENT];
    uint32_t count = 0;
    for (int i = 0; i < grid->residents; i++) {
        hopper_look_at_words(grid->resident[i]);
        if (grid->resident[i]->ready_count > 0) ready[count++] = grid->resident[i];
    }
    if (count == 0 && !more) block_stuck(grid->resident[0]);
    const uint32_t chosen = random_below(count + more);
    return chosen < count ? ready[chosen] : begin_block(grid);
}

void block_run_grid(const EmulatedLaunch *launch, int device) {
    const dim3 size = launch->grid;
    Grid grid = {};
    grid.launch = launch;
    grid.device = device;
    grid.blocks = (uint64_t)size.x * size.y * size.z;
    memory_forget_recent();
    grid.walk = walk_start(grid.blocks);
    for (Block *block; (block = choose(&grid)) != NULL;) {
        block_run(block);
        if (block->ended == block->count) end_block(&grid, block);
    }
    hopper_end_grid(&grid);
    BankCount banks = {0, 0};
    for (int i = 0; i < MOST_RESIDENT && grid.resident[i] != NULL; i++) {
        banks.accesses += grid.resident[i]->banks.accesses;
        banks.wavefronts += grid.resident[i]->banks.wavefronts;
        block_put(grid.resident[i]);
    }
    if (settings()->banks && banks.accesses > 0) {
        fprintf(stderr,
                "emulated GPU: kernel %s: ldmatrix takes %.2f times the least number of passes over the banks\n",
                launch->name, (double)banks.wavefronts / (double)banks.accesses);
    }
}
