// Long convolutions on the CPU. A task is a tile of CONVOLUTION_TILE channels: a cache line of each token. It turns the
// tile's columns into rows, which FFTW transforms one by one in place, and turns the results back. Each worker has the
// rows of one tile to work in, so memory does not grow with the number of channels.
#include "mixer/cpu/convolution.h"

#include <string.h>

#include "base/cpu_features.h"
#include "layers/cpu/parallel.h"
#include "mixer/cpu/fftw.h"

enum { TILE = CONVOLUTION_TILE };

const ConvolutionLoops *convolution_loops(void) {
    switch (simd_level()) {
#if defined(__x86_64__)
    case SIMD_AVX512: return &convolution_loops_avx512;
    case SIMD_AVX2: return &convolution_loops_avx2;
#endif
    default: return &convolution_loops_portable;
    }
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct Work {
    float *out;          // z, or d_u
    const float *in, *u; // u, or d_z; backward: u
    const float *filter;
    float *d_filter; // NULL: not wanted
    int64_t sequences, T, channels;
    int64_t N, stride;
    float *scratch; // (threads, 4, TILE, stride)
    const RealTransform *transform;
    const ConvolutionLoops *loops;
} Work;

// A tile of it at work.
typedef struct Tile {
    int64_t first, count;
    float *rows[4]; // of the filter; of d_z or u; backward: of u; of d_filter
} Tile;

static Tile tile_of(const Work *w, int64_t number, int worker) {
    Tile tile = {number * TILE, least(TILE, w->channels - number * TILE), {NULL}};
    for (int i = 0; i < 4; i++) tile.rows[i] = w->scratch + (worker * 4 + i) * TILE * w->stride;
    return tile;
}

static void filter_spectra(const Work *w, const Tile *tile) {
    for (int64_t c = 0; c < tile->count; c++) {
        float *row = tile->rows[0] + c * w->stride;
        memcpy(row, w->filter + (tile->first + c) * w->T, (size_t)w->T * sizeof *row);
        memset(row + w->T, 0, (size_t)(w->N - w->T) * sizeof *row);
        fftw_forward(w->transform, row);
    }
}

// The spectra of one sequence of `from` (B, T, channels).
static void spectra(const Work *w, const Tile *tile, float *rows, const float *from, int64_t sequence) {
    w->loops->to_rows(rows, w->stride, from + sequence * w->T * w->channels + tile->first, w->channels, w->T,
                      tile->count, NULL);
    for (int64_t c = 0; c < tile->count; c++) {
        float *row = rows + c * w->stride;
        memset(row + w->T, 0, (size_t)(w->N - w->T) * sizeof *row);
        fftw_forward(w->transform, row);
    }
}

static void back_to_columns(const Work *w, const Tile *tile, float *rows, int64_t sequence) {
    for (int64_t c = 0; c < tile->count; c++) fftw_backward(w->transform, rows + c * w->stride);
    w->loops->from_rows(w->out + sequence * w->T * w->channels + tile->first, w->channels, rows, w->stride, w->T,
                        tile->count, NULL);
}

static void forward_tile(void *context, int64_t number, int worker) {
    const Work *w = context;
    Tile tile = tile_of(w, number, worker);
    filter_spectra(w, &tile);
    for (int64_t b = 0; b < w->sequences; b++) {
        spectra(w, &tile, tile.rows[1], w->in, b);
        for (int64_t c = 0; c < tile.count; c++)
            w->loops->product(tile.rows[1] + c * w->stride, tile.rows[0] + c * w->stride, w->N / 2 + 1,
                              1 / (float)w->N);
        back_to_columns(w, &tile, tile.rows[1], b);
    }
}

static void backward_tile(void *context, int64_t number, int worker) {
    const Work *w = context;
    Tile tile = tile_of(w, number, worker);
    int64_t count = w->N / 2 + 1;
    float scale = 1 / (float)w->N;
    filter_spectra(w, &tile);
    if (w->d_filter != NULL) memset(tile.rows[3], 0, (size_t)(TILE * w->stride) * sizeof(float));
    for (int64_t b = 0; b < w->sequences; b++) {
        spectra(w, &tile, tile.rows[1], w->in, b);
        if (w->d_filter != NULL) spectra(w, &tile, tile.rows[2], w->u, b);
        for (int64_t c = 0, at = 0; c < tile.count; c++, at += w->stride) {
            if (w->d_filter != NULL)
                w->loops->add_conjugate_product(tile.rows[3] + at, tile.rows[1] + at, tile.rows[2] + at, count, scale);
            w->loops->conjugate_product(tile.rows[1] + at, tile.rows[0] + at, count, scale);
        }
        back_to_columns(w, &tile, tile.rows[1], b);
    }
    for (int64_t c = 0; w->d_filter != NULL && c < tile.count; c++) {
        float *row = tile.rows[3] + c * w->stride;
        fftw_backward(w->transform, row);
        memcpy(w->d_filter + (tile.first + c) * w->T, row, (size_t)w->T * sizeof *row);
    }
}

static void run(Device *d, Work *w, ParallelTask *task) {
    w->N = convolution_length(w->T);
    w->stride = convolution_stride(w->T);
    w->scratch = device_scratch(d, "convolution", convolution_scratch_cpu(w->T, d->threads));
    w->transform = fftw_transform(w->N, w->scratch);
    w->loops = convolution_loops();
    parallel_for(d->threads, (w->channels + TILE - 1) / TILE, task, w);
}

static void forward(Device *d, void *z, const void *u, const float *filter, int64_t sequences, int64_t T,
                    int64_t channels) {
    Work w = {.out = z, .in = u, .filter = filter, .sequences = sequences, .T = T, .channels = channels};
    run(d, &w, forward_tile);
}

static void backward(Device *d, void *d_u, float *d_filter, const void *d_z, const void *u, const float *filter,
                     int64_t sequences, int64_t T, int64_t channels) {
    Work w = {.out = d_u,
              .in = d_z,
              .u = u,
              .filter = filter,
              .d_filter = d_filter,
              .sequences = sequences,
              .T = T,
              .channels = channels};
    run(d, &w, backward_tile);
}

const ConvolutionKernels convolution_kernels_cpu = {.opens = fftw_opens,
                                                    .forward = forward,
                                                    .backward = backward,
                                                    .first_layer = convolution_first_layer,
                                                    .sine = convolution_sine,
                                                    .window = convolution_window,
                                                    .window_backward = convolution_window_backward,
                                                    .window_rows = convolution_window_rows,
                                                    .cosines = convolution_cosines,
                                                    .multiply = convolution_multiply,
                                                    .step = convolution_step,
                                                    .cosine_step = convolution_cosine_step};
