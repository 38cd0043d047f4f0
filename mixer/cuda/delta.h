// The gated delta rule on GPUs: the kernels by file, and what they have in common. Contracts and formulas:
// mixer/delta.h.
//
//   delta_tokens.cu, delta_finish.cu   token by token: before the rule and behind it
//   delta.cu                           forward: the system of each block; states, block after block; outputs
//   delta_backward.cu                  backward: states from the last block to the first; gradients of each block
//
// What blocks need of each other is only the state, so all else is done for all blocks at once. Before the states: with
// T = (I + A)^-1, U = T diag(beta) V - (T diag(beta c) K) M, both factors of which are known without M, so the loop
// over blocks is two products a turn. Columns of a state do not mix: thread blocks have 16 of them each.
#ifndef MIXER_CUDA_DELTA_H
#define MIXER_CUDA_DELTA_H

#include "attention/cuda/fragment.h"
#include "layers/cuda/context.h"
#include "mixer/delta.h"

namespace delta {

enum { ROWS = DELTA_BLOCK, WARPS = 4, THREADS = WARPS * WARP, SLICE = 16 };

// DeltaShape for kernels.
struct Grid {
    int heads, kv_heads, head_dim, chunks;
    int batch, blocks, early;    // N, and those of the first chunk
    int64_t start[2], length[2]; // of chunks, in tokens
    int64_t tokens, context;
    const int32_t *first;

