// The backward pass of one (query chunk, key/value chunk) pair on Hopper, for heads of 64 and 128: the formulas of
// ../backward.cu with each of the five products made once, by wgmma (Shah et al., "FlashAttention-3", 2024), and the
// same bits every time.
//
// A block owns 128 keys of a head. dK and dV, sums over queries, stay in its registers while it walks over the queries
// that see these keys. dQ is a sum over blocks, in fp32 in memory, where the copy engine adds each block's terms; the
// blocks take turns at each tile of queries, the one with the earliest keys first (query_sums.h). A counter for each
// tile says whose turn it is. So that hardly anybody waits,
//   - all blocks walk from the last query that sees their keys down to the first, and
//   - they start in the order of their keys: those of the earliest keys first.
// A block then starts later than those before it in the row, and all are about as fast. Where a window or a document
// ends what its keys are seen by, it begins with later queries than the one before it, which is ahead by as many tiles.
//
//   time ->    keys   0 - 127    q7 q6 q5 q4 q3 q2 q1 q0       a diagonal: where the terms of one tile of queries
//              keys 128 - 255       q7 q6 q5 q4 q3 q2 q1       are added, in the order of the keys
//              keys 256 - 383          q7 q6 q5 q4 q3 q2
//
// No deadlock, in whatever order a GPU starts blocks, and whatever tiles each of them visits: what a block works on
// goes by the ticket it draws when it starts, and it waits for nothing but additions of the block before it in its row,
// whose ticket is smaller. Who has a ticket is at work or done, and so are all with smaller ones; of those at work, the
// one with the smallest waits for nobody.
//
// Who does what. Warps 0 to 3 and 4 to 7, two warpgroups, own 64 keys each and do the arithmetic. Warp 8 has the copy
// engine bring tiles, warp 11 brings each query's numbers, warps 9 and 10 have the terms of dQ added, every other tile
// each. S and P are made transposed (rows are keys), so that they can go on from registers:
//
//   S^T = K Q^T     dP^T = V dO^T     P^T = 2^(scale S^T - log_sum_exp)     dS^T = P^T (dP^T - delta)
//   dV += P^T dO    dK += dS^T Q      P^T and dS^T, rounded, are the A operand
//   dQ = dS K                         dS of both warpgroups by way of shared memory; each makes 64 x 64 values of dQ
//
// The order of a step keeps the tensor cores busy while the threads work:
//
//   threads        dS(n)    store dS(n)                       store dQ(n-1)         P(n+1)
//   tensor cores         dV(n)         dQ(n-1)      dK(n)              S(n+1)   dP(n+1)
//
// What is not a number spreads to every row that sees it, and may spread in the rest of its tile.
//
// What the assembler has to make of this, or it is slow (scripts/check-sass; ptxas -v): every product is HGMMA, and no
// note C7510 to C7519 says that they are done one by one; no spills and no local memory in any instance, of 240
// registers for those who work (nearly all are taken: what is carried from step to step costs one that is not there);
// helpers use none beyond R23. Waits that have to stay where they are for that are marked below.
#include <math.h>

#include "attention/cuda/hopper/backward.h"
#include "attention/cuda/hopper/products.h"
#include "attention/cuda/hopper/tensor_maps.h"

