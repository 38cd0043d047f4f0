// How fast the layers are, beside what this machine can do: how fast it copies memory and multiplies matrices.
//
//   dev/bench_layers              the tables below, for 4,096 tokens of width 256, all processors
//   dev/bench_layers ROWS C       the same for other sizes
//   SIMD=avx2 dev/bench_layers    with another of the compiled copies (portable, avx2, avx512)
//   MATMUL=cblas dev/bench_layers with the library's matrix product
//
// A layer that does little with each value can at best run at the speed of memory: its share is the time of a copy that
// reads and writes as many bytes, by the layer's own. Above 100%: it reads more than it writes, which is cheaper than a
// copy. The classifier and the activations also compute an exponential for each value. The share of a matrix product is
// its rate by that of large square products (cpu_matrix_rate). A shared machine changes its speed, so what is compared
// is measured in turns, and the best of all turns counts.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cpu_features.h"
#include "base/random.h"
#include "layers/device.h"

enum { ROUNDS = 11 };

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static float *floats(int64_t count) {
    float *x = calloc((size_t)count, sizeof *x);
    if (x == NULL) {
        fprintf(stderr, "bench_layers: no memory for %lld floats: take smaller sizes\n", (long long)count);
        exit(EXIT_RUNTIME);
    }
    for (int64_t i = 0; i < count; i++) x[i] = (float)((i * 7919) % 1021 - 510) / 300;
    return x;
}

static double smaller(double a, double b) { return a < b ? a : b; }

// ---- layers -------------------------------------------------------------------------------------------------------
// One set of tensors serves them all.
typedef struct Bench {
    Device device;
    int64_t rows, C, F, V, K, N;
    float *a, *b, *c, *d, *weight, *gradient, *mean, *rstd, *cosines, *sines;
    int32_t *tokens, *positions;
} Bench;

static void embedding_forward(Bench *t) {
    t->device.embedding_forward(&t->device, t->a, t->tokens, t->positions, t->weight, t->b, t->rows, t->C);
}
static void embedding_backward(Bench *t) {
    t->device.embedding_backward(&t->device, t->gradient, t->a, t->b, t->tokens, t->positions, t->rows, t->C, t->V);
}
static void layernorm_forward(Bench *t) {
    t->device.layernorm_forward(&t->device, t->a, t->b, t->mean, t->rstd, t->b, t->c, t->weight, t->weight, t->rows,
                                t->C, 1e-5f);
}
static void layernorm_backward(Bench *t) {
    t->device.layernorm_backward(&t->device, t->a, t->gradient, t->gradient + t->C, t->b, t->c, t->weight, t->mean,
                                 t->rstd, t->rows, t->C);
}
static void rmsnorm_forward(Bench *t) {
    t->device.rmsnorm_forward(&t->device, t->a, t->b, t->rstd, t->b, t->c, t->weight, t->rows, t->C, 1e-5f);
}
static void rmsnorm_backward(Bench *t) {
    t->device.rmsnorm_backward(&t->device, t->a, t->gradient, t->b, t->c, t->weight, t->rstd, t->rows, t->C);
}
static void add(Bench *t) { t->device.add(&t->device, t->a, t->a, t->b, t->rows * t->C); }
static void rotary(Bench *t) {
    t->device.rotary(&t->device, t->a, t->cosines, t->sines, t->rows, t->rows, t->C, t->C / 64, 64, false);
}
static void gelu_forward(Bench *t) { t->device.gelu_forward(&t->device, t->a, t->b, t->rows * t->F); }
static void gelu_backward(Bench *t) { t->device.gelu_backward(&t->device, t->a, t->a, t->b, t->rows * t->F); }
static void swiglu_forward(Bench *t) { t->device.swiglu_forward(&t->device, t->a, t->b, t->rows, t->F); }
static void swiglu_backward(Bench *t) { t->device.swiglu_backward(&t->device, t->a, t->c, t->b, t->rows, t->F); }
static void classifier(Bench *t) {
    t->device.classifier(&t->device, t->a, t->mean, t->tokens, t->rows, t->V, 1.0f / (float)t->rows);
}
static void adamw(Bench *t) {
    AdamW h = {1e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 1000, 1};
    t->device.adamw(&t->device, t->a, t->a, t->b, t->d, t->c, t->rows * t->C, &h);
}
static void sum_of_squares(Bench *t) { t->mean[0] = (float)t->device.sum_of_squares(&t->device, t->a, t->rows * t->F); }

