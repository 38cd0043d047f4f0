// Products over blocks of scores, cut off where nothing is seen, and the scratch memory of workers.
#include "attention/cpu/blocks.h"

#include <stdlib.h>

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

Scratch scratch_allocate(int workers, int64_t floats) {
    int64_t padded = (floats + 63) / 64 * 64;
    size_t bytes = (size_t)workers * (size_t)padded * sizeof(float);
    Scratch scratch = {aligned_alloc(256, bytes), padded};
    if (scratch.memory == NULL) {
        Error err = {0};
        error_set(&err, "attention needs %zu bytes of memory to work in, which are not there: use fewer threads",
                  bytes);
        die(&err);
    }
    return scratch;
}

void scratch_release(Scratch *scratch) {
    free(scratch->memory);
    scratch->memory = NULL;
}
