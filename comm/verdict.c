// The end of all ranks of engine `sockets`, with one line.
//
// A rank that cannot go on reports its line to the judge, the lowest rank that is still there. The first report is the
// verdict: the judge tells it to all, they all end with its code, and it is printed once on each machine. So ranks that
// fail together do not all speak, and what fails because another has failed (its connection ends) comes too late to be
// heard. A judge that does not answer within moments is passed over.
#include "comm/verdict.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const double JUDGES_TIME = 2, APART = 0.25, FAREWELL = 2, DRAIN = 1; // seconds

static void decide(Wire *wire, const Error *err, int judge) {
    if (err != &wire->error) wire->error = *err;
    wire->failure = DECIDED;
    wire->judge = judge;
    wire_wake(wire);
}

static Frame frame_of(FrameKind kind, const Error *err) {
    return (Frame){
        .kind = kind, .value = err->exit_code ? err->exit_code : EXIT_RUNTIME, .bytes = strlen(err->message)};
}

void verdict_report(Wire *wire, const Error *err) {
    if (wire->failure != SOUND) return;
    int judge = 0;
    while (judge != wire->rank && wire->peer[judge].mute) judge++;
    if (judge == wire->rank) {
        decide(wire, err, judge);
        return;
    }
    if (err != &wire->error) wire->error = *err;
    wire->failure = REPORTED;
    wire->judge = judge;
    wire->reported_at = comm_seconds();
    Frame report = frame_of(FRAME_REPORT, err);
    wire_tell(wire, judge, &report, err->message);
    wire_wake(wire);
}

static void lost(Wire *wire, Peer *peer, const char *why) {
    int rank = (int)(peer - wire->peer);
    peer->lost = true;
    pthread_cond_signal(&wire->changed);
    if (wire->failure == REPORTED && wire->judge == rank) { // the same to the next one
        wire->failure = SOUND;
        verdict_report(wire, &wire->error);
        return;
    }
    Error err;
    error_set(&err, "rank %d (%s) has gone: its connection to rank %d has ended (%s); it was killed, or has crashed",
              rank, peer->place, wire->rank, why);
    verdict_report(wire, &err);
}

static void heard(Wire *wire, Peer *peer) {
    bool verdict = peer->frame.kind == FRAME_VERDICT; // which counts more than what I have not carried out yet
    if (wire->failure == DECIDED && !verdict) return;
    Error err;
    error_set(&err, "%s", peer->text);
    err.exit_code = peer->frame.value;
    decide(wire, &err, verdict ? (int)(peer - wire->peer) : wire->rank);
}

// ---- carrying it out ----------------------------------------------------------------------------------------------

static const char *host_of(const Wire *wire, int rank) { return wire->peer[rank].link.host; }

// The judge speaks for its machine; on any other, the first rank does.
static bool speaks(const Wire *wire) {
    if (wire->judge == wire->rank) return true;
    if (strcmp(host_of(wire, wire->judge), host_of(wire, wire->rank)) == 0) return false;
    for (int rank = 0; rank < wire->rank; rank++)
        if (!wire->peer[rank].lost && strcmp(host_of(wire, rank), host_of(wire, wire->rank)) == 0) return false;
    return true;
}

// Before everything that waits to be sent.
static void tell_first(Wire *wire, Peer *peer, const Frame *frame, const char *text) {
    Parcel *before = peer->first, *last_before = peer->last;
    peer->first = peer->last = NULL;
    wire_tell(wire, (int)(peer - wire->peer), frame, text);
    if (peer->first == NULL || before == NULL) { // mute, or nothing waited
        if (peer->first == NULL) peer->first = before, peer->last = last_before;
        return;
    }
    peer->first->next = before;
    peer->last = last_before;
}

static int poll_peers(const Wire *wire, struct pollfd *polled, short events, int milliseconds) { // how many were open
    int open = 0;
    for (int rank = 0; rank < wire->size; rank++) {
        polled[rank] = (struct pollfd){wire->peer[rank].link.socket, events, 0};
        open += wire->peer[rank].link.socket >= 0;
    }
    if (open > 0) poll(polled, (nfds_t)wire->size, milliseconds);
    return open;
}

// A connection that is closed with bytes unread takes along what the other side has not read yet. So the judge stays
// until the others have gone.
static void wait_for_their_end(Wire *wire, struct pollfd *polled) {
    char scrap[4096];
    double until = comm_seconds() + DRAIN;
    for (int rank = 0; rank < wire->size; rank++)
        if (wire->peer[rank].link.socket >= 0) shutdown(wire->peer[rank].link.socket, SHUT_WR);
    while (comm_seconds() < until && poll_peers(wire, polled, POLLIN, 20) > 0) {
        for (int rank = 0; rank < wire->size; rank++) {
            if (polled[rank].revents == 0 || recv(polled[rank].fd, scrap, sizeof scrap, MSG_DONTWAIT) > 0) continue;
            close(polled[rank].fd);
            wire->peer[rank].link.socket = -1;
        }
    }
}

static bool verdict_waits(Wire *wire) {
    bool waits = false;
    pthread_mutex_lock(&wire->lock);
    for (int rank = 0; rank < wire->size; rank++) {
        Peer *peer = &wire->peer[rank];
        bool begun = peer->going != NULL, verdict = begun && peer->going->frame.kind == FRAME_VERDICT;
        bool next = peer->first != NULL && peer->first->frame.kind == FRAME_VERDICT;
        if (!peer->mute && (verdict || next)) waits = true;
    }
    pthread_mutex_unlock(&wire->lock);
    return waits;
}

static void pronounce(Wire *wire) {
    struct pollfd *polled = calloc((size_t)wire->size, sizeof *polled);
    if (polled == NULL) return;
    Frame verdict = frame_of(FRAME_VERDICT, &wire->error);
    pthread_mutex_lock(&wire->lock);
    for (int rank = 0; rank < wire->size; rank++) tell_first(wire, &wire->peer[rank], &verdict, wire->error.message);
    pthread_mutex_unlock(&wire->lock);
    for (double until = comm_seconds() + FAREWELL; verdict_waits(wire) && comm_seconds() < until;) {
        poll_peers(wire, polled, POLLOUT, 20);
        for (int rank = 0; rank < wire->size; rank++) {
            if (!(polled[rank].revents & (POLLOUT | POLLERR | POLLHUP))) continue;
            wire->peer[rank].blocked = false;
            wire_write(wire, &wire->peer[rank]);
        }
    }
    wait_for_their_end(wire, polled);
    free(polled);
}

// Carries out what was decided, and then does not return.
static void failing(Wire *wire) {
    pthread_mutex_lock(&wire->lock);
    double patience = JUDGES_TIME + APART * wire->rank; // so that not all lose it at once
    if (wire->failure == REPORTED && comm_seconds() - wire->reported_at > patience)
        decide(wire, &wire->error, wire->rank);
    bool decided = wire->failure == DECIDED;
    pthread_mutex_unlock(&wire->lock);
    if (!decided) return;
    if (speaks(wire)) comm_print_failure(&wire->error);
    if (wire->judge == wire->rank) pronounce(wire);
    _exit(wire->error.exit_code ? wire->error.exit_code : EXIT_RUNTIME);
}

const WireEvents verdict_events = {.lost = lost, .heard = heard, .failing = failing};
