// How fast the attention kernel is, beside the rate at which this machine multiplies large matrices.
//
//   dev/bench_attention              the table below
//   dev/bench_attention T D          one line of it, for T tokens and heads of D values
//   SIMD=avx2 dev/bench_attention    with another of the compiled copies (portable, avx2, avx512)
//
// Causal, one sequence of T tokens, 4 heads, all processors. Operations are the useful ones: a causal product over the
// scores counts 2 x T^2/2 x D a head; the forward pass has two of them, the backward pass five. The exponentials are
// not counted. The matrix rate is measured again before each pass, since a shared machine changes its speed; each
// figure is a median over rounds, each share that of the ratio to the rate just measured.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "attention/kernel.h"
#include "base/cpu_features.h"
#include "base/random.h"

enum { HEADS = 4, ROUNDS = 5 };

typedef struct Problem {
    AttentionShape shape;
    int64_t T;
    float *qkv, *accumulator, *max, *sum, *out, *log_sum_exp, *d_out, *delta, *d_qkv;
} Problem;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static float *floats(int64_t count) {
    float *x = calloc((size_t)count, sizeof(float));
    if (x == NULL) {
        fprintf(stderr, "bench_attention: no memory for %lld floats: take a smaller T\n", (long long)count);
        exit(EXIT_RUNTIME);
    }
    return x;
}

static Problem make_problem(int64_t T, int64_t D) {
    int64_t C = HEADS * D;
    Problem p = {.shape = {1, HEADS, HEADS, D, 1.0f / 8}, .T = T};
    p.qkv = floats(T * 3 * C);
    p.d_qkv = floats(T * 3 * C);
    p.accumulator = floats(T * C);
    p.out = floats(T * C);
    p.d_out = floats(T * C);
    p.max = floats(HEADS * T);
    p.sum = floats(HEADS * T);
    p.log_sum_exp = floats(HEADS * T);
    p.delta = floats(HEADS * T);
    for (int64_t i = 0; i < T * 3 * C; i++) p.qkv[i] = (float)random_normal(1, 0, (uint64_t)i);
    for (int64_t i = 0; i < T * C; i++) p.d_out[i] = (float)random_normal(1, 1, (uint64_t)i);
    return p;
}

