// Groups of ranks on devices: every operation against the same one on the host's engine, bit for bit and byte for byte,
// for 1 to 5 ranks, by copies between devices (each rank with a GPU, and all sharing one) and by NCCL.
//
// The device is the emulated one, which runs work as late as the dependencies allow and in an order that its seed
// decides. So a wait that is missing gives wrong data; that this test would notice is tested too, by leaving waits out.
// Since the seed is read once, the checks run in programs that this test starts (itself, with arguments).
//
// With TEST_DEVICE=cuda in the environment the checks run on GPUs, as many as there are: ranks that copy share them,
// and ranks of NCCL are processes, each of which tells NCCL that it is a machine of its own (NCCL_HOSTID), since NCCL
// refuses two ranks on one GPU of a machine.
#include "test/cuda_device.h"
#include "test/ranks.h"

#include <math.h>
#include <pthread.h>
#include <stdint.h>

#include "base/random.h"
#include "comm/device_group.h"

enum { MOST_RANKS = 5, MOST_BYTES = 60000 };

typedef enum Transport {
    SHARED,
    PEERS,
    COLLECTIVES,
    ENGINE,
    TRANSPORTS
} Transport; // all on one GPU; one each; one each, by NCCL; the same, where NCCL carries the host's groups too
static const char *const transport_names[TRANSPORTS] = {"shared", "peers", "collectives", "engine"};

// Which of a device's waits are left out, to see the checks fail.
typedef enum Fault { NO_FAULT, WORK_DOES_NOT_WAIT, EXCHANGE_DOES_NOT_WAIT } Fault;

typedef struct Checks { // of one run, written by its ranks
    pthread_mutex_t lock;
    int failures;
    char first[300];
    Transport transport;
    Fault fault;
    bool at_once; // on the device that does all at once
} Checks;

typedef struct Rank { // one rank's hands: the same ranks on the host's engine, and on their devices
    Comm *host, *comm;
    Device *device;
    Checks *checks;
} Rank;

// cmocka's asserts may only be used by the thread that runs the test, so ranks report here.
static void check(Rank *me, bool right, const char *what, long long a, long long b) {
    if (right) return;
    pthread_mutex_lock(&me->checks->lock);
    if (me->checks->failures++ == 0) {
        snprintf(me->checks->first, sizeof me->checks->first, "rank %d of %d: %s (%lld, %lld)", comm_rank(me->comm),
                 comm_size(me->comm), what, a, b);
    }
    pthread_mutex_unlock(&me->checks->lock);
}

// What was sent on the devices beyond what was sent by the host's engine.
static int64_t sent_beyond(const Rank *me) { return comm_bytes_sent(me->comm) - comm_bytes_sent(me->host); }
static void check_same_sent(Rank *me, int64_t before, const char *what, int round) {
    check(me, sent_beyond(me) == before, what, round, sent_beyond(me) - before);
}

static Device *gpu_of_engine; // of this process, where it is a rank of engine `nccl`

static void close_device(Device *device) {
    if (gpu_of_engine == NULL) device->close(device);
}

static void open_device(Device *device, Comm *world, bool shared) {
    const char *why = "";
    Error err = {0};
    if (gpu_of_engine != NULL) {
        *device = *gpu_of_engine;
        return;
    }
    int count = device_count(cuda_device_kind(), &why), index = shared || count == 0 ? 0 : comm_rank(world) % count;
    if (!device_open(device, cuda_device_kind(), index, 1, &err)) comm_fail(world, &err);
}

// ---- a device that does all at once ---------------------------------------------------------------------------------

// The CPU device with events: what it is told is done when the call returns, so there is nothing to wait for. It shows
// what the ranks' threads do to each other, to ThreadSanitizer above all.
struct Event {
    int recorded;
};
static Event *event_create_at_once(Device *device) {
    (void)device;
    return calloc(1, sizeof(Event));
}
static void event_release_at_once(Device *device, Event *event) {
    (void)device;
    free(event);
}
static void record_at_once(Device *device, Stream stream, Event *event) {
    (void)device, (void)stream;
    event->recorded++;
}
static void wait_at_once(Device *device, Stream stream, Event *event) {
    (void)device, (void)stream;
    if (event->recorded == 0) abort();
}
static bool done_at_once(Device *device, Event *event) {
    (void)device;
    return event->recorded > 0;
}
static void copy_at_once(Device *device, Stream stream, void *to, const void *from, size_t bytes) {
    (void)device, (void)stream;
    memcpy(to, from, bytes);
}
static void sum_at_once(Device *device, Stream stream, float *out, const float *const *terms, int term_count,
                        int64_t count) {
    (void)device, (void)stream;
    if (term_count > DEVICE_MOST_TERMS) abort();
    for (int64_t i = 0; i < count; i++) {
        float sum = terms[0][i];
        for (int t = 1; t < term_count; t++) sum += terms[t][i];
        out[i] = sum;
    }
}
static void open_at_once(Device *device) {
    cpu_device(device, 1);
    device->host_memory = false;
    device->event_create = event_create_at_once;
    device->event_release = event_release_at_once;
    device->event_record = record_at_once;
    device->stream_wait = wait_at_once;
    device->event_done = done_at_once;
    device->copy_on = copy_at_once;
    device->sum_terms = sum_at_once;
}

