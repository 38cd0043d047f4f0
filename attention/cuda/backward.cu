// The backward pass of one (query chunk, key/value chunk) pair, on tensor cores (Dao, "FlashAttention-2", 2023,
// algorithm 2, but for the order of its loops). With p_ij = exp(s_ij - log_sum_exp_i), which is the softmax itself:
//
//   dv_j += sum_i p_ij do_i      ds_ij = p_ij (do_i.v_j - delta_i)
//   dq_i += scale sum_j ds_ij k_j      dk_j += scale sum_i ds_ij q_i
//
// dk and dv are sums over queries, dq is one over keys, so no one block can own all three. Adding dq up with atomics
// would sum it in another order every time. Here two kernels each own what they sum: one gives a block 128 keys and
// walks over the queries that see them, the other gives a block 128 queries and walks over the keys they see. P and dS
// are worked out in both: 7 products in place of 5 is the price of the same bits every time.
//
// A block's own rows are split over its warps, 16 M rows each; each step of the walk brings STEP rows of the other
// side, the next ones on their way while these are worked on. Every product's result is made where the next one wants
// it: the scores of own rows x STEP, packed to bf16, are the A operand of the product that sums over the STEP rows. So
// P and dS never leave registers; where keys are the own rows, it is S transposed that is made.
//
//   own rows         step                scores         summed over the step
//   keys  (K, V)     queries (Q, dO)     K Q^T, V dO^T  dV += P^T dO, dK += dS^T Q
//   queries (Q, dO)  keys (K, V)         Q K^T, dO V^T  dQ += dS K
//
// What is not a number spreads to every row that sees it. A probability is at most 1, so nothing overflows; where a key
// is not seen the exponential may be infinite, and 0 takes its place.
#include <math.h>

#include "attention/cuda/kernels.h"
#include "attention/cuda/tile.h"
#include "layers/cuda/context.h"

namespace {

// M = 2: each fragment read from shared memory serves two products; but the sums of 32 rows (32 D values, twice for
// keys) fit into a warp's registers up to D = 64 only. Shared memory is 768 D + 512 bytes: two blocks fit a
// multiprocessor at D = 64, one at D = 128, also where it has no more than 100 KiB (sm_89, sm_120).
template <int D> struct Sizes {
    static constexpr int M = D <= 64 ? 2 : 1;
    static constexpr int WARPS = D <= 64 ? 4 : 8, THREADS = WARPS * WARP;
    static constexpr int BLOCKS = D <= 64 ? 2 : 1; // wanted on one multiprocessor at once
    static constexpr int WARP_ROWS = M * 16, ROWS = WARPS * WARP_ROWS, STEP = 32;
    static constexpr int PART = D == 64 ? 16 : 32; // of a step's queries, whose P and dS are in registers at once
};

struct Backward {
    QueryBackward query;
    KeyValue kv;
    TokenView d_q, d_k, d_v; // where the pair is the whole: in place of the sums in query and kv
    Pair pair;
    int heads, kv_heads, group; // group: query heads that share a key/value head
    int rows_of_heads;          // blocks of one tile: B x KV, or B x H
    int head_dim;               // the real one, at most the kernel's D
    float scale;
};

template <int D> struct Tiles {
    unsigned char own[2][tile_bytes<D>(Sizes<D>::ROWS)];     // K and V, or Q and dO
    unsigned char step[2][2][tile_bytes<D>(Sizes<D>::STEP)]; // two stages of Q and dO, or of K and V
    static constexpr int STAGE = 2 * tile_bytes<D>(Sizes<D>::STEP);
    float row[2][2][Sizes<D>::STEP]; // two stages of log_sum_exp (base 2) and delta
};

// A lane's place. Of an mma's result it holds rows `group`, `group` + 8 and columns `pair`, `pair` + 1.
struct Lane {
    int group, pair;
    int down, across; // its offsets in fragments of a tile: see fragment_at
    int first;        // row of the block's own tile: where its warp begins
};

template <int D> __device__ inline Lane this_lane() {
    const int lane = threadIdx.x % WARP;
    return Lane{lane / 4, lane % 4 * 2, lane_down<D>(lane), lane_across<D>(lane),
                (int)threadIdx.x / WARP * Sizes<D>::WARP_ROWS};
}

// ---- memory ---------------------------------------------------------------------------------------------------------

__device__ inline const bf16 *token_at(TokenView view, int b, int64_t t, int h, int head_dim) {
    return static_cast<const bf16 *>(view.data) + b * view.batch_stride + t * view.token_stride + h * head_dim;
}
__device__ inline float row_at(RowView view, int b, int h, int64_t t) {
    return view.data[b * view.batch_stride + h * view.head_stride + t];
}

// For exp2_fast. A row that saw no key at all has -inf, and no part in anything.
__device__ inline float base_2(float log_sum_exp) { return log_sum_exp == -INFINITY ? INFINITY : log_sum_exp * LOG2_E; }

// Row t + r of `to` += factor * row r of d, for the `rows` rows of the block that exist, each warp its own.
template <int D>
__device__ inline void add_rows(FloatView to, int b, int64_t t, int h, int head_dim, int rows, float factor,
                                const float (&d)[Sizes<D>::M][D / 8][4], const Lane &lane) {
    float *base = to.data + b * to.batch_stride + t * to.token_stride + h * head_dim + lane.pair;
#pragma unroll
    for (int m = 0; m < Sizes<D>::M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = lane.first + m * 16 + half * 8 + lane.group;
            if (row >= rows) continue;
            float2 *values = reinterpret_cast<float2 *>(base + row * to.token_stride);
            float2 sum[D / 8]; // all of a row's loads are under way before the first store
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                if (n * 8 < head_dim) sum[n] = values[n * 4];
            }
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                if (n * 8 >= head_dim) break;
                sum[n].x += factor * d[m][n][2 * half];
                sum[n].y += factor * d[m][n][2 * half + 1];
                values[n * 4] = sum[n];
            }
        }
    }
}

