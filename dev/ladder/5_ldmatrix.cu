// Step 5: ldmatrix and swizzle.
//
// Step 4 gathers its fragments 4 bytes, or for V 2 bytes, at a time, and its rows of 128 or 256 bytes all begin at the
// same bank: the eight rows of a fragment come one after the other. ldmatrix brings four 8 x 8 matrices at once, laid
// out as mma wants them, transposed on the way if asked: that is V's fragment without a single shuffle. And the tile is
// permuted, 16 bytes at a time, so that eight rows lie in eight different places (attention/cuda/tile.h has the
// picture; run with EMULATED_BANKS=1 to have the passes counted). All else is step 4.
//
// What is left for attention/cuda/forward.cu: a warp still waits for every tile to arrive (there the next one is under
// way while this one is worked on), each fragment of K and V serves 16 rows only (there 32), the scores of every tile
// are compared with the diagonal, and the accumulator is rescaled at every tile.
#include "attention/cuda/tile.h"
#include "dev/ladder/ladder.h"

enum { WARPS = 4, THREADS = WARPS * WARP, ROWS = WARPS * 16, KEYS = 32 };

__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, 2));
}
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(WHOLE_WARP, x, 1);
    return x + __shfl_xor_sync(WHOLE_WARP, x, 2);
}

template <int D>
__device__ void load_tile(unsigned char *tile, const Ladder &x, const bf16 *tensor, int head, int first, int rows) {
    for (int n = threadIdx.x * PACKET; n < rows * D; n += THREADS * PACKET) {
        const int t = first + n / D;
        uint4 piece = {0, 0, 0, 0};
        if (t < x.T) piece = *reinterpret_cast<const uint4 *>(tensor + row_at(x, head, t) + n % D);
        *reinterpret_cast<uint4 *>(tile + tile_offset<D>(n / D, n % D / PACKET)) = piece;
    }
}

template <int D> __global__ void ldmatrix_kernel(Ladder x) {
    DYNAMIC_SHARED(unsigned char, q_tile);
    unsigned char *k_tile = q_tile + tile_bytes<D>(ROWS), *v_tile = k_tile + tile_bytes<D>(KEYS);
    const int blocks = ceil_div(x.T, (int)ROWS), head = blockIdx.x / blocks, first_row = blockIdx.x % blocks * ROWS;
    const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, own = (int)threadIdx.x / WARP * 16;
    const int row = first_row + own + g; // and row + 8
    const int down = lane_down<D>(lane), across = lane_across<D>(lane);
    float out[D / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

    load_tile<D>(q_tile, x, x.q, head, first_row, ROWS);
    const int last = smaller_of(first_row + ROWS, x.T) - 1;
    for (int first = 0; first <= last; first += KEYS) {
        __syncthreads();
        load_tile<D>(k_tile, x, x.k, head, first, KEYS);
        load_tile<D>(v_tile, x, x.v, head, first, KEYS);
        __syncthreads();

        float s[KEYS / 8][4] = {};
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            uint32_t a[4], b[4];
            ldmatrix_x4(a, fragment_at<D>(q_tile, down, own, d / 8));
#pragma unroll
            for (int n = 0; n < KEYS / 8; n += 2) {
                ldmatrix_x4(b, fragment_at<D>(k_tile, across, n * 8, d / 8));
                mma_16x16(s[n], s[n + 1], a, b);
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
            uint32_t a[4], b[4];
            to_a_fragment(a, s[key / 8], s[key / 8 + 1]);
#pragma unroll
            for (int n = 0; n < D / 8; n += 2) {
                ldmatrix_x4_trans(b, fragment_at<D>(v_tile, down, key, n));
                mma_16x16(out[n], out[n + 1], a, b);
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

void step_5(const Ladder *x) {
    const unsigned blocks = (unsigned)(x->heads * ceil_div(x->T, (int)ROWS));
    const int bytes = (ROWS + 2 * KEYS) * x->D * (int)sizeof(bf16);
    if (x->D == 64) launch(ldmatrix_kernel<64>, blocks, THREADS, bytes, x->stream, *x);
    else launch(ldmatrix_kernel<128>, blocks, THREADS, bytes, x->stream, *x);
}