namespace hopper::backward {

// ---- helpers --------------------------------------------------------------------------------------------------------

// One lane.
template <int D> __device__ inline void bring_tiles(const Backward &x, const Item &item, Shared<D> *s) {
    constexpr int QUERIES = queries_of_tile(D), COLUMNS = D / 64;
    mbarrier_arrive_expect_tx(&s->kv_full, sizeof s->k + sizeof s->v);
    tma_load(s->k, &x.k, &s->kv_full, 0, item.key_block * KEYS, item.kv_head * COLUMNS, item.b);
    tma_load(s->v, &x.v, &s->kv_full, 0, item.key_block * KEYS, item.kv_head * COLUMNS, item.b);
    Walk walk(x, item);
    for (int n = 0; n < item.steps; n++, walk.next(item)) {
        const int i = walk.slot;
        mbarrier_wait(&s->q_gate[i].empty, walk.parity ^ 1);
        mbarrier_arrive_expect_tx(&s->q_gate[i].full, sizeof s->q[i]);
        tma_load(s->q[i], &x.q, &s->q_gate[i].full, 0, walk.tile * QUERIES, walk.head * COLUMNS, item.b);
        mbarrier_wait(&s->d_out_gate[i].empty, walk.parity ^ 1);
        mbarrier_arrive_expect_tx(&s->d_out_gate[i].full, sizeof s->d_out[i]);
        tma_load(s->d_out[i], &x.d_out, &s->d_out_gate[i].full, 0, walk.tile * QUERIES, walk.head * COLUMNS, item.b);
    }
}

// For exp2_fast. A query that saw no key at all has -inf, and no part in anything.
__device__ inline float base_2(float log_sum_exp) { return log_sum_exp == -INFINITY ? INFINITY : log_sum_exp * LOG2_E; }

// A warp; with dO. Queries that do not exist weigh 0.
template <int D, bool LIMITED> __device__ inline void bring_numbers(const Backward &x, const Item &item, Shared<D> *s) {
    constexpr int QUERIES = queries_of_tile(D), EACH = QUERIES / WARP;
    const int lane = threadIdx.x % WARP;
    Walk walk(x, item);
    for (int n = 0; n < item.steps; n++, walk.next(item)) {
        const float *from[2] = {row_at(x.log_sum_exp, item.b, walk.head, 0), row_at(x.delta, item.b, walk.head, 0)};
        float log_sum_exp[EACH], delta[EACH];
        int first[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int query = walk.tile * QUERIES + i * WARP + lane;
            log_sum_exp[i] = query < x.pair.queries ? from[0][query] : -INFINITY;
            delta[i] = query < x.pair.queries ? from[1][query] : 0;
            if (LIMITED) first[i] = first_key(x.pair, item.b, smaller_of(query, x.pair.queries - 1));
        }
        const int slot = walk.slot;
        mbarrier_wait(&s->d_out_gate[slot].empty, walk.parity ^ 1);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            s->log_sum_exp[slot][i * WARP + lane] = base_2(log_sum_exp[i]);
            s->delta[slot][i * WARP + lane] = delta[i];
            if (!LIMITED) continue;
            const int in_block = first[i] - item.key_block * KEYS;
            s->first_key[slot][i * WARP + lane] = (uint8_t)smaller_of(larger_of(in_block, 0), KEYS);
        }
        mbarrier_arrive(&s->d_out_gate[slot].full);
    }
}

// One lane for each of the two places. The first block's terms are the first sums.
template <int D, bool LIMITED>
__device__ inline void add_terms(const Backward &x, const Item &item, Shared<D> *s, int slot) {
    Walk walk(x, item);
    for (int n = 0; n < item.steps; n++, walk.next(item)) {
        if (walk.slot != slot) continue;
        const int64_t place = place_of(x.sums, item.b, walk.head, walk.tile);
        float *sum = x.sums.sum + place * 2 * TERMS;
        const bool first = item.key_block <= first_block<D, LIMITED>(x.pair, item.b, walk.tile);
        mbarrier_wait(&s->d_q_gate[slot].full, walk.parity);
        if (!first) wait_acquire(x.sums.turn + place, item.key_block);
        if (!first) bulk_reduce_add(sum, s->d_q[slot][0], sizeof s->d_q[slot]);
        else bulk_store(sum, s->d_q[slot][0], sizeof s->d_q[slot]);
        bulk_commit();
        bulk_wait_read();
        mbarrier_arrive(&s->d_q_gate[slot].empty);
        bulk_wait();
        store_release(x.sums.turn + place, item.key_block + 1);
    }
}

// ---- the two warpgroups that work -----------------------------------------------------------------------------------

template <int D> struct Worker {
    const Backward &x;
    const Item &item;
    Shared<D> *s;
    Lane lane;
    int w;               // its number
    int first_key, keys; // the first of its keys, and how many there are from it on
    float scale_log2;
};

// P of the tile at `slot` from S, then dP is here. hidden: how many of its queries do not see this warpgroup's first
// key.
template <bool LIMITED, int D, int N>
__device__ inline void finish_scores(Product<N> &p, EarlyNumbers &early, const Worker<D> &own, int slot, int hidden) {
    const Lane &lane = own.lane;
    Shared<D> *s = own.s;
    early = load_columns<EARLY>(s->log_sum_exp[slot], lane);
    wgmma_wait<1>(); // S
    exponentiate(p, early, s->log_sum_exp[slot], own.scale_log2, lane);
    hide_later_keys(p, hidden, own.keys, lane);
    if (LIMITED) hide_earlier_keys(p, s->first_key[slot], own.w * GROUP_ROWS, lane);
    early = load_columns<EARLY>(s->delta[slot], lane);
    wgmma_wait<0>(); // dP
}

