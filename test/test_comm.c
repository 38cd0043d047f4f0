// Every operation of comm against the same thing computed serially, for 1 to 8 ranks, on all engines.
//
// The checks are one function that a rank runs; it is called with the ranks as threads, and again in processes that
// this program starts (itself, with "ranks" as its argument) under mpirun. Each rank also keeps a digest of every bit it received: two runs, and all engines, must agree on it exactly, because sums are
// taken in the order of ranks.
#include "test/folder.h"
#include "test/ranks.h"

#include <math.h>
#include <pthread.h>

#include "base/random.h"

enum { SEED_VALUE = 1, SEED_SIZE, SEED_MESSAGE, SEED_RING };

typedef struct Checks { // of one run, written by its ranks
    pthread_mutex_t lock;
    int failures;
    char first[300];
    uint64_t digest; // of all ranks, in their order
} Checks;

typedef struct Rank { // one rank's hands
    Comm *comm;
    Checks *checks;
    uint64_t digest;
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

static void check_bytes(Rank *me, const void *got, const void *expected, size_t bytes, const char *what, int round) {
    for (size_t i = 0; i < bytes; i++)
        me->digest = (me->digest ^ ((const unsigned char *)got)[i]) * 0x100000001b3u; // FNV-1a
    check(me, bytes == 0 || memcmp(got, expected, bytes) == 0, what, round, (long long)bytes);
}

static void check_sent(Rank *me, int64_t before, int64_t expected, const char *what) {
    int64_t sent = comm_bytes_sent(me->comm) - before;
    check(me, sent == expected, what, sent, expected);
}

static void *get(size_t bytes) {
    void *memory = calloc(bytes ? bytes : 1, 1);
    if (memory == NULL) abort();
    return memory;
}

// Values of very different sizes, so that another order of summing would give other bits.
static float value(int rank, int round, int64_t i) {
    Philox4 random = philox4x32(SEED_VALUE, (uint64_t)rank << 32 | (uint64_t)round, (uint64_t)i);
    return ldexpf((float)(int32_t)random.word[0], (int)(random.word[1] % 20) - 31);
}

// Uneven counts, some of them 0; more than a block of the sums for some.
static int64_t count_of(int rank, int round) {
    uint64_t kind = random_below(SEED_SIZE, (uint64_t)round, 2 * (uint64_t)rank, 4);
    uint64_t bounds[] = {1, 20, 300, 5000};
    return (int64_t)random_below(SEED_SIZE, (uint64_t)round, 2 * (uint64_t)rank + 1, bounds[kind]);
}

// ---- collectives --------------------------------------------------------------------------------------------------

static void check_broadcast(Rank *me, int round) {
    int size = comm_size(me->comm), root = round % size;
    size_t count = (size_t)count_of(root, round), bytes = count * sizeof(float);
    float *data = get(bytes), *expected = get(bytes);
    for (size_t i = 0; i < count; i++) {
        data[i] = value(comm_rank(me->comm), round, (int64_t)i);
        expected[i] = value(root, round, (int64_t)i);
    }
    int64_t before = comm_bytes_sent(me->comm);
    comm_broadcast(me->comm, data, bytes, root);
    check_sent(me, before, comm_rank(me->comm) == root ? (int64_t)bytes * (size - 1) : 0, "bytes of broadcast");
    check_bytes(me, data, expected, bytes, "broadcast", round);
    free(data);
    free(expected);
}

static void check_all_reduce(Rank *me, int round) {
    int size = comm_size(me->comm), count = round % 3 == 2 ? 700 : round % 5;
    double *values = get((size_t)count * sizeof *values), *expected = get((size_t)count * sizeof *expected);
    for (int i = 0; i < count; i++) {
        values[i] = value(comm_rank(me->comm), round, i);
        expected[i] = value(0, round, i);
        for (int rank = 1; rank < size; rank++) expected[i] += value(rank, round, i);
    }
    int64_t before = comm_bytes_sent(me->comm);
    comm_all_reduce_sum(me->comm, values, count);
    check_sent(me, before, (int64_t)count * 8 * (size - 1), "bytes of all-reduce");
    check_bytes(me, values, expected, (size_t)count * sizeof *values, "all-reduce", round);
    free(values);
    free(expected);
}

static void check_all_gather(Rank *me, int round) {
    int size = comm_size(me->comm), rank = comm_rank(me->comm);
    size_t *bytes = get((size_t)size * sizeof *bytes), total = 0, begin = 0;
    for (int r = 0; r < size; r++) {
        bytes[r] = (size_t)count_of(r, round); // bytes, not floats: odd lengths and odd addresses
        if (r < rank) begin += bytes[r];
        total += bytes[r];
    }
    unsigned char *data = get(total), *expected = get(total);
    for (size_t i = 0; i < total; i++) {
        expected[i] = (unsigned char)random_below(SEED_MESSAGE, (uint64_t)round, i, 256);
        data[i] = i >= begin && i < begin + bytes[rank] ? expected[i] : 0;
    }
    int64_t before = comm_bytes_sent(me->comm);
    comm_all_gather(me->comm, data, bytes);
    check_sent(me, before, (int64_t)bytes[rank] * (size - 1), "bytes of all-gather");
    check_bytes(me, data, expected, total, "all-gather", round);
    free(bytes);
    free(data);
    free(expected);
}

static void check_reduce_scatter(Rank *me, int round) {
    int size = comm_size(me->comm), rank = comm_rank(me->comm);
    bool in_place = round % 2 == 0;
    int64_t *counts = get((size_t)size * sizeof *counts), total = 0, begin = 0;
    for (int r = 0; r < size; r++) {
        counts[r] = count_of(r, round);
        if (r < rank) begin += counts[r];
        total += counts[r];
    }
    size_t mine = (size_t)counts[rank];
    float *in = get((size_t)total * sizeof *in), *apart = get(mine * sizeof *apart),
          *expected = get(mine * sizeof *expected);
    float *out = in_place ? in + begin : apart;
    for (int64_t i = 0; i < total; i++) in[i] = value(rank, round, i);
    for (size_t i = 0; i < mine; i++) {
        expected[i] = value(0, round, begin + (int64_t)i);
        for (int r = 1; r < size; r++) expected[i] += value(r, round, begin + (int64_t)i);
    }
    int64_t before = comm_bytes_sent(me->comm);
    comm_reduce_scatter_sum(me->comm, out, in, counts);
    check_sent(me, before, (total - counts[rank]) * 4, "bytes of reduce-scatter");
    check_bytes(me, out, expected, mine * sizeof *out, "reduce-scatter", round);
    for (int64_t i = 0; i < total; i++) { // nothing else was touched
        bool own = i >= begin && i < begin + counts[rank];
        if (!own || !in_place)
            check(me, in[i] == value(rank, round, i), "reduce-scatter wrote into its input", round, i);
    }
    free(counts);
    free(in);
    free(apart);
    free(expected);
}

static void check_collectives(Rank *me, int rounds) {
    for (int round = 0; round < rounds; round++) {
        check_broadcast(me, round);
        check_all_reduce(me, round);
        if (round % 4 == 3) comm_barrier(me->comm);
        check_all_gather(me, round);
        check_reduce_scatter(me, round);
    }
}

// ---- point to point -----------------------------------------------------------------------------------------------

// What message number `n` from one rank to another holds; both ends know it.
static size_t message_bytes(int from, int to, int n) {
    uint64_t pair = (uint64_t)from << 20 | (uint64_t)to;
    uint64_t kind = random_below(SEED_SIZE, pair, (uint64_t)n, 8);
    return kind == 0 ? 0 : (size_t)random_below(SEED_SIZE, pair, 1000 + (uint64_t)n, kind == 7 ? 60000 : 500);
}
static void fill_message(unsigned char *data, int from, int to, int n) {
    uint32_t state = (uint32_t)(1 + from * 10007 + to * 101 + n * 1000003);
    size_t bytes = message_bytes(from, to, n);
    for (size_t i = 0; i < bytes; i++) {
        state = state * 1664525u + 1013904223u;
        data[i] = (unsigned char)(state >> 24);
    }
}

enum { IN_FLIGHT = 7 };
typedef struct Flight {
    CommRequest request;
    unsigned char *sent, *received, *expected;
    size_t receive_bytes;
} Flight;

static void land(Rank *me, Flight *flight, int n) {
    if (flight->received == NULL) return;
    comm_wait(me->comm, &flight->request);
    check_bytes(me, flight->received, flight->expected, flight->receive_bytes, "exchange", n);
    comm_wait(me->comm, &flight->request); // of a finished request: nothing happens
    free(flight->sent);
    free(flight->received);
    free(flight->expected);
    *flight = (Flight){0};
}

// Many messages under way at once, by shifts of changing distance (0: to oneself), waited for in another order than
// begun.
static void check_exchanges(Rank *me, int messages) {
    int size = comm_size(me->comm), rank = comm_rank(me->comm);
    Flight flights[IN_FLIGHT] = {0};
    for (int n = 0; n < messages; n++) {
        int shift = (int)random_below(SEED_RING, 0, (uint64_t)n, (uint64_t)size);
        int to = (rank + shift) % size, from = (rank + size - shift) % size;
        Flight *flight =
            &flights[random_below(SEED_RING, 1 + (uint64_t)rank, (uint64_t)n, IN_FLIGHT)]; // differs by rank
        land(me, flight, n);
        size_t send_bytes = message_bytes(rank, to, n);
        flight->receive_bytes = message_bytes(from, rank, n);
        flight->sent = get(send_bytes);
        flight->received = get(flight->receive_bytes);
        flight->expected = get(flight->receive_bytes);
        fill_message(flight->sent, rank, to, n);
        fill_message(flight->expected, from, rank, n);
        int64_t before = comm_bytes_sent(me->comm);
        flight->request =
            comm_exchange_begin(me->comm, flight->sent, send_bytes, to, flight->received, flight->receive_bytes, from);
        check_sent(me, before, to == rank ? 0 : (int64_t)send_bytes, "bytes of exchange");
        if (n % 11 == 10) check_all_reduce(me, n); // a collective while messages are under way
    }
    for (int i = 0; i < IN_FLIGHT; i++) land(me, &flights[i], messages + i);
}

// One direction only: everyone hands to the next, except over the border from the last rank to the first.
static void check_chain(Rank *me) {
    int size = comm_size(me->comm), rank = comm_rank(me->comm);
    int to = (rank + 1) % size, from = (rank + size - 1) % size, mine = 100 + rank, got = -1;
    if (size == 1) return;
    size_t send_bytes = rank < size - 1 ? sizeof mine : 0, receive_bytes = rank > 0 ? sizeof got : 0;
    CommRequest request = comm_exchange_begin(me->comm, &mine, send_bytes, to, &got, receive_bytes, from);
    comm_wait(me->comm, &request);
    check(me, got == (rank > 0 ? 99 + rank : -1), "chain", got, rank);
}

// A large block goes round the whole ring and comes home unchanged.
static void check_ring(Rank *me, size_t bytes) {
    int size = comm_size(me->comm), rank = comm_rank(me->comm);
    uint32_t *block = get(bytes), *next = get(bytes);
    for (size_t i = 0; i < bytes / 4; i++) block[i] = (uint32_t)(rank * 1000003) + (uint32_t)i;
    for (int hop = 0; hop < size; hop++) {
        CommRequest request =
            comm_exchange_begin(me->comm, block, bytes, (rank + 1) % size, next, bytes, (rank + size - 1) % size);
        comm_wait(me->comm, &request);
        int origin = (rank + size - hop - 1) % size;
        size_t last = bytes / 4 - 1;
        check(me, next[0] == (uint32_t)(origin * 1000003) && next[last] == next[0] + last, "ring", hop, next[0]);
        uint32_t *swap = block;
        block = next;
        next = swap;
    }
    for (size_t i = 0; i < bytes / 4; i++)
        check(me, block[i] == (uint32_t)(rank * 1000003) + (uint32_t)i, "ring", -1, (long long)i);
    free(block);
    free(next);
}

// ---- collectives overlapped with work -------------------------------------------------------------------------------

enum { MOST_RANKS = 16 };

// All-gather, reduce-scatter, edges and all-to-all under way at once, and waited for in another order on each rank.
typedef struct Overlapped {
    size_t bytes[MOST_RANKS], send_bytes[MOST_RANKS], receive_bytes[MOST_RANKS];
    int64_t counts[MOST_RANKS], first; // floats before this rank's
    CommRequest gathering[MOST_RANKS], summing[MOST_RANKS], edges[2], trading[MOST_RANKS];
    unsigned char *gathered, *expected_gathered, *sent, *received, *expected_received;
    float *in, *room, *sum, *expected_sum;
    size_t gathered_bytes, received_bytes;
    CommHalo halo;
    float edge[4][40]; // my first, my last, before, after
} Overlapped;

static size_t piece_bytes(int from, int to, int round) {
    return (size_t)random_below(SEED_MESSAGE, (uint64_t)round << 40 | (uint64_t)from << 20 | (uint64_t)to, 0, 3) *
           (size_t)count_of(from + to, round);
}

static void prepare_gather(Overlapped *o, int rank, int size, int round) {
    size_t begin = 0;
    for (int r = 0; r < size; r++) {
        o->bytes[r] = (size_t)count_of(r, round);
        if (r < rank) begin += o->bytes[r];
        o->gathered_bytes += o->bytes[r];
    }
    o->gathered = get(o->gathered_bytes);
    o->expected_gathered = get(o->gathered_bytes);
    for (size_t i = 0; i < o->gathered_bytes; i++) o->expected_gathered[i] = (unsigned char)(i * 31 + (size_t)round);
    memcpy(o->gathered + begin, o->expected_gathered + begin, o->bytes[rank]);
}

static void prepare_sum(Overlapped *o, int rank, int size, int round) {
    int64_t total = 0;
    for (int r = 0; r < size; r++) {
        o->counts[r] = count_of(r, round + 1000);
        if (r < rank) o->first += o->counts[r];
        total += o->counts[r];
    }
    size_t mine = (size_t)o->counts[rank];
    o->in = get((size_t)total * sizeof *o->in);
    o->room = get((size_t)(size - 1) * mine * sizeof *o->room);
    o->sum = round % 2 == 0 ? o->in + o->first : get(mine * sizeof *o->sum);
    o->expected_sum = get(mine * sizeof *o->expected_sum);
    for (int64_t i = 0; i < total; i++) o->in[i] = value(rank, round, i);
    for (size_t i = 0; i < mine; i++) {
        o->expected_sum[i] = value(0, round, o->first + (int64_t)i);
        for (int r = 1; r < size; r++) o->expected_sum[i] += value(r, round, o->first + (int64_t)i);
    }
}

static void prepare_trade(Overlapped *o, int rank, int size, int round) {
    size_t sent = 0, received = 0;
    for (int r = 0; r < size; r++) {
        sent += o->send_bytes[r] = piece_bytes(rank, r, round);
        received += piece_bytes(r, rank, round);
    }
    o->received_bytes = received;
    o->sent = get(sent);
    o->received = get(received);
    o->expected_received = get(received);
    for (int r = 0, at = 0; r < size; at += (int)o->send_bytes[r], r++)
        for (size_t i = 0; i < o->send_bytes[r]; i++) o->sent[at + (int)i] = (unsigned char)(rank * 7 + r * 3 + (int)i);
    for (int r = 0, at = 0; r < size; at += (int)piece_bytes(r, rank, round), r++)
        for (size_t i = 0; i < piece_bytes(r, rank, round); i++)
            o->expected_received[at + (int)i] = (unsigned char)(r * 7 + rank * 3 + (int)i);
}

static void prepare_edges(Overlapped *o, int rank, int round) {
    for (int i = 0; i < 40; i++) {
        o->edge[0][i] = value(rank, round, i);
        o->edge[1][i] = value(rank, round, 40 + i);
        o->edge[2][i] = o->edge[3][i] = -1;
    }
    o->halo = (CommHalo){o->edge[0], o->edge[1], o->edge[2], o->edge[3], 4 * (size_t)(round % 3 * 20),
                         4 * (size_t)(round % 2 * 11)};
}

static void check_edges(Rank *me, const Overlapped *o, int rank, int size, int round) {
    float before[40], after[40];
    for (int i = 0; i < 40; i++) {
        before[i] = rank > 0 && i < (int)o->halo.before_bytes / 4 ? value(rank - 1, round, 40 + i) : -1;
        after[i] = rank < size - 1 && i < (int)o->halo.after_bytes / 4 ? value(rank + 1, round, i) : -1;
    }
    check_bytes(me, o->edge[2], before, sizeof before, "edge before", round);
    check_bytes(me, o->edge[3], after, sizeof after, "edge after", round);
}

static void check_overlapped(Rank *me, int round) {
    Comm *comm = me->comm;
    int size = comm_size(comm), rank = comm_rank(comm);
    Overlapped *o = get(sizeof *o);
    prepare_gather(o, rank, size, round);
    prepare_sum(o, rank, size, round);
    prepare_trade(o, rank, size, round);
    prepare_edges(o, rank, round);
    int64_t before = comm_bytes_sent(comm), sent;
    comm_all_to_all_sizes(comm, o->send_bytes, o->receive_bytes, o->trading);
    check_sent(me, before, (int64_t)sizeof(size_t) * (size - 1), "bytes of sizes");
    for (int r = 0; r < size; r++)
        check(me, o->receive_bytes[r] == piece_bytes(r, rank, round), "size of a piece", r, (long long)o->receive_bytes[r]);

    before = comm_bytes_sent(comm);
    comm_all_gather_begin(comm, o->gathered, o->bytes, o->gathering);
    check_sent(me, before, sent = (int64_t)o->bytes[rank] * (size - 1), "bytes of all-gather begun");
    comm_reduce_scatter_begin(comm, o->in, o->counts, o->room, o->summing);
    for (int r = 0; r < size; r++) sent += r == rank ? 0 : o->counts[r] * 4;
    check_sent(me, before, sent, "bytes of reduce-scatter begun");
    comm_halo_begin(comm, &o->halo, o->edges);
    sent += (int64_t)(rank < size - 1 ? o->halo.before_bytes : 0) + (int64_t)(rank > 0 ? o->halo.after_bytes : 0);
    check_sent(me, before, sent, "bytes of edges");
    comm_all_to_all_begin(comm, o->sent, o->send_bytes, o->received, o->receive_bytes, o->trading);
    for (int r = 0; r < size; r++) sent += r == rank ? 0 : (int64_t)o->send_bytes[r];
    check_sent(me, before, sent, "bytes of all-to-all");

    for (int turn = 0; turn < 4; turn++) {
        int which = (turn + rank + round) % 4;
        if (which == 0) comm_all_gather_wait(comm, o->gathering);
        if (which == 1) comm_reduce_scatter_wait(comm, o->sum, o->in, o->counts, o->room, o->summing);
        if (which == 2) comm_wait_all(comm, o->edges, 2);
        if (which == 3) comm_wait_all(comm, o->trading, size);
    }
    check_sent(me, before, sent, "bytes of waits");
    check_bytes(me, o->gathered, o->expected_gathered, o->gathered_bytes, "all-gather begun", round);
    check_bytes(me, o->sum, o->expected_sum, (size_t)o->counts[rank] * sizeof(float), "reduce-scatter begun", round);
    check_bytes(me, o->received, o->expected_received, o->received_bytes, "all-to-all", round);
    check_edges(me, o, rank, size, round);

    before = comm_bytes_sent(comm);
    float states[MOST_RANKS][3], expected[MOST_RANKS][3];
    for (int r = 0; r < size; r++)
        for (int i = 0; i < 3; i++) {
            expected[r][i] = value(r, round, 100 + i);
            states[r][i] = r == rank ? expected[r][i] : 0;
        }
    comm_gather_states(comm, states, sizeof states[0], o->gathering);
    check_sent(me, before, (int64_t)sizeof states[0] * (size - 1), "bytes of states");
    check_bytes(me, states, expected, (size_t)size * sizeof states[0], "states", round);
    if (round % 2 != 0) free(o->sum);
    void *made[] = {o->gathered, o->expected_gathered, o->sent, o->received, o->expected_received,
                    o->in,       o->room,              o->expected_sum};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) free(made[i]);
    free(o);
}

