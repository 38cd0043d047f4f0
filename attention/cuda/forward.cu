// Attention forward on tensor cores: FlashAttention-2 (Dao 2023) with mma.sync, for sm_80 and later; on Hopper, heads of
// 64 and 128 are left to hopper/forward.cu.
//
// A block serves QUERY_ROWS queries of one head and walks over the keys they see, KEYS at a time. Each of its four
// warps owns 32 whole rows, so that no softmax crosses warps, and every fragment of K and V that a warp reads from
// shared memory serves two products. While one tile is worked on, the next is on its way (cp.async, two buffers, one
// barrier a tile). Scores never leave registers: two fragments of S = Q K^T, rounded, are one A fragment for P V.
//
// Tiles are visited from the last key back. Only there can a tile be ragged, or be crossed by the diagonal: a warp
// works out a mask for the one or two that are, and passes over those that none of its rows sees. Blocks with the most
// work come first.
//
// Softmax in base 2: with c = scale log2(e), p = 2^(c s - max) is one multiply-add and one ex2, where max is the
// largest c s of the row so far. The accumulator is multiplied by 2^(old max - new max) only in tiles in which one of
// the warp's rows has a new maximum; else that would be 1.
//
// What is not a number: a NaN in q, k or v reaches every row that sees it; one in v also rows of the same tile that do
// not, since 0 x NaN is NaN to a tensor core. Scores of -inf weigh 0. Beyond scores of 1e8 the rounding of c s itself
// is more than a factor of 2^8.
#include "attention/cuda/fragment.h"
#ifdef HOPPER
#include "attention/cuda/hopper/hopper.h"
#endif
#include "attention/cuda/kernels.h"
#include "attention/cuda/pair.h"
#include "layers/cuda/context.h"

