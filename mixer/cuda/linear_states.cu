// Linear attention's states: what each block of 64 tokens adds, and the scan that goes over blocks.
//
//   before    own = sum_j (g^(last - j) K_j) V_j^T         its last row: sum_j g^(last - j) K_j
//   behind    own = sum_i (g^(i - first) G_i) Q_i^T        its last row: sum_i g^(i - first) delta_i Q_i
//
// Both are A^T B over tokens; A's rows are scaled and rounded in shared memory.
#include "mixer/cuda/linear.h"

namespace {

// A warp makes 16 of the D rows.
template <int D> constexpr int STATE_THREADS = D / 16 * WARP;

template <int D> struct StateTiles {
    unsigned char left[tile_bytes<D>(BLOCK)], right[tile_bytes<D>(BLOCK)], y[tile_bytes<D>(BLOCK)];
    float factor[BLOCK], weight[BLOCK]; // of left's rows, and of the last row's terms
};

// How row `row` counts towards a state from before (or behind) the block.
template <bool BEHIND> __device__ inline float decay_of_row(const LinearWindow &x, const LinearPlace &p, int row) {
    if (row >= p.length) return 0;
    if (BEHIND) return linear_first_in_block(x, p, row) == 0 ? linear_power(p.log2_decay, row) : 0;
    return row < linear_first_in_block(x, p, p.length - 1) ? 0 : linear_power(p.log2_decay, p.length - 1 - row);
}

// Columns 16 m to 16 m + 15 of a tile's rows 16 k to 16 k + 15, as rows of A.
template <int D>
__device__ __forceinline__ void load_transposed(Fragment<1> &a, const Tile<D> &tile, int m, int k, const Lane &lane) {
    ldmatrix_x4_trans(a.at[0], fragment_at<D>(tile.base, lane.across + tile.place, 16 * k, 2 * m));
}

template <int D>
__device__ inline void store_state(float *state, int head_dim, int first_row, const Accumulator<1, D> &d,
                                   const Lane &lane) {
    each_row<1>([&](int row) {
        const int r = first_row + row + lane.row;
        if (r >= head_dim) return;
#pragma unroll
        for (int n = 0; n < D; n += 8)
            if (n < head_dim)
                *reinterpret_cast<float2 *>(state + r * head_dim + n + lane.column) =
                    make_float2(d(row, n), d(row, n + 1));
    });
}

template <int D, bool BEHIND>
__global__ void __launch_bounds__(STATE_THREADS<D>) own_state_kernel(const LinearWindow x) {
    constexpr int THREADS = STATE_THREADS<D>;
    DYNAMIC_SHARED(StateTiles<D>, tiles);
    const int rows = x.sequences * x.heads, thread = threadIdx.x;
    const LinearPlace p = linear_place(x, (int)blockIdx.x % rows, (int)blockIdx.x / rows);
    if (BEHIND) {
        load_block<D, THREADS>(tiles->left, x.d_y, p, p.h, x.head_dim);
        load_block<D, THREADS>(tiles->right, x.q, p, p.h, x.head_dim);
        load_block<D, THREADS>(tiles->y, x.y, p, p.h, x.head_dim);
    } else {
        load_block<D, THREADS>(tiles->left, x.k, p, p.kv_head, x.head_dim);
        load_block<D, THREADS>(tiles->right, x.v, p, p.kv_head, x.head_dim);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    for (int row = thread; row < BLOCK; row += THREADS) {
        const float decay = decay_of_row<BEHIND>(x, p, row);
        float inverse = 1, weight = decay;
        if (BEHIND) {
            inverse = linear_inverse(x, p, row);
            const float delta = -inverse * tile_dot<D>(tiles->left, tiles->y, row);
            linear_delta_at(x, p)[row] = delta;
            weight *= delta;
        }
        tiles->factor[row] = decay * inverse;
        tiles->weight[row] = weight;
    }
    __syncthreads();
    float *state = linear_state_at(x, BEHIND, p);
    for (int column = thread; column < x.head_dim; column += THREADS) {
        float sum = 0;
        for (int row = 0; row < BLOCK; row++)
            sum = fmaf(tiles->weight[row], to_float(*tile_value<D>(BEHIND ? tiles->right : tiles->left, row, column)),
                       sum);
        state[x.head_dim * x.head_dim + column] = sum;
    }
    __syncthreads();
    scale_tile<D, THREADS>(tiles->left, tiles->factor);
    __syncthreads();
    const Lane lane = this_lane<D>();
    const Tile<D> left = {tiles->left, 0}, right = {tiles->right, 0};
    const int warp = thread / WARP;
    Accumulator<1, D> own;
    clear(own);
#pragma unroll
    for (int k = 0; k < BLOCK / 16; k++) {
        Fragment<1> a;
        load_transposed(a, left, warp, k, lane);
#pragma unroll
        for (int n = 0; n < D; n += 16) {
            uint32_t columns[4];
            ldmatrix_x4_trans(columns, fragment_at<D>(right.base, lane.down + right.place, 16 * k, n / 8));
            mma(own, n, a, columns);
        }
    }
    store_state(state, x.head_dim, warp * 16, own, lane);
}

// ---- the scan -------------------------------------------------------------------------------------------------------

enum { SCAN_THREADS = 256, AHEAD = 4 }; // AHEAD: loads under way at once

struct Scan {
    LinearWindow x;
    bool behind;
    const float *from; // NULL: zeros
    float *to, *start; // NULL: not wanted
};

// How far what comes to a block goes through it: g^length, or 0 where a document ends.
__device__ inline float decay_through(const Scan &s, const LinearPlace &p) {
    const int64_t seer = s.behind ? p.position + p.length : p.position + p.length - 1;
    if (s.behind && seer >= s.x.context) return 0;
    const bool seen = linear_first(s.x, p.b, seer) <= (s.behind ? p.position : p.position - 1);
    return seen ? linear_power(p.log2_decay, p.length) : 0;
}

// A thread has one element of the states of one head, and takes it over all blocks.
__global__ void __launch_bounds__(SCAN_THREADS) scan_kernel(const Scan s) {
    const LinearWindow &x = s.x;
    const int size = (x.head_dim + 1) * x.head_dim, parts = ceil_div(size, (int)SCAN_THREADS);
    const int head_row = (int)blockIdx.x / parts, element = (int)blockIdx.x % parts * SCAN_THREADS + (int)threadIdx.x;
    if (element >= size) return;
    const int64_t at = (int64_t)head_row * size + element;
    float *own = x.state[s.behind] + (int64_t)head_row * x.blocks * size + element;
    float sum = s.from == NULL ? 0 : s.from[at];
    if (s.start != NULL) s.start[at] = sum;
    for (int done = 0; done < x.blocks; done += AHEAD) {
        float next[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int block = s.behind ? x.blocks - 1 - done - i : done + i;
            next[i] = done + i < x.blocks ? own[(int64_t)block * size] : 0;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (done + i >= x.blocks) break;
            const int block = s.behind ? x.blocks - 1 - done - i : done + i;
            own[(int64_t)block * size] = sum;
            sum = fmaf(sum, decay_through(s, linear_place(x, head_row, block)), next[i]);
        }
    }
    if (s.to != NULL) s.to[at] = sum;
}

} // namespace

void cuda_linear_states(Device *device, const LinearWindow &x, bool behind, const float *from, float *to,
                        float *start) {
    const int rows = x.sequences * x.heads;
#define OWN(D)                                                                                                         \
    if (behind)                                                                                                        \
        launch((own_state_kernel<D, true>), rows *x.blocks, STATE_THREADS<D>, sizeof(StateTiles<D>),                   \
               stream_of(device), x);                                                                                  \
    else                                                                                                               \
        launch((own_state_kernel<D, false>), rows *x.blocks, STATE_THREADS<D>, sizeof(StateTiles<D>),                  \
               stream_of(device), x)
    LINEAR_BY_HEAD(x.head_dim, OWN)
    Scan s = {x, behind, from, to, start};
    const int size = (x.head_dim + 1) * x.head_dim;
    launch(scan_kernel, rows * ceil_div(size, (int)SCAN_THREADS), SCAN_THREADS, 0, stream_of(device), s);
}