// ---- groups -------------------------------------------------------------------------------------------------------

// The ranks as a grid of rows (one sequence each) and columns (replicas), as in training, used in turns.
static void check_groups(Rank *me, int rounds) {
    int size = comm_size(me->comm), rank = comm_rank(me->comm);
    for (int columns = 1; columns <= size; columns++) {
        if (size % columns != 0) continue;
        Comm *row = comm_split(me->comm, rank / columns, rank % columns);
        Comm *column = comm_split(me->comm, rank % columns, rank / columns);
        Comm *backwards = comm_split(me->comm, 7, -rank);
        check(me, comm_size(row) == columns && comm_rank(row) == rank % columns, "row", comm_size(row), comm_rank(row));
        check(me, comm_size(column) == size / columns && comm_rank(column) == rank / columns, "column", columns,
              comm_rank(column));
        check(me, comm_size(backwards) == size && comm_rank(backwards) == size - 1 - rank, "backwards", size,
              comm_rank(backwards));
        Rank in_row = {row, me->checks, me->digest}, in_column = {column, me->checks, 1},
             all = {backwards, me->checks, 2};
        for (int round = 0; round < rounds; round++) {
            check_exchanges(&in_row, 9);
            check_reduce_scatter(&in_column, round);
            check_all_gather(&in_row, round);
            check_overlapped(&in_column, round);
            check_all_reduce(&all, round);
            check_all_reduce(&in_column, round);
            comm_barrier(round % 2 ? row : column);
            check_chain(&all);
        }
        // A group of a group outlives its parent.
        Comm *half = comm_split(row, comm_rank(row) % 2, 0);
        comm_free(row);
        Rank in_half = {half, me->checks, 3};
        check(me, comm_size(half) == (columns + (rank % columns + 1) % 2) / 2, "half", columns, comm_size(half));
        check_collectives(&in_half, 2);
        check(me, columns > 1 || comm_bytes_sent(half) == 0, "bytes of a group of one", comm_bytes_sent(half), 0);
        comm_free(half);
        comm_free(column);
        comm_free(backwards);
        comm_free(NULL);
        me->digest = in_row.digest * 31 + in_column.digest * 17 + all.digest * 7 + in_half.digest;
    }
}

