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

// The smallest piece that holds both.
static Chunk hull(Chunk a, Chunk b) {
    if (a.length == 0) return b;
    if (b.length == 0) return a;
    int64_t start = a.start < b.start ? a.start : b.start;
    int64_t end = chunk_end(a) > chunk_end(b) ? chunk_end(a) : chunk_end(b);
    return (Chunk){start, end - start};
}

Shard shard_seen(int64_t T, int ranks, int owner, int reader, const Visibility *on_host) {
    Shard seen = shard_of(T, ranks, owner), queries = shard_of(T, ranks, reader);
    seen.tokens = 0;
    for (int i = 0; i < seen.count; i++) {
        Chunk piece = {seen.chunk[i].start, 0};
        for (int j = 0; j < queries.count; j++)
            piece = hull(piece, visibility_seen(on_host, 0, queries.chunk[j], seen.chunk[i]));
        seen.chunk[i] = piece;
        seen.tokens += piece.length;
    }
    return seen;
}

Shard shard_seen_from(int64_t T, int ranks, int owner, int reader, const Visibility *on_host) {
    Shard seen = shard_seen(T, ranks, owner, reader, on_host);
    Shard last = shard_seen(T, ranks, owner, (owner + 1) % ranks, on_host);
    seen.tokens = 0;
    for (int i = 0; i < seen.count; i++) {
        seen.chunk[i] = hull(seen.chunk[i], last.chunk[i]);
        seen.tokens += seen.chunk[i].length;
    }
    return seen;
}
