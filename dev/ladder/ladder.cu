// Runs the steps of the ladder (ladder.h) on the same inputs, checks each against double precision, and on a GPU
// measures it. `make ladder` builds dev/ladder-emulated and, where nvcc is, dev/ladder in the build folder:
//
//   ladder [T [D [heads [first step]]]]       defaults 300, 64, 1, 1
//
// Error: the largest of |got - exact| / |largest exact|, over all rows up to T = 2,048, then over 256 of them. Half a
// unit in the last place of bf16 is up to 4e-3. TFLOP/s count what causal attention needs: 2 products of T^2 / 2 x D.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "attention/kernel.h"
#include "base/random.h"
#include "dev/ladder/ladder.h"
#include "layers/cuda/context.h"
#include "layers/cuda/open.h"
#include "layers/device.h"

namespace {

typedef void Step(const Ladder *);
const char *const names[] = {"one thread, one row",
                             "tiles in shared memory",
                             "online softmax, one warp, one row",
                             "tensor cores",
                             "ldmatrix and swizzle",
                             "attention/cuda/forward.cu",
                             "wgmma and the copy engine",
                             "specialised warps",
                             "attention/cuda/hopper/forward.cu"};
Step *const steps[] = {step_1, step_2, step_3, step_4, step_5, NULL, step_7, step_8, NULL}; // NULL: real_kernel
enum { STEPS = 9, BEFORE_HOPPER = 6 };

struct Host {
    int64_t count;
    bf16 *q, *k, *v, *out;
};

void *memory(size_t bytes) {
    void *p = malloc(bytes);
    if (p == NULL) {
        fprintf(stderr, "ladder: no memory\n");
        exit(1);
    }
    return p;
}

bf16 *random_values(int64_t count, uint64_t stream) {
    bf16 *x = static_cast<bf16 *>(memory((size_t)count * sizeof(bf16)));
    for (int64_t i = 0; i < count; i++) x[i] = to_bf16((float)random_normal(1, stream, (uint64_t)i));
    return x;
}

bf16 *on_device(Device *device, const bf16 *values, int64_t count) {
    Error err = {};
    void *p = device->allocate(device, (size_t)count * sizeof(bf16), &err);
    if (p == NULL) die(&err);
    device->upload(device, p, values, (size_t)count * sizeof(bf16));
    return static_cast<bf16 *>(p);
}

// Row i of a head in double precision.
void exact_row(const Ladder *x, const Host *host, int head, int i, double *weight, double *out) {
    double max = -INFINITY, sum = 0;
    for (int j = 0; j <= i; j++) {
        weight[j] = 0;
        for (int d = 0; d < x->D; d++)
            weight[j] +=
                (double)to_float(host->q[row_at(*x, head, i) + d]) * to_float(host->k[row_at(*x, head, j) + d]);
        weight[j] *= x->scale;
        max = fmax(max, weight[j]);
    }
    for (int d = 0; d < x->D; d++) out[d] = 0;
    for (int j = 0; j <= i; j++) {
        sum += weight[j] = exp(weight[j] - max);
        for (int d = 0; d < x->D; d++) out[d] += weight[j] * to_float(host->v[row_at(*x, head, j) + d]);
    }
    for (int d = 0; d < x->D; d++) out[d] /= sum;
}

double error_of(const Ladder *x, const Host *host) {
    double *weight = static_cast<double *>(memory((size_t)x->T * sizeof(double))), exact[128];
    double largest = 0, error = 0;
    const int64_t all = (int64_t)x->heads * x->T, checked = all <= 2048 ? all : 256;
    for (int64_t n = 0; n < checked; n++) {
        const int64_t row = n * (all - 1) / (checked > 1 ? checked - 1 : 1);
        const int head = (int)(row / x->T), i = (int)(row % x->T);
        exact_row(x, host, head, i, weight, exact);
        for (int d = 0; d < x->D; d++) {
            const double difference = fabs(to_float(host->out[row_at(*x, head, i) + d]) - exact[d]);
            largest = fmax(largest, fabs(exact[d]));
            if (!(difference <= error)) error = difference; // a NaN stays
        }
    }
    free(weight);
    return error / largest;
}

// The real kernel, on the same layout: heads as batches of one head each.
void real_kernel(Device *device, const Ladder *x, float *log_sum_exp) {
    const AttentionShape shape = {x->heads, 1, 1, x->D, x->scale};
    const int64_t batch = (int64_t)x->T * x->D;
    QueryForward query = {};
    KeyValue keys = {};
    query.chunk = keys.chunk = Chunk{0, x->T};
    query.q = TokenView{const_cast<bf16 *>(x->q), batch, x->D};
    keys.k = TokenView{const_cast<bf16 *>(x->k), batch, x->D};
    keys.v = TokenView{const_cast<bf16 *>(x->v), batch, x->D};
    device->attention->forward_whole(device, &shape, &query, &keys, TokenView{x->out, batch, x->D},
                                     RowView{log_sum_exp, x->T, x->T});
}

void run(Device *device, const Ladder *x, int step, float *log_sum_exp) {
    context_of(device)->mma_alone = step < BEFORE_HOPPER;
    if (steps[step] != NULL) steps[step](x);
    else real_kernel(device, x, log_sum_exp);
}

double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// Seconds of one run: of as many as fill a fifth of a second.
double time_of(Device *device, const Ladder *x, int step, float *log_sum_exp) {
    for (int runs = 1;; runs *= 2) {
        device->synchronize(device);
        const double start = seconds();
        for (int i = 0; i < runs; i++) run(device, x, step, log_sum_exp);
        device->synchronize(device);
        const double taken = seconds() - start;
        if (taken > 0.2) return taken / runs;
    }
}

} // namespace

