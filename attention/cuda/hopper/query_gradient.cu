// dQ from its sums (query_sums.h): scaled, and written in storage type, or added to the sums of other pairs of chunks.
// One pass, which memory bounds.
#include "attention/cuda/hopper/query_sums.h"
#include "attention/cuda/view.h"

namespace hopper::backward {

constexpr int FINISH_THREADS = 256; // for 64 x 64 values: each has 8 columns of two rows, which lay with four lanes

template <int D, bool WHOLE, bool LIMITED>
__global__ void __launch_bounds__(FINISH_THREADS)
    query_gradient_kernel(const QuerySums x, const Pair pair, float scale, TokenView d_q, FloatView d_q_sums) {
#if HOPPER_BODY
    const int64_t place = blockIdx.x / 2, head_row = place / x.tiles;
    const int tile = place % x.tiles, w = blockIdx.x % 2, n = threadIdx.x % 8, lanes = threadIdx.x / 8;
    const int b = head_row / x.heads, head = head_row % x.heads, column = (D == 64 ? 0 : w * 64) + n * 8;
    const int64_t first_query = (int64_t)tile * queries_of_tile(D) + (D == 64 ? w * 64 : 0);
    const int64_t query = first_query + lanes / 8 * 16 + lanes % 8; // and query + 8
    const bool written = has_sums<D, LIMITED>(pair, b, tile);
    if (!WHOLE && !written) return;
    const float4 *four = reinterpret_cast<const float4 *>(x.sum + (int64_t)blockIdx.x * TERMS) + n * WARPGROUP;
    float value[2][8];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float4 sum = written ? four[lanes * 4 + i] : make_float4(0, 0, 0, 0);
        value[0][2 * i] = scale * sum.x, value[0][2 * i + 1] = scale * sum.y;
        value[1][2 * i] = scale * sum.z, value[1][2 * i + 1] = scale * sum.w;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int64_t row = query + half * 8;
        if (row >= pair.queries) break;
        if (WHOLE) {
            store_packet(token_at(d_q, b, row, head, D) + column, value[half]);
            continue;
        }
        float2 *to = reinterpret_cast<float2 *>(float_at(d_q_sums, b, row, head, D) + column);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 sum = to[i];
            to[i] = make_float2(sum.x + value[half][2 * i], sum.y + value[half][2 * i + 1]);
        }
    }
#else
    __trap(); // compiled for another GPU: not to be launched
#endif
}

template <int D, bool WHOLE>
void finish(Device *device, const AttentionShape *shape, const QueryBackward *query, const Pair &pair,
            const QuerySums &sums, TokenView d_q) {
    const unsigned blocks = blocks_for(count_places(shape, pair.queries) * 2);
    const cudaStream_t stream = stream_of(device);
    if (is_limited(pair))
        launch((query_gradient_kernel<D, WHOLE, true>), blocks, FINISH_THREADS, 0, stream, sums, pair, shape->scale,
               d_q, query->d_q);
    else
        launch((query_gradient_kernel<D, WHOLE, false>), blocks, FINISH_THREADS, 0, stream, sums, pair, shape->scale,
               d_q, query->d_q);
}

void finish_query_gradient(Device *device, const AttentionShape *shape, const QueryBackward *query, const Pair &pair,
                           const QuerySums &sums, const TokenView *d_q) {
    const bool small = shape->head_dim == 64;
    if (d_q == NULL && small) finish<64, false>(device, shape, query, pair, sums, TokenView{});
    else if (d_q == NULL) finish<128, false>(device, shape, query, pair, sums, TokenView{});
    else if (small) finish<64, true>(device, shape, query, pair, sums, *d_q);
    else finish<128, true>(device, shape, query, pair, sums, *d_q);
}

} // namespace hopper::backward
