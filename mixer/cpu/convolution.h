// Long convolutions on the CPU, from within: the loops that are compiled once per instruction set (base/simd.h), and
// what filter.c has for the table.
#ifndef MIXER_CPU_CONVOLUTION_H
#define MIXER_CPU_CONVOLUTION_H

#include "mixer/convolution.h"

// The windows of up to CONVOLUTION_TILE channels.
typedef struct TileWindow {
    float rate[CONVOLUTION_TILE], gain[CONVOLUTION_TILE], floor[CONVOLUTION_TILE];
} TileWindow;

// One row for each of up to CONVOLUTION_TILE channels, `stride` floats apart; `columns` hold the same channels side by
// side, a row of `width` floats for each of T tokens. window not NULL: each value times its window. Nothing aliases,
// but where it is said.
typedef struct ConvolutionLoops {
    void (*to_rows)(float *rows, int64_t stride, const float *columns, int64_t width, int64_t T, int64_t channels,
                    const TileWindow *window);
    void (*from_rows)(float *columns, int64_t width, const float *rows, int64_t stride, int64_t T, int64_t channels,
                      const TileWindow *window);
    // `count` complex numbers, interleaved. x = scale a x; x = scale conj(a) x; sum (+)= scale conj(a) x.
    void (*product)(float *x, const float *a, int64_t count, float scale);
    void (*conjugate_product)(float *x, const float *a, int64_t count, float scale);
    void (*add_conjugate_product)(float *sum, const float *x, const float *a, int64_t count, float scale);
    // As in ConvolutionKernels; out may be x, too.
    void (*sine)(float *out, const float *x, const float *d_out, int64_t count);
    void (*features)(float *features, int64_t first, int64_t rows, int64_t positions); // (rows, FILTER_FEATURES)
} ConvolutionLoops;

extern const ConvolutionLoops convolution_loops_portable, convolution_loops_avx2, convolution_loops_avx512;
const ConvolutionLoops *convolution_loops(void); // the processor's best

// ---- filter.c -------------------------------------------------------------------------------------------------------
void convolution_first_layer(Device *, void *out, void *features, const void *weight, const void *d_out, int64_t first,
                             int64_t rows, int64_t positions);
void convolution_sine(Device *, void *out, const void *x, const void *d_out, int64_t count);
void convolution_window(Device *, float *filter, const void *raw, const void *skip, int64_t T, Channels channels,
                        int64_t positions);
void convolution_window_backward(Device *, void *d_raw, float *d_skip, const float *d_filter, int64_t T,
                                 Channels channels, int64_t positions);
void convolution_window_rows(Device *, float *filter, const void *raw, const void *skip, int64_t first, int64_t rows,
                             Channels channels, int64_t positions);
void convolution_cosines(Device *, float *filter, int64_t T, Channels channels, int64_t positions);
void convolution_multiply(Device *, void *out, int64_t out_stride, const void *a, int64_t a_stride, const void *b,
                          int64_t b_stride, int64_t rows, int64_t columns);
void convolution_step(Device *, void *z, const void *u, const float *filter, int64_t first, int64_t rows, int64_t C);
void convolution_cosine_step(Device *, void *z, double *state, const void *v, int64_t first, int64_t rows, int64_t C,
                             int64_t positions);

#endif
