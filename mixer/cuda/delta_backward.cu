// The gated delta rule on GPUs, backward (mixer/delta.h, mixer/cuda/delta.h).
//
//   retreat_kernel         16 columns of the gradient of a head's state, from the last block to the first
//   differentiate_kernel   the gradients of a block: first those for which a warp has its tokens' rows of products with
//                          earlier ones (queries, H), then those with later ones (the other terms of dK)
#include <type_traits>

#include "mixer/cuda/delta.h"

namespace delta {
namespace {

// ---- from block to block --------------------------------------------------------------------------------------------

struct Retreat {
    Grid g;
    DeltaTokens t;
    Scratch from;
    const void *d_out;
    const float *d_final; // (chunks, B, H, W, W)
    float *d_initial[2];
    int64_t d_initial_stride;
    void *d_states, *residuals;
    int slices;
};
// Where there is room for two turns' tiles.
template <int D> constexpr int TURNS = D == 128 ? 1 : 2;
template <int D> struct RetreatShared {
    unsigned char keys[TURNS<D>][tile_bytes<D>(ROWS)], queries[TURNS<D>][tile_bytes<D>(ROWS)],
        solved[TURNS<D>][tile_bytes<D>(ROWS)];
    // Of whose columns the first 16 are used: - beta c R, and c dO.
    unsigned char d_state[tile_bytes<32>(D)], residuals[tile_bytes<32>(ROWS)], d_out[tile_bytes<32>(ROWS)];
};
struct Ahead { // of a lane's two rows
    uint32_t target[4], d_out[4];
    float carry[2], minus[2], keep;
};

__device__ inline Ahead ask_ahead(const Retreat &x, int64_t at, int column, const Lane &lane) {
    Ahead ahead;
    const int row = (int)threadIdx.x / WARP * 16 + lane.row, W = x.g.head_dim;
    const int64_t first = at * x.g.block_values() + row * W + column + lane.column;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int64_t place = first + i % 2 * 8 * W + i / 2 * 8;
        ahead.target[i] = *reinterpret_cast<const uint32_t *>(x.from.target + place);
        ahead.d_out[i] = *reinterpret_cast<const uint32_t *>(static_cast<const bf16 *>(x.d_out) + place);
    }
    const float *rates = x.from.rates + at * 3 * ROWS;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        ahead.carry[i] = rates[row + 8 * i];
        ahead.minus[i] = rates[2 * ROWS + row + 8 * i];
    }
    ahead.keep = rates[ROWS - 1];
    return ahead;
}

template <int D>
__device__ inline void load_turn(RetreatShared<D> &s, int turn, const Retreat &x, int64_t at, int64_t kv) {
    load_block<D>(s.keys[turn], x.t.k, kv, x.g);
    load_block<D>(s.queries[turn], x.t.q, at, x.g);
    load_block<D>(s.solved[turn], x.from.keys, at, x.g);
}