// ---- memory -------------------------------------------------------------------------------------------------------

static void *get(size_t bytes) {
    void *memory = calloc(bytes ? bytes : 1, 1);
    if (memory == NULL) abort();
    return memory;
}

static void *get_on_device(Rank *me, size_t bytes) {
    Error err = {0};
    void *memory = me->device->allocate(me->device, bytes, &err);
    if (memory == NULL) comm_fail(me->host, &err);
    return memory;
}

// Numbers of very different sizes, so that another order of summing would give other bits. Quick, for large counts.
static uint32_t hash(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t x = a * 0x9E3779B1u ^ b * 0x85EBCA77u ^ c * 0xC2B2AE3Du;
    x = (x ^ x >> 15) * 0x2C1B3C6Du;
    x = (x ^ x >> 12) * 0x297A2D39u;
    return x ^ x >> 15;
}
static void fill(float *values, int64_t count, int rank, int round) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t random = hash((uint32_t)rank, (uint32_t)round, (uint32_t)i);
        values[i] = ldexpf((float)(int32_t)random, (int)(random % 20) - 31);
    }
}

// Uneven counts, some of them 0.
static int64_t count_of(int rank, int round) {
    static const uint32_t bounds[] = {1, 20, 300, 5000};
    uint32_t random = hash(7, (uint32_t)rank, (uint32_t)round);
    return (int64_t)(random / 4 % bounds[random % 4]);
}

// A buffer of the device as the model's are: its content comes from work that has only been told to the device, and is
// overwritten by more such work as soon as the operation allows it.
typedef struct Box {
    void *source, *buffer, *result;
    size_t bytes;
} Box;

static Box make_box(Rank *me, size_t bytes) {
    Box box = {get_on_device(me, bytes), get_on_device(me, bytes), get_on_device(me, bytes), bytes};
    return box;
}

static void free_box(Rank *me, Box *box) {
    me->device->release(me->device, box->source, box->bytes);
    me->device->release(me->device, box->buffer, box->bytes);
    me->device->release(me->device, box->result, box->bytes);
}

static void put(Rank *me, const Box *box, const void *content, size_t bytes) {
    me->device->zero(me->device, box->buffer, box->bytes);
    me->device->upload(me->device, box->source, content, bytes);
    me->device->copy(me->device, box->buffer, box->source, bytes);
}

// To be called at once after the operation.
static void take(Rank *me, const Box *box, size_t bytes) {
    me->device->copy(me->device, box->result, box->buffer, bytes);
    me->device->zero(me->device, box->buffer, box->bytes);
}

static void compare(Rank *me, const Box *box, size_t offset, const void *expected, size_t bytes, const char *what,
                    int round) {
    char *got = get(bytes);
    me->device->download(me->device, got, (char *)box->result + offset, bytes);
    check(me, memcmp(got, expected, bytes) == 0, what, round, (long long)bytes);
    free(got);
}

// ---- collectives --------------------------------------------------------------------------------------------------

static void check_broadcast(Rank *me, int round) { // there is none on devices
    if (!me->device->host_memory) return;
    int64_t before = sent_beyond(me);
    int root = round % comm_size(me->comm);
    size_t count = (size_t)count_of(root, round), bytes = count * sizeof(float);
    float *data = get(bytes);
    fill(data, (int64_t)count, comm_rank(me->comm), round);
    Box box = make_box(me, bytes);
    put(me, &box, data, bytes);
    comm_broadcast(me->comm, box.buffer, bytes, root);
    take(me, &box, bytes);
    comm_broadcast(me->host, data, bytes, root);
    check_same_sent(me, before, "bytes of broadcast", round);
    compare(me, &box, 0, data, bytes, "broadcast", round);
    free_box(me, &box);
    free(data);
}

static void check_all_gather(Rank *me, int round) {
    int64_t before = sent_beyond(me);
    size_t bytes[MOST_RANKS], total = 0, begin = 0;
    for (int r = 0; r < comm_size(me->comm); r++) {
        bytes[r] = round % 3 == 2 ? 100 + (size_t)round : (size_t)count_of(r, round); // odd; sometimes all the same
        if (r < comm_rank(me->comm)) begin += bytes[r];
        total += bytes[r];
    }
    unsigned char *data = get(total);
    for (size_t i = 0; i < bytes[comm_rank(me->comm)]; i++)
        data[begin + i] = (unsigned char)hash(1, (uint32_t)round, (uint32_t)(begin + i));
    Box box = make_box(me, total);
    put(me, &box, data, total);
    comm_all_gather(me->comm, box.buffer, bytes);
    take(me, &box, total);
    comm_all_gather(me->host, data, bytes);
    check_same_sent(me, before, "bytes of all-gather", round);
    compare(me, &box, 0, data, total, "all-gather", round);
    free_box(me, &box);
    free(data);
}