// This warpgroup's part of dQ: of all columns the queries 64 w.., or (D = 128) of all queries the columns 64 w...
template <int D> __device__ inline void multiply_terms(Product<64> &d_q, const Shared<D> *s, int slot, int w) {
    multiply_AtB(d_q, s->d_s[slot][D == 64 ? w : 0], s->k[D == 64 ? 0 : w]);
}

// dK, dV and the terms of dQ, over all tiles; there is at least one.
template <bool LIMITED, int D>
__device__ inline void walk_queries(Product<D> &d_k, Product<D> &d_v, const Worker<D> &own) {
    constexpr int QUERIES = queries_of_tile(D);
    const Item &item = own.item;
    const Lane &lane = own.lane;
    Shared<D> *s = own.s;
    Product<QUERIES> p, d_p; // S, then P; dP
    Product<64> d_q;
    EarlyNumbers early;
    const int first_hidden = own.first_key - own.x.pair.ahead - (item.past_tile - 1) * QUERIES; // in the last tile
    int hidden = first_hidden;
    mbarrier_wait(&s->q_gate[0].full, 0);
    mbarrier_wait(&s->d_out_gate[0].full, 0);
    wgmma_fence();
    multiply_ABt<D>(p, &s->k[0][own.w], s->q[0][0]);
    multiply_ABt<D>(d_p, &s->v[0][own.w], s->d_out[0][0]);
    finish_scores<LIMITED>(p, early, own, 0, hidden);
    // From one step to the next nothing is under way in the tensor cores: with products that go on over the loop's end,
    // or more than two at once of S, dP and dK, the assembler has each end before the next one starts. So it does where
    // no full wait stands between the first S and dP and the loop: then it clears dK and dV in their midst.
    for (int n = 0;; n++) {
        const int now = n & 1, next = now ^ 1, phase = n >> 1 & 1, next_phase = (n + 1) >> 1 & 1;
        const int w = forget(own.w); // descriptors of K and V are formed as the step goes on: kept, they spill
        Fragment<1> p_rounded[QUERIES / 16], d_s[QUERIES / 16];
        differentiate(p_rounded, d_s, p, d_p, early, s->delta[now], lane);
        wgmma_fence();
        multiply_AB(d_v, p_rounded, s->d_out[now][0]);
        mbarrier_wait(&s->d_s_gate[now].empty, phase ^ 1);
        store_fragments(&s->d_s[now][0][w], d_s, lane);
        // dQ of the step before: by now the other warpgroup has stored its dS, too.
        if (n > 0) mbarrier_wait(&s->d_s_gate[next].full, next_phase ^ 1);
        wgmma_fence();
        multiply_terms(d_q, s, next, w); // n = 0: of anything
        multiply_AB(d_k, d_s, s->q[now][0]);
        wgmma_wait<2>(); // dV
        arrive_as_warp(&s->d_out_gate[now].empty);
        wgmma_wait<1>(); // dQ
        if (n > 0) {
            arrive_as_warp(&s->d_s_gate[next].empty);
            mbarrier_wait(&s->d_q_gate[next].empty, next_phase);
            store_terms(s->d_q[next][w], d_q);
        }
        if (n + 1 == item.steps) break; // before S of the next tile is started

        mbarrier_wait(&s->q_gate[next].full, next_phase);
        wgmma_fence();
        multiply_ABt<D>(p, &s->k[0][w], s->q[next][0]);
        fence_proxy_async(); // dS, and the terms of dQ
        arrive_as_warp(&s->d_s_gate[now].full);
        if (n > 0) arrive_as_warp(&s->d_q_gate[next].full);
        wgmma_wait<1>(); // dK: before dP is started
        arrive_as_warp(&s->q_gate[now].empty);
        mbarrier_wait(&s->d_out_gate[next].full, next_phase);
        wgmma_fence();
        multiply_ABt<D>(d_p, &s->v[0][w], s->d_out[next][0]);
        hidden += QUERIES;
        if (hidden == first_hidden + item.per_head * QUERIES) hidden = first_hidden; // the next head
        finish_scores<LIMITED>(p, early, own, next, hidden);
    }
    // What the last step has left to do: dQ.
    const int last = (item.steps - 1) & 1, phase = (item.steps - 1) >> 1 & 1;
    fence_proxy_async();
    arrive_as_warp(&s->d_s_gate[last].full);
    if (item.steps > 1) arrive_as_warp(&s->d_q_gate[last ^ 1].full);
    wgmma_wait<0>(); // dK
    mbarrier_wait(&s->d_s_gate[last].full, phase);
    wgmma_fence();
    multiply_terms(d_q, s, last, own.w);
    wgmma_wait<0>();
    mbarrier_wait(&s->d_q_gate[last].empty, phase ^ 1);
    store_terms(s->d_q[last][own.w], d_q);
    fence_proxy_async();
    arrive_as_warp(&s->d_q_gate[last].full);
}

