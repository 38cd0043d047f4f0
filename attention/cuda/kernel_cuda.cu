// The table of attention's kernels for GPUs. Here the parts that pass over the tokens once, which memory
// bounds; the work is in forward.cu and backward.cu.
//
// The softmax state is that of attention/kernel.h in base 2: `max` holds the largest scale log2(e) q.k, and sum and
// accumulator are weighted by 2^(scale log2(e) q.k - max). finish brings the log-sum-exp back to natural units.
#include <math.h>

#include "attention/cuda/kernels.h"
#include "attention/cuda/view.h"
#ifdef HOPPER
#include "attention/cuda/hopper/hopper.h"
#endif
#include "layers/cuda/context.h"
#include "layers/cuda/layers.h"
#include "layers/cuda/warp.h"

namespace {

enum { THREADS = 256 };

// A pass over all rows (b, h, t) of a chunk. LANES neighbouring lanes share a row, each with one packet of it; LANES is
// the power of 2 that the head's packets fit into. Rows follow one another by t, so that row values are read together.
struct Pass {
    int64_t rows, tokens;
    int heads, packets; // packets: of a head
};

struct PassRow {
    int64_t t;
    int b, h, packet;
    bool here; // else: nothing to do
};

template <int LANES> __device__ inline PassRow pass_row(Pass pass) {
    const int64_t row = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / LANES;
    const int64_t head_row = row / pass.tokens;
    PassRow at;
    at.t = row % pass.tokens;
    at.b = (int)(head_row / pass.heads);
    at.h = (int)(head_row % pass.heads);
    at.packet = threadIdx.x % LANES;
    at.here = row < pass.rows && at.packet < pass.packets;
    return at;
}

__device__ inline float *row_value(RowView view, const PassRow &at) { return row_at(view, at.b, at.h, at.t); }
__device__ inline float4 *float_packet(FloatView view, const PassRow &at, Pass pass) {
    return reinterpret_cast<float4 *>(float_at(view, at.b, at.t, at.h * pass.packets + at.packet, PACKET));
}
__device__ inline bf16 *token_packet(TokenView view, const PassRow &at, Pass pass) {
    return token_at(view, at.b, at.t, at.h * pass.packets + at.packet, PACKET);
}

template <int LANES> __global__ void begin_kernel(Pass pass, FloatView accumulator, RowView max, RowView sum) {
    const PassRow at = pass_row<LANES>(pass);
    if (!at.here) return;
    float4 *place = float_packet(accumulator, at, pass);
    place[0] = place[1] = make_float4(0, 0, 0, 0);
    if (at.packet == 0) {
        *row_value(max, at) = -INFINITY;
        *row_value(sum, at) = 0;
    }
}

template <int LANES>
__global__ void finish_kernel(Pass pass, FloatView accumulator, RowView max, RowView sum, TokenView out,
                              RowView log_sum_exp) {
    const PassRow at = pass_row<LANES>(pass);
    if (!at.here) return;
    const float total = *row_value(sum, at), inverse = total == 0 ? 0 : 1 / total; // 0: saw no key. NaN stays
    const float4 *place = float_packet(accumulator, at, pass), low = place[0], high = place[1];
    const float values[PACKET] = {low.x * inverse,  low.y * inverse,  low.z * inverse,  low.w * inverse,
                                  high.x * inverse, high.y * inverse, high.z * inverse, high.w * inverse};
    store_packet(token_packet(out, at, pass), values);
    if (at.packet == 0) // may be the place of max
        *row_value(log_sum_exp, at) = total == 0 ? -INFINITY : (*row_value(max, at) + log2f(total)) * LN_2;
}

template <int LANES> __global__ void row_delta_kernel(Pass pass, TokenView out, TokenView d_out, RowView delta) {
    const PassRow at = pass_row<LANES>(pass);
    float sum = 0;
    if (at.here) {
        float o[PACKET], d[PACKET];
        load_packet(o, token_packet(out, at, pass));
        load_packet(d, token_packet(d_out, at, pass));
#pragma unroll
        for (int i = 0; i < PACKET; i++) sum += o[i] * d[i];
    }
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(WHOLE_WARP, sum, distance);
    if (at.here && at.packet == 0) *row_value(delta, at) = sum;
}

Pass pass_over(const AttentionShape *shape, Chunk chunk) {
    return Pass{shape->batch * shape->heads * chunk.length, chunk.length, (int)shape->heads,
                (int)(shape->head_dim / PACKET)};
}

// Launches the copy of `kernel` for this many packets in a head.
#define LAUNCH_PASS(kernel, device, pass, ...)                                                                         \
    do {                                                                                                               \
        if ((pass).rows == 0) break;                                                                                   \
        const cudaStream_t stream = stream_of(device);                                                                 \
        if ((pass).packets <= 4) launch(kernel<4>, blocks_of(pass, 4), THREADS, 0, stream, pass, __VA_ARGS__);         \
        else if ((pass).packets <= 8) launch(kernel<8>, blocks_of(pass, 8), THREADS, 0, stream, pass, __VA_ARGS__);    \
        else launch(kernel<16>, blocks_of(pass, 16), THREADS, 0, stream, pass, __VA_ARGS__);                           \
    } while (0)

unsigned blocks_of(Pass pass, int lanes) {
    const int64_t blocks = ceil_div(pass.rows * lanes, (int64_t)THREADS);
    if (blocks > INT32_MAX) cuda_give_up(__FILE__, __LINE__, "%lld attention rows at once", (long long)pass.rows);
    return (unsigned)blocks;
}

void begin(Device *device, const AttentionShape *shape, const QueryForward *query) {
    const Pass pass = pass_over(shape, query->chunk);
    check_floats(query->accumulator, 16, "accumulator");
    LAUNCH_PASS(begin_kernel, device, pass, query->accumulator, query->max, query->sum);
}

void finish(Device *device, const AttentionShape *shape, const QueryForward *query, TokenView out,
            RowView log_sum_exp) {
    const Pass pass = pass_over(shape, query->chunk);
    check_floats(query->accumulator, 16, "accumulator");
    check_tokens(out, "out");
    LAUNCH_PASS(finish_kernel, device, pass, query->accumulator, query->max, query->sum, out, log_sum_exp);
}

void row_delta(Device *device, const AttentionShape *shape, Chunk chunk, TokenView out, TokenView d_out,
               RowView delta) {
    const Pass pass = pass_over(shape, chunk);
    check_tokens(out, "out");
    check_tokens(d_out, "d_out");
    LAUNCH_PASS(row_delta_kernel, device, pass, out, d_out, delta);
}

__global__ void first_of_residues_kernel(const int32_t *first, int64_t stride, Residues r, Chunk queries, int key_start,
                                         int32_t *out, int64_t out_stride) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, b = blockIdx.y, m = queries.start + i;
    if (i >= queries.length) return;
    const int64_t seen = first[b * stride + r.query + r.step * m];
    out[b * out_stride + m] = (int32_t)((seen - r.key + r.step - 1) / r.step) + key_start;
}

