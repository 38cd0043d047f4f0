// Linear attention forward: y of every block of a window, from its own keys and the state before it.
//
//   out_i = g^(i + 1) Q_i S + sum_j A_ij V_j      den_i = g^(i + 1) Q_i . z + sum_j A_ij      A_ij = g^(i - j) Q_i .
//   K_j
#include <float.h>

#include "mixer/cuda/linear.h"

namespace {

template <int D> struct ForwardTiles {
    unsigned char q[tile_bytes<D>(BLOCK)], k[tile_bytes<D>(BLOCK)], v[tile_bytes<D>(BLOCK)];
    unsigned char state[tile_bytes<D>(D)];
    float z[D], seen[BLOCK]; // seen: Q_i . z
    int first[BLOCK];
};

template <int D> __global__ void __launch_bounds__(LINEAR_THREADS) output_kernel(const LinearWindow x) {
    DYNAMIC_SHARED(ForwardTiles<D>, tiles);
    const int rows = x.sequences * x.heads, thread = threadIdx.x;
    const LinearPlace p = linear_place(x, (int)blockIdx.x % rows, (int)blockIdx.x / rows);
    load_block<D, LINEAR_THREADS>(tiles->q, x.q, p, p.h, x.head_dim);
    load_block<D, LINEAR_THREADS>(tiles->k, x.k, p, p.kv_head, x.head_dim);
    load_block<D, LINEAR_THREADS>(tiles->v, x.v, p, p.kv_head, x.head_dim);
    cp_async_commit();
    load_state<D, LINEAR_THREADS>(tiles->state, tiles->z, linear_state_at(x, 0, p), x.head_dim);
    if (thread < BLOCK) tiles->first[thread] = linear_first_in_block(x, p, thread);
    cp_async_wait<0>();
    __syncthreads();
    if (thread < BLOCK) tiles->seen[thread] = tile_dot<D>(tiles->q, thread, tiles->z);
    __syncthreads();

    const Lane lane = this_lane<D>();
    const int own_row = thread / WARP * 16;
    const Tile<D> q = {tiles->q, tile_bytes<D>(own_row)}, k = {tiles->k, 0}, v = {tiles->v, 0},
                  state = {tiles->state, 0};
    Accumulator<1, BLOCK> scores;
    clear(scores);
    mma_ABt(scores, q, k, lane);
    RowValues<1> decay, inverse;
    each_row<1>([&](int row) {
        const int i = own_row + row + lane.row, first = tiles->first[i];
        float sum = 0;
        each_in_row(scores, row, [&](float &a, int column) {
            const int j = column + lane.column;
            a = j <= i && j >= first ? a * linear_power(p.log2_decay, i - j) : 0;
            sum += a;
        });
        const bool sees = linear_first(x, p.b, p.position + smaller_of(i, p.length - 1)) < p.position;
        decay[row] = sees ? linear_power(p.log2_decay, i + 1) : 0;
        const float den = row_sum(sum) + decay[row] * tiles->seen[i];
        inverse[row] = den < FLT_MIN ? 0 : 1 / den;
        if (i < p.length && lane.column == 0)
            x.inverse[p.b * x.inverse_batch + p.h * x.inverse_head + p.token + i] = inverse[row];
    });
    Accumulator<1, D> out;
    clear(out);
    add_scaled_product<D, false>(out, decay, q, state, lane);
    mma_AB(out, scores, v, lane);
    store_rows(token_at(x.y, p.b, p.token + own_row, p.h, x.head_dim), x.y.token_stride, p.length - own_row, x.head_dim,
               inverse, out, tiles->q + tile_bytes<D>(own_row), lane);
}

} // namespace

void cuda_linear_outputs(Device *device, const LinearWindow &x) {
#define OUTPUT(D)                                                                                                      \
    launch((output_kernel<D>), x.sequences *x.heads *x.blocks, LINEAR_THREADS, sizeof(ForwardTiles<D>),                \
           stream_of(device), x)
    LINEAR_BY_HEAD(x.head_dim, OUTPUT)
}
