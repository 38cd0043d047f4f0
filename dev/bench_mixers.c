// How fast the token mixers are, beside what the device's matrix products reach.
//
//   dev/bench_mixers                   all mixers below, C = 256, T = 4K, 16K, 64K, 1 rank and 4, all processors
//   dev/bench_mixers linear attention  these alone, each as --mixer has it
//   dev/bench_mixers --context 16384   this T alone
//   dev/bench_mixers --ranks 1         without the 4 ranks
//   dev/bench_mixers --device cuda     on the first GPU, 1 rank: C = 768
//   dev/bench_mixers --csv ...         lines "mixer,T,ranks,forward,backward,kernels,share,whole", times in ms
//
// A layer's token mixer runs forward (mix and output) and backward, for one sequence of T tokens. `kernels` is what is
// left of that without the device's matrix products, which are the projections: the mixer's own arithmetic. Its share
// is Mixer.flops by that time and by the matrix rate, which is measured in turns with it; `whole` is that of all the
// arithmetic, 6 operations for each element of a matrix as well. Ranks are threads that share the processors, so 4 of
// them can at best be as fast as one. A shared machine changes its speed, so the best of several rounds counts.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arena.h"
#include "base/cpu_features.h"
#include "base/random.h"
#include "comm/comm.h"
#include "mixer/attention.h"
#include "model/model.h"

// What is measured: a mixer as in --mixer, its window (attention), and up to how many tokens it takes a bearable time.
typedef struct Row {
    const char *mixer;
    int64_t window, most_tokens;
} Row;

static const Row rows[] = {
    {"attention", 0, 16384}, {"attention", 512, 65536}, {"dilated:2048,4", 0, 65536},
    {"linear", 0, 65536},    {"delta", 0, 65536},       {"conv", 0, 65536},
    {"fourier", 0, 65536},   {"mlp", 0, 4096},          {"mean", 0, 65536},
};
enum { ROWS = sizeof rows / sizeof *rows, ROUNDS = 5, MANY_ROUNDS = 20 };
static const double ENOUGH_SECONDS = 1.5, MOST_SECONDS = 10; // of rounds; of more than two
static const int64_t contexts[] = {4096, 16384, 65536};

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static double smaller(double a, double b) { return a < b ? a : b; }

// ---- matrix products, which are timed apart --------------------------------------------------------------------------

// The device's own functions, and how long they took: of the thread, which is a rank.
static _Thread_local Device plain;
static _Thread_local double product_seconds;
static _Thread_local bool timed; // one rank that has the processors for itself

static double begin_product(Device *d) {
    if (!timed) return 0;
    d->synchronize(d);
    return seconds();
}

static void end_product(Device *d, double begin) {
    if (!timed) return;
    d->synchronize(d);
    product_seconds += seconds() - begin;
}

static void timed_forward(Device *d, void *out, const void *x, const void *weight, const void *bias, int64_t count,
                          int64_t K, int64_t N) {
    double begin = begin_product(d);
    plain.matmul_forward(d, out, x, weight, bias, count, K, N);
    end_product(d, begin);
}

static void timed_backward(Device *d, void *d_x, float *d_weight, float *d_bias, const void *d_out, const void *x,
                           const void *weight, int64_t count, int64_t K, int64_t N, bool accumulate) {
    double begin = begin_product(d);
    plain.matmul_backward(d, d_x, d_weight, d_bias, d_out, x, weight, count, K, N, accumulate);
    end_product(d, begin);
}

// ---- one measurement ------------------------------------------------------------------------------------------------

typedef struct Times { // seconds, the best round's; operations in a second
    double forward, backward, kernels, rate;
} Times;

typedef struct Measurement { // what the ranks share
    ModelConfig config;
    ParameterTable table;
    const char *option;
    DeviceKind device;
    int64_t T;
    int threads; // of a rank
    bool done;   // by rank 0
    Times best;
} Measurement;

typedef struct RankMemory {
    Model model;
    Attention attention;
    Pass pass;
    Arena arena;
} RankMemory;

static void *checked(void *memory) {
    if (memory != NULL) return memory;
    fprintf(stderr, "bench_mixers: out of memory\n");
    exit(EXIT_RUNTIME);
}

static void lay_out(RankMemory *r, const Measurement *x, const MixerSize *size, const AttentionConfig *attention) {
    r->model.weights = arena_take(&r->arena, "weights", (size_t)x->table.total * size->element_bytes);
    r->model.gradients = arena_take(&r->arena, "gradients", (size_t)x->table.total * sizeof(float));
    pass_lay_out(&r->pass, *size, x->config.vocab_size, &r->arena, PASS_TRAINING, RECOMPUTE_NONE);
    if (layer_kind(&x->config, 0).tokens->attends) attention_lay_out(&r->attention, attention, size->rank, &r->arena);
}

