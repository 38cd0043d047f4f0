// The machine's own limit: the best that each thread's matrix products reach while all of them multiply, added up. One
// product takes a few milliseconds at most, and each thread has its own best: on a machine with other work only short
// samples pass undisturbed, and hardly ever those of all threads at once. Sizes differ, as caches do.
#include <stdlib.h>
#include <time.h>

#include "layers/cpu/layers.h"
#include "layers/cpu/sgemm.h"

enum { SIZES = 3, LARGEST = 512 };
static const int64_t sizes[SIZES] = {256, 384, LARGEST};
static const double SECONDS = 0.2, STARTING = 0.02; // of all, and of these before every thread works

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct Measurement {
    const MatrixProduct *products[2];
    int count;         // of them
    double begin, end; // samples count that lie between
    float *matrices;   // LARGEST x LARGEST: one for all, and then two for each thread
    float *rooms;      // (threads, SGEMM_ROOM)
    double *rate;      // (threads) found
} Measurement;

static void measure(void *context, int64_t task, int worker) {
    const Measurement *m = context;
    (void)worker;
    const float *b = m->matrices, *a = b + (1 + 2 * task) * LARGEST * LARGEST;
    float *c = m->matrices + (2 + 2 * task) * LARGEST * LARGEST;
    float *room = m->rooms + task * SGEMM_ROOM;
    double best = 0, fastest = 0; // of what counts, of all
    double now = seconds();
    for (int64_t i = 0; now < m->end; i++) { // by turns, so that other work on the machine meets all
        int64_t n = sizes[i % SIZES];
        double operations = 2.0 * (double)n * (double)n * (double)n, start = now;
        if (n > sizes[0] && operations > fastest * (m->end - now)) continue; // too little time is left
        m->products[i / SIZES % m->count]->sgemm(room, false, true, n, n, n, 1.0f, a, n, b, n, 0.0f, c, n);
        now = seconds();
        double rate = operations / (now - start);
        if (rate > fastest) fastest = rate;
        if (rate > best && start >= m->begin && now <= m->end) best = rate;
    }
    m->rate[task] = best > 0 ? best : fastest; // no sample counts where one takes too long, or none came in time
}

double cpu_matrix_rate(int threads) {
    Measurement m = {.products = {cpu_matrix_product(), cpu_builtin_product()}};
    m.count = m.products[0] == m.products[1] ? 1 : 2;
    int64_t values = (1 + 2 * (int64_t)threads) * LARGEST * LARGEST;
    m.matrices = malloc((size_t)values * sizeof *m.matrices);
    m.rooms = aligned_alloc(256, product_scratch_bytes(threads));
    m.rate = calloc((size_t)threads, sizeof *m.rate);
    double sum = 0;
    if (m.matrices != NULL && m.rooms != NULL && m.rate != NULL) {
        for (int64_t i = 0; i < values; i++) m.matrices[i] = (float)(i % 7) - 3.0f;
        m.begin = seconds() + STARTING;
        m.end = m.begin + SECONDS - STARTING;
        parallel_for(threads, threads, measure, &m);
        for (int i = 0; i < threads; i++) sum += m.rate[i];
    }
    free(m.matrices);
    free(m.rooms);
    free(m.rate);
    return sum;
}