int main(int argc, char **argv) {
    Ladder x = {};
    x.T = argc > 1 ? atoi(argv[1]) : 300;
    x.D = argc > 2 ? atoi(argv[2]) : 64;
    x.heads = argc > 3 ? atoi(argv[3]) : 1;
    const int first = argc > 4 ? atoi(argv[4]) : 1;
    Device device = {};
    Error err = {};
    if (!cuda_device(&device, 0, &err)) die(&err);
    const int last = context_of(&device)->properties.major == 9 ? STEPS : BEFORE_HOPPER;
    if (x.T < 1 || (x.D != 64 && x.D != 128) || x.heads < 1 || first < 1 || first > last) {
        fprintf(stderr, "usage: %s [T [D [heads [first step]]]], D 64 or 128, first step 1 to %d\n", argv[0], last);
        return 2;
    }
    x.scale = 1 / sqrtf((float)x.D);
    x.stream = stream_of(&device);
    Host host = {};
    host.count = (int64_t)x.heads * x.T * x.D;
    host.q = random_values(host.count, 1), host.k = random_values(host.count, 2), host.v = random_values(host.count, 3);
    host.out = static_cast<bf16 *>(memory((size_t)host.count * sizeof(bf16)));
    x.q = on_device(&device, host.q, host.count);
    x.k = on_device(&device, host.k, host.count);
    x.v = on_device(&device, host.v, host.count);
    float *log_sum_exp = static_cast<float *>(device.allocate(&device, (size_t)x.heads * (size_t)x.T * 4, &err));
    if (log_sum_exp == NULL) die(&err);

    printf("%s\nT = %d, D = %d, heads = %d\n", device.description, x.T, x.D, x.heads);
    const bool is_gpu = strcmp(device.name, "cuda") == 0;
    bool right = true;
    for (int step = first - 1; step < last; step++) {
        memset(host.out, 0xff, (size_t)host.count * sizeof(bf16)); // not numbers
        x.out = on_device(&device, host.out, host.count);
        run(&device, &x, step, log_sum_exp);
        device.download(&device, host.out, x.out, (size_t)host.count * sizeof(bf16));
        const double error = error_of(&x, &host);
        right = right && error < 0x1p-7; // two roundings to bf16, of weights and of the output
        printf("%d  %-34s error %.1e%s", step + 1, names[step], error, error < 0x1p-7 ? "" : "  WRONG");
        if (is_gpu) {
            const double taken = time_of(&device, &x, step, log_sum_exp);
            printf("  %10.3f ms %8.2f TFLOP/s", 1e3 * taken, 2.0 * x.heads * x.D * x.T * (double)x.T / taken * 1e-12);
        }
        printf("\n");
        device.release(&device, x.out, (size_t)host.count * sizeof(bf16));
    }
    if (last < STEPS)
        printf("Steps %d to %d need a GPU of compute capability 9.0 (here %d.%d), or EMULATED_ARCH=90.\n", last + 1,
               STEPS, context_of(&device)->properties.major, context_of(&device)->properties.minor);
    device.close(&device);
    return right ? 0 : 1;
}
