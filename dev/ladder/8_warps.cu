// Step 8: specialised warps.
//
// In step 7 the copy engine is idle while a tile is worked on, and the tensor cores while the softmax is. Here a thread
// of its own does nothing but ask for tiles, as far ahead as a ring of buffers lets it, and two warpgroups with 64
// queries each do nothing but work on them: while one is in its softmax, the other's products run.
//
// Two barriers a buffer keep them in step. "full": the bytes have come. "empty": all eight warps that read the buffer
// have done with it. Nobody ever waits for all threads of the block.
//
//   copies         K,V(0)  K,V(1)           K,V(2)           K,V(3) ...       the ring has two buffers
//   warpgroup 0            S  softmax  P V  S  softmax  P V  ...
//   warpgroup 1               S  softmax  P V  S  softmax  P V  ...
//
// Registers go where the work is: the launch gives every thread as many, then the copying warpgroup hands most of its
// own back and the others take them (setmaxnreg).
//
// What is left for attention/cuda/hopper/forward.cu: inside a warpgroup S of the next tile and P V of this one run
// beside the softmax; blocks stay and take one piece of work after another; three warpgroups; and the rest of step 6.
#include "dev/ladder/wgmma.h"

namespace {

enum { GROUPS = 2, ROWS = GROUPS * 64, STAGES = 2, THREADS = (GROUPS + 1) * WARPGROUP };

template <int D> struct Shared {
    Tile64 q[D / 64][GROUPS], k[STAGES][D / 64], v[STAGES][D / 64];
    uint64_t q_full;
    hopper::Gate gate[STAGES];
};

// One thread. Tiles 0 to tiles - 1 of the keys, each when its buffer is empty again.
template <int D>
__device__ inline void copy_tiles(Shared<D> *shared, const Maps &maps, int head, int first_row, int tiles) {
    mbarrier_arrive_expect_tx(&shared->q_full, sizeof shared->q);
    tma_load(shared->q, &maps.q, &shared->q_full, 0, first_row, 0, head);
    hopper::Place<STAGES> at;
    for (int tile = 0; tile < tiles; tile++, at.advance()) {
        hopper::Gate &gate = shared->gate[at.slot];
        mbarrier_wait(&gate.empty, at.parity ^ 1);
        mbarrier_arrive_expect_tx(&gate.full, 2 * sizeof shared->k[0]);
        tma_load(shared->k[at.slot], &maps.k, &gate.full, 0, tile * KEYS, 0, head);
        tma_load(shared->v[at.slot], &maps.v, &gate.full, 0, tile * KEYS, 0, head);
    }
}

// One warpgroup. Tiles that only the other one sees are waited for and released all the same.
template <int D>
__device__ inline void attend(const Ladder &x, Shared<D> *shared, int group, int head, int first_row, int tiles) {
    const int own = first_row + (int)threadIdx.x / WARP * 16, last = first_row + group * 64 + 63;
    const Lane lane = this_lane<D>();
    Rows<D> rows;
    begin(rows);
    mbarrier_wait(&shared->q_full, 0);
    hopper::Place<STAGES> at;
    for (int tile = 0; tile < tiles; tile++, at.advance()) {
        mbarrier_wait(&shared->gate[at.slot].full, at.parity);
        if (tile * KEYS <= last) {
            Accumulator<1, KEYS> s;
            start_scores<D>(s, &shared->q[0][group], GROUPS, shared->k[at.slot], 1);
            wgmma_wait<0>();
            wgmma_arrived(s.at[0]);
            softmax(rows, s, own, tile * KEYS, x.scale, lane);
            Fragment<1> p[KEYS / 16];
            round_weights(p, s);
            start_values(rows.out, p, shared->v[at.slot]);
            wgmma_wait<0>();
            wgmma_arrived(rows.out.at[0]);
        }
        hopper::arrive_as_warp(&shared->gate[at.slot].empty);
    }
    store(x, head, own, rows, lane);
}

template <int D>
__global__ void __launch_bounds__(THREADS, 1) warps_kernel(Ladder x, const __grid_constant__ Maps maps) {
#if HOPPER_BODY
    DYNAMIC_SHARED(Shared<D>, shared);
    const int blocks = ceil_div(x.T, (int)ROWS), head = blockIdx.x / blocks;
    const int first_row = (blocks - 1 - (int)blockIdx.x % blocks) * ROWS; // those with most keys start first
    const int tiles = ceil_div(smaller_of(first_row + ROWS, x.T), (int)KEYS);
    if (threadIdx.x == 0) {
        mbarrier_init(&shared->q_full, 1);
        for (hopper::Gate &gate : shared->gate) {
            mbarrier_init(&gate.full, 1);
            mbarrier_init(&gate.empty, GROUPS * 4);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    const int group = hopper::same_in_warp(threadIdx.x / WARPGROUP);
    if (group == GROUPS) {
        setmaxnreg_dec<24>();
        if (threadIdx.x == GROUPS * WARPGROUP) copy_tiles(shared, maps, head, first_row, tiles);
    } else {
        setmaxnreg_inc<240>();
        attend<D>(x, shared, group, head, first_row, tiles);
    }
#else
    __trap(); // compiled for another GPU: not to be launched
#endif
}

template <int D> void run(const Ladder *x) {
    const Maps maps = {map_of(x, x->q, ROWS), map_of(x, x->k, KEYS), map_of(x, x->v, KEYS)};
    launch(warps_kernel<D>, (unsigned)(x->heads * ceil_div(x->T, (int)ROWS)), THREADS, sizeof(Shared<D>), x->stream, *x,
           maps);
}

} // namespace

void step_8(const Ladder *x) {
    if (x->D == 64) run<64>(x);
    else run<128>(x);
}