// ---- one run ------------------------------------------------------------------------------------------------------

static void rank_main(Comm *world, void *argument) {
    Rank me = {world, argument, 0xcbf29ce484222325u};
    double slowness = program_slowness();
    comm_doing(world, "checks");
    check_collectives(&me, slowness > 1 ? 12 : 40);
    check_exchanges(&me, slowness > 1 ? 80 : 400);
    check_chain(&me);
    for (int round = 0; round < 12; round++) check_overlapped(&me, round);
    check_ring(&me, slowness > 1 ? 100000 : 3000000);
    check_groups(&me, slowness > 1 ? 2 : 4);

    int size = comm_size(world), rank = comm_rank(world);
    uint64_t *digests = get((size_t)size * sizeof *digests);
    size_t *bytes = get((size_t)size * sizeof *bytes);
    for (int r = 0; r < size; r++) bytes[r] = sizeof *digests;
    digests[rank] = me.digest;
    comm_all_gather(world, digests, bytes);
    uint64_t digest = 0;
    for (int r = 0; r < size; r++) digest = digest * 0x9E3779B97F4A7C15u + digests[r];
    if (rank == 0) me.checks->digest = digest;
    free(digests);
    free(bytes);
}

static uint64_t run_checks(CommEngine engine, int ranks) {
    Checks checks = {.lock = PTHREAD_MUTEX_INITIALIZER};
    CommLaunch launch = {.engine = engine, .ranks = ranks, .timeout_seconds = 100};
    Error err = {0};
    if (!comm_run(&launch, rank_main, &checks, &err)) fail_msg("%s", err.message);
    if (checks.failures > 0) fail_msg("%d checks failed; first: %s", checks.failures, checks.first);
    return checks.digest;
}

