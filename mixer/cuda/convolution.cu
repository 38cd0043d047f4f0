// Long convolutions on a GPU. Some channels at a time, a group (convolution_group), are turned into rows of fp32,
// padded with zeros, transformed together by cuFFT, multiplied, transformed back and turned into columns again. What a
// group works in does not grow with the number of channels:
//
//   [ spectra of the filter | of u, or d_z | backward: of u | of d_filter | cuFFT's work area ]
#include "layers/cuda/elementwise.h"
#include "layers/cuda/libraries.h"
#include "mixer/cuda/convolution.h"
#include "mixer/cuda/transforms.h"

namespace {

bool opens(const char *option, Error *err) {
    if (cufft_opens()) return true;
    return error_usage(err,
                       "%s: its convolutions are done by cuFFT, whose library libcufft.so cannot be opened: install it "
                       "(it is part of the CUDA Toolkit), or take another mixer",
                       option);
}

// ---- into rows and back ---------------------------------------------------------------------------------------------

// u of one sequence (T, width), and zeros behind it and for channels that there are not: the rows are whole.
struct PaddedColumns {
    const bf16 *u;
    int64_t width, T, channels;
    __device__ int of_channel(int64_t) const { return 0; }
    __device__ float value(int, int64_t c, int64_t t) const {
        return t < T && c < channels ? to_float(u[t * width + c]) : 0.0f;
    }
};

struct StorageColumns {
    bf16 *z;
    int64_t width;
    __device__ int of_channel(int64_t) const { return 0; }
    __device__ void take(int, int64_t c, int64_t t, float value) const { z[t * width + c] = to_bf16(value); }
};

// A row of the filter (channels, T) for each of `grid.y` rows, padded; and back.
__global__ void __launch_bounds__(MAP_THREADS)
    pad_filter_kernel(float *rows, int64_t stride, const float *filter, int64_t T, int64_t channels) {
    const int64_t t = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x, c = blockIdx.y;
    if (t < stride) rows[c * stride + t] = t < T && c < channels ? filter[c * T + t] : 0.0f;
}

__global__ void __launch_bounds__(MAP_THREADS)
    unpad_filter_kernel(float *filter, const float *rows, int64_t stride, int64_t T) {
    const int64_t t = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x, c = blockIdx.y;
    if (t < T) filter[c * T + t] = rows[c * stride + t];
}

// ---- products of spectra --------------------------------------------------------------------------------------------

__device__ float2 product_of(float2 a, float2 b) { return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x); }
__device__ float2 conjugate(float2 a) { return make_float2(a.x, -a.y); }
__device__ float2 scaled(float2 a, float scale) { return make_float2(a.x * scale, a.y * scale); }

// u = scale h u, over all rows of a group.
__global__ void __launch_bounds__(MAP_THREADS) product_kernel(float2 *u, const float2 *h, int64_t count, float scale) {
    const int64_t i = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x;
    if (i < count) u[i] = product_of(scaled(h[i], scale), u[i]);
}

// d_h (+)= scale conj(u) d_z where u is wanted; then d_z = scale conj(h) d_z.
__global__ void __launch_bounds__(MAP_THREADS)
    gradient_kernel(float2 *d_h, float2 *d_z, const float2 *u, const float2 *h, int64_t count, float scale, bool adds) {
    const int64_t i = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x;
    if (i >= count) return;
    const float2 d = scaled(d_z[i], scale);
    if (u != NULL) {
        const float2 before = adds ? d_h[i] : make_float2(0.0f, 0.0f), more = product_of(conjugate(u[i]), d);
        d_h[i] = make_float2(before.x + more.x, before.y + more.y);
    }
    d_z[i] = product_of(conjugate(h[i]), d);
}

// ---- a group at work ------------------------------------------------------------------------------------------------

struct Group {
    Device *device;
    int64_t T, N, stride, width; // width: of all channels
    int64_t first, count, rows;  // its channels; rows: of which the last groups leave some empty
    float *spectrum[4];
    void *work;
    size_t work_bytes;
    float scale() const { return 1.0f / (float)N; }
    int64_t complexes() const { return rows * stride / 2; }
    RowsToTransform transform(int which) const {
        return RowsToTransform{spectrum[which], N, stride, rows, work, work_bytes};
    }
};

