// Running sums on GPUs (mixer/scan.h): a thread has some channels of a block of SCAN_BLOCK rows, so neighbours read
// neighbouring addresses, and the many blocks keep the memory busy.
//
//   block_sum_kernel   the sum of each block
//   between_kernel     from these to the sums before each block; a thread goes through all blocks of a channel
//   scan_kernel        within each block, from what comes before it
#include "layers/cuda/columns.h"
#include "layers/cuda/elementwise.h"
#include "mixer/scan.h"

namespace {

enum { THREADS = 128, AHEAD = 8 }; // rows, or sums, asked for before the first is used

// What a thread of the first and last kernel has: WIDTH channels from `channel` on of a block of a sequence.
struct Piece {
    int64_t b, block, channel;
    int64_t rows, first_row; // of the block, and where it begins in the chunk
};

template <int WIDTH> __device__ inline bool piece_of_thread(const Scan &s, Piece &p) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, across = s.channels / WIDTH;
    const int64_t blocks = scan_blocks(s.length), row = i / across;
    p.channel = (i - row * across) * WIDTH;
    p.b = row / blocks;
    p.block = row - p.b * blocks;
    p.first_row = p.block * SCAN_BLOCK;
    p.rows = smaller_of<int64_t>(SCAN_BLOCK, s.length - p.first_row);
    return p.b < s.sequences;
}

// Row k of the block in the order in which it is scanned, as a row of the chunk.
__device__ inline int64_t row_of(const Scan &s, const Piece &p, int64_t k) {
    return p.first_row + (s.backward ? p.rows - 1 - k : k);
}
// Whether it goes on from the one scanned before it.
__device__ inline bool goes_on(const Scan &s, int64_t b, int64_t position) {
    return s.backward ? scan_joined(&s, b, position, position + 1) : scan_joined(&s, b, position - 1, position);
}

// Calls use(row, position, values of x) for each row, in the order of the scan.
template <int WIDTH, typename Use>
__device__ inline void for_rows(const Scan &s, const Piece &p, const bf16 *x, Use use) {
    x += (p.b * s.tokens + s.row) * s.channels + p.channel;
    for (int64_t begin = 0; begin < p.rows; begin += AHEAD) {
        float values[AHEAD][WIDTH];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (begin + k < p.rows) load(values[k], x + row_of(s, p, begin + k) * s.channels);
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (begin + k < p.rows) {
                const int64_t row = row_of(s, p, begin + k);
                use(row, s.start + row, values[k]);
            }
    }
}

template <int WIDTH> __device__ inline void set_to_zero(float (&x)[WIDTH]) {
#pragma unroll
    for (int i = 0; i < WIDTH; i++) x[i] = 0.0f;
}

template <int WIDTH> __global__ void __launch_bounds__(THREADS, 1) block_sum_kernel(Scan s, float *blocks, const bf16 *x) {
    Piece p;
    if (!piece_of_thread<WIDTH>(s, p)) return;
    float sum[WIDTH];
    set_to_zero(sum);
    for_rows<WIDTH>(s, p, x, [&](int64_t, int64_t position, const float(&values)[WIDTH]) {
        const float share = s.backward ? scan_share(&s, p.b, position) : 1.0f;
        if (!goes_on(s, p.b, position)) set_to_zero(sum);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) sum[i] += values[i] * share;
    });
    float *to = blocks + (p.b * scan_blocks(s.length) + p.block) * s.channels + p.channel;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) to[i] = sum[i];
}

// What a block is given goes on behind it only where the whole block is of one document.
__device__ inline bool passes_through(const Scan &s, int64_t b, int64_t block) {
    const int64_t begin = s.start + block * SCAN_BLOCK;
    const int64_t end = smaller_of<int64_t>(begin + SCAN_BLOCK, s.start + s.length);
    return s.backward ? scan_joined(&s, b, begin, end) : scan_joined(&s, b, begin - 1, end - 1);
}

__global__ void __launch_bounds__(THREADS) between_kernel(Scan s, float *blocks, float *state) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, b = i / s.channels, count = scan_blocks(s.length);
    if (b >= s.sequences) return;
    float *of_channel = blocks + b * count * s.channels + (i - b * s.channels);
    double sum = 0;
    for (int64_t begin = 0; begin < count; begin += AHEAD) {
        float values[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (begin + k < count)
                values[k] = of_channel[(s.backward ? count - 1 - begin - k : begin + k) * s.channels];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (begin + k < count) {
                const int64_t block = s.backward ? count - 1 - begin - k : begin + k;
                of_channel[block * s.channels] = (float)sum;
                sum = values[k] + (passes_through(s, b, block) ? sum : 0.0);
            }
    }
    state[i] = (float)sum;
}

