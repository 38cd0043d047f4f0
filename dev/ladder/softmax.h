// Online softmax over the 16 rows that a warp owns, as steps 4, 5, 7 and 8 have it: step 3's, in the places where a
// tensor core leaves the scores (attention/cuda/fragment.h).
#ifndef DEV_LADDER_SOFTMAX_H
#define DEV_LADDER_SOFTMAX_H

#include "attention/cuda/fragment.h"
#include "dev/ladder/ladder.h"

template <int D> struct Rows {
    Accumulator<1, D> out;
    RowValues<1> max, sum; // sum: over this lane's columns alone
};

template <int D> __device__ inline void begin(Rows<D> &rows) {
    clear(rows.out);
    rows.max = rows_of<1>(-INFINITY);
    rows.sum = rows_of<1>(0);
}

// Scores of keys from `first_key` on become weights; what was summed before follows the new maxima.
template <int D, int N>
__device__ inline void softmax(Rows<D> &rows, Accumulator<1, N> &s, int first_row, int first_key, float scale,
                               const Lane &lane) {
    each(s, [&](float &score, int row, int key) {
        const bool seen = first_key + key + lane.column <= first_row + row + lane.row;
        score = seen ? score * scale : -INFINITY;
    });
    each_row<1>([&](int row) {
        const float max = fmaxf(rows.max[row], row_max(s, row)); // finite: all rows see the first tile
        const float rescale = expf(rows.max[row] - max);
        rows.max[row] = max;
        rows.sum[row] *= rescale;
        each_in_row(rows.out, row, [&](float &value, int) { value *= rescale; });
        each_in_row(s, row, [&](float &score, int) { rows.sum[row] += score = expf(score - max); });
    });
}

template <int D>
__device__ inline void store(const Ladder &x, int head, int first_row, const Rows<D> &rows, const Lane &lane) {
    each_row<1>([&](int r) {
        const int row = first_row + r + lane.row;
        const float inverse = 1 / row_sum(rows.sum[r]);
        if (row >= x.T) return;
        for (int n = 0; n < D; n += 8)
            *reinterpret_cast<uint32_t *>(x.out + row_at(x, head, row) + n + lane.column) =
                pack_bf16(rows.out(r, n) * inverse, rows.out(r, n + 1) * inverse);
    });
}

#endif
