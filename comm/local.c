// Engine `local`: ranks are threads of this process.
//
// Threads see each other's memory, so nothing is sent. A message is copied once, straight from the sender's buffer to
// the receiver's, by whichever of the two comes second: the first only leaves word of its buffer and goes on working.
// Collectives are made of messages (comm/exchanges.c), but for the large sum: there every rank publishes its pointer,
// and after a barrier each sums its segment by reading the others' directly.
//
// A group has one lock. It guards counters and messages, never a copy or a sum, so it is held for moments only.
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/pulse.h"
#include "base/threads.h"
#include "comm/local.h"

typedef struct Status { // of one rank of the world, for whoever has to report a time-out
    _Atomic(const char *) doing, operation;
    atomic_int awaited; // the rank it waits for, or COMM_WORKING, or COMM_FINISHED
    atomic_llong beats; // signs of life
} Status;

typedef struct World { // one comm_run
    int size;
    double timeout;
    atomic_flag failed;
    Status *status;
} World;

typedef struct Channel { // messages of one rank for another, in the order they came; all sends, or all receives
    Message *first, *last;
} Channel;

typedef struct Member {
    int world_rank;
    int64_t arrivals;            // at barriers
    const void *published;       // during a collective
    pthread_cond_t message_done; // one of its messages is done
} Member;

typedef struct Group { // shared by its ranks
    World *world;
    int size;
    pthread_mutex_t lock;
    pthread_cond_t barrier_opened;
    int64_t barriers; // opened so far
    int arrived;      // at the next
    int users;        // ranks that have not released the group
    Member *member;   // (size)
    Channel *channel; // (size, size): from, to
} Group;

typedef struct LocalComm { // one rank's view of a group
    Comm base;
    Group *group;
    Message *spare; // to use again
} LocalComm;

static LocalComm *local(Comm *comm) { return (LocalComm *)comm; }
static Status *status_of(const LocalComm *c) {
    return &c->group->world->status[c->group->member[c->base.rank].world_rank];
}

// ---- failing ------------------------------------------------------------------------------------------------------

static void local_doing(Comm *comm, const char *what, bool slowly) {
    (void)slowly; // its signs of life are seen
    atomic_store(&status_of(local(comm))->doing, what);
}
static const char *local_said(Comm *comm) { return atomic_load(&status_of(local(comm))->doing); }

static void end_all(Comm *comm, const Error *err) __attribute__((noreturn));

// The first rank to fail speaks for all. _exit, because exit handlers would run while the other threads still work.
static void end_all(Comm *comm, const Error *err) {
    if (!atomic_flag_test_and_set(&local(comm)->group->world->failed)) {
        error_print(err);
        _exit(err->exit_code ? err->exit_code : EXIT_RUNTIME);
    }
    for (;;) pause();
}

static CommStatus rank_status(const void *pointer, int rank) {
    Status *status = &((const World *)pointer)->status[rank];
    int waits_for = atomic_load(&status->awaited);
    return (CommStatus){.waits_for = waits_for,
                        .finished = waits_for == COMM_FINISHED,
                        .beats = atomic_load(&status->beats),
                        .operation = atomic_load(&status->operation),
                        .doing = atomic_load(&status->doing)};
}

static int64_t local_moved(Comm *comm) {
    World *world = local(comm)->group->world;
    int64_t sum = 0;
    for (int rank = 0; rank < world->size; rank++) sum += atomic_load(&world->status[rank].beats);
    return sum;
}

static void fail_for_silence(LocalComm *c, double seconds) {
    const World *world = c->group->world;
    Error err;
    comm_silence_error(&err, rank_status, world, world->size, c->group->member[c->base.rank].world_rank, seconds);
    end_all(&c->base, &err);
}

// ---- waiting ------------------------------------------------------------------------------------------------------

static const double LONGEST_SLEEP = 0.25; // seconds between two looks at the clock

