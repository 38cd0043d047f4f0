// How fast the attention kernels are, beside the rate at which the device multiplies large matrices.
//
//   dev/bench_attention                          the table below, on the CPU
//   dev/bench_attention --device cuda            on the first GPU
//   dev/bench_attention --csv T D [T D ...]      lines "who,T,D,forward,backward,both" in TFLOP/s for T tokens
//                                                and heads of D values, with ordinary attention ("vanilla") where
//                                                it fits
//   dev/bench_attention --csv --mma T D ...      and with the kernels for every GPU, "mma.sync", where Hopper's are the
//                                                usual ones (CUDA_ATTENTION=mma)
//   dev/bench_attention --bits N T D [T D ...]   lines "bits,train_gpt,T,D,N,forward,backward": of N calls with the
//   same
//                                                values, how many gave other bits than the first; fails if any did
//   dev/bench_attention --window W [T D ...]     a query sees the last W keys
//   SIMD=avx2 dev/bench_attention                with another of the CPU's compiled copies (portable, avx2, avx512)
//
// Causal. CPU: one sequence, 4 heads, all processors. GPU: 2,048 channels, and as many sequences as make 16,384 tokens.
// Operations are the useful ones: a causal product over the scores counts 2 x T^2/2 x D a head, or with a window 2 D
// for each pair of a query and a key that it sees; the forward pass has two of them, the backward pass five, however
// many the kernels make. The exponentials are not counted. Backward is what training on one rank does: delta, and the
// kernels. The matrix rate is measured again before each pass, since a shared machine changes its speed; each figure is
// a median over rounds, each share that of the ratio to the rate just measured.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "attention/kernel.h"
#include "base/cpu_features.h"
#include "base/random.h"

enum { CPU_HEADS = 4, GPU_CHANNELS = 2048, GPU_TOKENS = 16384, ROUNDS = 5, PIECE = 1 << 16 };

typedef struct Problem {
    AttentionShape shape;
    int64_t T, C; // tokens of a sequence; heads x head_dim
    Visibility visibility;
    void *memory; // of all that follows
    size_t bytes;
    void *qkv, *d_qkv, *out, *d_out;        // storage: (B, T, 3C), (B, T, C)
    float *piece;                           // of random values, on their way to storage
    float *max, *sum, *log_sum_exp, *delta; // (B, H, T)
    void *probabilities, *rows;             // of vanilla; NULL: does not fit
} Problem;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void stop(const Error *err) {
    fprintf(stderr, "bench_attention: %s\n", err->message);
    exit(err->exit_code);
}

static void *take(char **next, size_t bytes) {
    void *memory = *next;
    *next += (bytes + 255) / 256 * 256;
    return memory;
}

static void lay_out(Problem *p, size_t element, bool vanilla, size_t vanilla_rows) {
    char *next = p->memory;
    size_t values = (size_t)(p->shape.batch * p->T * p->C), rows = (size_t)(p->shape.batch * p->shape.heads * p->T);
    p->qkv = take(&next, 3 * values * element);
    p->d_qkv = take(&next, 3 * values * element);
    p->out = take(&next, values * element);
    p->d_out = take(&next, values * element);
    p->piece = take(&next, PIECE * sizeof(float));
    p->max = take(&next, rows * sizeof(float));
    p->sum = take(&next, rows * sizeof(float));
    p->log_sum_exp = take(&next, rows * sizeof(float));
    p->delta = take(&next, rows * sizeof(float));
    p->probabilities = vanilla ? take(&next, rows * (size_t)p->T * element) : NULL;
    p->rows = vanilla ? take(&next, vanilla_rows) : NULL;
    p->bytes = (size_t)(next - (char *)p->memory);
}

// The same values for every size: what matters is that they are random.
static void fill(const Problem *p, Device *device, void *storage, int64_t count, uint64_t stream) {
    static float host[PIECE];
    for (int64_t i = 0; i < PIECE; i++) host[i] = (float)random_normal(1, stream, (uint64_t)i);
    for (int64_t first = 0; first < count; first += PIECE) {
        int64_t values = count - first < PIECE ? count - first : PIECE;
        device->upload(device, p->piece, host, (size_t)values * sizeof(float));
        device->to_storage(device, at(device, storage, first), p->piece, values);
    }
}

static void lend_scratch(Device *device, const Problem *p) {
    Error err;
    size_t layers = device_scratch_bytes(device_kind(device->name), device->threads, 1, 1, 1),
           scratch = 0; // the former for vanilla's products
    if (device->attention->scratch_bytes != NULL)
        scratch = device->attention->scratch_bytes(&p->shape, p->T, device->threads);
    device_return_scratch(device);
    if (!device_lend_scratch(device, layers > scratch ? layers : scratch, &err)) stop(&err);
}

