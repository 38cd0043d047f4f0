// Looks, a few times a second, whether the operations of a group are sound and come to an end.
//
// Three things are watched. A call that hands over operations may itself wait for the other ranks (NCCL connects when
// it first needs to). An operation under way may fail: the network, another rank's end. And one may never end, because
// a rank hangs that should take part. For this last, every operation under way has an event before it and one behind:
// what counts as silence is that the device is between the two for all the time of the time-out. The event behind alone
// would not do: the host may be a step ahead of the device, and a step over a long context takes longer than any
// time-out. Nor is it silence while any rank gives signs of life: the one that should take part may be writing a
// checkpoint.
#include "comm/watchdog.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const double LONGEST_STEP = 0.2; // seconds between two looks
enum { OPERATIONS_AT_ONCE = 64 };       // that are made together

typedef struct Operation {
    struct Operation *next;
    Event *before, *behind;
    const char *name;
} Operation;

struct Watchdog {
    Comm *comm;
    pthread_t thread;
    pthread_mutex_t lock; // of everything below
    pthread_cond_t over_now;
    bool over;
    void *member;
    Operation *first, *last; // of those under way, in their order
    Operation *call;         // which the rank is handing over, or NULL
    Operation *spare;        // to use again
    CommPatience patience_with_call, patience_with_first;
    int64_t moved; // signs of life of all ranks at the last look
};

static void fail_for_silence(Watchdog *dog, const char *operation, double seconds) {
    Comm *comm = dog->comm;
    const char *doing = comm->operations->said(comm);
    comm_give_up(comm,
                 "rank %d: %s between GPUs has not ended for %.3g s (doing: %s): another rank hangs, or allow more "
                 "time with --timeout",
                 comm->world_rank, operation, seconds, doing != NULL && *doing ? doing : "it did not say what");
}

static void fail_for_error(Watchdog *dog, const char *operation, const Error *err) {
    Comm *comm = dog->comm;
    const char *doing = comm->operations->said(comm);
    comm_give_up(comm, "rank %d: %s between GPUs failed (doing: %s): %s", comm->world_rank, operation,
                 doing != NULL && *doing ? doing : "it did not say what", err->message);
}

// Forgets the operations that are over.
static void forget_passed(Watchdog *dog) {
    Device *device = dog->comm->device;
    while (dog->first != NULL && device->event_done(device, dog->first->behind)) {
        Operation *over = dog->first;
        dog->first = over->next;
        over->next = dog->spare;
        dog->spare = over;
        dog->patience_with_first = comm_patience(2 * LONGEST_STEP);
    }
    if (dog->first != NULL && !device->event_done(device, dog->first->before))
        dog->patience_with_first = comm_patience(2 * LONGEST_STEP);
}

// With the lock held, but while it fails: the rank may want it then.
static void look(Watchdog *dog) {
    Device *device = dog->comm->device;
    Error err = {0};
    bool sound = dog->member == NULL || device->collectives->sound(dog->member, &err);
    if (sound) forget_passed(dog);
    const char *name = dog->first != NULL ? dog->first->name : dog->call != NULL ? dog->call->name : "start";
    if (!sound) {
        pthread_mutex_unlock(&dog->lock);
        fail_for_error(dog, name, &err);
    }
    int64_t moved = dog->comm->operations->moved(dog->comm);
    if (moved != dog->moved) dog->patience_with_first = dog->patience_with_call = comm_patience(2 * LONGEST_STEP);
    dog->moved = moved;
    bool silent_first = dog->first != NULL && comm_patience_spent(&dog->patience_with_first) > dog->comm->timeout;
    bool silent_call = dog->call != NULL && comm_patience_spent(&dog->patience_with_call) > dog->comm->timeout;
    if (silent_call || silent_first) {
        if (silent_call) name = dog->call->name;
        pthread_mutex_unlock(&dog->lock);
        fail_for_silence(dog, name, dog->comm->timeout);
    }
}