    __device__ int64_t state() const { return (int64_t)head_dim * head_dim; }
    __device__ int64_t block_values() const { return (int64_t)ROWS * head_dim; }
    __device__ int64_t first_seen(int b, int64_t position) const {
        return first != nullptr ? first[b * context + position] : 0;
    }
};
inline Grid grid_of(const DeltaShape *s) {
    return Grid{(int)s->heads,
                (int)s->kv_heads,
                (int)s->head_dim,
                s->chunks,
                (int)s->batch,
                (int)delta_blocks(s),
                (int)delta_chunk_blocks(s, 0),
                {s->chunk[0].start, s->chunk[1].start},
                {s->chunk[0].length, s->chunks > 1 ? s->chunk[1].length : 0},
                delta_tokens(s),
                s->context,
                s->first};
}

// Block n of sequence b, head h. `at` is its place among (B, H, N), `kv` among (B, KV, N), `bn` among (B, N).
struct Block {
    int b, h, n;
    int64_t at, kv, bn;
};
__device__ inline Block block_of(const Grid &g, int b, int h, int n) {
    return Block{b,
                 h,
                 n,
                 ((int64_t)b * g.heads + h) * g.blocks + n,
                 ((int64_t)b * g.kv_heads + h / (g.heads / g.kv_heads)) * g.blocks + n,
                 (int64_t)b * g.blocks + n};
}
__device__ inline Block block_of(const Grid &g, unsigned index) {
    const int n = (int)(index % (unsigned)g.blocks), bh = (int)(index / (unsigned)g.blocks);
    return block_of(g, bh / g.heads, bh % g.heads, n);
}

// The rows of the model's tensors that a block's tokens are.
struct Tokens {
    int chunk, rows;
    int64_t in_chunk, position, row; // of the first: in its chunk, in the sequence, among the rank's rows
};
__device__ inline Tokens tokens_of(const Grid &g, int b, int n) {
    Tokens t;
    t.chunk = n >= g.early;
    t.in_chunk = (int64_t)(n - t.chunk * g.early) * ROWS;
    t.rows = (int)smaller_of<int64_t>(ROWS, g.length[t.chunk] - t.in_chunk);
    t.position = g.start[t.chunk] + t.in_chunk;
    t.row = b * g.tokens + t.chunk * g.length[0] + t.in_chunk;
    return t;
}

// ---- decays of a block ----------------------------------------------------------------------------------------------

struct Decays {                       // shared
    float log_decay[ROWS], sum[ROWS]; // sum: times log2(e)
    float beta[ROWS], carry[ROWS];
    int begin[ROWS];
    // D_ij, for j <= i; else it means nothing
    __device__ float between(int i, int j) const { return j >= begin[i] ? exp2_fast(sum[i] - sum[j]) : 0.0f; }
    __device__ float rest(int j) const { return between(ROWS - 1, j); }
};
// By the whole block; ends with a barrier.
__device__ inline void load_decays(Decays &d, const DeltaTokens &t, const Block &block) {
    const int i = threadIdx.x;
    if (i < ROWS) {
        d.log_decay[i] = t.log_decay[block.at * ROWS + i];
        d.beta[i] = t.beta[block.at * ROWS + i];
        d.begin[i] = t.begin[block.bn * ROWS + i];
    }
    __syncthreads();
    if (i < ROWS) {
        float sum = 0;
        for (int j = 0; j <= i; j++) sum += d.log_decay[j];
        d.sum[i] = sum * LOG2_E;
        d.carry[i] = d.begin[i] < 0 ? exp2_fast(sum * LOG2_E) : 0.0f;
    }
    __syncthreads();
}

// ---- products -------------------------------------------------------------------------------------------------------

// A tile (ROWS, D) of block `at` of a tensor of blocks.
template <int D> __device__ inline void load_block(unsigned char *tile, const void *tensor, int64_t at, const Grid &g) {
    tile_load<D, ROWS, THREADS>(tile, static_cast<const bf16 *>(tensor) + at * g.block_values(), g.head_dim, ROWS,
                                g.head_dim / PACKET, threadIdx.x);
}
// A tile (D, D) of a tensor of states.
template <int D> __device__ inline void load_state(unsigned char *tile, const void *tensor, int64_t at, const Grid &g) {
    tile_load<D, D, THREADS>(tile, static_cast<const bf16 *>(tensor) + at * g.state(), g.head_dim, g.head_dim,
                             g.head_dim / PACKET, threadIdx.x);
}
__device__ inline void arrive() {
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
}

// d += a b: `a` a tile of the warp's rows, K columns; b a tile of K rows, of which the first N columns count.
template <int K, int D, int M, int N>
__device__ __forceinline__ void mma_tiles(Accumulator<M, N> &d, const Tile<K> &a, const Lane &a_lane, const Tile<D> &b,
                                          const Lane &b_lane) {
#pragma unroll
    for (int k = 0; k < K / 16; k++) {
        Fragment<M> rows;
        load_fragment(rows, a, k, a_lane);
#pragma unroll
        for (int n = 0; n < N; n += 16) {
            uint32_t columns[4];
            ldmatrix_x4_trans(columns, fragment_at<D>(b.base, b_lane.down + b.place, k * 16, n / 8));
            mma(d, n, rows, columns);
        }
    }
}
// d += a^T b: `a` a tile of ROWS rows, of which the columns from `column` on (a multiple of 16) are the warp's rows.
template <int K, int D, int M, int N>
__device__ __forceinline__ void mma_transposed(Accumulator<M, N> &d, const Tile<K> &a, int column, const Lane &a_lane,
                                               const Tile<D> &b, const Lane &b_lane) {
#pragma unroll
    for (int k = 0; k < ROWS / 16; k++) {
        Fragment<M> rows;
#pragma unroll
        for (int m = 0; m < M; m++)
            ldmatrix_x4_trans(rows.at[m], fragment_at<K>(a.base, a_lane.across + a.place, k * 16, column / 8 + 2 * m));
#pragma unroll
        for (int n = 0; n < N; n += 16) {
            uint32_t columns[4];
            ldmatrix_x4_trans(columns, fragment_at<D>(b.base, b_lane.down + b.place, k * 16, n / 8));
            mma(d, n, rows, columns);
        }
    }
}
// The warp's 16 rows of block `at` of a tensor, straight from memory: columns past the head are zeros.
template <int D>
__device__ __forceinline__ void load_rows(Fragment<1> (&a)[D / 16], const void *tensor, int64_t at, const Grid &g,
                                          const Lane &lane) {
    const bf16 *from = static_cast<const bf16 *>(tensor) + at * g.block_values() +
                       (threadIdx.x / WARP * 16 + lane.row) * g.head_dim + lane.column;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[k].at[0][i] =
                k * 16 < g.head_dim
                    ? *reinterpret_cast<const uint32_t *>(from + i % 2 * 8 * g.head_dim + k * 16 + i / 2 * 8)
                    : 0u;
    }
}

