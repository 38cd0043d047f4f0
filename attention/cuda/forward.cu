// Attention forward on tensor cores: FlashAttention-2 (Dao 2023) with mma.sync, for sm_80 and later.
//
// A block serves QUERY_ROWS queries of one head and walks over the keys they see, KEYS at a time. Each of its four
// warps owns 32 whole rows, so that no softmax crosses warps, and every fragment of K and V that a warp reads from
// shared memory serves two products. While one tile is worked on, the next is on its way (cp.async, two buffers, one
// barrier a tile). Scores never leave registers: two fragments of S = Q K^T, rounded, are one A fragment for P V.
//
// Tiles are visited from the last key back. Only there can a tile be ragged, or be crossed by the diagonal: a warp
// works out a mask for the one or two that are, and passes over those that none of its rows sees. Blocks with the most
// work come first.
//
// Softmax in base 2: with c = scale log2(e), p = 2^(c s - max) is one multiply-add and one ex2, where max is the
// largest c s of the row so far. The accumulator is multiplied by 2^(old max - new max) only in tiles in which one of
// the warp's rows has a new maximum; else that would be 1.
//
// What is not a number: a NaN in q, k or v reaches every row that sees it; one in v also rows of the same tile that do
// not, since 0 x NaN is NaN to a tensor core. Scores of -inf weigh 0. Beyond scores of 1e8 the rounding of c s itself
// is more than a factor of 2^8.
#include "attention/cuda/kernels.h"
#include "attention/cuda/tile.h"
#include "layers/cuda/context.h"

enum { WARPS = 4, THREADS = WARPS * WARP, WARP_ROWS = 32, QUERY_ROWS = WARPS * WARP_ROWS };

// How many blocks shall fit a multiprocessor. While one warp works out exponentials another's products can run, so that
// more should be better, if registers and shared memory last: compiled for Hopper, they do.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
enum { SMALL_HEAD_BLOCKS = 3 };
#else
enum { SMALL_HEAD_BLOCKS = 2 };
#endif

struct View {
    bf16 *data;
    int64_t batch, token; // strides
    int64_t step;         // of the threads that copy: so many rows as are copied at once
};

struct Forward {
    View q, k, v, out;
    FloatView accumulator;
    RowView max, sum, log_sum_exp;
    Pair pair;
    int query_blocks, rows_of_heads; // B x H
    int heads, group;                // group: query heads that share a key/value head
    int head_dim;                    // the real one, at most the kernel's D
    float scale_log2;                // scale log2(e)
};

// ---- one warp's work on one tile ----------------------------------------------------------------

// The rows of a warp. A lane holds, of 2 x 16 rows, those g, g + 8 (g = lane / 4), and in each 2 of 8 columns.
template <int D> struct Rows {
    float out[2][D / 8][4];
    float max[2][2], sum[2][2]; // max: of c s. sum: over this lane's columns alone
};

// S = Q K^T. q: this lane's place in the warp's 32 rows (lane_down), k: in the tile of K (lane_across).
template <int D, int KEYS>
__device__ inline void scores(float s[2][KEYS / 8][4], const unsigned char *shared, int q, int k) {
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[m][n][i] = 0;
#pragma unroll
    for (int d = 0; d < D; d += 16) {
        uint32_t a[2][4];
#pragma unroll
        for (int m = 0; m < 2; m++) ldmatrix_x4(a[m], fragment_at<D>(shared, q, m * 16, d / 8));
#pragma unroll
        for (int n = 0; n < KEYS / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, fragment_at<D>(shared, k, n * 8, d / 8));
#pragma unroll
            for (int m = 0; m < 2; m++) mma_16x16(s[m][n], s[m][n + 1], a[m], b);
        }
    }
}

// Scores of keys that a row does not see become -inf. Of the tile's keys `left` exist, and the warp's first row sees
// those up to and with number `diagonal`.
template <int KEYS> __device__ inline void mask(float s[2][KEYS / 8][4], int left, int diagonal, int lane) {
    left -= lane % 4 * 2;
    diagonal += lane / 4 - lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key = n * 8 + i % 2, row = m * 16 + i / 2 * 8;
                if (key >= left || key > diagonal + row) s[m][n][i] = -INFINITY;
            }
}

// The larger of all that the four lanes of a row hold.
__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, 2));
}
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(WHOLE_WARP, x, 1);
    return x + __shfl_xor_sync(WHOLE_WARP, x, 2);
}

