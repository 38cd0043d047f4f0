// NCCL among threads of one process, over the emulated streams.
//
// As with NCCL, the calls of a group become one operation of the rank's stream. When it comes to the head of the stream
// the rank has arrived; once every rank that it has to do with has arrived too, it takes in the others' data; and only
// when the others have also taken theirs are the results delivered and the operation over. So results come as late as
// they can, a buffer that is changed too early gives wrong data, and one rank's absence holds up all that need it.
// (NCCL moves the parts of a group independently; here a group waits for all of its partners before any part moves.)
//
// What NCCL would answer by hanging or by wrong data is reported as an asynchronous error: ranks that make different
// calls, or calls of different sizes. EMULATED_NCCL_FAIL=R:N makes the N-th operation (from 0) of every communicator's
// rank R fail in the same way, so that it can be tested what a program does about it. EMULATED_NCCL=absent: this
// machine has no NCCL, says nccl_opens.
#include "nccl.h"

#include <pthread.h>
#include <stdarg.h>

#include "emulated/memory.h"
#include "emulated/stream.h"
#include "layers/cuda/libraries.h"

enum Kind { MESSAGE, BROADCAST, ALL_GATHER };

struct Part {   // what one rank calls
    Part *next; // of the same group call
    struct Meeting *meeting;
    const char *send;
    char *receive, *taken; // `taken` is delivered to `receive`
    size_t taken_bytes;
};

struct Meeting { // of all the parts that make up a message or a collective
    Meeting *next;
    Kind kind;
    int from, to;   // of a message
    int64_t number; // of its kind (and pair), in the order called
    size_t bytes;
    int root; // of a broadcast
    int parts, posted, arrived, took, delivered;
    Part *part[]; // by rank; of a message: sender, receiver
};

struct Clique { // what the ranks of a communicator share. All of it is guarded by the streams' lock, but what is said
    uint64_t id;
    int ranks;
    int joined, users; // guarded by `registry`
    bool refused;      // the same
    int *gpu;          // the same
    Clique *next;      // the same
    Meeting *meetings;
    int64_t *collectives;    // called so far, by rank
    int64_t *sent, *awaited; // messages called so far, by pair
};

struct ncclComm { // one rank's
    Clique *clique;
    int rank;
    int64_t operations;
    ncclResult_t error; // asynchronous
    char text[400];
};

struct GroupCall { // everything between ncclGroupStart and ncclGroupEnd
    ncclComm *comm;
    cudaStream_t stream;
    Part *parts;
};

bool nccl_opens(void) {
    const char *text = getenv("EMULATED_NCCL");
    return text == NULL || strcmp(text, "absent") != 0;
}

static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t registered = PTHREAD_COND_INITIALIZER;
static Clique *cliques;
static uint64_t ids;

static __thread int group_depth;
static __thread ncclResult_t group_result;
static __thread GroupCall group;
static __thread char last_error[400];

// ---- errors --------------------------------------------------------------------------------------------------------

static ncclResult_t refuse(ncclResult_t result, const char *format, ...) __attribute__((format(printf, 2, 3)));
static ncclResult_t refuse(ncclResult_t result, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    if (group_depth > 0) group_result = result;
    return result;
}

static void fail_later(ncclComm *comm, ncclResult_t result, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void fail_later(ncclComm *comm, ncclResult_t result, const char *format, ...) {
    if (comm->error != ncclSuccess) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(comm->text, sizeof comm->text, format, arguments);
    va_end(arguments);
    comm->error = result;
}

const char *ncclGetErrorString(ncclResult_t result) {
    switch (result) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "unhandled cuda error";
    case ncclSystemError: return "unhandled system error";
    case ncclInternalError: return "internal error";
    case ncclInvalidArgument: return "invalid argument";
    case ncclInvalidUsage: return "invalid usage";
    case ncclRemoteError: return "remote process exited or there was a network error";
    case ncclInProgress: return "operation in progress";
    }
    return "unknown result code";
}