// The same rows overwritten in storage type, by way of this warp's own rows of a tile that is not needed any more, from
// where each lane takes 16 bytes.
template <int D>
__device__ inline void store_rows(TokenView to, int b, int64_t t, int h, int head_dim, int rows, float factor,
                                  const float (&d)[Sizes<D>::M][D / 8][4], unsigned char *tile, const Lane &lane) {
    constexpr int M = Sizes<D>::M, WARP_ROWS = Sizes<D>::WARP_ROWS, PER_ROW = D / PACKET;
    unsigned char *stage = tile + tile_bytes<D>(lane.first);
    __syncwarp(); // all lanes have done with what was there
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = m * 16 + half * 8 + lane.group;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                *reinterpret_cast<uint32_t *>(stage + tile_offset<D>(row, n) + lane.pair * 2) =
                    pack_bf16(factor * d[m][n][2 * half], factor * d[m][n][2 * half + 1]);
            }
        }
    }
    __syncwarp();
    const int left = rows - lane.first, pieces = head_dim / PACKET;
    bf16 *base = static_cast<bf16 *>(to.data) + b * to.batch_stride + (t + lane.first) * to.token_stride + h * head_dim;
#pragma unroll 4
    for (int i = threadIdx.x % WARP; i < WARP_ROWS * PER_ROW; i += WARP) {
        const int row = i / PER_ROW, piece = i % PER_ROW;
        if (row < left && piece < pieces) {
            *reinterpret_cast<uint4 *>(base + row * to.token_stride + piece * PACKET) =
                *reinterpret_cast<const uint4 *>(stage + tile_offset<D>(row, piece));
        }
    }
}

// Where nothing was seen no step has waited for the block's own tiles, which the results are to take the place of.
__device__ inline void wait_for_own_tiles() {
    cp_async_wait<0>();
    __syncthreads();
}

// ---- products -------------------------------------------------------------------------------------------------------

template <int M, int N> __device__ inline void clear(float (&d)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) d[m][n][i] = 0;
        }
    }
}

// Which stage a tile is in goes into the lane's offset (stages are multiples of 128 bytes apart, which the permutation
// does not touch): what is added to it is then known when compiling, and no addresses are kept in registers.

