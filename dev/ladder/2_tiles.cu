// Step 2: tiles of keys in shared memory.
//
// All rows of a block want the same keys. So the block reads KEYS of them once, together, into shared memory, and then
// every thread takes them from there: global memory is read a 64th as often. The barriers say when a tile is there and
// when all have done with it. What is left: the scores are still worked out twice, and a thread with its row holds 2 D
// values, which for D = 128 is more than its registers, so that they go to memory after all.
#include "dev/ladder/ladder.h"

namespace {

enum { THREADS = 64, KEYS = 32 };

// Copies keys `first` to `first` + KEYS of one tensor; those beyond the sequence become zeros.
template <int D>
__device__ void load_tile(float tile[KEYS][D], const Ladder &x, const bf16 *tensor, int head, int first) {
    for (int n = threadIdx.x; n < KEYS * D; n += THREADS) {
        const int j = first + n / D;
        tile[n / D][n % D] = j < x.T ? to_float(tensor[row_at(x, head, j) + n % D]) : 0;
    }
}

// A row of 64 values fits into registers; one of 128 does not, and its loops stay loops over an array in memory.
template <int D> constexpr int UNROLL = D <= 64 ? D : 4;

template <int D> __device__ float score(const float q[D], const float k[D], float scale) {
    float sum = 0;
#pragma unroll(UNROLL <D>)
    for (int d = 0; d < D; d++) sum += q[d] * k[d];
    return sum * scale;
}

template <int D> __global__ void tiles_kernel(Ladder x) {
    DYNAMIC_SHARED(float, shared);
    float(*k)[D] = reinterpret_cast<float(*)[D]>(shared), (*v)[D] = k + KEYS;
    const int blocks = ceil_div(x.T, (int)THREADS), head = blockIdx.x / blocks;
    const int i = blockIdx.x % blocks * THREADS + threadIdx.x; // may be beyond T: works, and stores nothing
    const int last = smaller_of(i - (int)threadIdx.x + THREADS, x.T) - 1;
    float q[D], out[D];
#pragma unroll(UNROLL <D>)
    for (int d = 0; d < D; d++) {
        q[d] = i < x.T ? to_float(x.q[row_at(x, head, i) + d]) : 0;
        out[d] = 0;
    }

    float max = -INFINITY, sum = 0;
    for (int first = 0; first <= last; first += KEYS) {
        __syncthreads();
        load_tile<D>(k, x, x.k, head, first);
        __syncthreads();
        for (int j = 0; j < KEYS && first + j <= i; j++) max = fmaxf(max, score<D>(q, k[j], x.scale));
    }
    for (int first = 0; first <= last; first += KEYS) {
        __syncthreads();
        load_tile<D>(k, x, x.k, head, first);
        load_tile<D>(v, x, x.v, head, first);
        __syncthreads();
        for (int j = 0; j < KEYS && first + j <= i; j++) {
            const float weight = expf(score<D>(q, k[j], x.scale) - max);
            sum += weight;
#pragma unroll(UNROLL <D>)
            for (int d = 0; d < D; d++) out[d] += weight * v[j][d];
        }
    }
    for (int d = 0; d < D && i < x.T; d++) x.out[row_at(x, head, i) + d] = to_bf16(out[d] / sum);
}

} // namespace

void step_2(const Ladder *x) {
    const unsigned blocks = (unsigned)(x->heads * ceil_div(x->T, (int)THREADS));
    const int bytes = 2 * KEYS * x->D * (int)sizeof(float);
    if (x->D == 64) launch(tiles_kernel<64>, blocks, THREADS, bytes, x->stream, *x);
    else launch(tiles_kernel<128>, blocks, THREADS, bytes, x->stream, *x);
}