template <int D> __global__ void __launch_bounds__(THREADS, 2) retreat_kernel(Retreat x) {
    constexpr int M = D == 128 ? 2 : 1;
    DYNAMIC_SHARED(unsigned char, memory);
    auto &s = *reinterpret_cast<RetreatShared<D> *>(memory);
    const Grid &g = x.g;
    const int column = (int)blockIdx.x % x.slices * SLICE, bh = (int)(blockIdx.x / x.slices) % (g.batch * g.heads);
    const int chunk = (int)(blockIdx.x / x.slices) / (g.batch * g.heads), W = g.head_dim;
    const bool has_rows = (int)threadIdx.x / WARP * 16 * M < D;
    const int row0 = (int)threadIdx.x / WARP * 16, state0 = row0 * M;
    const Lane lane = this_lane<D>(), narrow = this_lane<32>();
    const int first = chunk * g.early, end = chunk == 0 ? g.early : g.blocks;

    Accumulator<M, SLICE> d_state;
    each(d_state, [&](float &value, int r, int c) {
        const int i = state0 + r + lane.row, j = column + c + lane.column;
        value = 0;
        if (x.d_final != nullptr && i < W)
            value = x.d_final[((int64_t)chunk * g.batch * g.heads + bh) * W * W + i * W + j];
    });
    Block block = block_of(g, bh / g.heads, bh % g.heads, end - 1);
    Ahead ahead = ask_ahead(x, block.at, column, narrow);
    load_turn<D>(s, 0, x, block.at, block.kv);
    cp_async_commit();
    for (int n = end - 1; n >= first; n--, block.at--, block.kv--) {
        const int turn = (end - 1 - n) % TURNS<D>;
        if (has_rows)
            each_pair(d_state, lane, [&](int r, int c, float left, float right) {
                const uint32_t pair = pack_bf16(left, right);
                put<32>(s.d_state, state0 + r, c, pair);
                if (state0 + r < W)
                    *reinterpret_cast<uint32_t *>(static_cast<bf16 *>(x.d_states) + block.at * g.state() +
                                                  (state0 + r) * W + column + c) = pair;
            });
        cp_async_wait<0>();
        __syncthreads();
        const Ahead now = ahead;
        if (n > first) {
            if (TURNS<D> == 2) load_turn<D>(s, 1 - turn, x, block.at - 1, block.kv - 1);
            ahead = ask_ahead(x, block.at - 1, column, narrow);
        }
        cp_async_commit();
        Accumulator<1, SLICE> residuals;
        clear(residuals);
        mma_tiles<D, 32>(residuals, Tile<D>{s.solved[turn], row0 * D * 2}, lane, Tile<32>{s.d_state, 0}, narrow);
        each(residuals, [&](float &value, int r, int c) {
            const uint32_t pair = now.target[c / 8 * 2 + r / 8];
            value += c % 2 == 0 ? low_of(pair) : high_of(pair);
        });
        each_pair(residuals, lane, [&](int r, int c, float left, float right) {
            const int below = r - lane.row == 0 ? 0 : 1;
            const uint32_t d_out = now.d_out[(c - lane.column) / 8 * 2 + below];
            put<32>(s.residuals, row0 + r, c, pack_bf16(now.minus[below] * left, now.minus[below] * right));
            put<32>(s.d_out, row0 + r, c,
                    pack_bf16(now.carry[below] * low_of(d_out), now.carry[below] * high_of(d_out)));
            *reinterpret_cast<uint32_t *>(static_cast<bf16 *>(x.residuals) + block.at * g.block_values() +
                                          (row0 + r) * W + column + c) = pack_bf16(left, right);
        });
        __syncthreads();
        if (has_rows) {
            each(d_state, [&](float &value, int, int) { value *= now.keep; });
            mma_transposed<D, 32>(d_state, Tile<D>{s.queries[turn], 0}, state0, lane, Tile<32>{s.d_out, 0}, narrow);
            mma_transposed<D, 32>(d_state, Tile<D>{s.keys[turn], 0}, state0, lane, Tile<32>{s.residuals, 0}, narrow);
        }
        if (TURNS<D> == 1 && n > first) {
            __syncthreads();
            load_turn<D>(s, 0, x, block.at - 1, block.kv - 1);
            cp_async_commit();
        }
    }
    if (x.d_initial[0] == nullptr) return;
    float *to = x.d_initial[chunk] + bh * x.d_initial_stride;
    each(d_state, [&](float &value, int r, int c) {
        const int i = state0 + r + lane.row;
        if (i < W) to[i * W + column + c + lane.column] = value;
    });
}

// ---- the gradients of a block ---------------------------------------------------------------------------------------

struct Differentiate {
    Grid g;
    DeltaTokens t;
    const void *states, *updates, *d_out, *d_states, *residuals;
    DeltaGradients to;
};
// Tiles: first K, U and the state; then K, dO, R, Q and the gradient of the state. Other factors come from memory.
template <int D> struct DifferentiateShared {
    unsigned char keys[tile_bytes<D>(ROWS)], updates_or_d_out[tile_bytes<D>(ROWS)], residuals[tile_bytes<D>(ROWS)],
        queries[tile_bytes<D>(ROWS)], state[tile_bytes<D>(D)];
    Decays decays;
    float by_row[ROWS], end[WARPS]; // what each token adds to its decay's gradient; parts of what the last one gets
};

