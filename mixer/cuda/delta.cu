// The gated delta rule on GPUs, forward (mixer/delta.h, mixer/cuda/delta.h): bf16 in and out, products on tensor cores,
// states and the triangular inverse in fp32.
//
//   system_kernel    a block of 64 tokens: A, its inverse T, and what the loop over blocks multiplies states by
//   advance_kernel   16 columns of a head's state, from block to block
//   read_out_kernel  a block's outputs
//   combine_kernel   states over ranks
#include <type_traits>

#include "mixer/cuda/delta.h"

namespace delta {
namespace {

// ---- the inverse of I + A -------------------------------------------------------------------------------------------

enum { PART = 16, STRIDE = ROWS + 1 };
struct Square { // shared
    float at[ROWS][STRIDE];
};

// t = (I + a)^-1 for a below the diagonal. The 16 x 16 parts on the diagonal by substitution, a thread to a column;
// then part after part down: t_ij = - t_ii (a_ij t_jj + ... ). `a`'s upper part is overwritten. Barriers at both ends.
__device__ inline void invert(Square &t, Square &a) {
    __syncthreads();
    const int thread = threadIdx.x;
    if (thread < ROWS) {
        const int first = thread / PART * PART, column = thread;
        for (int i = first; i < first + PART; i++) {
            float sum = i == column ? 1.0f : 0.0f;
            for (int j = column; j < i; j++) sum -= a.at[i][j] * t.at[j][column];
            t.at[i][column] = i < column ? 0.0f : sum;
        }
    }
    for (int row = 0; row < ROWS; row += PART) {
        for (int k = thread; k < PART * (ROWS - row - PART); k += THREADS) // above the diagonal
            t.at[row + k % PART][row + PART + k / PART] = 0;
        __syncthreads();
        for (int k = thread; k < PART * row; k += THREADS) { // x = a t, kept above a's diagonal: column, row transposed
            const int i = row + k / row, j = k % row;
            float sum = 0;
            for (int l = j / PART * PART; l < row; l++) sum += a.at[i][l] * t.at[l][j];
            a.at[j][i] = sum;
        }
        __syncthreads();
        for (int k = thread; k < PART * row; k += THREADS) {
            const int i = row + k / row, j = k % row;
            float sum = 0;
            for (int l = row; l <= i; l++) sum += t.at[i][l] * a.at[j][l];
            t.at[i][j] = -sum;
        }
    }
    __syncthreads();
}

// ---- the system of a block ------------------------------------------------------------------------------------------

struct System {
    Grid g;
    DeltaTokens t;
    const void *d_out; // backward
    Scratch to;
};
template <int D, bool BACKWARD> struct SystemShared {
    unsigned char keys[tile_bytes<D>(ROWS)], values[tile_bytes<D>(ROWS)], queries[BACKWARD ? tile_bytes<D>(ROWS) : 128];
    unsigned char first[tile_bytes<ROWS>(ROWS)], second[tile_bytes<ROWS>(ROWS)]; // T, its columns weighed
    Square a, t;
    Decays decays;
};

template <int D, bool BACKWARD> __global__ void __launch_bounds__(THREADS, 2) system_kernel(System x) {
    DYNAMIC_SHARED(unsigned char, memory);
    auto &s = *reinterpret_cast<SystemShared<D, BACKWARD> *>(memory);
    const Block block = block_of(x.g, blockIdx.x);
    const int warp = threadIdx.x / WARP, row0 = warp * 16;
    const Lane lane = this_lane<D>(), square = this_lane<ROWS>();
    load_block<D>(s.keys, x.t.k, block.kv, x.g);
    load_block<D>(s.values, BACKWARD ? x.d_out : x.t.v, BACKWARD ? block.at : block.kv, x.g);
    if (BACKWARD) load_block<D>(s.queries, x.t.q, block.at, x.g);
    load_decays(s.decays, x.t, block);
    arrive();

    const Tile<D> keys{s.keys, 0}, own_keys{s.keys, row0 * D * 2}, values{s.values, 0};
    Accumulator<1, ROWS> scores;
    clear(scores);
    mma_ABt(scores, own_keys, keys, lane);
    each(scores, [&](float &value, int r, int c) {
        const int i = row0 + r + lane.row, j = c + lane.column;
        s.a.at[i][j] = j < i ? value * s.decays.beta[i] * s.decays.between(i, j) : 0.0f;
    });
    Accumulator<1, D> out;
    if (BACKWARD) { // P^T dO takes the values' place
        clear(scores);
        clear(out);
        mma_ABt(scores, own_keys, Tile<D>{s.queries, 0}, lane);
        each(scores, [&](float &value, int r, int c) {
            const int j = row0 + r + lane.row, i = c + lane.column;
            value = j <= i ? value * s.decays.between(i, j) : 0.0f;
        });
        mma_AB(out, scores, values, lane);
    }
    invert(s.t, s.a);
    if (BACKWARD)
        each_pair(out, lane, [&](int row, int column, float left, float right) {
            put<D>(s.values, row0 + row, column, pack_bf16(left, right));
        });
    for (int k = threadIdx.x; k < ROWS * ROWS / 2; k += THREADS) {
        const int i = k / (ROWS / 2), j = k % (ROWS / 2) * 2;
        float left = BACKWARD ? s.t.at[j][i] : s.t.at[i][j], right = BACKWARD ? s.t.at[j + 1][i] : s.t.at[i][j + 1];
        const Decays &d = s.decays;
        if (!BACKWARD) left *= d.beta[j], right *= d.beta[j + 1];
        put<ROWS>(s.first, i, j, pack_bf16(left, right));
        left *= BACKWARD ? d.rest(j) : d.carry[j], right *= BACKWARD ? d.rest(j + 1) : d.carry[j + 1];
        put<ROWS>(s.second, i, j, pack_bf16(left, right));
    }
    __syncthreads();
    clear(out);
    mma_tiles<ROWS, D>(out, Tile<ROWS>{s.first, row0 * ROWS * 2}, square, values, lane);
    store_block(x.to.target, block.at, x.g, out, lane);
    clear(out);
    mma_tiles<ROWS, D>(out, Tile<ROWS>{s.second, row0 * ROWS * 2}, square, keys, lane);
    store_block(x.to.keys, block.at, x.g, out, lane);
    if (threadIdx.x < ROWS) {
        float *rates = x.to.rates + block.at * 3 * ROWS + threadIdx.x;
        rates[0] = s.decays.carry[threadIdx.x];
        rates[ROWS] = s.decays.rest(threadIdx.x);
        rates[2 * ROWS] = -s.decays.beta[threadIdx.x] * s.decays.carry[threadIdx.x];
    }
}

// ---- from block to block --------------------------------------------------------------------------------------------

struct Advance {
    Grid g;
    DeltaTokens t;
    Scratch from;
    const float *initial; // (chunks, B, H, W, W)
    float *final;         // (B, H, W, W)
    float *summary[2];    // (B, H, 2, W, W); else NULL
    void *states, *updates;
    int slices; // of 16 columns: W / 16; with summaries twice as many, the later ones of the transition
};
template <int D> struct AdvanceShared {
    unsigned char keys[2][tile_bytes<D>(ROWS)], solved[2][tile_bytes<D>(ROWS)];
    unsigned char state[tile_bytes<32>(D)], updates[tile_bytes<32>(ROWS)]; // of whose columns the first 16 are used
};
// What a lane needs of the next block before its turn: values of its two rows, decays.
struct Ahead {
    uint32_t target[4];
    float rest[2], keep;
};

__device__ inline Ahead ask_ahead(const Advance &x, int64_t at, int column, bool transition, const Lane &lane) {
    Ahead ahead;
    const int row = (int)threadIdx.x / WARP * 16 + lane.row;
    const bf16 *from = x.from.target + at * x.g.block_values() + row * x.g.head_dim + column + lane.column;
#pragma unroll
    for (int i = 0; i < 4; i++)
        ahead.target[i] =
            transition ? 0u : *reinterpret_cast<const uint32_t *>(from + i % 2 * 8 * x.g.head_dim + i / 2 * 8);
    const float *rates = x.from.rates + at * 3 * ROWS;
    ahead.rest[0] = rates[ROWS + row], ahead.rest[1] = rates[ROWS + row + 8];
    ahead.keep = rates[ROWS - 1];
    return ahead;
}

template <int D> __global__ void __launch_bounds__(THREADS, 2) advance_kernel(Advance x) {
    constexpr int M = D == 128 ? 2 : 1; // 16 M rows of the state are a warp's; of 32 rows two warps have none
    DYNAMIC_SHARED(unsigned char, memory);
    auto &s = *reinterpret_cast<AdvanceShared<D> *>(memory);
    const Grid &g = x.g;
    const int slice = blockIdx.x % x.slices, bh = (int)(blockIdx.x / x.slices) % (g.batch * g.heads);
    const int chunk = (int)(blockIdx.x / x.slices) / (g.batch * g.heads), W = g.head_dim;
    const bool transition = slice * SLICE >= W, has_rows = (int)threadIdx.x / WARP * 16 * M < D;
    const int column = slice * SLICE - (transition ? W : 0), row0 = (int)threadIdx.x / WARP * 16, state0 = row0 * M;
    const Lane lane = this_lane<D>(), narrow = this_lane<32>();
    const int first = chunk * g.early, end = chunk == 0 ? g.early : g.blocks;

    Accumulator<M, SLICE> state;
    each(state, [&](float &value, int r, int c) {
        const int i = state0 + r + lane.row, j = column + c + lane.column;
        value = transition && i == j ? 1.0f : 0.0f;
        if (x.initial != nullptr && i < W)
            value = x.initial[((int64_t)chunk * g.batch * g.heads + bh) * W * W + i * W + j];
    });
    Block block = block_of(g, bh / g.heads, bh % g.heads, first);
    Ahead ahead = ask_ahead(x, block.at, column, transition, narrow);
    load_block<D>(s.keys[0], x.t.k, block.kv, g);
    load_block<D>(s.solved[0], x.from.keys, block.at, g);
    cp_async_commit();
    for (int n = first; n < end; n++, block.at++, block.kv++) {
        const int turn = (n - first) % 2;
        if (has_rows)
            each_pair(state, lane, [&](int r, int c, float left, float right) {
                const uint32_t pair = pack_bf16(left, right);
                put<32>(s.state, state0 + r, c, pair);
                if (x.states != nullptr && state0 + r < W)
                    *reinterpret_cast<uint32_t *>(static_cast<bf16 *>(x.states) + block.at * g.state() +
                                                  (state0 + r) * W + column + c) = pair;
            });
        cp_async_wait<0>();
        __syncthreads();
        const Ahead now = ahead;
        if (n + 1 < end) {
            load_block<D>(s.keys[1 - turn], x.t.k, block.kv + 1, g);
            load_block<D>(s.solved[1 - turn], x.from.keys, block.at + 1, g);
            ahead = ask_ahead(x, block.at + 1, column, transition, narrow);
        }
        cp_async_commit();
        Accumulator<1, SLICE> updates;
        clear(updates);
        mma_tiles<D, 32>(updates, Tile<D>{s.solved[turn], row0 * D * 2}, lane, Tile<32>{s.state, 0}, narrow);
        each(updates, [&](float &value, int r, int c) {
            const uint32_t pair = now.target[c / 8 * 2 + r / 8];
            value = (c % 2 == 0 ? low_of(pair) : high_of(pair)) - value;
        });
        each_pair(updates, lane, [&](int r, int c, float left, float right) {
            const float rest = now.rest[r - lane.row == 0 ? 0 : 1];
            put<32>(s.updates, row0 + r, c, pack_bf16(rest * left, rest * right));
            if (x.updates != nullptr)
                *reinterpret_cast<uint32_t *>(static_cast<bf16 *>(x.updates) + block.at * g.block_values() +
                                              (row0 + r) * W + column + c) = pack_bf16(left, right);
        });
        __syncthreads();
        if (!has_rows) continue;
        each(state, [&](float &value, int, int) { value *= now.keep; });
        mma_transposed<D, 32>(state, Tile<D>{s.keys[turn], 0}, state0, lane, Tile<32>{s.updates, 0}, narrow);
    }
    float *to = x.summary[0] != nullptr ? x.summary[chunk] + ((int64_t)bh * 2 + transition) * W * W
                : x.final != nullptr && chunk == g.chunks - 1 ? x.final + (int64_t)bh * W * W
                                                              : nullptr;
    if (to == nullptr) return;
    each(state, [&](float &value, int r, int c) {
        const int i = state0 + r + lane.row;
        if (i < W) to[i * W + column + c + lane.column] = value;
    });
}

// ---- outputs --------------------------------------------------------------------------------------------------------

struct ReadOut {
    Grid g;
    DeltaTokens t;
    const void *states, *updates;
    void *out;
};
template <int D> struct ReadOutShared {
    unsigned char keys[tile_bytes<D>(ROWS)], updates[tile_bytes<D>(ROWS)], state[tile_bytes<D>(D)];
    Decays decays;
};

template <int D> __global__ void __launch_bounds__(THREADS, 2) read_out_kernel(ReadOut x) {
    DYNAMIC_SHARED(unsigned char, memory);
    auto &s = *reinterpret_cast<ReadOutShared<D> *>(memory);
    const Block block = block_of(x.g, blockIdx.x);
    const int row0 = (int)threadIdx.x / WARP * 16;
    const Lane lane = this_lane<D>();
    load_block<D>(s.keys, x.t.k, block.kv, x.g);
    load_block<D>(s.updates, x.updates, block.at, x.g);
    load_state<D>(s.state, x.states, block.at, x.g);
    load_decays(s.decays, x.t, block);
    Fragment<1> queries[D / 16];
    load_rows<D>(queries, x.t.q, block.at, x.g, lane);
    arrive();
    Accumulator<1, D> out;
    clear(out);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
#pragma unroll
        for (int n = 0; n < D; n += 16) {
            uint32_t columns[4];
            ldmatrix_x4_trans(columns, fragment_at<D>(s.state, lane.down, k * 16, n / 8));
            mma(out, n, queries[k], columns);
        }
    }
    each(out, [&](float &value, int r, int) { value *= s.decays.carry[row0 + r + lane.row]; });
    Accumulator<1, ROWS> scores;
    clear(scores);
    mma_ABt(scores, queries, Tile<D>{s.keys, 0}, lane);
    each(scores, [&](float &value, int r, int c) {
        const int i = row0 + r + lane.row, j = c + lane.column;
        value = j <= i ? value * s.decays.between(i, j) : 0.0f;
    });
    mma_AB(out, scores, Tile<D>{s.updates, 0}, lane);
    store_block(x.out, block.at, x.g, out, lane);
}

// ---- over ranks -----------------------------------------------------------------------------------------------------

enum { MOST_PLACES = 256 };
struct Combine {
    float *to;
    const float *summary;
    int width, count, heads; // heads: B H
    bool transposed, fresh;
    int place[MOST_PLACES];
};

// SLICE columns of a head's state; a thread to a row.
__global__ void combine_kernel(Combine x) {
    SHARED_ARRAY(float, sum, 128 * SLICE);
    const int W = x.width, slices = W / SLICE, head = (int)blockIdx.x / slices,
              column = (int)blockIdx.x % slices * SLICE;
    const int i = threadIdx.x;
    float *to = x.to + (int64_t)head * W * W + i * W + column, next[SLICE];
    for (int c = 0; c < SLICE; c++) sum[i * SLICE + c] = x.fresh ? 0.0f : to[c];
    __syncthreads();
    for (int n = 0; n < x.count; n++) {
        const float *part = x.summary + ((int64_t)x.place[n] * x.heads + head) * 2 * W * W, *transition = part + W * W;
        for (int c = 0; c < SLICE; c++) next[c] = part[i * W + column + c];
        for (int k = 0; k < W; k++) {
            const float by = x.transposed ? transition[k * W + i] : transition[i * W + k];
            for (int c = 0; c < SLICE; c++) next[c] += by * sum[k * SLICE + c];
        }
        __syncthreads();
        for (int c = 0; c < SLICE; c++) sum[i * SLICE + c] = next[c];
        __syncthreads();
    }
    for (int c = 0; c < SLICE; c++) to[c] = sum[i * SLICE + c];
}

void combine(Device *device, const DeltaShape *s, float *to, const float *summary, const int *place, int count,
             bool transposed) {
    const int W = (int)s->head_dim, heads = (int)(s->batch * s->heads);
    for (int done = 0; done == 0 || done < count; done += MOST_PLACES) {
        Combine x = {to, summary, W, smaller_of<int>(MOST_PLACES, count - done), heads, transposed, done == 0, {}};
        for (int i = 0; i < x.count; i++) x.place[i] = place[done + i];
        launch(combine_kernel, (unsigned)(heads * (W / SLICE)), W, 0, stream_of(device), x);
    }
}

// ---- the host's side ------------------------------------------------------------------------------------------------

void run_advance(Device *device, const DeltaShape *s, const DeltaTokens *t, const float *initial, float *final,
                 float *const summary[2], void *states, void *updates) {
    const Scratch scratch = scratch_of(device, s);
    solve_systems(device, s, t, nullptr, scratch);
    const int slices = (int)s->head_dim / SLICE * (summary != nullptr ? 2 : 1);
    const Advance x = {
        grid_of(s), *t,      scratch,
        initial,    final,   {summary != nullptr ? summary[0] : nullptr, summary != nullptr ? summary[1] : nullptr},
        states,     updates, slices};
    by_head_dim(s->head_dim, [&](auto size) {
        constexpr int D = decltype(size)::value;
        launch(advance_kernel<D>, (unsigned)(slices * s->batch * s->heads * s->chunks), THREADS,
               sizeof(AdvanceShared<D>), stream_of(device), x);
    });
}
void summarize(Device *device, const DeltaShape *s, const DeltaTokens *t, float *const summary[2]) {
    run_advance(device, s, t, nullptr, nullptr, summary, nullptr, nullptr);
}
void forward(Device *device, const DeltaShape *s, const DeltaTokens *t, const float *initial, float *final,
             void *states, void *updates, void *out) {
    run_advance(device, s, t, initial, final, nullptr, states, updates);
    if (out == nullptr) return;
    const ReadOut x = {grid_of(s), *t, states, updates, out};
    by_head_dim(s->head_dim, [&](auto size) {
        constexpr int D = decltype(size)::value;
        launch(read_out_kernel<D>, (unsigned)(s->batch * s->heads * delta_blocks(s)), THREADS, sizeof(ReadOutShared<D>),
               stream_of(device), x);
    });
}

} // namespace

