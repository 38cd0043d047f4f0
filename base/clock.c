// A clock that only runs forward, sleeps and waits by it, and a thread that looks a few times a second.
#include "base/clock.h"

#include <signal.h>
#include <time.h>

static const double TICK = 0.2; // seconds between two looks of a ticker

double clock_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static struct timespec time_of(double seconds) {
    return (struct timespec){(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
}

void clock_sleep(double seconds) {
    struct timespec pause = time_of(seconds);
    nanosleep(&pause, NULL);
}

Timer timer_start(double longest_step) { return (Timer){.last = clock_seconds(), .longest_step = longest_step}; }

double timer_elapsed(Timer *timer) {
    double now = clock_seconds(), step = now - timer->last;
    timer->waited += step < timer->longest_step ? step : timer->longest_step;
    timer->last = now;
    return timer->waited;
}

void clock_condition_init(pthread_cond_t *condition) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

void clock_condition_wait(pthread_cond_t *condition, pthread_mutex_t *lock, double seconds) {
    struct timespec until = time_of(clock_seconds() + seconds);
    pthread_cond_timedwait(condition, lock, &until);
}

static void *tick(void *pointer) {
    Ticker *ticker = pointer;
    pthread_mutex_lock(&ticker->lock);
    while (!ticker->over) {
        ticker->look(ticker->argument);
        if (!ticker->over) clock_condition_wait(&ticker->stopped, &ticker->lock, TICK);
    }
    pthread_mutex_unlock(&ticker->lock);
    return NULL;
}

bool ticker_start(Ticker *ticker, void (*look)(void *argument), void *argument) {
    *ticker = (Ticker){.look = look, .argument = argument};
    pthread_mutex_init(&ticker->lock, NULL);
    clock_condition_init(&ticker->stopped);
    sigset_t all, before; // signals are for the program's own threads
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool made = pthread_create(&ticker->thread, NULL, tick, ticker) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return made;
}

void ticker_stop(Ticker *ticker) {
    pthread_mutex_lock(&ticker->lock);
    ticker->over = true;
    pthread_cond_signal(&ticker->stopped);
    pthread_mutex_unlock(&ticker->lock);
    pthread_join(ticker->thread, NULL);
    pthread_cond_destroy(&ticker->stopped);
    pthread_mutex_destroy(&ticker->lock);
}