const char *ncclGetLastError(ncclComm_t comm) { return comm != NULL && comm->text[0] ? comm->text : last_error; }

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error) {
    stream_lock();
    *error = comm->error;
    stream_unlock();
    return ncclSuccess;
}

// ---- communicators -------------------------------------------------------------------------------------------------

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    memset(id, 0, sizeof *id);
    uint64_t number = __atomic_add_fetch(&ids, 1, __ATOMIC_RELAXED);
    memcpy(id->internal, &number, sizeof number);
    return ncclSuccess;
}

static Clique *find_clique(uint64_t id, int ranks) {
    for (Clique *clique = cliques; clique != NULL; clique = clique->next)
        if (clique->id == id) return clique;
    const size_t size = (size_t)ranks;
    Clique *clique = (Clique *)calloc(1, sizeof *clique);
    clique->id = id;
    clique->ranks = ranks;
    clique->next = cliques;
    clique->gpu = (int *)calloc(size, sizeof *clique->gpu);
    clique->collectives = (int64_t *)calloc(size, sizeof *clique->collectives);
    clique->sent = (int64_t *)calloc(size * size, sizeof *clique->sent);
    clique->awaited = (int64_t *)calloc(size * size, sizeof *clique->awaited);
    for (int rank = 0; rank < ranks; rank++) clique->gpu[rank] = -1;
    cliques = clique;
    return clique;
}

static void leave_clique(Clique *clique) { // the registry is locked
    if (--clique->users > 0) return;
    for (Clique **link = &cliques; *link != NULL; link = &(*link)->next) {
        if (*link != clique) continue;
        *link = clique->next;
        break;
    }
    free(clique->gpu);
    free(clique->collectives);
    free(clique->sent);
    free(clique->awaited);
    free(clique);
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank) {
    uint64_t number;
    int gpu;
    memcpy(&number, id.internal, sizeof number);
    if (cudaGetDevice(&gpu) != cudaSuccess) return refuse(ncclUnhandledCudaError, "no current device");
    if (rank < 0 || rank >= ranks || number == 0) return refuse(ncclInvalidArgument, "rank %d of %d", rank, ranks);
    pthread_mutex_lock(&registry);
    Clique *clique = find_clique(number, ranks);
    for (int other = 0; other < ranks; other++) {
        if (clique->gpu[other] != gpu) continue;
        refuse(ncclInvalidUsage, "ranks %d and %d are both on CUDA device %d", other, rank, gpu);
        clique->refused = true;
    }
    clique->gpu[rank] = gpu;
    clique->users++;
    clique->joined++;
    pthread_cond_broadcast(&registered);
    while (clique->joined < ranks && !clique->refused) pthread_cond_wait(&registered, &registry);
    const bool refused = clique->refused;
    if (refused) leave_clique(clique);
    pthread_mutex_unlock(&registry);
    if (refused) return refuse(ncclInvalidUsage, "two ranks are on the same CUDA device");
    ncclComm *made = (ncclComm *)calloc(1, sizeof *made);
    made->clique = clique;
    made->rank = rank;
    *comm = made;
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    pthread_mutex_lock(&registry);
    leave_clique(comm->clique);
    pthread_mutex_unlock(&registry);
    free(comm);
    return ncclSuccess;
}

// ---- meeting -------------------------------------------------------------------------------------------------------

static const char *describe(char (&text)[100], Kind kind, size_t bytes, int root) {
    if (kind == BROADCAST) snprintf(text, sizeof text, "ncclBroadcast of %zu bytes from rank %d", bytes, root);
    else snprintf(text, sizeof text, "%s of %zu bytes", kind == MESSAGE ? "a message" : "ncclAllGather", bytes);
    return text;
}