// The sum over a row of d times another tensor's row, for the two rows of a lane: dots[0], dots[1].
template <int D>
__device__ __forceinline__ void dots_with(float (&dots)[2], const Accumulator<1, D> &d, const void *tensor, int64_t at,
                                          const Grid &g, const Lane &lane) {
    const bf16 *from =
        static_cast<const bf16 *>(tensor) + at * g.block_values() + (int)threadIdx.x / WARP * 16 * g.head_dim;
    dots[0] = dots[1] = 0;
    each_pair(d, lane, [&](int row, int column, float left, float right) {
        if (column >= g.head_dim) return;
        const uint32_t pair = *reinterpret_cast<const uint32_t *>(from + row * g.head_dim + column);
        dots[row - lane.row == 0 ? 0 : 1] += left * low_of(pair) + right * high_of(pair);
    });
    dots[0] = row_sum(dots[0]);
    dots[1] = row_sum(dots[1]);
}

// dQ; then H, of which beta_i H_i is put aside in d_k.
template <int D>
__device__ inline void with_earlier(const Differentiate &x, DifferentiateShared<D> &s, const Block &block,
                                    const Lane &lane) {
    const int row0 = (int)threadIdx.x / WARP * 16;
    const Tile<D> keys{s.keys, 0}, updates{s.updates_or_d_out, 0};
    Fragment<1> rows[D / 16];
    Accumulator<1, ROWS> scores;
    Accumulator<1, D> sum;
    float dots[2], more[2];
#pragma unroll 1
    for (int which = 0; which < 2; which++) { // dO: queries; R: H
        load_rows<D>(rows, which == 0 ? x.d_out : x.residuals, block.at, x.g, lane);
        clear(sum);
        clear(scores);
#pragma unroll
        for (int k = 0; k < D / 16; k++) mma_ABt(sum, rows[k], Tile<D>{s.state, 0}, k, lane);
        mma_ABt(scores, rows, updates, lane);
        each(sum, [&](float &value, int r, int) {
            const float carry = s.decays.carry[row0 + r + lane.row];
            value *= which == 0 ? carry : -carry;
        });
        each(scores, [&](float &value, int r, int c) {
            const int i = row0 + r + lane.row, j = c + lane.column;
            const float decay = j <= i - which ? s.decays.between(i, j) : 0.0f;
            value *= which == 0 ? decay : -decay;
        });
        mma_AB(sum, scores, keys, lane);
        if (which == 0) {
            dots_with(dots, sum, x.t.q, block.at, x.g, lane);
            store_block(x.to.d_q, block.at, x.g, sum, lane);
        }
    }
    dots_with(more, sum, x.t.k, block.kv, x.g, lane);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = row0 + lane.row + 8 * i;
        if (lane.column == 0) {
            s.by_row[row] = dots[i] + s.decays.beta[row] * more[i];
            x.to.d_beta[block.at * ROWS + row] = more[i]; // and R . v, which values_backward adds
        }
    }
    each(sum, [&](float &value, int r, int) { value *= s.decays.beta[row0 + r + lane.row]; });
    store_block(x.to.d_k, block.at, x.g, sum, lane);
}

// dV = beta R, and R . v.
template <int D>
__device__ inline void values_backward(const Differentiate &x, DifferentiateShared<D> &s, const Block &block) {
    const int lane = threadIdx.x % WARP, W = x.g.head_dim;
    __syncwarp();
    for (int row = (int)threadIdx.x / WARP * 16, end = row + 16; row < end; row++) {
        float dot = 0;
        for (int c = lane; c < W; c += WARP) {
            const int64_t place = block.at * x.g.block_values() + row * W + c;
            const float residual = to_float(static_cast<const bf16 *>(x.residuals)[place]);
            dot += residual * to_float(static_cast<const bf16 *>(x.t.v)[block.kv * x.g.block_values() + row * W + c]);
            static_cast<bf16 *>(x.to.d_v)[place] = to_bf16(s.decays.beta[row] * residual);
        }
        dot = warp_sum(dot);
        if (lane == 0) x.to.d_beta[block.at * ROWS + row] += dot;
    }
}

