// A thread that looks whether this process's call has returned in time.
#include "base/deadline.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"

static const double LONGEST_STEP = 0.5; // seconds between two looks, at most

struct Deadline {
    Ticker ticker;
    int rank; // of this process
    double seconds;
    const char *what;
    Timer timer;
};

// All ranks but the one that is missing come here at the same time; the lowest speaks, and the launcher ends the rest.
static double limit(const Deadline *deadline) {
    const double APART = 3, MOST = 15;
    double later = APART * deadline->rank;
    return deadline->seconds + (later < MOST ? later : MOST);
}

static void give_up(const Deadline *deadline) {
    Error err = {0};
    error_set(
        &err,
        "the ranks have not all come to their %s within %.3g s, as rank %d has (process %ld): another process has "
        "been stopped or cannot be reached; see what holds it, or allow more time with --timeout",
        deadline->what, deadline->seconds, deadline->rank, (long)getpid());
    error_print(&err);
    _exit(EXIT_RUNTIME);
}

static void look(void *pointer) {
    Deadline *deadline = pointer;
    if (isinf(deadline->seconds)) return;
    if (timer_elapsed(&deadline->timer) >= limit(deadline)) give_up(deadline);
}

Deadline *deadline_start(int rank, Error *err) {
    Deadline *deadline = calloc(1, sizeof *deadline);
    if (deadline != NULL) *deadline = (Deadline){.rank = rank, .seconds = HUGE_VAL};
    if (deadline != NULL && ticker_start(&deadline->ticker, look, deadline)) return deadline;
    free(deadline);
    error_set(err, "no memory or no thread to watch over the start of ranks; see ulimit -u and -v");
    return NULL;
}

void deadline_set(Deadline *deadline, double seconds, const char *what) {
    pthread_mutex_lock(&deadline->ticker.lock);
    deadline->seconds = seconds;
    deadline->what = what;
    deadline->timer = timer_start(LONGEST_STEP);
    pthread_mutex_unlock(&deadline->ticker.lock);
}

void deadline_stop(Deadline *deadline) {
    ticker_stop(&deadline->ticker);
    free(deadline);
}
