// What a block of backward.cu works on, and with: its arguments, its shared memory, its share of the work, and the walk
// over that.
#ifndef ATTENTION_CUDA_HOPPER_BACKWARD_H
#define ATTENTION_CUDA_HOPPER_BACKWARD_H

#include "attention/cuda/hopper/query_sums.h"

namespace hopper::backward {

enum {
    THREADS = 3 * WARPGROUP,
    WORKERS = 2 * WARPGROUP / WARP, // warps that do the arithmetic; after them come
    BRINGS_TILES = WORKERS,         // one warp,
    ADDS_TERMS,                     // two, for the two places,
    BRINGS_NUMBERS = ADDS_TERMS + 2 // one
};

struct Backward {
    CUtensorMap q, d_out, k, v, d_k, d_v; // d_k, d_v: where the pair is the whole
    FloatView d_k_sums, d_v_sums;         // where it is not
    RowView log_sum_exp, delta;
    Pair pair;
    QuerySums sums;
    int kv_heads, group;        // group: query heads that share a key/value head
    int rows_of_heads, at_once; // B x KV; how many of these are worked on at the same time
    int key_blocks;             // of one head
    float scale;
    int *ticket; // the next one
};

// Two places for all that comes and goes with a tile of queries, and gates for each.
template <int D> struct Shared {
    static constexpr int QUERIES = queries_of_tile(D), ROWS = QUERIES / 64, COLUMNS = D / 64; // of a tile, in Tile64s
    Tile64 k[COLUMNS][2], v[COLUMNS][2];
    Tile64 q[2][COLUMNS][ROWS], d_out[2][COLUMNS][ROWS];
    Tile64 d_s[2][ROWS][2];                           // transposed: rows are keys, of the two warpgroups
    float d_q[2][2][TERMS];                           // of the two warpgroups
    float log_sum_exp[2][QUERIES], delta[2][QUERIES]; // log_sum_exp: base 2
    uint8_t first_key[2][QUERIES];                    // that each sees, counted from the block's first; up to KEYS
    uint64_t kv_full;
    Gate q_gate[2], d_out_gate[2], d_s_gate[2], d_q_gate[2]; // d_out_gate: also of the queries' numbers
    int ticket;
};

template <int D> __device__ inline void set_up_barriers(Shared<D> *s) {
    mbarrier_init(&s->kv_full, 1);
    for (int i = 0; i < 2; i++) {
        mbarrier_init(&s->q_gate[i].full, 1);
        mbarrier_init(&s->q_gate[i].empty, WORKERS);
        mbarrier_init(&s->d_out_gate[i].full, 1 + WARP); // dO, and each lane's numbers
        mbarrier_init(&s->d_out_gate[i].empty, WORKERS);
        mbarrier_init(&s->d_s_gate[i].full, WORKERS);
        mbarrier_init(&s->d_s_gate[i].empty, WORKERS);
        mbarrier_init(&s->d_q_gate[i].full, WORKERS);
        mbarrier_init(&s->d_q_gate[i].empty, 1);
    }
    mbarrier_init_fence();
}

// What a block works on.
struct Item {
    int b, kv_head, key_block;
    int past_tile;       // of the queries that see its keys
    int per_head, steps; // tiles of queries: of one head, of all that share the keys
};

// Heads are worked on a few at a time, all blocks of keys of these one after the other. All lanes of a warp together.
template <int D, bool LIMITED> __device__ inline Item item_of(const Backward &x, int ticket) {
    constexpr int QUERIES = queries_of_tile(D);
    const int first_row = ticket / (x.key_blocks * x.at_once) * x.at_once, n = ticket - first_row * x.key_blocks;
    const int rows = smaller_of(x.at_once, x.rows_of_heads - first_row), row = first_row + n % rows;
    Item item = {row / x.kv_heads, row % x.kv_heads, n / rows, x.sums.tiles, 0, 0};
    const int key = item.key_block * KEYS, query = first_query(x.pair, key);
    if (LIMITED) {
        const int last_key = smaller_of(key + KEYS, x.pair.keys) - 1;
        item.past_tile = ceil_div(past_query(x.pair, item.b, last_key), QUERIES);
    }
    if (query < x.pair.queries) item.per_head = larger_of(item.past_tile - query / QUERIES, 0);
    item.steps = item.per_head * x.group;
    return item;
}

// The walk over its tiles, which each of the roles makes for itself: head by head, from the last tile down.
struct Walk {
    int head, tile;
    int slot, parity; // of its place in shared memory; of the phase in which that becomes full

    __device__ Walk(const Backward &x, const Item &item)
        : head(item.kv_head * x.group), tile(item.past_tile - 1), slot(0), parity(0) {}
    __device__ void next(const Item &item) {
        if (--tile < item.past_tile - item.per_head) tile = item.past_tile - 1, head++;
        slot ^= 1;
        parity ^= slot == 0;
    }
};

} // namespace hopper::backward

#endif
