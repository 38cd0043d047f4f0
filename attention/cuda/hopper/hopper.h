// What the two Hopper kernels, forward.cu and backward.cu, share: when they serve, tiles as the copy engine leaves them
// in shared memory, rings of buffers, and warps that speak for themselves at a barrier.
//
// A kernel of this folder is compiled where HOPPER is defined (ARCHS has 90a, or the emulator), and its body only for
// that architecture.
#ifndef ATTENTION_CUDA_HOPPER_HOPPER_H
#define ATTENTION_CUDA_HOPPER_HOPPER_H

#include "attention/cuda/kernels.h"
#include "attention/cuda/pair.h"
#include "layers/cuda/bf16.h"
#include "layers/cuda/context.h"
#include "layers/cuda/ptx_hopper.h"
#include "layers/cuda/warp.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
#define HOPPER_BODY 1
#else
#define HOPPER_BODY 0
#endif

namespace hopper {

enum { WARPGROUP = 4 * WARP, GROUP_ROWS = 64 }; // GROUP_ROWS: of a warpgroup's products

// 64 rows of 64 values, as the copy engine and wgmma have them: piece p of 16 bytes of row r stands at p ^ r % 8.
struct __align__(1024) Tile64 { bf16 value[64][64]; };

// A buffer's two barriers. full: a copy has come; empty: all have done with it.
struct Gate {
    uint64_t full, empty;
};

// A place in a ring of SIZE buffers, and the parity of the phase that ends when this one is full; that in which it
// becomes empty again for the next round has the other.
template <int SIZE> struct Place {
    int slot = 0, parity = 0;
    __device__ void advance() {
        if (++slot < SIZE) return;
        slot = 0;
        parity ^= 1;
    }
};

// One arrival for this warp, after all its lanes have come. Every warp arrives for itself, since wgmma_wait is a warp's
// own.
__device__ inline void arrive_as_warp(uint64_t *barrier) {
    __syncwarp();
    if (threadIdx.x % WARP == 0) mbarrier_arrive(barrier);
}

// For a value that all threads of a warp share but the compiler does not know to: it then uses uniform registers.
__device__ inline int same_in_warp(int x) { return __shfl_sync(WHOLE_WARP, x, 0); }

inline bool is_hopper(Device *device) {
    const CudaContext *c = context_of(device);
    return c->properties.major == 9 && c->properties.minor == 0 && !c->mma_alone;
}
inline bool serves_heads(const AttentionShape *shape) { return shape->head_dim == 64 || shape->head_dim == 128; }
// Whether the kernels of this folder serve heads of this size on this GPU. Dimensions of a tensor map are not 0.
inline bool serves(Device *device, const AttentionShape *shape, int64_t queries, int64_t keys) {
    return is_hopper(device) && serves_heads(shape) && shape->batch > 0 && queries > 0 && keys > 0;
}

// Whether some query does not see the first key for another reason than its place, a window or documents: then kernels
// are LIMITED.
inline bool is_limited(const Pair &pair) { return pair.first != NULL || pair.behind + pair.queries - 1 > 0; }

} // namespace hopper

#endif
