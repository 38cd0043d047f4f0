// What attention of one layer costs, stored whole, streamed, and distributed over ranks: time, memory and bytes sent.
//
//   dev/bench_distributed                          all of the ways below, T = 2,048, as CSV lines after a header
//   dev/bench_distributed vanilla 1 2048           two of these lines: forward, and forward with backward
//   dev/bench_distributed ring 4 2048              the same on 4 ranks: ring, gather, ulysses, ulysses-ring;
//                                                  one rank that stores no matrix is called streaming
//   dev/bench_distributed --pass forward ring 4 T  one line; no gradients are in memory
//   dev/bench_distributed --plan ring 4 T          memory and bytes sent alone, by formula; nothing is run
//   dev/bench_distributed --largest BYTES ring 4   the same for the largest T that takes so many bytes of a rank
//   --heads H --head-dim D --rounds N              4 heads of 64 values, 5 rounds
//   --layers L                                     the tensors of L layers are held, as in training; one is run
//   --device cuda                                  ranks share the GPUs; a plan needs none
//
// Causal, one sequence. Ranks are threads of this process with one processor each, so there may be more of them than
// processors. Columns:
//   tensors      bytes of the busiest rank: q, k, v, output, log-sum-exp of each layer; where there is backward, the
//                gradients of one layer
//   scratch      bytes of it beside that, which layers share: the T x T matrix, what travels, room for the kernels
//   resident     bytes by which this process grew, by the number of ranks: a check of the two columns before it; of a
//                run of its own alone
//   sent         bytes that the busiest rank sends
//   seconds      from the first rank's start to the last one's end, median over rounds
//   work         seconds of processor time of the busiest rank, which waiting does not take; empty on GPUs
//   matrix_rate  FLOP/s that one rank's matrix products reach, measured between rounds; median
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "attention/attention.h"
#include "base/random.h"

enum { MOST_RANKS = 32, MOST_ROUNDS = 99, MOST_HEADS = 1024, MOST_LAYERS = 1024, MOST_TOKENS = 1 << 24 };
enum { STEP = 64, PIECE = 1 << 14 };
typedef enum Pass { FORWARD, BOTH, PASSES } Pass;
static const char *const pass_names[] = {"forward", "both"};

typedef struct Measured { // of one pass
    double seconds[MOST_ROUNDS], work[MOST_RANKS][MOST_ROUNDS];
    int64_t sent[MOST_RANKS];
} Measured;

typedef struct Bench {
    DeviceKind device;
    const char *name; // of the exchange, on the command line
    int rounds, gpus;
    int64_t layers;
    bool plan;
    int64_t largest; // 0: a T is given
    Pass last; // BOTH: backward is run and has its memory
    AttentionConfig config;
    int repeats; // of a pass in a round; settled by rank 0
    Measured measured[PASSES];
    double rate[MOST_ROUNDS];
    bool alone; // in its process
    size_t resident;
} Bench;

static void stop(const Error *err) {
    fprintf(stderr, "bench_distributed: %s\n", err->message);
    exit(err->exit_code);
}

// ---- memory of a rank ----------------------------------------------------------------------------------------------

typedef struct RankMemory {
    Arena arena;
    void *qkv, *out;     // (L, Tl, 3C), (L, Tl, C)
    float *log_sum_exp;  // (L, H, Tl)
    void *d_qkv, *d_out; // (Tl, 3C), (Tl, C)
    size_t tensors;      // bytes
    Attention attention;
} RankMemory;

static void lay_out(RankMemory *r, const Bench *bench, int rank, bool gradients) {
    const AttentionConfig *config = &bench->config;
    size_t layers = (size_t)bench->layers, tokens = (size_t)shard_of(config->context, config->ranks, rank).tokens;
    size_t values = tokens * (size_t)(config->shape.heads * config->shape.head_dim) * config->element_bytes;
    r->qkv = arena_take(&r->arena, "q, k, v", layers * 3 * values);
    r->out = arena_take(&r->arena, "output", layers * values);
    size_t rows = tokens * (size_t)config->shape.heads;
    r->log_sum_exp = arena_take(&r->arena, "log-sum-exp", layers * rows * sizeof(float));
    if (gradients) r->d_qkv = arena_take(&r->arena, "gradient of q, k, v", 3 * values);
    if (gradients) r->d_out = arena_take(&r->arena, "gradient of the output", values);
    r->tensors = r->arena.used;
    attention_lay_out(&r->attention, config, rank, &r->arena);
}

