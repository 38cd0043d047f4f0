// Products over blocks of scores, cut off where nothing is seen, and the scratch memory of workers.
#include "attention/cpu/blocks.h"

// Whether every query of the block sees every key.
static int is_whole(Block block) { return block.diagonal >= block.keys - 1; }

// The first strip of queries in which the keys from row `key` on, a multiple of STRIP, are worked on.
static int64_t first_strip(int64_t key, int64_t diagonal) {
    return key > diagonal ? (key - diagonal) / STRIP * STRIP : 0;
}

void block_scores(const TileKernels *kernels, Block block, int64_t D, Rows a, Rows b, Rows scores) {
    int64_t columns = round_up_to_strip(block.queries);
    if (is_whole(block)) {
        kernels->product(block.keys, columns, D, plain(a), b, scores, OVERWRITE);
        return;
    }
    for (int64_t key = 0; key < block.keys; key += STRIP) {
        int64_t query = first_strip(key, block.diagonal);
        if (query >= columns) break;
        kernels->product(smaller(STRIP, block.keys - key), columns - query, D, plain(rows_from(a, key, 0)),
                         rows_from(b, 0, query), rows_from(scores, key, query), OVERWRITE);
    }
}

void block_add_to_queries(const TileKernels *kernels, Block block, int64_t n, Rows weights, Rows b, Rows out) {
    if (is_whole(block)) {
        kernels->product(block.queries, n, block.keys, transposed(weights), b, out, ADD);
        return;
    }
    for (int64_t query = 0; query < block.queries; query += STRIP)
        kernels->product(smaller(STRIP, block.queries - query), n, keys_of_strip(block.keys, query, block.diagonal),
                         transposed(rows_from(weights, 0, query)), b, rows_from(out, query, 0), ADD);
}

void block_add_to_keys(const TileKernels *kernels, Block block, int64_t n, Rows weights, Rows b, Rows out) {
    if (is_whole(block)) {
        kernels->product(block.keys, n, block.queries, plain(weights), b, out, ADD);
        return;
    }
    for (int64_t key = 0; key < block.keys; key += STRIP) {
        int64_t query = first_strip(key, block.diagonal);
        if (query >= block.queries) break;
        kernels->product(smaller(STRIP, block.keys - key), n, block.queries - query,
                         plain(rows_from(weights, key, query)), rows_from(b, query, 0), rows_from(out, key, 0), ADD);
    }
}

static int64_t whole_lines(int64_t floats) { return (floats + 63) / 64 * 64; }

size_t scratch_bytes(int threads, int64_t floats) {
    return (size_t)threads * (size_t)whole_lines(floats) * sizeof(float);
}

Scratch scratch_from(const Device *device, const char *who, int64_t floats) {
    return (Scratch){device_scratch(device, who, scratch_bytes(device->threads, floats)), whole_lines(floats)};
}
