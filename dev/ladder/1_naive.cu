// Step 1: one thread, one query row, three loops.
//
// The definition, read aloud: a first pass over the keys finds the largest score, so that no exp overflows; a second
// one adds up weights and weighted values. It is right, and slow for one reason above all: every thread reads every key
// from memory on its own, twice, D values of 2 bytes for 2 D operations. One operation a byte, where a GPU has time for
// tens, and in its tensor cores for hundreds.
#include "dev/ladder/ladder.h"

namespace {

enum { THREADS = 64 };

// A row of 64 values fits into registers; one of 128 does not, and its loops stay loops over an array in memory.
template <int D> constexpr int UNROLL = D <= 64 ? D : 4;

template <int D> __device__ float score(const Ladder &x, const float q[D], int head, int j) {
    const bf16 *k = x.k + row_at(x, head, j);
    float sum = 0;
#pragma unroll(UNROLL <D>)
    for (int d = 0; d < D; d++) sum += q[d] * to_float(k[d]);
    return sum * x.scale;
}

template <int D> __global__ void naive_kernel(Ladder x) {
    const int blocks = ceil_div(x.T, (int)THREADS), head = blockIdx.x / blocks;
    const int i = blockIdx.x % blocks * THREADS + threadIdx.x;
    if (i >= x.T) return;
    float q[D], out[D];
#pragma unroll(UNROLL <D>)
    for (int d = 0; d < D; d++) {
        q[d] = to_float(x.q[row_at(x, head, i) + d]);
        out[d] = 0;
    }

    float max = -INFINITY, sum = 0;
    for (int j = 0; j <= i; j++) max = fmaxf(max, score<D>(x, q, head, j));
    for (int j = 0; j <= i; j++) {
        const float weight = expf(score<D>(x, q, head, j) - max);
        const bf16 *v = x.v + row_at(x, head, j);
        sum += weight;
#pragma unroll(UNROLL <D>)
        for (int d = 0; d < D; d++) out[d] += weight * to_float(v[d]);
    }
#pragma unroll(UNROLL <D>)
    for (int d = 0; d < D; d++) x.out[row_at(x, head, i) + d] = to_bf16(out[d] / sum);
}

} // namespace

void step_1(const Ladder *x) {
    const unsigned blocks = (unsigned)(x->heads * ceil_div(x->T, (int)THREADS));
    if (x->D == 64) launch(naive_kernel<64>, blocks, THREADS, 0, x->stream, *x);
    else launch(naive_kernel<128>, blocks, THREADS, 0, x->stream, *x);
}