// d (16 M x N) += a b^T over columns 16 k to 16 k + 15. `a` holds these, of the warp's rows; b is a tile of N rows.
template <int D, int M, int N>
__device__ inline void multiply_transposed(float (&d)[M][N / 8][4], const uint32_t (&a)[M][4], const unsigned char *b,
                                           int across, int k) {
#pragma unroll
    for (int n = 0; n < N / 8; n += 2) {
        uint32_t columns[4];
        ldmatrix_x4(columns, fragment_at<D>(b, across, n * 8, 2 * k));
#pragma unroll
        for (int m = 0; m < M; m++) mma_16x16(d[m][n], d[m][n + 1], a[m], columns);
    }
}

// The same over all columns, `a` being a tile too; `down` leads to the warp's rows of it.
template <int D, int N>
__device__ inline void multiply_transposed(float (&d)[Sizes<D>::M][N / 8][4], const unsigned char *a, int down,
                                           const unsigned char *b, int across) {
    constexpr int M = Sizes<D>::M;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t rows[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) ldmatrix_x4(rows[m], fragment_at<D>(a, down, m * 16, 2 * k));
        multiply_transposed<D, M, N>(d, rows, b, across, k);
    }
}

// d (16 M x D) += a b, b a tile of N rows; a (16 M x N) as another product has left it, rounded to bf16 here.
template <int D, int M, int N>
__device__ inline void multiply(float (&d)[M][D / 8][4], const float (&a)[M][N / 8][4], const unsigned char *b,
                                int down) {
#pragma unroll
    for (int n = 0; n < N / 8; n += 2) {
        uint32_t rows[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) to_a_fragment(rows[m], a[m][n], a[m][n + 1]);
#pragma unroll
        for (int k = 0; k < D / 8; k += 2) {
            uint32_t columns[4];
            ldmatrix_x4_trans(columns, fragment_at<D>(b, down, n * 8, k));
#pragma unroll
            for (int m = 0; m < M; m++) mma_16x16(d[m][k], d[m][k + 1], rows[m], columns);
        }
    }
}

// ---- keys and values ------------------------------------------------------------------------------------------------

// What PART queries of a step, from its query `part` on, give to this warp's keys. MASKED: not every one of these
// queries sees all of these keys; query i (from part's first) sees key j (from the block's first) if j <= i + ahead.
template <int D, bool MASKED>
__device__ inline void step_of_keys(float (&d_k)[Sizes<D>::M][D / 8][4], float (&d_v)[Sizes<D>::M][D / 8][4],
                                    const Tiles<D> *tiles, int stage, int part, float scale_log2, int ahead,
                                    const Lane &lane) {
    constexpr int M = Sizes<D>::M, PART = Sizes<D>::PART;
    const unsigned char *q = tiles->step[0][0], *d_out = tiles->step[0][1];
    const int own = lane.down + tile_bytes<D>(lane.first);
    const int place = stage * Tiles<D>::STAGE + tile_bytes<D>(part);
    const int down = lane.down + place, across = lane.across + place;
    const int hidden = lane.first + lane.group - ahead - lane.pair; // of the columns, so many do not see the first row
    float p[M][PART / 8][4], d_s[M][PART / 8][4];

    clear(p);
    multiply_transposed<D, PART>(p, tiles->own[0], own, q, across);
#pragma unroll
    for (int n = 0; n < PART / 8; n++) {
        const float2 log_sum_exp = *reinterpret_cast<const float2 *>(&tiles->row[stage][0][part + n * 8 + lane.pair]);
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                p[m][n][i] = exp2_fast(fmaf(p[m][n][i], scale_log2, i % 2 == 0 ? -log_sum_exp.x : -log_sum_exp.y));
                if (MASKED && n * 8 + i % 2 < hidden + m * 16 + i / 2 * 8) p[m][n][i] = 0;
            }
        }
    }
    multiply<D, M, PART>(d_v, p, d_out, down);

    clear(d_s);
    multiply_transposed<D, PART>(d_s, tiles->own[1], own, d_out, across); // dP, so far