static void check_reduce_scatter_of(Rank *me, const int64_t *counts, bool in_place, int round) {
    int64_t total = 0, begin = 0, mine = counts[comm_rank(me->comm)], before = sent_beyond(me);
    for (int r = 0; r < comm_size(me->comm); r++) {
        if (r < comm_rank(me->comm)) begin += counts[r];
        total += counts[r];
    }
    size_t bytes = (size_t)total * sizeof(float), my_bytes = (size_t)mine * sizeof(float);
    float *in = get(bytes), *sum = get(my_bytes);
    fill(in, total, comm_rank(me->comm), round);
    Box box = make_box(me, bytes), apart = make_box(me, my_bytes);
    put(me, &box, in, bytes);
    put(me, &apart, sum, my_bytes);
    float *out = in_place ? (float *)box.buffer + begin : apart.buffer;
    comm_reduce_scatter_sum(me->comm, out, box.buffer, counts);
    take(me, &box, bytes);
    take(me, &apart, my_bytes);
    comm_reduce_scatter_sum(me->host, sum, in, counts);
    check_same_sent(me, before, "bytes of reduce-scatter", round);
    if (!in_place) compare(me, &apart, 0, sum, my_bytes, "reduce-scatter", round);
    else memcpy(in + begin, sum, my_bytes);
    compare(me, &box, 0, in, bytes, in_place ? "reduce-scatter in place" : "input of reduce-scatter", round);
    free_box(me, &box);
    free_box(me, &apart);
    free(in);
    free(sum);
}

static void check_reduce_scatter(Rank *me, int round) {
    int64_t counts[MOST_RANKS];
    for (int r = 0; r < comm_size(me->comm); r++) counts[r] = count_of(r, round);
    check_reduce_scatter_of(me, counts, round % 2 == 0, round);
}

// One segment so long that its terms come in two pieces, the others in one, or empty.
static void check_pieces(Rank *me) {
    int64_t counts[MOST_RANKS] = {COMM_STAGING_BYTES / 4 / (MOST_RANKS - 1) + 1000, 0, 70, 1, 0};
    if (comm_size(me->comm) == MOST_RANKS) check_reduce_scatter_of(me, counts, true, 1);
}

static void check_sums_of_host_values(Rank *me) {
    int64_t before = sent_beyond(me);
    double values[3] = {comm_rank(me->comm) + 0.1, 1e9, -3}, expected[3];
    memcpy(expected, values, sizeof values);
    comm_all_reduce_sum(me->comm, values, 3);
    comm_all_reduce_sum(me->host, expected, 3);
    check(me, memcmp(values, expected, sizeof values) == 0, "all-reduce", 0, 0);
    check_same_sent(me, before, "bytes of all-reduce", 0);
    comm_barrier(me->comm);
}

static void check_collectives(Rank *me, int rounds) {
    for (int round = 0; round < rounds; round++) {
        check_broadcast(me, round);
        check_all_gather(me, round);
        check_reduce_scatter(me, round);
    }
    check_sums_of_host_values(me);
}

// Two groups over the same memory with nothing between them: the result of one is the input of the next.
static void check_one_after_the_other(Rank *me) {
    enum { EACH = 257 };
    int size = comm_size(me->comm), rank = comm_rank(me->comm);
    int64_t counts[MOST_RANKS];
    size_t bytes[MOST_RANKS];
    for (int r = 0; r < size; r++) counts[r] = EACH, bytes[r] = EACH * sizeof(float);
    float *data = get((size_t)size * EACH * sizeof(float));
    Box box = make_box(me, (size_t)size * EACH * sizeof(float));
    fill(data, size * EACH, rank, 5);
    put(me, &box, data, box.bytes);
    for (int i = 0; i < 3; i++) {
        comm_reduce_scatter_sum(me->comm, (float *)box.buffer + rank * EACH, box.buffer, counts);
        comm_all_gather(me->comm, box.buffer, bytes);
        comm_reduce_scatter_sum(me->host, data + rank * EACH, data, counts);
        comm_all_gather(me->host, data, bytes);
    }
    take(me, &box, box.bytes);
    compare(me, &box, 0, data, box.bytes, "one collective after the other", 0);
    free_box(me, &box);
    free(data);
}

// ---- point to point -----------------------------------------------------------------------------------------------

static size_t message_bytes(int from, int to, int n) {
    uint32_t random = hash((uint32_t)from + 11, (uint32_t)to, (uint32_t)n);
    return random % 8 == 0 ? 0 : random / 8 % (random % 8 == 7 ? MOST_BYTES : 500);
}
static void fill_message(unsigned char *data, int from, int to, int n) {
    size_t bytes = message_bytes(from, to, n);
    for (size_t i = 0; i < bytes; i++)
        data[i] = (unsigned char)hash((uint32_t)(from * 16 + to), (uint32_t)n, (uint32_t)i);
}

enum { IN_FLIGHT = 4 };
typedef struct Flight {
    CommRequest request;
    Box sent, received;
    int n, from; // n < 0: none
} Flight;

