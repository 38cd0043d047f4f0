// Threads for ranks: all of them, or none where one cannot be made.
#include "base/threads.h"

#include <pthread.h>
#include <stdlib.h>

enum { STACK_BYTES = 16 << 20 }; // whatever the shell's limit: a rank keeps small arrays on its stack

typedef struct Gate { // its lock holds the threads back until it is known whether all could be made
    pthread_mutex_t lock;
    bool go;
    void (*run)(int i, void *argument);
    void *argument;
} Gate;

typedef struct Thread {
    pthread_t id;
    int number;
    Gate *gate;
} Thread;

static void *thread_main(void *pointer) {
    Thread *thread = pointer;
    pthread_mutex_lock(&thread->gate->lock);
    bool go = thread->gate->go;
    pthread_mutex_unlock(&thread->gate->lock);
    if (go) thread->gate->run(thread->number, thread->gate->argument);
    return NULL;
}

static bool start(Thread *thread, int number, Gate *gate) {
    pthread_attr_t attributes;
    *thread = (Thread){.number = number, .gate = gate};
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    bool made = pthread_create(&thread->id, &attributes, thread_main, thread) == 0;
    pthread_attr_destroy(&attributes);
    return made;
}

bool threads_run(int count, void (*run)(int i, void *argument), void *argument, Error *err) {
    Gate gate = {PTHREAD_MUTEX_INITIALIZER, false, run, argument};
    Thread *threads = calloc((size_t)count, sizeof *threads);
    if (threads == NULL) return error_set(err, "out of memory for %d threads", count);
    int made = 1;
    pthread_mutex_lock(&gate.lock);
    while (made < count && start(&threads[made], made, &gate)) made++;
    gate.go = made == count;
    pthread_mutex_unlock(&gate.lock);
    if (gate.go) run(0, argument);
    for (int i = 1; i < made; i++) pthread_join(threads[i].id, NULL);
    free(threads);
    if (made == count) return true;
    return error_set(
        err,
        "only %d of the %d threads for --sp x --dp could be made: ask for fewer ranks, or see ulimit -u, -v and -d",
        made, count);
}
