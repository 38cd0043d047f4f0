// Engine `sockets`: ranks are processes, on one machine or many, that speak TCP; nothing but the operating system is
// needed. comm/rendezvous.c brings them together, comm/wire.c moves messages, comm/verdict.c ends all ranks together,
// comm/pairwise.c makes collectives of messages. Here is the rest: groups, and waiting.
//
// There is no secret and no encryption: whoever can reach the ports that the ranks listen on while they start could
// join in. The network must be one that is trusted.
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/pulse.h"
#include "comm/pairwise.h"
#include "comm/verdict.h"
#include "comm/wire.h"

typedef struct Process { // my world
    Wire *wire;
    int next_group;
} Process;

typedef struct SocketsComm {
    Comm base;
    Process *process;
    int group;    // its number
    int member[]; // (size): ranks of the world
} SocketsComm;

enum { EXCHANGES, COLLECTIVES }; // streams

static SocketsComm *sockets(Comm *comm) { return (SocketsComm *)comm; }
static Wire *wire_of(Comm *comm) { return sockets(comm)->process->wire; }

// ---- failing ------------------------------------------------------------------------------------------------------

static void sockets_doing(Comm *comm, const char *what) {
    Wire *wire = wire_of(comm);
    pthread_mutex_lock(&wire->lock);
    wire->doing = what;
    pthread_mutex_unlock(&wire->lock);
}

static const char *sockets_said(Comm *comm) {
    Wire *wire = wire_of(comm);
    pthread_mutex_lock(&wire->lock);
    const char *what = wire->doing;
    pthread_mutex_unlock(&wire->lock);
    return what;
}

static void end_all(Comm *comm, const Error *err) __attribute__((noreturn));
static void end_all(Comm *comm, const Error *err) {
    Wire *wire = wire_of(comm);
    pthread_mutex_lock(&wire->lock);
    verdict_report(wire, err);
    pthread_mutex_unlock(&wire->lock);
    for (;;) pause(); // the postman ends the process
}

static CommStanding standing(const void *pointer, int rank) {
    const Wire *wire = pointer;
    const Peer *peer = &wire->peer[rank];
    CommStanding its = {.awaits = wire->awaits,
                        .beats = wire->beats,
                        .operation = wire->operation,
                        .doing = wire->doing,
                        .place = peer->place};
    if (rank == wire->rank) return its;
    its.finished = peer->finished;
    its.awaits = peer->finished ? COMM_FINISHED : peer->awaits;
    its.asleep = its.awaits >= 0 && !peer->answered;
    its.beats = peer->beats;
    its.operation = peer->operation;
    its.doing = peer->answered ? peer->doing : NULL;
    return its;
}

static int64_t sockets_moved(Comm *comm) {
    Wire *wire = wire_of(comm);
    pthread_mutex_lock(&wire->lock);
    int64_t sum = wire->beats;
    for (int rank = 0; rank < wire->size; rank++) sum += wire->peer[rank].beats;
    pthread_mutex_unlock(&wire->lock);
    return sum;
}

static void beat(void *pointer) {
    Wire *wire = pointer;
    pthread_mutex_lock(&wire->lock);
    wire->beats++;
    pthread_mutex_unlock(&wire->lock);
}

// ---- waiting ------------------------------------------------------------------------------------------------------

static const double LONGEST_SLEEP = 0.25; // seconds

static void sleep_until_changed(Wire *wire, double seconds) {
    double until = comm_seconds() + (seconds < LONGEST_SLEEP ? seconds : LONGEST_SLEEP);
    struct timespec deadline = {(time_t)until, (long)(1e9 * (until - (double)(time_t)until))};
    pthread_cond_timedwait(&wire->changed, &wire->lock, &deadline);
}

static bool all_have_answered(const Wire *wire) {
    for (int rank = 0; rank < wire->size; rank++)
        if (!wire->peer[rank].answered && !wire->peer[rank].mute) return false;
    return true;
}

// Asks every rank where it stands, and gives them until the next look to say so, or until `message` is done. The
// postmen answer, whatever their ranks are busy with.
static void ask_all(Wire *wire, const Message *message, CommPatience *patience) {
    const Frame query = {.kind = FRAME_QUERY};
    for (int rank = 0; rank < wire->size; rank++) {
        wire->peer[rank].answered = false;
        wire_tell(wire, rank, &query, NULL);
    }
    double longest = comm_look_interval(wire->timeout);
    CommPatience asking = comm_patience(LONGEST_SLEEP);
    while (!message->done && !all_have_answered(wire) && comm_patience_spent(&asking) < longest)
        sleep_until_changed(wire, longest);
    comm_patience_saw(patience, comm_chain_state(standing, wire, wire->size, wire->rank));
    patience->waited += asking.waited;
}

static void wait_until_done(Comm *comm, const Message *message) {
    Wire *wire = wire_of(comm);
    wire->operation = comm->operation;
    wire->awaits = message->peer;
    CommPatience patience = comm_patience(LONGEST_SLEEP);
    while (!message->done) {
        comm_patience_spent(&patience);
        bool in_vain = wire->peer[message->peer].finished && !message->under_way;
        if (!in_vain && comm_patience_look_due(&patience, wire->timeout)) ask_all(wire, message, &patience);
        double left = wire->timeout - patience.waited, look = comm_look_interval(wire->timeout);
        if ((left <= 0 || in_vain) && !message->done) {
            Error err;
            comm_silence_error(&err, standing, wire, wire->size, wire->rank, patience.waited);
            pthread_mutex_unlock(&wire->lock);
            end_all(comm, &err);
        }
        if (!message->done) sleep_until_changed(wire, left < look ? left : look);
    }
    wire->awaits = COMM_WORKING;
}