// The other side of test_mpi: this process is one rank.
static int run_as_rank(int ranks) {
    Checks checks = {.lock = PTHREAD_MUTEX_INITIALIZER};
    CommLaunch launch = {.engine = COMM_AUTO, .ranks = ranks, .timeout_seconds = 100};
    Error err = {0};
    alarm(120);
    if (!comm_ranks_are_processes(COMM_AUTO)) return 3;
    if (!comm_run(&launch, rank_main, &checks, &err)) die(&err);
    if (checks.failures > 0) {
        fprintf(stderr, "%d checks failed; first: %s\n", checks.failures, checks.first);
        return 1;
    }
    if (comm_process_rank() == 0) printf("digest %016llx\n", (unsigned long long)checks.digest);
    return 0;
}

static void test_local(void **state) {
    (void)state;
    static const int sizes[] = {1, 2, 3, 4, 8};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        uint64_t once = run_checks(COMM_LOCAL, sizes[i]), again = run_checks(COMM_LOCAL, sizes[i]);
        assert_int_equal(once, again);
    }
}

static void test_mpi(void **state) {
    (void)state;
    if (!mpi_can_be_tested()) skip();
    static const int sizes[] = {1, 2, 3, 4, 8};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        Command command = {0};
        char count[16], expected[64];
        snprintf(count, sizeof count, "%d", sizes[i]);
        add_mpirun_in_folder(&command, sizes[i]);
        add_words(&command, own_path(), "ranks", count, NULL);
        ProgramResult result = run_command(&command, 60);
        snprintf(expected, sizeof expected, "digest %016llx\n", (unsigned long long)run_checks(COMM_LOCAL, sizes[i]));
        assert_string_equal(result.out, expected);
        free_result(&result);
    }
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "ranks") == 0) return run_as_rank(atoi(argv[2]));
    alarm(300);
    pass_over_what_is_not_ours();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_local),
        cmocka_unit_test(test_mpi),
    };
    return cmocka_run_group_tests_name("comm", tests, make_folder, remove_folder);
}