static void land(Rank *me, Flight *flight) {
    if (flight->n < 0) return;
    size_t bytes = message_bytes(flight->from, comm_rank(me->comm), flight->n);
    comm_wait(me->comm, &flight->request);
    take(me, &flight->received, bytes);
    me->device->zero(me->device, flight->sent.buffer, flight->sent.bytes);
    comm_wait(me->comm, &flight->request); // of a finished request: nothing happens
    unsigned char *expected = get(bytes);
    fill_message(expected, flight->from, comm_rank(me->comm), flight->n);
    if (flight->n % 3 == 0) // else overwritten unseen, but then one of the next fails if something is not in order
        compare(me, &flight->received, 0, expected, bytes, "exchange", flight->n);
    free(expected);
    flight->n = -1;
}

// Several messages under way at once, by shifts of changing distance (0: to oneself), waited for in another order than
// begun, with collectives in between.
static void check_exchanges(Rank *me, int messages) {
    int size = comm_size(me->comm), rank = comm_rank(me->comm);
    Flight flights[IN_FLIGHT];
    for (int i = 0; i < IN_FLIGHT; i++) {
        flights[i] = (Flight){.n = -1, .sent = make_box(me, MOST_BYTES), .received = make_box(me, MOST_BYTES)};
    }
    unsigned char *message = get(MOST_BYTES);
    int64_t sent = 0, before = comm_bytes_sent(me->comm);
    for (int n = 0; n < messages; n++) {
        int shift = (int)(hash(3, 0, (uint32_t)n) % (uint32_t)size), to = (rank + shift) % size,
            from = (rank + size - shift) % size;
        Flight *flight = &flights[hash(4, (uint32_t)rank, (uint32_t)n) % IN_FLIGHT]; // differs by rank
        land(me, flight);
        fill_message(message, rank, to, n);
        put(me, &flight->sent, message, message_bytes(rank, to, n));
        put(me, &flight->received, message, 0);
        if (to != rank) sent += (int64_t)message_bytes(rank, to, n);
        flight->n = n;
        flight->from = from;
        flight->request = comm_exchange_begin(me->comm, flight->sent.buffer, message_bytes(rank, to, n), to,
                                              flight->received.buffer, message_bytes(from, rank, n), from);
        if (n % 9 == 8) {
            check(me, comm_bytes_sent(me->comm) - before == sent, "bytes of exchange", n, sent);
            int64_t collective = comm_bytes_sent(me->comm);
            check_all_gather(me, n);
            before += comm_bytes_sent(me->comm) - collective;
        }
    }
    for (int i = 0; i < IN_FLIGHT; i++) {
        land(me, &flights[i]);
        free_box(me, &flights[i].sent);
        free_box(me, &flights[i].received);
    }
    free(message);
}

// Everyone to everyone, itself too, all begun as one batch and waited for in another order. Some messages are empty,
// and between two ranks there are several. Twice, for what the first batch leaves behind; then a batch of nothing.
static void check_batches(Rank *me) {
    enum { EACH = 2 }; // messages from one rank to another
    int size = comm_size(me->comm), rank = comm_rank(me->comm);
    CommRequest request[MOST_RANKS][EACH];
    Box sent[MOST_RANKS][EACH], received[MOST_RANKS][EACH];
    unsigned char *message = get(MOST_BYTES);
    for (int peer = 0; peer < size; peer++)
        for (int i = 0; i < EACH; i++)
            sent[peer][i] = make_box(me, MOST_BYTES), received[peer][i] = make_box(me, MOST_BYTES);
    for (int round = 0; round < 2; round++) {
        int64_t bytes = 0, before = comm_bytes_sent(me->comm);
        for (int to = 0; to < size; to++)
            for (int i = 0; i < EACH; i++) {
                int n = EACH * round + i;
                fill_message(message, rank, to, n);
                put(me, &sent[to][i], message, message_bytes(rank, to, n));
                put(me, &received[to][i], message, 0);
                if (to != rank) bytes += (int64_t)message_bytes(rank, to, n);
            }
        comm_batch_begin(me->comm);
        for (int step = 0; step < size; step++)
            for (int i = 0; i < EACH; i++) {
                int to = (rank + step) % size, from = (rank + size - step) % size, n = EACH * round + i;
                request[from][i] = comm_exchange_begin(me->comm, sent[to][i].buffer, message_bytes(rank, to, n), to,
                                                       received[from][i].buffer, message_bytes(from, rank, n), from);
            }
        comm_batch_end(me->comm);
        check(me, comm_bytes_sent(me->comm) - before == bytes, "bytes of a batch", round, bytes);
        for (int from = size - 1; from >= 0; from--)
            for (int i = 0; i < EACH; i++) {
                size_t expected = message_bytes(from, rank, EACH * round + i);
                comm_wait(me->comm, &request[from][i]);
                take(me, &received[from][i], expected);
                fill_message(message, from, rank, EACH * round + i);
                compare(me, &received[from][i], 0, message, expected, "batch", round);
            }
    }
    comm_batch_begin(me->comm);
    comm_batch_end(me->comm);
    for (int peer = 0; peer < size; peer++)
        for (int i = 0; i < EACH; i++) {
            free_box(me, &sent[peer][i]);
            free_box(me, &received[peer][i]);
        }
    free(message);
}

