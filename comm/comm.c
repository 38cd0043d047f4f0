// The part of comm that does not depend on how ranks reach each other: groups of one, messages to oneself, empty
// messages, the count of bytes, and the sums that every engine takes in the same order.
//
// Bytes are counted here, from the arguments, and not by the engines: so the count is the same under every engine and
// can be held against a formula.
#include "comm/comm.h"

#include <stdlib.h>
#include <string.h>

#include "comm/engine.h"
#include "layers/device.h"

int comm_rank(const Comm *comm) { return comm->rank; }
int comm_size(const Comm *comm) { return comm->size; }
int64_t comm_bytes_sent(const Comm *comm) { return comm->bytes_sent; }

static Comm *host_of(Comm *comm) { return comm->host != NULL ? comm->host : comm; }

typedef struct Choice { // what each rank of a group that is split asks for
    int color, key;
    int next_number; // the lowest it has not used
} Choice;

// The ranks of `color`, ordered by key, then by rank; returns how many.
static int members_of(const Choice *choice, int size, int color, int *members) {
    int count = 0;
    for (int rank = 0; rank < size; rank++) {
        if (choice[rank].color != color) continue;
        int place = count++;
        for (; place > 0 && choice[members[place - 1]].key > choice[rank].key; place--)
            members[place] = members[place - 1];
        members[place] = rank;
    }
    return count;
}

static Comm *split_host(Comm *comm, int color, int key) {
    size_t size = (size_t)comm->size;
    Choice *choice = comm_allocate(comm, size, sizeof *choice);
    size_t *bytes = comm_allocate(comm, size, sizeof *bytes);
    int *members = comm_allocate(comm, size, sizeof *members), number = 0, rank = 0;
    for (size_t r = 0; r < size; r++) bytes[r] = sizeof *choice;
    choice[comm->rank] = (Choice){color, key, comm->next_number != NULL ? *comm->next_number : 0};
    comm->operations->all_gather(comm, choice, bytes);
    for (size_t r = 0; r < size; r++) number = choice[r].next_number > number ? choice[r].next_number : number;
    if (comm->next_number != NULL) *comm->next_number = number + 1;
    int count = members_of(choice, comm->size, color, members);
    while (members[rank] != comm->rank) rank++;
    Comm *made = comm->operations->group(comm, members, count, rank, number);
    free(members);
    free(bytes);
    free(choice);
    return made;
}

Comm *comm_split(Comm *comm, int color, int key) {
    comm->operation = "split";
    Comm *made = comm->host != NULL ? comm->operations->on_device(comm_split(comm->host, color, key), comm->device)
                                    : split_host(comm, color, key);
    made->world_rank = comm->world_rank;
    return made;
}

void comm_free(Comm *comm) {
    if (comm != NULL) comm->operations->release(comm);
}

void comm_fail(Comm *comm, const Error *err) {
    Comm *host = host_of(comm);
    host->operations->end_all(host, err);
}

static void say(Comm *comm, const char *what, bool slowly) {
    Comm *host = host_of(comm);
    host->operations->set_activity(host, what, slowly);
}
void comm_doing(Comm *comm, const char *what) { say(comm, what, false); }
void comm_doing_slowly(Comm *comm, const char *what) { say(comm, what, true); }

const char *comm_activity(Comm *comm) {
    Comm *host = host_of(comm);
    const char *activity = host->operations->activity(host);
    return activity != NULL && *activity != '\0' ? activity : "it did not say what";
}

int64_t comm_heartbeats(Comm *comm) {
    Comm *host = host_of(comm);
    return host->operations->heartbeats(host);
}

void *comm_allocate(Comm *comm, size_t count, size_t size) {
    void *memory = calloc(count > 0 ? count : 1, size);
    if (memory == NULL) comm_give_up(comm, "out of memory: %zu bytes for %s", count * size, comm->operation);
    return memory;
}

void *comm_scratch(Comm *comm, size_t bytes) {
    if (bytes > comm->scratch_bytes) {
        free(comm->scratch);
        comm->scratch = comm_allocate(comm, 1, bytes);
        comm->scratch_bytes = bytes;
    }
    return comm->scratch;
}

void comm_free_memory(Comm *comm) {
    free(comm->scratch);
    free(comm);
}

