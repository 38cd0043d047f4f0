// What steps 7 and 8 share: tiles as Hopper's copy engine brings them, and the two products of a tile by a warpgroup.
// The instructions are described in layers/cuda/ptx_hopper.h.
#ifndef DEV_LADDER_WGMMA_H
#define DEV_LADDER_WGMMA_H

#include "attention/cuda/hopper/hopper.h"
#include "dev/ladder/softmax.h"

enum { KEYS = 64 }; // of a tile
using hopper::Tile64;
using hopper::WARPGROUP;

// What the copy engine is told about q, k and v.
struct Maps {
    CUtensorMap q, k, v;
};

// Rows of a head in memory, in boxes of `rows` tokens by D values.
inline CUtensorMap map_of(const Ladder *x, const bf16 *tensor, int rows) {
    return tensor_map(const_cast<bf16 *>(tensor), (int64_t)x->T * x->D, x->D, x->heads, x->T, x->D, rows, x->D / 64);
}

// S = Q K^T. q, k: the 64 rows of the first 64 columns; the next 64 columns follow after `q_part` and `k_part` tiles.
template <int D>
__device__ inline void start_scores(Accumulator<1, KEYS> &s, const Tile64 *q, int q_part, const Tile64 *k, int k_part) {
    wgmma_fence();
    wgmma_ABt<Wgmma::FRESH>(s.at[0], wgmma_operand(q, 0), wgmma_operand(k, 0));
#pragma unroll
    for (int d = 16; d < D; d += 16) {
        const Tile64 *q_tile = q + d / 64 * q_part, *k_tile = k + d / 64 * k_part;
        wgmma_ABt<Wgmma::ADD>(s.at[0], wgmma_operand_at(wgmma_operand(q_tile, 0), d % 64 * 2),
                              wgmma_operand_at(wgmma_operand(k_tile, 0), d % 64 * 2));
    }
    wgmma_commit();
}

// out += P V: P from registers, as the softmax left it.
template <int D>
__device__ inline void start_values(Accumulator<1, D> &out, const Fragment<1> (&p)[KEYS / 16], const Tile64 *v) {
    wgmma_fence();
#pragma unroll
    for (int key = 0; key < KEYS; key += 16)
        wgmma_AB(out.at[0], p[key / 16].at[0], wgmma_operand_at(wgmma_operand(v, sizeof(Tile64)), key * 128));
    wgmma_commit();
}

__device__ inline void round_weights(Fragment<1> (&p)[KEYS / 16], const Accumulator<1, KEYS> &s) {
#pragma unroll
    for (int key = 0; key < KEYS; key += 16) p[key / 16] = round_fragment(s, key);
}

#endif
