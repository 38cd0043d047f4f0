// Waiting for another rank, and giving up.
//
// A rank that waits too long is seldom waiting for the culprit: it waits for one that waits for one that hangs.
// Following these leads to one that does not wait (it is slow, or hangs, or has left), or does not look up from its
// wait (its process was stopped), or round in a circle (the program is wrong). That one is named. A chain read while
// its ranks run may be one that never was; but not one in which no count of signs of life changes for the time of the
// time-out.
//
// A failing rank's line is printed as it is, with no rank before it: what fails on every rank (a bad file, say) must
// read the same whichever comes first. Where the rank matters, the message itself names it.
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "comm/engine.h"

CommPlace comm_place_here(void) {
    CommPlace place;
    char host[60] = "";
    gethostname(host, sizeof host - 1);
    snprintf(place.text, sizeof place.text, "process %ld on %.48s", (long)getpid(), host);
    return place;
}

double comm_look_interval(double timeout) {
    const double LONGEST = 5;
    return timeout / 8 < LONGEST ? timeout / 8 : LONGEST;
}

bool comm_timer_look_due(const Timer *timer, double timeout) {
    return timer->waited - timer->looked >= comm_look_interval(timeout) || timer->waited >= timeout;
}

void comm_timer_saw(Timer *timer, uint64_t state) {
    if (state != timer->seen) timer->waited = 0;
    timer->looked = timer->waited;
    timer->seen = state;
}

static uint64_t mix(uint64_t hash, uint64_t word) { // FNV-1a, a word at a time
    return (hash ^ word) * UINT64_C(0x100000001b3);
}

uint64_t comm_chain_state(CommStatus (*status)(const void *world, int rank), const void *world, int world_size,
                          int waiting) {
    uint64_t state = UINT64_C(0xcbf29ce484222325);
    int rank = waiting;
    for (int hops = 0; rank >= 0 && hops <= world_size; hops++) { // round in a circle, if it is one
        CommStatus its = status(world, rank);
        state = mix(mix(state, (uint64_t)rank), (uint64_t)its.beats);
        rank = its.waits_for;
    }
    return mix(state, (uint64_t)rank);
}

static const char *or_unsaid(const char *what) { return what != NULL && *what != '\0' ? what : "it did not say what"; }

void comm_silence_error(Error *err, CommStatus (*status)(const void *world, int rank), const void *world,
                        int world_size, int waiting, double seconds) {
    int witness = waiting, silent = waiting, hops = 0;
    CommStatus its = status(world, waiting), witness_was = its;
    bool in_vain = false; // one that has finished waits only for others to finish, and only these for it
    while (its.waits_for >= 0 && !its.stopped && !in_vain && hops++ <= world_size) {
        witness = silent;
        witness_was = its;
        silent = its.waits_for;
        its = status(world, silent);
        in_vain = its.finished && !witness_was.finished;
    }
    char who[200], where[200];
    snprintf(who, sizeof who, its.place != NULL ? "rank %d (%s)" : "rank %d", silent, its.place);
    snprintf(where, sizeof where, "%s (doing: %s)", witness_was.operation, or_unsaid(witness_was.doing));
    if (in_vain) {
        error_set(err, "%s has finished, but rank %d waits for it in %s: a programming error", who, witness, where);
    } else if (its.waits_for >= 0 && !its.stopped) {
        error_set(
            err,
            "the ranks have waited for each other for %.3g s: rank %d for %s in %s, and so on: a programming error",
            seconds, witness, who, where);
    } else {
        error_set(err,
                  "%s has not answered for %.3g s (doing: %s): rank %d waits for it in %s; see what holds it, or allow "
                  "more time with --timeout",
                  who, seconds, or_unsaid(its.doing), witness, where);
    }
}

void comm_give_up(Comm *comm, const char *format, ...) {
    Error err = {.exit_code = EXIT_RUNTIME};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(err.message, sizeof err.message, format, arguments);
    va_end(arguments);
    comm_fail(comm, &err);
}

void comm_sizes_error(Comm *comm, int from, int to, size_t sent, size_t expected) {
    comm_give_up(comm, "rank %d sends %zu bytes to rank %d, which expects %zu: a programming error", from, sent, to,
                 expected);
}
