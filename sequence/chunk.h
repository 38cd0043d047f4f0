// Consecutive tokens of a sequence, by global position: what attention's queries and keys come in.
#ifndef SEQUENCE_CHUNK_H
#define SEQUENCE_CHUNK_H

#include <stdbool.h>
#include <stdint.h>

typedef struct Chunk {
    int64_t start, length;
} Chunk;

static inline int64_t chunk_end(Chunk chunk) { return chunk.start + chunk.length; } // the position after its last

#endif