// The other terms of dK, added to what d_k has; and what they give to the decays.
template <int D>
__device__ inline void with_later(const Differentiate &x, DifferentiateShared<D> &s, const Block &block,
                                  const Lane &lane) {
    const int row0 = (int)threadIdx.x / WARP * 16, W = x.g.head_dim;
    Fragment<1> rows[D / 16];
    Accumulator<1, ROWS> scores;
    Accumulator<1, D> sum;
    float dots[2];
    load_rows<D>(rows, x.updates, block.at, x.g, lane);
    clear(sum);
#pragma unroll
    for (int k = 0; k < D / 16; k++) mma_ABt(sum, rows[k], Tile<D>{s.state, 0}, k, lane);
    each(sum, [&](float &value, int r, int) { value *= s.decays.rest(row0 + r + lane.row); });
    dots_with(dots, sum, x.t.k, block.kv, x.g, lane);
    const float end = warp_sum(lane.column == 0 ? dots[0] + dots[1] : 0.0f);
    if (threadIdx.x % WARP == 0) s.end[threadIdx.x / WARP] = end;
#pragma unroll 1
    for (int which = 0; which < 2; which++) { // S^T Q, (beta G)^T K
        clear(scores);
        mma_ABt(scores, rows, Tile<D>{which == 0 ? s.updates_or_d_out : s.residuals, 0}, lane);
        each(scores, [&](float &value, int r, int c) {
            const int j = row0 + r + lane.row, i = c + lane.column;
            const float decay = j <= i - which ? s.decays.between(i, j) : 0.0f;
            value *= which == 0 ? decay : -decay * s.decays.beta[i];
        });
        mma_AB(sum, scores, Tile<D>{which == 0 ? s.queries : s.keys, 0}, lane);
    }
    dots_with(dots, sum, x.t.k, block.kv, x.g, lane);
    if (lane.column == 0) {
        s.by_row[row0 + lane.row] -= dots[0];
        s.by_row[row0 + lane.row + 8] -= dots[1];
    }
    bf16 *to = static_cast<bf16 *>(x.to.d_k) + block.at * x.g.block_values() + row0 * W;
    each_pair(sum, lane, [&](int row, int column, float left, float right) {
        if (column >= W) return;
        uint32_t *pair = reinterpret_cast<uint32_t *>(to + row * W + column);
        *pair = pack_bf16(left + low_of(*pair), right + high_of(*pair));
    });
}

// c_last <dM', M>, by the whole block: the gradient of the state is in s.state.
template <int D>
__device__ inline float state_dot(const Differentiate &x, DifferentiateShared<D> &s, const Block &block) {
    SHARED_ARRAY(float, partial, WARPS);
    const float carry = s.decays.carry[ROWS - 1];
    const bf16 *state = static_cast<const bf16 *>(x.states) + block.at * x.g.state();
    const bf16 *d_state = static_cast<const bf16 *>(x.d_states) + block.at * x.g.state();
    float sum = 0;
    for (int64_t i = threadIdx.x * 2; carry != 0 && i < x.g.state(); i += 2 * THREADS) {
        const uint32_t one = *reinterpret_cast<const uint32_t *>(state + i);
        const uint32_t two = *reinterpret_cast<const uint32_t *>(d_state + i);
        sum += low_of(one) * low_of(two) + high_of(one) * high_of(two);
    }
    return carry * block_sum(sum, partial);
}

