// Fragments: matrices that a warp holds in its registers, and the tile operations that attention is made of. A warp
// works on 16 M rows; D is a tile's width, N the number of columns (or of rows that are summed over).
//
//   clear(s)   mma_ABt(s, q, k)   mma_AB(out, p, v)   each(s, f)   row_max(s, row)   row_sum(sums)
//   add_rows(to, ...)   merge_row(to, ...)   store_rows(to, ...)
//
// Every loop in here is over a number known when compiling and is unrolled, so that all values stay in registers.
#ifndef ATTENTION_CUDA_FRAGMENT_H
#define ATTENTION_CUDA_FRAGMENT_H

#include "attention/cuda/tile.h"
#include "attention/cuda/view.h"

// A lane's place in its warp. Of 16 x 8 results it holds rows `row`, `row + 8` and columns `column`, `column + 1`.
struct Lane {
    int row, column;
    int down, across; // its offsets in fragments of a tile: see fragment_at
};

// The same number, of which the compiler knows nothing: what it knows of a lane's offset it would use to work out the
// addresses of all fragments before a loop over tiles, and keep each in a register.
__device__ inline int opaque(int x) {
    asm("" : "+r"(x));
    return x;
}
template <int D> __device__ inline Lane this_lane() {
    const int lane = threadIdx.x % WARP;
    return Lane{lane / 4, lane % 4 * 2, opaque(lane_down<D>(lane)), opaque(lane_across<D>(lane))};
}

// Results of products, fp32: 16 M rows of N columns. A lane holds of them the rows row, row + 8, row + 16, ... from
// lane.row on, and the columns 0, 1, 8, 9, 16, 17, ... from lane.column on; it calls them by `row` and `column`,
// without its own place.
template <int M, int N> struct Accumulator {
    float at[M][N / 8][4];
    __device__ __forceinline__ float &operator()(int row, int column) {
        return at[row / 16][column / 8][row / 8 % 2 * 2 + column % 2];
    }
    __device__ __forceinline__ float operator()(int row, int column) const {
        return at[row / 16][column / 8][row / 8 % 2 * 2 + column % 2];
    }
};
// One number for each row, or column, that a lane holds, called by the same names.
template <int M, typename T = float> struct RowValues {
    T at[2 * M];
    __device__ __forceinline__ T &operator[](int row) { return at[row / 8]; }
    __device__ __forceinline__ T operator[](int row) const { return at[row / 8]; }
};
template <typename T> struct __align__(8) Two { T left, right; };
template <typename T, int N> struct ColumnValues {
    Two<T> at[N / 8];
    __device__ __forceinline__ T operator[](int column) const {
        return column % 2 == 0 ? at[column / 8].left : at[column / 8].right;
    }
};

// ---- value by value -------------------------------------------------------------------------------------------------

// f(row) for each row that a lane holds.
template <int M, typename F> __device__ __forceinline__ void each_row(F f) {
#pragma unroll
    for (int row = 0; row < 16 * M; row += 8) f(row);
}
// f(value, column) for each value of a row, from the first column to the last.
template <int M, int N, typename F> __device__ __forceinline__ void each_in_row(Accumulator<M, N> &d, int row, F f) {
#pragma unroll
    for (int n = 0; n < N; n += 8) {
        f(d(row, n), n);
        f(d(row, n + 1), n + 1);
    }
}
// f(value, row, column) for each value, fragment by fragment: in every row from the first column to the last.
template <int M, int N, typename F> __device__ __forceinline__ void each(Accumulator<M, N> &d, F f) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) f(d.at[m][n][i], m * 16 + i / 2 * 8, n * 8 + i % 2);
        }
    }
}
template <int M, int N> __device__ __forceinline__ void clear(Accumulator<M, N> &d) {
    each(d, [](float &x, int, int) { x = 0; });
}
template <int M> __device__ __forceinline__ RowValues<M> rows_of(float value) {
    RowValues<M> rows;
    each_row<M>([&](int row) { rows[row] = value; });
    return rows;
}

// From shared memory, where column 0's value stands at `from`.
template <int N, typename T>
__device__ __forceinline__ ColumnValues<T, N> load_columns(const T *from, const Lane &lane) {
    ColumnValues<T, N> values;
#pragma unroll
    for (int n = 0; n < N / 8; n++) values.at[n] = *reinterpret_cast<const Two<T> *>(from + n * 8 + lane.column);
    return values;
}

// ---- over a row, whose values four lanes hold -----------------------------------------------------------------------

__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, 2));
}
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(WHOLE_WARP, x, 1);
    return x + __shfl_xor_sync(WHOLE_WARP, x, 2);
}
template <int M, int N> __device__ __forceinline__ float row_max(const Accumulator<M, N> &d, int row) {
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < N; n += 8) top = fmaxf(top, fmaxf(d(row, n), d(row, n + 1)));
    return row_max(top);
}

// ---- products -------------------------------------------------------------------------------------------------------

// The A operand of a product: 16 M rows of 16 columns, bf16.
template <int M> struct Fragment { uint32_t at[M][4]; };

// Columns 16 k to 16 k + 15 of the first 16 M rows of a tile.
template <int D, int M>
__device__ __forceinline__ void load_fragment(Fragment<M> &a, const Tile<D> &tile, int k, const Lane &lane) {
#pragma unroll
    for (int m = 0; m < M; m++) ldmatrix_x4(a.at[m], fragment_at<D>(tile.base, lane.down + tile.place, m * 16, 2 * k));
}

