// Attention forward for Hopper (sm_90a), heads of 64 and 128: FlashAttention-3 (Shah et al. 2024), with wgmma and TMA.
// The softmax, its state and what is not a number are those of attention/cuda/forward.cu, which serves all else.
//
// A block takes one piece of work after another, 192 queries of one head and the keys they see (work.h). One of its
// warpgroups only copies, the other three own 64 of the queries each:
//
//   warpgroup 3    one thread brings Q, and the tiles of K and V, the last one first, into rings of buffers (TMA)
//   warpgroup 0-2  S = Q K^T     Q and K from shared memory; S in registers, a row in four lanes, as with mma.sync
//                  softmax       S becomes P, two bf16 in a register, as wgmma wants its A operand
//                  out += P V    V from shared memory
//
// A full barrier says that a copy has come, an empty one that all have done with a buffer. Products run beside the
// threads that start them. A warpgroup starts S of its next tile, then out += P V of this one, and works out the next
// softmax while P V runs. Warpgroups may take turns at starting products, so that their softmaxes do not coincide:
//
//   tensor cores   S0 PV0  S1 PV1  S2 PV2  S0 PV0  S1 PV1 ...     (number: of the warpgroup)
//   exponentials      0000000 1111111 2222222 0000000 ...
//
// While a warpgroup stores what it has, S of its next piece of work is under way.
//
// What the compiler must leave as it is here; scripts/check-sass looks for it in the instructions of every kernel: the
// exponentials of a tile (MUFU.EX2, 64 for heads of 64 and 40 for 128) stand between the wait for S and that for P V
// (DEPBAR.LE gsb0, 0x1 and 0x0); no warning C75xx, which says that products are done one by one; no register spilled.
// What reads the same to us may not to ptxas (a lambda within a lambda, an address by a function): compare
// instructions.
#include "attention/cuda/fragment.h"
#include "attention/cuda/hopper/hopper.h"
#include "attention/cuda/hopper/rows.h"
#include "attention/cuda/hopper/tensor_maps.h"
#include "attention/cuda/hopper/work.h"

