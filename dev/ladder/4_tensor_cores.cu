// Step 4: tensor cores.
//
// mma.m16n8k16 multiplies 16 x 16 by 16 x 8 in one instruction of a warp: 2,048 products, where an instruction of its
// lanes makes 32. Its operands are "fragments": the warp holds the matrix together, each lane the places that the PTX
// manual gives it (layers/cuda/ptx.h). Here they are gathered by hand, to see what they are; g = lane / 4 (lane.row), q
// = lane % 4 (lane.column is 2q):
//
//   A = Q (16 queries x 16 of D)        B = K^T (16 of D x 8 keys)        B = V (16 keys x 8 of D)
//   a[0] = Q[g][2q, 2q+1]               b[0] = K[g][2q, 2q+1]             b[0] = V[2q][g], V[2q+1][g]
//   a[1], rows + 8; a[2], columns + 8   b[1] = K[g][2q+8, 2q+9]           b[1] = V[2q+8][g], V[2q+9][g]
//
// One warp owns 16 whole rows, so a row's softmax needs only the four lanes that share it. And what comes out of Q K^T
// lies just as A of the next product wants it: two fragments of scores, rounded to bf16, are one fragment of P.
#include "dev/ladder/softmax.h"

namespace {

enum { WARPS = 4, THREADS = WARPS * WARP, ROWS = WARPS * 16, KEYS = 32 };

__device__ inline uint32_t two(const bf16 *p) { return *reinterpret_cast<const uint32_t *>(p); }
__device__ inline uint32_t two(bf16 low, bf16 high) { return low.bits | (uint32_t)high.bits << 16; }

template <int D>
__device__ void load_tile(bf16 *tile, const Ladder &x, const bf16 *tensor, int head, int first, int rows) {
    for (int n = threadIdx.x * PACKET; n < rows * D; n += THREADS * PACKET) {
        const int t = first + n / D;
        uint4 piece = {0, 0, 0, 0};
        if (t < x.T) piece = *reinterpret_cast<const uint4 *>(tensor + row_at(x, head, t) + n % D);
        *reinterpret_cast<uint4 *>(tile + n) = piece;
    }
}

// S = Q K^T, of the warp's 16 rows of Q.
template <int D>
__device__ inline void scores(Accumulator<1, KEYS> &s, const bf16 *q_rows, const bf16 *k_tile, const Lane &lane) {
    clear(s);
    for (int d = 0; d < D; d += 16) {
        const bf16 *upper = q_rows + lane.row * D + d + lane.column, *lower = upper + 8 * D;
        const uint32_t a[4] = {two(upper), two(lower), two(upper + 8), two(lower + 8)};
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            const bf16 *k = k_tile + (n * 8 + lane.row) * D + d + lane.column;
            const uint32_t b[2] = {two(k), two(k + 8)};
            mma_m16n8k16(s.at[0][n], a, b);
        }
    }
}

// out += P V.
template <int D>
__device__ inline void weighted_values(Accumulator<1, D> &out, const Accumulator<1, KEYS> &p, const bf16 *v_tile,
                                       const Lane &lane) {
#pragma unroll
    for (int key = 0; key < KEYS; key += 16) {
        const Fragment<1> a = round_fragment(p, key);
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            const bf16 *v = v_tile + (key + lane.column) * D + n * 8 + lane.row;
            const uint32_t b[2] = {two(v[0], v[D]), two(v[8 * D], v[9 * D])};
            mma_m16n8k16(out.at[0][n], a.at[0], b);
        }
    }
}

template <int D> __global__ void tensor_core_kernel(Ladder x) {
    DYNAMIC_SHARED(bf16, q_tile);
    bf16 *k_tile = q_tile + ROWS * D, *v_tile = k_tile + KEYS * D;
    const int blocks = ceil_div(x.T, (int)ROWS), head = blockIdx.x / blocks, first_row = blockIdx.x % blocks * ROWS;
    const int own = (int)threadIdx.x / WARP * 16; // the warp's first row
    const Lane lane = this_lane<D>();
    Rows<D> rows;
    begin(rows);

    load_tile<D>(q_tile, x, x.q, head, first_row, ROWS);
    const int last = smaller_of(first_row + ROWS, x.T) - 1;
    for (int first = 0; first <= last; first += KEYS) {
        __syncthreads();
        load_tile<D>(k_tile, x, x.k, head, first, KEYS);
        load_tile<D>(v_tile, x, x.v, head, first, KEYS);
        __syncthreads();
        Accumulator<1, KEYS> s;
        scores<D>(s, q_tile + own * D, k_tile, lane);
        softmax(rows, s, first_row + own, first, x.scale, lane);
        weighted_values<D>(rows.out, s, v_tile, lane);
    }
    store(x, head, first_row + own, rows, lane);
}

} // namespace

void step_4(const Ladder *x) {
    const unsigned blocks = (unsigned)(x->heads * ceil_div(x->T, (int)ROWS));
    const int bytes = (ROWS + 2 * KEYS) * x->D * (int)sizeof(bf16);
    if (x->D == 64) launch(tensor_core_kernel<64>, blocks, THREADS, bytes, x->stream, *x);
    else launch(tensor_core_kernel<128>, blocks, THREADS, bytes, x->stream, *x);
}