// Sleeps until `changed` is signalled or a short time has passed; the caller looks again whether what it waits for is
// there, and calls stop_waiting when it is. The group's lock is held before and after.
static void wait_a_while(LocalComm *c, pthread_cond_t *changed, Timer *timer, int awaited) {
    Status *status = status_of(c);
    World *world = c->group->world;
    int me = c->group->member[c->base.rank].world_rank, awaited_in_world = c->group->member[awaited].world_rank;
    atomic_store(&status->operation, c->base.operation);
    atomic_store(&status->awaited, awaited_in_world);
    timer_elapsed(timer);
    if (comm_timer_look_due(timer, world->timeout))
        comm_timer_saw(timer, comm_chain_state(rank_status, world, world->size, me));
    bool in_vain = atomic_load(&world->status[awaited_in_world].awaited) == COMM_FINISHED;
    double left = world->timeout - timer->waited, sleep = comm_look_interval(world->timeout);
    if (left <= 0 || in_vain) fail_for_silence(c, timer->waited);
    if (sleep > LONGEST_SLEEP) sleep = LONGEST_SLEEP;
    clock_condition_wait(changed, &c->group->lock, left < sleep ? left : sleep);
}

static void stop_waiting(LocalComm *c) { atomic_store(&status_of(c)->awaited, COMM_WORKING); }

static int first_absent(const Group *group) {
    int rank = 0;
    while (group->member[rank].arrivals > group->barriers) rank++;
    return rank;
}

static void local_barrier(Comm *comm) {
    LocalComm *c = local(comm);
    Group *group = c->group;
    pthread_mutex_lock(&group->lock);
    int64_t this_barrier = group->barriers;
    group->member[comm->rank].arrivals++;
    if (++group->arrived == group->size) {
        group->arrived = 0;
        group->barriers++;
        pthread_cond_broadcast(&group->barrier_opened);
    } else {
        Timer timer = timer_start(LONGEST_SLEEP);
        while (group->barriers == this_barrier) wait_a_while(c, &group->barrier_opened, &timer, first_absent(group));
        stop_waiting(c);
    }
    pthread_mutex_unlock(&group->lock);
    pulse_beat();
}

// ---- collectives --------------------------------------------------------------------------------------------------

// A barrier, after which every rank may read what the others published, until the next barrier.
static void publish(Comm *comm, const void *pointer) {
    local(comm)->group->member[comm->rank].published = pointer;
    local_barrier(comm);
}

static const void *published(Comm *comm, int rank) { return local(comm)->group->member[rank].published; }

// Rank r only writes its own segment, which nobody else reads.
static void local_reduce_scatter_sum(Comm *comm, float *out, float *in, const int64_t *counts) {
    const float **terms = comm_scratch(comm, (size_t)comm->size * sizeof *terms);
    int64_t offset = 0;
    for (int rank = 0; rank < comm->rank; rank++) offset += counts[rank];
    publish(comm, in);
    for (int rank = 0; rank < comm->size; rank++) terms[rank] = (const float *)published(comm, rank) + offset;
    comm_sum_floats(out, terms, comm->size, counts[comm->rank]);
    local_barrier(comm);
}

// ---- point to point -----------------------------------------------------------------------------------------------

// As many at once as are ever under way, so that none is made in the middle of training: an all-to-all of attention has
// both sides of 4 messages with every rank.
static void make_messages(Comm *comm) {
    const int ENOUGH = 512, wanted = 2 * 4 * comm->size;
    for (int i = 0; i < wanted && i < ENOUGH; i++) local_free_message(comm, comm_allocate(comm, 1, sizeof(Message)));
}

Message *local_new_message(Comm *comm, bool sends, void *data, size_t bytes, int peer) {
    LocalComm *c = local(comm);
    if (c->spare == NULL) make_messages(comm);
    Message *message = c->spare;
    c->spare = message->next;
    *message = (Message){.sends = sends, .data = data, .bytes = bytes, .peer = peer};
    return message;
}

void local_free_message(Comm *comm, Message *message) {
    message->next = local(comm)->spare;
    local(comm)->spare = message;
}

