// Collectives made of exchanges between two ranks: what overlaps with work on every engine, and the whole of what
// engines have that know nothing but messages (mpi, nccl) and groups on devices.
//
// Most are the same shift pattern: in step s a rank sends to the one s places after it and receives from the one s
// places before it, so that no rank is everyone's target at once. Sums are taken by the receiver, in the order of
// ranks.
#include "comm/engine.h"

#include <string.h>

#include "comm/device_group.h"

static int after(const Comm *comm, int step) { return (comm->rank + step) % comm->size; }
static int before(const Comm *comm, int step) { return (comm->rank + comm->size - step) % comm->size; }

static size_t bytes_before(const size_t *bytes, int rank) {
    size_t sum = 0;
    for (int r = 0; r < rank; r++) sum += bytes[r];
    return sum;
}

static int64_t floats_before(const int64_t *counts, int rank) {
    int64_t sum = 0;
    for (int r = 0; r < rank; r++) sum += counts[r];
    return sum;
}

static void wait_for_parts(Comm *comm, CommRequest *requests, int count) {
    for (int i = 0; i < count; i++) comm_wait_part(comm, &requests[i]);
}

void comm_wait_all(Comm *comm, CommRequest *requests, int count) {
    for (int i = 0; i < count; i++) comm_wait(comm, &requests[i]);
}

static void begin_all_gather(Comm *comm, char *all, const size_t *bytes, CommRequest *requests) {
    const char *mine = all + bytes_before(bytes, comm->rank);
    comm_batch_begin(comm);
    for (int step = 1; step < comm->size; step++) {
        int to = after(comm, step), from = before(comm, step);
        requests[step - 1] =
            comm_exchange_part(comm, mine, bytes[comm->rank], to, all + bytes_before(bytes, from), bytes[from], from);
    }
    comm_batch_end(comm);
}

void comm_all_gather_begin(Comm *comm, void *data, const size_t *bytes, CommRequest *requests) {
    comm->operation = "all-gather";
    comm->bytes_sent += (int64_t)bytes[comm->rank] * (comm->size - 1);
    begin_all_gather(comm, data, bytes, requests);
}

void comm_all_gather_wait(Comm *comm, CommRequest *requests) { comm_wait_all(comm, requests, comm->size - 1); }

void exchanged_all_gather(Comm *comm, void *data, const size_t *bytes) {
    CommRequest *requests = comm_scratch(comm, (size_t)comm->size * sizeof *requests);
    begin_all_gather(comm, data, bytes, requests);
    wait_for_parts(comm, requests, comm->size - 1);
}

void comm_gather_states(Comm *comm, void *states, size_t bytes, CommRequest *requests) {
    size_t *each = comm_scratch(comm, (size_t)comm->size * sizeof *each);
    for (int rank = 0; rank < comm->size; rank++) each[rank] = bytes;
    comm_all_gather_begin(comm, states, each, requests);
    comm_all_gather_wait(comm, requests);
}

void exchanged_broadcast(Comm *comm, void *data, size_t bytes, int root) {
    CommRequest *requests = comm_scratch(comm, (size_t)comm->size * sizeof *requests);
    int count = comm->rank == root ? comm->size - 1 : 1;
    for (int i = 0; i < count; i++)
        requests[i] = comm->rank == root ? comm_exchange_part(comm, data, bytes, after(comm, i + 1), NULL, 0, root)
                                         : comm_exchange_part(comm, NULL, 0, root, data, bytes, root);
    wait_for_parts(comm, requests, count);
}

// Dissemination (Hensgen, Finkel and Manber 1988): after round k a rank has heard, directly or not, of the 2^k before
// it.
void exchanged_barrier(Comm *comm) {
    for (int distance = 1; distance < comm->size; distance *= 2) {
        char mine = 0, heard;
        CommRequest request =
            comm_exchange_part(comm, &mine, 1, after(comm, distance), &heard, 1, before(comm, distance));
        comm_wait_part(comm, &request);
    }
}

