// What long convolutions need on the CPU beside transforms (mixer/convolution.h): their filters, gates, and generation.
#include <math.h>

#include "layers/cpu/parallel.h"
#include "mixer/cpu/convolution.h"

enum { TILE = CONVOLUTION_TILE };

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t tiles_of(int64_t channels) { return (channels + TILE - 1) / TILE; }

// ---- conv's filter --------------------------------------------------------------------------------------------------

enum { BLOCK = 4096 }; // values, or rows' worth of them, of one task

typedef struct Values {
    float *out;
    const float *x, *d_out;
    int64_t count, first, positions;
} Values;

static void sine_block(void *context, int64_t number, int worker) {
    const Values *v = context;
    int64_t i = number * BLOCK;
    (void)worker;
    convolution_loops()->sine(v->out + i, v->x + i, v->d_out != NULL ? v->d_out + i : NULL, least(BLOCK, v->count - i));
}

void convolution_sine(Device *d, void *out, const void *x, const void *d_out, int64_t count) {
    Values v = {.out = out, .x = x, .d_out = d_out, .count = count};
    parallel_for(d->threads, (count + BLOCK - 1) / BLOCK, sine_block, &v);
}

static void features_block(void *context, int64_t number, int worker) {
    const Values *v = context;
    int64_t i = number * (BLOCK / FILTER_FEATURES), rows = least(BLOCK / FILTER_FEATURES, v->count - i);
    (void)worker;
    convolution_loops()->features(v->out + i * FILTER_FEATURES, v->first + i, rows, v->positions);
}

void convolution_first_layer(Device *d, void *out, void *features, const void *weight, const void *d_out, int64_t first,
                             int64_t rows, int64_t positions) {
    Values v = {.out = features, .count = rows, .first = first, .positions = positions};
    parallel_for(d->threads, (rows * FILTER_FEATURES + BLOCK - 1) / BLOCK, features_block, &v);
    d->matmul_forward(d, out, features, weight, NULL, rows, FILTER_FEATURES, FILTER_WIDTH);
    convolution_sine(d, out, out, d_out, rows * FILTER_WIDTH);
}

typedef struct Windowing {
    float *filter, *columns; // (channels, T); (T, channels)
    float *skip;             // of window, only read
    int64_t T, positions;
    Channels channels;
} Windowing;

static TileWindow tile_window(const Windowing *w, int64_t first, int64_t count) {
    TileWindow tile = {{0}, {0}, {0}};
    for (int64_t c = 0; c < count; c++) {
        FilterWindow one = window_of(w->channels.first + first + c, w->channels.all, w->positions);
        tile.rate[c] = one.rate, tile.gain[c] = one.gain, tile.floor[c] = one.floor;
    }
    return tile;
}

static void window_tile(void *context, int64_t number, int worker) {
    const Windowing *w = context;
    int64_t first = number * TILE, count = least(TILE, w->channels.count - first);
    TileWindow window = tile_window(w, first, count);
    (void)worker;
    convolution_loops()->to_rows(w->filter + first * w->T, w->T, w->columns + first, w->channels.count, w->T, count,
                                 &window);
    for (int64_t c = first; c < first + count; c++) w->filter[c * w->T] += w->skip[c];
}

static void window_backward_tile(void *context, int64_t number, int worker) {
    const Windowing *w = context;
    int64_t first = number * TILE, count = least(TILE, w->channels.count - first);
    TileWindow window = tile_window(w, first, count);
    (void)worker;
    for (int64_t c = first; c < first + count; c++) w->skip[c] += w->filter[c * w->T];
    convolution_loops()->from_rows(w->columns + first, w->channels.count, w->filter + first * w->T, w->T, w->T, count,
                                   &window);
}

void convolution_window(Device *d, float *filter, const void *raw, const void *skip, int64_t T, Channels channels,
                        int64_t positions) {
    Windowing w = {filter, (float *)raw, (float *)skip, T, positions, channels};
    parallel_for(d->threads, tiles_of(channels.count), window_tile, &w);
}

void convolution_window_backward(Device *d, void *d_raw, float *d_skip, const float *d_filter, int64_t T,
                                 Channels channels, int64_t positions) {
    Windowing w = {(float *)d_filter, d_raw, d_skip, T, positions, channels};
    parallel_for(d->threads, tiles_of(channels.count), window_backward_tile, &w);
}

void convolution_window_rows(Device *d, float *filter, const void *raw, const void *skip, int64_t first, int64_t rows,
                             Channels channels, int64_t positions) {
    const float *network = raw, *skips = skip;
    (void)d;
    for (int64_t c = 0; c < channels.count; c++) {
        FilterWindow w = window_of(channels.first + c, channels.all, positions);
        for (int64_t i = 0; i < rows; i++)
            filter[i * channels.count + c] =
                network[i * channels.count + c] * (w.gain * expf(-w.rate * (float)(first + i)) + w.floor);
        if (first == 0) filter[c] += skips[c];
    }
}

// ---- fourier's filter -----------------------------------------------------------------------------------------------

