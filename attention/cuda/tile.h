// Tiles of bf16 in shared memory: what brings them there and back, and where the fragments that tensor cores take
// (fragment.h) lie in them. A tile is ROWS rows of D values, D a multiple of 32; what it holds are consecutive tokens
// of one head.
//
// Swizzle. ldmatrix reads 8 rows of 16 bytes at once, from the same columns. Stored plainly, rows of 128 bytes would
// put all eight into the same four of the 32 banks: eight reads one after the other. So the 16-byte pieces of a row are
// permuted by the row's number: piece p of row r stands at p ^ (r % 8), or, where a row is an odd number of 64 bytes
// (D = 32, 96) and two rows share a span of banks, at p ^ (r / 2 % 4). Any 8 rows then fall into 8 different places.
//
//   row 0 |0|1|2|3|4|5|6|7|      D = 64: one column of pieces, say 2, is met in every
//   row 1 |1|0|3|2|5|4|7|6|      column of places once
//   row 2 |2|3|0|1|6|7|4|5|
//   ...
//
// Addresses in a loop. Because the permutation is an exclusive or, a fragment's address is that of the first fragment
// of the tile, with bits flipped that are known when compiling, plus a constant: see fragment_at.
#ifndef ATTENTION_CUDA_TILE_H
#define ATTENTION_CUDA_TILE_H

#include "layers/cuda/bf16.h"
#include "layers/cuda/cuda.h"
#include "layers/cuda/ptx.h"
#include "layers/cuda/warp.h"

template <int D> __host__ __device__ constexpr int tile_bytes(int rows) { return rows * D * 2; }
// How many pieces the permutation runs over.
template <int D> __host__ __device__ constexpr int swizzle_span() { return D % 64 == 0 ? 8 : 4; }

// Where piece `piece` of row `row` stands, in bytes from the start of the tile (which is aligned to 128 bytes).
template <int D> __device__ inline int tile_offset(int row, int piece) {
    static_assert(D % 32 == 0, "rows of a tile are multiples of 64 bytes");
    const int flip = swizzle_span<D>() == 8 ? row % 8 : row / 2 % 4;
    return row * D * 2 + (piece ^ flip) * 16;
}

// How THREADS threads copy rows of D values: each keeps to one piece of the row and goes over the rows, PER_STEP of
// them at a time, a power of 2; those that do not make up a power of 2 (a quarter, for D = 96) have nothing to do.
template <int D, int THREADS> struct Copy {
    static constexpr int PER_ROW = D / PACKET, MOST = THREADS / PER_ROW;
    static constexpr int PER_STEP = MOST >= 32 ? 32 : MOST >= 16 ? 16 : MOST >= 8 ? 8 : MOST >= 4 ? 4 : 2;
    int row, piece; // this thread's first
    bool valid;     // inside the head
    bool busy;

    // pieces: of the head. thread: one's number among the THREADS.
    __device__ Copy(int thread, int pieces)
        : row(thread / PER_ROW), piece(thread % PER_ROW), valid(piece < pieces), busy(row < PER_STEP) {}
    // This thread's first address in rows that begin at `from` (or, beyond the head, one that may not be read).
    __device__ const bf16 *own(const bf16 *from, int64_t stride) const {
        return from + row * stride + (valid ? piece * PACKET : 0);
    }
};

// Starts copying ROWS rows of one head into a tile, by the first THREADS threads of the block; `thread` is one's number
// among them. Row r begins at from + r * stride; rows from `rows` on and pieces from `pieces` on are zeros (and are not
// read: `from` alone must be valid). Arrives at cp_async_wait and a barrier.
template <int D, int ROWS, int THREADS>
__device__ inline void tile_load(unsigned char *tile, const bf16 *from, int64_t stride, int rows, int pieces,
                                 int thread) {
    const Copy<D, THREADS> copy(thread, pieces);
    const bf16 *own = copy.own(from, stride);
    if (!copy.busy) return;
#pragma unroll
    for (int i = 0; i < ROWS; i += copy.PER_STEP, own += copy.PER_STEP * stride) {
        const bool valid = copy.valid && copy.row + i < rows;
        cp_async_16(tile + tile_offset<D>(copy.row + i, copy.piece), valid ? own : from, valid);
    }
}