typedef struct Layer {
    const char *name;
    void (*run)(Bench *);
    double values;             // moved for each row: by C, ...
    double values_F, values_V; // ... by F, by V
} Layer;

// Values of a row that are read and written, each once: what stays in the nearest cache in between is not counted
// again.
static const Layer layers[] = {
    {"embedding forward", embedding_forward, 3, 0, 0},
    {"embedding backward", embedding_backward, 5, 0, 0},
    {"LayerNorm forward, with the residual", layernorm_forward, 4, 0, 0},
    {"LayerNorm backward", layernorm_backward, 4, 0, 0},
    {"RMSNorm forward, with the residual", rmsnorm_forward, 4, 0, 0},
    {"RMSNorm backward", rmsnorm_backward, 4, 0, 0},
    {"add", add, 3, 0, 0},
    {"rotary, D = 64", rotary, 2.25, 0, 0}, // and cosines and sines, 64 for each row
    {"GELU forward", gelu_forward, 0, 2, 0},
    {"GELU backward", gelu_backward, 0, 3, 0},
    {"SwiGLU forward", swiglu_forward, 0, 3, 0},
    {"SwiGLU backward", swiglu_backward, 0, 5, 0},
    {"classifier", classifier, 0, 0, 2},
    {"AdamW", adamw, 7, 0, 0},
    {"sum of squares", sum_of_squares, 0, 1, 0},
};
enum { LAYERS = sizeof layers / sizeof *layers };

// Runs `run` about 3 ms long; seconds for one.
static double time_of(void (*run)(Bench *), Bench *t) {
    int64_t times = 0;
    double start = seconds(), now;
    do {
        run(t);
        times++;
        now = seconds();
    } while (now - start < 0.003);
    return (now - start) / (double)times;
}

static double copy_time(Bench *t, size_t bytes) { // that many read and written, together
    int64_t times = 0;
    double start = seconds(), now;
    do {
        t->device.copy(&t->device, t->c, t->d, bytes / 2);
        times++;
        now = seconds();
    } while (now - start < 0.003);
    return (now - start) / (double)times;
}

static void bench_layers(Bench *t) {
    printf(
        "| layer, %lld tokens, C %lld, F %lld, V %lld | microseconds | GB/s | share of a copy |\n|---|---|---|---|\n",
        (long long)t->rows, (long long)t->C, (long long)t->F, (long long)t->V);
    for (int i = 0; i < LAYERS; i++) {
        const Layer *l = &layers[i];
        double bytes =
            4 * (double)t->rows * (l->values * (double)t->C + l->values_F * (double)t->F + l->values_V * (double)t->V);
        double copy = 1e9, time = 1e9;
        for (int round = 0; round < ROUNDS; round++) {
            copy = smaller(copy, copy_time(t, (size_t)bytes));
            time = smaller(time, time_of(l->run, t));
        }
        printf("| %s | %.0f | %.1f | %.0f%% |\n", l->name, 1e6 * time, 1e-9 * bytes / time, 100 * copy / time);
        fflush(stdout);
    }
}

// ---- matrix products ----------------------------------------------------------------------------------------------
static void product_forward(Bench *t) {
    t->device.matmul_forward(&t->device, t->a, t->b, t->weight, t->weight, t->rows, t->K, t->N);
}
static void product_d_x(Bench *t) {
    t->device.matmul_backward(&t->device, t->a, NULL, NULL, t->b, NULL, t->weight, t->rows, t->K, t->N, false);
}
static void product_d_weight(Bench *t) {
    t->device.matmul_backward(&t->device, NULL, t->gradient, t->gradient, t->b, t->c, NULL, t->rows, t->K, t->N, false);
}