namespace hopper {
namespace {

enum { THREADS = (GROUPS + 1) * WARPGROUP };
// Of a thread that computes, and of one that copies; all have 128 at the launch.
enum { REGISTERS = 160, COPY_REGISTERS = 32 };
// Tiles of K, and of V, and pieces of work whose Q is in shared memory.
enum { STAGES = 3, Q_STAGES = 2 };

static_assert(GROUPS * REGISTERS + COPY_REGISTERS <= (GROUPS + 1) * 128,
              "more than the launch gave: would wait for ever");

// Whether the warpgroups take turns: a gain of 3% for heads of 64 in the study (doc/gpu/hopper.md), a loss for 128.
template <int D> constexpr bool IN_TURN = D == 64;

struct Forward {
    CUtensorMap q, k, v; // by 64 channels (128 bytes), token, 64s of channels, sequence
    Results to;
    Pair pair;
    float scale_log2; // scale log2(e)
    Deal deal;
    int *work_taken;
};

// ---- shared memory --------------------------------------------------------------------------------------------------

// Tiles are rows of 64 channels (128 bytes), swizzled by the copy engine; heads of 128 are two, one after the other.
template <int D> struct Shared {
    static constexpr int Q_BYTES = QUERIES * D * 2, KV_BYTES = keys_in_tile<D>() * D * 2;
    unsigned char q[Q_STAGES][Q_BYTES], k[STAGES][KV_BYTES], v[STAGES][KV_BYTES];
    Gate q_gate[Q_STAGES], k_gate[STAGES], v_gate[STAGES];
    Work work[Q_STAGES]; // comes with q
    // That each warpgroup sees, where LIMITED. Needed till the piece's end, so that this ring is twice as long.
    int first_tile[2][Q_STAGES][GROUPS];
};

template <int SIZE> __device__ inline void set_up(Gate (&gates)[SIZE]) {
    for (Gate &gate : gates) {
        mbarrier_init(&gate.full, 1);
        mbarrier_init(&gate.empty, GROUPS * 4); // one arrival of each warp
    }
}

// ---- the thread that copies -----------------------------------------------------------------------------------------

template <int D, bool LIMITED> __device__ inline void copy_tiles(const Forward &x, Shared<D> &shared) {
    Place<STAGES> at;
    Place<Q_STAGES> q_at;
    for (int index = blockIdx.x, next = 0;; index = next, q_at.advance()) {
        const Work work = work_at<D>(x.deal, x.pair, index);
        const auto copy = [&](void *to, int bytes, Gate &gate, const CUtensorMap &map, int token, int head) {
            mbarrier_arrive_expect_tx(&gate.full, bytes);
            tma_load(to, &map, &gate.full, 0, token, head * (D / 64), work.b);
        };
        mbarrier_wait(&shared.q_gate[q_at.slot].empty, q_at.parity ^ 1);
        shared.work[q_at.slot] = work;
        if (work.past_tile == 0) return mbarrier_arrive(&shared.q_gate[q_at.slot].full);
        int first_tile = 0;
        if (LIMITED) {
#pragma unroll 1
            for (int group = GROUPS - 1; group >= 0; group--)
                shared.first_tile[q_at.parity][q_at.slot][group] = first_tile = first_tile_of<D>(x.pair, work, group);
        }
        copy(shared.q[q_at.slot], shared.Q_BYTES, shared.q_gate[q_at.slot], x.q, work.first_row, work.h);
        for (int tile = work.past_tile - 1; tile >= first_tile; tile--, at.advance()) {
            // Late, so that all blocks end together; it arrives during the waits.
            if (tile == first_tile) next = take_work(x.deal, x.work_taken);
            const int key = tile * keys_in_tile<D>(), kv_head = work.h / x.deal.group;
            mbarrier_wait(&shared.k_gate[at.slot].empty, at.parity ^ 1);
            copy(shared.k[at.slot], shared.KV_BYTES, shared.k_gate[at.slot], x.k, key, kv_head);
            mbarrier_wait(&shared.v_gate[at.slot].empty, at.parity ^ 1);
            copy(shared.v[at.slot], shared.KV_BYTES, shared.v_gate[at.slot], x.v, key, kv_head);
        }
    }
}

// ---- the warpgroups that compute ------------------------------------------------------------------------------------

// Starts S = Q K^T.
template <int D, int N> __device__ inline void start_scores(Accumulator<1, N> &s, uint64_t q, uint64_t k) {
    wgmma_fence();
    wgmma_ABt<Wgmma::IN_PLACE>(s.at[0], q, k);
#pragma unroll
    for (int d = 16; d < D; d += 16)
        wgmma_ABt<Wgmma::ADD>(s.at[0], wgmma_operand_at(q, d / 64 * QUERIES * 128 + d % 64 * 2),
                              wgmma_operand_at(k, d / 64 * N * 128 + d % 64 * 2));
    wgmma_commit();
}

// Starts out += P V.
template <int D, int STEPS>
__device__ inline void start_values(Accumulator<1, D> &out, const Fragment<1> (&p)[STEPS], uint64_t v) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < STEPS; step++) wgmma_AB(out.at[0], p[step].at[0], wgmma_operand_at(v, step * 16 * 128));
    wgmma_commit();
}

// ---- one warpgroup's loop -------------------------------------------------------------------------------------------

// Turns go round: each warpgroup waits for its own barrier, and then opens that of the next.
template <int D> __device__ inline void wait_turn(int group) {
    if (IN_TURN<D>) named_barrier_wait(1 + group, 2 * WARPGROUP);
}
template <int D> __device__ inline void pass_turn(int group) {
    if (IN_TURN<D>) named_barrier_arrive(1 + (group + 1) % GROUPS, 2 * WARPGROUP);
}

// A tile that only other warpgroups see. An arrival for a buffer may only be made when its copy has come: a warp could
// arrive twice in one phase otherwise.
template <int D> __device__ inline void pass_over(Shared<D> &shared, const Place<STAGES> &at, int group) {
    wait_turn<D>(group);
    pass_turn<D>(group);
    mbarrier_wait(&shared.k_gate[at.slot].full, at.parity);
    arrive_as_warp(&shared.k_gate[at.slot].empty);
    mbarrier_wait(&shared.v_gate[at.slot].full, at.parity);
    arrive_as_warp(&shared.v_gate[at.slot].empty);
}

