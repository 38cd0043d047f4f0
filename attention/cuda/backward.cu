// The backward pass of one (query chunk, key/value chunk) pair, on tensor cores (Dao, "FlashAttention-2", 2023,
// algorithm 2, but for the order of its loops). With p_ij = exp(s_ij - log_sum_exp_i), which is the softmax itself:
//
//   dv_j += sum_i p_ij do_i      ds_ij = p_ij (do_i.v_j - delta_i)
//   dq_i += scale sum_j ds_ij k_j      dk_j += scale sum_i ds_ij q_i
//
// dk and dv are sums over queries, dq is one over keys, so no one block can own all three. Adding dq up with atomics
// would sum it in another order every time. Here two kernels each own what they sum: one gives a block 128 keys and
// walks over the queries that see them, the other gives a block 128 queries and walks over the keys they see. P and dS
// are worked out in both: 7 products in place of 5 is the price of the same bits every time.
//
// A block's own rows are split over its warps, 16 M rows each; each step of the walk brings STEP rows of the other
// side, the next ones on their way while these are worked on. Every product's result is made where the next one wants
// it: the scores of own rows x STEP, packed to bf16, are the A operand of the product that sums over the STEP rows. So
// P and dS never leave registers; where keys are the own rows, it is S transposed that is made.
//
//   own rows         step                scores         summed over the step
//   keys  (K, V)     queries (Q, dO)     K Q^T, V dO^T  dV += P^T dO, dK += dS^T Q
//   queries (Q, dO)  keys (K, V)         Q K^T, dO V^T  dQ += dS K
//
// On compute capability 9.0 hopper/backward.cu serves heads of 64 and 128 in place of this.
//
// What is not a number spreads to every row that sees it. A probability is at most 1, so nothing overflows; where a key
// is not seen the exponential may be infinite, and 0 takes its place.
#include <math.h>

#include "attention/cuda/fragment.h"
#include "attention/cuda/kernels.h"
#include "attention/cuda/pair.h"
#include "layers/cuda/context.h"
#ifdef HOPPER
#include "attention/cuda/hopper/hopper.h"
#endif