// factor * d to the sums in memory.
template <int D>
__device__ inline void add_gradient(FloatView to, const Worker<D> &own, float factor, const Product<D> &d) {
    add_rows(float_at(to, own.item.b, own.first_key, own.item.kv_head, D), to.token_stride, own.keys, D, factor, d,
             own.lane);
}

// Both gradients in storage type, by way of K's and V's places.
template <int D> __device__ inline void store_gradients(const Worker<D> &own, Product<D> &d_k, Product<D> &d_v) {
    const Backward &x = own.x;
    Shared<D> *s = own.s;
    Fragment<1> rounded[D / 16];
    named_barrier_wait(1, 2 * WARPGROUP); // K and V are not needed any more
    round_product(rounded, d_k, x.scale);
    store_fragments(&s->k[0][own.w], rounded, own.lane);
    round_product(rounded, d_v, 1);
    store_fragments(&s->v[0][own.w], rounded, own.lane);
    fence_proxy_async();
    named_barrier_wait(1, 2 * WARPGROUP);
    if (threadIdx.x > 0) return;
    tma_store(&x.d_k, s->k, 0, own.item.key_block * KEYS, own.item.kv_head * (D / 64), own.item.b);
    tma_store(&x.d_v, s->v, 0, own.item.key_block * KEYS, own.item.kv_head * (D / 64), own.item.b);
    bulk_commit();
    bulk_wait_read();
}

// WHOLE: dK and dV are written; otherwise they are added to the sums in memory.
template <int D, bool WHOLE, bool LIMITED>
__device__ inline void work(const Backward &x, const Item &item, Shared<D> *s) {
    const Lane lane = lane_of_warpgroup();
    const int w = same_in_warp((int)threadIdx.x / WARPGROUP), first_key = item.key_block * KEYS + w * GROUP_ROWS;
    const Worker<D> own = {x, item, s, lane, w, first_key, x.pair.keys - first_key, x.scale * LOG2_E};
    Product<D> d_k, d_v;
    clear(d_k);
    clear(d_v);
    mbarrier_wait(&s->kv_full, 0);
    if (item.steps > 0) walk_queries<LIMITED>(d_k, d_v, own);
    if (WHOLE) {
        store_gradients(own, d_k, d_v);
    } else {
        add_gradient(x.d_k_sums, own, x.scale, d_k);
        add_gradient(x.d_v_sums, own, 1, d_v);
    }
}

// ---- the kernel -----------------------------------------------------------------------------------------------------

// LIMITED: a window or documents hide early keys; other instances know of none.
template <int D, bool WHOLE, bool LIMITED>
__global__ void __launch_bounds__(THREADS, 1) backward_kernel(const __grid_constant__ Backward x) {
#if HOPPER_BODY
    DYNAMIC_SHARED(Shared<D>, s);
    if (threadIdx.x == 0) {
        s->ticket = atomicAdd(x.ticket, 1);
        set_up_barriers(s);
    }
    __syncthreads();
    const Item item = item_of<D, LIMITED>(x, s->ticket);
    if (LIMITED && !WHOLE && item.steps == 0) return; // there is nothing to add
    const int warp = same_in_warp((int)threadIdx.x / WARP);
    if (warp < WORKERS) {
        setmaxnreg_inc<240>();
        work<D, WHOLE, LIMITED>(x, item, s);
    } else {
        setmaxnreg_dec<24>();
        if (warp == BRINGS_NUMBERS) bring_numbers<D, LIMITED>(x, item, s);
        else if (threadIdx.x % WARP > 0) return;
        else if (warp == BRINGS_TILES) bring_tiles(x, item, s);
        else add_terms<D, LIMITED>(x, item, s, warp - ADDS_TERMS);
    }
#else
    __trap(); // compiled for another GPU: not to be launched
#endif
}

// ---- launches -------------------------------------------------------------------------------------------------------

// The sums of dQ, 4 bytes for each of its values (tokens rounded up to whole tiles), a counter for each tile, the
// ticket.
size_t sums_bytes(int64_t places) { return (size_t)places * 2 * TERMS * sizeof(float); }
size_t counters_bytes(int64_t places) { return (size_t)(places + 1) * sizeof(int); }

