// A clock that only runs forward, whoever sets the time of day; and waits and small recurring work by it.
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

double clock_seconds(void);
void clock_sleep(double seconds);

// How long something has lasted. Time is added in steps of at most `longest_step`, so a program that was stopped and
// continued does not take its own absence for the silence of others.
typedef struct Timer {
    double waited, last, longest_step;
    double looked; // `waited` when whoever waits last looked for progress (comm/failure.c)
    uint64_t seen; // then
} Timer;
Timer timer_start(double longest_step);
double timer_elapsed(Timer *timer);

// A condition variable for clock_condition_wait, which waits for at most so long, or less; the lock is held before and
// after.
void clock_condition_init(pthread_cond_t *condition);
void clock_condition_wait(pthread_cond_t *condition, pthread_mutex_t *lock, double seconds);

// A thread that calls look(argument) a few times a second, with its lock held, until it is stopped.
typedef struct Ticker {
    pthread_t thread;
    pthread_mutex_t lock; // for whatever `look` shares with others
    pthread_cond_t stopped;
    bool over;
    void (*look)(void *argument);
    void *argument;
} Ticker;
bool ticker_start(Ticker *ticker, void (*look)(void *argument), void *argument); // false: no thread can be made
void ticker_stop(Ticker *ticker); // returns when it has ended; not by `look`

#endif