// What the device is lent: for attention's kernels, or for the products of vanilla.
static size_t kernels_bytes(const Bench *bench, int rank) {
    size_t layers = device_scratch_bytes(bench->device, 1, 1, 1, 1);
    size_t attention = attention_scratch_bytes(&bench->config, rank, bench->config.kernels, 1);
    return layers > attention ? layers : attention;
}

typedef struct Bytes {
    size_t tensors, scratch;
} Bytes;

static Bytes planned_bytes(const Bench *bench, Pass pass) {
    Bytes most = {0, 0};
    for (int rank = 0; rank < bench->config.ranks; rank++) {
        RankMemory r = {0};
        lay_out(&r, bench, rank, pass == BOTH);
        Bytes mine = {r.tensors, r.arena.used - r.tensors + kernels_bytes(bench, rank)};
        if (most.tensors + most.scratch < mine.tensors + mine.scratch) most = mine;
    }
    return most;
}

static int64_t planned_sent(const Bench *bench, Pass pass) {
    const Visibility all = {0};
    int64_t most = 0;
    for (int rank = 0; rank < bench->config.ranks; rank++) {
        AttentionBytes bytes = attention_bytes(&bench->config, &all, rank);
        int64_t sent = bytes.forward + (pass == BOTH ? bytes.backward : 0);
        if (most < sent) most = sent;
    }
    return most;
}

static bool fits(Bench *bench, Pass pass, int64_t T) {
    bench->config.context = T;
    Bytes bytes = planned_bytes(bench, pass);
    return bytes.tensors + bytes.scratch <= (size_t)bench->largest;
}

static int64_t largest_context(Bench *bench, Pass pass) {
    int64_t fitting = 0, too_long = MOST_TOKENS / STEP;
    if (fits(bench, pass, MOST_TOKENS)) fitting = too_long;
    while (too_long - fitting > 1) {
        int64_t middle = (fitting + too_long) / 2;
        if (fits(bench, pass, middle * STEP)) fitting = middle;
        else too_long = middle;
    }
    Error err;
    if (fitting == 0 || fitting == MOST_TOKENS / STEP) {
        error_usage(&err, "--largest %lld: it must hold %d tokens at least, and less than %d",
                    (long long)bench->largest, STEP, MOST_TOKENS);
        stop(&err);
    }
    return fitting * STEP;
}

// The most memory that this program has had, by the kernel's account; 0 where it says nothing. (What getrusage gives
// may be that of the program which started this one.)
static size_t peak_resident(void) {
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    size_t kilobytes = 0;
    while (status != NULL && fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "VmHWM: %zu", &kilobytes) == 1) break;
    if (status != NULL) fclose(status);
    return kilobytes * 1024;
}

// ---- running -------------------------------------------------------------------------------------------------------

static double clock_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// Normal values into storage.
static void fill(Device *d, void *storage, int64_t count, uint64_t stream) {
    float piece[PIECE];
    Error err;
    for (int i = 0; i < PIECE; i++) piece[i] = (float)random_normal(1, stream, (uint64_t)i);
    float *room = d->allocate(d, sizeof piece, &err);
    if (room == NULL) stop(&err);
    d->upload(d, room, piece, sizeof piece);
    for (int64_t first = 0; first < count; first += PIECE)
        d->to_storage(d, at(d, storage, first), room, count - first < PIECE ? count - first : PIECE);
    d->synchronize(d);
    d->release(d, room, sizeof piece);
}

typedef struct Rank {
    Bench *bench;
    Comm *world;
    int rank;
    Device *device;
    RankMemory memory;
} Rank;

static TokenView part_of(const Rank *r, void *fused, int part) {
    const AttentionShape *shape = &r->bench->config.shape;
    int64_t C = shape->heads * shape->head_dim;
    return (TokenView){at(r->device, fused, part * C), 0, 3 * C};
}
static TokenView tokens_of(const Rank *r, void *tokens) {
    const AttentionShape *shape = &r->bench->config.shape;
    return (TokenView){tokens, 0, shape->heads * shape->head_dim};
}