namespace {

// M = 2: 32 rows a warp.
enum { M = 2, WARPS = 4, THREADS = WARPS * WARP, WARP_ROWS = 16 * M, QUERY_ROWS = WARPS * WARP_ROWS };

// How many blocks shall fit a multiprocessor. While one warp works out exponentials another's products can run, so that
// more should be better, if registers and shared memory last: compiled for Hopper, they do.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
enum { SMALL_HEAD_BLOCKS = 3 };
#else
enum { SMALL_HEAD_BLOCKS = 2 };
#endif

// Keys in a tile: as many as leave no register spilled.
template <int D> constexpr int KEYS = D % 64 == 0 ? 48 : 64;

struct Forward {
    TokenView q, k, v, out;
    int64_t k_step, v_step; // as far as the threads that copy go at once
    FloatView accumulator;
    RowView max, sum, log_sum_exp;
    Pair pair;
    int query_blocks, rows_of_heads; // B x H
    int heads, group;                // group: query heads that share a key/value head
    int head_dim;                    // the real one, at most the kernel's D
    float scale_log2;                // scale log2(e)
};

// The rows of a warp.
template <int D> struct Rows {
    Accumulator<M, D> out;
    RowValues<M> max; // of c s
    RowValues<M> sum; // over this lane's columns alone
};

template <int D> __device__ inline void begin(Rows<D> &rows) {
    clear(rows.out);
    rows.max = rows_of<M>(-INFINITY);
    rows.sum = rows_of<M>(0);
}

// ---- one warp's work on one tile of keys ----------------------------------------------------------------------------

// Scores of keys that a row does not see become -inf. The warp's rows begin at `first_row`, the tile's keys at
// `tile_key`. begin: the first key that each row sees.
template <int N>
__device__ inline void mask(Accumulator<M, N> &s, const Pair &pair, int first_row, const int *begin, int tile_key,
                            const Lane &lane) {
    each_row<M>([&](int r) {
        const int row = r + lane.row, first = tile_key + lane.column;
        const int before = begin[row] - first, past = past_key(pair, first_row + row) - first;
        each_in_row(s, r, [&](float &score, int key) {
            if (key < before || key >= past) score = -INFINITY;
        });
    });
}

// Takes this tile's scores into the maxima, and brings what was summed so far to the new ones.
template <int D, int N>
__device__ inline void follow_maximum(Rows<D> &rows, const Accumulator<M, N> &s, float scale_log2) {
    RowValues<M> rescale;
    bool any = false;
    each_row<M>([&](int row) {
        const float top = row_max(s, row) * scale_log2, old = rows.max[row];
        const bool larger = top > old; // not where both are -inf
        rescale[row] = larger ? exp2_fast(old - top) : 1;
        rows.max[row] = larger ? top : old;
        any = any || larger;
    });
    if (!__any_sync(WHOLE_WARP, any)) return;
    each_row<M>([&](int row) { rows.sum[row] *= rescale[row]; });
    each(rows.out, [&](float &value, int row, int) { value *= rescale[row]; });
}

// S becomes P; sums follow.
template <int D, int N> __device__ inline void weights(Rows<D> &rows, Accumulator<M, N> &s, float scale_log2) {
    each_row<M>([&](int row) {
        // A row that has seen nothing but -inf: any finite maximum gives it weights of 0.
        const float max = rows.max[row] == -INFINITY ? 0 : rows.max[row];
        each_in_row(s, row, [&](float &score, int) {
            score = exp2_fast(fmaf(score, scale_log2, -max));
            rows.sum[row] += score;
        });
    });
}

// ---- the block ------------------------------------------------------------------------------------------------------

// Where a block's work lies.
struct Place {
    int b, h, first_row;
};

// What is put aside, because there are no registers to spare in the loop.
struct Parked {
    Place at;
    KeysSeen seen[WARPS];      // by the rows of each warp
    int first_key[QUERY_ROWS]; // that each row sees
};

// Shared memory: Q, two buffers of K and V each, by turns, and what is parked.
template <int D> __host__ __device__ constexpr int buffer_of(int tile) {
    return tile_bytes<D>(QUERY_ROWS) + tile % 2 * 2 * tile_bytes<D>(KEYS<D>);
}
template <int D> __host__ __device__ constexpr int parking() { return buffer_of<D>(0) + 4 * tile_bytes<D>(KEYS<D>); }
template <int D> constexpr int shared_bytes() { return parking<D>() + (int)sizeof(Parked); }

__device__ inline Place place_of(const Forward &x) {
    const int head_row = blockIdx.x % x.rows_of_heads, block = x.query_blocks - 1 - (int)(blockIdx.x / x.rows_of_heads);
    return Place{head_row / x.heads, head_row % x.heads, block * QUERY_ROWS};
}
__device__ inline int warp_row() { return (int)threadIdx.x / WARP * WARP_ROWS; } // the warp's first, in the block

// out = accumulator / sum, by way of this warp's part of Q's place in shared memory.
template <int D>
__device__ inline void store_out(const Forward &x, const Place &at, const Rows<D> &rows, unsigned char *q,
                                 const Lane &lane) {
    const int first = at.first_row + warp_row(), left = x.pair.queries - first;
    RowValues<M> inverse;
    each_row<M>([&](int row) {
        const float sum = row_sum(rows.sum[row]);
        inverse[row] = sum == 0 ? 0 : 1 / sum; // 0: saw no key. NaN stays
        if (lane.column == 0 && row + lane.row < left)
            *row_at(x.log_sum_exp, at.b, at.h, first + row + lane.row) =
                sum == 0 ? -INFINITY : (rows.max[row] + log2f(sum)) * LN_2;
    });
    store_rows(token_at(x.out, at.b, first, at.h, x.head_dim), x.out.token_stride, left, x.head_dim, inverse, rows.out,
               q, lane);
}

// Adds these rows to the state in memory: both are brought to the larger maximum. A state without keys is not read.
template <int D>
__device__ inline void merge_state(const Forward &x, const Place &at, const Rows<D> &rows, const Lane &lane) {
    each_row<M>([&](int r) {
        const float own_sum = row_sum(rows.sum[r]), own = rows.max[r];
        const int row = at.first_row + warp_row() + r + lane.row;
        const bool inside = row < x.pair.queries;
        float *max = row_at(x.max, at.b, at.h, row), *sum = row_at(x.sum, at.b, at.h, row);
        const float old = inside ? *max : -INFINITY, old_sum = inside ? *sum : 0;
        const float both = fmaxf(old, own), finite = both == -INFINITY ? 0 : both;
        const float keep = exp2_fast(old - finite), add = exp2_fast(own - finite);
        __syncwarp(); // all four lanes of the row have read
        if (!inside) return;
        if (lane.column == 0) {
            *max = both;
            *sum = old_sum * keep + own_sum * add;
        }
        const bool fresh = old == -INFINITY && old_sum == 0;
        merge_row(float_at(x.accumulator, at.b, row, at.h, x.head_dim), x.head_dim, fresh, keep, add, rows.out, r,
                  lane);
    });
}

// WHOLE: out and log_sum_exp are written; otherwise the state in memory is carried on.
template <int D, bool WHOLE>
__global__ void __launch_bounds__(THREADS, D <= 64 ? SMALL_HEAD_BLOCKS : 2) forward_kernel(Forward x) {
    DYNAMIC_SHARED(unsigned char, shared);
    constexpr int N = KEYS<D>, K_BYTES = tile_bytes<D>(N);
    Parked *parked = reinterpret_cast<Parked *>(shared + parking<D>());
    const Place at = place_of(x);
    const int thread = threadIdx.x, last_row = smaller_of(at.first_row + QUERY_ROWS, x.pair.queries) - 1;
    const KeysSeen block_sees = keys_seen(x.pair, at.b, at.first_row, last_row);
    const int first_tile = block_sees.begin / N;
    int tile = block_sees.begin < block_sees.end ? (block_sees.end - 1) / N : -1; // the last one first
    if (!WHOLE && tile < 0) return;

    if (thread == 0) parked->at = at;
    if (thread < WARPS) {
        const int first = at.first_row + thread * WARP_ROWS;
        parked->seen[thread] =
            keys_seen(x.pair, at.b, smaller_of(first, last_row), smaller_of(first + WARP_ROWS - 1, last_row));
    }
    parked->first_key[thread] = first_key(x.pair, at.b, smaller_of(at.first_row + thread, last_row));
    __syncthreads();
    const Copy<D, THREADS> copy(thread, x.head_dim / PACKET);
    const Lane lane = this_lane<D>();
    const Tile<D> q = {shared, tile_bytes<D>(warp_row())}; // this warp's rows
    Rows<D> rows;
    begin(rows);

    const bf16 *next_k, *next_v; // what this thread copies next
    {
        const int key = larger_of(tile, 0) * N, left = x.pair.keys - key, pieces = x.head_dim / PACKET;
        const int kv_head = at.h / x.group;
        const bf16 *k = token_at(x.k, at.b, key, kv_head, x.head_dim);
        const bf16 *v = token_at(x.v, at.b, key, kv_head, x.head_dim);
        if (tile >= 0) {
            tile_load<D, QUERY_ROWS, THREADS>(shared, token_at(x.q, at.b, at.first_row, at.h, x.head_dim),
                                              x.q.token_stride, x.pair.queries - at.first_row, pieces, thread);
            unsigned char *buffer = shared + buffer_of<D>(tile);
            tile_load<D, N, THREADS>(buffer, k, x.k.token_stride, left, pieces, thread);
            tile_load<D, N, THREADS>(buffer + K_BYTES, v, x.v.token_stride, left, pieces, thread);
            cp_async_commit();
        }
        next_k = copy.own(k, x.k.token_stride) - x.k_step;
        next_v = copy.own(v, x.v.token_stride) - x.v_step;
    }
    for (; tile >= first_tile; tile--) {
        // The barrier also says that all warps have done with the other buffer, which the next tile goes to.
        cp_async_wait<0>();
        __syncthreads();
        if (tile > first_tile) {
            unsigned char *other = shared + buffer_of<D>(tile - 1);
            tile_load_backwards<D, N, THREADS>(other, next_k, x.k_step, copy);
            tile_load_backwards<D, N, THREADS>(other + K_BYTES, next_v, x.v_step, copy);
            cp_async_commit();
        }
        const int tile_key = tile * N, past = tile_key + N;
        const KeysSeen &seen = parked->seen[threadIdx.x / WARP];
        if (tile_key >= seen.end || past <= seen.begin) continue; // no row of this warp sees any
        const Tile<D> k = {shared, buffer_of<D>(tile)}, v = {shared, k.place + K_BYTES};
        Accumulator<M, N> s;
        clear(s);
        mma_ABt(s, q, k, lane);
        if (tile_key < seen.all_begin || past > seen.all_end)
            mask(s, x.pair, parked->at.first_row + warp_row(), parked->first_key + warp_row(), tile_key, lane);
        follow_maximum(rows, s, x.scale_log2);
        weights(rows, s, x.scale_log2);
        mma_AB(rows.out, s, v, lane);
    }

    if (WHOLE) store_out(x, parked->at, rows, shared + q.place, lane);
    else merge_state(x, parked->at, rows, lane);
}

// ---- launches -------------------------------------------------------------------------------------------------------

template <int D, bool WHOLE> void launch_forward(Device *device, Forward x) {
    x.k_step = Copy<D, THREADS>::PER_STEP * x.k.token_stride;
    x.v_step = Copy<D, THREADS>::PER_STEP * x.v.token_stride;
    const int64_t blocks = (int64_t)x.query_blocks * x.rows_of_heads;
    if (blocks > INT32_MAX) cuda_give_up(__FILE__, __LINE__, "attention over %lld blocks", (long long)blocks);
    launch((forward_kernel<D, WHOLE>), (unsigned)blocks, THREADS, (shared_bytes<D>()), stream_of(device), x);
}

template <bool WHOLE> void forward(Device *device, const AttentionShape *shape, Forward x) {
    if (x.pair.queries == 0 || shape->batch == 0) return;
    x.query_blocks = ceil_div(x.pair.queries, (int)QUERY_ROWS);
    x.rows_of_heads = (int)(shape->batch * shape->heads);
    x.heads = (int)shape->heads;
    x.group = (int)(shape->heads / shape->kv_heads);
    x.head_dim = (int)shape->head_dim;
    x.scale_log2 = shape->scale * LOG2_E;
    switch (kernel_head_dim(shape->head_dim)) {
    case 32: launch_forward<32, WHOLE>(device, x); break;
    case 64: launch_forward<64, WHOLE>(device, x); break;
    case 96: launch_forward<96, WHOLE>(device, x); break;
    case 128: launch_forward<128, WHOLE>(device, x); break;
    default: cuda_give_up(__FILE__, __LINE__, "no attention kernel for heads of %d", x.head_dim);
    }
}

Forward forward_of(const QueryForward *query, const KeyValue *kv) {
    Forward x = {};
    check_tokens(query->q, "q");
    check_tokens(kv->k, "k");
    check_tokens(kv->v, "v");
    x.q = query->q;
    x.k = kv->k;
    x.v = kv->v;
    x.pair = pair_of(query->chunk, kv->chunk, &query->visibility);
    return x;
}

} // namespace

void cuda_forward_pair(Device *device, const AttentionShape *shape, const QueryForward *query, const KeyValue *kv) {
#ifdef HOPPER
    if (hopper::serves(device, shape, query->chunk.length, kv->chunk.length))
        return hopper_forward_pair(device, shape, query, kv);
#endif
    Forward x = forward_of(query, kv);
    if (!sees_any(x.pair)) return;
    check_floats(query->accumulator, 8, "accumulator");
    x.accumulator = query->accumulator;
    x.max = query->max;
    x.sum = query->sum;
    forward<false>(device, shape, x);
}

void cuda_forward_whole(Device *device, const AttentionShape *shape, const QueryForward *query, const KeyValue *kv,
                        TokenView out, RowView log_sum_exp) {
#ifdef HOPPER
    if (hopper::serves(device, shape, query->chunk.length, kv->chunk.length))
        return hopper_forward_whole(device, shape, query, kv, out, log_sum_exp);
#endif
    Forward x = forward_of(query, kv);
    check_tokens(out, "out");
    x.out = out;
    x.log_sum_exp = log_sum_exp;
    forward<true>(device, shape, x);
}