// Normal values into storage.
static void fill(Device *d, void *storage, int64_t count, double std, uint64_t stream) {
    enum { PIECE = 1 << 14 };
    float *piece = checked(malloc(PIECE * sizeof *piece)), *room;
    Error err;
    for (int i = 0; i < PIECE; i++) piece[i] = (float)(std * random_normal(1, stream, (uint64_t)i));
    room = checked(d->allocate(d, PIECE * sizeof *room, &err));
    d->upload(d, room, piece, PIECE * sizeof *room);
    for (int64_t first = 0; first < count; first += PIECE)
        d->to_storage(d, at(d, storage, first), room, count - first < PIECE ? count - first : PIECE);
    d->synchronize(d);
    d->release(d, room, PIECE * sizeof *room);
    free(piece);
}

static void fill_inputs(RankMemory *r, Device *d, const Measurement *x) {
    int64_t tokens = r->model.shard.tokens, half = x->config.head_dim / 2, row = 0;
    int32_t *positions = checked(malloc((size_t)tokens * sizeof *positions));
    float *tables = checked(malloc((size_t)(2 * tokens * half) * sizeof *tables));
    for (int i = 0; i < r->model.shard.count; i++)
        for (int64_t t = 0; t < r->model.shard.chunk[i].length; t++)
            positions[row++] = (int32_t)(r->model.shard.chunk[i].start + t);
    rope_tables(&x->config, positions, tokens, tables, tables + tokens * half);
    d->upload(d, r->pass.positions, positions, (size_t)tokens * sizeof *positions);
    d->upload(d, r->pass.cos_table, tables, (size_t)(tokens * half) * sizeof *tables);
    d->upload(d, r->pass.sin_table, tables + tokens * half, (size_t)(tokens * half) * sizeof *tables);
    fill(d, r->model.weights, x->table.total, 1 / sqrt((double)x->config.dim), 1);
    fill(d, r->pass.normed, tokens * x->config.dim, 1, 2);
    fill(d, r->pass.d_residual, tokens * x->config.dim, 1, 3);
    d->synchronize(d);
    free(positions);
    free(tables);
}

static double meet(Device *d, Comm *world) {
    d->synchronize(d);
    comm_barrier(world);
    return seconds();
}

// Rounds until the best of them is known; all ranks do the same.
static void measure(Measurement *x, const Mixer *mixer, const Mixing *m, Device *d, Comm *world) {
    double begun = seconds();
    bool leads = comm_rank(world) == 0;
    timed = comm_size(world) == 1;
    for (int round = -1; !x->done; round++) { // the first one is not counted
        product_seconds = 0;
        double start = meet(d, world);
        mixer->mix(m);
        mixer->output(m);
        double middle = meet(d, world);
        mixer->backward(m);
        double end = meet(d, world);
        if (leads && round >= 0) {
            x->best.rate = -smaller(-x->best.rate, -(timed ? d->matrix_rate(d) : 0));
            x->best.forward = smaller(x->best.forward, middle - start);
            x->best.backward = smaller(x->best.backward, end - middle);
            x->best.kernels = smaller(x->best.kernels, end - start - product_seconds);
            double spent = seconds() - begun;
            x->done = round + 1 >= MANY_ROUNDS || (round + 1 >= ROUNDS && spent > ENOUGH_SECONDS) ||
                      (round >= 1 && spent > MOST_SECONDS);
        }
        comm_barrier(world);
    }
}

