// Softmax cross-entropy, and its gradient over the logits in place: a block per row, which reads its row twice and
// writes it once. The first time it comes from memory, the second from the L2 cache: the rows under way, two per
// multiprocessor, fit into it (a row of GPT-2's is 100 KB).
//
// loss = log(sum_j exp(x_j - max)) + max - x_target. Maximum and sum are found together (Milakov and Gimelshein 2018):
// where the maximum grows, the sum so far shrinks by exp(old - new). No exp of a positive number occurs, so logits may
// lie any distance apart.
//
// A row has Vp logits in memory, a multiple of 8 that is not less than V, so it is whole packets of 16 bytes, on their
// boundaries. Those from V on are padding: -inf in place of whatever stands there, which counts for nothing.
#include <math.h>

#include "layers/cuda/activation.h"
#include "layers/cuda/columns.h"
#include "layers/cuda/elementwise.h"
#include "layers/cuda/layers.h"
#include "layers/cuda/warp.h"

namespace {

enum { MAX_THREADS = 512, ROW_AT_ONCE = 4 };

struct LogitRow {
    bf16 *x;
    int V, packets; // that hold some of the V; others may follow
};

// Two logits, of which only the first `count` are the vocabulary's: -inf for the others.
__device__ inline uint32_t without_padding(uint32_t two, int count) {
    return count >= 2 ? two : count == 1 ? (two & 0xffffu) | 0xff800000u : 0xff80ff80u;
}

// A packet as it came, which takes half the registers of its values.
__device__ inline uint4 load_logits(const LogitRow &row, int packet) {
    const uint4 raw = packet < row.packets ? load_raw(row.x + packet * PACKET) : make_uint4(0, 0, 0, 0);
    const int left = row.V - packet * PACKET;
    if (left >= PACKET) return raw;
    return make_uint4(without_padding(raw.x, left), without_padding(raw.y, left - 2), without_padding(raw.z, left - 4),
                      without_padding(raw.w, left - 6));
}

// exp(x - max), where max is -inf only if x is.
__device__ inline float exp_below(float x, float max) { return exp2_fast((x - max) * LOG2_E); }
__device__ inline float finite(float max) { return max == -INFINITY ? 0.0f : max; }

struct Softmax {
    float max, sum; // of exp(x - max)
};

__device__ inline void take_in(Softmax &state, uint4 packed) {
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
        uint4 packed[ROW_AT_ONCE];
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

// The padding's are exp(-inf) = 0.
__device__ inline void store_gradients(const LogitRow &row, int all_packets, const Softmax &softmax, float d_loss) {
    const float max = finite(softmax.max), factor = d_loss / softmax.sum;
    for (int base = threadIdx.x; base < all_packets; base += ROW_AT_ONCE * blockDim.x) {
        uint4 packed[ROW_AT_ONCE];
#pragma unroll
        for (int k = 0; k < ROW_AT_ONCE; k++) packed[k] = load_logits(row, base + k * blockDim.x);
#pragma unroll
        for (int k = 0; k < ROW_AT_ONCE; k++) {
            const int packet = base + k * blockDim.x;
            float x[PACKET];
            unpack(x, packed[k]);
#pragma unroll
            for (int j = 0; j < PACKET; j++) x[j] = exp_below(x[j], max) * factor;
            if (packet < all_packets) store_packet(row.x + packet * PACKET, x);
        }
    }
}

__device__ inline void store_zeros(bf16 *row, int all_packets) {
    for (int packet = threadIdx.x; packet < all_packets; packet += blockDim.x)
        store_raw(row + packet * PACKET, make_uint4(0, 0, 0, 0));
}

__global__ void __launch_bounds__(MAX_THREADS, 2)
    classifier_kernel(bf16 *logits, float *losses, const int32_t *targets, int V, int Vp, float d_loss) {
    SHARED_ARRAY(float, scratch, MAX_THREADS / WARP);
    // The last rows first: a matrix product has just written them, and left them in the cache.
    const int64_t n = (int64_t)gridDim.x - 1 - blockIdx.x;
    const LogitRow row = {logits + n * Vp, V, (V + PACKET - 1) / PACKET};
    const int target = targets[n];
    if (target < 0) { // does not count
        if (threadIdx.x == 0) losses[n] = 0.0f;
        if (d_loss != 0.0f) store_zeros(row.x, Vp / PACKET);
        return;
    }
    const float at_target = to_float(row.x[target]);
    const Softmax softmax = softmax_of(row, scratch);
    if (threadIdx.x == 0) losses[n] = logf(softmax.sum) + (softmax.max - at_target);
    if (d_loss == 0.0f) return;
    store_gradients(row, Vp / PACKET, softmax, d_loss);
    __syncthreads(); // then the target's, from its own logit, so that it is rounded once
    if (threadIdx.x == 0)
        row.x[target] = to_bf16(exp_below(at_target, finite(softmax.max)) * (d_loss / softmax.sum) - d_loss);
}

} // namespace

void cuda_classifier(Device *device, void *logits, float *losses, const int32_t *targets, int64_t rows, int64_t V,
                     int64_t Vp, float d_loss) {
    if (rows == 0) return;
    if (Vp > INT32_MAX / 2) cuda_give_up(__FILE__, __LINE__, "a vocabulary of %lld", (long long)V);
    if (Vp < V || !fits_packets(Vp, logits))
        cuda_give_up(__FILE__, __LINE__, "rows of %lld logits, from %p on, are not whole packets of 16 bytes",
                     (long long)Vp, logits);
    const int64_t warps = ceil_div(V, (int64_t)PACKET * ROW_AT_ONCE * WARP);
    const int threads = (int)smaller_of(warps * WARP, (int64_t)MAX_THREADS);
    launch(classifier_kernel, grid_for(rows, 1), threads, 0, stream_of(device), static_cast<bf16 *>(logits), losses,
           targets, (int)V, (int)Vp, d_loss);
}