void exchanged_all_reduce_sum(Comm *comm, double *values, int count) {
    size_t size = (size_t)comm->size, stride = (size_t)count;
    CommRequest *requests = comm_scratch(comm, size * (sizeof *requests + stride * sizeof *values));
    double *all = (double *)(requests + size);
    memcpy(all + (size_t)comm->rank * stride, values, stride * sizeof *all);
    for (int step = 1; step < comm->size; step++) {
        int from = before(comm, step);
        requests[step - 1] = comm_exchange_part(comm, values, stride * sizeof *all, after(comm, step),
                                                all + (size_t)from * stride, stride * sizeof *all, from);
    }
    wait_for_parts(comm, requests, comm->size - 1);
    for (size_t i = 0; i < stride; i++) {
        double sum = all[i];
        for (size_t rank = 1; rank < size; rank++) sum += all[rank * stride + i];
        values[i] = sum;
    }
}

// Floats of a segment of `count` in the piece that begins at `begin`.
static int64_t piece_of(int64_t count, int64_t begin, int64_t piece) {
    int64_t left = count - begin;
    return left < 0 ? 0 : left < piece ? left : piece;
}

// The piece that begins at `begin` of every segment goes to its rank; the others' terms of mine come into `room`, which
// has a place of `stride` floats for each, in their order.
static void begin_piece(Comm *comm, const float *in, const int64_t *counts, int64_t begin, int64_t piece, float *room,
                        int64_t stride, CommRequest *requests) {
    size_t mine = (size_t)piece_of(counts[comm->rank], begin, piece) * sizeof *in;
    comm_batch_begin(comm);
    for (int step = 1; step < comm->size; step++) {
        int to = after(comm, step), from = before(comm, step);
        requests[step - 1] = comm_exchange_part(comm, in + floats_before(counts, to) + begin,
                                                (size_t)piece_of(counts[to], begin, piece) * sizeof *in, to,
                                                room + (from < comm->rank ? from : from - 1) * stride, mine, from);
    }
    comm_batch_end(comm);
}

static void sum_piece(Comm *comm, float *out, const float *in, int64_t length, float *room, int64_t stride,
                      const float **term) {
    for (int rank = 0; rank < comm->size; rank++)
        term[rank] = rank == comm->rank ? in : room + (rank < comm->rank ? rank : rank - 1) * stride;
    if (comm->device == NULL) comm_sum_floats(out, term, comm->size, length);
    else device_sum_terms(comm->device, out, term, comm->size, length, room);
}

void comm_reduce_scatter_begin(Comm *comm, const float *in, const int64_t *counts, float *room, CommRequest *requests) {
    comm->operation = "reduce-scatter";
    comm->bytes_sent += (floats_before(counts, comm->size) - counts[comm->rank]) * (int64_t)sizeof *in;
    begin_piece(comm, in, counts, 0, INT64_MAX, room, counts[comm->rank], requests);
}

void comm_reduce_scatter_wait(Comm *comm, float *out, const float *in, const int64_t *counts, float *room,
                              CommRequest *requests) {
    int64_t mine = counts[comm->rank];
    const float **term = comm_scratch(comm, (size_t)comm->size * sizeof *term);
    comm->operation = "reduce-scatter";
    wait_for_parts(comm, requests, comm->size - 1);
    sum_piece(comm, out, in + floats_before(counts, comm->rank), mine, room, mine, term);
}

