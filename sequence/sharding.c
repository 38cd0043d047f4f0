// Zigzag ownership: chunk boundaries, shards, and what one rank sees of another.
#include "sequence/sharding.h"

// T * (2P) stays far below 2^63 for any T that fits in memory.
static int64_t boundary(int64_t T, int ranks, int64_t chunk) { return chunk * T / (2 * (int64_t)ranks); }

static Chunk chunk_at(int64_t T, int ranks, int64_t index) {
    int64_t start = boundary(T, ranks, index);
    return (Chunk){start, boundary(T, ranks, index + 1) - start};
}

Shard shard_of(int64_t T, int ranks, int rank) {
    Chunk early = chunk_at(T, ranks, rank), late = chunk_at(T, ranks, 2 * (int64_t)ranks - 1 - rank);
    int64_t tokens = early.length + late.length;
    if (early.start + early.length == late.start) return (Shard){1, {{early.start, tokens}, {0, 0}}, tokens};
    return (Shard){2, {early, late}, tokens};
}

int64_t shard_offset(const Shard *shard, int64_t position) {
    bool in_late = shard->count == 2 && position >= shard->chunk[1].start;
    return in_late ? shard->chunk[0].length + position - shard->chunk[1].start : position - shard->chunk[0].start;
}

Shard shard_seen(int64_t T, int ranks, int owner, int reader) {
    Shard keys = shard_of(T, ranks, owner), queries = shard_of(T, ranks, reader);
    Chunk last = queries.chunk[queries.count - 1];
    Shard seen = {0, {{0, 0}, {0, 0}}, 0};
    for (int i = 0; i < keys.count && chunk_sees(last, keys.chunk[i]); i++) {
        seen.chunk[seen.count++] = keys.chunk[i];
        seen.tokens += keys.chunk[i].length;
    }
    return seen;
}

int64_t shard_tokens_for(int64_t T, int ranks, int owner, int reader) {
    return owner == reader ? 0 : shard_seen(T, ranks, owner, reader).tokens;
}

// The query at position i sees i + 1 keys.
static int64_t causal_pairs(Chunk chunk) {
    int64_t end = chunk.start + chunk.length;
    return (end * (end + 1) - chunk.start * (chunk.start + 1)) / 2;
}

int64_t shard_causal_pairs(int64_t T, int ranks, int rank) {
    Shard shard = shard_of(T, ranks, rank);
    int64_t pairs = 0;
    for (int i = 0; i < shard.count; i++) pairs += causal_pairs(shard.chunk[i]);
    return pairs;
}