// As in ring attention: a block goes round while every rank works on what it holds, in two buffers that change places.
// The "work" adds the block to a sum.
static void check_ring(Rank *me) {
    enum { COUNT = 3000 };
    int size = comm_size(me->comm), rank = comm_rank(me->comm);
    float data[COUNT], sum[COUNT] = {0}, next[COUNT];
    Box block[2] = {make_box(me, sizeof data), make_box(me, sizeof data)}, total = make_box(me, sizeof data);
    fill(data, COUNT, rank, 77);
    put(me, &block[0], data, sizeof data);
    for (int step = 0; step < size; step++) {
        CommRequest request =
            comm_exchange_begin(me->comm, block[step % 2].buffer, sizeof data, (rank + size - 1) % size,
                                block[(step + 1) % 2].buffer, sizeof data, (rank + 1) % size);
        me->device->add_float(me->device, total.buffer, block[step % 2].buffer, COUNT);
        comm_wait(me->comm, &request);
        fill(next, COUNT, (rank + step) % size, 77);
        for (int i = 0; i < COUNT; i++) sum[i] += next[i];
    }
    take(me, &total, sizeof data);
    take(me, &block[size % 2], sizeof data);
    compare(me, &total, 0, sum, sizeof sum, "sum over the ring", size);
    compare(me, &block[size % 2], 0, data, sizeof data, "block that came home", size);
    free_box(me, &block[0]);
    free_box(me, &block[1]);
    free_box(me, &total);
}

// One direction only: everyone hands to the next, except over the border from the last rank to the first.
static void check_chain(Rank *me) {
    int size = comm_size(me->comm), rank = comm_rank(me->comm);
    if (size == 1) return;
    int mine = 100 + rank, expected = rank > 0 ? 99 + rank : 0;
    Box sent = make_box(me, sizeof mine), received = make_box(me, sizeof mine);
    put(me, &sent, &mine, sizeof mine);
    CommRequest request =
        comm_exchange_begin(me->comm, sent.buffer, rank < size - 1 ? sizeof mine : 0, (rank + 1) % size,
                            received.buffer, rank > 0 ? sizeof mine : 0, (rank + size - 1) % size);
    comm_wait(me->comm, &request);
    take(me, &received, sizeof mine);
    take(me, &sent, sizeof mine);
    compare(me, &received, 0, &expected, sizeof expected, "chain", rank);
    free_box(me, &sent);
    free_box(me, &received);
}

// ---- collectives overlapped with work -------------------------------------------------------------------------------

// Each begun on the device and on the host's engine, whose results test_comm.c has held against serial ones; between
// begin and wait the device works on something else. All-gather, reduce-scatter and all-to-all are under way at once.
static void check_overlapped(Rank *me, int round) {
    int size = comm_size(me->comm), rank = comm_rank(me->comm);
    size_t bytes[MOST_RANKS], send_bytes[MOST_RANKS], receive_bytes[MOST_RANKS], total = 0, sent = 0, received = 0;
    int64_t counts[MOST_RANKS], floats = 0, first = 0, before = sent_beyond(me);
    CommRequest gathering[2][MOST_RANKS], summing[2][MOST_RANKS], trading[2][MOST_RANKS], edges[2][2];
    for (int r = 0; r < size; r++) {
        total += bytes[r] = 4 * (size_t)count_of(r, round);
        counts[r] = count_of(r, round + 50);
        if (r < rank) first += counts[r];
        floats += counts[r];
        sent += send_bytes[r] = 4 * (size_t)count_of(rank * MOST_RANKS + r, round);
    }
    comm_all_to_all_sizes(me->comm, send_bytes, receive_bytes, trading[0]);
    comm_all_to_all_sizes(me->host, send_bytes, receive_bytes, trading[0]);
    for (int r = 0; r < size; r++) received += receive_bytes[r];
    size_t mine = (size_t)counts[rank] * sizeof(float), in_bytes = (size_t)floats * sizeof(float);
    enum { GATHERED, IN, ROOM, SENT, RECEIVED, FIRST, LAST, BEFORE, AFTER, BOXES };
    const size_t sizes[BOXES] = {total, in_bytes, mine * (size_t)(size - 1), sent, received, 300, 300, 300, 300};
    Box box[BOXES], work = make_box(me, 4000);
    float *host[BOXES];
    for (int i = 0; i < BOXES; i++) {
        host[i] = get(sizes[i]);
        fill(host[i], (int64_t)(sizes[i] / sizeof(float)), rank + i, round);
        box[i] = make_box(me, sizes[i]);
        put(me, &box[i], host[i], sizes[i]);
    }
    for (int on_device = 0; on_device < 2; on_device++) {
        Comm *comm = on_device ? me->comm : me->host;
        void *at[BOXES];
        for (int i = 0; i < BOXES; i++) at[i] = on_device ? box[i].buffer : host[i];
        CommHalo halo = {at[FIRST], at[LAST], at[BEFORE], at[AFTER], 4 * (size_t)(round % 4) * 25, 300};
        comm_all_gather_begin(comm, at[GATHERED], bytes, gathering[on_device]);
        comm_reduce_scatter_begin(comm, at[IN], counts, at[ROOM], summing[on_device]);
        comm_all_to_all_begin(comm, at[SENT], send_bytes, at[RECEIVED], receive_bytes, trading[on_device]);
        comm_halo_begin(comm, &halo, edges[on_device]);
        if (on_device) me->device->add_float(me->device, work.buffer, work.source, 1000);
        comm_wait_all(comm, edges[on_device], 2);
        comm_reduce_scatter_wait(comm, (float *)at[IN] + first, at[IN], counts, at[ROOM], summing[on_device]);
        comm_wait_all(comm, trading[on_device], size);
        comm_all_gather_wait(comm, gathering[on_device]);
    }
    check_same_sent(me, before, "bytes of overlapped collectives", round);
    static const char *const names[BOXES] = {
        "all-gather begun", "reduce-scatter begun", "", "all-to-all sent", "all-to-all", "first", "last", "edge before",
        "edge after"};
    for (int i = 0; i < BOXES; i++) {
        take(me, &box[i], sizes[i]);
        if (i != ROOM) compare(me, &box[i], 0, host[i], sizes[i], names[i], round);
    }
    for (int i = 0; i < BOXES; i++) {
        free_box(me, &box[i]);
        free(host[i]);
    }
    float states[MOST_RANKS][2];
    for (int r = 0; r < size; r++) fill(states[r], 2, r == rank ? rank : 99, round);
    Box box_of_states = make_box(me, (size_t)size * sizeof states[0]);
    put(me, &box_of_states, states, (size_t)size * sizeof states[0]);
    comm_gather_states(me->comm, box_of_states.buffer, sizeof states[0], gathering[1]);
    take(me, &box_of_states, (size_t)size * sizeof states[0]);
    for (int r = 0; r < size; r++) fill(states[r], 2, r, round);
    compare(me, &box_of_states, 0, states, (size_t)size * sizeof states[0], "states", round);
    free_box(me, &box_of_states);
    free_box(me, &work);
}

