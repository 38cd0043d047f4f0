// One block of memory per rank, laid out by name.
//
// The same layout code runs twice: first with no block, when the arena only adds up sizes (that is what `--plan`
// prints), then over the real block. So the plan cannot differ from what is used.
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include <stddef.h>
#include <stdint.h>

enum { ARENA_ALIGNMENT = 256, ARENA_MAX_ENTRIES = 96 };

typedef struct ArenaEntry {
    const char *name; // a string literal; buffers of one name are summed into one line of the plan
    size_t bytes;
} ArenaEntry;

typedef struct Arena {
    char *base;      // NULL while planning
    size_t capacity; // bytes at base
    size_t used;
    int entry_count;
    ArenaEntry entry[ARENA_MAX_ENTRIES];
} Arena;

// Returns `bytes` bytes aligned to ARENA_ALIGNMENT, or NULL while planning (base == NULL) or if bytes == 0.
// Running past the capacity is a programming error and aborts.
void *arena_take(Arena *arena, const char *name, size_t bytes);

#endif
