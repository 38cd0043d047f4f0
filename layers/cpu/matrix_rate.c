// The machine's own limit: what its best matrix product reaches on large matrices.
#include <stdlib.h>
#include <time.h>

#include "base/cpu_features.h"
#include "layers/cpu/layers.h"
#include "layers/cpu/sgemm.h"

enum { SIZE = 1024 };

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct Rows { // SIZE rows for each thread
    const MatrixProduct *with;
    const float *a, *b;
    float *c;
} Rows;

static void multiply_rows(void *context, int64_t task, int worker) {
    const Rows *r = context;
    (void)worker;
    int64_t first = task * SIZE * SIZE;
    r->with->sgemm(false, true, SIZE, SIZE, SIZE, 1.0f, r->a + first, SIZE, r->b, SIZE, 0.0f, r->c + first, SIZE);
}

double cpu_matrix_rate(int threads) {
    int64_t square = SIZE * SIZE, all = square * threads;
    float *memory = cpu_scratch(2 * all + square);
    for (int64_t i = 0; i < 2 * all + square; i++) memory[i] = (float)(i % 7) - 3.0f;
    const MatrixProduct *products[] = {cpu_builtin_product(), cpu_library_product()};
    double operations = 2.0 * (double)all * SIZE, best = 0;
    double end = seconds() + 0.2;
    do { // by turns, so that other load on the machine meets both
        for (int i = 0; i < 2; i++) {
            if (products[i] == NULL) continue;
            Rows rows = {products[i], memory, memory + 2 * all, memory + all};
            double start = seconds();
            parallel_for(threads, threads, multiply_rows, &rows);
            double rate = operations / (seconds() - start);
            if (rate > best) best = rate;
        }
    } while (seconds() < end);
    free(memory);
    return best;
}