static void *watch(void *argument) {
    Watchdog *dog = argument;
    Device *device = dog->comm->device;
    device->collectives->watch_thread(device);
    pthread_mutex_lock(&dog->lock);
    while (!dog->over) {
        double until = comm_seconds() + LONGEST_STEP;
        struct timespec deadline = {(time_t)until, (long)(1e9 * (until - (double)(time_t)until))};
        pthread_cond_timedwait(&dog->over_now, &dog->lock, &deadline);
        if (!dog->over) look(dog);
    }
    pthread_mutex_unlock(&dog->lock);
    return NULL;
}

Watchdog *watchdog_start(Comm *comm) {
    Watchdog *dog = calloc(1, sizeof *dog);
    if (dog == NULL) comm_give_up(comm, "out of memory for a thread that watches over GPUs");
    dog->comm = comm;
    pthread_mutex_init(&dog->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&dog->over_now, &attributes);
    pthread_condattr_destroy(&attributes);
    int code = pthread_create(&dog->thread, NULL, watch, dog);
    if (code != 0) comm_give_up(comm, "no thread to watch over GPUs: %s", strerror(code));
    return dog;
}

void watchdog_member(Watchdog *dog, void *member) {
    pthread_mutex_lock(&dog->lock);
    dog->member = member;
    dog->call->next = dog->spare;
    dog->spare = dog->call;
    dog->call = NULL;
    pthread_mutex_unlock(&dog->lock);
}

static void release_operations(Watchdog *dog, Operation *operation) {
    Device *device = dog->comm->device;
    while (operation != NULL) {
        Operation *next = operation->next;
        device->event_release(device, operation->before);
        device->event_release(device, operation->behind);
        free(operation);
        operation = next;
    }
}

void watchdog_stop(Watchdog *dog) {
    pthread_mutex_lock(&dog->lock);
    dog->over = true;
    pthread_cond_signal(&dog->over_now);
    pthread_mutex_unlock(&dog->lock);
    pthread_join(dog->thread, NULL);
    pthread_cond_destroy(&dog->over_now);
    pthread_mutex_destroy(&dog->lock);
    release_operations(dog, dog->first);
    release_operations(dog, dog->spare);
    free(dog);
}

static void make_operations(Watchdog *dog, int count) {
    Device *device = dog->comm->device;
    for (int i = 0; i < count; i++) {
        Operation *operation = calloc(1, sizeof *operation);
        if (operation == NULL) comm_give_up(dog->comm, "out of memory for a watch over GPUs");
        operation->before = device->event_create(device);
        operation->behind = device->event_create(device);
        operation->next = dog->spare;
        dog->spare = operation;
    }
}

// With the lock held. Those that have passed are used again; there are more only where the host is far ahead of the
// GPU.
static Operation *new_operation(Watchdog *dog) {
    if (dog->spare == NULL) forget_passed(dog);
    if (dog->spare == NULL) make_operations(dog, OPERATIONS_AT_ONCE);
    Operation *operation = dog->spare;
    dog->spare = operation->next;
    return operation;
}

void watchdog_enter(Watchdog *dog, const char *name) {
    Device *device = dog->comm->device;
    pthread_mutex_lock(&dog->lock);
    dog->call = new_operation(dog);
    dog->call->name = name;
    dog->call->next = NULL;
    device->event_record(device, STREAM_EXCHANGE, dog->call->before);
    dog->patience_with_call = comm_patience(2 * LONGEST_STEP);
    pthread_mutex_unlock(&dog->lock);
}

void watchdog_leave(Watchdog *dog) {
    Device *device = dog->comm->device;
    pthread_mutex_lock(&dog->lock);
    device->event_record(device, STREAM_EXCHANGE, dog->call->behind);
    if (dog->first == NULL) {
        dog->first = dog->call;
        dog->patience_with_first = comm_patience(2 * LONGEST_STEP);
    } else {
        dog->last->next = dog->call;
    }
    dog->last = dog->call;
    dog->call = NULL;
    pthread_mutex_unlock(&dog->lock);
}
