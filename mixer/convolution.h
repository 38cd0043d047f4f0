// Causal long convolutions (conv, fourier): the kernels that a device has for them, and what is said of them once.
//
// z = filter * u for each channel, z_i = sum over j <= i of filter_(i-j) u_j, is a product of spectra: both are padded
// with zeros to N >= 2 T - 1 values, so that nothing comes round from the end, transformed, multiplied and transformed
// back: O(T log T). Backward: d_u = correlation of d_z with the filter, d_filter = correlation of d_z with u, which are
// products with the conjugate spectrum. All in fp32, on the CPU by FFTW, on GPUs by cuFFT.
#ifndef MIXER_CONVOLUTION_H
#define MIXER_CONVOLUTION_H

#include <math.h>

#include "base/error.h"
#include "layers/device.h"

#ifdef __cplusplus
extern "C" {
#endif

// The filter of `conv` (mixer/implicit_filter.h): features of a position, width of the hidden layers, and the factor of
// their sines' arguments, which lets weights of the usual size reach past the sine's linear part (Hyena, appendix D.3).
enum { FILTER_FEATURES = 32, FILTER_WIDTH = 64, FILTER_SINE = 10 };

// Some of the C channels, as one rank has them.
typedef struct Channels {
    int64_t first, count, all;
} Channels;

typedef struct ConvolutionKernels {
    // Whether the library of its transforms can be opened; else an error that begins with `option`.
    bool (*opens)(const char *option, Error *err);
    // z = filter * u: z, u (sequences, T, channels) storage, filter (channels, T) fp32.
    void (*forward)(Device *, void *z, const void *u, const float *filter, int64_t sequences, int64_t T,
                    int64_t channels);
    // The gradients of u, and of the filter, summed over sequences (NULL: not wanted). d_u may be d_z, and d_filter may
    // be the filter itself.
    void (*backward)(Device *, void *d_u, float *d_filter, const void *d_z, const void *u, const float *filter,
                     int64_t sequences, int64_t T, int64_t channels);

    // ---- conv's filter ----
    // The features (rows, FILTER_FEATURES) of positions first, first + 1, ..., of `positions` in all, and the first
    // layer: out (rows, FILTER_WIDTH) = sin(10 a), a = features weight^T with the features in fp32. d_out not NULL: out
    // = d_out * 10 cos(10 a), the gradient of a, instead.
    void (*first_layer)(Device *, void *out, void *features, const void *weight, const void *d_out, int64_t first,
                        int64_t rows, int64_t positions);
    // out = sin(10 x); d_out not NULL: d_out * 10 cos(10 x). out may be d_out.
    void (*sine)(Device *, void *out, const void *x, const void *d_out, int64_t count);
    // filter (channels, T) = raw (T, channels) * the window (window_of) + the skip (channels) where t = 0.
    void (*window)(Device *, float *filter, const void *raw, const void *skip, int64_t T, Channels channels,
                   int64_t positions);
    // d_raw (T, channels) = d_filter * the window; d_skip += d_filter where t = 0.
    void (*window_backward)(Device *, void *d_raw, float *d_skip, const float *d_filter, int64_t T, Channels channels,
                            int64_t positions);
    // As window, of positions first, ..., by rows: filter (rows, channels).
    void (*window_rows)(Device *, float *filter, const void *raw, const void *skip, int64_t first, int64_t rows,
                        Channels channels, int64_t positions);
    // ---- fourier's filter ----
    // filter (channels, T): filter_t = sqrt(2 / positions) cos(2 pi f t / positions), f = cycles_of the channel.
    void (*cosines)(Device *, float *filter, int64_t T, Channels channels, int64_t positions);

    // out[i][c] = a[i][c] b[i][c]; strides in elements. out may be a or b.
    void (*multiply)(Device *, void *out, int64_t out_stride, const void *a, int64_t a_stride, const void *b,
                     int64_t b_stride, int64_t rows, int64_t columns);
    // ---- generation: rows first, first + 1, ... of z (rows, C) ----
    // By direct sums over u (first + rows, C) and the filter by rows (first + rows, C).
    void (*step)(Device *, void *z, const void *u, const float *filter, int64_t first, int64_t rows, int64_t C);
    // fourier's: state (2, C), double, is the sum of exp(-i w_c j) v_j over the tokens before, real and imaginary
    // parts.
    void (*cosine_step)(Device *, void *z, double *state, const void *v, int64_t first, int64_t rows, int64_t C,
                        int64_t positions);
} ConvolutionKernels;

extern const ConvolutionKernels convolution_kernels_cpu;

// N: the least number that is even, has no factors but 2, 3 and 5, and is at least 2 T - 1.
int64_t convolution_length(int64_t T);
// CPU: floats from one channel's row of N values, or N / 2 + 1 complex ones, to the next.
int64_t convolution_stride(int64_t T);
// What forward and backward need of Device.scratch, on the CPU and on GPUs.
enum { CONVOLUTION_TILE = 16 }; // CPU: channels of a task
size_t convolution_scratch_cpu(int64_t T, int threads);
size_t convolution_scratch_cuda(int64_t T, int64_t channels);
int64_t convolution_group(int64_t T, int64_t channels);        // GPUs: channels that are transformed at once,
size_t convolution_spectra_bytes(int64_t T, int64_t channels); // and what their rows take

// ---- the formulas of both filters, for all devices ------------------------------------------------------------------

#ifdef __CUDACC__
#define CONVOLUTION_FORMULA static __host__ __device__ inline
#else
#define CONVOLUTION_FORMULA static inline
#endif

// Position t's features are 1, t / T', and the sine and cosine of 2 pi t / period for periods of 4, 8, ..., 2^16
// tokens. T' is the number of positions that the model was made for (max_positions). It stays when a longer context
// comes, which sees the same filter farther out.
enum { FILTER_LEAST_PERIOD = 4 };

// Where a channel stands among all, from 0 to 1.
CONVOLUTION_FORMULA double channel_share(int64_t channel, int64_t all) {
    return all > 1 ? (double)channel / (double)(all - 1) : 0;
}

// A channel's window is gain exp(-rate t) + floor (Hyena, section 3.3). It falls to 1/100 within a length that goes, in
// even ratios over the channels, from 32 tokens to 1.5 T'; the gain makes the sum of its squares 1 or so, so that no
// channel is louder than others, and the floor lets every channel see far.
typedef struct FilterWindow {
    float rate, gain, floor;
} FilterWindow;
CONVOLUTION_FORMULA FilterWindow window_of(int64_t channel, int64_t all, int64_t positions) {
    const double shortest = 32, longest = 1.5 * (double)positions;
    const double rate = log(100.0) / (shortest * pow(longest / shortest, channel_share(channel, all)));
    FilterWindow window;
    window.rate = (float)rate;
    window.gain = (float)sqrt(2 * rate);
    window.floor = (float)(0.05 / sqrt((double)positions));
    return window;
}

// f, whole cycles in T' positions: from 1 to T' / 2, in even ratios over the channels. A half is rounded up, even where
// a device's pow is a little below it.
CONVOLUTION_FORMULA int64_t cycles_of(int64_t channel, int64_t all, int64_t positions) {
    return (int64_t)floor(pow(0.5 * (double)positions, channel_share(channel, all)) + 0.500001);
}

#ifdef __cplusplus
}
#endif
#endif
