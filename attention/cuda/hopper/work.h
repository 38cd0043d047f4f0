// How the forward kernel deals out its work. A piece of work is QUERIES queries of one head and the tiles of keys that
// they see. A block begins with the piece of its own number; then it takes the next one that nobody has taken, until
// there is none.
//
// Pieces come in sets: heads that are worked on at the same time, as many as leave their keys and values in the L2
// cache. Within a set the pieces with the most keys come first, so that all blocks end together.
#ifndef ATTENTION_CUDA_HOPPER_WORK_H
#define ATTENTION_CUDA_HOPPER_WORK_H

#include "attention/cuda/hopper/hopper.h"

namespace hopper {

enum { GROUPS = 3, QUERIES = GROUPS * GROUP_ROWS }; // warpgroups that compute, and the queries they have together
enum { SET_BYTES = 16 << 20 };                      // of keys and values of a set's heads, which the L2 cache holds

// Keys in a tile: as many as leave no register spilled.
template <int D> __host__ __device__ constexpr int keys_in_tile() { return D == 64 ? 128 : 80; }

struct Deal {
    int query_blocks, rows_of_heads; // B x H
    int heads, group;                // group: query heads that share a key/value head
    int set, last_set;               // rows of heads in a set; the last set has all the rest
};

// Tiles are visited from past_tile - 1 down to the first one that its rows see. past_tile 0: there is no work left.
struct Work {
    int b, h, first_row, past_tile;
};

// How many tiles there are up to the last that a block of queries sees, of which `last` is the last; at least one, so
// that all work is alike: what is in it is masked then.
template <int D> __device__ inline int past_tile(Pair pair, int last) {
    const int past = last + pair.ahead + 1; // past_key, in the form of the study (doc/gpu/hopper.md)
    return larger_of(1, ceil_div(past < 0 ? 0 : smaller_of(past, pair.keys), keys_in_tile<D>()));
}

// Blocks of queries are counted from the end: so the first has the most keys, and it is the last one, with the fewest,
// that may be incomplete. It then begins before row 0.
template <int D> __device__ inline Work work_at(const Deal &deal, const Pair &pair, int index) {
    if (index >= deal.query_blocks * deal.rows_of_heads) return Work{0, 0, 0, 0};
    const int set = smaller_of(index / (deal.set * deal.query_blocks), deal.last_set);
    const int heads = set == deal.last_set ? deal.rows_of_heads - set * deal.set : deal.set;
    const int rest = index - set * deal.set * deal.query_blocks;
    const int block = rest / heads, head_row = set * deal.set + rest - block * heads;
    const int b = head_row / deal.heads, first_row = pair.queries - (block + 1) * QUERIES;
    return Work{b, head_row - b * deal.heads, first_row, past_tile<D>(pair, first_row + QUERIES - 1)};
}

// The first tile that a warpgroup's rows see (there may be rows before row 0), in a piece of work where it is not 0 for
// all. Warpgroup 0's is the first of all.
template <int D> __device__ inline int first_tile_of(const Pair &pair, const Work &work, int group) {
    const int key = first_key(pair, work.b, larger_of(0, work.first_row + group * GROUP_ROWS));
    return smaller_of(key / keys_in_tile<D>(), work.past_tile - 1);
}

// The next piece that nobody has taken. Every block asks until it gets none, so all in all as often as there are
// pieces: whoever asks last leaves 0 behind for the next launch. counter: of pieces taken beyond each block's first.
__device__ inline int take_work(const Deal &deal, int *counter) {
    const int taken = atomicAdd(counter, 1);
    if (taken == deal.query_blocks * deal.rows_of_heads - 1) *counter = 0;
    return (int)gridDim.x + taken;
}

// The last set is about twice as large as the others, so that blocks end together.
inline Deal deal_of(const AttentionShape *shape, const Pair &pair) {
    const int64_t rows = shape->batch * shape->heads, group = shape->heads / shape->kv_heads;
    const int64_t head_bytes = 2 * 2 * (int64_t)pair.keys * shape->head_dim;
    const int64_t pieces = rows * ceil_div(pair.queries, (int)QUERIES);
    if (pieces > INT32_MAX / 2) cuda_give_up(__FILE__, __LINE__, "attention over %lld blocks", (long long)pieces);
    Deal deal = {};
    deal.query_blocks = ceil_div(pair.queries, (int)QUERIES);
    deal.rows_of_heads = (int)rows;
    deal.heads = (int)shape->heads;
    deal.group = (int)group;
    deal.set = (int)smaller_of(rows, larger_of((int64_t)1, SET_BYTES / head_bytes) * group);
    deal.last_set = larger_of(0, ceil_div(deal.rows_of_heads, deal.set) - 2);
    return deal;
}

// One block for each multiprocessor, which it holds until there is no work left. But where NCCL's kernels work beside,
// which come to a multiprocessor only when a block leaves it, a long launch has a block for every piece: then all
// pieces are somebody's first. A SHORT one, of so many scores a multiprocessor, is over in less than a millisecond at
// the rates measured on an H200.
inline unsigned blocks_of(Device *device, const Deal &deal, const Pair &pair) {
    const int64_t pieces = (int64_t)deal.query_blocks * deal.rows_of_heads, processors = multiprocessors(device);
    const int64_t scores = (int64_t)deal.rows_of_heads * pair.queries * pair.keys, SHORT = 1 << 23;
    const bool gives_way = context_of(device)->nccl_works_beside && scores / processors > SHORT;
    return (unsigned)(gives_way ? pieces : smaller_of(pieces, processors));
}

} // namespace hopper

#endif
