// The machine's own limit: the best that its matrix products reach in many short samples. They are short, the least of
// them less than a millisecond, because on a machine with other work only short ones pass undisturbed; and of several
// sizes, because some caches favour the small ones, and large ones spend less on the start of threads.
#include <stdlib.h>
#include <time.h>

#include "layers/cpu/layers.h"
#include "layers/cpu/sgemm.h"

enum { SMALLEST = 256, LARGEST = 1024 };
static const double SECONDS = 0.2;

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct Sample { // each thread multiplies two matrices (size, size); b is the same for all
    const MatrixProduct *with;
    int64_t size;
    const float *a, *b; // a, c (threads, size, size)
    float *c;
} Sample;

static void multiply(void *context, int64_t task, int worker) {
    const Sample *s = context;
    (void)worker;
    int64_t n = s->size, first = task * n * n;
    s->with->sgemm(false, true, n, n, n, 1.0f, s->a + first, n, s->b, n, 0.0f, s->c + first, n);
}

static double operations(int64_t size, int threads) {
    return 2.0 * (double)threads * (double)size * (double)size * (double)size;
}

static double rate_of(Sample *sample, int threads) {
    double start = seconds();
    parallel_for(threads, threads, multiply, sample);
    return operations(sample->size, threads) / (seconds() - start);
}

double cpu_matrix_rate(int threads) {
    const int64_t square = LARGEST * LARGEST, all = square * threads;
    const MatrixProduct *products[] = {cpu_matrix_product(), cpu_builtin_product()};
    int count = products[0] == products[1] ? 1 : 2;
    float *memory = cpu_scratch(2 * all + square);
    for (int64_t i = 0; i < 2 * all + square; i++) memory[i] = (float)(i % 7) - 3.0f;
    double best = 0, now = seconds(), end = now + SECONDS;
    for (; now < end; now = seconds()) { // by turns, so that other load on the machine meets all
        for (int64_t size = SMALLEST; size <= LARGEST; size *= 2) {
            if (size > SMALLEST && operations(size, threads) / best > end - seconds()) break; // it would take too long
            for (int i = 0; i < count; i++) {
                Sample sample = {products[i], size, memory, memory + 2 * all, memory + all};
                double rate = rate_of(&sample, threads);
                if (rate > best) best = rate;
            }
        }
    }
    free(memory);
    return best;
}
