// Threads that take the tokens stretch by stretch, until one is found that the vocabulary lacks.
#include "dataloader/token_check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

enum { STRETCH = 1 << 20 }; // tokens that a thread takes at a time

// What the threads of one call share.
typedef struct Work {
    const TokenCheck *check;
    double until;
    _Atomic int64_t next;   // the first token that nobody has taken
    _Atomic int64_t beyond; // the first token found that is beyond the vocabulary
} Work;

typedef struct Worker {
    Work *work;
    pthread_t thread;
    bool ok;
    Error err;
} Worker;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void lower(_Atomic int64_t *least, int64_t place) {
    int64_t known = atomic_load(least);
    while (place < known && !atomic_compare_exchange_weak(least, &known, place)) continue;
}

// A stretch that was taken is looked at to its end, so that what lies before `next` is known when all have returned.
static void *look(void *argument) {
    Worker *worker = argument;
    Work *work = worker->work;
    const TokenCheck *check = work->check;
    do {
        int64_t first = atomic_fetch_add(&work->next, STRETCH), left = check->end - first, place;
        if (left <= 0 || first > atomic_load(&work->beyond)) break;
        int64_t count = left < STRETCH ? left : STRETCH;
        worker->ok = tokens_find_beyond(check->source, first, count, check->vocabulary, &place, &worker->err);
        if (worker->ok && place < first + count) lower(&work->beyond, place);
    } while (worker->ok && now() < work->until);
    return NULL;
}

TokenCheck token_check_begin(const TokenSource *source, int64_t vocabulary, int part, int parts) {
    int64_t count = tokens_always_below(source, vocabulary) ? 0 : tokens_count(source);
    int64_t each = count / parts, more = count % parts; // the first `more` parts have one token more
    int64_t begin = each * part + (part < more ? part : more);
    return (TokenCheck){source, vocabulary, begin, begin + each + (part < more)};
}

bool token_check_go_on(TokenCheck *check, int threads, double seconds, Error *err) {
    int64_t stretches = (check->end - check->next + STRETCH - 1) / STRETCH;
    if (stretches == 0) return true;
    if (threads > stretches) threads = (int)stretches;
    Worker *worker = calloc((size_t)threads, sizeof *worker);
    if (worker == NULL) return error_set(err, "out of memory while checking the data");
    Work work = {check, now() + seconds, check->next, check->end};
    for (int i = 0; i < threads; i++) worker[i] = (Worker){.work = &work, .ok = true};
    int made = 1; // the first is this thread; fewer than wanted do as well
    while (made < threads && pthread_create(&worker[made].thread, NULL, look, &worker[made]) == 0) made++;
    look(&worker[0]);
    bool ok = true;
    for (int i = 0; i < made; i++) {
        if (i > 0) pthread_join(worker[i].thread, NULL);
        if (ok && !worker[i].ok) *err = worker[i].err;
        ok = ok && worker[i].ok;
    }
    free(worker);
    int64_t beyond = atomic_load(&work.beyond), taken = atomic_load(&work.next);
    int32_t token;
    if (ok && beyond < check->end) return tokens_read(check->source, beyond, 1, check->vocabulary, &token, err);
    check->next = taken < check->end ? taken : check->end;
    return ok;
}
