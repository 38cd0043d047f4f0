// Step 4: tensor cores.
//
// mma.m16n8k16 multiplies 16 x 16 by 16 x 8 in one instruction of a warp: 2,048 products, where an instruction of its
// lanes makes 32. Its operands are "fragments": the warp holds the matrix together, each lane the places that the PTX
// manual gives it (layers/cuda/ptx.h). Here they are gathered by hand, to see what they are; q = lane % 4, g = lane /
// 4:
//
//   A = Q (16 queries x 16 of D)        B = K^T (16 of D x 8 keys)        B = V (16 keys x 8 of D)
//   a[0] = Q[g][2q, 2q+1]               b[0] = K[g][2q, 2q+1]             b[0] = V[2q][g], V[2q+1][g]
//   a[1], rows + 8; a[2], columns + 8   b[1] = K[g][2q+8, 2q+9]           b[1] = V[2q+8][g], V[2q+9][g]
//
// One warp owns 16 whole rows, so a row's softmax needs only the four lanes that share it. And what comes out of Q K^T
// lies just as A of the next product wants it: two fragments of scores, rounded to bf16, are one fragment of P.
#include "dev/ladder/ladder.h"

enum { WARPS = 4, THREADS = WARPS * WARP, ROWS = WARPS * 16, KEYS = 32 };

__device__ inline uint32_t two(const bf16 *p) { return *reinterpret_cast<const uint32_t *>(p); }
__device__ inline uint32_t two(bf16 low, bf16 high) { return low.bits | (uint32_t)high.bits << 16; }
__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, 2));
}
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(WHOLE_WARP, x, 1);
    return x + __shfl_xor_sync(WHOLE_WARP, x, 2);
}

template <int D>
__device__ void load_tile(bf16 *tile, const Ladder &x, const bf16 *tensor, int head, int first, int rows) {
    for (int n = threadIdx.x * PACKET; n < rows * D; n += THREADS * PACKET) {
        const int t = first + n / D;
        uint4 piece = {0, 0, 0, 0};
        if (t < x.T) piece = *reinterpret_cast<const uint4 *>(tensor + row_at(x, head, t) + n % D);
        *reinterpret_cast<uint4 *>(tile + n) = piece;
    }
}

template <int D> __global__ void tensor_core_kernel(Ladder x) {
    DYNAMIC_SHARED(bf16, q_tile);
    bf16 *k_tile = q_tile + ROWS * D, *v_tile = k_tile + KEYS * D;
    const int blocks = ceil_div(x.T, (int)ROWS), head = blockIdx.x / blocks, first_row = blockIdx.x % blocks * ROWS;
    const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, own = (int)threadIdx.x / WARP * 16;
    const int row = first_row + own + g; // and row + 8
    float out[D / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

    load_tile<D>(q_tile, x, x.q, head, first_row, ROWS);
    const int last = smaller_of(first_row + ROWS, x.T) - 1;
    for (int first = 0; first <= last; first += KEYS) {
        __syncthreads();
        load_tile<D>(k_tile, x, x.k, head, first, KEYS);
        load_tile<D>(v_tile, x, x.v, head, first, KEYS);
        __syncthreads();

        float s[KEYS / 8][4] = {};
        for (int d = 0; d < D; d += 16) {
            const bf16 *upper = q_tile + (own + g) * D + d + 2 * q, *lower = upper + 8 * D;
            const uint32_t a[4] = {two(upper), two(lower), two(upper + 8), two(lower + 8)};
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
                const bf16 *k = k_tile + (n * 8 + g) * D + d + 2 * q;
                const uint32_t b[2] = {two(k), two(k + 8)};
                mma_m16n8k16(s[n], a, b);
            }
        }

#pragma unroll
        for (int half = 0; half < 2; half++) { // row, then row + 8
            float top = max[half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = half * 2; i < half * 2 + 2; i++) {
                    const int key = first + n * 8 + 2 * q + i % 2;
                    s[n][i] = key <= row + half * 8 ? s[n][i] * x.scale : -INFINITY;
                    top = fmaxf(top, s[n][i]);
                }
            top = row_max(top); // finite from the first tile on, which all rows see
            const float rescale = expf(max[half] - top);
            max[half] = top;
            sum[half] *= rescale;
#pragma unroll
            for (int n = 0; n < D / 8; n++) out[n][half * 2] *= rescale, out[n][half * 2 + 1] *= rescale;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = half * 2; i < half * 2 + 2; i++) sum[half] += s[n][i] = expf(s[n][i] - top);
        }

#pragma unroll
        for (int key = 0; key < KEYS; key += 16) {
            const float *low = s[key / 8], *high = s[key / 8 + 1];
            const uint32_t a[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                                   pack_bf16(high[2], high[3])};
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                const bf16 *v = v_tile + (key + 2 * q) * D + n * 8 + g;
                const uint32_t b[2] = {two(v[0], v[D]), two(v[8 * D], v[9 * D])};
                mma_m16n8k16(out[n], a, b);
            }
        }
    }

    for (int half = 0; half < 2; half++) {
        const float inverse = 1 / row_sum(sum[half]);
        if (row + half * 8 >= x.T) continue;
        for (int n = 0; n < D / 8; n++)
            *reinterpret_cast<uint32_t *>(x.out + row_at(x, head, row + half * 8) + n * 8 + 2 * q) =
                pack_bf16(out[n][half * 2] * inverse, out[n][half * 2 + 1] * inverse);
    }
}

void step_4(const Ladder *x) {
    const unsigned blocks = (unsigned)(x->heads * ceil_div(x->T, (int)ROWS));
    const int bytes = (ROWS + 2 * KEYS) * x->D * (int)sizeof(bf16);
    if (x->D == 64) launch(tensor_core_kernel<64>, blocks, THREADS, bytes, x->stream, *x);
    else launch(tensor_core_kernel<128>, blocks, THREADS, bytes, x->stream, *x);
}
