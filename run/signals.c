// Everything here is read or written by signal handlers: lock-free atomics, and calls that POSIX allows there.
#include "run/signals.h"

#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const int stops[] = {SIGTERM, SIGINT, SIGHUP}; // by weight
enum { STOPS = sizeof stops / sizeof *stops };
static const int64_t AGAIN = INT64_C(2000000000); // nanoseconds

static atomic_bool requests;
static _Atomic(const char *) answer;
static _Atomic int64_t first[STOPS]; // when each first came to this process; 0: not yet
static atomic_int elsewhere;
static atomic_bool save;

static int64_t nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec + 1;
}

static void on_stop(int number) {
    int i = 0;
    while (stops[i] != number) i++;
    if (!atomic_load(&requests)) _exit(128 + number);
    int64_t now = nanoseconds(), none = 0;
    if (!atomic_compare_exchange_strong(&first[i], &none, now)) {
        if (now - none >= AGAIN) _exit(128 + number);
        return;
    }
    const char *line = atomic_exchange(&answer, NULL);
    ssize_t written = line != NULL ? write(STDERR_FILENO, line, strlen(line)) : 0;
    (void)written; // nobody to tell
}

static void on_save(int number) {
    (void)number;
    atomic_store(&save, true);
}

// Without SA_RESTART: a run that waits to print a line, since nobody reads its full pipe (mpirun reads none while it
// ends its ranks), is to save instead.
static void handle(int number, void (*handler)(int)) {
    struct sigaction before, action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    if (sigaction(number, NULL, &before) == 0 && before.sa_handler == SIG_IGN) return;
    sigaction(number, &action, NULL);
}

void signals_install(void) {
    for (int i = 0; i < STOPS; i++) handle(stops[i], on_stop);
    handle(SIGUSR1, on_save);
}

void signals_are_requests(const char *line) {
    atomic_store(&answer, line);
    atomic_store(&requests, true);
}

void signals_end_at_once(void) { atomic_store(&requests, false); }

int signals_stop(void) {
    for (int i = 0; i < STOPS; i++)
        if (atomic_load(&first[i]) != 0 || atomic_load(&elsewhere) == stops[i]) return stops[i];
    return 0;
}

bool signals_take_save(void) { return atomic_exchange(&save, false); }
void signals_stop_elsewhere(int number) { atomic_store(&elsewhere, number); }
