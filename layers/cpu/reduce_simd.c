// Sums of many values, in double precision: of values, and of their squares.
//
// The values are cut into at most SUM_TASKS tasks by their number alone; a task sums in LANES lanes, whatever the
// vectors of the processor, and the lanes and the tasks are added up in order. So the bits depend on nothing but the
// values.
#include "layers/cpu/layers.h"

enum { SUM_TASKS = 256, LANES = 16 };

typedef struct Sum {
    const float *x;
    int64_t count, per_task;
    double partial[SUM_TASKS];
} Sum;

static double add_lanes(const double *lane) {
    double total = 0;
    for (int i = 0; i < LANES; i++) total += lane[i];
    return total;
}

static void sum_task(void *context, int64_t task, int worker) {
    Sum *s = context;
    (void)worker;
    int64_t i = task * s->per_task, end = smaller(i + s->per_task, s->count);
    double lane[LANES] = {0};
    for (; i + LANES <= end; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += s->x[i + l];
    for (; i < end; i++) lane[i % LANES] += s->x[i];
    s->partial[task] = add_lanes(lane);
}

static void sum_of_squares_task(void *context, int64_t task, int worker) {
    Sum *s = context;
    (void)worker;
    int64_t i = task * s->per_task, end = smaller(i + s->per_task, s->count);
    double lane[LANES] = {0};
    for (; i + LANES <= end; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += (double)s->x[i + l] * s->x[i + l]; // the square is exact
    for (; i < end; i++) lane[i % LANES] += (double)s->x[i] * s->x[i];
    s->partial[task] = add_lanes(lane);
}

static void reduce(Device *device, double *sum, const float *x, int64_t count, ParallelTask *task) {
    Sum s = {.x = x, .count = count};
    s.per_task = larger(TASK_VALUES, tasks_of(tasks_of(count, SUM_TASKS), LANES) * LANES);
    int64_t tasks = tasks_of(count, s.per_task);
    parallel_for(device->threads, tasks, task, &s);
    double total = 0;
    for (int64_t i = 0; i < tasks; i++) total += s.partial[i];
    *sum += total;
}

void SIMD_NAME(sum)(Device *device, double *sum, const float *x, int64_t count) {
    reduce(device, sum, x, count, sum_task);
}

void SIMD_NAME(sum_of_squares)(Device *device, double *sum, const float *x, int64_t count) {
    reduce(device, sum, x, count, sum_of_squares_task);
}
