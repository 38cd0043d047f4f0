// Waiting for another rank, and giving up.
//
// A rank that waits too long is seldom waiting for the culprit: it waits for one that waits for one that hangs. Each
// engine keeps, for every rank it can see, whom it waits for; following these from rank to rank leads to one that does
// not wait (it is slow, or hangs, or has left), or does not look up from its wait (its process was stopped), or round
// in a circle (the program is wrong). That one is named.
//
// Slow is not silent: a rank at long work of its own gives signs of life (base/pulse.h), which are counted, and so is
// every wait that ends. The time-out is for a chain of waiting ranks in which no count changes. A chain read while its
// ranks run may be one that never was; but not one that stands still for so long.
//
// A failing rank's line is printed as it is, with no rank before it: what fails on every rank (a bad file, say) must
// read the same whichever comes first. Where the rank matters, the message itself names it.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "comm/engine.h"

CommPatience comm_patience(double longest_step) {
    CommPatience patience = {.last = clock_seconds(), .longest_step = longest_step};
    return patience;
}

double comm_patience_spent(CommPatience *patience) {
    double now = clock_seconds(), step = now - patience->last;
    patience->waited += step < patience->longest_step ? step : patience->longest_step;
    patience->last = now;
    return patience->waited;
}

double comm_look_interval(double timeout) {
    const double LONGEST = 5;
    return timeout / 8 < LONGEST ? timeout / 8 : LONGEST;
}

bool comm_patience_look_due(const CommPatience *patience, double timeout) {
    return patience->waited - patience->looked >= comm_look_interval(timeout) || patience->waited >= timeout;
}

void comm_patience_saw(CommPatience *patience, uint64_t state) {
    if (state != patience->seen) patience->waited = 0;
    patience->looked = patience->waited;
    patience->seen = state;
}

static uint64_t mix(uint64_t hash, uint64_t word) { // FNV-1a, a word at a time
    return (hash ^ word) * UINT64_C(0x100000001b3);
}

uint64_t comm_chain_state(CommStanding (*standing)(const void *world, int rank), const void *world, int world_size,
                          int waiting) {
    uint64_t state = UINT64_C(0xcbf29ce484222325);
    int rank = waiting;
    for (int hops = 0; rank >= 0 && hops <= world_size; hops++) { // round in a circle, if it is one
        CommStanding its = standing(world, rank);
        state = mix(mix(state, (uint64_t)rank), (uint64_t)its.beats);
        rank = its.awaits;
    }
    return mix(state, (uint64_t)rank);
}

static const char *or_unsaid(const char *what) { return what != NULL && *what != '\0' ? what : "it did not say what"; }

void comm_silence_error(Error *err, CommStanding (*standing)(const void *world, int rank), const void *world,
                        int world_size, int waiting, double seconds) {
    int witness = waiting, silent = waiting, hops = 0;
    CommStanding its = standing(world, waiting), witness_was = its;
    bool in_vain = false; // one that has finished waits only for others to finish, and only these for it
    while (its.awaits >= 0 && !its.asleep && !in_vain && hops++ <= world_size) {
        witness = silent;
        witness_was = its;
        silent = its.awaits;
        its = standing(world, silent);
        in_vain = its.finished && !witness_was.finished;
    }
    char who[200], where[200];
    snprintf(who, sizeof who, its.place != NULL ? "rank %d (%s)" : "rank %d", silent, its.place);
    snprintf(where, sizeof where, "%s (doing: %s)", witness_was.operation, or_unsaid(witness_was.doing));
    if (in_vain) {
        error_set(err, "%s has finished, but rank %d waits for it in %s: a programming error", who, witness, where);
    } else if (its.awaits >= 0 && !its.asleep) {
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
