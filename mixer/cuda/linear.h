// What linear attention's CUDA kernels share (mixer/linear.h). A chunk goes window by window; of each window, first
// every block of 64 tokens makes its own state, then a scan goes over them, and then all blocks make their results:
//
//   linear_states.cu     own states, the scan
//   linear_forward.cu    y
//   linear_backward.cu   d_q, and d_k with d_v
//
// Products run on tensor cores (attention/cuda/fragment.h), their operands bf16 (states rounded as well), sums fp32.
#ifndef MIXER_CUDA_LINEAR_H
#define MIXER_CUDA_LINEAR_H

#include "attention/cuda/fragment.h"
#include "layers/cuda/context.h"
#include "mixer/linear.h"

enum { BLOCK = LINEAR_BLOCK, LINEAR_WARPS = BLOCK / 16, LINEAR_THREADS = LINEAR_WARPS * WARP };

// One window of a chunk.
struct LinearWindow {
    TokenView q, k, v, y, d_y, d_q, d_k, d_v; // from the chunk's first token on
    float *inverse;                           // as RowView
    int64_t inverse_batch, inverse_head;
    const float *log2_decay;
    const int32_t *first;   // (B, T); NULL
    int64_t context, start; // T; position of the chunk's first token
    int length, token;      // of the chunk; the window's first token
    int blocks;             // of the window
    int sequences, heads, kv_heads, group, head_dim;
    float *state[2]; // (B, H, blocks, D + 1, D) before each block, and from behind it
    float *delta;    // (B, H, blocks, BLOCK)
};

// Where a block of threads works: on 64 tokens of one head.
struct LinearPlace {
    int b, h, kv_head, block;
    int token, length; // of the chunk; how many there are
    int64_t position;  // of the first
    float log2_decay;
};

__device__ inline LinearPlace linear_place(const LinearWindow &x, int head_row, int block) {
    LinearPlace p;
    p.b = head_row / x.heads, p.h = head_row % x.heads, p.kv_head = p.h / x.group, p.block = block;
    p.token = x.token + block * BLOCK;
    p.length = smaller_of(x.length - p.token, (int)BLOCK);
    p.position = x.start + p.token;
    p.log2_decay = x.log2_decay[p.h];
    return p;
}
__device__ inline float *linear_state_at(const LinearWindow &x, int which, const LinearPlace &p) {
    return x.state[which] + ((int64_t)(p.b * x.heads + p.h) * x.blocks + p.block) * ((x.head_dim + 1) * x.head_dim);
}
__device__ inline float *linear_delta_at(const LinearWindow &x, const LinearPlace &p) {
    return x.delta + ((int64_t)(p.b * x.heads + p.h) * x.blocks + p.block) * BLOCK;
}
__device__ inline float linear_inverse(const LinearWindow &x, const LinearPlace &p, int row) {
    return row < p.length ? x.inverse[p.b * x.inverse_batch + p.h * x.inverse_head + p.token + row] : 0;
}
// The first token that the one at `position` sees.
__device__ inline int64_t linear_first(const LinearWindow &x, int b, int64_t position) {
    return x.first == NULL ? 0 : x.first[b * x.context + position];
}
// What token `row` of the block sees first, counted from its first token; of those beyond it, as the last.
__device__ inline int linear_first_in_block(const LinearWindow &x, const LinearPlace &p, int row) {
    const int64_t first = linear_first(x, p.b, p.position + smaller_of(row, p.length - 1)) - p.position;
    return first > 0 ? (int)first : 0;
}
// g^n; at most 1.
__device__ inline float linear_power(float log2_decay, int n) { return exp2_fast((float)n * log2_decay); }

// ---- tiles ----------------------------------------------------------------------------------------------------------

// The bf16 value at a row and column of a tile.
template <int D> __device__ inline bf16 *tile_value(unsigned char *tile, int row, int column) {
    return reinterpret_cast<bf16 *>(tile + tile_offset<D>(row, column / PACKET)) + column % PACKET;
}
// Columns 2 i, 2 i + 1 of what a lane holds of a tile's row.
template <int D>
__device__ inline uint32_t tile_pair(const unsigned char *tile, int row, int column, const Lane &lane) {
    return *reinterpret_cast<const uint32_t *>(tile + tile_offset<D>(row, column / PACKET) + lane.column * 2);
}

// Rows of a tile times factor[row], in place, by all THREADS threads.
template <int D, int THREADS> __device__ inline void scale_tile(unsigned char *tile, const float *factor) {
    for (int i = threadIdx.x; i < BLOCK * D / PACKET; i += THREADS) {
        const int row = i / (D / PACKET);
        uint32_t *at = reinterpret_cast<uint32_t *>(tile + tile_offset<D>(row, i % (D / PACKET)));
#pragma unroll
        for (int n = 0; n < 4; n++) at[n] = pack_bf16(factor[row] * low_of(at[n]), factor[row] * high_of(at[n]));
    }
}