static void forward(Rank *r) {
    RankMemory *m = &r->memory;
    attention_forward(&m->attention, r->device, (Visibility){0}, tokens_of(r, m->out), m->log_sum_exp,
                      part_of(r, m->qkv, 0), part_of(r, m->qkv, 1), part_of(r, m->qkv, 2));
}
static void backward(Rank *r) {
    RankMemory *m = &r->memory;
    attention_backward(&m->attention, r->device, (Visibility){0}, part_of(r, m->d_qkv, 0), part_of(r, m->d_qkv, 1),
                       part_of(r, m->d_qkv, 2), part_of(r, m->qkv, 0), part_of(r, m->qkv, 1), part_of(r, m->qkv, 2),
                       tokens_of(r, m->out), m->log_sum_exp, tokens_of(r, m->d_out));
}

static double meet(Rank *r) {
    r->device->synchronize(r->device);
    comm_barrier(r->world);
    return clock_of(CLOCK_MONOTONIC);
}

// One of them: seconds of all ranks, and of this one's processor.
static double time_of(Rank *r, void part(Rank *), int repeats, double *work) {
    double start = meet(r), busy = clock_of(CLOCK_THREAD_CPUTIME_ID);
    for (int i = 0; i < repeats; i++) part(r);
    r->device->synchronize(r->device);
    *work = (clock_of(CLOCK_THREAD_CPUTIME_ID) - busy) / repeats;
    return (meet(r) - start) / repeats;
}

// Touches all memory, counts what is sent, and settles how often a pass is repeated, so that the clock has something to
// measure.
static void first_round(Rank *r) {
    Bench *b = r->bench;
    int64_t begin = attention_bytes_sent(&r->memory.attention);
    double start = meet(r);
    forward(r);
    double end = meet(r);
    b->measured[FORWARD].sent[r->rank] = attention_bytes_sent(&r->memory.attention) - begin;
    if (b->last == BOTH) backward(r);
    meet(r);
    b->measured[BOTH].sent[r->rank] = attention_bytes_sent(&r->memory.attention) - begin;
    if (r->rank == 0) b->repeats = end - start > 0.02 ? 1 : (int)(0.02 / (end - start)) + 1;
}

static void measure(Rank *r) {
    Bench *b = r->bench;
    for (int i = 0; i < b->rounds; i++) {
        if (r->rank == 0) b->rate[i] = r->device->matrix_rate(r->device);
        double work = 0, more_work = 0, seconds = time_of(r, forward, b->repeats, &work), more = 0;
        if (b->last == BOTH) more = time_of(r, backward, b->repeats, &more_work);
        b->measured[FORWARD].work[r->rank][i] = work;
        b->measured[BOTH].work[r->rank][i] = work + more_work;
        if (r->rank > 0) continue;
        b->measured[FORWARD].seconds[i] = seconds;
        b->measured[BOTH].seconds[i] = seconds + more;
    }
}

static void run_on_rank(Comm *world, void *argument) {
    Bench *b = argument;
    Device device;
    Rank r = {.bench = b, .world = world, .rank = comm_rank(world), .device = &device};
    RankMemory planned = {0}, *m = &r.memory;
    Error err;
    if (!device_open(&device, b->device, r.rank % b->gpus, 1, &err)) comm_fail(world, &err);
    comm_barrier(world);
    size_t before = peak_resident();
    comm_barrier(world);
    lay_out(&planned, b, r.rank, b->last == BOTH);
    m->arena.capacity = planned.arena.used;
    m->arena.base = device.allocate(&device, planned.arena.used, &err);
    if (m->arena.base == NULL || !device_lend_scratch(&device, kernels_bytes(b, r.rank), &err)) comm_fail(world, &err);
    lay_out(m, b, r.rank, b->last == BOTH);
    Comm *group = comm_on_device(world, &device, false);
    attention_connect(&m->attention, group);
    int64_t values = m->attention.shard.tokens * b->config.shape.heads * b->config.shape.head_dim;
    fill(&device, m->qkv, 3 * values, (uint64_t)(2 * r.rank));
    if (b->last == BOTH) fill(&device, m->d_out, values, (uint64_t)(2 * r.rank + 1));

    first_round(&r);
    if (r.rank == 0 && device.host_memory && b->alone)
        b->resident = (peak_resident() - before) / (size_t)b->config.ranks;
    meet(&r);
    measure(&r);

    attention_disconnect(&m->attention);
    comm_free(group);
    device_return_scratch(&device);
    device.release(&device, m->arena.base, m->arena.capacity);
    device.close(&device);
}

