// OpenMP's threads for loops over tasks, where OpenMP is there, and what it does behind our back undone.
#include "layers/cpu/parallel.h"

#include "base/pulse.h"

#ifdef HAVE_OPENMP
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>

#include "base/error.h"

// Lets the calling thread run on every processor that OpenMP has. OMP_PROC_BIND, OMP_PLACES and the like make OpenMP
// bind each thread to one of them, as if one team had the machine to itself: the program's first thread, before main(),
// and so all ranks that it starts, to the first processor, and the teams of all ranks to the same few.
static void unbind(void) {
    static _Thread_local bool done;
    if (done) return;
    done = true;
    if (omp_get_proc_bind() == omp_proc_bind_false) return;
    cpu_set_t processors;
    CPU_ZERO(&processors);
    for (int place = 0; place < omp_get_num_places(); place++) {
        int ids[CPU_SETSIZE], count = omp_get_place_num_procs(place);
        if (count > CPU_SETSIZE) return;
        omp_get_place_proc_ids(place, ids);
        for (int i = 0; i < count; i++) CPU_SET(ids[i], &processors);
    }
    (void)sched_setaffinity(0, sizeof processors, &processors); // where it is refused, the thread stays where it is
}

// OpenMP's library has been set up by then, since this program depends on it.
__attribute__((constructor)) static void unbind_first_thread(void) { unbind(); }

static void *pass(void *gate) {
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

// Ends the program if the calling thread cannot have a team of so many threads: OpenMP would, without a word of what to
// do. They are made here first, and ended; OpenMP's then take the memory of their stacks.
static void require_threads(int threads) {
    enum { MOST = 4096 };
    static _Thread_local int most = 1; // that were had before
    if (threads <= most || threads > MOST) return;
    most = threads;
    pthread_t others[MOST];
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    int made = 0;
    pthread_mutex_lock(&gate);
    while (made < threads - 1 && pthread_create(&others[made], NULL, pass, &gate) == 0) made++;
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < made; i++) pthread_join(others[i], NULL);
    if (made == threads - 1) return;
    Error err;
    error_set(
        &err,
        "only %d of %d threads of a rank could be made: give a smaller --threads, or see ulimit -u, -v, -d and -s",
        made + 1, threads);
    die(&err);
}

static void run_on_team(int threads, int64_t tasks, ParallelTask *task, void *context) {
    require_threads(threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < tasks; i++) {
        unbind();
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