Message *local_post(Comm *comm, Message *mine) {
    Group *group = local(comm)->group;
    int from = mine->sends ? comm->rank : mine->peer, to = mine->sends ? mine->peer : comm->rank;
    Channel *channel = &group->channel[(size_t)from * (size_t)group->size + (size_t)to];
    pthread_mutex_lock(&group->lock);
    Message *other = channel->first;
    if (other != NULL && other->sends != mine->sends) {
        channel->first = other->next;
    } else {
        if (channel->first == NULL) channel->first = mine;
        else channel->last->next = mine;
        channel->last = mine;
        other = NULL;
    }
    pthread_mutex_unlock(&group->lock);
    if (other != NULL && other->bytes != mine->bytes) {
        comm_sizes_error(comm, group->member[from].world_rank, group->member[to].world_rank,
                         mine->sends ? mine->bytes : other->bytes, mine->sends ? other->bytes : mine->bytes);
    }
    return other;
}

void local_complete(Comm *comm, Message *message, int owner) {
    Group *group = local(comm)->group;
    pthread_mutex_lock(&group->lock);
    message->done = true;
    pthread_cond_signal(&group->member[owner].message_done);
    pthread_mutex_unlock(&group->lock);
}

void local_wait_for_message(Comm *comm, Message *message) {
    LocalComm *c = local(comm);
    pthread_mutex_lock(&c->group->lock);
    if (!message->done) {
        Timer timer = timer_start(LONGEST_SLEEP);
        while (!message->done) wait_a_while(c, &c->group->member[comm->rank].message_done, &timer, message->peer);
        stop_waiting(c);
    }
    pthread_mutex_unlock(&c->group->lock);
    pulse_beat();
}

// Posts one side of a message: NULL and *mine, or the other side's message if that was first.
static Message *begin_side(Comm *comm, bool sends, void *data, size_t bytes, int peer, void **mine) {
    if (bytes == 0) return NULL;
    Message *message = local_new_message(comm, sends, data, bytes, peer), *other = local_post(comm, message);
    if (other == NULL) *mine = message;
    else local_free_message(comm, message);
    return other;
}

static CommRequest local_exchange_begin(Comm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                        size_t receive_bytes, int from) {
    CommRequest request = {NULL, NULL};
    Message *sender = begin_side(comm, false, receive, receive_bytes, from, &request.receive);
    Message *receiver = begin_side(comm, true, (void *)send, send_bytes, to, &request.send);
    if (receiver != NULL) {
        memcpy(receiver->data, send, send_bytes);
        local_complete(comm, receiver, to);
    }
    if (sender != NULL) {
        memcpy(receive, sender->data, receive_bytes);
        local_complete(comm, sender, from);
    }
    return request;
}

static void local_wait(Comm *comm, const CommRequest *request) {
    Message *messages[] = {request->receive, request->send};
    for (int i = 0; i < 2; i++) {
        if (messages[i] == NULL) continue;
        local_wait_for_message(comm, messages[i]);
        local_free_message(comm, messages[i]);
    }
}

// ---- groups -------------------------------------------------------------------------------------------------------

static void free_group(Group *group) {
    if (group == NULL) return;
    for (int rank = 0; group->member != NULL && rank < group->size; rank++)
        pthread_cond_destroy(&group->member[rank].message_done);
    pthread_cond_destroy(&group->barrier_opened);
    pthread_mutex_destroy(&group->lock);
    free(group->member);
    free(group->channel);
    free(group);
}

// NULL: out of memory.
static Group *new_group(World *world, int size) {
    Group *group = calloc(1, sizeof *group);
    if (group == NULL) return NULL;
    group->world = world;
    group->size = group->users = size;
    pthread_mutex_init(&group->lock, NULL);
    clock_condition_init(&group->barrier_opened);
    group->member = calloc((size_t)size, sizeof *group->member);
    group->channel = calloc((size_t)size * (size_t)size, sizeof *group->channel);
    for (int rank = 0; group->member != NULL && rank < size; rank++)
        clock_condition_init(&group->member[rank].message_done);
    if (group->member == NULL || group->channel == NULL) {
        free_group(group);
        return NULL;
    }
    return group;
}

