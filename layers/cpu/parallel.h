// Work shared out among a device's processors: the one place that knows of OpenMP.
#ifndef LAYERS_CPU_PARALLEL_H
#define LAYERS_CPU_PARALLEL_H

#include <stdint.h>

// One piece of work. `worker` is 0 to threads-1: no two tasks with the same worker run at the same time, so it may
// choose a scratch buffer. Results must not depend on it, or bits would depend on timing.
typedef void ParallelTask(void *context, int64_t task, int worker);

// Runs tasks 0 to tasks-1, each once, on up to `threads` threads, and returns when all are done. A thread that is free
// takes the next task, so put the longest first. With threads == 1 it is a plain loop on the calling thread.
void parallel_for(int threads, int64_t tasks, ParallelTask *task, void *context);

#endif
