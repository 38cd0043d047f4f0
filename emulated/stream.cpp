// Streams and events: work in order, run by threads of the host.
#include "emulated/stream.h"

#include <pthread.h>
#include <time.h>

#include "emulated/device.h"
#include "emulated/report.h"
#include "emulated/settings.h"

// A point in a stream, made by one cudaEventRecord; the event, and those who wait for it, share it.
struct Record {
    int users;
    bool done;
    double seconds;      // when
    cudaStream_t stream; // valid until done
};

struct Queued {
    Operation operation;
    Record *waits_for, *records; // cudaStreamWaitEvent, cudaEventRecord; else NULL
    Queued *next;
};

struct EmulatedStream {
    Queued *head, *tail;
    uint64_t enqueued, completed; // operations so far
    bool busy;                    // a thread is running the head
    int waiting;                  // threads that wait for its end: it must outlive them
    bool blocking;                // its work and the default stream's exclude each other
    int device;
    double lengthened;    // by this its events' clock is ahead of the real one, in seconds
    EmulatedStream *next; // of all streams
};

struct EmulatedEvent {
    Record *latest; // NULL: never recorded
    int device;     // may be recorded in this one's streams only, but waited for by all
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static EmulatedStream *streams;
static EmulatedStream *default_stream[64];

void stream_lock() { pthread_mutex_lock(&lock); }
void stream_unlock() { pthread_mutex_unlock(&lock); }
void stream_changed() { pthread_cond_broadcast(&changed); }
int stream_device(cudaStream_t stream) { return stream != NULL ? stream->device : device_current(); }

void stream_lengthen(cudaStream_t stream, double seconds) {
    if (stream != NULL) stream->lengthened += seconds; // nobody else looks while it runs
}

static double seconds_now() {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void drop(Record *record) {
    if (record != NULL && --record->users == 0) free(record);
}

// ---- running --------------------------------------------------------------------------------------------------------

// Runs the stream's head if it can be run now. The lock is held, and given back while it runs.
static bool run_head(EmulatedStream *stream) {
    Queued *head = stream->head;
    if (head == NULL || stream->busy) return false;
    if (head->waits_for != NULL && !head->waits_for->done) return false;
    const Operation *operation = &head->operation;
    if (operation->ready != NULL && !operation->ready(operation->argument)) return false;
    stream->busy = true;
    if (operation->run != NULL) {
        pthread_mutex_unlock(&lock);
        operation->run(operation->argument);
        pthread_mutex_lock(&lock);
    }
    if (operation->finish != NULL) operation->finish(operation->argument);
    if (head->records != NULL) {
        head->records->done = true;
        head->records->seconds = seconds_now() + stream->lengthened;
    }
    drop(head->records);
    drop(head->waits_for);
    stream->head = head->next;
    if (stream->head == NULL) stream->tail = NULL;
    stream->busy = false;
    stream->completed++;
    free(head);
    stream_changed();
    return true;
}

// Tries all streams, from a random one on.
static bool run_any() {
    uint32_t count = 0;
    for (EmulatedStream *s = streams; s != NULL; s = s->next) count++;
    if (count == 0) return false;
    const uint32_t first = random_below(count);
    for (int turn = 0; turn < 2; turn++) {
        uint32_t i = 0;
        for (EmulatedStream *s = streams; s != NULL; s = s->next, i++) {
            // The list may have changed once run_head has let go of the lock, but then it has run something.
            if ((turn == 0) == (i >= first) && run_head(s)) return true;
        }
    }
    return false;
}

static bool advance(EmulatedStream *wanted) {
    if (wanted == NULL || (!settings()->eager && random_below(8) == 0)) {
        if (run_any()) return true;
        if (wanted == NULL) return false;
    }
    // If the head waits for an event, what comes before that event is what is needed.
    while (wanted->head != NULL && wanted->head->waits_for != NULL && !wanted->head->waits_for->done)
        wanted = wanted->head->waits_for->stream;
    return run_head(wanted) || run_any();
}

static void print_waiting() {
    for (EmulatedStream *s = streams; s != NULL; s = s->next) {
        if (s->head != NULL) {
            fprintf(stderr, "emulated GPU: waiting: a stream of GPU %d with %llu operations, the first is %s%s\n",
                    s->device, (unsigned long long)(s->enqueued - s->completed), s->head->operation.what,
                    s->busy ? ", running" : "");
        }
    }
}

void stream_step(cudaStream_t wanted) {
    static bool told;
    if (advance(wanted)) return;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    if (pthread_cond_timedwait(&changed, &lock, &until) != 0 && !told) {
        told = true; // somebody may have forgotten to enqueue something; but it may just be slow
        print_waiting();
    }
}

// ---- enqueueing -----------------------------------------------------------------------------------------------------

static EmulatedStream *stream_make(int device, bool blocking) {
    EmulatedStream *stream = (EmulatedStream *)calloc(1, sizeof *stream);
    if (stream == NULL) return NULL;
    stream->device = device;
    stream->blocking = blocking;
    stream->next = streams;
    streams = stream;
    return stream;
}

// Until everything is done that is in the stream now. The lock is held.
static void finish(EmulatedStream *stream) {
    const uint64_t until = stream->enqueued;
    stream->waiting++;
    while (stream->completed < until) stream_step(stream);
    if (--stream->waiting == 0) stream_changed();
}

// The default stream begins when all earlier work of the device's blocking streams has ended, and is waited for: not as
// late as could be, but this program has no use for it except in synchronous calls.
static void finish_blocking(int device) {
    for (EmulatedStream *s = streams; s != NULL;) {
        if (s->device == device && s->blocking && s->completed < s->enqueued) {
            finish(s);
            s = streams;
        } else {
            s = s->next;
        }
    }
}

static cudaError_t enqueue(cudaStream_t stream, const Operation *operation, Record *waits_for, Record *records) {
    Queued *queued = (Queued *)calloc(1, sizeof *queued);
    if (queued == NULL) return cudaErrorMemoryAllocation;
    queued->operation = *operation;
    queued->waits_for = waits_for;
    queued->records = records;
    const bool is_default = stream == NULL;
    if (is_default) {
        const int device = device_current();
        if (default_stream[device] == NULL) default_stream[device] = stream_make(device, false);
        stream = default_stream[device];
        if (stream == NULL) {
            free(queued);
            return cudaErrorMemoryAllocation;
        }
        finish_blocking(device);
    }
    if (records != NULL) records->stream = stream;
    if (stream->tail != NULL) stream->tail->next = queued;
    else stream->head = queued;
    stream->tail = queued;
    stream->enqueued++;
    stream_changed();
    if (is_default) {
        finish(stream);
    } else if (settings()->eager) {
        const uint64_t until = stream->enqueued;
        while (stream->completed < until && advance(stream)) {
        }
    } else if (random_below(8) == 0) {
        for (uint32_t n = 1 + random_below(8); n > 0 && run_any(); n--) {
        }
    }
    return cudaSuccess;
}

cudaError_t stream_enqueue(cudaStream_t stream, const Operation *operation) {
    stream_lock();
    const cudaError_t status = enqueue(stream, operation, NULL, NULL);
    stream_unlock();
    return status;
}

// ---- streams --------------------------------------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    stream_lock();
    *stream = stream_make(device_current(), !(flags & cudaStreamNonBlocking));
    stream_unlock();
    return *stream != NULL ? cudaSuccess : device_error(cudaErrorMemoryAllocation);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    if (stream == NULL) return device_error(cudaErrorInvalidResourceHandle);
    stream_lock();
    finish(stream);
    EmulatedStream **link = &streams;
    while (*link != stream) link = &(*link)->next;
    *link = stream->next;
    while (stream->waiting > 0) pthread_cond_wait(&changed, &lock);
    stream_unlock();
    free(stream);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    stream_lock();
    if (stream != NULL) finish(stream);
    else finish_blocking(device_current());
    stream_unlock();
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
    stream_finish_device(device_current());
    return cudaSuccess;
}

void stream_finish_device(int device) {
    stream_lock();
    for (EmulatedStream *s = streams; s != NULL;) {
        if (s->device == device && s->completed < s->enqueued) {
            finish(s);
            s = streams; // it may have changed meanwhile
        } else {
            s = s->next;
        }
    }
    stream_unlock();
}

// ---- events ---------------------------------------------------------------------------------------------------------

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = (cudaEvent_t)calloc(1, sizeof **event);
    if (*event != NULL) (*event)->device = device_current();
    return *event != NULL ? cudaSuccess : device_error(cudaErrorMemoryAllocation);
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    if (event == NULL) return device_error(cudaErrorInvalidResourceHandle);
    stream_lock();
    drop(event->latest);
    stream_unlock();
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    if (event == NULL || event->device != stream_device(stream)) return device_error(cudaErrorInvalidResourceHandle);
    Record *record = (Record *)calloc(1, sizeof *record);
    if (record == NULL) return device_error(cudaErrorMemoryAllocation);
    const Operation operation = {NULL, NULL, NULL, NULL, "cudaEventRecord"};
    stream_lock();
    record->users = 2; // the event and the queue
    drop(event->latest);
    event->latest = record;
    const cudaError_t status = enqueue(stream, &operation, NULL, record);
    stream_unlock();
    return device_error(status);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (event == NULL) return device_error(cudaErrorInvalidResourceHandle);
    const Operation operation = {NULL, NULL, NULL, NULL, "cudaStreamWaitEvent"};
    cudaError_t status = cudaSuccess;
    stream_lock();
    Record *record = event->latest;
    if (record != NULL && !record->done) {
        record->users++;
        status = enqueue(stream, &operation, record, NULL);
    }
    stream_unlock();
    return device_error(status);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    if (event == NULL) return device_error(cudaErrorInvalidResourceHandle);
    stream_lock();
    Record *record = event->latest;
    if (record != NULL && !record->done && random_below(2) == 0) {
        record->users++;
        advance(record->stream);
        const bool done = record->done;
        drop(record);
        stream_unlock();
        return done ? cudaSuccess : cudaErrorNotReady;
    }
    const bool done = record == NULL || record->done;
    stream_unlock();
    return done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (event == NULL) return device_error(cudaErrorInvalidResourceHandle);
    stream_lock();
    Record *record = event->latest;
    if (record != NULL) {
        record->users++;
        while (!record->done) stream_step(record->stream);
        drop(record);
    }
    stream_unlock();
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    if (start == NULL || end == NULL) return device_error(cudaErrorInvalidResourceHandle);
    stream_lock();
    cudaError_t status = cudaSuccess;
    if (start->latest == NULL || end->latest == NULL) status = cudaErrorInvalidResourceHandle;
    else if (!start->latest->done || !end->latest->done) status = cudaErrorNotReady;
    else *milliseconds = (float)(1e3 * (end->latest->seconds - start->latest->seconds));
    stream_unlock();
    return device_error(status);
}

struct HostCall {
    cudaHostFn_t function;
    void *argument;
};
static void run_host_call(void *argument) {
    HostCall *call = (HostCall *)argument;
    call->function(call->argument);
    free(call);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument) {
    HostCall *call = (HostCall *)malloc(sizeof *call);
    if (call == NULL) return device_error(cudaErrorMemoryAllocation);
    *call = HostCall{function, argument};
    const Operation operation = {NULL, run_host_call, NULL, call, "cudaLaunchHostFunc"};
    return device_error(stream_enqueue(stream, &operation));
}
