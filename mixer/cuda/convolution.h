// Long convolutions' kernels in CUDA, from within: what other files have for the table, and the turning of columns of
// tokens (T, channels) into a row for each channel, and back.
#ifndef MIXER_CUDA_CONVOLUTION_H
#define MIXER_CUDA_CONVOLUTION_H

#include "layers/cuda/context.h"
#include "mixer/convolution.h"

// ---- filter.cu: as ConvolutionKernels says --------------------------------------------------------------------------
void cuda_filter_first_layer(Device *, void *out, void *features, const void *weight, const void *d_out, int64_t first,
                             int64_t rows, int64_t positions);
void cuda_filter_sine(Device *, void *out, const void *x, const void *d_out, int64_t count);
void cuda_filter_window(Device *, float *filter, const void *raw, const void *skip, int64_t T, Channels channels,
                        int64_t positions);
void cuda_filter_window_backward(Device *, void *d_raw, float *d_skip, const float *d_filter, int64_t T,
                                 Channels channels, int64_t positions);
void cuda_filter_window_rows(Device *, float *filter, const void *raw, const void *skip, int64_t first, int64_t rows,
                             Channels channels, int64_t positions);
void cuda_filter_cosines(Device *, float *filter, int64_t T, Channels channels, int64_t positions);

// ---- convolution_step.cu --------------------------------------------------------------------------------------------
void cuda_convolution_multiply(Device *, void *out, int64_t out_stride, const void *a, int64_t a_stride, const void *b,
                               int64_t b_stride, int64_t rows, int64_t columns);
void cuda_convolution_step(Device *, void *z, const void *u, const float *filter, int64_t first, int64_t rows,
                           int64_t C);
void cuda_convolution_cosine_step(Device *, void *z, double *state, const void *v, int64_t first, int64_t rows,
                                  int64_t C, int64_t positions);

// ---- columns and rows -----------------------------------------------------------------------------------------------

// A block turns TURN_TILES tiles of 32 tokens x 32 channels, by way of shared memory, so that both sides are read and
// written in order. 8 rows of 32 threads.
enum { TURN = 32, TURN_ROWS = 8, TURN_TILES = 8 };

inline unsigned turn_grid(int64_t tokens, int64_t channels) {
    return (unsigned)(ceil_div(tokens, (int64_t)(TURN * TURN_TILES)) * ceil_div(channels, (int64_t)TURN));
}

struct TurnPlace { // of a thread in a block's first tile: of the tile's corner, and within it
    int64_t token, channel;
    int x, y;
};
__device__ inline TurnPlace turn_place(int64_t tokens) {
    const int64_t along = ceil_div(tokens, (int64_t)(TURN * TURN_TILES));
    return TurnPlace{blockIdx.x % along * (TURN * TURN_TILES), blockIdx.x / along * TURN, (int)threadIdx.x % TURN,
                     (int)threadIdx.x / TURN};
}

// rows[c][t] = columns.value(columns.of_channel(c), c, t) for t < length and c < channels. What of_channel returns is
// worked out once for many tokens; value is asked for these t and c alone.
template <typename Columns>
__global__ void __launch_bounds__(TURN *TURN_ROWS)
    to_rows_kernel(float *rows, int64_t stride, int64_t length, int64_t channels, Columns columns) {
    SHARED_ARRAY(float, tile, TURN *(TURN + 1));
    const TurnPlace p = turn_place(length);
    const bool mine = p.channel + p.x < channels;
    const auto channel = columns.of_channel(mine ? p.channel + p.x : 0);
    for (int k = 0; k < TURN_TILES; k++) {
        const int64_t t = p.token + k * TURN;
        for (int y = p.y; y < TURN; y += TURN_ROWS)
            tile[y * (TURN + 1) + p.x] = mine && t + y < length ? columns.value(channel, p.channel + p.x, t + y) : 0.0f;
        __syncthreads();
        for (int y = p.y; y < TURN; y += TURN_ROWS)
            if (p.channel + y < channels && t + p.x < length)
                rows[(p.channel + y) * stride + t + p.x] = tile[p.x * (TURN + 1) + y];
        __syncthreads();
    }
}

// columns.take(columns.of_channel(c), c, t, rows[c][t]).
template <typename Columns>
__global__ void __launch_bounds__(TURN *TURN_ROWS)
    from_rows_kernel(Columns columns, const float *rows, int64_t stride, int64_t length, int64_t channels) {
    SHARED_ARRAY(float, tile, TURN *(TURN + 1));
    const TurnPlace p = turn_place(length);
    const bool mine = p.channel + p.x < channels;
    const auto channel = columns.of_channel(mine ? p.channel + p.x : 0);
    for (int k = 0; k < TURN_TILES; k++) {
        const int64_t t = p.token + k * TURN;
        for (int y = p.y; y < TURN; y += TURN_ROWS)
            tile[y * (TURN + 1) + p.x] =
                p.channel + y < channels && t + p.x < length ? rows[(p.channel + y) * stride + t + p.x] : 0.0f;
        __syncthreads();
        for (int y = p.y; y < TURN; y += TURN_ROWS)
            if (mine && t + y < length) columns.take(channel, p.channel + p.x, t + y, tile[p.x * (TURN + 1) + y]);
        __syncthreads();
    }
}

#endif
