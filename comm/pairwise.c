#include "comm/pairwise.h"

#include <stdlib.h>
#include <string.h>

static const int64_t SUM_BLOCK = 1 << 18; // floats of a segment that travel at once in a reduce-scatter

static void *send_to(Comm *comm, int to, const void *data, size_t bytes) {
    return comm->operations->message_begin(comm, false, (void *)(uintptr_t)data, bytes, to, true);
}
static void *receive_from(Comm *comm, int from, void *data, size_t bytes) {
    return comm->operations->message_begin(comm, true, data, bytes, from, true);
}
static void end(Comm *comm, void *message) { comm->operations->message_end(comm, message); }

static void end_all(Comm *comm, void **messages) { // (2, size): receives, sends; NULL: none
    for (int i = 0; i < 2 * comm->size; i++)
        if (messages[i] != NULL) end(comm, messages[i]);
}

// Dissemination (Hensgen, Finkel and Manber 1988): after round k a rank has heard, directly or not, of the 2^k before
// it.
void pairwise_barrier(Comm *comm) {
    int size = comm->size, rank = comm->rank;
    for (int distance = 1; distance < size; distance *= 2) {
        void *receive = receive_from(comm, (rank + size - distance) % size, NULL, 0);
        void *send = send_to(comm, (rank + distance) % size, NULL, 0);
        end(comm, receive);
        end(comm, send);
    }
}

void pairwise_broadcast(Comm *comm, void *data, size_t bytes, int root) {
    if (comm->rank != root) {
        end(comm, receive_from(comm, root, data, bytes));
        return;
    }
    void **messages = comm_allocate(comm, 1, 2 * (size_t)comm->size * sizeof *messages);
    for (int to = 0; to < comm->size; to++)
        if (to != root) messages[to] = send_to(comm, to, data, bytes);
    end_all(comm, messages);
    free(messages);
}

void pairwise_all_gather(Comm *comm, void *data, const size_t *bytes) {
    int size = comm->size, me = comm->rank;
    void **messages = comm_allocate(comm, 1, 2 * (size_t)size * sizeof *messages);
    size_t offset = 0, my_offset = 0;
    for (int from = 0; from < size; from++) {
        if (from == me) my_offset = offset;
        else if (bytes[from] > 0) messages[from] = receive_from(comm, from, (char *)data + offset, bytes[from]);
        offset += bytes[from];
    }
    for (int to = 0; to < size; to++)
        if (to != me && bytes[me] > 0) messages[size + to] = send_to(comm, to, (char *)data + my_offset, bytes[me]);
    end_all(comm, messages);
    free(messages);
}

void pairwise_all_reduce_sum(Comm *comm, double *values, int count) {
    size_t size = (size_t)comm->size, stride = (size_t)count;
    double *all = comm_allocate(comm, 1, size * stride * sizeof *all);
    size_t *bytes = comm_allocate(comm, 1, size * sizeof *bytes);
    const double **terms = comm_allocate(comm, 1, size * sizeof *terms);
    for (size_t rank = 0; rank < size; rank++) {
        bytes[rank] = stride * sizeof *all;
        terms[rank] = all + rank * stride;
    }
    memcpy(all + (size_t)comm->rank * stride, values, stride * sizeof *all);
    pairwise_all_gather(comm, all, bytes);
    comm_sum_doubles(values, terms, comm->size, count);
    free(terms);
    free(bytes);
    free(all);
}

static int64_t block_of(int64_t count, int64_t begin) { // floats of a segment in the block that begins at `begin`
    int64_t left = count - begin;
    return left < 0 ? 0 : left < SUM_BLOCK ? left : SUM_BLOCK;
}

// Segments travel block by block, so that the copies to be summed stay small whatever the segment.
void pairwise_reduce_scatter_sum(Comm *comm, float *out, float *in, const int64_t *counts) {
    int size = comm->size, me = comm->rank;
    int64_t longest = 0, my_offset = 0;
    for (int rank = 0; rank < size; rank++) {
        if (counts[rank] > longest) longest = counts[rank];
        if (rank < me) my_offset += counts[rank];
    }
    int64_t stride = block_of(counts[me], 0);
    float *received = comm_allocate(comm, 1, (size_t)(size * stride) * sizeof *received);
    const float **terms = comm_allocate(comm, 1, (size_t)size * sizeof *terms);
    void **messages = comm_allocate(comm, 1, 2 * (size_t)size * sizeof *messages);
    for (int64_t begin = 0; begin < longest; begin += SUM_BLOCK) {
        memset(messages, 0, 2 * (size_t)size * sizeof *messages);
        int64_t mine = block_of(counts[me], begin), offset = 0;
        for (int from = 0; from < size; from++) {
            float *block = received + from * stride;
            terms[from] = from == me ? in + my_offset + begin : block;
            if (from != me && mine > 0) messages[from] = receive_from(comm, from, block, (size_t)mine * sizeof *block);
        }
        for (int to = 0; to < size; to++) {
            int64_t theirs = block_of(counts[to], begin);
            if (to != me && theirs > 0)
                messages[size + to] = send_to(comm, to, in + offset + begin, (size_t)theirs * sizeof *in);
            offset += counts[to];
        }
        end_all(comm, messages);
        if (mine > 0) comm_sum_floats(out + begin, terms, size, mine);
    }
    free(messages);
    free(terms);
    free(received);
}

// ---- groups and exchanges -------------------------------------------------------------------------------------------

ProcessGroup *process_group_new(const CommOperations *operations, void *world, double timeout, int *next_number,
                                int rank, int size) {
    ProcessGroup *group = calloc(1, sizeof *group + (size_t)size * sizeof group->member[0]);
    if (group == NULL) return NULL;
    group->base = (Comm){.operations = operations,
                         .rank = rank,
                         .world_rank = rank,
                         .size = size,
                         .next_number = next_number,
                         .timeout = timeout,
                         .operation = "start"};
    group->world = world;
    for (int i = 0; i < size; i++) group->member[i] = i;
    return group;
}

Comm *pairwise_group(Comm *comm, const int *members, int size, int rank, int number) {
    ProcessGroup *parent = process_group(comm);
    ProcessGroup *made =
        process_group_new(comm->operations, parent->world, comm->timeout, comm->next_number, rank, size);
    if (made == NULL) comm_give_up(comm, "out of memory for a group of %d ranks", size);
    made->number = number;
    for (int i = 0; i < size; i++) made->member[i] = parent->member[members[i]];
    return &made->base;
}

CommRequest pairwise_exchange_begin(Comm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                    size_t receive_bytes, int from) {
    CommRequest request = {NULL, NULL};
    const CommOperations *its = comm->operations;
    if (receive_bytes > 0) request.receive = its->message_begin(comm, true, receive, receive_bytes, from, false);
    if (send_bytes > 0)
        request.send = its->message_begin(comm, false, (void *)(uintptr_t)send, send_bytes, to, false);
    return request;
}

void pairwise_wait(Comm *comm, const CommRequest *request) {
    if (request->receive != NULL) comm->operations->message_end(comm, request->receive);
    if (request->send != NULL) comm->operations->message_end(comm, request->send);
}
