#include "comm/deadline.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct Deadline {
    pthread_t thread;
    pthread_mutex_t lock; // of what follows
    pthread_cond_t changed;
    bool over;
    double seconds;
    const char *what;
    CommPatience patience;
};

static const double LONGEST_SLEEP = 0.25; // seconds

// All ranks but the one that is missing come here at the same time; the lowest speaks, and the launcher ends the rest.
static double patience_of_rank(double seconds) {
    const double APART = 3, MOST = 15;
    double later = APART * comm_process_rank();
    return seconds + (later < MOST ? later : MOST);
}

static void give_up(const Deadline *deadline) {
    Error err = {0};
    error_set(
        &err,
        "the ranks have not all come to their %s within %.3g s, as rank %d has (process %ld): another process has "
        "been stopped or cannot be reached; see what holds it, or allow more time with --timeout",
        deadline->what, deadline->seconds, comm_process_rank(), (long)getpid());
    comm_print_failure(&err);
    _exit(EXIT_RUNTIME);
}

static void *keep(void *pointer) {
    Deadline *deadline = pointer;
    pthread_mutex_lock(&deadline->lock);
    while (!deadline->over) {
        if (isinf(deadline->seconds)) {
            pthread_cond_wait(&deadline->changed, &deadline->lock);
            continue;
        }
        if (comm_patience_spent(&deadline->patience) >= patience_of_rank(deadline->seconds)) give_up(deadline);
        double until = comm_seconds() + LONGEST_SLEEP;
        struct timespec then = {(time_t)until, (long)(1e9 * (until - (double)(time_t)until))};
        pthread_cond_timedwait(&deadline->changed, &deadline->lock, &then);
    }
    pthread_mutex_unlock(&deadline->lock);
    return NULL;
}

Deadline *deadline_start(Error *err) {
    Deadline *deadline = calloc(1, sizeof *deadline);
    if (deadline == NULL) {
        error_set(err, "out of memory for the start of ranks");
        return NULL;
    }
    deadline->seconds = HUGE_VAL;
    pthread_mutex_init(&deadline->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&deadline->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    sigset_t all, before; // signals are for the rank's own thread
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&deadline->thread, NULL, keep, deadline);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code == 0) return deadline;
    error_set(err, "no thread for the start of ranks: %s", strerror(code));
    free(deadline);
    return NULL;
}

void deadline_set(Deadline *deadline, double seconds, const char *what) {
    pthread_mutex_lock(&deadline->lock);
    deadline->seconds = seconds;
    deadline->what = what;
    deadline->patience = comm_patience(2 * LONGEST_SLEEP);
    pthread_cond_signal(&deadline->changed);
    pthread_mutex_unlock(&deadline->lock);
}

void deadline_stop(Deadline *deadline) {
    pthread_mutex_lock(&deadline->lock);
    deadline->over = true;
    pthread_cond_signal(&deadline->changed);
    pthread_mutex_unlock(&deadline->lock);
    pthread_join(deadline->thread, NULL);
    pthread_cond_destroy(&deadline->changed);
    pthread_mutex_destroy(&deadline->lock);
    free(deadline);
}