void first_of_residues(Device *device, int64_t batch, const Visibility *visibility, Residues r, Chunk queries,
                       int64_t key_start, int32_t *out, int64_t out_stride) {
    if (queries.length == 0) return;
    const dim3 blocks((unsigned)ceil_div(queries.length, (int64_t)THREADS), (unsigned)batch);
    launch(first_of_residues_kernel, blocks, THREADS, 0, stream_of(device), visibility->first, visibility->stride, r,
           queries, (int)key_start, out, out_stride);
}

const char *unsupported(const AttentionShape *shape) {
    if (shape->head_dim % PACKET != 0 || shape->head_dim > 128)
        return "the CUDA kernels take heads of 8 to 128, in multiples of 8";
    if (!(shape->scale > 0)) return "the CUDA kernels take positive scales only";
    return NULL;
}

constexpr AttentionKernels kernels_with(size_t (*scratch_bytes)(const AttentionShape *, int64_t queries, int threads)) {
    return {begin,
            cuda_forward_pair,
            finish,
            cuda_forward_whole,
            row_delta,
            cuda_backward_pair,
            cuda_backward_whole,
            first_of_residues,
            cuda_vanilla_row_bytes,
            cuda_vanilla_forward,
            cuda_vanilla_backward,
            unsupported,
            scratch_bytes};
}
constexpr AttentionKernels kernels = kernels_with(NULL);

#ifdef HOPPER
size_t scratch_bytes_on_hopper(const AttentionShape *shape, int64_t queries, int) {
    if (!hopper::serves_heads(shape) || queries == 0) return 0;
    return CUDA_WORKSPACE_BYTES + hopper_backward_scratch_bytes(shape, queries);
}
constexpr AttentionKernels kernels_on_hopper = kernels_with(scratch_bytes_on_hopper);
#endif

} // namespace

const AttentionKernels *cuda_attention_kernels(Device *device) {
#ifdef HOPPER
    if (hopper::is_hopper(device)) return &kernels_on_hopper;
#endif
    (void)device;
    return &kernels;
}
