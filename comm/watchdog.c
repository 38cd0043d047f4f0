// Looks, a few times a second, whether the operations of a group are sound and come to an end.
//
// A call that hands over operations may itself wait for the other ranks (NCCL connects when it first needs to). An
// operation may fail: the network, another rank's end. And it may never end. For this it has an event before it and one
// behind: silence is that the device is between the two for all of the time-out, in which no rank gives signs of life.
// The event behind alone would not do: the host may be a step ahead of the device, and steps may take longer.
#include "comm/collectives.h"
#include "comm/device_group.h"

#include <stdlib.h>

static const double LONGEST_STEP = 0.4; // seconds between two looks, at most
enum { OPERATIONS_AT_ONCE = 64 };       // that are made together

typedef struct Operation {
    struct Operation *next;
    Event *before, *behind;
    bool handed_over; // to the device; else the call that does so has not returned
    const char *name;
} Operation;

struct Watchdog {
    Comm *comm;
    Ticker ticker; // whose lock is that of everything below
    void *member;
    Operation *first, *last; // of those under way, in their order
    Operation *spare;        // to use again
    Timer timer;             // of the first
    int64_t heartbeats;      // signs of life of all ranks at the last look
};

static void fail_for_silence(Watchdog *dog, const char *operation, double seconds) {
    comm_give_up(
        dog->comm,
        "rank %d (%s): %s between GPUs has not ended for %.3g s (doing: %s): another rank hangs, or allow more "
        "time with --timeout",
        dog->comm->world_rank, comm_place_here().text, operation, seconds, comm_activity(dog->comm));
}

static void fail_for_error(Watchdog *dog, const char *operation, const Error *err) {
    comm_give_up(dog->comm, "rank %d (%s): %s between GPUs failed (doing: %s): %s", dog->comm->world_rank,
                 comm_place_here().text, operation, comm_activity(dog->comm), err->message);
}

static void start_timer(Watchdog *dog) { dog->timer = timer_start(LONGEST_STEP); }

// Forgets the operations that are over. The time of one that has not begun on the device does not count.
static void forget_passed(Watchdog *dog) {
    Device *device = dog->comm->device;
    while (dog->first != NULL && dog->first->handed_over && device->event_done(device, dog->first->behind)) {
        Operation *over = dog->first;
        dog->first = over->next;
        over->next = dog->spare;
        dog->spare = over;
        start_timer(dog);
    }
    if (dog->first != NULL && dog->first->handed_over && !device->event_done(device, dog->first->before))
        start_timer(dog);
}

// With the lock held, but while it fails: the rank may want it then.
static void look(void *pointer) {
    Watchdog *dog = pointer;
    Device *device = dog->comm->device;
    Error err = {0};
    device->collectives->watch_thread(device);
    bool sound = dog->member == NULL || device->collectives->sound(dog->member, &err);
    forget_passed(dog);
    const char *name = dog->first != NULL ? dog->first->name : "start";
    int64_t heartbeats = comm_heartbeats(dog->comm);
    if (heartbeats != dog->heartbeats) start_timer(dog);
    dog->heartbeats = heartbeats;
    bool silent = dog->first != NULL && timer_elapsed(&dog->timer) > dog->comm->timeout;
    if (sound && !silent) return;
    pthread_mutex_unlock(&dog->ticker.lock);
    if (!sound) fail_for_error(dog, name, &err);
    fail_for_silence(dog, name, dog->comm->timeout);
}

Watchdog *watchdog_start(Comm *comm) {
    Watchdog *dog = comm_allocate(comm, 1, sizeof *dog);
    dog->comm = comm;
    if (!ticker_start(&dog->ticker, look, dog)) comm_give_up(comm, "no thread to watch over GPUs; see ulimit -u");
    return dog;
}

void watchdog_member(Watchdog *dog, void *member) {
    pthread_mutex_lock(&dog->ticker.lock);
    dog->member = member;
    pthread_mutex_unlock(&dog->ticker.lock);
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
    ticker_stop(&dog->ticker);
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
    pthread_mutex_lock(&dog->ticker.lock);
    Operation *operation = new_operation(dog);
    operation->name = name;
    operation->handed_over = false;
    operation->next = NULL;
    device->event_record(device, STREAM_EXCHANGE, operation->before);
    if (dog->first == NULL) {
        dog->first = operation;
        start_timer(dog);
    } else {
        dog->last->next = operation;
    }
    dog->last = operation;
    pthread_mutex_unlock(&dog->ticker.lock);
}

void watchdog_leave(Watchdog *dog) {
    Device *device = dog->comm->device;
    pthread_mutex_lock(&dog->ticker.lock);
    device->event_record(device, STREAM_EXCHANGE, dog->last->behind);
    dog->last->handed_over = true;
    pthread_mutex_unlock(&dog->ticker.lock);
}
