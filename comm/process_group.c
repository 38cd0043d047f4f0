#include "comm/process_group.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

ProcessGroup *process_group_new(const CommOperations *operations, void *world, double timeout, int *next_number,
                                int rank, int size) {
    ProcessGroup *group = calloc(1, sizeof *group + (size_t)size * sizeof group->member[0]);
    if (group == NULL) return NULL;
    group->base = (Comm){.operations = operations,
                         .rank = rank,
                         .world_rank = rank,
                         .size = size,
                         .next_number = next_number,
                         .timeout = timeout,
                         .operation = "start"};
    group->world = world;
    for (int i = 0; i < size; i++) group->member[i] = i;
    return group;
}

Comm *process_group_of(Comm *comm, const int *members, int size, int rank, int number) {
    ProcessGroup *parent = process_group(comm);
    ProcessGroup *made =
        process_group_new(comm->operations, parent->world, comm->timeout, comm->next_number, rank, size);
    if (made == NULL) comm_give_up(comm, "out of memory for a group of %d ranks", size);
    made->number = number;
    for (int i = 0; i < size; i++) made->member[i] = parent->member[members[i]];
    return &made->base;
}

static const double LONGEST_STEP = 0.5; // seconds between two looks, at most

struct Deadline {
    Ticker ticker;
    double seconds;
    const char *what;
    Timer timer;
};

// All ranks but the one that is missing come here at the same time; the lowest speaks, and the launcher ends the rest.
static double limit_of_rank(double seconds) {
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
    error_print(&err);
    _exit(EXIT_RUNTIME);
}

static void look(void *pointer) {
    Deadline *deadline = pointer;
    if (isinf(deadline->seconds)) return;
    if (timer_elapsed(&deadline->timer) >= limit_of_rank(deadline->seconds)) give_up(deadline);
}

Deadline *deadline_start(Error *err) {
    Deadline *deadline = calloc(1, sizeof *deadline);
    if (deadline != NULL) deadline->seconds = HUGE_VAL;
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