// ---- results -------------------------------------------------------------------------------------------------------

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(const double *x, int count) {
    double sorted[MOST_ROUNDS];
    memcpy(sorted, x, (size_t)count * sizeof *x);
    qsort(sorted, (size_t)count, sizeof *sorted, ascending);
    return sorted[count / 2];
}

static double busiest_work(const Bench *b, Pass pass) {
    double most[MOST_ROUNDS] = {0};
    for (int i = 0; i < b->rounds; i++)
        for (int rank = 0; rank < b->config.ranks; rank++)
            if (most[i] < b->measured[pass].work[rank][i]) most[i] = b->measured[pass].work[rank][i];
    return median(most, b->rounds);
}

static int64_t most_sent(const Bench *b, Pass pass) {
    int64_t most = 0;
    for (int rank = 0; rank < b->config.ranks; rank++)
        if (most < b->measured[pass].sent[rank]) most = b->measured[pass].sent[rank];
    return most;
}

static void print_line(const Bench *b, Pass pass) {
    const AttentionConfig *config = &b->config;
    Bytes bytes = planned_bytes(b, pass);
    bool on_cpu = b->device != DEVICE_CUDA;
    printf("%s,%d,%lld,%lld,%lld,%lld,%s,%zu,%zu,", b->name, config->ranks, (long long)config->context,
           (long long)config->shape.heads, (long long)config->shape.head_dim, (long long)b->layers, pass_names[pass],
           bytes.tensors, bytes.scratch);
    if (b->plan) {
        printf(",%lld,,,\n", (long long)planned_sent(b, pass));
        return;
    }
    if (pass == b->last && b->resident > 0) printf("%zu", b->resident); // of the pass whose memory was taken
    printf(",%lld,%.6g,", (long long)most_sent(b, pass), median(b->measured[pass].seconds, b->rounds));
    if (on_cpu) printf("%.6g", busiest_work(b, pass));
    printf(",%.5g\n", median(b->rate, b->rounds));
}

// ---- the command line ----------------------------------------------------------------------------------------------

static void usage(void) {
    fprintf(stderr, "usage: bench_distributed [--device cpu|cuda] [--heads H] [--head-dim D] [--layers L]\n"
                    "       [--rounds N] [--pass forward|both] [--plan | --largest BYTES]\n"
                    "       vanilla|streaming|ring|gather|ulysses|ulysses-ring RANKS [T]\n");
    exit(EXIT_USAGE);
}

static int64_t number(const char *what, const char *text, int64_t most) {
    char *end;
    long long value = strtoll(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value < 1 || value > most) {
        fprintf(stderr, "bench_distributed: %s is %s; it must be a whole number from 1 to %lld\n", what, text,
                (long long)most);
        exit(EXIT_USAGE);
    }
    return value;
}

static Exchange exchange_of(const char *name) {
    if (strcmp(name, "streaming") == 0) return EXCHANGE_RING; // of one rank
    for (Exchange exchange = EXCHANGE_RING; exchange <= EXCHANGE_VANILLA; exchange++)
        if (strcmp(name, exchange_name(exchange)) == 0) return exchange;
    usage();
    return EXCHANGE_AUTO;
}

static Pass pass_of(const char *name) {
    if (strcmp(name, pass_names[FORWARD]) == 0) return FORWARD;
    if (strcmp(name, pass_names[BOTH]) != 0) usage();
    return BOTH;
}

static void set_way(Bench *b, const char *name, int ranks, int64_t T) {
    b->name = name;
    b->config.exchange = exchange_of(name);
    b->config.ranks = ranks;
    b->config.context = T;
}