static void local_release(Comm *comm) {
    LocalComm *c = local(comm);
    for (Message *message = c->spare; message != NULL;) {
        Message *next = message->next;
        free(message);
        message = next;
    }
    pthread_mutex_lock(&c->group->lock);
    bool last = --c->group->users == 0;
    pthread_mutex_unlock(&c->group->lock);
    if (last) free_group(c->group);
    comm_free_memory(comm);
}

static const CommOperations local_operations;

static void comm_init(LocalComm *c, Group *group, int rank) {
    *c = (LocalComm){.base = {.operations = &local_operations,
                              .rank = rank,
                              .world_rank = rank,
                              .size = group->size,
                              .timeout = group->world->timeout},
                     .group = group};
}

// Rank 0 of each new group makes it and publishes it.
static Comm *local_group(Comm *comm, const int *members, int size, int rank, int number) {
    (void)number;
    Group *parent = local(comm)->group, *group = NULL;
    if (rank == 0) {
        group = new_group(parent->world, size);
        if (group == NULL) comm_give_up(comm, "out of memory for a group of %d ranks", size);
        for (int i = 0; i < size; i++) group->member[i].world_rank = parent->member[members[i]].world_rank;
    }
    publish(comm, group);
    group = (Group *)published(comm, members[0]);
    local_barrier(comm);
    LocalComm *made = comm_allocate(comm, 1, sizeof *made);
    comm_init(made, group, rank);
    return &made->base;
}

static const CommOperations local_operations = {
    .group = local_group,
    .release = local_release,
    .set_activity = local_doing,
    .activity = local_said,
    .heartbeats = local_moved,
    .end_all = end_all,
    .barrier = local_barrier,
    .broadcast = exchanged_broadcast,
    .all_reduce_sum = exchanged_all_reduce_sum,
    .reduce_scatter_sum = local_reduce_scatter_sum,
    .all_gather = exchanged_all_gather,
    .exchange_begin = local_exchange_begin,
    .wait = local_wait,
};

bool local_engine(const Comm *comm) { return comm->operations == &local_operations; }

// ---- threads ------------------------------------------------------------------------------------------------------

typedef struct Start { // what every thread needs
    LocalComm **comm;
    void (*rank_main)(Comm *, void *);
    void *argument;
} Start;

static void beat(void *status) { atomic_fetch_add(&((Status *)status)->beats, 1); }

static void run_rank(int rank, void *pointer) {
    const Start *start = pointer;
    LocalComm *comm = start->comm[rank];
    pulse_connect(beat, status_of(comm));
    start->rank_main(&comm->base, start->argument);
    pulse_connect(NULL, NULL);
    atomic_store(&status_of(comm)->awaited, COMM_FINISHED);
}

bool comm_run_local(const CommLaunch *launch, void (*rank_main)(Comm *, void *), void *argument, Error *err) {
    int ranks = launch->ranks, made = 0;
    World world = {.size = ranks, .timeout = launch->timeout_seconds, .failed = ATOMIC_FLAG_INIT};
    Start start = {calloc((size_t)ranks, sizeof *start.comm), rank_main, argument};
    world.status = calloc((size_t)ranks, sizeof *world.status);
    Group *group = new_group(&world, ranks);
    bool ok = world.status != NULL && start.comm != NULL && group != NULL;
    while (ok && made < ranks && (start.comm[made] = malloc(sizeof **start.comm)) != NULL) {
        comm_init(start.comm[made], group, made);
        group->member[made].world_rank = made;
        atomic_init(&world.status[made++].awaited, COMM_WORKING);
    }
    ok =
        made == ranks ? threads_run(ranks, run_rank, &start, err) : error_set(err, "out of memory for %d ranks", ranks);
    if (group != NULL) group->users = made;
    if (made == 0) free_group(group);
    for (int rank = 0; rank < made; rank++) local_release(&start.comm[rank]->base);
    free(start.comm);
    free(world.status);
    return ok;
}
