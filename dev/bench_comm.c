// What it costs to say something to another rank: barrier, small and large exchanges, sums; beside one thread's memcpy.
//
//   build/release/dev/bench_comm [RANKS]                  ranks are threads
//   mpirun -np 4 build/release/dev/bench_comm             ranks are processes
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/comm.h"
#include "comm/engine.h"

enum { LARGE = 1 << 20, BLOCKS = 16, SUMMED = 8 << 20 };

static double *timer(Comm *comm, double *start) {
    comm_barrier(comm);
    *start = clock_seconds();
    return start;
}

static void show(Comm *comm, const char *what, double seconds, double bytes) {
    if (comm_rank(comm) != 0) return;
    printf("  %-34s %10.2f us", what, 1e6 * seconds);
    if (bytes > 0) printf(" %8.2f GB/s", 1e-9 * bytes / seconds);
    printf("\n");
}

static void shift(Comm *comm, const void *send, void *receive, size_t bytes) {
    int size = comm_size(comm), rank = comm_rank(comm);
    CommRequest request =
        comm_exchange_begin(comm, send, bytes, (rank + 1) % size, receive, bytes, (rank + size - 1) % size);
    comm_wait(comm, &request);
}

static void rank_main(Comm *world, void *argument) {
    (void)argument;
    int size = comm_size(world);
    char *from = malloc((size_t)BLOCKS * LARGE), *to = malloc((size_t)BLOCKS * LARGE);
    float *terms = malloc((size_t)SUMMED * sizeof *terms);
    int64_t *counts = malloc((size_t)size * sizeof *counts);
    if (!from || !to || !terms || !counts) abort();
    memset(from, 1, (size_t)BLOCKS * LARGE);
    memset(to, 2, (size_t)BLOCKS * LARGE);
    for (int64_t i = 0; i < SUMMED; i++) terms[i] = (float)i;
    for (int rank = 0; rank < size; rank++)
        counts[rank] = (rank + 1) * (int64_t)SUMMED / size - rank * (int64_t)SUMMED / size;
    double start, values[4] = {1, 2, 3, 4};

    if (comm_rank(world) == 0) {
        printf("%d ranks\n", size);
        start = clock_seconds();
        for (int i = 0; i < 20 * BLOCKS; i++) {
            memcpy(to + (size_t)(i % BLOCKS) * LARGE, from + (size_t)(i % BLOCKS) * LARGE, LARGE);
            __asm__ volatile("" : : "r"(to) : "memory");
        }
        show(world, "memcpy of 1 MiB, one thread", (clock_seconds() - start) / (20 * BLOCKS), LARGE);
    }
    timer(world, &start);
    for (int i = 0; i < 5000; i++) comm_barrier(world);
    show(world, "barrier", (clock_seconds() - start) / 5000, 0);
    timer(world, &start);
    for (int i = 0; i < 5000; i++) comm_all_reduce_sum(world, values, 4);
    show(world, "all-reduce of 4 values", (clock_seconds() - start) / 5000, 0);
    timer(world, &start);
    for (int i = 0; i < 5000; i++) shift(world, from, to, 64);
    show(world, "shift of 64 bytes", (clock_seconds() - start) / 5000, 0);
    timer(world, &start);
    for (int i = 0; i < 20 * BLOCKS; i++) {
        shift(world, from + (size_t)(i % BLOCKS) * LARGE, to + (size_t)(i % BLOCKS) * LARGE, LARGE);
    }
    comm_barrier(world);
    show(world, "shift of 1 MiB (all ranks' bytes)", (clock_seconds() - start) / (20 * BLOCKS), (double)LARGE * size);
    timer(world, &start);
    for (int i = 0; i < 5; i++) comm_reduce_scatter_sum(world, terms, terms, counts);
    show(world, "reduce-scatter of 32 MiB (read)", (clock_seconds() - start) / 5, 4.0 * SUMMED * size);
    free(from);
    free(to);
    free(terms);
    free(counts);
}

int main(int argc, char **argv) {
    int processes = comm_process_count(), ranks = argc > 1 ? atoi(argv[1]) : processes > 1 ? processes : 4;
    CommLaunch launch = {.engine = COMM_AUTO, .ranks = ranks, .timeout_seconds = 60};
    Error err = {0};
    if (!comm_run(&launch, rank_main, NULL, &err)) die(&err);
    return 0;
}