// So many heads at once that what is read and added of their queries stays in the L2 cache for the next blocks of keys;
// but enough that no more than 16 blocks have to take turns at a tile. All rounds of nearly the same size.
int heads_at_once(Device *device, const Backward &x, int64_t D) {
    const int64_t cache = context_of(device)->properties.l2CacheSize / 3 * 2,
                  of_head = (int64_t)x.pair.queries * x.group * D * 8;
    const int most = larger_of(multiprocessors(device) / 16 + 1, (int)(cache / of_head));
    return ceil_div(x.rows_of_heads, ceil_div(x.rows_of_heads, most));
}

template <int D, bool WHOLE> void launch_backward(Device *device, const Backward &x) {
    const unsigned blocks = blocks_for((int64_t)x.key_blocks * x.rows_of_heads);
    const cudaStream_t stream = stream_of(device);
    if (is_limited(x.pair)) launch((backward_kernel<D, WHOLE, true>), blocks, THREADS, sizeof(Shared<D>), stream, x);
    else launch((backward_kernel<D, WHOLE, false>), blocks, THREADS, sizeof(Shared<D>), stream, x);
}

// d_qkv: d_q, d_k and d_v; NULL where the pair is not the whole.
void run(Device *device, const AttentionShape *shape, const QueryBackward *query, const KeyValue *kv,
         const TokenView *d_qkv) {
    const int64_t D = shape->head_dim, H = shape->heads, KV = shape->kv_heads;
    const bool whole = d_qkv != NULL;
    Backward x = {};
    x.pair = pair_of(query->chunk, kv->chunk, &query->visibility);
    // Keys after all queries are seen by none: there is nothing to add to them, but zeros to write.
    const int64_t queries = x.pair.queries, keys = whole ? x.pair.keys : past_key(x.pair, x.pair.queries - 1);
    x.d_k_sums = kv->d_k, x.d_v_sums = kv->d_v;
    x.log_sum_exp = query->log_sum_exp, x.delta = query->delta;
    x.kv_heads = (int)KV, x.group = (int)(H / KV);
    x.rows_of_heads = (int)(shape->batch * KV), x.at_once = heads_at_once(device, x, D);
    x.key_blocks = (int)ceil_div<int64_t>(keys, KEYS);
    x.scale = shape->scale;

    const int64_t places = count_places(shape, queries);
    const size_t sums = sums_bytes(places), counters = counters_bytes(places);
    char *scratch = static_cast<char *>(cuda_scratch(device, "attention's backward pass", sums + counters));
    x.sums = QuerySums{reinterpret_cast<float *>(scratch), reinterpret_cast<int *>(scratch + sums), (int)H,
                       ceil_div(x.pair.queries, queries_of_tile(D))};
    x.ticket = x.sums.turn + places;

    x.q = tensor_map_of(device, shape, query->q, queries, H, queries_of_tile(D));
    x.d_out = tensor_map_of(device, shape, query->d_out, queries, H, queries_of_tile(D));
    x.k = tensor_map_of(device, shape, kv->k, x.pair.keys, KV, KEYS);
    x.v = tensor_map_of(device, shape, kv->v, x.pair.keys, KV, KEYS);
    if (whole) x.d_k = tensor_map_of(device, shape, d_qkv[1], keys, KV, KEYS);
    if (whole) x.d_v = tensor_map_of(device, shape, d_qkv[2], keys, KV, KEYS);
    CUDA_CHECK(cudaMemsetAsync(x.sums.turn, 0, counters, stream_of(device)));
    if (D == 64 && whole) launch_backward<64, true>(device, x);
    else if (D == 64) launch_backward<64, false>(device, x);
    else if (whole) launch_backward<128, true>(device, x);
    else launch_backward<128, false>(device, x);
    finish_query_gradient(device, shape, query, x.pair, x.sums, d_qkv);
}

} // namespace hopper::backward

void hopper_backward_pair(Device *device, const AttentionShape *shape, const QueryBackward *query, const KeyValue *kv) {
    hopper::backward::run(device, shape, query, kv, NULL);
}

void hopper_backward_whole(Device *device, const AttentionShape *shape, const QueryBackward *query, const KeyValue *kv,
                           TokenView d_q, TokenView d_k, TokenView d_v) {
    const TokenView d_qkv[] = {d_q, d_k, d_v};
    hopper::backward::run(device, shape, query, kv, d_qkv);
}

size_t hopper_backward_scratch_bytes(const AttentionShape *shape, int64_t queries) {
    const int64_t places = hopper::backward::count_places(shape, queries);
    return hopper::backward::sums_bytes(places) + hopper::backward::counters_bytes(places);
}
