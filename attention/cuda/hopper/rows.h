// The rows of a warp in Hopper's forward kernel: the online softmax in base 2 of attention/cuda/forward.cu, and what is
// stored in the end. As after mma.sync, of a warp's 16 rows a lane holds g and g + 8 (g = lane / 4), and in each 2 of 8
// columns.
//
// Addresses are written out here where a function of view.h would do: ptxas then leaves more to the uniform datapath,
// or less, and that goes as far as the loop over tiles. These are the forms of the study (doc/gpu/hopper.md).
#ifndef ATTENTION_CUDA_HOPPER_ROWS_H
#define ATTENTION_CUDA_HOPPER_ROWS_H

#include "attention/cuda/fragment.h"

namespace hopper {

// The 16 rows of a warp.
template <int D> struct Rows {
    Accumulator<1, D> out;
    RowValues<1> max, sum; // max: of c s, or up to SLACK less. sum: over this lane's columns alone

    static constexpr float SLACK = 2, NOTHING_SEEN = -1e38f; // NOTHING_SEEN: a maximum lower than any, but finite
};

template <int D> __device__ inline void begin(Rows<D> &rows) {
    clear(rows.out);
    rows.max = rows_of<1>(rows.NOTHING_SEEN);
    rows.sum = rows_of<1>(0);
}

// Scores of keys that a row does not see become -inf. Of the tile's keys `left` exist, the warp's first row sees those
// up to and with number `diagonal`, and each row, where LIMITED, none before number first[row] - tile_key.
template <bool LIMITED, int N>
__device__ inline void mask(Accumulator<1, N> &s, int left, int diagonal, const RowValues<1, int> &first, int tile_key,
                            int lane) {
    each_row<1>([&](int row) {
        const int seen = smaller_of(left, diagonal + row + lane / 4 + 1) - lane % 4 * 2; // from the lane's first on
        const int before = LIMITED ? first[row] - tile_key - lane % 4 * 2 : 0;
        each_in_row(s, row, [&](float &score, int key) {
            if (key >= seen || (LIMITED && key < before)) score = -INFINITY;
        });
    });
}

// The largest score of this lane's in a row, by two chains, each step of which waits for the one before.
template <int N> __device__ inline float largest(const Accumulator<1, N> &s, int row) {
    float even = -INFINITY, odd = -INFINITY;
#pragma unroll
    for (int n = 0; n < N; n += 8) {
        float &chain = n % 16 ? odd : even;
        chain = fmaxf(chain, fmaxf(s(row, n), s(row, n + 1)));
    }
    return fmaxf(even, odd);
}

// S becomes P; maximum and sum follow. What was summed before is to be multiplied by `rescale` if it returns true.
//
// Any number may stand for the maximum as long as the powers of 2 stay in range: it is divided out in the end. So the
// one at hand is kept until some score is larger by more than SLACK (in powers of 2). That is rare after the first
// tiles, and spares the rest the shuffles and the multiplications.
template <int D, int N>
__device__ inline bool softmax(Rows<D> &rows, Accumulator<1, N> &s, RowValues<1> &rescale, float scale_log2) {
    RowValues<1> top;
    each_row<1>([&](int row) { top[row] = largest(s, row); });
    const bool grown = __any_sync(WHOLE_WARP, fmaf(top[0], scale_log2, -rows.max[0]) > rows.SLACK ||
                                                  fmaf(top[8], scale_log2, -rows.max[8]) > rows.SLACK);
    if (grown) {
        each_row<1>([&](int row) {
            const float old = rows.max[row];
            rows.max[row] = fmaxf(old, row_max(top[row]) * scale_log2);
            rescale[row] = exp2_fast(old - rows.max[row]);
            rows.sum[row] *= rescale[row];
        });
    }
    each(s, [&](float &score, int row, int) {
        score = exp2_fast(fmaf(score, scale_log2, -rows.max[row]));
        rows.sum[row] += score;
    });
    return grown;
}

// ---- to memory ------------------------------------------------------------------------------------------------------

struct Results {
    TokenView out;
    FloatView accumulator;
    RowView max, sum, log_sum_exp;
};

// Among the four lanes of a row, lane q having word q of four packets: all four words of packet q.
__device__ inline void transpose_words(uint32_t (&word)[4], int q) {
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & bit) continue;
            const uint32_t got = __shfl_xor_sync(WHOLE_WARP, q & bit ? word[i] : word[i | bit], bit);
            if (q & bit) word[i] = got;
            else word[i | bit] = got;
        }
}