// ---- to memory ------------------------------------------------------------------------------------------------------

// f(row, column, value, value beside it) for each pair of a lane; row and column with its place.
template <int M, int N, typename F>
__device__ __forceinline__ void each_pair(const Accumulator<M, N> &d, const Lane &lane, F f) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            f(m * 16 + lane.row, n * 8 + lane.column, d.at[m][n][0], d.at[m][n][1]);
            f(m * 16 + lane.row + 8, n * 8 + lane.column, d.at[m][n][2], d.at[m][n][3]);
        }
    }
}
template <int D> __device__ inline void put(unsigned char *tile, int row, int column, uint32_t pair) {
    *reinterpret_cast<uint32_t *>(tile + tile_offset<D>(row, column / 8) + column % 8 * 2) = pair;
}
// The warp's rows into block `at` of a tensor.
template <int N>
__device__ __forceinline__ void store_block(void *tensor, int64_t at, const Grid &g, const Accumulator<1, N> &d,
                                            const Lane &lane) {
    bf16 *to = static_cast<bf16 *>(tensor) + at * g.block_values() + (int)threadIdx.x / WARP * 16 * g.head_dim;
    each_pair(d, lane, [&](int row, int column, float left, float right) {
        if (column < g.head_dim) *reinterpret_cast<uint32_t *>(to + row * g.head_dim + column) = pack_bf16(left, right);
    });
}

// ---- the system of each block (delta.cu) ----------------------------------------------------------------------------

// Device.scratch: of each block two tensors like q, and three numbers for each token: c, e and - beta c.
struct Scratch {
    bf16 *target, *keys;
    float *rates;
};
Scratch scratch_of(Device *device, const DeltaShape *s);
// target, keys = T diag(beta) V, T diag(beta c) K; or (d_out given) T^T P^T dO, T^T diag(e) K.
void solve_systems(Device *device, const DeltaShape *s, const DeltaTokens *t, const void *d_out,
                   const Scratch &scratch);

// delta_tokens.cu, delta_finish.cu, delta_backward.cu: contracts in mixer/delta.h
void prepare(Device *, const DeltaShape *, const DeltaInput *, const DeltaTokens *);
void prepare_backward(Device *, const DeltaShape *, const DeltaInput *, const DeltaTokens *, const DeltaGradients *,
                      void *d_raw, void *d_rates, float *d_decay_log, float *d_decay_bias);
void convolve_backward(Device *, const DeltaShape *, const DeltaInput *, void *d_raw, float *d_taps,
                       const void *d_convolved, const void *edge);
void finish(Device *, const DeltaShape *, void *y, const void *out, const void *raw, const void *scale, float epsilon);
void finish_backward(Device *, const DeltaShape *, void *d_out, void *d_raw, float *d_scale, const void *d_y,
                     const void *out, const void *raw, const void *scale, float epsilon);
void retreat(Device *, const DeltaShape *, const DeltaTokens *, const void *d_out, float *const d_initial[2],
             int64_t d_initial_stride, void *d_states, void *residuals);
void backward(Device *, const DeltaShape *, const DeltaTokens *, const void *states, const void *updates,
              const void *d_out, const float *d_final, void *d_states, void *residuals, const DeltaGradients *);

// Calls f with a constant: the kernels' head size that serves this one.
template <typename F> inline void by_head_dim(int64_t head_dim, F f) {
    if (head_dim <= 32) f(std::integral_constant<int, 32>());
    else if (head_dim <= 64) f(std::integral_constant<int, 64>());
    else f(std::integral_constant<int, 128>());
}

} // namespace delta
#endif
