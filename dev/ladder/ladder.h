// The ladder: causal attention forward, one head after another, in nine steps from naive to fast. Every step computes
//   out_i = sum_j p_ij v_j,   p_ij = exp(s_ij) / sum_j exp(s_ij),   s_ij = scale q_i.k_j,   j <= i
// from the same bf16 inputs, and does one thing better than the step before. Each file begins with its lesson.
#ifndef DEV_LADDER_LADDER_H
#define DEV_LADDER_LADDER_H

#include "layers/cuda/bf16.h"
#include "layers/cuda/cuda.h"
#include "layers/cuda/ptx.h"
#include "layers/cuda/warp.h"

struct Ladder {
    const bf16 *q, *k, *v; // (heads, T, D)
    bf16 *out;
    int heads, T, D; // D: 64 or 128
    float scale;
    cudaStream_t stream;
};

void step_1(const Ladder *); // one thread, one row
void step_2(const Ladder *); // tiles in shared memory
void step_3(const Ladder *); // online softmax, one warp, one row
void step_4(const Ladder *); // tensor cores
void step_5(const Ladder *); // ldmatrix and swizzle
// Step 6, copies in the background and 32 rows a warp, is attention/cuda/forward.cu. On Hopper alone:
void step_7(const Ladder *); // wgmma and the copy engine
void step_8(const Ladder *); // specialised warps
// Step 9, products beside the softmax and blocks that stay, is attention/cuda/hopper/forward.cu.

// Where row t of a head begins.
__host__ __device__ inline int64_t row_at(const Ladder &x, int head, int t) { return ((int64_t)head * x.T + t) * x.D; }

#endif
