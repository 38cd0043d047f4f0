// How fast the layers are, beside what the device can do: how fast it copies memory and multiplies matrices.
//
//   dev/bench_layers                 the tables below, for 4,096 tokens of width 256, all processors
//   dev/bench_layers --device cuda   on the first GPU: 32,768 tokens of width 768, vocabulary 50,257
//   dev/bench_layers ROWS C          the same for other sizes
//   dev/bench_layers --csv ...       lines "what,microseconds,rate,unit,share"
//   SIMD=avx2 dev/bench_layers       with another of the CPU's compiled copies (portable, avx2, avx512)
//   MATMUL=cblas dev/bench_layers    with the library's matrix product
//
// A layer that does little with each value can at best run at the speed of memory: its share is the time of a copy that
// reads and writes as many bytes, by the layer's own. Above 100%: it reads more than it writes, which is cheaper than a
// copy. The classifier and the activations also compute an exponential for each value. The share of a matrix product is
// its rate by that of large square products (Device.matrix_rate). On a GPU there are two tables of products: by the
// algorithms that the library proposes first, and by those that --tune chooses. A shared machine changes its speed, so
// what is compared is measured in turns, and the best of all turns counts.
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

static double smaller(double a, double b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// ---- tensors --------------------------------------------------------------------------------------------------------
// One set serves all layers.
typedef struct Bench {
    Device device;
    bool csv;
    int64_t rows, C, F, V, Vp, K, N;
    size_t widest, copied;                         // bytes of a, b and c; of the copy being timed
    void *a, *b, *c, *d;                           // storage, each as large as the largest needed
    void *weight;                                  // storage
    float *gradient, *master, *m, *v;              // fp32
    float *mean, *rstd, *losses, *cosines, *sines; // fp32, of rows
    double *sum;                                   // (1)
    int32_t *tokens, *positions;                   // (rows)
} Bench;

static void *allocate(Bench *t, size_t bytes) {
    Error err;
    void *memory = t->device.allocate(&t->device, bytes, &err);
    if (memory == NULL) {
        fprintf(stderr, "bench_layers: %s\n", err.message);
        exit(err.exit_code);
    }
    return memory;
}

static float *floats(Bench *t, int64_t count) {
    enum { PIECE = 1 << 16 };
    static float piece[PIECE];
    for (int i = 0; i < PIECE; i++) piece[i] = (float)((i * 7919) % 1021 - 510) / 300;
    float *x = allocate(t, (size_t)count * sizeof *x);
    for (int64_t first = 0; first < count; first += PIECE)
        t->device.upload(&t->device, x + first, piece,
                         (size_t)(count - first < PIECE ? count - first : PIECE) * sizeof *x);
    return x;
}

static void *storage(Bench *t, int64_t count) {
    float *x = floats(t, count);
    if (t->device.element_bytes == sizeof *x) return x;
    void *converted = allocate(t, (size_t)count * t->device.element_bytes);
    t->device.to_storage(&t->device, converted, x, count);
    t->device.release(&t->device, x, (size_t)count * sizeof *x);
    return converted;
}

static int32_t *numbers(Bench *t, int64_t count, int64_t below) { // below 0: 0, 1, 2, ...
    int32_t *host = malloc((size_t)count * sizeof *host), *x = allocate(t, (size_t)count * sizeof *x);
    if (host == NULL) exit(EXIT_RUNTIME);
    for (int64_t i = 0; i < count; i++)
        host[i] = (int32_t)(below > 0 ? (int64_t)random_below(1, 1, (uint64_t)i, (uint64_t)below) : i);
    t->device.upload(&t->device, x, host, (size_t)count * sizeof *host);
    free(host);
    return x;
}

// ---- layers ---------------------------------------------------------------------------------------------------------
static void embedding_forward(Bench *t) {
    t->device.embedding_forward(&t->device, t->a, t->tokens, t->positions, t->weight, t->b, t->rows, t->C);
}
static void embedding_backward(Bench *t) {
    t->device.embedding_backward(&t->device, t->gradient, t->master, t->b, t->tokens, t->positions, t->rows, t->rows,
                                 t->C, t->V);
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
static void rotary(Bench *t) {
    t->device.rotary(&t->device, t->a, t->cosines, t->sines, t->rows, t->rows, t->C, t->C / 64, 64, false);
}
static void gelu_forward(Bench *t) { t->device.gelu_forward(&t->device, t->a, t->b, t->rows * t->F); }
static void gelu_backward(Bench *t) { t->device.gelu_backward(&t->device, t->a, t->a, t->b, t->rows * t->F); }
static void swiglu_forward(Bench *t) { t->device.swiglu_forward(&t->device, t->a, t->b, t->rows, t->F); }
static void swiglu_backward(Bench *t) { t->device.swiglu_backward(&t->device, t->a, t->c, t->c, t->b, t->rows, t->F); }
static void classifier(Bench *t) {
    t->device.classifier(&t->device, t->d, t->losses, t->tokens, t->rows, t->V, t->Vp, 1.0f / (float)t->rows);
}
static void adamw(Bench *t) {
    AdamW h = {1e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 1000, 1};
    void *weight = t->device.host_memory ? (void *)t->master : t->a;
    t->device.adamw(&t->device, t->master, weight, t->m, t->v, t->gradient, t->rows * t->C, &h);
}
static void sum_of_squares(Bench *t) { t->device.sum_of_squares(&t->device, t->sum, t->gradient, t->rows * t->C); }

typedef struct Layer {
    const char *name;
    void (*run)(Bench *);
    double values_C, values_F, values_V; // storage values moved for each row: by C, F, V
    double floats_C, floats;             // fp32 values moved for each row: by C, and beside
} Layer;

// Values of a row that are read and written, each once: what stays in the nearest cache in between is not counted
// again.
static const Layer layers[] = {
    {"embedding forward", embedding_forward, 3, 0, 0, 0, 0},
    {"embedding backward", embedding_backward, 1, 0, 0, 4, 0},
    {"LayerNorm forward with the residual", layernorm_forward, 4, 0, 0, 0, 2},
    {"LayerNorm backward", layernorm_backward, 4, 0, 0, 0, 2},
    {"RMSNorm forward with the residual", rmsnorm_forward, 4, 0, 0, 0, 1},
    {"RMSNorm backward", rmsnorm_backward, 4, 0, 0, 0, 1},
    {"rotary D=64", rotary, 2, 0, 0, 0, 64}, // 32 cosines and 32 sines
    {"GELU forward", gelu_forward, 0, 2, 0, 0, 0},
    {"GELU backward", gelu_backward, 0, 3, 0, 0, 0},
    {"SwiGLU forward", swiglu_forward, 0, 3, 0, 0, 0},
    {"SwiGLU backward", swiglu_backward, 0, 6, 0, 0, 0},
    {"classifier", classifier, 0, 0, 2, 0, 0},
    {"AdamW", adamw, 0, 0, 0, 7, 0},
    {"sum of squares", sum_of_squares, 0, 0, 0, 1, 0},
};
enum { LAYERS = sizeof layers / sizeof *layers };

// Runs `run` for at least 3 ms, as often as the time of the first says; seconds for one.
static double time_of(void (*run)(Bench *), Bench *t) {
    int64_t times = 1;
    for (;;) {
        t->device.synchronize(&t->device);
        double start = seconds();
        for (int64_t i = 0; i < times; i++) run(t);
        t->device.synchronize(&t->device);
        double time = seconds() - start;
        if (time >= 0.003) return time / (double)times;
        times = larger(2 * times, (int64_t)(0.004 / (time / (double)times + 1e-9)));
    }
}

static void copy(Bench *t) { t->device.copy(&t->device, t->c, t->b, t->copied); }

// Of a copy that reads and writes `bytes` together; of as much of it as the tensors hold.
static double time_of_copy(Bench *t, double bytes) {
    t->copied = bytes / 2 < (double)t->widest ? (size_t)(bytes / 2) : t->widest;
    return time_of(copy, t) * bytes / 2 / (double)t->copied;
}

static void print_share(const Bench *t, const char *name, double time, double rate, const char *unit, double share) {
    if (t->csv) printf("%s,%.2f,%.4g,%s,%.4f\n", name, 1e6 * time, rate, unit, share);
    else printf("| %s | %.0f | %.1f | %.0f%% |\n", name, 1e6 * time, rate, 100 * share);
    fflush(stdout);
}

static void bench_layers(Bench *t) {
    if (!t->csv)
        printf("| layer, %lld tokens, C %lld, F %lld, V %lld | microseconds | GB/s | share of a copy |\n"
               "|---|---|---|---|\n",
               (long long)t->rows, (long long)t->C, (long long)t->F, (long long)t->V);
    for (int i = 0; i < LAYERS; i++) {
        const Layer *l = &layers[i];
        double C = (double)t->C, F = (double)t->F, V = (double)t->V;
        double bytes =
            (double)t->rows * ((double)t->device.element_bytes * (l->values_C * C + l->values_F * F + l->values_V * V) +
                               sizeof(float) * (l->floats_C * C + l->floats));
        if (l->run == adamw && !t->device.host_memory) bytes += (double)t->rows * C * (double)t->device.element_bytes;
        double copy_time = 1e9, time = 1e9;
        for (int round = 0; round < ROUNDS; round++) {
            copy_time = smaller(copy_time, time_of_copy(t, bytes));
            time = smaller(time, time_of(l->run, t));
        }
        print_share(t, l->name, time, 1e-9 * bytes / time, "GB/s", copy_time / time);
    }
}

// ---- matrix products ------------------------------------------------------------------------------------------------
static void product_forward(Bench *t) {
    t->device.matmul_forward(&t->device, t->a, t->b, t->weight, t->weight, t->rows, t->K, t->N);
}
static void product_d_x(Bench *t) {
    t->device.matmul_backward(&t->device, t->a, NULL, NULL, t->b, NULL, t->weight, t->rows, t->K, t->N, false);
}
static void product_d_weight(Bench *t) {
    t->device.matmul_backward(&t->device, NULL, t->gradient, NULL, t->b, t->c, NULL, t->rows, t->K, t->N, false);
}
// What the bias adds is a pass of memory over d_out.
static void product_d_weight_d_bias(Bench *t) {
    t->device.matmul_backward(&t->device, NULL, t->gradient, t->gradient, t->b, t->c, NULL, t->rows, t->K, t->N, false);
}

static const struct {
    const char *name;
    void (*run)(Bench *);
} passes[] = {{"forward with bias", product_forward},
              {"d_x", product_d_x},
              {"d_weight", product_d_weight},
              {"d_weight and d_bias", product_d_weight_d_bias}};
enum { PASSES = sizeof passes / sizeof *passes };

static void set_size(Bench *t, const int64_t size[3]) {
    t->rows = size[0];
    t->K = size[1];
    t->N = size[2];
}

// As --tune does: each product by the algorithm that is fastest here. Large square ones, which the others are compared
// with, keep theirs.
static void tune_products(Bench *t, const int64_t (*sizes)[3], int count) {
    t->device.tune(&t->device, "", true);
    for (int i = 0; i < count; i++) {
        set_size(t, sizes[i]);
        for (int pass = 0; pass < PASSES; pass++) passes[pass].run(t);
    }
    char *choices = strdup(t->device.tuned(&t->device));
    if (choices == NULL) exit(EXIT_RUNTIME);
    t->device.tune(&t->device, choices, false);
    free(choices);
}

// how: of the products, behind their names.
static void bench_products(Bench *t, const char *how, const int64_t (*sizes)[3], int count) {
    if (!t->csv) printf("\n| product | microseconds | GFLOP/s | share of the matrix rate |\n|---|---|---|---|\n");
    for (int i = 0; i < count; i++) {
        set_size(t, sizes[i]);
        double operations = 2.0 * (double)t->rows * (double)t->K * (double)t->N, time[PASSES], rate = 0;
        for (int pass = 0; pass < PASSES; pass++) time[pass] = 1e9;
        for (int round = 0; round < ROUNDS; round++) {
            if (t->device.host_memory || round == 0) rate = -smaller(-rate, -t->device.matrix_rate(&t->device));
            for (int pass = 0; pass < PASSES; pass++) time[pass] = smaller(time[pass], time_of(passes[pass].run, t));
        }
        for (int pass = 0; pass < PASSES; pass++) {
            char name[96];
            snprintf(name, sizeof name, "%s%s: rows %lld K %lld N %lld", passes[pass].name, how, (long long)t->rows,
                     (long long)t->K, (long long)t->N);
            print_share(t, name, time[pass], 1e-9 * operations / time[pass], "GFLOP/s", operations / time[pass] / rate);
        }
    }
}

static void make_tensors(Bench *t, int64_t largest_rows, int64_t widest_row) {
    int64_t widest = largest_rows * widest_row, floats_of_layers = larger(largest_rows * t->C, (int64_t)8 << 20);
    t->widest = (size_t)widest * t->device.element_bytes;
    t->a = storage(t, widest), t->b = storage(t, widest), t->c = storage(t, widest);
    t->d = storage(t, largest_rows * t->Vp);
    t->weight = storage(t, larger(t->V * t->C, (int64_t)8 << 20));
    t->gradient = floats(t, larger(floats_of_layers, t->V * t->C));
    t->master = floats(t, floats_of_layers), t->m = floats(t, floats_of_layers);
    t->v = allocate(t, (size_t)floats_of_layers * sizeof(float)); // zeros: moments are never negative
    t->mean = floats(t, largest_rows), t->rstd = floats(t, largest_rows), t->losses = floats(t, largest_rows);
    t->cosines = floats(t, largest_rows * 32), t->sines = floats(t, largest_rows * 32);
    t->sum = allocate(t, sizeof *t->sum);
    t->tokens = numbers(t, largest_rows, t->V), t->positions = numbers(t, largest_rows, 0);
}

static void usage(void) {
    fprintf(stderr, "usage: bench_layers [--device cpu|cuda] [--csv] [ROWS C]; C a multiple of 64\n");
    exit(EXIT_USAGE);
}

int main(int argc, char **argv) {
    const char *name = "cpu";
    Bench t = {0};
    int word = 1;
    for (; word < argc && argv[word][0] == '-'; word++) {
        if (strcmp(argv[word], "--csv") == 0) t.csv = true;
        else if (strcmp(argv[word], "--device") == 0 && word + 1 < argc) name = argv[++word];
        else usage();
    }
    if (word != argc && word + 2 != argc) usage();
    Error err;
    if (!device_open(&t.device, device_kind(name), 0, cpu_count(), &err)) {
        fprintf(stderr, "bench_layers: %s\n", err.message);
        return err.exit_code;
    }
    bool host = t.device.host_memory;
    t.rows = word < argc ? atoll(argv[word]) : host ? 4096 : 32768;
    t.C = word < argc ? atoll(argv[word + 1]) : host ? 256 : 768;
    if (t.rows < 1 || t.C < 64 || t.C % 64 != 0) usage();
    int64_t rows = t.rows, C = t.C;
    t.F = 4 * C;
    t.V = host ? 257 : 50257;
    t.Vp = device_padded_vocab_size(device_kind(name), t.V);
    make_tensors(&t, larger(rows, 4096), larger(8 * C, 3072));
    if (!device_lend_scratch(&t.device, device_scratch_bytes(device_kind(name), t.device.threads, rows, C, 8 * C),
                             &err)) {
        fprintf(stderr, "bench_layers: %s\n", err.message);
        return err.exit_code;
    }

    if (!t.csv)
        printf("%s: %s; large matrix products: %.0f GFLOP/s\n\n", t.device.name, t.device.description,
               1e-9 * t.device.matrix_rate(&t.device));
    bench_layers(&t);
    const int64_t sizes[][3] = {
        {rows, C, C},    {rows, C, 3 * C}, {rows, C, 4 * C}, {rows, 4 * C, C},   {rows, C, 1376},
        {rows, 688, C},  {rows, C, 257},   {1024, 256, 768}, {1024, 256, 1024},  {1024, 1024, 256},
        {256, 256, 768}, {256, 768, 3072}, {256, 3072, 768}, {4096, 1024, 3072},
    };
    const int count = host ? (int)(sizeof sizes / sizeof *sizes) : 5;
    bench_products(&t, "", sizes, count);
    if (t.device.tune != NULL) {
        tune_products(&t, sizes, count);
        bench_products(&t, " (--tune)", sizes, count);
    }
    device_return_scratch(&t.device);
    t.device.close(&t.device);
    return 0;
}
