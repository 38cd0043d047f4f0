// How fast the long convolutions of conv and fourier are, beside FFTW's own time for their transforms.
//
//   dev/bench_convolution          C = 256, T = 1K, 4K, 16K, 64K, all processors
//   dev/bench_convolution T ...    these lengths
//
// Forward is transforms of the filter and of u, their product, and one transform back; backward is three transforms and
// two back. FFTW alone does as many of each, in place, on rows that stand in memory already; the rest is columns of
// tokens turned into rows and back, and products. `filter` is conv's network of positions, forward and backward. All are
// taken in turns, since a shared machine changes its speed, and the best of several rounds counts.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cpu_features.h"
#include "layers/cpu/parallel.h"
#include "mixer/convolution.h"
#include "mixer/cpu/fftw.h"

enum { C = 256, ROUNDS = 9 };

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static float *some(int64_t count, uint32_t state) {
    float *x = aligned_alloc(256, ((size_t)count * sizeof *x + 255) / 256 * 256);
    if (x == NULL) exit(EXIT_RUNTIME);
    for (int64_t i = 0; i < count; i++) x[i] = (float)(int32_t)(state = state * 1664525 + 1013904223) * 0x1p-31f;
    return x;
}

// ---- FFTW alone -----------------------------------------------------------------------------------------------------

typedef struct Alone {
    const RealTransform *transform;
    float *rows; // (threads, stride)
    int64_t stride;
    int there, back; // transforms of each channel
} Alone;

static void transform_channel(void *context, int64_t channel, int worker) {
    const Alone *a = context;
    float *row = a->rows + worker * a->stride;
    (void)channel;
    for (int i = 0; i < a->there; i++) fftw_forward(a->transform, row);
    for (int i = 0; i < a->back; i++) fftw_backward(a->transform, row);
    memset(row, 0, (size_t)a->stride * sizeof *row); // they do not scale
}

// ---- conv's filter --------------------------------------------------------------------------------------------------

typedef struct Network {
    float *f, *a, *b_inside, *b, *raw, *d_a, *w1, *w2, *w3, *skip, *filter, *gradient;
} Network;

enum { F = FILTER_FEATURES, W = FILTER_WIDTH };

static Network network_of(int64_t T) {
    return (Network){some(T * F, 1), some(T * W, 2), some(T * W, 3), some(T * W, 4), some(T * C, 5),
                     some(T * W, 6), some(W * F, 7), some(W * W, 8), some(C * W, 9), some(C, 10),
                     some(T * C, 11), some(C * W, 12)};
}

static void run_network(Device *d, const Network *n, int64_t T) {
    const ConvolutionKernels *k = &convolution_kernels_cpu;
    Channels all = {0, C, C};
    k->first_layer(d, n->a, n->f, n->w1, NULL, 0, T, T);
    d->matmul_forward(d, n->b_inside, n->a, n->w2, NULL, T, W, W);
    k->sine(d, n->b, n->b_inside, NULL, T * W);
    d->matmul_forward(d, n->raw, n->b, n->w3, NULL, T, W, C);
    k->window(d, n->filter, n->raw, n->skip, T, all, T);
    k->window_backward(d, n->raw, n->skip, n->filter, T, all, T);
    d->matmul_backward(d, n->b, n->gradient, NULL, n->raw, n->b_inside, n->w3, T, W, C, false);
    k->sine(d, n->b, n->b_inside, n->b, T * W);
    d->matmul_backward(d, n->d_a, n->gradient, NULL, n->b, n->a, n->w2, T, W, W, false);
    k->first_layer(d, n->a, n->f, n->w1, n->d_a, 0, T, T);
    d->matmul_backward(d, NULL, n->gradient, NULL, n->a, n->f, n->w1, T, F, W, false);
}

// ---- the table ------------------------------------------------------------------------------------------------------

static double shorter(double best, double begin) {
    double now = seconds() - begin;
    return now < best ? now : best;
}

static void bench(Device *d, int64_t T) {
    const ConvolutionKernels *k = &convolution_kernels_cpu;
    float *u = some(T * C, 21), *z = some(T * C, 22), *filter = some(T * C, 23), *d_filter = some(T * C, 24);
    Network network = network_of(T);
    Alone alone = {.stride = convolution_stride(T)};
    alone.rows = some(d->threads * alone.stride, 25);
    alone.transform = fftw_transform(convolution_length(T), alone.rows);
    double forward = 1e9, fftw = 1e9, backward = 1e9, fftw_back = 1e9, filters = 1e9;
    for (int round = 0; round < ROUNDS; round++) {
        double begin = seconds();
        k->forward(d, z, u, filter, 1, T, C);
        forward = shorter(forward, begin);
        alone.there = 2, alone.back = 1;
        begin = seconds();
        parallel_for(d->threads, C, transform_channel, &alone);
        fftw = shorter(fftw, begin);
        begin = seconds();
        k->backward(d, z, d_filter, z, u, filter, 1, T, C);
        backward = shorter(backward, begin);
        alone.there = 3, alone.back = 2;
        begin = seconds();
        parallel_for(d->threads, C, transform_channel, &alone);
        fftw_back = shorter(fftw_back, begin);
        begin = seconds();
        run_network(d, &network, T);
        filters = shorter(filters, begin);
    }
    printf("| %lld | %.2f | %.2f | %.2f | %.2f | %.2f | %.2f | %.2f |\n", (long long)T, 1e3 * forward, 1e3 * fftw,
           forward / fftw, 1e3 * backward, 1e3 * fftw_back, backward / fftw_back, 1e3 * filters);
    fflush(stdout);
    float *all[] = {u, z, filter, d_filter, alone.rows, network.f, network.a, network.b_inside, network.b, network.raw,
                    network.d_a, network.w1, network.w2, network.w3, network.skip, network.filter, network.gradient};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

int main(int argc, char **argv) {
    static const int64_t lengths[] = {1024, 4096, 16384, 65536};
    Device device;
    Error err;
    if (!device_open(&device, DEVICE_CPU, 0, cpu_count(), &err)) die(&err);
    if (!convolution_kernels_cpu.opens("bench_convolution", &err)) {
        printf("%s\n", err.message);
        return 0;
    }
    size_t layers = device_scratch_bytes(DEVICE_CPU, device.threads, 65536, C, C);
    printf("Long convolutions of %d channels, %s: milliseconds\n\n"
           "| T | forward | FFTW alone | ratio | backward | FFTW alone | ratio | filter, both ways |\n"
           "|---|---|---|---|---|---|---|---|\n",
           C, device.description);
    for (int i = 0; i < (argc > 1 ? argc - 1 : 4); i++) {
        int64_t T = argc > 1 ? atoll(argv[i + 1]) : lengths[i];
        if (T < 1 || T > 1 << 24) {
            fprintf(stderr, "usage: bench_convolution [T ...]: lengths from 1 to 16777216\n");
            return EXIT_USAGE;
        }
        size_t bytes = convolution_scratch_cpu(T, device.threads);
        if (!device_lend_scratch(&device, bytes > layers ? bytes : layers, &err)) die(&err);
        bench(&device, T);
        device_return_scratch(&device);
    }
    return 0;
}