typedef struct Cosines {
    float *filter;
    int64_t T, positions;
    Channels channels;
} Cosines;

// The angle 2 pi f t / positions, of which whole turns are taken away in integers.
static double angle_of(int64_t cycles, int64_t t, int64_t positions) {
    const double turn = 6.283185307179586;
    return turn * (double)(cycles * t % positions) / (double)positions;
}

// cos(a + b) = cos a cos b - sin a sin b: a of every NEAR-th position, b of the NEAR positions from there on.
static void cosines_of(void *context, int64_t c, int worker) {
    enum { NEAR = 256 };
    const Cosines *x = context;
    int64_t f = cycles_of(x->channels.first + c, x->channels.all, x->positions);
    double scale = sqrt(2 / (double)x->positions);
    float near_cosine[NEAR], near_sine[NEAR], *row = x->filter + c * x->T;
    (void)worker;
    for (int64_t i = 0; i < least(NEAR, x->T); i++) {
        near_cosine[i] = (float)cos(angle_of(f, i, x->positions));
        near_sine[i] = (float)sin(angle_of(f, i, x->positions));
    }
    for (int64_t t = 0; t < x->T; t += NEAR) {
        float cosine = (float)(scale * cos(angle_of(f, t, x->positions)));
        float sine = (float)(scale * sin(angle_of(f, t, x->positions)));
        for (int64_t i = 0; i < least(NEAR, x->T - t); i++) row[t + i] = cosine * near_cosine[i] - sine * near_sine[i];
    }
}

void convolution_cosines(Device *d, float *filter, int64_t T, Channels channels, int64_t positions) {
    Cosines x = {filter, T, positions, channels};
    parallel_for(d->threads, channels.count, cosines_of, &x);
}

// ---- gates ----------------------------------------------------------------------------------------------------------

typedef struct Products {
    float *out;
    const float *a, *b;
    int64_t out_stride, a_stride, b_stride, rows, columns;
} Products;

static int64_t rows_of_task(int64_t columns) { return columns >= BLOCK ? 1 : BLOCK / columns; }

static void multiply_rows(void *context, int64_t number, int worker) {
    const Products *p = context;
    int64_t first = number * rows_of_task(p->columns), end = least(p->rows, first + rows_of_task(p->columns));
    (void)worker;
    for (int64_t i = first; i < end; i++) {
        const float *a = p->a + i * p->a_stride, *b = p->b + i * p->b_stride;
        for (int64_t c = 0; c < p->columns; c++) p->out[i * p->out_stride + c] = a[c] * b[c];
    }
}

void convolution_multiply(Device *d, void *out, int64_t out_stride, const void *a, int64_t a_stride, const void *b,
                          int64_t b_stride, int64_t rows, int64_t columns) {
    Products p = {out, a, b, out_stride, a_stride, b_stride, rows, columns};
    int64_t per_task = rows_of_task(columns);
    parallel_for(d->threads, (rows + per_task - 1) / per_task, multiply_rows, &p);
}

// ---- generation -----------------------------------------------------------------------------------------------------

enum { STEP = 64 }; // channels of a task, and terms of a sum in fp32; sums of those in double

typedef struct Step {
    float *z;
    const float *u, *filter;
    int64_t first, C, blocks;
} Step;

static void step_block(void *context, int64_t number, int worker) {
    const Step *s = context;
    int64_t i = number / s->blocks, c = number % s->blocks * STEP, count = least(STEP, s->C - c), at = s->first + i;
    double total[STEP] = {0};
    (void)worker;
    for (int64_t begin = 0; begin <= at; begin += STEP) {
        float sum[STEP] = {0};
        for (int64_t j = begin; j < least(begin + STEP, at + 1); j++) {
            const float *u = s->u + j * s->C + c, *h = s->filter + (at - j) * s->C + c;
            for (int64_t k = 0; k < count; k++) sum[k] += h[k] * u[k];
        }
        for (int64_t k = 0; k < count; k++) total[k] += (double)sum[k];
    }
    for (int64_t k = 0; k < count; k++) s->z[i * s->C + c + k] = (float)total[k];
}

void convolution_step(Device *d, void *z, const void *u, const float *filter, int64_t first, int64_t rows, int64_t C) {
    Step s = {z, u, filter, first, C, (C + STEP - 1) / STEP};
    parallel_for(d->threads, rows * s.blocks, step_block, &s);
}

void convolution_cosine_step(Device *d, void *z, double *state, const void *v, int64_t first, int64_t rows, int64_t C,
                             int64_t positions) {
    const float *in = v;
    float *out = z;
    double scale = sqrt(2 / (double)positions);
    (void)d;
    for (int64_t c = 0; c < C; c++) {
        int64_t f = cycles_of(c, C, positions);
        for (int64_t i = 0; i < rows; i++) {
            double angle = angle_of(f, first + i, positions), cosine = cos(angle), sine = sin(angle);
            state[c] += cosine * (double)in[i * C + c];
            state[C + c] -= sine * (double)in[i * C + c];
            out[i * C + c] = (float)(scale * (cosine * state[c] - sine * state[C + c]));
        }
    }
}