// Takes this tile's scores into the maxima, and brings what was summed so far to the new ones.
template <int D, int KEYS>
__device__ inline void follow_maximum(Rows<D> &rows, const float s[2][KEYS / 8][4], float scale_log2) {
    float rescale[2][2];
    bool any = false;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = -INFINITY;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
            top = row_max(top) * scale_log2;
            const float old = rows.max[m][half];
            const bool larger = top > old; // not where both are -inf
            rescale[m][half] = larger ? exp2_fast(old - top) : 1;
            rows.max[m][half] = larger ? top : old;
            any = any || larger;
        }
    if (!__any_sync(WHOLE_WARP, any)) return;
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) rows.sum[m][half] *= rescale[m][half];
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) rows.out[m][n][i] *= rescale[m][i / 2];
    }
}

// S becomes P; sums follow.
template <int D, int KEYS> __device__ inline void weights(Rows<D> &rows, float s[2][KEYS / 8][4], float scale_log2) {
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // A row that has seen nothing but -inf: any finite maximum gives it weights of 0.
            const float max = rows.max[m][half] == -INFINITY ? 0 : rows.max[m][half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = half * 2; i < half * 2 + 2; i++) {
                    s[m][n][i] = exp2_fast(fmaf(s[m][n][i], scale_log2, -max));
                    rows.sum[m][half] += s[m][n][i];
                }
        }
}

// out += P V. v: this lane's place in the tile of V (lane_down).
template <int D, int KEYS>
__device__ inline void weighted_values(Rows<D> &rows, const float p[2][KEYS / 8][4], const unsigned char *shared,
                                       int v) {
#pragma unroll
    for (int key = 0; key < KEYS; key += 16) {
        uint32_t a[2][4];
#pragma unroll
        for (int m = 0; m < 2; m++) to_a_fragment(a[m], p[m][key / 8], p[m][key / 8 + 1]);
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, fragment_at<D>(shared, v, key, n));
#pragma unroll
            for (int m = 0; m < 2; m++) mma_16x16(rows.out[m][n], rows.out[m][n + 1], a[m], b);
        }
    }
}

// ---- the block ----------------------------------------------------------------------------------

// Where a block's work lies.
struct Place {
    int b, h, first_row;
};

// Shared memory: Q, two buffers of K and V each, by turns, and what is put aside until the end, because there are no
// registers to spare in the loop.
template <int D, int KEYS> __host__ __device__ constexpr int buffer_of(int tile) {
    return tile_bytes<D>(QUERY_ROWS) + tile % 2 * 2 * tile_bytes<D>(KEYS);
}
template <int D, int KEYS> __host__ __device__ constexpr int parking() {
    return buffer_of<D, KEYS>(0) + 4 * tile_bytes<D>(KEYS);
}
template <int D, int KEYS> constexpr int shared_bytes() { return parking<D, KEYS>() + (int)sizeof(Place); }

__device__ inline Place place_of(const Forward &x) {
    const int head_row = blockIdx.x % x.rows_of_heads, block = x.query_blocks - 1 - (int)(blockIdx.x / x.rows_of_heads);
    return Place{head_row / x.heads, head_row % x.heads, block * QUERY_ROWS};
}
__device__ inline int warp_row() { return (int)threadIdx.x / WARP * WARP_ROWS; } // the warp's first, in the block

__device__ inline bf16 *token_address(View view, int b, int64_t token, int h, int head_dim) {
    return view.data + b * view.batch + token * view.token + h * head_dim;
}

// out = accumulator / sum, by way of this warp's part of Q's place in shared memory, from where each lane takes 16
// bytes.
template <int D>
__device__ inline void store_out(const Forward &x, const Place &at, Rows<D> &rows, unsigned char *stage) {
    const int lane = threadIdx.x % WARP, first = at.first_row + warp_row();
    __syncwarp(); // all lanes have done with Q
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float sum = row_sum(rows.sum[m][half]);
            const int row = m * 16 + half * 8 + lane / 4;
            const float inverse = sum == 0 ? 0 : 1 / sum; // 0: saw no key. NaN stays
            if (lane % 4 == 0 && first + row < x.pair.queries) {
                x.log_sum_exp.data[at.b * x.log_sum_exp.batch_stride + at.h * x.log_sum_exp.head_stride + first + row] =
                    sum == 0 ? -INFINITY : (rows.max[m][half] + log2f(sum)) * LN_2;
            }
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                *reinterpret_cast<uint32_t *>(stage + tile_offset<D>(row, n) + lane % 4 * 4) =
                    pack_bf16(rows.out[m][n][half * 2] * inverse, rows.out[m][n][half * 2 + 1] * inverse);
            }
        }
    __syncwarp();
    const int pieces = x.head_dim / PACKET, left = x.pair.queries - first;
    bf16 *out = token_address(x.out, at.b, first, at.h, x.head_dim);
#pragma unroll 4
    for (int i = lane; i < WARP_ROWS * (D / PACKET); i += WARP) {
        const int row = i / (D / PACKET), piece = i % (D / PACKET);
        if (row < left && piece < pieces) {
            *reinterpret_cast<uint4 *>(out + row * x.out.token + piece * PACKET) =
                *reinterpret_cast<const uint4 *>(stage + tile_offset<D>(row, piece));
        }
    }
}