static void set_defaults(Bench *b) {
    *b = (Bench){.device = DEVICE_CPU, .rounds = 5, .layers = 1, .last = BOTH};
    b->config.shape = (AttentionShape){.batch = 1, .heads = 4, .kv_heads = 4, .head_dim = 64, .scale = 0.125f};
}

static void read_options(Bench *b, int argc, char **argv) {
    AttentionShape *shape = &b->config.shape;
    int word = 1;
    for (; word < argc && argv[word][0] == '-'; word++) {
        const char *option = argv[word];
        if (strcmp(option, "--plan") == 0) b->plan = true;
        else if (++word == argc) usage();
        else if (strcmp(option, "--device") == 0) b->device = device_kind(argv[word]);
        else if (strcmp(option, "--heads") == 0) shape->heads = number(option, argv[word], MOST_HEADS);
        else if (strcmp(option, "--head-dim") == 0)
            shape->head_dim = number(option, argv[word], ATTENTION_MAX_HEAD_DIM);
        else if (strcmp(option, "--rounds") == 0) b->rounds = (int)number(option, argv[word], MOST_ROUNDS);
        else if (strcmp(option, "--layers") == 0) b->layers = number(option, argv[word], MOST_LAYERS);
        else if (strcmp(option, "--largest") == 0) b->largest = number(option, argv[word], (int64_t)1 << 50);
        else if (strcmp(option, "--pass") == 0) b->last = pass_of(argv[word]);
        else usage();
    }
    if (b->device == DEVICE_AUTO || argc - word != (b->largest > 0 ? 2 : 3) || (b->plan && b->largest > 0)) usage();
    shape->kv_heads = shape->heads;
    b->plan = b->plan || b->largest > 0;
    int ranks = (int)number("RANKS", argv[word + 1], MOST_RANKS);
    set_way(b, argv[word], ranks, b->largest > 0 ? STEP : number("T", argv[word + 2], MOST_TOKENS));
    if (strcmp(b->name, "streaming") == 0 && b->config.ranks > 1) {
        fprintf(stderr, "bench_distributed: streaming is of one rank; name an exchange for %d\n", b->config.ranks);
        exit(EXIT_USAGE);
    }
}

// What the lay-out has to know of the device; it is not kept open.
static void look_at_device(Bench *b) {
    const char *why = "";
    Error err;
    Device device;
    b->gpus = device_count(b->device, &why);
    if (b->gpus == 0 && b->plan) {
        device_elsewhere(&device);
    } else if (!device_open(&device, b->device, 0, 1, &err)) {
        stop(&err);
    }
    b->config.kernels = device.attention;
    b->config.element_bytes = device.element_bytes;
    if (b->gpus > 0) device.close(&device);
    if (!attention_resolve(&b->config, &err)) stop(&err);
}

static void bench(Bench *b, bool header) {
    int64_t context[PASSES];
    Error err;
    look_at_device(b);
    CommLaunch launch = {.engine = COMM_LOCAL, .ranks = b->config.ranks};
    if (!b->plan && !comm_run(&launch, run_on_rank, b, &err)) stop(&err);
    for (Pass pass = FORWARD; pass <= b->last; pass++)
        context[pass] = b->largest > 0 ? largest_context(b, pass) : b->config.context;
    if (header)
        printf("exchange,ranks,T,heads,head_dim,layers,pass,tensors,scratch,resident,sent,seconds,work,matrix_rate\n");
    for (Pass pass = FORWARD; pass <= b->last; pass++) {
        b->config.context = context[pass];
        print_line(b, pass);
    }
    fflush(stdout);
}

static void bench_all(Bench *b) {
    static const struct {
        const char *name;
        int ranks;
    } ways[] = {{"vanilla", 1}, {"streaming", 1}, {"ring", 2}, {"gather", 2}, {"ulysses", 2}, {"ring", 4},
                {"gather", 4},  {"ulysses", 4},   {"ulysses-ring", 4}};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        set_defaults(b);
        set_way(b, ways[i].name, ways[i].ranks, 2048);
        bench(b, i == 0);
    }
}

int main(int argc, char **argv) {
    static Bench b;
    if (argc == 1) {
        bench_all(&b);
        return 0;
    }
    set_defaults(&b);
    b.alone = true;
    read_options(&b, argc, argv);
    bench(&b, true);
    return 0;
}