// WHOLE: out and log_sum_exp are written; otherwise the state in memory is carried on. LIMITED: there is a window or
// there are documents, so that rows may not see the first keys.
//
// ptxas keeps products asynchronous only if it can see that nothing else touches their registers meanwhile. So S is
// started unconditionally also where there is no more work (from what happens to be in the buffers), and `out` becomes
// zero only when no product is under way.
template <int D, bool WHOLE, bool LIMITED>
__device__ inline void attend(const Forward &x, Shared<D> &shared, int group) {
    constexpr int KEYS = keys_in_tile<D>();
    static_assert(QUERIES - GROUP_ROWS <= (STAGES - 1) * KEYS, "passing over tiles with V held would wait for itself");
    const int lane = threadIdx.x % WARP, warp = threadIdx.x % WARPGROUP / WARP;
    Place<STAGES> at; // the tile whose scores are worked on
    Place<Q_STAGES> q_at;
    Rows<D> rows;
    Accumulator<1, KEYS> s;
    Fragment<1> p[KEYS / 16];
    RowValues<1> rescale;
    Work work;               // this warp's: its first row, its warpgroup's tiles
    uint64_t q;              // this warpgroup's rows of Q
    int first_tile = 0;      // of this warpgroup's
    RowValues<1, int> first; // the first key that each row sees, where LIMITED

    // Waits for work, passes over tiles beyond this warpgroup's, and then waits for K of its first one.
    const auto await_work = [&] {
        mbarrier_wait(&shared.q_gate[q_at.slot].full, q_at.parity);
        work = shared.work[q_at.slot];
        work.past_tile = same_in_warp(work.past_tile);
        q = wgmma_operand(shared.q[q_at.slot] + group * GROUP_ROWS * 128, 0);
        if (work.past_tile == 0) return;
        work.first_row += group * GROUP_ROWS;
        int own_past = same_in_warp(past_tile<D>(x.pair, work.first_row + GROUP_ROWS - 1));
        work.first_row += warp * 16;
        if (LIMITED) {
            first_tile = same_in_warp(shared.first_tile[q_at.parity][q_at.slot][group]);
            own_past = larger_of(own_past, first_tile + 1);
            each_row<1>([&](int row) {
                first[row] = first_key(x.pair, work.b, larger_of(0, work.first_row + row + lane / 4));
            });
        }
#pragma unroll 1
        for (; work.past_tile > own_past; work.past_tile--, at.advance()) pass_over(shared, at, group);
        wait_turn<D>(group);
        mbarrier_wait(&shared.k_gate[at.slot].full, at.parity);
    };
    // S, just computed, becomes P. Waits for V of the same tile.
    const auto softmax_of = [&](int tile) {
        arrive_as_warp(&shared.k_gate[at.slot].empty);
        if (tile == first_tile) arrive_as_warp(&shared.q_gate[q_at.slot].empty);
        const int tile_key = tile * KEYS, diagonal = work.first_row + x.pair.ahead - tile_key;
        if (tile_key + KEYS > x.pair.keys || KEYS > diagonal + 1 ||
            (LIMITED && __any_sync(WHOLE_WARP, first[8] > tile_key)))
            mask<LIMITED>(s, x.pair.keys - tile_key, diagonal, first, tile_key, lane);
        const bool grown = softmax(rows, s, rescale, x.scale_log2);
        // No sum is negative. But as long as a wait depends on it, ptxas cannot put off the exponentials till after the
        // wait for the product that runs beside them.
        const bool never = __any_sync(WHOLE_WARP, rows.sum[0] + rows.sum[8] < 0);
        mbarrier_wait(&shared.v_gate[at.slot].full, at.parity ^ never);
        return grown;
    };
    const auto round_p = [&] {
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) p[n] = round_fragment(s, n * 16);
    };

    if (group == GROUPS - 1) pass_turn<D>(group); // the first turn is warpgroup 0's
    await_work();
    start_scores<D>(s, q, wgmma_operand(shared.k[at.slot], 0));
    pass_turn<D>(group);
    while (work.past_tile > 0) {
        wgmma_wait<0>();
        wgmma_arrived(s.at[0]);
        begin(rows);
        softmax_of(work.past_tile - 1);
        for (int tile = work.past_tile - 2; tile >= first_tile; tile--) {
            round_p();
            const int before = at.slot;
            at.advance();
            wait_turn<D>(group);
            mbarrier_wait(&shared.k_gate[at.slot].full, at.parity);
            start_scores<D>(s, q, wgmma_operand(shared.k[at.slot], 0));
            start_values(rows.out, p, wgmma_operand(shared.v[before], KEYS * 128));
            pass_turn<D>(group);
            wgmma_wait<1>();
            wgmma_arrived(s.at[0]);
            const bool grown = softmax_of(tile);
            wgmma_wait<0>();
            wgmma_arrived(rows.out.at[0]);
            arrive_as_warp(&shared.v_gate[before].empty);
            if (grown) each(rows.out, [&](float &value, int row, int) { value *= rescale[row]; });
        }
        round_p();
        const int last = at.slot;
        start_values(rows.out, p, wgmma_operand(shared.v[last], KEYS * 128));
        const Work done = work;
        at.advance();
        if (LIMITED) { // the tiles before may be more than there are buffers, so none is held
            wgmma_wait<0>();
            wgmma_arrived(rows.out.at[0]);
            arrive_as_warp(&shared.v_gate[last].empty);
            int before = first_tile - same_in_warp(shared.first_tile[q_at.parity][q_at.slot][0]);
#pragma unroll 1
            for (; before > 0; before--, at.advance()) pass_over(shared, at, group);
        }
        q_at.advance();
        await_work();
        start_scores<D>(s, q, wgmma_operand(shared.k[at.slot], 0));
        if (work.past_tile > 0) pass_turn<D>(group);
        if (!LIMITED) {
            wgmma_wait<1>();
            wgmma_arrived(rows.out.at[0]);
            arrive_as_warp(&shared.v_gate[last].empty);
        }
        if (WHOLE) store_out(x.to, done.b, done.h, done.first_row, rows);
        else if (LIMITED || past_key(x.pair, done.first_row + 15) > 0)
            merge_state(x.to, done.b, done.h, done.first_row, rows);
    }
    wgmma_wait<0>();
    if (group == 0) wait_turn<D>(group); // what the last one passed on
}