namespace {

// M = 2: each fragment read from shared memory serves two products; but the sums of 32 rows (32 D values, twice for
// keys) fit into a warp's registers up to D = 64 only. Shared memory is 768 D + 512 bytes: two blocks fit a
// multiprocessor at D = 64, one at D = 128, also where it has no more than 100 KiB (sm_89, sm_120).
template <int D> struct Sizes {
    static constexpr int M = D <= 64 ? 2 : 1;
    static constexpr int WARPS = D <= 64 ? 4 : 8, THREADS = WARPS * WARP;
    static constexpr int BLOCKS = D <= 64 ? 2 : 1; // wanted on one multiprocessor at once
    static constexpr int WARP_ROWS = M * 16, ROWS = WARPS * WARP_ROWS, STEP = 32;
    static constexpr int PART = D == 64 ? 16 : 32; // of a step's queries, whose P and dS are in registers at once
};

struct Backward {
    QueryBackward query;
    KeyValue kv;
    TokenView d_q, d_k, d_v; // where the pair is the whole: in place of the sums in query and kv
    Pair pair;
    int heads, kv_heads, group; // group: query heads that share a key/value head
    int rows_of_heads;          // blocks of one tile: B x KV, or B x H
    int head_dim;               // the real one, at most the kernel's D
    float scale;
};

template <int D> struct Tiles {
    unsigned char own[2][tile_bytes<D>(Sizes<D>::ROWS)];     // K and V, or Q and dO
    unsigned char step[2][2][tile_bytes<D>(Sizes<D>::STEP)]; // two stages of Q and dO, or of K and V
    static constexpr int STAGE = 2 * tile_bytes<D>(Sizes<D>::STEP);
    union {
        struct { // where queries are the step: two stages of their numbers
            float log_sum_exp[2][Sizes<D>::STEP], delta[2][Sizes<D>::STEP]; // log_sum_exp: base 2
            int first_key[2][Sizes<D>::STEP];                               // that each sees, from the block's first
        } step_row;
        struct {                            // where queries are the own rows
            KeysSeen seen[Sizes<D>::WARPS]; // by those of each warp
            int first_key[Sizes<D>::ROWS];  // that each sees
        } own_row;
    };
};

// Gradients of the warp's own rows, and P or dS, of these rows and N of a step.
template <int D> using Gradient = Accumulator<Sizes<D>::M, D>;
template <int D, int N> using Scores = Accumulator<Sizes<D>::M, N>;

template <int D> __device__ inline int warp_row() { return (int)threadIdx.x / WARP * Sizes<D>::WARP_ROWS; }

// Starts copying ROWS rows from row t on, of which `rows` exist, of each of two tensors of a head.
template <int D, int ROWS>
__device__ inline void load_tiles(unsigned char (*tiles)[tile_bytes<D>(ROWS)], TokenView first, TokenView second, int b,
                                  int t, int h, int rows, int head_dim) {
    constexpr int THREADS = Sizes<D>::THREADS;
    const int pieces = head_dim / PACKET;
    tile_load<D, ROWS, THREADS>(tiles[0], token_at(first, b, t, h, head_dim), first.token_stride, rows, pieces,
                                threadIdx.x);
    tile_load<D, ROWS, THREADS>(tiles[1], token_at(second, b, t, h, head_dim), second.token_stride, rows, pieces,
                                threadIdx.x);
    cp_async_commit();
}

// For exp2_fast. A row that saw no key at all has -inf, and no part in anything.
__device__ inline float base_2(float log_sum_exp) { return log_sum_exp == -INFINITY ? INFINITY : log_sum_exp * LOG2_E; }

// This warp's rows of a gradient, of the block's rows from t on, of which `rows` exist: factor * d is added to the sums
// in memory, or written in storage type by way of the block's own tile that is not needed any more.
template <int D>
__device__ inline void add_gradient(FloatView to, int b, int t, int h, int head_dim, int rows, float factor,
                                    const Gradient<D> &d, const Lane &lane) {
    const int first = warp_row<D>();
    add_rows(float_at(to, b, t + first, h, head_dim), to.token_stride, rows - first, head_dim, factor, d, lane);
}
template <int D>
__device__ inline void store_gradient(TokenView to, int b, int t, int h, int head_dim, int rows, float factor,
                                      const Gradient<D> &d, unsigned char *tile, const Lane &lane) {
    const int first = warp_row<D>();
    store_rows(token_at(to, b, t + first, h, head_dim), to.token_stride, rows - first, head_dim,
               rows_of<Sizes<D>::M>(factor), d, tile + tile_bytes<D>(first), lane);
}

// Where nothing was seen no step has waited for the block's own tiles, which the results are to take the place of.
__device__ inline void wait_for_own_tiles() {
    cp_async_wait<0>();
    __syncthreads();
}

// ---- keys and values ------------------------------------------------------------------------------------------------

// What PART queries of a step, from its query `part` on, give to this warp's keys. MASKED: not every one of these
// queries sees all of these keys; query i (from part's first) sees key j (from the block's first) if j <= i + ahead,
// and if j is not before the query's first key.
template <int D, bool MASKED>
__device__ inline void step_of_keys(Gradient<D> &d_k, Gradient<D> &d_v, const Tiles<D> *tiles, int stage, int part,
                                    float scale_log2, int ahead, const Lane &lane) {
    constexpr int PART = Sizes<D>::PART;
    const int own = tile_bytes<D>(warp_row<D>()), place = stage * Tiles<D>::STAGE + tile_bytes<D>(part);
    const Tile<D> k = {tiles->own[0], own}, v = {tiles->own[1], own};
    const Tile<D> q = {tiles->step[0][0], place}, d_out = {tiles->step[0][1], place};
    const int hidden = warp_row<D>() + lane.row - ahead - lane.column; // so many columns do not see the first row

    Scores<D, PART> p;
    clear(p);
    mma_ABt(p, k, q, lane); // K Q^T
    const ColumnValues<float, PART> log_sum_exp = load_columns<PART>(tiles->step_row.log_sum_exp[stage] + part, lane);
    each(p, [&](float &x, int, int query) { x = exp2_fast(fmaf(x, scale_log2, -log_sum_exp[query])); });
    if (MASKED) {
        const ColumnValues<int, PART> first_seen = load_columns<PART>(tiles->step_row.first_key[stage] + part, lane);
        each(p, [&](float &x, int key, int query) {
            if (query < hidden + key || key + warp_row<D>() + lane.row < first_seen[query]) x = 0;
        });
    }
    mma_AB(d_v, p, d_out, lane); // P^T dO

    Scores<D, PART> d_s;
    clear(d_s);
    mma_ABt(d_s, v, d_out, lane); // V dO^T
    const ColumnValues<float, PART> delta = load_columns<PART>(tiles->step_row.delta[stage] + part, lane);
    each(d_s, [&](float &x, int key, int query) { x = p(key, query) * (x - delta[query]); });
    mma_AB(d_k, d_s, q, lane); // dS^T Q
}

// The walk of a block of keys: over the query heads that read this key/value head, one after the other, and in each
// over the queries from the first that sees a key of these to the last.
struct QueryWalk {
    int first, past, head, query; // query: first of the step at hand
    int left;                     // steps, with this one
};

template <int D>
__device__ inline void begin_queries(const Backward &x, Tiles<D> *tiles, int stage, int b, const QueryWalk &walk) {
    load_tiles<D, Sizes<D>::STEP>(tiles->step[stage], x.query.q, x.query.d_out, b, walk.query, walk.head,
                                  x.pair.queries - walk.query, x.head_dim);
}

// Each of the first 3 STEP threads has one number of one query of a step (its bits), which is loaded while the step
// before is worked on and stored after it. Queries that do not exist weigh 0.
template <int D> __device__ inline int load_step_row(const Backward &x, int b, const QueryWalk &walk, int block_key) {
    constexpr int STEP = Sizes<D>::STEP;
    const int i = walk.query + (int)threadIdx.x % STEP, kind = (int)threadIdx.x / STEP;
    const bool here = i < x.pair.queries;
    if (kind == 0) return __float_as_int(here ? base_2(*row_at(x.query.log_sum_exp, b, walk.head, i)) : INFINITY);
    if (kind == 1) return __float_as_int(here ? *row_at(x.query.delta, b, walk.head, i) : 0);
    return kind == 2 ? first_key(x.pair, b, smaller_of(i, x.pair.queries - 1)) - block_key : 0;
}
template <int D> __device__ inline void store_step_row(Tiles<D> *tiles, int stage, int bits) {
    constexpr int STEP = Sizes<D>::STEP;
    const int row = threadIdx.x % STEP, kind = threadIdx.x / STEP;
    if (kind == 0) tiles->step_row.log_sum_exp[stage][row] = __int_as_float(bits);
    else if (kind == 1) tiles->step_row.delta[stage][row] = __int_as_float(bits);
    else if (kind == 2) tiles->step_row.first_key[stage][row] = bits;
}

// One block per 128 keys and (batch, key/value head); the earliest keys, which most queries see, come first. WHOLE: d_k
// and d_v are written; otherwise they are added to the sums in memory.
template <int D, bool WHOLE>
__global__ void __launch_bounds__(Sizes<D>::THREADS, Sizes<D>::BLOCKS) backward_keys_kernel(const Backward x) {
    constexpr int ROWS = Sizes<D>::ROWS, WARP_ROWS = Sizes<D>::WARP_ROWS;
    constexpr int STEP = Sizes<D>::STEP, PART = Sizes<D>::PART;
    DYNAMIC_SHARED(Tiles<D>, tiles);
    const int head_row = (int)blockIdx.x % x.rows_of_heads, block_key = (int)blockIdx.x / x.rows_of_heads * ROWS;
    const int b = head_row / x.kv_heads, kv_head = head_row % x.kv_heads, keys = x.pair.keys - block_key;
    const Lane lane = this_lane<D>();

    QueryWalk walk;
    walk.first = walk.query = first_query(x.pair, block_key);
    walk.past = past_query(x.pair, b, block_key + smaller_of(keys, ROWS) - 1);
    walk.head = kv_head * x.group;
    walk.left = x.group * ceil_div(larger_of(walk.past - walk.first, 0), STEP);
    if (!WHOLE && walk.left == 0) return;

    // Also where no step follows: what is in no group, nothing waits for.
    load_tiles<D, ROWS>(tiles->own, x.kv.k, x.kv.v, b, block_key, kv_head, keys, x.head_dim);
    if (!WHOLE || walk.left > 0) {
        begin_queries(x, tiles, walk.left % 2, b, walk);
        store_step_row(tiles, walk.left % 2, load_step_row<D>(x, b, walk, block_key));
    }
    Gradient<D> d_k, d_v;
    clear(d_k);
    clear(d_v);
    for (; walk.left > 0; walk.left--) {
        const int stage = walk.left % 2, step_ahead = x.pair.ahead + walk.query - block_key;
        int next_row = 0;
        cp_async_wait<0>();
        __syncthreads(); // this stage is here, and nobody works on the other one any more
        if (walk.left > 1) {
            walk.query += STEP;
            if (walk.query >= walk.past) walk.query = walk.first, walk.head++;
            begin_queries(x, tiles, 1 - stage, b, walk);
            next_row = load_step_row<D>(x, b, walk, block_key);
        }
#pragma unroll 1 // else all parts' loads are begun at once, for which there are no registers
        for (int part = 0; part < STEP; part += PART) {
            // The warp's keys are from `first` to `last`; of the part's queries the first sees those up to and with
            // `ahead`.
            const int ahead = step_ahead + part, first = warp_row<D>(), last = first + WARP_ROWS - 1;
            const int *first_seen = tiles->step_row.first_key[stage] + part;
            if (last <= ahead && first >= first_seen[PART - 1])
                step_of_keys<D, false>(d_k, d_v, tiles, stage, part, x.scale * LOG2_E, ahead, lane);
            else if (first <= ahead + PART - 1 && last >= first_seen[0])
                step_of_keys<D, true>(d_k, d_v, tiles, stage, part, x.scale * LOG2_E, ahead, lane);
        }
        store_step_row(tiles, 1 - stage, next_row);
    }
    if (WHOLE) {
        wait_for_own_tiles();
        store_gradient<D>(x.d_k, b, block_key, kv_head, x.head_dim, keys, x.scale, d_k, tiles->own[0], lane);
        store_gradient<D>(x.d_v, b, block_key, kv_head, x.head_dim, keys, 1, d_v, tiles->own[1], lane);
    } else {
        add_gradient<D>(x.kv.d_k, b, block_key, kv_head, x.head_dim, keys, x.scale, d_k, lane);
        add_gradient<D>(x.kv.d_v, b, block_key, kv_head, x.head_dim, keys, 1, d_v, lane);
    }
}

// ---- queries --------------------------------------------------------------------------------------------------------

// What a lane holds of its warp's own queries, from the first step to the last. For d_out there are no registers left.
template <int D> struct OwnQueries {
    Fragment<Sizes<D>::M> q[D / 16];
    RowValues<Sizes<D>::M> log_sum_exp, delta;
};

// Of `queries` queries from first_query on: the block's, whose tiles are here. Those that do not exist weigh 0.
template <int D>
__device__ inline void load_own_queries(OwnQueries<D> &own, const Backward &x, const Tiles<D> *tiles, int b, int head,
                                        int first_query, int queries, const Lane &lane) {
    const int first = warp_row<D>();
    each_row<Sizes<D>::M>([&](int row) {
        const int i = first + row + lane.row;
        own.log_sum_exp[row] = i < queries ? base_2(*row_at(x.query.log_sum_exp, b, head, first_query + i)) : INFINITY;
        own.delta[row] = i < queries ? *row_at(x.query.delta, b, head, first_query + i) : 0;
    });
    wait_for_own_tiles();
#pragma unroll
    for (int k = 0; k < D / 16; k++) load_fragment(own.q[k], Tile<D>{tiles->own[0], tile_bytes<D>(first)}, k, lane);
}

// What STEP keys, from `step_key` on, give to this warp's queries, of the block's from `first_query` on. MASKED: some
// of these queries do not see all of these keys.
template <int D, bool MASKED>
__device__ inline void step_of_queries(Gradient<D> &d_q, const OwnQueries<D> &own, const Tiles<D> *tiles, int stage,
                                       float scale_log2, const Pair &pair, int first_query, int step_key,
                                       const Lane &lane) {
    constexpr int STEP = Sizes<D>::STEP;
    const int place = stage * Tiles<D>::STAGE, first = warp_row<D>();
    const Tile<D> k = {tiles->step[0][0], place}, v = {tiles->step[0][1], place};
    const Tile<D> d_out = {tiles->own[1], tile_bytes<D>(first)};

    Scores<D, STEP> s, d_s;
    clear(s);
    clear(d_s);
    mma_ABt(s, own.q, k, lane);   // Q K^T
    mma_ABt(d_s, d_out, v, lane); // dO V^T
    each_row<Sizes<D>::M>([&](int row) {
        const int i = first + row + lane.row, key_here = step_key + lane.column;
        const int before = MASKED ? tiles->own_row.first_key[i] - key_here : 0;
        const int past = MASKED ? past_key(pair, first_query + i) - key_here : 0;
        each_in_row(d_s, row, [&](float &x, int key) {
            const float p = exp2_fast(fmaf(s(row, key), scale_log2, -own.log_sum_exp[row]));
            x = p * (x - own.delta[row]);
            if (MASKED && (key < before || key >= past)) x = 0;
        });
    });
    mma_AB(d_q, d_s, k, lane); // dS K
}

// Puts aside which keys the block's own queries see, of which there are `queries`; a barrier must follow.
template <int D>
__device__ inline void note_keys_seen(Tiles<D> *tiles, const Pair &pair, int b, int first_query, int queries) {
    constexpr int WARP_ROWS = Sizes<D>::WARP_ROWS;
    const int thread = threadIdx.x, last = first_query + queries - 1;
    if (thread < Sizes<D>::WARPS) {
        const int first = first_query + thread * WARP_ROWS;
        tiles->own_row.seen[thread] =
            keys_seen(pair, b, smaller_of(first, last), smaller_of(first + WARP_ROWS - 1, last));
    }
    if (thread < Sizes<D>::ROWS)
        tiles->own_row.first_key[thread] = first_key(pair, b, smaller_of(first_query + thread, last));
}

template <int D>
__device__ inline void begin_keys(const Backward &x, Tiles<D> *tiles, int stage, int b, int kv_head, int step_key) {
    load_tiles<D, Sizes<D>::STEP>(tiles->step[stage], x.kv.k, x.kv.v, b, step_key, kv_head, x.pair.keys - step_key,
                                  x.head_dim);
}

// One block per 128 queries and (batch, head); the latest queries, which see most keys, come first. WHOLE: as above. Of
// the smallest heads three blocks fit a multiprocessor.
template <int D, bool WHOLE>
__global__ void __launch_bounds__(Sizes<D>::THREADS, D == 32 ? 3 : Sizes<D>::BLOCKS)
    backward_queries_kernel(const Backward x) {
    constexpr int ROWS = Sizes<D>::ROWS, STEP = Sizes<D>::STEP;
    DYNAMIC_SHARED(Tiles<D>, tiles);
    const int head_row = (int)blockIdx.x % x.rows_of_heads, b = head_row / x.heads, head = head_row % x.heads;
    const int kv_head = head / x.group;
    const int first_query = (ceil_div(x.pair.queries, ROWS) - 1 - (int)blockIdx.x / x.rows_of_heads) * ROWS;
    const int queries = smaller_of(x.pair.queries - first_query, ROWS);
    const KeysSeen block_sees = keys_seen(x.pair, b, first_query, first_query + queries - 1);
    const int first_step = block_sees.begin / STEP;
    const int past_step = block_sees.begin < block_sees.end ? ceil_div(block_sees.end, STEP) : first_step;
    if (!WHOLE && first_step == past_step) return;

    load_tiles<D, ROWS>(tiles->own, x.query.q, x.query.d_out, b, first_query, head, queries, x.head_dim);
    if (!WHOLE || first_step < past_step) begin_keys(x, tiles, first_step % 2, b, kv_head, first_step * STEP);
    note_keys_seen(tiles, x.pair, b, first_query, queries);
    const Lane lane = this_lane<D>();
    OwnQueries<D> own;
    load_own_queries(own, x, tiles, b, head, first_query, queries, lane);

    Gradient<D> d_q;
    clear(d_q);
    for (int step = first_step; step < past_step; step++) {
        const int stage = step % 2, step_key = step * STEP, past = step_key + STEP;
        cp_async_wait<0>();
        __syncthreads(); // this stage is here, and nobody works on the other one any more
        if (step + 1 < past_step) begin_keys(x, tiles, 1 - stage, b, kv_head, past);
        const KeysSeen &seen = tiles->own_row.seen[threadIdx.x / WARP];
        if (step_key >= seen.all_begin && past <= seen.all_end)
            step_of_queries<D, false>(d_q, own, tiles, stage, x.scale * LOG2_E, x.pair, first_query, step_key, lane);
        else if (step_key < seen.end && past > seen.begin)
            step_of_queries<D, true>(d_q, own, tiles, stage, x.scale * LOG2_E, x.pair, first_query, step_key, lane);
    }
    if (WHOLE) store_gradient<D>(x.d_q, b, first_query, head, x.head_dim, queries, x.scale, d_q, tiles->own[0], lane);
    else add_gradient<D>(x.query.d_q, b, first_query, head, x.head_dim, queries, x.scale, d_q, lane);
}

// ---- launches -------------------------------------------------------------------------------------------------------

unsigned blocks_for(int64_t tiles, int64_t heads) {
    if (tiles * heads > INT32_MAX) {
        cuda_give_up(__FILE__, __LINE__, "attention over %lld blocks", (long long)(tiles * heads));
    }
    return (unsigned)(tiles * heads);
}

template <int D, bool WHOLE> void launch_backward(Device *device, const AttentionShape *shape, Backward x) {
    constexpr int ROWS = Sizes<D>::ROWS, THREADS = Sizes<D>::THREADS;
    // Keys after all queries are seen by none: there is nothing to add to them, but zeros to write.
    const int64_t keys = WHOLE ? x.pair.keys : past_key(x.pair, x.pair.queries - 1), queries = x.pair.queries;
    x.rows_of_heads = (int)(shape->batch * shape->kv_heads);
    if (keys > 0) {
        launch((backward_keys_kernel<D, WHOLE>), blocks_for(ceil_div<int64_t>(keys, ROWS), x.rows_of_heads), THREADS,
               sizeof(Tiles<D>), stream_of(device), x);
    }
    x.rows_of_heads = (int)(shape->batch * shape->heads);
    if (queries > 0) {
        launch((backward_queries_kernel<D, WHOLE>), blocks_for(ceil_div<int64_t>(queries, ROWS), x.rows_of_heads),
               THREADS, sizeof(Tiles<D>), stream_of(device), x);
    }
}

template <bool WHOLE> void backward(Device *device, const AttentionShape *shape, Backward x) {
    if (shape->batch * shape->heads == 0) return;
    x.heads = (int)shape->heads;
    x.kv_heads = (int)shape->kv_heads;
    x.group = x.heads / x.kv_heads;
    x.head_dim = (int)shape->head_dim;
    x.scale = shape->scale;
    switch (kernel_head_dim(shape->head_dim)) {
    case 32: launch_backward<32, WHOLE>(device, shape, x); break;
    case 64: launch_backward<64, WHOLE>(device, shape, x); break;
    case 96: launch_backward<96, WHOLE>(device, shape, x); break;
    case 128: launch_backward<128, WHOLE>(device, shape, x); break;
    default: cuda_give_up(__FILE__, __LINE__, "no attention kernel for heads of %d", x.head_dim);
    }
}

Backward backward_of(const QueryBackward *query, const KeyValue *kv) {
    Backward x = {};
    x.query = *query;
    x.kv = *kv;
    x.pair = pair_of(query->chunk, kv->chunk, &query->visibility);
    check_tokens(query->q, "q");
    check_tokens(query->d_out, "d_out");
    check_tokens(kv->k, "k");
    check_tokens(kv->v, "v");
    return x;
}

} // namespace