static void free_problem(Problem *p) {
    float *all[] = {p->qkv, p->d_qkv, p->accumulator, p->out, p->d_out, p->max, p->sum, p->log_sum_exp, p->delta};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

// Part 0, 1 or 2 (q, k or v) of a fused (T, 3C) buffer.
static TokenView token_part(const Problem *p, float *fused, int part) {
    int64_t C = HEADS * p->shape.head_dim;
    return (TokenView){fused + part * C, 0, 3 * C};
}
static FloatView float_part(const Problem *p, float *fused, int part) {
    int64_t C = HEADS * p->shape.head_dim;
    return (FloatView){fused + part * C, 0, 3 * C};
}

static KeyValue key_value(const Problem *p) {
    return (KeyValue){{0, p->T},
                      token_part(p, p->qkv, 1),
                      token_part(p, p->qkv, 2),
                      float_part(p, p->d_qkv, 1),
                      float_part(p, p->d_qkv, 2)};
}

static void forward(const Problem *p, Device *device) {
    int64_t C = HEADS * p->shape.head_dim;
    QueryForward query = {
        {0, p->T}, token_part(p, p->qkv, 0), {p->accumulator, 0, C}, {p->max, 0, p->T}, {p->sum, 0, p->T}};
    KeyValue kv = key_value(p);
    attention_kernels_cpu.begin(device, &p->shape, &query);
    attention_kernels_cpu.forward_pair(device, &p->shape, &query, &kv);
    attention_kernels_cpu.finish(device, &p->shape, &query, (TokenView){p->out, 0, C},
                                 (RowView){p->log_sum_exp, 0, p->T});
}

static void backward(const Problem *p, Device *device) {
    int64_t C = HEADS * p->shape.head_dim;
    TokenView out = {p->out, 0, C}, d_out = {p->d_out, 0, C};
    RowView log_sum_exp = {p->log_sum_exp, 0, p->T}, delta = {p->delta, 0, p->T};
    QueryBackward query = {{0, p->T}, token_part(p, p->qkv, 0), d_out, log_sum_exp, delta, float_part(p, p->d_qkv, 0)};
    KeyValue kv = key_value(p);
    memset(p->d_qkv, 0, (size_t)(p->T * 3 * C) * sizeof(float));
    attention_kernels_cpu.row_delta(device, &p->shape, query.chunk, out, d_out, delta);
    attention_kernels_cpu.backward_pair(device, &p->shape, &query, &kv);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(double *x, int count) {
    qsort(x, (size_t)count, sizeof *x, ascending);
    return x[count / 2];
}

static void bench(int64_t T, int64_t D, Device *device) {
    Problem p = make_problem(T, D);
    double product = 2.0 * (double)T * (double)T / 2 * (double)D * HEADS; // operations of one product over the scores
    int repeats = 1 + (int)(1e10 / (7 * product)); // of a pass in a round, so that the clock has something to measure
    int rounds = product < 2e10 ? ROUNDS : ROUNDS / 2 + 1;
    double rate[ROUNDS], forward_rate[ROUNDS], both_rate[ROUNDS], forward_share[ROUNDS], both_share[ROUNDS];
    forward(&p, device);
    backward(&p, device); // touches the memory
    for (int i = 0; i < rounds; i++) {
        double before = cpu_matrix_rate(device->threads), start = seconds();
        for (int n = 0; n < repeats; n++) forward(&p, device);
        double forward_time = (seconds() - start) / repeats, between = cpu_matrix_rate(device->threads);
        start = seconds();
        for (int n = 0; n < repeats; n++) backward(&p, device);
        double backward_time = (seconds() - start) / repeats;
        rate[i] = (before + between) / 2;
        forward_rate[i] = 2 * product / forward_time;
        both_rate[i] = 7 * product / (forward_time + backward_time);
        forward_share[i] = forward_rate[i] / before;
        both_share[i] = both_rate[i] / rate[i];
    }
    printf("| %-8s | %6lld | %4lld | %7.1f | %7.1f | %4.0f%% | %7.1f | %4.0f%% |\n", simd_level_name(simd_level()),
           (long long)T, (long long)D, median(rate, rounds) / 1e9, median(forward_rate, rounds) / 1e9,
           100 * median(forward_share, rounds), median(both_rate, rounds) / 1e9, 100 * median(both_share, rounds));
    fflush(stdout);
    free_problem(&p);
}

static int64_t positive(const char *text) {
    char *end;
    long long value = strtoll(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value < 1 || value > (1 << 24)) {
        fprintf(stderr, "bench_attention: %s is not a whole number from 1 to 16777216\n", text);
        exit(EXIT_USAGE);
    }
    return value;
}

int main(int argc, char **argv) {
    if (argc != 1 && argc != 3) {
        fprintf(stderr, "usage: bench_attention [T D]\n");
        return EXIT_USAGE;
    }
    Device device;
    cpu_device(&device, cpu_count());
    printf("Causal attention, 1 sequence, %d heads, %d threads; GFLOP/s, and share of the matrix rate (%s)\n\n", HEADS,
           device.threads, cpu_matrix_library());
    printf("| copy     |      T |    D | matrix  | forward | share | fwd+bwd | share |\n");
    printf("| -------- | -----: | ---: | ------: | ------: | ----: | ------: | ----: |\n");
    if (argc == 3) {
        int64_t D = positive(argv[2]);
        if (D > ATTENTION_MAX_HEAD_DIM) {
            fprintf(stderr, "bench_attention: D = %s: heads have at most %d values\n", argv[2], ATTENTION_MAX_HEAD_DIM);
            return EXIT_USAGE;
        }
        bench(positive(argv[1]), D, &device);
        return 0;
    }
    bench(4096, 64, &device);
    bench(1024, 64, &device);
    bench(16384, 64, &device);
    bench(4096, 32, &device);
    bench(4096, 128, &device);
    const char *wanted = getenv("SIMD");
    if (wanted != NULL) return 0;
    for (SimdLevel level = SIMD_PORTABLE, best = simd_level(); level < best; level++) {
        if (setenv("SIMD", simd_level_name(level), 1) != 0) return EXIT_RUNTIME;
        bench(4096, 64, &device);
    }
    return 0;
}