Group group_for(Device *device, int64_t T, int64_t channels) {
    Group g = {};
    g.device = device, g.T = T, g.N = convolution_length(T), g.stride = g.N + 2, g.width = channels;
    g.rows = convolution_group(T, channels);
    const size_t bytes = convolution_scratch_cuda(T, channels), one = convolution_spectra_bytes(T, channels);
    char *scratch = static_cast<char *>(device_scratch(device, "convolution", bytes));
    for (int i = 0; i < 4; i++) g.spectrum[i] = reinterpret_cast<float *>(scratch + i * one);
    g.work = scratch + 4 * one;
    g.work_bytes = bytes - 4 * one;
    return g;
}

void filter_spectra(const Group &g, const float *filter) {
    const dim3 grid((unsigned)ceil_div(g.stride, (int64_t)MAP_THREADS), (unsigned)g.rows);
    launch(pad_filter_kernel, grid, MAP_THREADS, 0, stream_of(g.device), g.spectrum[0], g.stride,
           filter + g.first * g.T, g.T, g.count);
    transform_forward(g.device, g.transform(0));
}

void column_spectra(const Group &g, int which, const void *columns, int64_t sequence) {
    const bf16 *from = static_cast<const bf16 *>(columns) + sequence * g.T * g.width + g.first;
    const PaddedColumns padded = {from, g.width, g.T, g.count};
    launch(to_rows_kernel<PaddedColumns>, turn_grid(g.stride, g.rows), TURN * TURN_ROWS, 0, stream_of(g.device),
           g.spectrum[which], g.stride, g.stride, g.rows, padded);
    transform_forward(g.device, g.transform(which));
}

void columns_from_spectra(const Group &g, void *columns, int which, int64_t sequence) {
    bf16 *to = static_cast<bf16 *>(columns) + sequence * g.T * g.width + g.first;
    const StorageColumns stored = {to, g.width};
    transform_backward(g.device, g.transform(which));
    launch(from_rows_kernel<StorageColumns>, turn_grid(g.T, g.count), TURN * TURN_ROWS, 0, stream_of(g.device), stored,
           g.spectrum[which], g.stride, g.T, g.count);
}

float2 *complex_of(const Group &g, int which) { return reinterpret_cast<float2 *>(g.spectrum[which]); }

void forward(Device *device, void *z, const void *u, const float *filter, int64_t sequences, int64_t T,
             int64_t channels) {
    Group g = group_for(device, T, channels);
    const unsigned grid = grid_for(g.complexes(), MAP_THREADS);
    for (g.first = 0; g.first < channels; g.first += g.rows) {
        g.count = smaller_of(g.rows, channels - g.first);
        filter_spectra(g, filter);
        for (int64_t b = 0; b < sequences; b++) {
            column_spectra(g, 1, u, b);
            launch(product_kernel, grid, MAP_THREADS, 0, stream_of(device), complex_of(g, 1), complex_of(g, 0),
                   g.complexes(), g.scale());
            columns_from_spectra(g, z, 1, b);
        }
    }
}

void backward(Device *device, void *d_u, float *d_filter, const void *d_z, const void *u, const float *filter,
              int64_t sequences, int64_t T, int64_t channels) {
    Group g = group_for(device, T, channels);
    const unsigned grid = grid_for(g.complexes(), MAP_THREADS);
    const bool wanted = d_filter != NULL;
    for (g.first = 0; g.first < channels; g.first += g.rows) {
        g.count = smaller_of(g.rows, channels - g.first);
        filter_spectra(g, filter);
        for (int64_t b = 0; b < sequences; b++) {
            column_spectra(g, 1, d_z, b);
            if (wanted) column_spectra(g, 2, u, b);
            launch(gradient_kernel, grid, MAP_THREADS, 0, stream_of(device), complex_of(g, 3), complex_of(g, 1),
                   wanted ? complex_of(g, 2) : NULL, complex_of(g, 0), g.complexes(), g.scale(), b > 0);
            columns_from_spectra(g, d_u, 1, b);
        }
        if (!wanted) continue;
        transform_backward(device, g.transform(3));
        const dim3 rows((unsigned)ceil_div(T, (int64_t)MAP_THREADS), (unsigned)g.count);
        launch(unpad_filter_kernel, rows, MAP_THREADS, 0, stream_of(device), d_filter + g.first * T, g.spectrum[3],
               g.stride, T);
    }
}

} // namespace

extern const ConvolutionKernels convolution_kernels_cuda = {opens,
                                                            forward,
                                                            backward,
                                                            cuda_filter_first_layer,
                                                            cuda_filter_sine,
                                                            cuda_filter_window,
                                                            cuda_filter_window_backward,
                                                            cuda_filter_window_rows,
                                                            cuda_filter_cosines,
                                                            cuda_convolution_multiply,
                                                            cuda_convolution_step,
                                                            cuda_convolution_cosine_step};