void cuda_backward_pair(Device *device, const AttentionShape *shape, const QueryBackward *query, const KeyValue *kv) {
    const Backward x = backward_of(query, kv);
    if (!sees_any(x.pair)) return;
    check_floats(query->d_q, 8, "d_q");
    check_floats(kv->d_k, 8, "d_k");
    check_floats(kv->d_v, 8, "d_v");
#ifdef HOPPER
    if (hopper::serves(device, shape, query->chunk.length, kv->chunk.length))
        return hopper_backward_pair(device, shape, query, kv);
#endif
    backward<false>(device, shape, x);
}

void cuda_backward_whole(Device *device, const AttentionShape *shape, const QueryBackward *query, const KeyValue *kv,
                         TokenView d_q, TokenView d_k, TokenView d_v) {
    Backward x = backward_of(query, kv);
    x.d_q = d_q;
    x.d_k = d_k;
    x.d_v = d_v;
    check_tokens(d_q, "d_q");
    check_tokens(d_k, "d_k");
    check_tokens(d_v, "d_v");
#ifdef HOPPER
    if (hopper::serves(device, shape, query->chunk.length, kv->chunk.length))
        return hopper_backward_whole(device, shape, query, kv, d_q, d_k, d_v);
#endif
    backward<true>(device, shape, x);
}
