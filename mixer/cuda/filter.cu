// The filters of long convolutions on a GPU: of conv the first layer of its network, sines and the window
// (mixer/implicit_filter.h; the other layers are products of matrices), of fourier cosines.
#include "layers/cuda/elementwise.h"
#include "mixer/cuda/convolution.h"

namespace {

constexpr double TURN_ANGLE = 6.283185307179586;

// ---- sines ----------------------------------------------------------------------------------------------------------

// x without whole turns, for the hardware's sine and cosine: within 2^-20 for |x| < 10,000, where storage has 2^-9.
__device__ float within_turn(float x) {
    const float turns = rintf(x * 0.159154943f);
    return fmaf(turns, -1.93530718e-3f, fmaf(turns, -6.28125f, x)); // 2 pi in two parts; turns * 6.28125 is exact
}
__device__ float sine_of(float x) { return __sinf(within_turn((float)FILTER_SINE * x)); }
__device__ float sine_gradient(float x, float d_out) {
    return d_out * (float)FILTER_SINE * __cosf(within_turn((float)FILTER_SINE * x));
}

struct Sine {
    enum { WIDTH = PACKET, AT_ONCE = 2 };
    bf16 *out;
    const bf16 *x;
    template <int N> struct Input { float x[N]; };
    template <int N> __device__ void read(Input<N> &in, int64_t i) const { load(in.x, x + i); }
    template <int N> __device__ void write(const Input<N> &in, int64_t i) const {
        float y[N];
#pragma unroll
        for (int k = 0; k < N; k++) y[k] = sine_of(in.x[k]);
        store(out + i, y);
    }
};

struct SineBackward {
    enum { WIDTH = PACKET, AT_ONCE = 2 };
    bf16 *d_x;
    const bf16 *x, *d_out;
    template <int N> struct Input { float x[N], d_out[N]; };
    template <int N> __device__ void read(Input<N> &in, int64_t i) const {
        load(in.x, x + i);
        load(in.d_out, d_out + i);
    }
    template <int N> __device__ void write(const Input<N> &in, int64_t i) const {
        float y[N];
#pragma unroll
        for (int k = 0; k < N; k++) y[k] = sine_gradient(in.x[k], in.d_out[k]);
        store(d_x + i, y);
    }
};

// ---- the first layer, with its features in fp32: t / T' in bf16 would be the same for many tokens -------------------

enum { FIRST_ROWS = 16, FIRST_THREADS = 4 * FILTER_WIDTH, FIRST_STRIDE = FILTER_FEATURES + 1 };

// As features in mixer/cpu/convolution_simd.c: angles in [-pi, pi), cosines a quarter of a period on.
__device__ float feature_of(int64_t t, int k, int64_t positions) {
    if (k == 0) return 1.0f;
    if (k == 1) return (float)((double)t / (double)positions);
    const int64_t period = (int64_t)FILTER_LEAST_PERIOD << ((k - 2) / 2), half = period / 2;
    const int64_t place = (t + (k % 2) * (period / 4) + half) % period - half;
    return __sinf((float)place * ((float)TURN_ANGLE / (float)period));
}

// A block has FIRST_ROWS positions; of each a thread has one of the FILTER_WIDTH sums.
__global__ void __launch_bounds__(FIRST_THREADS)
    first_layer_kernel(bf16 *out, bf16 *features, const bf16 *weight, const bf16 *d_out, int64_t first, int64_t rows,
                       int64_t positions) {
    SHARED_ARRAY(float, w, FILTER_WIDTH *FIRST_STRIDE);
    SHARED_ARRAY(float, f, FIRST_ROWS *FILTER_FEATURES);
    const int64_t row = (int64_t)blockIdx.x * FIRST_ROWS;
    for (int i = threadIdx.x; i < FILTER_WIDTH * FILTER_FEATURES; i += FIRST_THREADS)
        w[i / FILTER_FEATURES * FIRST_STRIDE + i % FILTER_FEATURES] = to_float(weight[i]);
    for (int i = threadIdx.x; i < FIRST_ROWS * FILTER_FEATURES; i += FIRST_THREADS) {
        const int64_t at = row + i / FILTER_FEATURES;
        f[i] = feature_of(first + at, i % FILTER_FEATURES, positions);
        if (at < rows) features[at * FILTER_FEATURES + i % FILTER_FEATURES] = to_bf16(f[i]);
    }
    __syncthreads();
    const int unit = threadIdx.x % FILTER_WIDTH;
    for (int i = threadIdx.x / FILTER_WIDTH; i < FIRST_ROWS; i += FIRST_THREADS / FILTER_WIDTH) {
        if (row + i >= rows) return;
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < FILTER_FEATURES; k++) sum += w[unit * FIRST_STRIDE + k] * f[i * FILTER_FEATURES + k];
        const int64_t at = (row + i) * FILTER_WIDTH + unit;
        out[at] = to_bf16(d_out == NULL ? sine_of(sum) : sine_gradient(sum, to_float(d_out[at])));
    }
}

// ---- the window -----------------------------------------------------------------------------------------------------

__device__ float window_at(FilterWindow w, int64_t t) { return w.gain * expf(-w.rate * (float)t) + w.floor; }