#pragma unroll
    for (int n = 0; n < PART / 8; n++) {
        const float2 delta = *reinterpret_cast<const float2 *>(&tiles->row[stage][1][part + n * 8 + lane.pair]);
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                d_s[m][n][i] = p[m][n][i] * (d_s[m][n][i] - (i % 2 == 0 ? delta.x : delta.y));
            }
        }
    }
    multiply<D, M, PART>(d_k, d_s, q, down);
}

// The walk of a block of keys: over the query heads that read this key/value head, one after the other, and in each
// over the queries from the first that sees a key of these.
struct QueryWalk {
    int first, head, query; // query: first of the step at hand
    int left;               // steps, with this one
};

template <int D>
__device__ inline void begin_queries(const Backward &x, Tiles<D> *tiles, int stage, int b, const QueryWalk &walk) {
    constexpr int STEP = Sizes<D>::STEP, THREADS = Sizes<D>::THREADS;
    const TokenView view[2] = {x.query.q, x.query.d_out};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        tile_load<D, STEP, THREADS>(tiles->step[stage][i], token_at(view[i], b, walk.query, walk.head, x.head_dim),
                                    view[i].token_stride, x.pair.queries - walk.query, x.head_dim / PACKET,
                                    threadIdx.x);
    }
    cp_async_commit();
}

// Each of the first 2 STEP threads has one number of one query of a step. Those that do not exist weigh 0.
template <int D> __device__ inline float row_value(const Backward &x, int b, const QueryWalk &walk) {
    constexpr int STEP = Sizes<D>::STEP;
    const int i = walk.query + (int)threadIdx.x % STEP, kind = (int)threadIdx.x / STEP;
    if (kind == 0) return i < x.pair.queries ? base_2(row_at(x.query.log_sum_exp, b, walk.head, i)) : INFINITY;
    return kind == 1 && i < x.pair.queries ? row_at(x.query.delta, b, walk.head, i) : 0;
}

// One block per 128 keys and (batch, key/value head); the earliest keys, which most queries see, come first. WHOLE: d_k
// and d_v are written; otherwise they are added to the sums in memory.
template <int D, bool WHOLE>
__global__ void __launch_bounds__(Sizes<D>::THREADS, Sizes<D>::BLOCKS) backward_keys_kernel(const Backward x) {
    constexpr int M = Sizes<D>::M, ROWS = Sizes<D>::ROWS, THREADS = Sizes<D>::THREADS;
    constexpr int STEP = Sizes<D>::STEP, PART = Sizes<D>::PART;
    DYNAMIC_SHARED(Tiles<D>, tiles);
    const int head_row = (int)blockIdx.x % x.rows_of_heads, first_key = (int)blockIdx.x / x.rows_of_heads * ROWS;
    const int b = head_row / x.kv_heads, kv_head = head_row % x.kv_heads, keys = x.pair.keys - first_key;
    const Lane lane = this_lane<D>();

    const TokenView view[2] = {x.kv.k, x.kv.v};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        tile_load<D, ROWS, THREADS>(tiles->own[i], token_at(view[i], b, first_key, kv_head, x.head_dim),
                                    view[i].token_stride, keys, x.head_dim / PACKET, threadIdx.x);
    }
    cp_async_commit(); // also where no step follows: what is in no group, nothing waits for
    QueryWalk walk;
    walk.first = walk.query = first_query_seeing(x.pair, first_key);
    walk.head = kv_head * x.group;
    walk.left = x.group * ceil_div(x.pair.queries - walk.first, STEP);

    const int row = threadIdx.x % STEP, kind = threadIdx.x / STEP;
    if (!WHOLE || walk.left > 0) begin_queries(x, tiles, walk.left % 2, b, walk);
    if (kind < 2) tiles->row[walk.left % 2][kind][row] = row_value<D>(x, b, walk);
    float d_k[M][D / 8][4], d_v[M][D / 8][4];
    clear(d_k);
    clear(d_v);
    for (; walk.left > 0; walk.left--) {
        const int stage = walk.left % 2, step_ahead = x.pair.ahead + walk.query - first_key;
        float next_value = 0;
        cp_async_wait<0>();
        __syncthreads(); // this stage is here, and nobody works on the other one any more
        if (walk.left > 1) {
            walk.query += STEP;
            if (walk.query >= x.pair.queries) walk.query = walk.first, walk.head++;
            begin_queries(x, tiles, 1 - stage, b, walk);
            next_value = row_value<D>(x, b, walk);
        }
#pragma unroll 1 // else all parts' loads are begun at once, for which there are no registers
        for (int part = 0; part < STEP; part += PART) {
            const int ahead = step_ahead + part;
            if (lane.first + M * 16 - 1 <= ahead) {
                step_of_keys<D, false>(d_k, d_v, tiles, stage, part, x.scale * LOG2_E, ahead, lane);
            } else if (lane.first <= ahead + PART - 1) {
                step_of_keys<D, true>(d_k, d_v, tiles, stage, part, x.scale * LOG2_E, ahead, lane);
            }
        }
        if (kind < 2) tiles->row[1 - stage][kind][row] = next_value;
    }
    if (WHOLE) {
        wait_for_own_tiles();
        store_rows<D>(x.d_k, b, first_key, kv_head, x.head_dim, keys, x.scale, d_k, tiles->own[0], lane);
        store_rows<D>(x.d_v, b, first_key, kv_head, x.head_dim, keys, 1, d_v, tiles->own[1], lane);
    } else {
        add_rows<D>(x.kv.d_k, b, first_key, kv_head, x.head_dim, keys, x.scale, d_k, lane);
        add_rows<D>(x.kv.d_v, b, first_key, kv_head, x.head_dim, keys, 1, d_v, lane);
    }
}