// The one that this rank's next call of this kind belongs to. The streams are locked.
static Meeting *find_meeting(ncclComm *comm, Kind kind, size_t bytes, int root, int from, int to) {
    Clique *clique = comm->clique;
    int64_t *count = kind != MESSAGE      ? &clique->collectives[comm->rank]
                     : comm->rank == from ? &clique->sent[from * clique->ranks + to]
                                          : &clique->awaited[from * clique->ranks + to];
    const int64_t number = (*count)++;
    Meeting **end = &clique->meetings;
    for (; *end != NULL; end = &(*end)->next) {
        Meeting *m = *end;
        if ((m->kind == MESSAGE) != (kind == MESSAGE) || m->number != number) continue;
        if (kind == MESSAGE && (m->from != from || m->to != to)) continue;
        if (m->kind == kind && m->bytes == bytes && m->root == root) return m;
        char mine[100], theirs[100];
        fail_later(comm, ncclInvalidUsage, "rank %d calls for %s, another rank for %s", comm->rank,
                   describe(mine, kind, bytes, root), describe(theirs, m->kind, m->bytes, m->root));
        return NULL;
    }
    const int parts = kind == MESSAGE ? 2 : clique->ranks;
    Meeting *made = (Meeting *)calloc(1, sizeof *made + (size_t)parts * sizeof made->part[0]);
    made->kind = kind;
    made->from = from;
    made->to = to;
    made->number = number;
    made->bytes = bytes;
    made->root = root;
    made->parts = parts;
    *end = made;
    return made;
}

static void end_meeting(Clique *clique, Meeting *meeting) {
    Meeting **link = &clique->meetings;
    while (*link != meeting) link = &(*link)->next;
    *link = meeting->next;
    free(meeting);
}

// ---- on the stream -------------------------------------------------------------------------------------------------

// Each group call is three operations of its stream, since one may not wait in its middle: arrive, take, deliver.

static void arrive(void *argument) {
    for (Part *part = ((GroupCall *)argument)->parts; part != NULL; part = part->next) part->meeting->arrived++;
    stream_changed();
}

static bool all_arrived(void *argument) {
    const GroupCall *call = (GroupCall *)argument;
    if (call->comm->error != ncclSuccess) return false;
    for (Part *part = call->parts; part != NULL; part = part->next)
        if (part->meeting->arrived < part->meeting->parts) return false;
    return true;
}

static void take(void *argument) {
    GroupCall *call = (GroupCall *)argument;
    for (Part *part = call->parts; part != NULL; part = part->next) {
        const Meeting *m = part->meeting;
        if (part->receive == NULL) continue;
        const int sources = m->kind == ALL_GATHER ? m->parts : 1;
        part->taken_bytes = m->bytes * (size_t)sources;
        part->taken = (char *)malloc(part->taken_bytes);
        for (int i = 0; i < sources; i++) {
            const Part *source = m->part[m->kind == BROADCAST ? m->root : i];
            memcpy(part->taken + (size_t)i * m->bytes, source->send, m->bytes);
        }
    }
}

static void tell_taken(void *argument) {
    for (Part *part = ((GroupCall *)argument)->parts; part != NULL; part = part->next) part->meeting->took++;
    stream_changed();
}

static bool all_taken(void *argument) {
    for (Part *part = ((GroupCall *)argument)->parts; part != NULL; part = part->next)
        if (part->meeting->took < part->meeting->parts) return false;
    return true;
}

static void deliver(void *argument) {
    for (Part *part = ((GroupCall *)argument)->parts; part != NULL; part = part->next) {
        if (part->receive != NULL) memcpy(part->receive, part->taken, part->taken_bytes);
        free(part->taken);
    }
}

static void end_call(void *argument) {
    GroupCall *call = (GroupCall *)argument;
    for (Part *part = call->parts; part != NULL;) {
        Part *next = part->next;
        if (++part->meeting->delivered == part->meeting->parts) end_meeting(call->comm->clique, part->meeting);
        free(part);
        part = next;
    }
    free(call);
}

// ---- calls ---------------------------------------------------------------------------------------------------------

