// Collectives that overlap with work, made of exchanges between two ranks, for every engine and for groups on devices.
//
// All are the same shift pattern: in step s a rank sends to the one s places after it and receives from the one s
// places before it, so that no rank is everyone's target at once. All steps are begun together; whoever begins them goes
// on with its work and waits later.
#include <string.h>

#include "comm/device_group.h"
#include "comm/engine.h"

static size_t sum_before(const size_t *bytes, int rank) {
    size_t sum = 0;
    for (int r = 0; r < rank; r++) sum += bytes[r];
    return sum;
}

static int64_t floats_before(const int64_t *counts, int rank) {
    int64_t sum = 0;
    for (int r = 0; r < rank; r++) sum += counts[r];
    return sum;
}

static int after(const Comm *comm, int step) { return (comm->rank + step) % comm->size; }
static int before(const Comm *comm, int step) { return (comm->rank + comm->size - step) % comm->size; }

void comm_wait_all(Comm *comm, CommRequest *requests, int count) {
    for (int i = 0; i < count; i++) comm_wait(comm, &requests[i]);
}

void comm_all_gather_parts(Comm *comm, void *data, const size_t *bytes, CommRequest *requests) {
    char *all = data, *mine = all + sum_before(bytes, comm->rank);
    comm_batch_begin(comm);
    for (int step = 1; step < comm->size; step++) {
        int to = after(comm, step), from = before(comm, step);
        requests[step - 1] = comm_exchange_part(comm, mine, bytes[comm->rank], to, all + sum_before(bytes, from),
                                                bytes[from], from);
    }
    comm_batch_end(comm);
}

void comm_all_gather_begin(Comm *comm, void *data, const size_t *bytes, CommRequest *requests) {
    comm->operation = "all-gather";
    comm->bytes_sent += (int64_t)bytes[comm->rank] * (comm->size - 1);
    comm_all_gather_parts(comm, data, bytes, requests);
}

void comm_all_gather_wait(Comm *comm, CommRequest *requests) { comm_wait_all(comm, requests, comm->size - 1); }

void comm_gather_states(Comm *comm, void *states, size_t bytes, CommRequest *requests) {
    char *all = states;
    comm_batch_begin(comm);
    for (int step = 1; step < comm->size; step++) {
        int to = after(comm, step), from = before(comm, step);
        requests[step - 1] = comm_exchange_begin(comm, all + (size_t)comm->rank * bytes, bytes, to,
                                                 all + (size_t)from * bytes, bytes, from);
    }
    comm_batch_end(comm);
    comm_all_gather_wait(comm, requests);
}

// ---- sums ---------------------------------------------------------------------------------------------------------

// Where the term of `rank` comes to lie in a room of size - 1 pieces of `stride` floats.
static float *place_of(const Comm *comm, float *room, int64_t stride, int rank) {
    return room + (rank < comm->rank ? rank : rank - 1) * stride;
}

void comm_reduce_scatter_begin(Comm *comm, const float *in, const int64_t *counts, float *room,
                               CommRequest *requests) {
    int64_t mine = counts[comm->rank];
    comm_batch_begin(comm);
    for (int step = 1; step < comm->size; step++) {
        int to = after(comm, step), from = before(comm, step);
        requests[step - 1] =
            comm_exchange_begin(comm, in + floats_before(counts, to), (size_t)counts[to] * sizeof *in, to,
                                place_of(comm, room, mine, from), (size_t)mine * sizeof *in, from);
    }
    comm_batch_end(comm);
}

void comm_reduce_scatter_wait(Comm *comm, float *out, const float *in, const int64_t *counts, float *room,
                              CommRequest *requests) {
    int64_t mine = counts[comm->rank];
    const float **term = comm_scratch(comm, (size_t)comm->size * sizeof *term);
    comm_wait_all(comm, requests, comm->size - 1);
    for (int rank = 0; rank < comm->size; rank++)
        term[rank] = rank == comm->rank ? in + floats_before(counts, rank) : place_of(comm, room, mine, rank);
    if (comm->device == NULL) comm_sum_floats(out, term, comm->size, mine);
    else device_sum_terms(comm->device, out, term, comm->size, mine, room);
}

// ---- edges and pieces of any size -----------------------------------------------------------------------------------

void comm_halo_begin(Comm *comm, const CommHalo *halo, CommRequest requests[2]) {
    int rank = comm->rank, last = comm->size - 1, next = rank < last ? rank + 1 : rank, previous = rank > 0 ? rank - 1 : 0;
    bool has_next = rank < last, has_previous = rank > 0;
    requests[0] = requests[1] = (CommRequest){NULL, NULL};
    if (last == 0) return;
    comm_batch_begin(comm);
    requests[0] = comm_exchange_begin(comm, halo->my_last, has_next ? halo->before_bytes : 0, has_next ? next : previous,
                                      halo->before, has_previous ? halo->before_bytes : 0,
                                      has_previous ? previous : next);
    requests[1] = comm_exchange_begin(comm, halo->my_first, has_previous ? halo->after_bytes : 0,
                                      has_previous ? previous : next, halo->after, has_next ? halo->after_bytes : 0,
                                      has_next ? next : previous);
    comm_batch_end(comm);
}

void comm_all_to_all_begin(Comm *comm, const void *send, const size_t *send_bytes, void *receive,
                           const size_t *receive_bytes, CommRequest *requests) {
    comm_batch_begin(comm);
    for (int step = 0; step < comm->size; step++) {
        int to = after(comm, step), from = before(comm, step);
        requests[step] = comm_exchange_begin(comm, (const char *)send + sum_before(send_bytes, to), send_bytes[to], to,
                                             (char *)receive + sum_before(receive_bytes, from), receive_bytes[from],
                                             from);
    }
    comm_batch_end(comm);
}

void comm_all_to_all_sizes(Comm *comm, const size_t *send_bytes, size_t *receive_bytes, CommRequest *requests) {
    Comm *host = comm->device != NULL ? comm->host : comm;
    for (int step = 0; step < comm->size; step++) {
        int to = after(comm, step), from = before(comm, step);
        requests[step] = comm_exchange_begin(host, &send_bytes[to], sizeof *send_bytes, to, &receive_bytes[from],
                                             sizeof *receive_bytes, from);
    }
    comm_wait_all(host, requests, comm->size);
    if (host != comm) comm->bytes_sent += (int64_t)sizeof *send_bytes * (comm->size - 1);
}