static void bench_products(Bench *t, const int64_t (*sizes)[3], int count) {
    printf("\n| product by %s | GFLOP/s forward, with bias | share of the matrix rate | d_x | d_weight, d_bias |\n"
           "|---|---|---|---|---|\n",
           cpu_matrix_library());
    static void (*const passes[])(Bench *) = {product_forward, product_d_x, product_d_weight};
    for (int i = 0; i < count; i++) {
        t->rows = sizes[i][0];
        t->K = sizes[i][1];
        t->N = sizes[i][2];
        double operations = 2.0 * (double)t->rows * (double)t->K * (double)t->N, time[3] = {1e9, 1e9, 1e9}, limit = 1e9;
        for (int round = 0; round < ROUNDS; round++) {
            limit = smaller(limit, operations / cpu_matrix_rate(t->device.threads));
            for (int pass = 0; pass < 3; pass++) time[pass] = smaller(time[pass], time_of(passes[pass], t));
        }
        printf("| rows %lld, K %lld, N %lld | %.0f | %.0f%% | %.0f%% | %.0f%% |\n", (long long)t->rows, (long long)t->K,
               (long long)t->N, 1e-9 * operations / time[0], 100 * limit / time[0], 100 * limit / time[1],
               100 * limit / time[2]);
        fflush(stdout);
    }
}

int main(int argc, char **argv) {
    Bench t = {.rows = argc > 1 ? atoll(argv[1]) : 4096, .C = argc > 2 ? atoll(argv[2]) : 256};
    if (t.rows < 1 || t.C < 64 || t.C % 64 != 0) {
        fprintf(stderr, "bench_layers: ROWS must be at least 1, and C a multiple of 64\n");
        return EXIT_USAGE;
    }
    cpu_device(&t.device, cpu_count());
    int64_t rows = t.rows, C = t.C, largest = rows < 4096 ? 4096 : rows;
    t.F = 4 * C;
    t.V = 257;
    int64_t widest = largest * (8 * C > 3072 ? 8 * C : 3072);
    t.a = floats(widest), t.b = floats(widest), t.c = floats(widest), t.d = floats(widest);
    t.weight = floats(8 << 20), t.gradient = floats(8 << 20);
    for (int64_t i = 0; i < widest; i++) t.d[i] = 1; // also AdamW's second moments
    t.mean = floats(largest), t.rstd = floats(largest), t.cosines = floats(largest * 32),
    t.sines = floats(largest * 32);
    t.tokens = calloc((size_t)largest, sizeof *t.tokens), t.positions = calloc((size_t)largest, sizeof *t.positions);
    if (t.tokens == NULL || t.positions == NULL) return EXIT_RUNTIME;
    for (int64_t i = 0; i < largest; i++) {
        t.tokens[i] = (int32_t)random_below(1, 1, (uint64_t)i, (uint64_t)t.V);
        t.positions[i] = (int32_t)i;
    }

    printf("%d threads, %s; large matrix products: %.0f GFLOP/s\n\n", t.device.threads, simd_level_name(simd_level()),
           1e-9 * cpu_matrix_rate(t.device.threads));
    bench_layers(&t);
    const int64_t sizes[][3] = {
        {rows, C, C},    {rows, C, 3 * C}, {rows, C, 4 * C}, {rows, 4 * C, C},   {rows, C, 1376},
        {rows, 688, C},  {rows, C, 257},   {1024, 256, 768}, {1024, 256, 1024},  {1024, 1024, 256},
        {256, 256, 768}, {256, 768, 3072}, {256, 3072, 768}, {4096, 1024, 3072},
    };
    bench_products(&t, sizes, sizeof sizes / sizeof *sizes);
    free(t.a), free(t.b), free(t.c), free(t.d), free(t.weight), free(t.gradient), free(t.mean), free(t.rstd);
    free(t.cosines), free(t.sines), free(t.tokens), free(t.positions);
    return 0;
}