template <int D> __global__ void __launch_bounds__(THREADS, 2) differentiate_kernel(Differentiate x) {
    DYNAMIC_SHARED(unsigned char, memory);
    auto &s = *reinterpret_cast<DifferentiateShared<D> *>(memory);
    const Block block = block_of(x.g, blockIdx.x);
    const Lane lane = this_lane<D>();
    load_block<D>(s.keys, x.t.k, block.kv, x.g);
    load_block<D>(s.updates_or_d_out, x.updates, block.at, x.g);
    load_state<D>(s.state, x.states, block.at, x.g);
    cp_async_commit();
    load_block<D>(s.residuals, x.residuals, block.at, x.g);
    load_block<D>(s.queries, x.t.q, block.at, x.g);
    cp_async_commit();
    load_decays(s.decays, x.t, block);
    cp_async_wait<1>();
    __syncthreads();
    with_earlier<D>(x, s, block, lane);
    values_backward<D>(x, s, block);
    __syncthreads();
    load_block<D>(s.updates_or_d_out, x.d_out, block.at, x.g);
    load_state<D>(s.state, x.d_states, block.at, x.g);
    const float whole = state_dot<D>(x, s, block);
    arrive();
    with_later<D>(x, s, block, lane);
    __syncthreads();
    const int i = threadIdx.x;
    if (i >= ROWS) return;
    // The decays' own: sums from the block's end to its start, or to where a document begins, whose first decay nothing
    // depends on. by_row[j] counts for all i <= j of its document.
    float sum = 0, end = whole;
    for (int w = 0; w < WARPS; w++) end += s.end[w];
#pragma unroll 1
    for (int j = i; j < ROWS && s.decays.begin[j] <= i; j++) sum += s.by_row[j];
    if (s.decays.begin[ROWS - 1] < i || s.decays.begin[ROWS - 1] < 0) sum += end;
    x.to.d_log_decay[block.at * ROWS + i] = s.decays.begin[i] == i ? 0.0f : sum;
}

// ---- the host's side ------------------------------------------------------------------------------------------------

void run_retreat(Device *device, const DeltaShape *s, const DeltaTokens *t, const void *d_out, const float *d_final,
                 float *const d_initial[2], int64_t d_initial_stride, void *d_states, void *residuals) {
    const Scratch scratch = scratch_of(device, s);
    solve_systems(device, s, t, d_out, scratch);
    const int slices = (int)s->head_dim / SLICE;
    const Retreat x = {grid_of(s),
                       *t,
                       scratch,
                       d_out,
                       d_final,
                       {d_initial != nullptr ? d_initial[0] : nullptr, d_initial != nullptr ? d_initial[1] : nullptr},
                       d_initial_stride,
                       d_states,
                       residuals,
                       slices};
    by_head_dim(s->head_dim, [&](auto size) {
        constexpr int D = decltype(size)::value;
        launch(retreat_kernel<D>, (unsigned)(slices * s->batch * s->heads * s->chunks), THREADS,
               sizeof(RetreatShared<D>), stream_of(device), x);
    });
}

} // namespace

void retreat(Device *device, const DeltaShape *s, const DeltaTokens *t, const void *d_out, float *const d_initial[2],
             int64_t d_initial_stride, void *d_states, void *residuals) {
    run_retreat(device, s, t, d_out, nullptr, d_initial, d_initial_stride, d_states, residuals);
}

void backward(Device *device, const DeltaShape *s, const DeltaTokens *t, const void *states, const void *updates,
              const void *d_out, const float *d_final, void *d_states, void *residuals, const DeltaGradients *to) {
    run_retreat(device, s, t, d_out, d_final, nullptr, 0, d_states, residuals);
    const Differentiate x = {grid_of(s), *t, states, updates, d_out, d_states, residuals, *to};
    by_head_dim(s->head_dim, [&](auto size) {
        constexpr int D = decltype(size)::value;
        launch(differentiate_kernel<D>, (unsigned)(s->batch * s->heads * delta_blocks(s)), THREADS,
               sizeof(DifferentiateShared<D>), stream_of(device), x);
    });
}

} // namespace delta
