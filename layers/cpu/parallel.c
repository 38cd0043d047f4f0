#include "layers/cpu/parallel.h"

#include "base/pulse.h"

#ifdef HAVE_OPENMP
#include <omp.h>

static void run_on_team(int threads, int64_t tasks, ParallelTask *task, void *context) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < tasks; i++) {
        task(context, i, omp_get_thread_num());
        pulse_beat();
    }
}
#endif

void parallel_for(int threads, int64_t tasks, ParallelTask *task, void *context) {
#ifdef HAVE_OPENMP
    if (threads > 1 && tasks > 1) {
        run_on_team(threads < tasks ? threads : (int)tasks, tasks, task, context);
        return;
    }
#endif
    (void)threads;
    for (int64_t i = 0; i < tasks; i++) {
        task(context, i, 0);
        pulse_beat();
    }
}
