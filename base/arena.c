// Taking from a block, or only adding up.
#include "base/arena.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const size_t ARENA_MOST_BYTES = (size_t)1 << 60;

static void record(Arena *arena, const char *name, size_t bytes) {
    for (int i = 0; i < arena->entry_count; i++) {
        if (strcmp(arena->entry[i].name, name) == 0) {
            arena->entry[i].bytes += bytes;
            return;
        }
    }
    if (arena->entry_count == ARENA_MAX_ENTRIES) {
        fprintf(stderr, "arena: more than %d names\n", ARENA_MAX_ENTRIES);
        abort();
    }
    arena->entry[arena->entry_count++] = (ArenaEntry){name, bytes};
}

void *arena_take(Arena *arena, const char *name, size_t bytes) {
    if (bytes == 0) return NULL;
    if (bytes > ARENA_MOST_BYTES - arena->used) bytes = ARENA_MOST_BYTES - arena->used; // more than any machine has
    size_t padded = (bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT;
    record(arena, name, padded);
    size_t offset = arena->used;
    arena->used += padded;
    if (arena->base == NULL) return NULL;
    if (arena->used > arena->capacity) {
        fprintf(stderr, "arena: %s needs %zu bytes more than were planned\n", name, arena->used - arena->capacity);
        abort();
    }
    return arena->base + offset;
}