// Adds these rows to the state in memory: both are brought to the larger maximum. A state without keys is not read.
template <int D> __device__ inline void merge_state(const Forward &x, const Place &at, const Rows<D> &rows) {
    const int lane = threadIdx.x % WARP, first = at.first_row + warp_row();
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float own_sum = row_sum(rows.sum[m][half]), own = rows.max[m][half];
            const int row = first + m * 16 + half * 8 + lane / 4;
            const bool inside = row < x.pair.queries;
            float *max = x.max.data + at.b * x.max.batch_stride + at.h * x.max.head_stride + row;
            float *sum = x.sum.data + at.b * x.sum.batch_stride + at.h * x.sum.head_stride + row;
            const float old = inside ? *max : -INFINITY, old_sum = inside ? *sum : 0;
            const float both = fmaxf(old, own), finite = both == -INFINITY ? 0 : both;
            const float keep = exp2_fast(old - finite), add = exp2_fast(own - finite);
            __syncwarp(); // all four lanes of the row have read
            if (!inside) continue;
            if (lane % 4 == 0) {
                *max = both;
                *sum = old_sum * keep + own_sum * add;
            }
            float2 *state =
                reinterpret_cast<float2 *>(x.accumulator.data + at.b * x.accumulator.batch_stride +
                                           row * x.accumulator.token_stride + at.h * x.head_dim + lane % 4 * 2);
            const bool fresh = old == -INFINITY && old_sum == 0;
            float2 value[D / 8]; // all of a row's loads are under way before the first store
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                value[n] = make_float2(0, 0);
                if (!fresh && n * 8 < x.head_dim) value[n] = state[n * 4];
            }
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                if (n * 8 >= x.head_dim) break;
                value[n].x = value[n].x * keep + rows.out[m][n][half * 2] * add;
                value[n].y = value[n].y * keep + rows.out[m][n][half * 2 + 1] * add;
                state[n * 4] = value[n];
            }
        }
}

// WHOLE: out and log_sum_exp are written; otherwise the state in memory is carried on.
template <int D, int KEYS, bool WHOLE>
__global__ void __launch_bounds__(THREADS, D <= 64 ? SMALL_HEAD_BLOCKS : 2) forward_kernel(Forward x) {
    DYNAMIC_SHARED(unsigned char, shared);
    constexpr int K_BYTES = tile_bytes<D>(KEYS);
    Place *parked = reinterpret_cast<Place *>(shared + parking<D, KEYS>());
    const Place at = place_of(x);
    const int last_row = smaller_of(at.first_row + QUERY_ROWS, x.pair.queries) - 1;
    int tile = ceil_div(keys_seen(x.pair, last_row), KEYS) - 1; // the last one first
    if (!WHOLE && tile < 0) return;

    const int thread = threadIdx.x, lane = thread % WARP;
    if (thread == 0) *parked = at;
    __syncthreads();
    const Copy<D, THREADS> copy(thread, x.head_dim / PACKET);
    const int own_q = tile_bytes<D>(warp_row()); // this warp's rows of Q
    const int down = lane_down<D>(lane), across = lane_across<D>(lane);

    Rows<D> rows;
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            rows.max[m][half] = -INFINITY;
            rows.sum[m][half] = 0;
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) rows.out[m][n][i] = 0;
    }

    const bf16 *next_k, *next_v; // what this thread copies next
    {
        const int first_key = larger_of(tile, 0) * KEYS, left = x.pair.keys - first_key, pieces = x.head_dim / PACKET;
        const int kv_head = at.h / x.group;
        const bf16 *k = token_address(x.k, at.b, first_key, kv_head, x.head_dim);
        const bf16 *v = token_address(x.v, at.b, first_key, kv_head, x.head_dim);
        if (tile >= 0) {
            tile_load<D, QUERY_ROWS, THREADS>(shared, token_address(x.q, at.b, at.first_row, at.h, x.head_dim),
                                              x.q.token, x.pair.queries - at.first_row, pieces, thread);
            unsigned char *buffer = shared + buffer_of<D, KEYS>(tile);
            tile_load<D, KEYS, THREADS>(buffer, k, x.k.token, left, pieces, thread);
            tile_load<D, KEYS, THREADS>(buffer + K_BYTES, v, x.v.token, left, pieces, thread);
            cp_async_commit();
        }
        next_k = copy.own(k, x.k.token) - x.k.step;
        next_v = copy.own(v, x.v.token) - x.v.step;
    }
    // The last key that this warp's first row sees, if there are so many.
    const int diagonal = at.first_row + warp_row() + x.pair.ahead;
    for (; tile >= 0; tile--) {
        // The barrier also says that all warps have done with the other buffer, which the next tile goes to.
        cp_async_wait<0>();
        __syncthreads();
        if (tile > 0) {
            unsigned char *other = shared + buffer_of<D, KEYS>(tile - 1);
            tile_load_backwards<D, KEYS, THREADS>(other, next_k, x.k.step, copy);
            tile_load_backwards<D, KEYS, THREADS>(other + K_BYTES, next_v, x.v.step, copy);
            cp_async_commit();
        }
        const int first_key = tile * KEYS, past_key = first_key + KEYS;
        if (first_key > diagonal + WARP_ROWS - 1) continue; // no row of this warp sees any
        const int buffer = buffer_of<D, KEYS>(tile);
        float s[2][KEYS / 8][4];
        scores<D, KEYS>(s, shared, own_q + down, buffer + across);
        if (past_key > x.pair.keys || past_key > diagonal + 1)
            mask<KEYS>(s, x.pair.keys - first_key, diagonal - first_key, lane);
        follow_maximum<D, KEYS>(rows, s, x.scale_log2);
        weights<D, KEYS>(rows, s, x.scale_log2);
        weighted_values<D, KEYS>(rows, s, shared, buffer + K_BYTES + down);
    }

    if (WHOLE) store_out<D>(x, *parked, rows, shared + own_q);
    else merge_state<D>(x, *parked, rows);
}