// ---- groups -------------------------------------------------------------------------------------------------------

static Rank split(Rank *me, int color, int key) {
    return (Rank){comm_split(me->host, color, key), comm_split(me->comm, color, key), me->device, me->checks};
}
static void free_ranks(Rank *ranks) {
    comm_free(ranks->host);
    comm_free(ranks->comm);
}

static void check_groups(Rank *me) {
    int size = comm_size(me->comm), rank = comm_rank(me->comm), columns = size % 2 == 0 ? 2 : 1;
    Rank row = split(me, rank / columns, rank % columns), column = split(me, rank % columns, rank / columns);
    Rank backwards = split(me, 7, -rank);
    check(me, comm_rank(backwards.comm) == size - 1 - rank, "rank backwards", size, comm_rank(backwards.comm));
    for (int round = 0; round < 2; round++) {
        if (me->checks->transport != ENGINE) check_exchanges(&row, 6);
        check_reduce_scatter(&column, round);
        check_all_gather(&row, round);
        check_broadcast(&backwards, round);
        check_chain(&backwards);
    }
    Rank half = split(&backwards, rank % 2, 0); // outlives its parent
    free_ranks(&backwards);
    check_collectives(&half, 2);
    free_ranks(&half);
    free_ranks(&row);
    free_ranks(&column);
}

// ---- one run ------------------------------------------------------------------------------------------------------

static void (*true_wait)(Device *, Stream, Event *);
static void true_wait_of(const Device *device, Comm *world) {
    if (comm_rank(world) == 0) true_wait = device->stream_wait;
    comm_barrier(world);
}
static void wait_in_exchange_only(Device *device, Stream stream, Event *event) {
    if (stream == STREAM_EXCHANGE) true_wait(device, stream, event);
}
static void wait_in_work_only(Device *device, Stream stream, Event *event) {
    if (stream == STREAM_WORK) true_wait(device, stream, event);
}

// The engine's groups in host memory, and groups on devices that stand on them. Ranks are threads here, who know the
// same address as processes would. Exchanges that are waited for in another order on each rank are not for this engine.
static void rank_of_engine(Comm *world, Checks *checks) {
    Device device, cpu;
    Error err = {0};
    cpu_device(&cpu, 1);
    open_device(&device, world, false);
    Comm *all = nccl_open(&device, "127.0.0.1:29500", comm_rank(world), comm_size(world), 60, &err);
    if (all == NULL) comm_fail(world, &err);
    comm_doing(all, "checks");
    for (int on_device = 0; on_device < 2; on_device++) {
        Rank me = {comm_split(world, 0, comm_rank(world)), NULL, on_device ? &device : &cpu, checks};
        me.comm = on_device ? comm_on_device(all, &device, true) : comm_split(all, 0, comm_rank(all));
        check_collectives(&me, 6);
        check_one_after_the_other(&me);
        check_batches(&me);
        check_ring(&me);
        check_chain(&me);
        for (int round = 0; round < 3; round++) check_overlapped(&me, round);
        check_groups(&me);
        check_pieces(&me);
        free_ranks(&me);
    }
    nccl_close(all);
    comm_barrier(world);
    device.close(&device);
    cpu.close(&cpu);
}