static void run_on_rank(Comm *world, void *argument) {
    Measurement *x = argument;
    const Mixer *mixer = layer_kind(&x->config, 0).tokens;
    Device device, *d = &device;
    Error err;
    int ranks = comm_size(world), rank = comm_rank(world);
    if (!device_open(d, x->device, 0, x->threads, &err)) comm_fail(world, &err);
    plain = device;
    d->matmul_forward = timed_forward;
    d->matmul_backward = timed_backward;
    Shard shard = shard_of(x->T, ranks, rank);
    MixerSize size = {.config = &x->config,
                      .rows = shard.tokens,
                      .sequences = 1,
                      .element_bytes = d->element_bytes,
                      .context = x->T,
                      .ranks = ranks,
                      .rank = rank,
                      .kernels = d->mixers};
    AttentionConfig attention = {.context = x->T,
                                 .ranks = ranks,
                                 .shape = {1, x->config.heads, x->config.kv_heads, x->config.head_dim,
                                           (float)(1 / sqrt((double)x->config.head_dim))},
                                 .element_bytes = d->element_bytes,
                                 .kernels = d->attention};
    MixerUse use = {.size = size, .device = x->device, .option = x->option};
    if (mixer->check != NULL && !mixer->check(&use, &err)) comm_fail(world, &err);
    attention.window_count = mixer->attends;
    if (mixer->attends) attention.windows[0] = attention_sees(&x->config, 0, x->T);
    if (mixer->attends && !attention_resolve(&attention, &err)) comm_fail(world, &err);

    RankMemory planned = {0}, r = {0};
    lay_out(&planned, x, &size, &attention);
    pass_free(&planned.pass);
    r.arena.capacity = planned.arena.used;
    r.arena.base = d->allocate(d, planned.arena.used, &err);
    if (r.arena.base == NULL) comm_fail(world, &err);
    lay_out(&r, x, &size, &attention);
    size_t scratch = device_scratch_bytes(x->device, d->threads, size.rows, x->config.dim, 8 * x->config.dim), more = 0;
    if (mixer->scratch_bytes != NULL) more = mixer->scratch_bytes(&size, d->threads);
    if (mixer->attends) more = attention_scratch_bytes(&attention, rank, d->attention, d->threads);
    if (!device_lend_scratch(d, scratch > more ? scratch : more, &err)) comm_fail(world, &err);
    r.model.config = &x->config;
    r.model.table = &x->table;
    r.model.device = d;
    r.model.attention = &r.attention;
    r.model.shard = shard;
    r.model.context = x->T;
    r.model.ranks = ranks;
    r.model.rank = rank;
    r.model.requests = checked(calloc(MODEL_REQUESTS(ranks), sizeof *r.model.requests));
    Comm *on_device = comm_on_device(world, d, false);
    r.model.sequence = comm_split(on_device, 0, rank);
    if (mixer->attends) attention_connect(&r.attention, on_device);
    fill_inputs(&r, d, x);

    Mixing m = {.model = &r.model,
                .pass = &r.pass,
                .choice = layer_kind(&x->config, 0).choice,
                .tensor = x->table.layer[0].tokens,
                .kept = r.pass.layer[0].tokens,
                .room = r.pass.tokens_room[0]};
    measure(x, mixer, &m, d, world);

    if (mixer->attends) attention_disconnect(&r.attention);
    comm_free(r.model.sequence);
    comm_free(on_device);
    free(r.model.requests);
    pass_free(&r.pass);
    device_return_scratch(d);
    d->release(d, r.arena.base, r.arena.capacity);
    d->close(d);
}

// ---- tables ---------------------------------------------------------------------------------------------------------

typedef struct Bench {
    DeviceKind device;
    int64_t C, context; // 0: all
    int ranks;          // most
    bool csv;
} Bench;

// Of the layer's token mixer, for one token: its own operations, and those with its matrices.
static double operations(const Measurement *x, bool whole) {
    const Mixer *mixer = layer_kind(&x->config, 0).tokens;
    const LayerOffsets *layer = &x->table.layer[0];
    double own = mixer->flops == NULL ? 0 : mixer->flops(&x->config, 0, x->T), matrices = 0;
    for (int i = 0; whole && i < x->table.count; i++) { // the mixer's tensors stand between the layer's norms
        const Parameter *p = &x->table.parameter[i];
        bool mixers = p->offset > layer->norm1.scale && p->offset < layer->norm2.scale;
        if (mixers && p->dimensions == 2 && !p->lower_triangle) matrices += (double)p->size;
    }
    return own + 6 * matrices;
}

static void print(const Bench *t, const Measurement *x, int ranks, const char *name, const Times *one) {
    const Times *time = &x->best;
    double T = (double)x->T, all = time->forward + time->backward, rate = one->rate;
    double share = ranks == 1 ? operations(x, false) * T / time->kernels / rate : NAN;
    double faster = (one->forward + one->backward) / all, whole = operations(x, true) * T / all / rate;
    if (t->csv) {
        printf("%s,%lld,%d,%.3f,%.3f,%.3f,%.4f,%.4f\n", name, (long long)x->T, ranks, 1e3 * time->forward,
               1e3 * time->backward, 1e3 * time->kernels, share, whole);
    } else if (ranks == 1) {
        printf("| %s | %lld | 1 | %.2f | %.2f | %.2f | %.0f%% | %.0f%% | %.2f | |\n", name, (long long)x->T,
               1e3 * time->forward, 1e3 * time->backward, 1e3 * time->kernels, 100 * share, 100 * whole,
               1e6 * time->kernels / T);
    } else {
        printf("| %s | %lld | %d | %.2f | %.2f | | | %.0f%% | | %.0f%% |\n", name, (long long)x->T, ranks,
               1e3 * time->forward, 1e3 * time->backward, 100 * whole, 100 * faster);
    }
    fflush(stdout);
}