static Problem make_problem(int64_t T, int64_t D, int64_t window, Device *device, bool vanilla_wanted) {
    bool gpu = strcmp(device->name, "cuda") == 0; // the emulated one is for correctness only
    int64_t heads = !gpu ? CPU_HEADS : GPU_CHANNELS / D > 0 ? GPU_CHANNELS / D : 1;
    int64_t batch = !gpu || T >= GPU_TOKENS ? 1 : GPU_TOKENS / T;
    Problem p = {.shape = {batch, heads, heads, D, 1.0f / 8},
                 .T = T,
                 .C = heads * D,
                 .visibility.window = window < T ? window : 0};
    Error err;
    const char *why = device->attention->unsupported == NULL ? NULL : device->attention->unsupported(&p.shape);
    if (why != NULL) {
        error_usage(&err, "%s", why);
        stop(&err);
    }
    size_t rows = device->attention->vanilla_row_bytes(&p.shape, T);
    lay_out(&p, device->element_bytes, vanilla_wanted, rows);
    if (vanilla_wanted && p.bytes > (size_t)device->memory_available(device) / 10 * 9)
        lay_out(&p, device->element_bytes, false, rows);
    bool vanilla = p.probabilities != NULL;
    p.memory = device->allocate(device, p.bytes, &err);
    if (p.memory == NULL) stop(&err);
    lend_scratch(device, &p);
    lay_out(&p, device->element_bytes, vanilla, rows);
    fill(&p, device, p.qkv, batch * T * 3 * p.C, 0);
    fill(&p, device, p.d_out, batch * T * p.C, 1);
    return p;
}

// Part 0, 1 or 2 (q, k or v) of a fused (B, T, 3C) buffer.
static TokenView token_part(const Problem *p, const Device *device, void *fused, int part) {
    return (TokenView){at(device, fused, part * p->C), p->T * 3 * p->C, 3 * p->C};
}
static RowView rows_of(const Problem *p, float *rows) { return (RowView){rows, p->shape.heads * p->T, p->T}; }
static TokenView tokens_of(const Problem *p, void *tokens) { return (TokenView){tokens, p->T * p->C, p->C}; }

static KeyValue key_value(const Problem *p, const Device *device) {
    return (KeyValue){.chunk = {0, p->T}, .k = token_part(p, device, p->qkv, 1), .v = token_part(p, device, p->qkv, 2)};
}

static void forward(const Problem *p, Device *device) {
    QueryForward query = {.chunk = {0, p->T},
                          .q = token_part(p, device, p->qkv, 0),
                          .max = rows_of(p, p->max),
                          .sum = rows_of(p, p->sum),
                          .visibility = p->visibility};
    KeyValue kv = key_value(p, device);
    device->attention->forward_whole(device, &p->shape, &query, &kv, tokens_of(p, p->out), rows_of(p, p->log_sum_exp));
}

static void backward(const Problem *p, Device *device) {
    TokenView out = tokens_of(p, p->out), d_out = tokens_of(p, p->d_out);
    RowView delta = rows_of(p, p->delta);
    QueryBackward query = {.chunk = {0, p->T},
                           .q = token_part(p, device, p->qkv, 0),
                           .d_out = d_out,
                           .log_sum_exp = rows_of(p, p->log_sum_exp),
                           .delta = delta,
                           .visibility = p->visibility};
    KeyValue kv = key_value(p, device);
    device->attention->row_delta(device, &p->shape, query.chunk, out, d_out, delta);
    device->attention->backward_whole(device, &p->shape, &query, &kv, token_part(p, device, p->d_qkv, 0),
                                      token_part(p, device, p->d_qkv, 1), token_part(p, device, p->d_qkv, 2));
}