// out[row] = the dot product of row `row` of the tile and `with` (D values), or of the rows of two tiles.
template <int D> __device__ inline float tile_dot(const unsigned char *tile, int row, const float *with) {
    float sum = 0;
    for (int piece = 0; piece < D / PACKET; piece++) {
        const uint32_t *x = reinterpret_cast<const uint32_t *>(tile + tile_offset<D>(row, piece));
#pragma unroll
        for (int n = 0; n < 4; n++) {
            sum = fmaf(low_of(x[n]), with[piece * PACKET + 2 * n], sum);
            sum = fmaf(high_of(x[n]), with[piece * PACKET + 2 * n + 1], sum);
        }
    }
    return sum;
}
template <int D> __device__ inline float tile_dot(const unsigned char *tile, const unsigned char *other, int row) {
    float sum = 0;
    for (int piece = 0; piece < D / PACKET; piece++) {
        const uint32_t *x = reinterpret_cast<const uint32_t *>(tile + tile_offset<D>(row, piece));
        const uint32_t *y = reinterpret_cast<const uint32_t *>(other + tile_offset<D>(row, piece));
#pragma unroll
        for (int n = 0; n < 4; n++) sum = fmaf(high_of(x[n]), high_of(y[n]), fmaf(low_of(x[n]), low_of(y[n]), sum));
    }
    return sum;
}

// A state's first D rows as a tile of D x D, rounded, zeros beyond the head; and its last row.
template <int D, int THREADS>
__device__ inline void load_state(unsigned char *tile, float *last, const float *state, int head_dim) {
#pragma unroll 1 // not at the cost of the sums that wait in registers
    for (int i = threadIdx.x; i < D * D / 4; i += THREADS) {
        const int row = i / (D / 4), column = i % (D / 4) * 4;
        float4 x = make_float4(0, 0, 0, 0);
        if (row < head_dim && column < head_dim) x = *reinterpret_cast<const float4 *>(state + row * head_dim + column);
        uint2 packed;
        packed.x = pack_bf16(x.x, x.y), packed.y = pack_bf16(x.z, x.w);
        *reinterpret_cast<uint2 *>(tile + tile_offset<D>(row, column / PACKET) + column % PACKET * 2) = packed;
    }
    for (int i = threadIdx.x; i < D; i += THREADS) last[i] = i < head_dim ? state[head_dim * head_dim + i] : 0;
}

// Starts copying a block's rows of one head.
template <int D, int THREADS>
__device__ inline void load_block(unsigned char *tile, TokenView from, const LinearPlace &p, int head, int head_dim) {
    tile_load<D, BLOCK, THREADS>(tile, token_at(from, p.b, p.token, head, head_dim), from.token_stride, p.length,
                                 head_dim / PACKET, threadIdx.x);
}

// ---- products beside those of fragment.h ----------------------------------------------------------------------------

// Row r of d (16 x D) += factor[r] * row r of a b, where `a` is a tile of the warp's 16 rows and b one of D rows; or of
// a b^T (TRANSPOSED).
template <int D, bool TRANSPOSED>
__device__ __forceinline__ void add_scaled_product(Accumulator<1, D> &d, const RowValues<1> &factor, const Tile<D> &a,
                                                   const Tile<D> &b, const Lane &lane) {
#pragma unroll
    for (int n = 0; n < D; n += 16) {
        Accumulator<1, 16> part;
        clear(part);
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            Fragment<1> rows; // loaded anew for every n: there are no registers for all of them
            load_fragment(rows, a, k, lane);
            uint32_t columns[4];
            if (TRANSPOSED) ldmatrix_x4(columns, fragment_at<D>(b.base, lane.across + b.place, n, 2 * k));
            else ldmatrix_x4_trans(columns, fragment_at<D>(b.base, lane.down + b.place, 16 * k, n / 8));
            mma(part, 0, rows, columns);
        }
        each(part, [&](float &x, int row, int column) { d(row, n + column) += factor[row] * x; });
    }
}

// d *= phi' of the features that stand in a tile, whose rows are the warp's: min(x, 1).
template <int D>
__device__ __forceinline__ void times_slope(Accumulator<1, D> &d, const unsigned char *tile, int first_row,
                                            const Lane &lane) {
    each_row<1>([&](int row) {
#pragma unroll
        for (int n = 0; n < D; n += 8) {
            const uint32_t x = tile_pair<D>(tile, first_row + row + lane.row, n, lane);
            d(row, n) *= fminf(low_of(x), 1);
            d(row, n + 1) *= fminf(high_of(x), 1);
        }
    });
}

// Calls f<D>() for the kernel that serves heads of this size.
#define LINEAR_BY_HEAD(head_dim, call)                                                                                 \
    switch (kernel_head_dim(head_dim)) {                                                                               \
    case 32: call(32); break;                                                                                          \
    case 64: call(64); break;                                                                                          \
    case 96: call(96); break;                                                                                          \
    case 128: call(128); break;                                                                                        \
    default: cuda_give_up(__FILE__, __LINE__, "no linear attention for heads of %d", (int)(head_dim));                 \
    }

// States of every block of the window: own, and then those that go on from `from` (NULL: nothing), which is left as
// that after the window in `to`, and at the window's begin in `start` (NULL: not wanted).
void cuda_linear_states(Device *device, const LinearWindow &x, bool behind, const float *from, float *to, float *start);
void cuda_linear_outputs(Device *device, const LinearWindow &x);
void cuda_linear_gradients(Device *device, const LinearWindow &x);

#endif