// ---- launches -----------------------------------------------------------------------------------

static View view_of(TokenView view, const char *what) {
    check_pieces(view.data, view.batch_stride, view.token_stride, what);
    return View{static_cast<bf16 *>(view.data), view.batch_stride, view.token_stride, 0};
}

// Keys in a tile: as many as leave no register spilled.
template <int D, bool WHOLE> static void launch_forward(Device *device, Forward x) {
    constexpr int KEYS = D % 64 == 0 ? 48 : 64;
    x.k.step = Copy<D, THREADS>::PER_STEP * x.k.token;
    x.v.step = Copy<D, THREADS>::PER_STEP * x.v.token;
    const int64_t blocks = (int64_t)x.query_blocks * x.rows_of_heads;
    if (blocks > INT32_MAX) cuda_give_up(__FILE__, __LINE__, "attention over %lld blocks", (long long)blocks);
    launch((forward_kernel<D, KEYS, WHOLE>), (unsigned)blocks, THREADS, (shared_bytes<D, KEYS>()), stream_of(device),
           x);
}

template <bool WHOLE> static void forward(Device *device, const AttentionShape *shape, Forward x) {
    if (x.pair.queries == 0 || shape->batch == 0) return;
    x.query_blocks = ceil_div(x.pair.queries, (int)QUERY_ROWS);
    x.rows_of_heads = (int)(shape->batch * shape->heads);
    x.heads = (int)shape->heads;
    x.group = (int)(shape->heads / shape->kv_heads);
    x.head_dim = (int)shape->head_dim;
    x.scale_log2 = shape->scale * LOG2_E;
    switch (kernel_head_dim(shape->head_dim)) {
    case 32: launch_forward<32, WHOLE>(device, x); break;
    case 64: launch_forward<64, WHOLE>(device, x); break;
    case 96: launch_forward<96, WHOLE>(device, x); break;
    case 128: launch_forward<128, WHOLE>(device, x); break;
    default: cuda_give_up(__FILE__, __LINE__, "no attention kernel for heads of %d", x.head_dim);
    }
}

static Forward forward_of(const QueryForward *query, const KeyValue *kv) {
    Forward x = {};
    x.q = view_of(query->q, "q");
    x.k = view_of(kv->k, "k");
    x.v = view_of(kv->v, "v");
    x.pair = pair_of(query->chunk.start, query->chunk.length, kv->chunk.start, kv->chunk.length);
    return x;
}

void cuda_forward_pair(Device *device, const AttentionShape *shape, const QueryForward *query, const KeyValue *kv) {
    Forward x = forward_of(query, kv);
    if (keys_seen(x.pair, x.pair.queries - 1) == 0) return; // all keys lie after all queries
    x.accumulator = query->accumulator;
    x.max = query->max;
    x.sum = query->sum;
    if ((uintptr_t)x.accumulator.data % 8 != 0 || x.accumulator.batch_stride % 2 != 0 ||
        x.accumulator.token_stride % 2 != 0)
        cuda_give_up(__FILE__, __LINE__, "accumulator: rows must start at multiples of 8 bytes");
    forward<false>(device, shape, x);
}

void cuda_forward_whole(Device *device, const AttentionShape *shape, const QueryForward *query, const KeyValue *kv,
                        TokenView out, RowView log_sum_exp) {
    Forward x = forward_of(query, kv);
    x.out = view_of(out, "out");
    x.log_sum_exp = log_sum_exp;
    forward<true>(device, shape, x);
}
