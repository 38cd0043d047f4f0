// The sums of dQ, on their way from the kernel that adds them up (backward.cu) to the pass that brings them to where dQ
// belongs (query_gradient.cu): where they lie, and which blocks of keys add to them.
//
// Which. The queries of a tile, i0 to i1, see keys from first_key(i0) to past_key(i1) - 1, or none (pair.h). A block
// adds to the tile if its own keys, j0 to j1, meet that range:
//
//   first_key(i0) <= j1   and   j0 < past_key(i1)
//
// so those that add follow one another without a gap, from the one that holds key first_key(i0) on: nobody has to know
// more to tell who begins. The same from the keys' side, which is how a block finds its tiles: those that begin before
// past_query(j1) and reach first_query(j0). A block between others may see nothing of a tile; it takes its turn, and
// adds zeros.
#ifndef ATTENTION_CUDA_HOPPER_QUERY_SUMS_H
#define ATTENTION_CUDA_HOPPER_QUERY_SUMS_H

#include "attention/cuda/hopper/hopper.h"

namespace hopper::backward {

constexpr int KEYS = 128;              // of a block
constexpr int TERMS = 64 * GROUP_ROWS; // of dQ, that a warpgroup makes from one tile of queries

// Queries of a tile: S and dP of 64 keys have to fit into a warpgroup's registers.
__host__ __device__ constexpr int queries_of_tile(int64_t D) { return D == 64 ? 128 : 64; }

// 2 TERMS for each of B x H x tiles: warpgroup 0's, which are the first 64 queries (D = 64) or the first 64 columns (D
// = 128) of the tile, then the other's; in each, store_terms' order (products.h).
struct QuerySums {
    float *sum;
    int *turn; // of each tile: the block of keys that adds next
    int heads, tiles;
};

inline int64_t count_places(const AttentionShape *shape, int64_t queries) {
    return shape->batch * shape->heads * ceil_div<int64_t>(queries, queries_of_tile(shape->head_dim));
}
__device__ inline int64_t place_of(const QuerySums &sums, int b, int head, int tile) {
    return ((int64_t)b * sums.heads + head) * sums.tiles + tile;
}

// The first block of keys that adds to a tile.
template <int D, bool LIMITED> __device__ inline int first_block(const Pair &pair, int b, int tile) {
    return LIMITED ? first_key(pair, b, tile * queries_of_tile(D)) / KEYS : 0;
}
// Whether there is one: otherwise the tile's sums are never written. (Keys that are seen may all be in another chunk.)
template <int D, bool LIMITED> __device__ inline bool has_sums(const Pair &pair, int b, int tile) {
    const int first = tile * queries_of_tile(D), last = smaller_of(first + queries_of_tile(D), pair.queries) - 1;
    if (LIMITED && first_key(pair, b, first) >= pair.keys) return false;
    return first_block<D, LIMITED>(pair, b, tile) * KEYS < past_key(pair, last);
}

inline unsigned blocks_for(int64_t blocks) {
    if (blocks > INT32_MAX) cuda_give_up(__FILE__, __LINE__, "attention over %lld blocks", (long long)blocks);
    return (unsigned)blocks;
}

// query_gradient.cu: dQ from all sums, overwritten in storage type; d_q NULL: added to query->d_q.
void finish_query_gradient(Device *, const AttentionShape *, const QueryBackward *query, const Pair &,
                           const QuerySums &, const TokenView *d_q);

} // namespace hopper::backward

#endif