// For a loop over tiles from the last one to the first, all of whose rows are there, at the least cost in registers:
// `own` is this thread's address in the last step of the tile, and afterwards in that of the tile before; `step` is
// PER_STEP times the stride, known before the loop.
template <int D, int ROWS, int THREADS>
__device__ inline void tile_load_backwards(unsigned char *tile, const bf16 *&own, int64_t step,
                                           const Copy<D, THREADS> &copy) {
    static_assert(ROWS % Copy<D, THREADS>::PER_STEP == 0, "whole steps");
    if (!copy.busy) return;
#pragma unroll
    for (int i = ROWS - copy.PER_STEP; i >= 0; i -= copy.PER_STEP, own -= step)
        cp_async_16(tile + tile_offset<D>(copy.row + i, copy.piece), own, copy.valid);
}

// The way back, by one warp: the tile's first ROWS rows, of which `rows` exist, to rows that begin at `to` + r *
// stride.
template <int D, int ROWS>
__device__ inline void tile_store(bf16 *to, int64_t stride, int rows, int pieces, const unsigned char *tile) {
    constexpr int PER_ROW = D / PACKET;
#pragma unroll 4
    for (int i = threadIdx.x % WARP; i < ROWS * PER_ROW; i += WARP) {
        const int row = i / PER_ROW, piece = i % PER_ROW;
        if (row < rows && piece < pieces)
            *reinterpret_cast<uint4 *>(to + row * stride + piece * PACKET) =
                *reinterpret_cast<const uint4 *>(tile + tile_offset<D>(row, piece));
    }
}

// ---- where fragments lie --------------------------------------------------------------------------------------------

// One ldmatrix.x4 brings 16 x 16 values: one A fragment, or two B fragments side by side (b[0..1] for the first 8
// columns n, b[2..3] for the next). In which order its four 8 x 8 matrices lie in the tile is up to the addresses that
// the lanes give, and there are two orders:
//
//   what the tile's rows are       fragment                      lanes            instruction
//   rows of A, m (columns: k)      A = tile                      lane_down        ldmatrix_x4         Q in Q K^T
//   columns of A, k (columns: m)   A = tile transposed           lane_across      ldmatrix_x4_trans
//   columns of B, n (columns: k)   B = tile transposed           lane_across      ldmatrix_x4         K in Q K^T
//   rows of B, k (columns: n)      B = tile                      lane_down        ldmatrix_x4_trans   V in P V

// This lane's offset in the fragment at row 0, piece 0. Down: matrices 0, 1 are below one another, 2, 3 beside them.
template <int D> __device__ inline int lane_down(int lane) { return tile_offset<D>(lane % 16, lane / 16); }
// Across: matrices 0, 1 are beside one another, 2, 3 below them.
template <int D> __device__ inline int lane_across(int lane) {
    return tile_offset<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// The address for ldmatrix of the fragment whose first row is `row` (a multiple of 8) and first piece `piece` (even).
// With both known when compiling this is one exclusive or and a constant; see above. In a loop over tiles it is better
// to give the start of shared memory as `tile` and add the tile's place to lane_offset: then the compiler does not keep
// every variant of the exclusive or in a register of its own.
template <int D>
__device__ inline const void *fragment_at(const unsigned char *tile, int lane_offset, int row, int piece) {
    constexpr int SPAN = swizzle_span<D>();
    return tile + (lane_offset ^ piece % SPAN * 16) + (row * D * 2 + piece / SPAN * SPAN * 16);
}

// A tile as the products of fragment.h take it. Which of several tiles it is, or which rows of it, goes into `place`,
// which is added to the lane's offset (places are multiples of 128 bytes, which the permutation does not touch): so
// what is added to that in a loop is known when compiling, and no addresses are kept in registers.
template <int D> struct Tile {
    const unsigned char *base; // the same all through a loop
    int place;                 // bytes from there
};

#endif