// Columns n to n + 15 of what another product has left, rounded. The layouts agree: no value changes lanes.
template <int M, int N> __device__ __forceinline__ Fragment<M> round_fragment(const Accumulator<M, N> &d, int n) {
    Fragment<M> a;
#pragma unroll
    for (int m = 0; m < M; m++) {
        const float *left = d.at[m][n / 8], *right = d.at[m][n / 8 + 1];
        a.at[m][0] = pack_bf16(left[0], left[1]);
        a.at[m][1] = pack_bf16(left[2], left[3]);
        a.at[m][2] = pack_bf16(right[0], right[1]);
        a.at[m][3] = pack_bf16(right[2], right[3]);
    }
    return a;
}

// Columns n to n + 15 of d += a b; b is two fragments of 8 columns, as ldmatrix_x4 brings them.
template <int M, int N>
__device__ __forceinline__ void mma(Accumulator<M, N> &d, int n, const Fragment<M> &a, const uint32_t (&b)[4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
        mma_m16n8k16(d.at[m][n / 8], a.at[m], b);
        mma_m16n8k16(d.at[m][n / 8 + 1], a.at[m], b + 2);
    }
}

// d += a b^T over columns 16 k to 16 k + 15, of which `a` has the warp's rows; b is a tile of N rows.
template <int D, int M, int N>
__device__ __forceinline__ void mma_ABt(Accumulator<M, N> &d, const Fragment<M> &a, const Tile<D> &b, int k,
                                        const Lane &lane) {
#pragma unroll
    for (int n = 0; n < N; n += 16) {
        uint32_t columns[4];
        ldmatrix_x4(columns, fragment_at<D>(b.base, lane.across + b.place, n, 2 * k));
        mma(d, n, a, columns);
    }
}

// d += a b^T: `a` is a tile of the warp's 16 M rows, b one of N rows, each of D values.
template <int D, int M, int N>
__device__ __forceinline__ void mma_ABt(Accumulator<M, N> &d, const Tile<D> &a, const Tile<D> &b, const Lane &lane) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        Fragment<M> rows;
        load_fragment(rows, a, k, lane);
        mma_ABt(d, rows, b, k, lane);
    }
}

// The same where the warp's rows of `a` are in registers already, 16 columns a fragment.
template <int D, int M, int N>
__device__ __forceinline__ void mma_ABt(Accumulator<M, N> &d, const Fragment<M> (&a)[D / 16], const Tile<D> &b,
                                        const Lane &lane) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) mma_ABt(d, a[k], b, k, lane);
}

// d (16 M x D) += a b: `a` (16 M x N) is what another product has left, rounded here; b is a tile of N rows.
template <int D, int M, int N>
__device__ __forceinline__ void mma_AB(Accumulator<M, D> &d, const Accumulator<M, N> &a, const Tile<D> &b,
                                       const Lane &lane) {
#pragma unroll
    for (int k = 0; k < N; k += 16) {
        const Fragment<M> rows = round_fragment(a, k);
#pragma unroll
        for (int n = 0; n < D; n += 16) {
            uint32_t columns[4];
            ldmatrix_x4_trans(columns, fragment_at<D>(b.base, lane.down + b.place, k, n / 8));
            mma(d, n, rows, columns);
        }
    }
}

// ---- to memory ------------------------------------------------------------------------------------------------------

// Row r of `to` += factor * row r of d, for the `rows` rows that exist. `to`: row 0 of the head, on an 8-byte boundary.
template <int D, int M>
__device__ __forceinline__ void add_rows(float *to, int64_t stride, int rows, int head_dim, float factor,
                                         const Accumulator<M, D> &d, const Lane &lane) {
    each_row<M>([&](int row) {
        if (row + lane.row >= rows) return;
        float2 *values = reinterpret_cast<float2 *>(to + (row + lane.row) * stride + lane.column);
        float2 sum[D / 8]; // all of a row's loads are under way before the first store
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            if (n * 8 < head_dim) sum[n] = values[n * 4];
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            if (n * 8 >= head_dim) break;
            sum[n].x += factor * d(row, n * 8);
            sum[n].y += factor * d(row, n * 8 + 1);
            values[n * 4] = sum[n];
        }
    });
}

// A row of D values at `to`, of which the lane's are brought to `keep` times what they were (fresh: nothing; it is not
// read) plus `add` times row `row` of d.
template <int D, int M>
__device__ __forceinline__ void merge_row(float *to, int head_dim, bool fresh, float keep, float add,
                                          const Accumulator<M, D> &d, int row, const Lane &lane) {
    float2 *values = reinterpret_cast<float2 *>(to + lane.column), value[D / 8];
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        value[n] = make_float2(0, 0);
        if (!fresh && n * 8 < head_dim) value[n] = values[n * 4];
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        if (n * 8 >= head_dim) break;
        value[n].x = value[n].x * keep + d(row, n * 8) * add;
        value[n].y = value[n].y * keep + d(row, n * 8 + 1) * add;
        values[n * 4] = value[n];
    }
}

// Row r of `to` = factor[r] * row r of d, rounded, for the `rows` rows that exist. It goes by way of a tile in shared
// memory of the warp's own, whose rows it has done with, from where each lane takes packets.
template <int D, int M>
__device__ __forceinline__ void store_rows(bf16 *to, int64_t stride, int rows, int head_dim, const RowValues<M> &factor,
                                           const Accumulator<M, D> &d, unsigned char *tile, const Lane &lane) {
    __syncwarp(); // all lanes have done with what was there
    each_row<M>([&](int row) {
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            *reinterpret_cast<uint32_t *>(tile + tile_offset<D>(row + lane.row, n) + lane.column * 2) =
                pack_bf16(factor[row] * d(row, n * 8), factor[row] * d(row, n * 8 + 1));
        }
    });
    __syncwarp();
    tile_store<D, 16 * M>(to, stride, rows, head_dim / PACKET, tile);
}

#endif