// ---- queries --------------------------------------------------------------------------------------------------------

// What a lane holds of its warp's own queries, from the first step to the last. For d_out there are no registers left.
template <int D> struct OwnQueries {
    uint32_t q[D / 16][Sizes<D>::M][4];
    float log_sum_exp[Sizes<D>::M][2], delta[Sizes<D>::M][2];
};

// What STEP keys give to this warp's queries. MASKED: not all exist, or some of these queries do not see all of them;
// query i (from the block's first) sees key j (from the step's first) if j <= i + ahead. Of the keys, `keys` exist.
template <int D, bool MASKED>
__device__ inline void step_of_queries(float (&d_q)[Sizes<D>::M][D / 8][4], const OwnQueries<D> &own,
                                       const Tiles<D> *tiles, int stage, float scale_log2, int ahead, int keys,
                                       const Lane &lane) {
    constexpr int M = Sizes<D>::M, STEP = Sizes<D>::STEP;
    const unsigned char *k_tile = tiles->step[0][0], *v_tile = tiles->step[0][1];
    const int own_down = lane.down + tile_bytes<D>(lane.first);
    const int down = lane.down + stage * Tiles<D>::STAGE, across = lane.across + stage * Tiles<D>::STAGE;
    float p[M][STEP / 8][4], d_s[M][STEP / 8][4];
    clear(p);
    clear(d_s);
#pragma unroll
    for (int k = 0; k < D / 16; k++) multiply_transposed<D, M, STEP>(p, own.q[k], k_tile, across, k);
    multiply_transposed<D, STEP>(d_s, tiles->own[1], own_down, v_tile, across); // dP, so far
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int half = i / 2, row = lane.first + m * 16 + half * 8 + lane.group;
            const int seen = smaller_of(keys, row + ahead + 1) - lane.pair;
#pragma unroll
            for (int n = 0; n < STEP / 8; n++) {
                const float weight = exp2_fast(fmaf(p[m][n][i], scale_log2, -own.log_sum_exp[m][half]));
                d_s[m][n][i] = weight * (d_s[m][n][i] - own.delta[m][half]);
                if (MASKED && n * 8 + i % 2 >= seen) d_s[m][n][i] = 0;
            }
        }
    }
    multiply<D, M, STEP>(d_q, d_s, k_tile, down);
}