static void vanilla_forward(const Problem *p, Device *device) {
    device->attention->vanilla_forward(device, &p->shape, p->T, &p->visibility, p->probabilities, tokens_of(p, p->out),
                                       p->log_sum_exp, token_part(p, device, p->qkv, 0),
                                       token_part(p, device, p->qkv, 1), token_part(p, device, p->qkv, 2));
}
static void vanilla_backward(const Problem *p, Device *device) {
    TokenView out = tokens_of(p, p->out), d_out = tokens_of(p, p->d_out);
    device->attention->row_delta(device, &p->shape, (Chunk){0, p->T}, out, d_out, rows_of(p, p->delta));
    device->attention->vanilla_backward(
        device, &p->shape, p->T, &p->visibility, p->probabilities, p->rows, token_part(p, device, p->d_qkv, 0),
        token_part(p, device, p->d_qkv, 1), token_part(p, device, p->d_qkv, 2), token_part(p, device, p->qkv, 0),
        token_part(p, device, p->qkv, 1), token_part(p, device, p->qkv, 2), out, p->log_sum_exp, d_out, p->delta);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(double *x, int count) {
    qsort(x, (size_t)count, sizeof *x, ascending);
    return x[count / 2];
}

typedef void Pass(const Problem *, Device *);

static double time_of(Pass *pass, int repeats, const Problem *p, Device *device) { // of one
    device->synchronize(device);
    double start = seconds();
    for (int n = 0; n < repeats; n++) pass(p, device);
    device->synchronize(device);
    return (seconds() - start) / repeats;
}

// Operations of one product over the scores.
static double product_of(const Problem *p) {
    double pairs = (double)p->T * (double)p->T / 2;
    if (p->visibility.window > 0) pairs = (double)visibility_pairs(&p->visibility, 0, (Chunk){0, p->T});
    return 2 * pairs * (double)p->shape.head_dim * (double)(p->shape.batch * p->shape.heads);
}

static double median_time(Pass *pass, const Problem *p, Device *device) {
    double once = time_of(pass, 1, p, device), time[ROUNDS];
    int repeats = once < 0.05 ? (int)(0.05 / (once > 1e-6 ? once : 1e-6)) : 1;
    for (int i = 0; i < ROUNDS; i++) time[i] = time_of(pass, repeats, p, device);
    return median(time, ROUNDS);
}

static void print_rates(const char *who, Pass *forward_pass, Pass *backward_pass, const Problem *p, Device *device) {
    forward_pass(p, device);
    backward_pass(p, device);
    double f = median_time(forward_pass, p, device), b = median_time(backward_pass, p, device),
           product = 1e-12 * product_of(p);
    printf("%s,%lld,%lld,%.4g,%.4g,%.4g\n", who, (long long)p->T, (long long)p->shape.head_dim, 2 * product / f,
           5 * product / b, 7 * product / (f + b));
    fflush(stdout);
}

// mma: NULL, or the same GPU, opened with CUDA_ATTENTION=mma.
static void print_csv(int64_t T, int64_t D, int64_t window, Device *device, Device *mma) {
    Problem p = make_problem(T, D, window, device, true);
    print_rates("train_gpt", forward, backward, &p, device);
    if (mma != NULL) {
        lend_scratch(mma, &p);
        print_rates("mma.sync", forward, backward, &p, mma);
        device_return_scratch(mma);
    }
    if (p.probabilities != NULL) print_rates("vanilla", vanilla_forward, vanilla_backward, &p, device);
    device->release(device, p.memory, p.bytes);
}

// ---- the same call again --------------------------------------------------------------------------------------------

// Of `calls` of a pass, how many left other bytes in `results` than the first. They are cleared in between, so that
// what is not written does not look the same.
static int64_t calls_that_differ(Pass *pass, int64_t calls, const Problem *p, void *results, size_t bytes,
                                 Device *device) {
    char *first = malloc(bytes), *again = malloc(bytes);
    if (first == NULL || again == NULL) {
        fprintf(stderr, "bench_attention: out of memory: two copies of %zu bytes are compared on the host\n", bytes);
        exit(EXIT_RUNTIME);
    }
    int64_t different = 0;
    for (int64_t n = 0; n < calls; n++) {
        if (n > 0) device->zero(device, results, bytes);
        pass(p, device);
        device->download(device, n == 0 ? first : again, results, bytes);
        if (n > 0 && memcmp(first, again, bytes) != 0) different++;
    }
    free(first);
    free(again);
    return different;
}

// Prints whose bits stay; returns whether they do.
static bool print_bits(int64_t T, int64_t D, int64_t window, int64_t calls, Device *device) {
    Problem p = make_problem(T, D, window, device, false);
    size_t bytes = (size_t)(p.shape.batch * p.T * p.C) * device->element_bytes;
    int64_t f = calls_that_differ(forward, calls, &p, p.out, bytes, device),
            b = calls_that_differ(backward, calls, &p, p.d_qkv, 3 * bytes, device);
    printf("bits,train_gpt,%lld,%lld,%lld,%lld,%lld\n", (long long)T, (long long)D, (long long)calls, (long long)f,
           (long long)b);
    fflush(stdout);
    device->release(device, p.memory, p.bytes);
    return f == 0 && b == 0;
}

static void print_line(int64_t T, int64_t D, int64_t window, Device *device) {
    Problem p = make_problem(T, D, window, device, false);
    double product = product_of(&p);
    int rounds = device->host_memory && product >= 2e10 ? ROUNDS / 2 + 1 : ROUNDS;
    double rate[ROUNDS], forward_rate[ROUNDS], both_rate[ROUNDS], forward_share[ROUNDS], both_share[ROUNDS];
    forward(&p, device);
    backward(&p, device); // touches the memory
    // So many passes in a round that the clock has something to measure.
    int repeats = 1 + (int)(0.05 / time_of(forward, 1, &p, device));
    for (int i = 0; i < rounds; i++) {
        double before = device->matrix_rate(device), forward_time = time_of(forward, repeats, &p, device);
        double between = device->matrix_rate(device), backward_time = time_of(backward, repeats, &p, device);
        rate[i] = (before + between) / 2;
        forward_rate[i] = 2 * product / forward_time;
        both_rate[i] = 7 * product / (forward_time + backward_time);
        forward_share[i] = forward_rate[i] / before;
        both_share[i] = both_rate[i] / rate[i];
    }
    printf("| %-8s | %6lld | %4lld | %8.1f | %8.1f | %4.0f%% | %8.1f | %4.0f%% |\n",
           device->host_memory ? simd_level_name(simd_level()) : device->name, (long long)T, (long long)D,
           median(rate, rounds) / 1e9, median(forward_rate, rounds) / 1e9, 100 * median(forward_share, rounds),
           median(both_rate, rounds) / 1e9, 100 * median(both_share, rounds));
    fflush(stdout);
    device->release(device, p.memory, p.bytes);
}

static int64_t positive(const char *text) {
    char *end;
    long long value = strtoll(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value < 1 || value > (1 << 24)) {
        fprintf(stderr, "bench_attention: %s is not a whole number from 1 to 16777216\n", text);
        exit(EXIT_USAGE);
    }
    return value;
}

static void print_table(int64_t window, Device *device) {
    printf("Causal attention on %s; GFLOP/s, and share of the matrix rate\n", device->description);
    printf(window > 0 ? "over windows of %lld tokens\n\n" : "\n", (long long)window);
    printf("| copy     |      T |    D | matrix   | forward  | share | fwd+bwd  | share |\n");
    printf("| -------- | -----: | ---: | -------: | -------: | ----: | -------: | ----: |\n");
    print_line(4096, 64, window, device);
    print_line(1024, 64, window, device);
    print_line(16384, 64, window, device);
    print_line(4096, 32, window, device);
    print_line(4096, 128, window, device);
    if (!device->host_memory || getenv("SIMD") != NULL) return;
    for (SimdLevel level = SIMD_PORTABLE, best = simd_level(); level < best; level++) {
        if (setenv("SIMD", simd_level_name(level), 1) != 0) exit(EXIT_RUNTIME);
        print_line(4096, 64, window, device);
    }
}

typedef struct Options {
    const char *device;
    bool csv, mma;
    int64_t window, bits; // 0: not asked for
    int sizes;            // the first word that is one
} Options;

static Options read_options(int argc, char **argv) {
    Options o = {.device = "cpu"};
    int word = 1;
    for (; word < argc && argv[word][0] == '-'; word++) {
        if (strcmp(argv[word], "--csv") == 0) o.csv = true;
        else if (strcmp(argv[word], "--mma") == 0) o.mma = true;
        else if (strcmp(argv[word], "--device") == 0 && word + 1 < argc) o.device = argv[++word];
        else if (strcmp(argv[word], "--window") == 0 && word + 1 < argc) o.window = positive(argv[++word]);
        else if (strcmp(argv[word], "--bits") == 0 && word + 1 < argc) o.bits = positive(argv[++word]);
        else break;
    }
    o.sizes = word;
    bool by_size = o.csv || o.bits > 0;
    if ((argc - word) % 2 != 0 || (by_size && word == argc) || (word < argc && argv[word][0] == '-') ||
        (o.mma && (!o.csv || strcmp(o.device, "cpu") == 0)) || (o.csv && o.bits > 0)) {
        fprintf(stderr,
                "usage: bench_attention [--device cpu|cuda] [--window W] [--csv [--mma] | --bits N] [T D ...]\n");
        exit(EXIT_USAGE);
    }
    return o;
}

static void open_device(Device *device, const char *name) {
    Error err;
    if (!device_open(device, device_kind(name), 0, cpu_count(), &err)) stop(&err);
}

int main(int argc, char **argv) {
    Options o = read_options(argc, argv);
    Device device, mma;
    open_device(&device, o.device);
    if (o.mma) {
        if (setenv("CUDA_ATTENTION", "mma", 1) != 0) exit(EXIT_RUNTIME);
        open_device(&mma, o.device);
    }
    bool same = true;
    if (o.sizes == argc) print_table(o.window, &device);
    for (int word = o.sizes; word < argc; word += 2) {
        int64_t T = positive(argv[word]), D = positive(argv[word + 1]);
        if (o.csv) print_csv(T, D, o.window, &device, o.mma ? &mma : NULL);
        else if (o.bits > 0) same = print_bits(T, D, o.window, o.bits, &device) && same;
        else print_line(T, D, o.window, &device);
    }
    device_return_scratch(&device);
    device.close(&device);
    if (o.mma) mma.close(&mma);
    if (!same) fprintf(stderr, "bench_attention: the same call gave different bits\n");
    return same ? 0 : EXIT_RUNTIME;
}