template <int WIDTH>
__global__ void __launch_bounds__(THREADS)
    scan_kernel(Scan s, bf16 *out, const bf16 *x, const float *blocks, const double *before) {
    Piece p;
    if (!piece_of_thread<WIDTH>(s, p)) return;
    const float *of_block = blocks + (p.b * scan_blocks(s.length) + p.block) * s.channels + p.channel;
    const int64_t entry = s.start + row_of(s, p, 0);
    const bool reaches =
        s.backward ? scan_joined(&s, p.b, entry, s.start + s.length) : scan_joined(&s, p.b, s.start - 1, entry);
    float carried[WIDTH], sum[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; i++)
        carried[i] = of_block[i] + (reaches ? (float)before[p.b * s.channels + p.channel + i] : 0.0f);
    set_to_zero(sum);
    out += (p.b * s.tokens + s.row) * s.channels + p.channel;
    for_rows<WIDTH>(s, p, x, [&](int64_t row, int64_t position, const float(&values)[WIDTH]) {
        const float share = scan_share(&s, p.b, position);
        const float in = s.backward ? share : 1.0f, scale = s.backward ? 1.0f : share;
        float y[WIDTH];
        if (!goes_on(s, p.b, position)) {
            set_to_zero(sum);
            set_to_zero(carried);
        }
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            sum[i] += values[i] * in;
            y[i] = (carried[i] + sum[i]) * scale;
        }
        store(out + row * s.channels, y);
    });
}

// ---- other chunks ---------------------------------------------------------------------------------------------------

enum { STATES_AT_ONCE = 128 };
struct States { // some of those that are summed, by value to a kernel
    int count, place[STATES_AT_ONCE];
    int64_t edge[STATES_AT_ONCE];
};

__global__ void __launch_bounds__(THREADS)
    gather_kernel(Scan s, double *before, const float *states, int64_t stride, States which) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, b = i / s.channels;
    if (b >= s.sequences) return;
    double sum = before[i];
#pragma unroll 1 // there are few registers on some GPUs
    for (int k = 0; k < which.count; k++) {
        const bool joined = s.backward ? scan_joined(&s, b, s.start + s.length - 1, which.edge[k])
                                       : scan_joined(&s, b, which.edge[k] - 1, s.start);
        if (joined) sum += states[which.place[k] * stride + i];
    }
    before[i] = sum;
}

__global__ void __launch_bounds__(THREADS) advance_kernel(Scan s, double *before, const float *state) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, b = i / s.channels;
    if (b >= s.sequences) return;
    const bool through = scan_joined(&s, b, s.start - 1, s.start + s.length - 1);
    before[i] = state[i] + (through ? before[i] : 0.0);
}

// ---- the table ------------------------------------------------------------------------------------------------------

unsigned grid_of_channels(const Scan *s) { return grid_for(s->sequences * s->channels, THREADS); }
unsigned grid_of_blocks(const Scan *s, int width) {
    return grid_for(s->sequences * scan_blocks(s->length) * (s->channels / width), THREADS);
}

void sums(Device *device, const Scan *s, float *blocks, float *state, const void *x) {
    cudaStream_t stream = stream_of(device);
    const bf16 *from = static_cast<const bf16 *>(x);
    if (scan_is_empty(s)) return;
    if (fits_packets(s->channels, x))
        launch(block_sum_kernel<PACKET>, grid_of_blocks(s, PACKET), THREADS, 0, stream, *s, blocks, from);
    else launch(block_sum_kernel<1>, grid_of_blocks(s, 1), THREADS, 0, stream, *s, blocks, from);
    launch(between_kernel, grid_of_channels(s), THREADS, 0, stream, *s, blocks, state);
}

void gather(Device *device, const Scan *s, double *before, const float *states, int64_t stride, const int *place,
            const int64_t *edge, int count) {
    cudaStream_t stream = stream_of(device);
    const int64_t values = s->sequences * s->channels;
    if (values == 0) return;
    CUDA_CHECK(cudaMemsetAsync(before, 0, (size_t)values * sizeof *before, stream));
    for (int begin = 0; begin < count; begin += STATES_AT_ONCE) {
        States which = {};
        which.count = smaller_of<int>(STATES_AT_ONCE, count - begin);
        for (int k = 0; k < which.count; k++) which.place[k] = place[begin + k], which.edge[k] = edge[begin + k];
        launch(gather_kernel, grid_of_channels(s), THREADS, 0, stream, *s, before, states, stride, which);
    }
}

void scan(Device *device, const Scan *s, void *out, const void *x, const float *blocks, const double *before) {
    cudaStream_t stream = stream_of(device);
    bf16 *to = static_cast<bf16 *>(out);
    const bf16 *from = static_cast<const bf16 *>(x);
    if (scan_is_empty(s)) return;
    if (fits_packets(s->channels, x, out))
        launch(scan_kernel<PACKET>, grid_of_blocks(s, PACKET), THREADS, 0, stream, *s, to, from, blocks, before);
    else launch(scan_kernel<1>, grid_of_blocks(s, 1), THREADS, 0, stream, *s, to, from, blocks, before);
}

void advance(Device *device, const Scan *s, double *before, const float *state) {
    if (s->sequences * s->channels == 0) return;
    launch(advance_kernel, grid_of_channels(s), THREADS, 0, stream_of(device), *s, before, state);
}

} // namespace

extern const ScanKernels scan_kernels_cuda;
const ScanKernels scan_kernels_cuda = {sums, gather, scan, advance};