static void *begin(Comm *comm, bool receives, void *data, size_t bytes, int peer, int stream) {
    SocketsComm *c = sockets(comm);
    Message *message =
        wire_post(c->process->wire, receives, data, bytes, c->member[peer], (uint32_t)c->group, (uint32_t)stream);
    if (message == NULL) comm_give_up(comm, "out of memory for messages between ranks");
    return message;
}

static void *message_begin(Comm *comm, bool receives, void *data, size_t bytes, int peer) {
    return begin(comm, receives, data, bytes, peer, COLLECTIVES);
}

static void message_end(Comm *comm, void *pointer) {
    Message *message = pointer;
    Wire *wire = wire_of(comm);
    pthread_mutex_lock(&wire->lock);
    if (!message->done) wait_until_done(comm, message);
    pthread_mutex_unlock(&wire->lock);
    if (message->sent != message->bytes) // of a receive
        comm_sizes_error(comm, message->peer, wire->rank, message->sent, message->bytes);
    free(message);
    pulse_beat();
}

static CommRequest sockets_exchange_begin(Comm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                          size_t receive_bytes, int from) {
    CommRequest request = {NULL, NULL};
    if (receive_bytes > 0) request.receive = begin(comm, true, receive, receive_bytes, from, EXCHANGES);
    if (send_bytes > 0) request.send = begin(comm, false, (void *)(uintptr_t)send, send_bytes, to, EXCHANGES);
    return request;
}

static void sockets_wait(Comm *comm, const CommRequest *request) {
    if (request->receive != NULL) message_end(comm, request->receive);
    if (request->send != NULL) message_end(comm, request->send);
}

// ---- groups -------------------------------------------------------------------------------------------------------

static const CommOperations sockets_operations;

static SocketsComm *new_comm(Process *process, int rank, int size, int group) { // NULL: out of memory
    SocketsComm *c = calloc(1, sizeof *c + (size_t)size * sizeof c->member[0]);
    if (c == NULL) return NULL;
    c->base = (Comm){.operations = &sockets_operations,
                     .rank = rank,
                     .world_rank = rank,
                     .size = size,
                     .timeout = process->wire->timeout,
                     .operation = "start"};
    c->process = process;
    c->group = group;
    return c;
}

static Comm *sockets_split(Comm *comm, int color, int key) {
    SocketsComm *parent = sockets(comm);
    PairwiseSplit split = pairwise_split(comm, color, key, &parent->process->next_group);
    SocketsComm *made = new_comm(parent->process, split.rank, split.size, split.number);
    if (made == NULL) comm_give_up(comm, "out of memory for a group of %d ranks", split.size);
    for (int i = 0; i < split.size; i++) made->member[i] = parent->member[split.members[i]];
    free(split.members);
    return &made->base;
}

static void sockets_release(Comm *comm) { free(comm); }

static const CommOperations sockets_operations = {
    .split = sockets_split,
    .release = sockets_release,
    .doing = sockets_doing,
    .said = sockets_said,
    .moved = sockets_moved,
    .end_all = end_all,
    .barrier = pairwise_barrier,
    .broadcast = pairwise_broadcast,
    .all_reduce_sum = pairwise_all_reduce_sum,
    .reduce_scatter_sum = pairwise_reduce_scatter_sum,
    .all_gather = pairwise_all_gather,
    .exchange_begin = sockets_exchange_begin,
    .wait = sockets_wait,
    .message_begin = message_begin,
    .message_end = message_end,
};

// ---- processes ----------------------------------------------------------------------------------------------------

static bool run_rank(Wire *wire, void (*rank_main)(Comm *, void *), void *argument, Error *err) {
    Process process = {.wire = wire, .next_group = 1};
    SocketsComm *world = new_comm(&process, wire->rank, wire->size, 0);
    if (world == NULL) return error_set(err, "out of memory for %d ranks", wire->size);
    for (int rank = 0; rank < wire->size; rank++) world->member[rank] = rank;
    pulse_connect(beat, wire);
    rank_main(&world->base, argument);
    pulse_connect(NULL, NULL);
    free(world);
    return true;
}

bool comm_run_sockets(const CommLaunch *launch, void (*rank_main)(Comm *, void *), void *argument, Error *err) {
    MeetingPlace place;
    if (!comm_meeting_place(&place, launch->ranks, err)) return false;
    Link *links = calloc((size_t)place.size, sizeof *links);
    if (links == NULL) return error_set(err, "out of memory for %d ranks", place.size);
    Wire *wire = NULL;
    if (rendezvous(&place, launch->start_seconds, links, err))
        wire = wire_start(place.rank, place.size, launch->timeout_seconds, links, &verdict_events, err);
    free(links);
    if (wire == NULL) return false;
    bool ok = run_rank(wire, rank_main, argument, err);
    wire_finish(wire);
    return ok;
}