template <int D, bool WHOLE, bool LIMITED>
__global__ void __launch_bounds__(THREADS, 1) forward_kernel(const __grid_constant__ Forward x) {
#if HOPPER_BODY
    DYNAMIC_SHARED(unsigned char, memory);
    Shared<D> &shared = *reinterpret_cast<Shared<D> *>(memory);
    if (threadIdx.x == 0) {
        set_up(shared.q_gate);
        set_up(shared.k_gate);
        set_up(shared.v_gate);
        mbarrier_init_fence();
    }
    __syncthreads();
    const int group = same_in_warp(threadIdx.x / WARPGROUP);
    if (group == GROUPS) {
        setmaxnreg_dec<COPY_REGISTERS>();
        if (threadIdx.x == GROUPS * WARPGROUP) copy_tiles<D, LIMITED>(x, shared);
    } else {
        setmaxnreg_inc<REGISTERS>();
        attend<D, WHOLE, LIMITED>(x, shared, group);
    }
#else
    __trap(); // compiled for another GPU: not to be launched
#endif
}

// ---- launches -------------------------------------------------------------------------------------------------------

template <int D, bool WHOLE>
void launch_forward(Device *device, const AttentionShape *shape, const QueryForward *query, const KeyValue *kv,
                    Forward x) {
    x.q = tensor_map_of(device, shape, query->q, x.pair.queries, shape->heads, QUERIES);
    x.k = tensor_map_of(device, shape, kv->k, x.pair.keys, shape->kv_heads, keys_in_tile<D>());
    x.v = tensor_map_of(device, shape, kv->v, x.pair.keys, shape->kv_heads, keys_in_tile<D>());
    const unsigned blocks = blocks_of(device, x.deal, x.pair);
    const cudaStream_t stream = stream_of(device);
    if (is_limited(x.pair)) launch((forward_kernel<D, WHOLE, true>), blocks, THREADS, sizeof(Shared<D>), stream, x);
    else launch((forward_kernel<D, WHOLE, false>), blocks, THREADS, sizeof(Shared<D>), stream, x);
}

template <bool WHOLE>
void forward(Device *device, const AttentionShape *shape, const QueryForward *query, const KeyValue *kv, Forward x) {
    x.deal = deal_of(shape, x.pair);
    x.work_taken = context_of(device)->work_taken;
    x.scale_log2 = shape->scale * LOG2_E;
    if (shape->head_dim == 64) launch_forward<64, WHOLE>(device, shape, query, kv, x);
    else launch_forward<128, WHOLE>(device, shape, query, kv, x);
}

Forward forward_of(const QueryForward *query, const KeyValue *kv) {
    Forward x = {};
    check_tokens(query->q, "q");
    check_tokens(kv->k, "k");
    check_tokens(kv->v, "v");
    x.pair = pair_of(query->chunk, kv->chunk, &query->visibility);
    return x;
}

} // namespace
} // namespace hopper

void hopper_forward_pair(Device *device, const AttentionShape *shape, const QueryForward *query, const KeyValue *kv) {
    hopper::Forward x = hopper::forward_of(query, kv);
    if (!sees_any(x.pair)) return;
    check_floats(query->accumulator, 8, "accumulator");
    x.to.accumulator = query->accumulator;
    x.to.max = query->max;
    x.to.sum = query->sum;
    hopper::forward<false>(device, shape, query, kv, x);
}

void hopper_forward_whole(Device *device, const AttentionShape *shape, const QueryForward *query, const KeyValue *kv,
                          TokenView out, RowView log_sum_exp) {
    hopper::Forward x = hopper::forward_of(query, kv);
    check_tokens(out, "out");
    x.to.out = out;
    x.to.log_sum_exp = log_sum_exp;
    hopper::forward<true>(device, shape, query, kv, x);
}
