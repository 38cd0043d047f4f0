// Softmax cross-entropy, and its gradient over the logits in place: a block per row, which reads its row twice and
// writes it once. The first time it comes from memory, the second from the L2 cache: the rows under way, two per
// multiprocessor, fit into it (a row of GPT-2's is 100 KB).
//
// loss = log(sum_j exp(x_j - max)) + max - x_target. Maximum and sum are found together (Milakov and Gimelshein 2018):
// where the maximum grows, the sum so far shrinks by exp(old - new). No exp of a positive number occurs, so logits may
// lie any distance apart.
//
// A row of an odd number of values begins anywhere. It is read in the packets of 16 bytes, on their boundaries, in
// which it lies; the first and the last may be another row's in part, and are treated value by value.
#include <math.h>

#include "layers/cuda/activation.h"
#include "layers/cuda/elementwise.h"
#include "layers/cuda/layers.h"
#include "layers/cuda/warp.h"

namespace {

enum { MAX_THREADS = 512, ROW_AT_ONCE = 4 };

// A row of V logits as packets: packet p holds the values from 8p - skew to 8p - skew + 7.
struct LogitRow {
    bf16 *x;
    int V, skew, packets;
};

__device__ inline LogitRow row_of(bf16 *x, int V) {
    LogitRow row;
    row.x = x;
    row.V = V;
    row.skew = (int)(reinterpret_cast<uintptr_t>(x) % 16 / sizeof(bf16));
    row.packets = (row.skew + V + PACKET - 1) / PACKET;
    return row;
}

// A packet as it came, which takes half the registers of its values.
struct Packed {
    uint32_t words[PACKET / 2];
};

__device__ inline void unpack(float (&x)[PACKET], const Packed &packed) {
#pragma unroll
    for (int k = 0; k < PACKET / 2; k++) {
        x[2 * k] = low_of(packed.words[k]);
        x[2 * k + 1] = high_of(packed.words[k]);
    }
}

// -inf, which counts for nothing, where a value is not this row's.
__device__ inline Packed load_logits(const LogitRow &row, int packet) {
    const int first = packet * PACKET - row.skew;
    if (first >= 0 && first + PACKET <= row.V) {
        const uint4 p = *reinterpret_cast<const uint4 *>(row.x + first);
        return Packed{{p.x, p.y, p.z, p.w}};
    }
    Packed packed;
#pragma unroll
    for (int k = 0; k < PACKET / 2; k++) {
        const int i = first + 2 * k;
        packed.words[k] = pack_bf16(i >= 0 && i < row.V ? to_float(row.x[i]) : -INFINITY,
                                    i + 1 >= 0 && i + 1 < row.V ? to_float(row.x[i + 1]) : -INFINITY);
    }
    return packed;
}

__device__ inline void store_logits(const LogitRow &row, int packet, const float (&x)[PACKET]) {
    const int first = packet * PACKET - row.skew;
    if (first >= 0 && first + PACKET <= row.V) {
        store_packet(row.x + first, x);
        return;
    }
#pragma unroll
    for (int k = 0; k < PACKET; k++)
        if (first + k >= 0 && first + k < row.V) row.x[first + k] = to_bf16(x[k]);
}

// exp(x - max), where max is -inf only if x is.
__device__ inline float exp_below(float x, float max) { return exp2_fast((x - max) * LOG2_E); }
__device__ inline float finite(float max) { return max == -INFINITY ? 0.0f : max; }

struct Softmax {
    float max, sum; // of exp(x - max)
};

__device__ inline void take_in(Softmax &state, const Packed &packed) {
    float x[PACKET];
    unpack(x, packed);
    float max = state.max;
#pragma unroll
    for (int k = 0; k < PACKET; k++) max = fmaxf(max, x[k]);
    const float reference = finite(max);
    float sum = state.sum * exp_below(state.max, reference);
#pragma unroll
    for (int k = 0; k < PACKET; k++) sum += exp_below(x[k], reference); // not-a-number, which fmaxf passes over, stays
    state.max = max;
    state.sum = sum;
}

// The whole row's, for every thread.
__device__ inline Softmax softmax_of(const LogitRow &row, float *scratch) {
    Softmax mine = {-INFINITY, 0.0f};
    for (int base = threadIdx.x; base < row.packets; base += ROW_AT_ONCE * blockDim.x) {
        Packed packed[ROW_AT_ONCE];
#pragma unroll
        for (int k = 0; k < ROW_AT_ONCE; k++) packed[k] = load_logits(row, base + k * blockDim.x);
#pragma unroll
        for (int k = 0; k < ROW_AT_ONCE; k++) take_in(mine, packed[k]);
    }
    Softmax all;
    all.max = block_max(mine.max, scratch);
    all.sum = block_sum(mine.sum * exp_below(mine.max, finite(all.max)), scratch);
    return all;
}

__device__ inline void store_gradients(const LogitRow &row, const Softmax &softmax, float d_loss) {
    const float max = finite(softmax.max), factor = d_loss / softmax.sum;
    for (int base = threadIdx.x; base < row.packets; base += ROW_AT_ONCE * blockDim.x) {
        Packed packed[ROW_AT_ONCE];
#pragma unroll
        for (int k = 0; k < ROW_AT_ONCE; k++) packed[k] = load_logits(row, base + k * blockDim.x);
#pragma unroll
        for (int k = 0; k < ROW_AT_ONCE; k++) {
            float x[PACKET];
            unpack(x, packed[k]);
#pragma unroll
            for (int j = 0; j < PACKET; j++) x[j] = exp_below(x[j], max) * factor;
            store_logits(row, base + k * blockDim.x, x);
        }
    }
}

__global__ void __launch_bounds__(MAX_THREADS, 2)
    classifier_kernel(bf16 *logits, float *losses, const int32_t *targets, int V, float d_loss) {
    SHARED_ARRAY(float, scratch, MAX_THREADS / WARP);
    // The last rows first: a matrix product has just written them, and left them in the cache.
    const int64_t n = (int64_t)gridDim.x - 1 - blockIdx.x;
    const LogitRow row = row_of(logits + n * V, V);
    const int target = targets[n];
    const float at_target = to_float(row.x[target]);
    const Softmax softmax = softmax_of(row, scratch);
    if (threadIdx.x == 0) losses[n] = logf(softmax.sum) + (softmax.max - at_target);
    if (d_loss == 0.0f) return;
    store_gradients(row, softmax, d_loss);
    __syncthreads(); // then the target's, from its own logit, so that it is rounded once
    if (threadIdx.x == 0)
        row.x[target] = to_bf16(exp_below(at_target, finite(softmax.max)) * (d_loss / softmax.sum) - d_loss);
}

} // namespace

void cuda_classifier(Device *device, void *logits, float *losses, const int32_t *targets, int64_t rows, int64_t V,
                     float d_loss) {
    if (rows == 0) return;
    if (V > INT32_MAX / 2) cuda_give_up(__FILE__, __LINE__, "a vocabulary of %lld", (long long)V);
    const int64_t warps = ceil_div(V, (int64_t)PACKET * ROW_AT_ONCE * WARP);
    const int threads = (int)smaller_of(warps * WARP, (int64_t)MAX_THREADS);
    launch(classifier_kernel, grid_for(rows, 1), threads, 0, stream_of(device), static_cast<bf16 *>(logits), losses,
           targets, (int)V, d_loss);
}