// out = accumulator / sum. first: the warp's first row.
template <int D> __device__ inline void store_out(const Results &to, int b, int h, int first, const Rows<D> &rows) {
    const int q = threadIdx.x % 4, row = first + (int)threadIdx.x % WARP / 4;
    const float sum[2] = {row_sum(rows.sum[0]), row_sum(rows.sum[8])};
    const float inverse[2] = {sum[0] == 0 ? 0 : 1 / sum[0], sum[1] == 0 ? 0 : 1 / sum[1]}; // 0: saw no key. NaN stays
    if (q < 2 && row + q * 8 >= 0) { // two of the four lanes have a row each
        const float total = q ? sum[1] : sum[0], max = q ? rows.max[8] : rows.max[0];
        to.log_sum_exp.data[b * to.log_sum_exp.batch_stride + h * to.log_sum_exp.head_stride + row + q * 8] =
            total == 0 ? -INFINITY : (max + log2f(total)) * LN_2;
    }
    each_row<1>([&](int r) {
        bf16 *out = static_cast<bf16 *>(to.out.data) + b * to.out.batch_stride + (row + r) * to.out.token_stride +
                    h * D + q * PACKET;
#pragma unroll
        for (int n = 0; n < D; n += 32) {
            uint32_t word[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                word[i] =
                    pack_bf16(rows.out(r, n + i * 8) * inverse[r / 8], rows.out(r, n + i * 8 + 1) * inverse[r / 8]);
            transpose_words(word, q);
            if (row + r >= 0) *reinterpret_cast<uint4 *>(out + n) = make_uint4(word[0], word[1], word[2], word[3]);
        }
    });
}

// Adds these rows to the state in memory: both are brought to the larger maximum. A state without keys is not read.
template <int D> __device__ inline void merge_state(const Results &to, int b, int h, int first, const Rows<D> &rows) {
    const int q = threadIdx.x % 4;
    each_row<1>([&](int r) {
        const float own_sum = row_sum(rows.sum[r]), own = own_sum == 0 ? -INFINITY : rows.max[r];
        const int row = first + r + (int)threadIdx.x % WARP / 4;
        const bool inside = row >= 0;
        float *max = row_at(to.max, b, h, row), *sum = row_at(to.sum, b, h, row);
        const float old = inside ? *max : -INFINITY, old_sum = inside ? *sum : 0;
        const float both = fmaxf(old, own), finite = both == -INFINITY ? 0 : both;
        const float keep = exp2_fast(old - finite), add = exp2_fast(own - finite);
        __syncwarp(); // all four lanes of the row have read
        if (!inside) return;
        if (q == 0) {
            *max = both;
            *sum = old_sum * keep + own_sum * add;
        }
        const bool fresh = old == -INFINITY && old_sum == 0;
        float2 *state = reinterpret_cast<float2 *>(float_at(to.accumulator, b, row, h, D) + q * 2);
#pragma unroll
        for (int begin = 0; begin < D; begin += 32) {
            float2 value[4]; // so many loads are under way before the first store
#pragma unroll
            for (int n = 0; n < 4; n++) value[n] = fresh ? make_float2(0, 0) : state[begin / 2 + n * 4];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                value[n].x = value[n].x * keep + rows.out(r, begin + n * 8) * add;
                value[n].y = value[n].y * keep + rows.out(r, begin + n * 8 + 1) * add;
                state[begin / 2 + n * 4] = value[n];
            }
        }
    });
}

} // namespace hopper

#endif