template <int D>
__device__ inline void begin_keys(const Backward &x, Tiles<D> *tiles, int stage, int b, int kv_head, int first_key) {
    const TokenView view[2] = {x.kv.k, x.kv.v};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        tile_load<D, Sizes<D>::STEP, Sizes<D>::THREADS>(
            tiles->step[stage][i], token_at(view[i], b, first_key, kv_head, x.head_dim), view[i].token_stride,
            x.pair.keys - first_key, x.head_dim / PACKET, threadIdx.x);
    }
    cp_async_commit();
}

// One block per 128 queries and (batch, head); the latest queries, which see most keys, come first. WHOLE: as above.
template <int D, bool WHOLE>
__global__ void __launch_bounds__(Sizes<D>::THREADS, Sizes<D>::BLOCKS) backward_queries_kernel(const Backward x) {
    constexpr int M = Sizes<D>::M, ROWS = Sizes<D>::ROWS, STEP = Sizes<D>::STEP, THREADS = Sizes<D>::THREADS;
    DYNAMIC_SHARED(Tiles<D>, tiles);
    const int head_row = (int)blockIdx.x % x.rows_of_heads, b = head_row / x.heads, head = head_row % x.heads;
    const int kv_head = head / x.group;
    const int first_query = (ceil_div(x.pair.queries, ROWS) - 1 - (int)blockIdx.x / x.rows_of_heads) * ROWS;
    const int queries = smaller_of(x.pair.queries - first_query, ROWS);
    const int steps = ceil_div(keys_seen(x.pair, first_query + queries - 1), STEP);
    if (!WHOLE && steps == 0) return;

    const TokenView view[2] = {x.query.q, x.query.d_out};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        tile_load<D, ROWS, THREADS>(tiles->own[i], token_at(view[i], b, first_query, head, x.head_dim),
                                    view[i].token_stride, queries, x.head_dim / PACKET, threadIdx.x);
    }
    cp_async_commit(); // as above
    if (!WHOLE || steps > 0) begin_keys(x, tiles, 0, b, kv_head, 0);

    const Lane lane = this_lane<D>();
    OwnQueries<D> own;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = lane.first + m * 16 + half * 8 + lane.group, i = first_query + row;
            own.log_sum_exp[m][half] = row < queries ? base_2(row_at(x.query.log_sum_exp, b, head, i)) : INFINITY;
            own.delta[m][half] = row < queries ? row_at(x.query.delta, b, head, i) : 0;
        }
    }
    cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
#pragma unroll
        for (int m = 0; m < M; m++) {
            const int down = lane.down + tile_bytes<D>(lane.first);
            ldmatrix_x4(own.q[k][m], fragment_at<D>(tiles->own[0], down, m * 16, 2 * k));
        }
    }

    float d_q[M][D / 8][4];
    clear(d_q);
    for (int step = 0; step < steps; step++) {
        const int stage = step % 2, first_key = step * STEP, keys = x.pair.keys - first_key;
        const int ahead = x.pair.ahead + first_query - first_key;
        cp_async_wait<0>();
        __syncthreads(); // this stage is here, and nobody works on the other one any more
        if (step + 1 < steps) begin_keys(x, tiles, 1 - stage, b, kv_head, first_key + STEP);
        if (STEP - 1 <= lane.first + ahead && STEP <= keys) {
            step_of_queries<D, false>(d_q, own, tiles, stage, x.scale * LOG2_E, ahead, keys, lane);
        } else if (0 <= lane.first + M * 16 - 1 + ahead) {
            step_of_queries<D, true>(d_q, own, tiles, stage, x.scale * LOG2_E, ahead, keys, lane);
        }
    }
    if (WHOLE) store_rows<D>(x.d_q, b, first_query, head, x.head_dim, queries, x.scale, d_q, tiles->own[0], lane);
    else add_rows<D>(x.query.d_q, b, first_query, head, x.head_dim, queries, x.scale, d_q, lane);
}

// ---- launches -------------------------------------------------------------------------------------------------------