static void rank_main(Comm *world, void *argument) {
    Checks *checks = argument;
    Device device;
    comm_doing(world, "checks");
    if (checks->transport == ENGINE) {
        rank_of_engine(world, checks);
        return;
    }
    if (checks->at_once) open_at_once(&device);
    else open_device(&device, world, checks->transport == SHARED);
    true_wait_of(&device, world);
    if (checks->fault == WORK_DOES_NOT_WAIT) device.stream_wait = wait_in_exchange_only;
    if (checks->fault == EXCHANGE_DOES_NOT_WAIT) device.stream_wait = wait_in_work_only;
    Rank me = {comm_split(world, 0, comm_rank(world)), comm_on_device(world, &device, checks->transport == COLLECTIVES),
               &device, checks};
    check_collectives(&me, 6);
    check_one_after_the_other(&me);
    check_exchanges(&me, 40);
    check_batches(&me);
    check_ring(&me);
    check_chain(&me);
    for (int round = 0; round < 3; round++) check_overlapped(&me, round);
    if (checks->fault == NO_FAULT) {
        check_groups(&me);
        check_pieces(&me);
    }
    free_ranks(&me);
    comm_barrier(world); // nobody uses a device's events any more
    close_device(&device);
}

// The program: checks TRANSPORT SMALLEST_P LARGEST_P FAULT
static int run_checks(char **argv) {
    Checks checks = {.lock = PTHREAD_MUTEX_INITIALIZER, .fault = (Fault)atoi(argv[4])};
    while (strcmp(transport_names[checks.transport], argv[1]) != 0) checks.transport++;
    alarm(120);
    for (int ranks = atoi(argv[2]); ranks <= atoi(argv[3]); ranks++) {
        CommLaunch launch = {.engine = COMM_AUTO, .ranks = ranks, .timeout_seconds = 60};
        Error err = {0};
        Device gpu;
        if (comm_engine_here(COMM_AUTO) == COMM_NCCL) {
            const char *why;
            int gpus = device_count(cuda_device_kind(), &why);
            if (!device_open(&gpu, cuda_device_kind(), gpus > 0 ? comm_process_rank() % gpus : 0, 1, &err)) die(&err);
            launch.device = gpu_of_engine = &gpu;
        }
        if (!comm_run(&launch, rank_main, &checks, &err)) die(&err);
        if (gpu_of_engine != NULL) gpu.close(&gpu);
        gpu_of_engine = NULL;
    }
    if (checks.failures == 0) return 0;
    fprintf(stderr, "%d checks failed; first: %s\n", checks.failures, checks.first);
    return 3;
}

// ---- the test -----------------------------------------------------------------------------------------------------

static RunningProgram start_checks(int seed, Transport transport, const char *smallest, const char *largest,
                                   Fault fault) {
    char text[24], number[12];
    Command command = {0};
    snprintf(text, sizeof text, "EMULATED_SEED=%d", seed);
    snprintf(number, sizeof number, "%d", fault);
    add_words(&command, "env", text, "EMULATED_GPUS=5", own_path(), "checks", transport_names[transport], smallest,
              largest, number, NULL);
    return start_program(command.argv);
}

static void end_checks(RunningProgram *program, Transport transport, int seed) {
    ProgramResult result = finish_program(program, 90);
    if (result.timed_out || result.exit_code != 0 || *result.err)
        fail_msg("%s, seed %d: exit code %d, %s", transport_names[transport], seed, result.exit_code, result.err);
    free_result(&result);
}

// Ranks as processes of the engine `nccl`.
static void run_processes(const char *ranks) {
    RunningProgram programs[MOST_RANKS];
    char place[3][40], port[24];
    snprintf(port, sizeof port, "MASTER_PORT=%d", 20000 + (int)getpid() % 20000);
    for (int rank = 0; rank < atoi(ranks); rank++) {
        Command command = {0};
        snprintf(place[0], sizeof place[0], "RANK=%d", rank);
        snprintf(place[1], sizeof place[1], "WORLD_SIZE=%s", ranks);
        snprintf(place[2], sizeof place[2], "NCCL_HOSTID=machine-%d", rank);
        add_words(&command, "env", "NCCL_SOCKET_IFNAME=lo", "NCCL_IB_DISABLE=1", "MASTER_ADDR=127.0.0.1", port,
                  place[0], place[1], place[2], own_path(), "checks", transport_names[COLLECTIVES], ranks, ranks, "0",
                  NULL);
        programs[rank] = start_program(command.argv);
    }
    for (int rank = 0; rank < atoi(ranks); rank++) end_checks(&programs[rank], COLLECTIVES, 0);
}