// To myself. `to` and `from` do not overlap, or are the same.
static void copy_own(Comm *comm, void *to, const void *from, size_t bytes) {
    if (bytes == 0 || to == from) return;
    if (comm->device != NULL) comm->device->copy_on(comm->device, STREAM_WORK, to, from, bytes);
    else memcpy(to, from, bytes);
}

void comm_host_barrier(Comm *comm, const char *operation) {
    Comm *host = host_of(comm);
    host->operation = operation;
    host->operations->barrier(host);
}

void comm_barrier(Comm *comm) {
    if (comm->size > 1) comm_host_barrier(comm, "barrier");
}

void comm_broadcast(Comm *comm, void *data, size_t bytes, int root) {
    if (comm->size == 1 || bytes == 0) return;
    if (comm->rank == root) comm->bytes_sent += (int64_t)bytes * (comm->size - 1);
    comm->operation = "broadcast";
    comm->operations->broadcast(comm, data, bytes, root);
}

void comm_all_reduce_sum(Comm *comm, double *values, int count) {
    if (comm->size == 1 || count == 0) return;
    Comm *host = host_of(comm);
    comm->bytes_sent += (int64_t)sizeof *values * count * (comm->size - 1);
    host->operation = "all-reduce";
    host->operations->all_reduce_sum(host, values, count);
}

void comm_reduce_scatter_sum(Comm *comm, float *out, float *in, const int64_t *counts) {
    if (comm->size == 1) {
        copy_own(comm, out, in, (size_t)counts[0] * sizeof *out);
        return;
    }
    for (int rank = 0; rank < comm->size; rank++) {
        if (rank != comm->rank) comm->bytes_sent += counts[rank] * (int64_t)sizeof *in;
    }
    comm->operation = "reduce-scatter";
    comm->operations->reduce_scatter_sum(comm, out, in, counts);
}

void comm_all_gather(Comm *comm, void *data, const size_t *bytes) {
    if (comm->size == 1) return;
    comm->bytes_sent += (int64_t)bytes[comm->rank] * (comm->size - 1);
    comm->operation = "all-gather";
    comm->operations->all_gather(comm, data, bytes);
}

void comm_sum_floats(float *out, const float *const *terms, int term_count, int64_t count) {
    enum { BLOCK = 1024 }; // stays in the first-level cache; also lets `out` be one of the terms
    float sum[BLOCK];
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        int n = (int)(count - begin < BLOCK ? count - begin : BLOCK);
        memcpy(sum, terms[0] + begin, (size_t)n * sizeof *sum);
        for (int t = 1; t < term_count; t++) {
            const float *term = terms[t] + begin;
            for (int i = 0; i < n; i++) sum[i] += term[i];
        }
        memcpy(out + begin, sum, (size_t)n * sizeof *sum);
    }
}

CommRequest comm_exchange_part(Comm *comm, const void *send, size_t send_bytes, int to, void *receive,
                               size_t receive_bytes, int from) {
    CommRequest complete = {NULL, NULL};
    if (to == comm->rank && from == comm->rank) {
        if (send_bytes != receive_bytes) comm_sizes_error(comm, comm->rank, comm->rank, send_bytes, receive_bytes);
        copy_own(comm, receive, send, send_bytes);
        return complete;
    }
    if (send_bytes == 0 && receive_bytes == 0) return complete;
    return comm->operations->exchange_begin(comm, send, send_bytes, to, receive, receive_bytes, from);
}

CommRequest comm_exchange_begin(Comm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                size_t receive_bytes, int from) {
    comm->operation = "exchange";
    if (to != comm->rank) comm->bytes_sent += (int64_t)send_bytes;
    return comm_exchange_part(comm, send, send_bytes, to, receive, receive_bytes, from);
}

void comm_wait_part(Comm *comm, CommRequest *request) {
    if (request->send != NULL || request->receive != NULL) comm->operations->wait(comm, request);
    request->send = request->receive = NULL;
}

void comm_wait(Comm *comm, CommRequest *request) {
    comm->operation = "exchange";
    comm_wait_part(comm, request);
}

void comm_batch_begin(Comm *comm) {
    if (comm->operations->batch_begin != NULL) comm->operations->batch_begin(comm);
}

void comm_batch_end(Comm *comm) {
    if (comm->operations->batch_end != NULL) comm->operations->batch_end(comm);
}