Scratch scratch_of(Device *device, const DeltaShape *s) {
    const size_t blocks = (size_t)(s->batch * s->heads * delta_blocks(s)), values = blocks * ROWS * (size_t)s->head_dim;
    char *memory = static_cast<char *>(device_scratch(device, "delta", delta_scratch_bytes_cuda(s)));
    Scratch scratch;
    scratch.target = reinterpret_cast<bf16 *>(memory);
    scratch.keys = scratch.target + values;
    scratch.rates = reinterpret_cast<float *>(scratch.keys + values);
    return scratch;
}

void solve_systems(Device *device, const DeltaShape *s, const DeltaTokens *t, const void *d_out,
                   const Scratch &scratch) {
    const System x = {grid_of(s), *t, d_out, scratch};
    const unsigned blocks = (unsigned)(s->batch * s->heads * delta_blocks(s));
    by_head_dim(s->head_dim, [&](auto size) {
        constexpr int D = decltype(size)::value;
        if (d_out == nullptr)
            launch((system_kernel<D, false>), blocks, THREADS, sizeof(SystemShared<D, false>), stream_of(device), x);
        else launch((system_kernel<D, true>), blocks, THREADS, sizeof(SystemShared<D, true>), stream_of(device), x);
    });
}

} // namespace delta

extern const DeltaKernels delta_kernels_cuda;
const DeltaKernels delta_kernels_cuda = {
    delta::prepare,   delta::prepare_backward, delta::convolve_backward, delta::finish,   delta::finish_backward,
    delta::summarize, delta::forward,          delta::retreat,           delta::backward, delta::combine};
