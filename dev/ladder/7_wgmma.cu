// Step 7: Hopper's tensor cores and copy engine.
//
// wgmma multiplies 64 x 16 by 16 x N (here N = 64 and D) in one instruction of four warps, a "warpgroup", and reads its
// operands from shared memory by itself: no ldmatrix, and no registers for K and V. A descriptor of 64 bits says where
// an operand lies and that it is swizzled. What a lane holds of the result is what mma.sync would have left there, so
// the softmax of step 4 serves as it is; and P goes on from registers, as there.
//
// One thread brings whole tiles by one instruction (TMA): coordinates in, swizzled rows out, zeros beyond the ends. An
// mbarrier counts the bytes; whoever wants the tile waits for its phase. Before the next tile takes the place of this
// one, the products that read it have ended (wgmma_wait) and all threads have said so (__syncthreads).
//
//   thread 0    ask for K, V (n)                                           ask for K, V (n+1)   ...
//   all                           wait | S = Q K^T | softmax | out += P V |
//
// Everything still waits for everything else.
#include "dev/ladder/wgmma.h"

namespace {

template <int D> struct Shared {
    Tile64 q[D / 64], k[D / 64], v[D / 64];
    uint64_t arrived;
};

template <int D>
__device__ inline void load_keys(Shared<D> *shared, const Maps &maps, int head, int first, int with_q) {
    mbarrier_arrive_expect_tx(&shared->arrived, (2 + with_q) * (int)sizeof shared->k);
    tma_load(shared->k, &maps.k, &shared->arrived, 0, first, 0, head);
    tma_load(shared->v, &maps.v, &shared->arrived, 0, first, 0, head);
}

template <int D> __global__ void wgmma_kernel(Ladder x, const __grid_constant__ Maps maps) {
#if HOPPER_BODY
    DYNAMIC_SHARED(Shared<D>, shared);
    const int blocks = ceil_div(x.T, 64), head = blockIdx.x / blocks, first_row = blockIdx.x % blocks * 64;
    const int own = (int)threadIdx.x / WARP * 16, last = smaller_of(first_row + 64, x.T) - 1;
    const Lane lane = this_lane<D>();
    Rows<D> rows;
    begin(rows);
    if (threadIdx.x == 0) {
        mbarrier_init(&shared->arrived, 1);
        mbarrier_init_fence();
        load_keys(shared, maps, head, 0, 1);
        tma_load(shared->q, &maps.q, &shared->arrived, 0, first_row, 0, head);
    }
    __syncthreads();
    for (int first = 0, parity = 0; first <= last; first += KEYS, parity ^= 1) {
        mbarrier_wait(&shared->arrived, parity);
        Accumulator<1, KEYS> s;
        start_scores<D>(s, shared->q, 1, shared->k, 1);
        wgmma_wait<0>();
        wgmma_arrived(s.at[0]);
        softmax(rows, s, first_row + own, first, x.scale, lane);
        Fragment<1> p[KEYS / 16];
        round_weights(p, s);
        start_values(rows.out, p, shared->v);
        wgmma_wait<0>();
        wgmma_arrived(rows.out.at[0]);
        __syncthreads();
        if (threadIdx.x == 0 && first + KEYS <= last) load_keys(shared, maps, head, first + KEYS, 0);
    }
    store(x, head, first_row + own, rows, lane);
#else
    __trap(); // compiled for another GPU: not to be launched
#endif
}

template <int D> void run(const Ladder *x) {
    const Maps maps = {map_of(x, x->q, 64), map_of(x, x->k, KEYS), map_of(x, x->v, KEYS)};
    launch(wgmma_kernel<D>, (unsigned)(x->heads * ceil_div(x->T, 64)), WARPGROUP, sizeof(Shared<D>), x->stream, *x,
           maps);
}

} // namespace

void step_7(const Ladder *x) {
    if (x->D == 64) run<64>(x);
    else run<128>(x);
}
