// Step 3: online softmax, and a warp to a row.
//
// The maximum need not be known beforehand (Milakov and Gimelshein 2018): when a larger score comes, what was summed so
// far is multiplied by exp(old - new). One pass over the keys is enough, and scores are worked out once.
//
// And 32 lanes share a row: for the scores each takes one of 32 keys, for the output each takes D / 32 columns. So a
// lane holds few values, all in registers; a weight reaches the others by a shuffle. The rows of the tile are one float
// longer than D, or all lanes, each at its own key, would want the same bank of shared memory.
#include "dev/ladder/ladder.h"

namespace {

enum { WARPS = 8, THREADS = WARPS * WARP, ROWS_PER_WARP = 4, ROWS = WARPS * ROWS_PER_WARP, KEYS = WARP };

template <int D>
__device__ void load_tile(float *tile, const Ladder &x, const bf16 *tensor, int head, int first, int rows) {
    for (int n = threadIdx.x; n < rows * D; n += THREADS) {
        const int t = first + n / D;
        tile[n / D * (D + 1) + n % D] = t < x.T ? to_float(tensor[row_at(x, head, t) + n % D]) : 0;
    }
}

template <int D> struct Row {
    float max, sum, out[D / WARP]; // out: columns lane, lane + 32, ...
};

// One row and one tile of keys. `seen`: how many of them the row sees.
template <int D>
__device__ void visit(Row<D> &row, const float *q, const float *k, const float *v, int seen, float scale) {
    const int lane = threadIdx.x % WARP;
    float score = 0;
    for (int d = 0; d < D; d++) score += q[d] * k[lane * (D + 1) + d];
    score = lane < seen ? score * scale : -INFINITY;
    const float max = fmaxf(row.max, warp_max(score)); // finite: a row sees at least the first key of a tile
    const float weight = expf(score - max), rescale = expf(row.max - max);
    row.max = max;
    row.sum = row.sum * rescale + warp_sum(weight);
    for (int c = 0; c < D / WARP; c++) row.out[c] *= rescale;
    for (int j = 0; j < KEYS; j++) {
        const float of_key = __shfl_sync(WHOLE_WARP, weight, j);
        for (int c = 0; c < D / WARP; c++) row.out[c] += of_key * v[j * (D + 1) + c * WARP + lane];
    }
}

template <int D> __global__ void online_kernel(Ladder x) {
    DYNAMIC_SHARED(float, q);
    float *k = q + ROWS * (D + 1), *v = k + KEYS * (D + 1);
    const int blocks = ceil_div(x.T, (int)ROWS), head = blockIdx.x / blocks, first_row = blockIdx.x % blocks * ROWS;
    const int own = (int)threadIdx.x / WARP * ROWS_PER_WARP, lane = threadIdx.x % WARP; // own: the warp's first row
    Row<D> rows[ROWS_PER_WARP];
    for (int r = 0; r < ROWS_PER_WARP; r++) {
        rows[r].max = -INFINITY;
        rows[r].sum = 0;
        for (int c = 0; c < D / WARP; c++) rows[r].out[c] = 0;
    }

    load_tile<D>(q, x, x.q, head, first_row, ROWS);
    const int last = smaller_of(first_row + ROWS, x.T) - 1;
    for (int first = 0; first <= last; first += KEYS) {
        __syncthreads();
        load_tile<D>(k, x, x.k, head, first, KEYS);
        load_tile<D>(v, x, x.v, head, first, KEYS);
        __syncthreads();
        for (int r = 0; r < ROWS_PER_WARP; r++) {
            const int seen = smaller_of(first_row + own + r, x.T - 1) - first + 1;
            if (seen > 0) visit<D>(rows[r], q + (own + r) * (D + 1), k, v, seen, x.scale);
        }
    }
    for (int r = 0; r < ROWS_PER_WARP && first_row + own + r < x.T; r++)
        for (int c = 0; c < D / WARP; c++)
            x.out[row_at(x, head, first_row + own + r) + c * WARP + lane] = to_bf16(rows[r].out[c] / rows[r].sum);
}

} // namespace

void step_3(const Ladder *x) {
    const unsigned blocks = (unsigned)(x->heads * ceil_div(x->T, (int)ROWS));
    const int bytes = (ROWS + 2 * KEYS) * (x->D + 1) * (int)sizeof(float);
    if (x->D == 64) launch(online_kernel<64>, blocks, THREADS, bytes, x->stream, *x);
    else launch(online_kernel<128>, blocks, THREADS, bytes, x->stream, *x);
}
