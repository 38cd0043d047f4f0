// Linear attention backward: the gradients of every block of a window. With G = d_y / den, rounded, and delta,
//
//   dA_ij = g^(i - j) (G_i . V_j + delta_i)      A_ij = g^(i - j) Q_i . K_j
//   dQ_i = g^(i + 1) (S G_i + delta_i z) + sum_j dA_ij K_j
//   dK_j = g^(end - j) (R V_j + r) + sum_i dA_ij Q_i      dV_j = g^(end - j) R^T K_j + sum_i A_ij G_i
//
// A warp has 16 rows, of queries in the first kernel and of keys in the second, where scores are made transposed: so
// they are operands of the next product as they are. The second goes over the query heads that share its keys.
#include "mixer/cuda/linear.h"

namespace {

template <int D> constexpr int PARTS = D <= 64 ? 32 : 16; // queries whose scores are in registers at once

template <int D> struct QueryTiles {
    unsigned char q[tile_bytes<D>(BLOCK)], g[tile_bytes<D>(BLOCK)], k[tile_bytes<D>(BLOCK)], v[tile_bytes<D>(BLOCK)];
    unsigned char state[tile_bytes<D>(D)];
    float z[D], delta[BLOCK], inverse[BLOCK];
    int first[BLOCK];
};

// delta, 1 / den and the first token seen of the block's queries.
template <int D> __device__ inline void load_rows(QueryTiles<D> *tiles, const LinearWindow &x, const LinearPlace &p) {
    const int row = threadIdx.x;
    if (row >= BLOCK) return;
    tiles->delta[row] = linear_delta_at(x, p)[row];
    tiles->inverse[row] = linear_inverse(x, p, row);
    tiles->first[row] = linear_first_in_block(x, p, row);
}

template <int D> __global__ void __launch_bounds__(LINEAR_THREADS) queries_kernel(const LinearWindow x) {
    DYNAMIC_SHARED(QueryTiles<D>, tiles);
    const int rows = x.sequences * x.heads, thread = threadIdx.x;
    const LinearPlace p = linear_place(x, (int)blockIdx.x % rows, (int)blockIdx.x / rows);
    load_block<D, LINEAR_THREADS>(tiles->q, x.q, p, p.h, x.head_dim);
    load_block<D, LINEAR_THREADS>(tiles->g, x.d_y, p, p.h, x.head_dim);
    load_block<D, LINEAR_THREADS>(tiles->k, x.k, p, p.kv_head, x.head_dim);
    load_block<D, LINEAR_THREADS>(tiles->v, x.v, p, p.kv_head, x.head_dim);
    cp_async_commit();
    load_state<D, LINEAR_THREADS>(tiles->state, tiles->z, linear_state_at(x, 0, p), x.head_dim);
    load_rows(tiles, x, p);
    cp_async_wait<0>();
    __syncthreads();
    scale_tile<D, LINEAR_THREADS>(tiles->g, tiles->inverse);
    __syncthreads();

    const Lane lane = this_lane<D>();
    const int own_row = thread / WARP * 16;
    const Tile<D> g = {tiles->g, tile_bytes<D>(own_row)}, k = {tiles->k, 0}, v = {tiles->v, 0},
                  state = {tiles->state, 0};
    Accumulator<1, BLOCK> d_scores;
    clear(d_scores);
    mma_ABt(d_scores, g, v, lane);
    RowValues<1> decay;
    Accumulator<1, D> d_q;
    each_row<1>([&](int row) {
        const int i = own_row + row + lane.row, first = tiles->first[i];
        const float delta = tiles->delta[i];
        each_in_row(d_scores, row, [&](float &a, int column) {
            const int j = column + lane.column;
            a = j <= i && j >= first ? (a + delta) * linear_power(p.log2_decay, i - j) : 0;
        });
        const bool sees = linear_first(x, p.b, p.position + smaller_of(i, p.length - 1)) < p.position;
        decay[row] = sees ? linear_power(p.log2_decay, i + 1) : 0;
        each_in_row(d_q, row, [&](float &d, int column) { d = decay[row] * delta * tiles->z[column + lane.column]; });
    });
    add_scaled_product<D, true>(d_q, decay, g, state, lane);
    mma_AB(d_q, d_scores, k, lane);
    times_slope(d_q, tiles->q, own_row, lane);
    store_rows(token_at(x.d_q, p.b, p.token + own_row, p.h, x.head_dim), x.d_q.token_stride, p.length - own_row,
               x.head_dim, rows_of<1>(1), d_q, tiles->q + tile_bytes<D>(own_row), lane);
}

// What one query head gives to the warp's keys: to d_k, to d_v or to both.
template <int D, bool KEYS, bool VALUES>
__device__ inline void add_head(Accumulator<1, D> &d_k, Accumulator<1, D> &d_v, const LinearWindow &x,
                                const QueryTiles<D> *tiles, const LinearPlace &p, const Lane &lane) {
    constexpr int PART = PARTS<D>;
    const int own_row = (int)threadIdx.x / WARP * 16;
    const int64_t end = p.position + p.length;
    const Tile<D> state = {tiles->state, 0};
    const Tile<D> k = {tiles->k, tile_bytes<D>(own_row)}, v = {tiles->v, tile_bytes<D>(own_row)};
    const int64_t first_behind = end < x.context ? linear_first(x, p.b, end) : 0;
    RowValues<1> decay;
    each_row<1>([&](int row) {
        const int j = own_row + row + lane.row;
        decay[row] = j < p.length && first_behind <= p.position + j ? linear_power(p.log2_decay, p.length - j) : 0;
        if (KEYS)
            each_in_row(d_k, row, [&](float &d, int column) { d += decay[row] * tiles->z[column + lane.column]; });
    });
    if (KEYS) add_scaled_product<D, false>(d_k, decay, v, state, lane);
    if (VALUES) add_scaled_product<D, true>(d_v, decay, k, state, lane);

#pragma unroll 1 // all of them at once would take more registers than there are
    for (int part = own_row / PART * PART; part < BLOCK; part += PART) { // no query before sees the warp's keys
        const Tile<D> q = {tiles->q, tile_bytes<D>(part)}, g = {tiles->g, tile_bytes<D>(part)};
        const ColumnValues<int, PART> first = load_columns<PART>(tiles->first + part, lane);
        const auto weigh = [&](float a, int row, int column) {
            const int j = own_row + row + lane.row, i = part + column + lane.column;
            return j <= i && j >= first[column] ? a * linear_power(p.log2_decay, i - j) : 0;
        };
        Accumulator<1, PART> scores;
        if (VALUES) {
            clear(scores);
            mma_ABt(scores, k, q, lane);
            each(scores, [&](float &a, int row, int column) { a = weigh(a, row, column); });
            mma_AB(d_v, scores, g, lane);
        }
        if (!KEYS) continue;
        clear(scores);
        mma_ABt(scores, v, g, lane);
        const ColumnValues<float, PART> delta = load_columns<PART>(tiles->delta + part, lane);
        each(scores, [&](float &a, int row, int column) { a = weigh(a + delta[column], row, column); });
        mma_AB(d_k, scores, q, lane);
    }
}

// d_k, d_v or both. For both there are registers enough up to D = 64.
template <int D, bool KEYS, bool VALUES>
__global__ void __launch_bounds__(LINEAR_THREADS, 2) keys_kernel(const LinearWindow x) {
    DYNAMIC_SHARED(QueryTiles<D>, tiles);
    const int rows = x.sequences * x.kv_heads, row = (int)blockIdx.x % rows, block = (int)blockIdx.x / rows;
    const int own_row = (int)threadIdx.x / WARP * 16;
    LinearPlace p = linear_place(x, row / x.kv_heads * x.heads + row % x.kv_heads * x.group, block);
    const Lane lane = this_lane<D>();
    Accumulator<1, D> d_k, d_v;
    clear(d_k);
    clear(d_v);
    load_block<D, LINEAR_THREADS>(tiles->k, x.k, p, p.kv_head, x.head_dim);
    load_block<D, LINEAR_THREADS>(tiles->v, x.v, p, p.kv_head, x.head_dim);
    for (int head = 0; head < x.group; head++, p.h++) {
        p.log2_decay = x.log2_decay[p.h];
        load_block<D, LINEAR_THREADS>(tiles->q, x.q, p, p.h, x.head_dim);
        load_block<D, LINEAR_THREADS>(tiles->g, x.d_y, p, p.h, x.head_dim);
        cp_async_commit();
        load_state<D, LINEAR_THREADS>(tiles->state, tiles->z, linear_state_at(x, 1, p), x.head_dim);
        load_rows(tiles, x, p);
        cp_async_wait<0>();
        __syncthreads();
        scale_tile<D, LINEAR_THREADS>(tiles->g, tiles->inverse);
        __syncthreads();
        add_head<D, KEYS, VALUES>(d_k, d_v, x, tiles, p, lane);
        __syncthreads();
    }
    if (KEYS) {
        times_slope(d_k, tiles->k, own_row, lane);
        store_rows(token_at(x.d_k, p.b, p.token + own_row, p.kv_head, x.head_dim), x.d_k.token_stride,
                   p.length - own_row, x.head_dim, rows_of<1>(1), d_k, tiles->k + tile_bytes<D>(own_row), lane);
    }
    if (VALUES)
        store_rows(token_at(x.d_v, p.b, p.token + own_row, p.kv_head, x.head_dim), x.d_v.token_stride,
                   p.length - own_row, x.head_dim, rows_of<1>(1), d_v, tiles->v + tile_bytes<D>(own_row), lane);
}

template <int D, bool KEYS, bool VALUES> void launch_keys(Device *device, const LinearWindow &x) {
    launch((keys_kernel<D, KEYS, VALUES>), x.sequences * x.kv_heads * x.blocks, LINEAR_THREADS, sizeof(QueryTiles<D>),
           stream_of(device), x);
}
template <int D> void launch_gradients(Device *device, const LinearWindow &x) {
    launch((queries_kernel<D>), x.sequences * x.heads * x.blocks, LINEAR_THREADS, sizeof(QueryTiles<D>),
           stream_of(device), x);
    if constexpr (D <= 64) launch_keys<D, true, true>(device, x);
    else {
        launch_keys<D, true, false>(device, x);
        launch_keys<D, false, true>(device, x);
    }
}

} // namespace

void cuda_linear_gradients(Device *device, const LinearWindow &x) {
#define GRADIENTS(D) launch_gradients<D>(device, x)
    LINEAR_BY_HEAD(x.head_dim, GRADIENTS)
}
