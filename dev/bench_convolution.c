// How fast the long convolutions of conv and fourier are, beside FFTW's own time for their transforms.
//
//   dev/bench_convolution                 C = 256, T = 1K, 4K, 16K, 64K, all processors
//   dev/bench_convolution --device cuda   on the first GPU: C = 768, and without FFTW
//   dev/bench_convolution ... T ...       these lengths
//
// Forward is transforms of the filter and of u, their product, and one transform back; backward is three transforms and
// two back. FFTW alone does as many of each, in place, on rows that stand in memory already; the rest is columns of
// tokens turned into rows and back, and products. `filter` is conv's network of positions, forward and backward. All
// are taken in turns, since a shared machine changes its speed, and the best of several rounds counts.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cpu_features.h"
#include "layers/cpu/parallel.h"
#include "mixer/convolution.h"
#include "mixer/cpu/fftw.h"
#include "mixer/kernels.h"

enum { ROUNDS = 9 };                      // at least
static const double ENOUGH_SECONDS = 0.5; // of rounds

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// `count` values in the device's memory, of whichever type.
static void *some(Device *d, int64_t count, uint32_t state) {
    Error err;
    size_t bytes = (size_t)count * sizeof(float);
    float *x = malloc(bytes), *there = d->allocate(d, bytes, &err);
    if (x == NULL || there == NULL) {
        fprintf(stderr, "bench_convolution: out of memory\n");
        exit(EXIT_RUNTIME);
    }
    for (int64_t i = 0; i < count; i++) x[i] = (float)(int32_t)(state = state * 1664525 + 1013904223) * 0x1p-31f;
    if (d->host_memory) memcpy(there, x, bytes);
    else { // some of the values are for bf16: all are small either way
        d->upload(d, there, x, bytes);
        d->to_storage(d, there, there + count / 2, count / 4);
    }
    d->synchronize(d);
    free(x);
    return there;
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

enum { F = FILTER_FEATURES, W = FILTER_WIDTH, BUFFERS = 12 };

static void network_sizes(int64_t T, int64_t C, int64_t size[BUFFERS]) {
    const int64_t sizes[BUFFERS] = {T * F, T * W, T * W, T * W, T * C, T * W, W * F, W * W, C * W, C, T * C, C * W};
    memcpy(size, sizes, sizeof sizes);
}

static void run_network(Device *d, const Network *n, int64_t T, int64_t C) {
    const ConvolutionKernels *k = d->mixers->convolution;
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

static double shorter(Device *d, double best, double begin) {
    d->synchronize(d);
    double now = seconds() - begin;
    return now < best ? now : best;
}

typedef struct Times {
    double forward, fftw, backward, fftw_back, filter;
} Times;

static double time_alone(Device *d, Alone *alone, int64_t C, int there, int back, double best) {
    alone->there = there, alone->back = back;
    double begin = seconds();
    if (alone->rows != NULL) parallel_for(d->threads, C, transform_channel, alone);
    return shorter(d, best, begin);
}

static void bench(Device *d, int64_t T, int64_t C) {
    const ConvolutionKernels *k = d->mixers->convolution;
    float *u = some(d, T * C, 21), *z = some(d, T * C, 22), *filter = some(d, T * C, 23),
          *d_filter = some(d, T * C, 24);
    Network network;
    float **buffer = (float **)(void *)&network;
    int64_t size[BUFFERS];
    network_sizes(T, C, size);
    for (int i = 0; i < BUFFERS; i++) buffer[i] = some(d, size[i], (uint32_t)i);
    Alone alone = {.stride = convolution_stride(T)};
    if (d->host_memory) alone.rows = some(d, d->threads * alone.stride, 25);
    if (d->host_memory) alone.transform = fftw_transform(convolution_length(T), alone.rows);
    Times t = {1e9, 1e9, 1e9, 1e9, 1e9};
    const double start = seconds();
    for (int round = 0; round < ROUNDS || seconds() - start < ENOUGH_SECONDS; round++) {
        double begin = seconds();
        k->forward(d, z, u, filter, 1, T, C);
        t.forward = shorter(d, t.forward, begin);
        t.fftw = time_alone(d, &alone, C, 2, 1, t.fftw);
        begin = seconds();
        k->backward(d, z, d_filter, z, u, filter, 1, T, C);
        t.backward = shorter(d, t.backward, begin);
        t.fftw_back = time_alone(d, &alone, C, 3, 2, t.fftw_back);
        begin = seconds();
        run_network(d, &network, T, C);
        t.filter = shorter(d, t.filter, begin);
    }
    if (d->host_memory)
        printf("| %lld | %.2f | %.2f | %.2f | %.2f | %.2f | %.2f | %.2f |\n", (long long)T, 1e3 * t.forward,
               1e3 * t.fftw, t.forward / t.fftw, 1e3 * t.backward, 1e3 * t.fftw_back, t.backward / t.fftw_back,
               1e3 * t.filter);
    else
        printf("| %lld | %.3f | | | %.3f | | | %.3f |\n", (long long)T, 1e3 * t.forward, 1e3 * t.backward,
               1e3 * t.filter);
    fflush(stdout);
    for (int i = 0; i < BUFFERS; i++) d->release(d, buffer[i], (size_t)size[i] * sizeof(float));
    float *all[] = {u, z, filter, d_filter};
    for (int i = 0; i < 4; i++) d->release(d, all[i], (size_t)(T * C) * sizeof(float));
    if (alone.rows != NULL) d->release(d, alone.rows, (size_t)(d->threads * alone.stride) * sizeof(float));
}

static void usage(void) {
    fprintf(stderr, "usage: bench_convolution [--device cuda] [T ...]: lengths from 1 to 16777216\n");
    exit(EXIT_USAGE);
}

int main(int argc, char **argv) {
    static const int64_t lengths[] = {1024, 4096, 16384, 65536};
    bool gpu = argc > 2 && strcmp(argv[1], "--device") == 0 && strcmp(argv[2], "cuda") == 0;
    DeviceKind kind = gpu ? DEVICE_CUDA : DEVICE_CPU;
    int first = gpu ? 3 : 1, given = argc - first;
    int64_t C = gpu ? 768 : 256;
    Device device;
    Error err;
    if (!device_open(&device, kind, 0, cpu_count(), &err)) die(&err);
    if (!device.mixers->convolution->opens("bench_convolution", &err)) {
        printf("%s\n", err.message);
        return 0;
    }
    printf("Long convolutions of %lld channels, %s: milliseconds\n\n"
           "| T | forward | FFTW alone | ratio | backward | FFTW alone | ratio | filter, both ways |\n"
           "|---|---|---|---|---|---|---|---|\n",
           (long long)C, device.description);
    for (int i = 0; i < (given > 0 ? given : 4); i++) {
        int64_t T = given > 0 ? atoll(argv[first + i]) : lengths[i];
        if (T < 1 || T > 1 << 24) usage();
        size_t bytes = gpu ? convolution_scratch_cuda(T, C) : convolution_scratch_cpu(T, device.threads);
        size_t layers = device_scratch_bytes(kind, device.threads, T, C, C);
        if (!device_lend_scratch(&device, bytes > layers ? bytes : layers, &err)) die(&err);
        bench(&device, T, C);
        device_return_scratch(&device);
    }
    device.close(&device);
    return 0;
}