// Floats in a piece, the same on every rank: `most`, or less where no segment has so many.
static int64_t piece_floats(int64_t most, int64_t longest) {
    const int64_t ALIGNMENT = 64; // 256 bytes
    return longest < most ? (longest + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : most / ALIGNMENT * ALIGNMENT;
}

static int64_t piece_on_device(int ranks, int64_t longest) {
    return piece_floats(COMM_STAGING_BYTES / (int64_t)sizeof(float) / (ranks - 1), longest);
}

size_t comm_staging_bytes(int ranks, int64_t longest) {
    return ranks == 1 ? 0 : (size_t)(piece_on_device(ranks, longest) * (ranks - 1)) * sizeof(float);
}

// Piece by piece, so that the room stays small whatever the segments.
void exchanged_reduce_scatter_sum(Comm *comm, float *out, float *in, const int64_t *counts) {
    const int64_t IN_HOST_MEMORY = 1 << 18; // floats
    size_t size = (size_t)comm->size;
    int64_t longest = 0;
    for (int rank = 0; rank < comm->size; rank++) longest = counts[rank] > longest ? counts[rank] : longest;
    int64_t piece = comm->device == NULL ? piece_floats(IN_HOST_MEMORY, longest) : piece_on_device(comm->size, longest);
    size_t lists = size * (sizeof(CommRequest) + sizeof(float *)), floats = (size_t)piece * (size - 1);
    CommRequest *requests = comm_scratch(comm, lists + (comm->device == NULL ? floats * sizeof *in : 0));
    const float **term = (const float **)(requests + size);
    float *room = comm->device == NULL ? (float *)(term + size) : device_group_staging(comm, floats * sizeof *in);
    const float *own = in + floats_before(counts, comm->rank);
    for (int64_t begin = 0; begin < longest; begin += piece) {
        begin_piece(comm, in, counts, begin, piece, room, piece, requests);
        wait_for_parts(comm, requests, comm->size - 1);
        sum_piece(comm, out + begin, own + begin, piece_of(counts[comm->rank], begin, piece), room, piece, term);
    }
}

void comm_halo_begin(Comm *comm, const CommHalo *halo, CommRequest requests[2]) {
    int rank = comm->rank, last = comm->size - 1;
    bool has_next = rank<last, has_previous = rank> 0;
    int next = has_next ? rank + 1 : rank - 1, previous = has_previous ? rank - 1 : rank + 1; // of no bytes: any other
    requests[0] = requests[1] = (CommRequest){NULL, NULL};
    if (last == 0) return;
    comm_batch_begin(comm);
    requests[0] = comm_exchange_begin(comm, halo->my_last, has_next ? halo->before_bytes : 0, next, halo->before,
                                      has_previous ? halo->before_bytes : 0, previous);
    requests[1] = comm_exchange_begin(comm, halo->my_first, has_previous ? halo->after_bytes : 0, previous, halo->after,
                                      has_next ? halo->after_bytes : 0, next);
    comm_batch_end(comm);
}

void comm_all_to_all_begin(Comm *comm, const void *send, const size_t *send_bytes, void *receive,
                           const size_t *receive_bytes, CommRequest *requests) {
    comm_batch_begin(comm);
    for (int step = 0; step < comm->size; step++) {
        int to = after(comm, step), from = before(comm, step);
        requests[step] =
            comm_exchange_begin(comm, (const char *)send + bytes_before(send_bytes, to), send_bytes[to], to,
                                (char *)receive + bytes_before(receive_bytes, from), receive_bytes[from], from);
    }
    comm_batch_end(comm);
}

void comm_all_to_all_sizes(Comm *comm, const size_t *send_bytes, size_t *receive_bytes, CommRequest *requests) {
    Comm *host = comm->device != NULL ? comm->host : comm;
    host->operation = "exchange of sizes";
    comm->bytes_sent += (int64_t)sizeof *send_bytes * (comm->size - 1);
    for (int step = 0; step < comm->size; step++) {
        int to = after(comm, step), from = before(comm, step);
        requests[step] = comm_exchange_part(host, &send_bytes[to], sizeof *send_bytes, to, &receive_bytes[from],
                                            sizeof *receive_bytes, from);
    }
    wait_for_parts(host, requests, comm->size);
}