// One mixer at one length, over one rank and over several. false: this program does not have it, or it cannot serve.
static bool bench(const Bench *t, const Row *row, int64_t T) {
    Measurement x = {.option = row->mixer, .device = t->device, .T = T};
    Error err;
    x.config = (ModelConfig){.architecture = ARCH_LLAMA,
                             .vocab_size = 64,
                             .layers = 1,
                             .heads = t->C / 64,
                             .kv_heads = t->C / 64,
                             .head_dim = 64,
                             .dim = t->C,
                             .ffn_dim = t->C,
                             .max_positions = T,
                             .norm_epsilon = 1e-5,
                             .init_std = 0.02,
                             .tied_embeddings = true,
                             .rope_theta = 10000,
                             .bos_token = -1,
                             .eos_token = -1,
                             .windows = {row->window},
                             .window_period = 1};
    if (!mixers_read(&x.config, row->mixer, "mixer", &err) || !parameters_list(&x.table, &x.config, 64, &err))
        return false;
    char name[MIXERS_TEXT + 32];
    snprintf(name, sizeof name, row->window > 0 ? "%s, window %lld" : "%s", row->mixer, (long long)row->window);
    Times one = {0};
    for (int ranks = 1; ranks <= t->ranks; ranks *= 4) {
        x.threads = cpu_count() / ranks > 1 ? cpu_count() / ranks : 1;
        x.best = (Times){1e9, 1e9, 1e9, 0};
        x.done = false;
        CommLaunch launch = {.engine = COMM_LOCAL, .ranks = ranks};
        if (!comm_run(&launch, run_on_rank, &x, &err)) {
            fprintf(stderr, "bench_mixers: %s\n", err.message);
            exit(err.exit_code);
        }
        if (ranks == 1) one = x.best;
        print(t, &x, ranks, name, &one);
    }
    parameters_free(&x.table);
    return true;
}

static void bench_all_lengths(const Bench *t, const Row *row) {
    if (t->context > 0) {
        bench(t, row, t->context);
        return;
    }
    for (int i = 0; i < (int)(sizeof contexts / sizeof *contexts); i++)
        if (contexts[i] <= row->most_tokens && !bench(t, row, contexts[i])) return;
}

static void usage(void) {
    fprintf(stderr, "usage: bench_mixers [--device cpu|cuda] [--csv] [--context T] [--ranks 1|4] [MIXER ...]\n");
    exit(EXIT_USAGE);
}

int main(int argc, char **argv) {
    Bench t = {.device = DEVICE_CPU, .ranks = 4};
    int word = 1;
    for (; word < argc && argv[word][0] == '-'; word++) {
        if (strcmp(argv[word], "--csv") == 0) t.csv = true;
        else if (word + 1 == argc) usage();
        else if (strcmp(argv[word], "--device") == 0) t.device = device_kind(argv[++word]);
        else if (strcmp(argv[word], "--context") == 0) t.context = atoll(argv[++word]);
        else if (strcmp(argv[word], "--ranks") == 0) t.ranks = atoi(argv[++word]);
        else usage();
    }
    if (t.device == DEVICE_AUTO || t.context < 0 || t.ranks < 1) usage();
    t.C = t.device == DEVICE_CPU ? 256 : 768;
    if (t.device != DEVICE_CPU) t.ranks = 1;
    if (!t.csv)
        printf(
            "| mixer, C %lld, heads of 64 | T | ranks | forward, ms | backward, ms | kernels, ms | share of the matrix "
            "rate | of the whole | kernels, microseconds a token | speed of 1 rank "
            "|\n|---|---|---|---|---|---|---|---|---|---|\n",
            (long long)t.C);
    for (; word < argc; word++) {
        Row row = {argv[word], 0, contexts[2]};
        bench_all_lengths(&t, &row);
        if (word + 1 == argc) return 0;
    }
    for (int i = 0; i < ROWS; i++) bench_all_lengths(&t, &rows[i]);
    return 0;
}
