// Products over blocks of scores of which a part is hidden, and the scratch memory of workers.
#include "attention/cpu/blocks.h"

bool pair_is_seen(const Visibility *visibility, int64_t batch, Chunk queries, Chunk keys) {
    for (int64_t b = 0; b < batch; b++)
        if (visibility_sees(visibility, b, queries, keys)) return true;
    return false;
}

const int32_t *first_keys(int32_t *row, const Visibility *visibility, int64_t b, Chunk queries, Chunk keys) {
    if (!visibility_is_limited(visibility)) return NULL;
    for (int64_t i = 0; i < round_up_to_strip(queries.length); i++) {
        int64_t position = queries.start + smaller(i, queries.length - 1); // columns that fill up are as the last one
        int64_t first = visibility_first(visibility, b, position) - keys.start;
        row[i] = (int32_t)(first > 0 ? first : 0);
    }
    return row;
}

// Whether every query of the block sees every key.
static bool is_whole(Block block) { return block.mask.diagonal >= block.keys - 1 && block.mask.first == NULL; }

// The columns of the strips of queries for which the keys from row `key` on, a multiple of STRIP, are worked on:
// `first` to before `end`, which is at most round_up_to_strip(queries).
typedef struct StripColumns {
    int64_t first, end;
} StripColumns;

static StripColumns columns_of_strip(Block block, int64_t key) {
    const Mask *mask = &block.mask;
    int64_t first = key > mask->diagonal ? (key - mask->diagonal) / STRIP * STRIP : 0;
    int64_t end = round_up_to_strip(block.queries);
    while (mask->first != NULL && end > first && mask->first[end - STRIP] - mask->row >= key + STRIP) end -= STRIP;
    return (StripColumns){first, end};
}

void block_scores(const TileKernels *kernels, Block block, int64_t D, Rows a, Rows b, Rows scores) {
    int64_t columns = round_up_to_strip(block.queries);
    if (is_whole(block)) {
        kernels->product(block.keys, columns, D, plain(a), b, scores, OVERWRITE);
        return;
    }
    for (int64_t key = 0; key < block.keys; key += STRIP) {
        StripColumns query = columns_of_strip(block, key);
        if (query.first >= query.end) continue;
        kernels->product(smaller(STRIP, block.keys - key), query.end - query.first, D, plain(rows_from(a, key, 0)),
                         rows_from(b, 0, query.first), rows_from(scores, key, query.first), OVERWRITE);
    }
}

void block_add_to_queries(const TileKernels *kernels, Block block, int64_t n, Rows weights, Rows b, Rows out) {
    if (is_whole(block)) {
        kernels->product(block.queries, n, block.keys, transposed(weights), b, out, ADD);
        return;
    }
    for (int64_t query = 0; query < block.queries; query += STRIP) {
        StripRows key = rows_of_strip(block.keys, query, block.mask);
        kernels->product(smaller(STRIP, block.queries - query), n, key.end - key.first,
                         transposed(rows_from(weights, key.first, query)), rows_from(b, key.first, 0),
                         rows_from(out, query, 0), ADD);
    }
}

void block_add_to_keys(const TileKernels *kernels, Block block, int64_t n, Rows weights, Rows b, Rows out) {
    if (is_whole(block)) {
        kernels->product(block.keys, n, block.queries, plain(weights), b, out, ADD);
        return;
    }
    for (int64_t key = 0; key < block.keys; key += STRIP) {
        StripColumns query = columns_of_strip(block, key);
        int64_t end = smaller(query.end, block.queries);
        if (query.first >= end) continue;
        kernels->product(smaller(STRIP, block.keys - key), n, end - query.first,
                         plain(rows_from(weights, key, query.first)), rows_from(b, query.first, 0),
                         rows_from(out, key, 0), ADD);
    }
}

static int64_t whole_lines(int64_t floats) { return (floats + 63) / 64 * 64; }

size_t scratch_bytes(int threads, int64_t floats) {
    return (size_t)threads * (size_t)whole_lines(floats) * sizeof(float);
}

Scratch scratch_from(const Device *device, const char *who, int64_t floats) {
    return (Scratch){device_scratch(device, who, scratch_bytes(device->threads, floats)), whole_lines(floats)};
}
