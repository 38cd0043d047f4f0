// What long convolutions do token by token on a GPU: gates, and generation.
#include "layers/cuda/elementwise.h"
#include "mixer/cuda/convolution.h"

namespace {

// ---- gates ----------------------------------------------------------------------------------------------------------

struct Multiply {
    enum { WIDTH = PACKET, AT_ONCE = 2 };
    bf16 *out;
    const bf16 *a, *b;
    int64_t out_stride, a_stride, b_stride;
    template <int N> struct Input { float a[N], b[N]; };
    template <int N> __device__ void read(Input<N> &in, int64_t row, int64_t column) const {
        load(in.a, a + row * a_stride + column);
        load(in.b, b + row * b_stride + column);
    }
    template <int N> __device__ void write(const Input<N> &in, int64_t row, int64_t column) const {
        float y[N];
#pragma unroll
        for (int k = 0; k < N; k++) y[k] = in.a[k] * in.b[k];
        store(out + row * out_stride + column, y);
    }
};

// ---- generation -----------------------------------------------------------------------------------------------------

enum { STEP_CHANNELS = 32, STEP_PARTS = 8 };

// z_i = sum over j <= i of filter_(i-j) u_j. A block has one new token, and STEP_CHANNELS channels; each of STEP_PARTS
// threads of a channel sums every STEP_PARTS-th term, and their sums are added in order.
__global__ void __launch_bounds__(STEP_CHANNELS *STEP_PARTS)
    step_kernel(bf16 *z, const bf16 *u, const float *filter, int64_t first, int64_t C, int64_t blocks) {
    SHARED_ARRAY(float, part, STEP_CHANNELS *STEP_PARTS);
    const int x = threadIdx.x % STEP_CHANNELS, y = threadIdx.x / STEP_CHANNELS;
    const int64_t row = blockIdx.x / blocks, c = blockIdx.x % blocks * STEP_CHANNELS + x, i = first + row;
    float sum = 0.0f;
    for (int64_t j = y; c < C && j <= i; j += STEP_PARTS) sum += filter[(i - j) * C + c] * to_float(u[j * C + c]);
    part[threadIdx.x] = sum;
    __syncthreads();
    if (y > 0 || c >= C) return;
    for (int k = 1; k < STEP_PARTS; k++) sum += part[k * STEP_CHANNELS + x];
    z[row * C + c] = to_bf16(sum);
}

// A thread has a channel, and goes from token to token.
__global__ void __launch_bounds__(MAP_THREADS) cosine_step_kernel(bf16 *z, double *state, const bf16 *v, int64_t first,
                                                                  int64_t rows, int64_t C, int64_t positions) {
    const int64_t c = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x;
    if (c >= C) return;
    const int64_t f = cycles_of(c, C, positions);
    const double scale = sqrt(2 / (double)positions);
    double re = state[c], im = state[C + c];
    for (int64_t i = 0; i < rows; i++) {
        const double angle = 6.283185307179586 * (double)(f * (first + i) % positions) / (double)positions;
        const double cosine = cos(angle), sine = sin(angle), value = to_float(v[i * C + c]);
        re += cosine * value;
        im -= sine * value;
        z[i * C + c] = to_bf16((float)(scale * (cosine * re - sine * im)));
    }
    state[c] = re;
    state[C + c] = im;
}

} // namespace

void cuda_convolution_multiply(Device *device, void *out, int64_t out_stride, const void *a, int64_t a_stride,
                               const void *b, int64_t b_stride, int64_t rows, int64_t columns) {
    const Multiply map = {static_cast<bf16 *>(out),
                          static_cast<const bf16 *>(a),
                          static_cast<const bf16 *>(b),
                          out_stride,
                          a_stride,
                          b_stride};
    const bool wide =
        aligned(out, a, b) && out_stride % PACKET == 0 && a_stride % PACKET == 0 && b_stride % PACKET == 0;
    map_rows(device, map, rows, columns, wide);
}

void cuda_convolution_step(Device *device, void *z, const void *u, const float *filter, int64_t first, int64_t rows,
                           int64_t C) {
    const int64_t blocks = ceil_div(C, (int64_t)STEP_CHANNELS);
    launch(step_kernel, grid_for(rows * blocks, 1), STEP_CHANNELS * STEP_PARTS, 0, stream_of(device),
           static_cast<bf16 *>(z), static_cast<const bf16 *>(u), filter, first, C, blocks);
}

void cuda_convolution_cosine_step(Device *device, void *z, double *state, const void *v, int64_t first, int64_t rows,
                                  int64_t C, int64_t positions) {
    launch(cosine_step_kernel, grid_for(C, MAP_THREADS), MAP_THREADS, 0, stream_of(device), static_cast<bf16 *>(z),
           state, static_cast<const bf16 *>(v), first, rows, C, positions);
}