static bool planted(const ncclComm *comm, int64_t operation) {
    const char *text = getenv("EMULATED_NCCL_FAIL"), *colon = text != NULL ? strchr(text, ':') : NULL;
    return colon != NULL && atoi(text) == comm->rank && atoll(colon + 1) == operation;
}

ncclResult_t ncclGroupStart() {
    if (group_depth++ == 0) {
        group = GroupCall();
        group_result = ncclSuccess;
    }
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
    if (group_depth == 0) return refuse(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--group_depth > 0 || group.parts == NULL || group_result != ncclSuccess) return group_result;
    GroupCall *call = (GroupCall *)malloc(sizeof *call);
    *call = group;
    stream_lock();
    if (planted(call->comm, call->comm->operations++))
        fail_later(call->comm, ncclSystemError, "planted by EMULATED_NCCL_FAIL");
    stream_unlock();
    const Operation operations[] = {{NULL, NULL, arrive, call, "NCCL, arriving"},
                                    {all_arrived, take, tell_taken, call, "NCCL, until all have arrived"},
                                    {all_taken, deliver, end_call, call, "NCCL, until all are served"}};
    for (const Operation &operation : operations)
        if (stream_enqueue(call->stream, &operation) != cudaSuccess)
            return refuse(ncclUnhandledCudaError, "the stream takes no operation");
    return ncclSuccess;
}

static bool allocated(const void *memory, size_t bytes) {
    int device;
    size_t rest;
    return memory == NULL || (memory_owner(memory, &device, &rest) && rest >= bytes);
}

static ncclResult_t add(ncclComm *comm, cudaStream_t stream, Kind kind, const void *send, void *receive, size_t count,
                        ncclDataType_t type, int root, int from, int to) {
    ncclGroupStart();
    const size_t bytes = count * (type == ncclFloat32 ? 4 : 1);
    const int ranks = comm->clique->ranks, slot = kind == MESSAGE ? comm->rank != from : comm->rank;
    if (root < 0 || root >= ranks || from < 0 || from >= ranks || to < 0 || to >= ranks) {
        refuse(ncclInvalidArgument, "a rank of %d that there is not", ranks);
    } else if (!allocated(send, bytes) || !allocated(receive, bytes * (size_t)(kind == ALL_GATHER ? ranks : 1))) {
        refuse(ncclInvalidArgument, "%zu bytes that do not all lie in one allocation of a GPU", bytes);
    } else if (kind == MESSAGE && from == to) {
        refuse(ncclInvalidUsage, "a message to oneself, which is not emulated");
    } else if (group.parts != NULL && (group.comm != comm || group.stream != stream)) {
        refuse(ncclInvalidUsage, "two communicators or streams in one group, which is not emulated");
    } else {
        stream_lock();
        Meeting *meeting = find_meeting(comm, kind, bytes, root, from, to);
        if (meeting != NULL) {
            Part *part = (Part *)calloc(1, sizeof *part);
            part->next = group.parts;
            part->meeting = meeting;
            part->send = (const char *)send;
            part->receive = (char *)receive;
            meeting->part[slot] = part;
            meeting->posted++;
            group.parts = part;
            group.comm = comm;
            group.stream = stream;
        }
        stream_unlock();
    }
    return ncclGroupEnd();
}

ncclResult_t ncclSend(const void *data, size_t count, ncclDataType_t type, int to, ncclComm_t comm,
                      cudaStream_t stream) {
    return add(comm, stream, MESSAGE, data, NULL, count, type, 0, comm->rank, to);
}

ncclResult_t ncclRecv(void *data, size_t count, ncclDataType_t type, int from, ncclComm_t comm, cudaStream_t stream) {
    return add(comm, stream, MESSAGE, NULL, data, count, type, 0, from, comm->rank);
}

ncclResult_t ncclBroadcast(const void *send, void *receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
    return add(comm, stream, BROADCAST, send, receive, count, type, root, 0, 0);
}

ncclResult_t ncclAllGather(const void *send, void *receive, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
    return add(comm, stream, ALL_GATHER, send, receive, count, type, 0, 0, 0);
}