static void test_operations_on_gpus(void **state) {
    (void)state;
    if (!cuda_device_is_gpu() || cuda_devices_here() == 0) skip();
    for (Transport transport = SHARED; transport < COLLECTIVES; transport++) {
        RunningProgram program = start_checks(1, transport, "1", "5", NO_FAULT);
        end_checks(&program, transport, 1);
    }
    run_processes("2");
    run_processes("4");
}

static void test_threads(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= MOST_RANKS; ranks++) {
        Checks checks = {.lock = PTHREAD_MUTEX_INITIALIZER, .transport = PEERS, .at_once = true};
        CommLaunch launch = {.engine = COMM_LOCAL, .ranks = ranks, .timeout_seconds = 60};
        Error err = {0};
        if (!comm_run(&launch, rank_main, &checks, &err)) fail_msg("%s", err.message);
        if (checks.failures > 0) fail_msg("%d checks failed; first: %s", checks.failures, checks.first);
    }
}

static void test_operations(void **state) {
    (void)state;
    if (!only_emulated()) skip();
    enum { SEEDS = 3 };
    for (int seed = 1; seed <= SEEDS; seed++) {
        RunningProgram programs[TRANSPORTS];
        for (Transport t = 0; t < TRANSPORTS; t++)
            programs[t] = start_checks(seed, t, seed == 1 ? "1" : "3", seed == 1 ? "5" : "4", NO_FAULT);
        for (Transport t = 0; t < TRANSPORTS; t++) end_checks(&programs[t], t, seed);
    }
}

// With one kind of wait left out, the data must come out wrong under some seed, or a copy must meet memory that has
// been released, which the emulated device ends the program for.
static void expect_found(Transport transport, Fault fault) {
    for (int seed = 1; seed <= 5; seed++) {
        RunningProgram program = start_checks(seed, transport, "3", "3", fault);
        ProgramResult result = finish_program(&program, 60);
        bool found = result.exit_code != 0 && !result.timed_out;
        free_result(&result);
        if (found) return;
    }
    fail_msg("%s: fault %d is not found", transport_names[transport], fault);
}

static void test_missing_waits(void **state) {
    (void)state;
    if (!only_emulated()) skip();
    for (Transport transport = PEERS; transport <= COLLECTIVES; transport++) {
        expect_found(transport, WORK_DOES_NOT_WAIT);
        expect_found(transport, EXCHANGE_DOES_NOT_WAIT);
    }
}

// More ranks than a device adds in one go; each, in its place and out of it, has the bits of the host's sum.
static void sum_of_many(Comm *world, void *argument) {
    enum { EACH = 3, RANKS = DEVICE_MOST_TERMS + 44 };
    Device device;
    open_at_once(&device);
    Rank me = {comm_split(world, 0, comm_rank(world)), comm_on_device(world, &device, false), &device, argument};
    int64_t counts[RANKS];
    for (int r = 0; r < RANKS; r++) counts[r] = EACH;
    for (int round = 0; round < 2; round++) check_reduce_scatter_of(&me, counts, round == 0, round);
    free_ranks(&me);
    comm_barrier(world);
    device.close(&device);
}

static void test_sums_of_many_ranks(void **state) {
    (void)state;
    Checks checks = {.lock = PTHREAD_MUTEX_INITIALIZER, .transport = PEERS, .at_once = true};
    CommLaunch launch = {.engine = COMM_LOCAL, .ranks = DEVICE_MOST_TERMS + 44, .timeout_seconds = 60};
    Error err = {0};
    if (!comm_run(&launch, sum_of_many, &checks, &err)) fail_msg("%s", err.message);
    if (checks.failures > 0) fail_msg("%d checks failed; first: %s", checks.failures, checks.first);
}

// Where the device's memory is the host's, a group on it is an ordinary group.
static void rank_on_cpu(Comm *world, void *argument) {
    Device device;
    cpu_device(&device, 1);
    Comm *comm = comm_on_device(world, &device, false);
    int value = comm_rank(world) == 1 ? 5 : 0;
    comm_broadcast(comm, &value, sizeof value, 1);
    if (value == 5 && comm_bytes_sent(world) == 0) __atomic_fetch_add((int *)argument, 1, __ATOMIC_RELAXED);
    comm_free(comm);
    device.close(&device);
}

static void test_cpu_device(void **state) {
    (void)state;
    int right = 0;
    CommLaunch launch = {.engine = COMM_LOCAL, .ranks = 3, .timeout_seconds = 60};
    Error err = {0};
    assert_true(comm_run(&launch, rank_on_cpu, &right, &err));
    assert_int_equal(right, 3);
}

int main(int argc, char **argv) {
    if (argc == 6 && strcmp(argv[1], "checks") == 0) return run_checks(argv + 1);
    alarm(300);
    pass_over_what_is_not_ours();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_device),    cmocka_unit_test(test_threads),
        cmocka_unit_test(test_operations),    cmocka_unit_test(test_operations_on_gpus),
        cmocka_unit_test(test_missing_waits), cmocka_unit_test(test_sums_of_many_ranks),
    };
    return cmocka_run_group_tests_name("comm on devices", tests, NULL, NULL);
}