unsigned blocks_for(int64_t tiles, int64_t heads) {
    if (tiles * heads > INT32_MAX) {
        cuda_give_up(__FILE__, __LINE__, "attention over %lld blocks", (long long)(tiles * heads));
    }
    return (unsigned)(tiles * heads);
}

template <int D, bool WHOLE> void launch_backward(Device *device, const AttentionShape *shape, Backward x) {
    constexpr int ROWS = Sizes<D>::ROWS, THREADS = Sizes<D>::THREADS;
    // Keys after all queries are seen by none: there is nothing to add to them, but zeros to write.
    const int64_t keys = WHOLE ? x.pair.keys : keys_seen(x.pair, x.pair.queries - 1), queries = x.pair.queries;
    x.rows_of_heads = (int)(shape->batch * shape->kv_heads);
    if (keys > 0) {
        launch((backward_keys_kernel<D, WHOLE>), blocks_for(ceil_div<int64_t>(keys, ROWS), x.rows_of_heads), THREADS,
               sizeof(Tiles<D>), stream_of(device), x);
    }
    x.rows_of_heads = (int)(shape->batch * shape->heads);
    if (queries > 0) {
        launch((backward_queries_kernel<D, WHOLE>), blocks_for(ceil_div<int64_t>(queries, ROWS), x.rows_of_heads),
               THREADS, sizeof(Tiles<D>), stream_of(device), x);
    }
}

template <bool WHOLE> void backward(Device *device, const AttentionShape *shape, Backward x) {
    if (shape->batch * shape->heads == 0) return;
    x.heads = (int)shape->heads;
    x.kv_heads = (int)shape->kv_heads;
    x.group = x.heads / x.kv_heads;
    x.head_dim = (int)shape->head_dim;
    x.scale = shape->scale;
    switch (kernel_head_dim(shape->head_dim)) {
    case 32: launch_backward<32, WHOLE>(device, shape, x); break;
    case 64: launch_backward<64, WHOLE>(device, shape, x); break;
    case 96: launch_backward<96, WHOLE>(device, shape, x); break;
    case 128: launch_backward<128, WHOLE>(device, shape, x); break;
    default: cuda_give_up(__FILE__, __LINE__, "no attention kernel for heads of %d", x.head_dim);
    }
}

void check_view(TokenView view, const char *what) {
    check_pieces(view.data, view.batch_stride, view.token_stride, what);
}

void check_pairs_of_floats(FloatView view, const char *what) {
    if ((uintptr_t)view.data % 8 != 0 || view.batch_stride % 2 != 0 || view.token_stride % 2 != 0)
        cuda_give_up(__FILE__, __LINE__, "%s: rows must start at multiples of 8 bytes", what);
}

Backward backward_of(const QueryBackward *query, const KeyValue *kv) {
    Backward x = {};
    x.query = *query;
    x.kv = *kv;
    x.pair = pair_of(query->chunk.start, query->chunk.length, kv->chunk.start, kv->chunk.length);
    check_view(query->q, "q");
    check_view(query->d_out, "d_out");
    check_view(kv->k, "k");
    check_view(kv->v, "v");
    return x;
}

} // namespace

void cuda_backward_pair(Device *device, const AttentionShape *shape, const QueryBackward *query, const KeyValue *kv) {
    const Backward x = backward_of(query, kv);
    if (x.pair.queries == 0 || keys_seen(x.pair, x.pair.queries - 1) == 0) return; // all keys lie after all queries
    check_pairs_of_floats(query->d_q, "d_q");
    check_pairs_of_floats(kv->d_k, "d_k");
    check_pairs_of_floats(kv->d_v, "d_v");
    backward<false>(device, shape, x);
}

void cuda_backward_whole(Device *device, const AttentionShape *shape, const QueryBackward *query, const KeyValue *kv,
                         TokenView d_q, TokenView d_k, TokenView d_v) {
    Backward x = backward_of(query, kv);
    x.d_q = d_q;
    x.d_k = d_k;
    x.d_v = d_v;
    check_view(d_q, "d_q");
    check_view(d_k, "d_k");
    check_view(d_v, "d_v");
    backward<true>(device, shape, x);
}