struct WindowedColumns {
    const bf16 *raw, *skip;
    int64_t width, first_channel, all, positions;
    __device__ FilterWindow of_channel(int64_t c) const { return window_of(first_channel + c, all, positions); }
    __device__ float value(FilterWindow w, int64_t c, int64_t t) const {
        return to_float(raw[t * width + c]) * window_at(w, t) + (t == 0 ? to_float(skip[c]) : 0.0f);
    }
};

struct WindowGradient {
    bf16 *d_raw;
    float *d_skip;
    int64_t width, first_channel, all, positions;
    __device__ FilterWindow of_channel(int64_t c) const { return window_of(first_channel + c, all, positions); }
    __device__ void take(FilterWindow w, int64_t c, int64_t t, float d) const {
        d_raw[t * width + c] = to_bf16(d * window_at(w, t));
        if (t == 0) d_skip[c] += d;
    }
};

// A thread has a channel, and every blockDim.y-th of the block's rows.
enum { ROWS_CHANNELS = 32, ROWS_OF_BLOCK = 8 };
__global__ void __launch_bounds__(ROWS_CHANNELS *ROWS_OF_BLOCK)
    window_rows_kernel(float *filter, WindowedColumns columns, int64_t first, int64_t rows) {
    const int64_t c = (int64_t)blockIdx.x * ROWS_CHANNELS + threadIdx.x % ROWS_CHANNELS;
    if (c >= columns.width) return;
    const FilterWindow w = columns.of_channel(c);
    for (int64_t i = threadIdx.x / ROWS_CHANNELS; i < rows; i += ROWS_OF_BLOCK) {
        const int64_t t = first + i;
        filter[i * columns.width + c] = to_float(columns.raw[i * columns.width + c]) * window_at(w, t) +
                                        (t == 0 ? to_float(columns.skip[c]) : 0.0f);
    }
}

WindowedColumns windowed(const void *raw, const void *skip, Channels channels, int64_t positions) {
    return WindowedColumns{static_cast<const bf16 *>(raw),
                           static_cast<const bf16 *>(skip),
                           channels.count,
                           channels.first,
                           channels.all,
                           positions};
}

// ---- fourier --------------------------------------------------------------------------------------------------------

// Whole turns are taken away in integers. A block's channel is blockIdx.y.
__global__ void __launch_bounds__(MAP_THREADS)
    cosines_kernel(float *filter, int64_t T, Channels channels, int64_t positions) {
    SHARED_ARRAY(int64_t, cycles, 1);
    if (threadIdx.x == 0) cycles[0] = cycles_of(channels.first + blockIdx.y, channels.all, positions);
    __syncthreads();
    const int64_t t = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x;
    if (t >= T) return;
    int64_t place = cycles[0] * t % positions;
    if (2 * place >= positions) place -= positions;
    const float angle = (float)(TURN_ANGLE * (double)place / (double)positions);
    filter[blockIdx.y * T + t] = sqrtf(2.0f / (float)positions) * cosf(angle);
}

} // namespace

// ---- the table's functions ------------------------------------------------------------------------------------------

void cuda_filter_first_layer(Device *device, void *out, void *features, const void *weight, const void *d_out,
                             int64_t first, int64_t rows, int64_t positions) {
    launch(first_layer_kernel, grid_for(rows, FIRST_ROWS), FIRST_THREADS, 0, stream_of(device),
           static_cast<bf16 *>(out), static_cast<bf16 *>(features), static_cast<const bf16 *>(weight),
           static_cast<const bf16 *>(d_out), first, rows, positions);
}

void cuda_filter_sine(Device *device, void *out, const void *x, const void *d_out, int64_t count) {
    bf16 *to = static_cast<bf16 *>(out);
    const bf16 *in = static_cast<const bf16 *>(x), *d = static_cast<const bf16 *>(d_out);
    if (d == NULL) map_values(device, Sine{to, in}, count, out, x);
    else map_values(device, SineBackward{to, in, d}, count, out, x, d_out);
}

void cuda_filter_window(Device *device, float *filter, const void *raw, const void *skip, int64_t T, Channels channels,
                        int64_t positions) {
    launch(to_rows_kernel<WindowedColumns>, turn_grid(T, channels.count), TURN * TURN_ROWS, 0, stream_of(device),
           filter, T, T, channels.count, windowed(raw, skip, channels, positions));
}

void cuda_filter_window_backward(Device *device, void *d_raw, float *d_skip, const float *d_filter, int64_t T,
                                 Channels channels, int64_t positions) {
    const WindowGradient gradient = {
        static_cast<bf16 *>(d_raw), d_skip, channels.count, channels.first, channels.all, positions};
    launch(from_rows_kernel<WindowGradient>, turn_grid(T, channels.count), TURN * TURN_ROWS, 0, stream_of(device),
           gradient, d_filter, T, T, channels.count);
}

void cuda_filter_window_rows(Device *device, float *filter, const void *raw, const void *skip, int64_t first,
                             int64_t rows, Channels channels, int64_t positions) {
    launch(window_rows_kernel, grid_for(channels.count, ROWS_CHANNELS), ROWS_CHANNELS * ROWS_OF_BLOCK, 0,
           stream_of(device), filter, windowed(raw, skip, channels, positions), first, rows);
}

void cuda_filter_cosines(Device *device, float *filter, int64_t T, Channels channels, int64_t positions) {
    const dim3 grid((unsigned)ceil_div(T, (int64_t)MAP_THREADS), (unsigned)channels.count);
    launch(cosines_kernel, grid, MAP_THREADS, 0, stream_of(device), filter, T, channels, positions);
}
