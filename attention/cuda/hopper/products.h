// What the two warpgroups that work in backward.cu are made of: their products, and what a thread does with its values
// of the results. All of it is inlined there, and every array is registers.
#ifndef ATTENTION_CUDA_HOPPER_PRODUCTS_H
#define ATTENTION_CUDA_HOPPER_PRODUCTS_H

#include "attention/cuda/fragment.h"
#include "attention/cuda/hopper/query_sums.h"

namespace hopper::backward {

// What a warpgroup's products give: 64 rows of N columns, 16 of the rows to each warp.
template <int N> using Product = Accumulator<1, N>;

// ---- products -------------------------------------------------------------------------------------------------------

// d = a b^T over D columns: 64 rows of `a`, which is half of a tile of 128; all rows of b.
template <int D, int N> __device__ inline void multiply_ABt(Product<N> &d, const Tile64 *a, const Tile64 *b) {
    const uint64_t left = wgmma_operand(a, 16), right = wgmma_operand(b, 16);
    wgmma_ABt<Wgmma::FRESH>(d.at[0], left, right);
#pragma unroll
    for (int k = 1; k < D / 16; k++) {
        const int part = k / 4 * (int)sizeof(Tile64), in_row = k % 4 * 32;
        wgmma_ABt<Wgmma::ADD>(d.at[0], wgmma_operand_at(left, 2 * part + in_row),
                              wgmma_operand_at(right, N / 64 * part + in_row));
    }
    wgmma_commit();
}

// d += a b: a from registers, b a tile of 16 K rows.
template <int N, int K> __device__ inline void multiply_AB(Product<N> &d, const Fragment<1> (&a)[K], const Tile64 *b) {
    const uint64_t right = wgmma_operand(b, K / 4 * (int)sizeof(Tile64));
#pragma unroll
    for (int k = 0; k < K; k++) wgmma_AB(d.at[0], a[k].at[0], wgmma_operand_at(right, k * 2048));
    wgmma_commit();
}

// d = a^T b over the KEYS rows of both: 64 columns of each.
__device__ inline void multiply_AtB(Product<64> &d, const Tile64 *a, const Tile64 *b) {
    const uint64_t left = wgmma_operand(a, 16), right = wgmma_operand(b, 16);
    wgmma_AtB<Wgmma::FRESH>(d.at[0], left, right);
#pragma unroll
    for (int k = 1; k < KEYS / 16; k++)
        wgmma_AtB<Wgmma::ADD>(d.at[0], wgmma_operand_at(left, k * 2048), wgmma_operand_at(right, k * 2048));
    wgmma_commit();
}

// ---- a thread's values ----------------------------------------------------------------------------------------------

// A thread's place, counted from its warpgroup's first row. `down`: where its row for stmatrix begins in a Tile64.
__device__ inline Lane lane_of_warpgroup() {
    const int lane = threadIdx.x % WARP, first_row = threadIdx.x % WARPGROUP / WARP * 16;
    return Lane{first_row + lane / 4, lane % 4 * 2, tile_offset<64>(first_row + lane % 16, lane / 16), 0};
}

// x, of which the compiler knows nothing, each time anew: what is worked out from it in a loop it cannot keep from step
// to step (opaque may be moved out of the loop).
__device__ inline int forget(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// factor * d, rounded.
template <int N> __device__ inline void round_product(Fragment<1> (&rounded)[N / 16], Product<N> &d, float factor) {
    each(d, [&](float &x, int, int) { x *= factor; });
#pragma unroll
    for (int k = 0; k < N / 16; k++) rounded[k] = round_fragment(d, k * 16);
}

// Such fragments to the warpgroup's rows of a tile of 128 rows: first 64 columns, the next 64 in the next tile.
template <int K> __device__ inline void store_fragments(Tile64 *tile, const Fragment<1> (&a)[K], const Lane &lane) {
#pragma unroll
    for (int k = 0; k < K; k++)
        stmatrix_x4(reinterpret_cast<char *>(tile + k / 4 * 2) + (lane.down ^ k % 4 * 32), a[k].at[0]);
}

// Terms of dQ to shared memory, as they go on from there: columns 8 n to 8 n + 7 of all threads, then the next 8. One
// address and constants: with a swizzle each store would wait for the address of the next.
__device__ inline void store_terms(float *to, const Product<64> &d_q) {
    float4 *own = reinterpret_cast<float4 *>(to) + threadIdx.x % WARPGROUP;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        const float *four = d_q.at[0][n];
        own[n * WARPGROUP] = make_float4(four[0], four[1], four[2], four[3]);
    }
}

// f(value, row, query, the query's number) for each value. Of the numbers, which stand in shared memory, the first
// EARLY are read before the wait for d; for more there are no registers then.
constexpr int EARLY = 64;
using EarlyNumbers = ColumnValues<float, EARLY>;
template <int N, typename F>
__device__ __forceinline__ void each_with(Product<N> &d, const EarlyNumbers &early, const float *numbers,
                                          const Lane &lane, F f) {
#pragma unroll
    for (int n = 0; n < N; n += 8) {
        const Two<float> two = n < EARLY ? early.at[n / 8] : load_columns<8>(numbers + n, lane).at[0];
#pragma unroll
        for (int i = 0; i < 4; i++) f(d.at[0][n / 8][i], i / 2 * 8, n + i % 2, i % 2 == 0 ? two.left : two.right);
    }
}

// P in place of S, as if all keys were seen.
template <int N>
__device__ inline void exponentiate(Product<N> &p, const EarlyNumbers &early, const float *log_sum_exp,
                                    float scale_log2, const Lane &lane) {
    each_with(p, early, log_sum_exp, lane,
              [&](float &x, int, int, float number) { x = exp2_fast(fmaf(x, scale_log2, -number)); });
}
// 0 for keys (rows) after the query's position, query >= key + hidden sees it, and for those that do not exist, after
// `keys`.
template <int N> __device__ inline void hide_later_keys(Product<N> &p, int hidden, int keys, const Lane &lane) {
    if (hidden + GROUP_ROWS - 1 <= 0 && keys >= GROUP_ROWS) return;
    each_row<1>([&](int row) {
        const int key = lane.row + row, first = (key < keys ? hidden + key : N) - lane.column;
        each_in_row(p, row, [&](float &x, int query) {
            if (query < first) x = 0;
        });
    });
}
// 0 for keys before the first that each query sees; the warpgroup's first key is `first_row` of those that are counted.
template <int N>
__device__ inline void hide_earlier_keys(Product<N> &p, const uint8_t *first_key, int first_row, const Lane &lane) {
    if (first_key[N - 1] <= first_row) return;
    each(p, [&](float &x, int key, int query) {
        if (first_row + lane.row + key < first_key[query + lane.column]) x = 0;
    });
}

// P and dS, rounded, from P and dP.
template <int N>
__device__ inline void differentiate(Fragment<1> (&p_rounded)[N / 16], Fragment<1> (&d_s)[N / 16], const Product<N> &p,
                                     Product<N> &d_p, const EarlyNumbers &early, const float *delta, const Lane &lane) {
    each_with(d_p, early, delta, lane,
              [&](float &x, int key, int query, float number) { x = p(key, query) * (x - number); });
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        p_rounded[k] = round_fragment(p, k * 16);
        d_s[k] = round_fragment(d_p, k * 16);
    }
}

} // namespace hopper::backward

#endif
