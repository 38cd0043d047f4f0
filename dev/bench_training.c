// Whole training steps, measured from outside: runs ./train_gpt with small models, reads its JSON log, and prints
// tokens per second beside the fraction of the machine's own matrix rate, which each run measures itself
// (run/plan.h states the operations counted). Machines are shared and noisy: the two sides of a comparison run in
// turn, several times, and the ratio shown is the median of the pairs.
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/json.h"
#include "base/random.h"
#include "terminal/report.h"

enum { MOST_STEPS = 64, MOST_ARGUMENTS = 48 };

typedef struct Measured {
    double tokens_per_second, machine_fraction; // medians over the steps after the first two
    double peak_bytes;                          // of the whole process
} Measured;

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof(double), ascending);
    return count % 2 == 1 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

static void stop(const char *what) {
    fprintf(stderr, "bench_training: %s\n", what);
    exit(1);
}

static void read_log(const char *path, Measured *measured) {
    FILE *file = fopen(path, "r");
    if (file == NULL) stop("the run wrote no log");
    char line[4096];
    double rate[MOST_STEPS], fraction[MOST_STEPS];
    int steps = 0;
    while (steps < MOST_STEPS && fgets(line, sizeof line, file) != NULL) {
        Error err;
        JsonDocument *document = json_parse(line, strlen(line), path, &err);
        if (document == NULL) stop(err.message);
        const Json *r = json_get(json_root(document), "tokens_per_second"),
                   *f = json_get(json_root(document), "machine_fraction");
        if (r == NULL || f == NULL) stop("the log lacks tokens_per_second or machine_fraction");
        rate[steps] = r->number;
        fraction[steps++] = f->number;
        json_free(document);
    }
    fclose(file);
    int skipped = steps > 3 ? 2 : 0;
    if (steps == 0) stop("the log is empty");
    measured->tokens_per_second = median(rate + skipped, steps - skipped);
    measured->machine_fraction = median(fraction + skipped, steps - skipped);
}

// Runs `program` with the space-separated options and a log of its own.
static Measured run(const char *program, const char *options) {
    char log[] = "/tmp/bench_training_XXXXXX", text[1024], *argument[MOST_ARGUMENTS] = {(char *)program};
    int descriptor = mkstemp(log), count = 1, status;
    if (descriptor < 0) stop("cannot make a temporary file");
    close(descriptor);
    snprintf(text, sizeof text, "%s --sample-tokens 0 --eval-windows 1 --log %s", options, log);
    for (char *word = strtok(text, " "); word != NULL && count + 1 < MOST_ARGUMENTS; word = strtok(NULL, " "))
        argument[count++] = word;

    pid_t child = fork();
    if (child < 0) stop("cannot fork");
    if (child == 0) {
        int nowhere = open("/dev/null", O_WRONLY);
        if (nowhere >= 0) dup2(nowhere, STDOUT_FILENO);
        execv(program, argument);
        _exit(127);
    }
    struct rusage usage;
    if (wait4(child, &status, 0, &usage) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
        stop("a run failed");
    Measured measured;
    read_log(log, &measured);
    unlink(log);
    measured.peak_bytes = 1024.0 * (double)usage.ru_maxrss;
    return measured;
}

// A llm.c shard of random tokens, so that GPT-2 runs with its real vocabulary.
static void write_shard(char path[64]) {
    enum { TOKENS = 1 << 15, VOCABULARY = 50257 };
    int32_t header[256] = {20240520, 1, TOKENS};
    snprintf(path, 64, "/tmp/bench_training_XXXXXX");
    int descriptor = mkstemp(path);
    FILE *file = descriptor < 0 ? NULL : fdopen(descriptor, "wb");
    if (file == NULL || fwrite(header, sizeof header, 1, file) != 1) stop("cannot write a token shard");
    for (uint64_t i = 0; i < TOKENS; i++) {
        uint16_t token = (uint16_t)random_below(1, RANDOM_STREAM_DATA, i, VOCABULARY);
        if (fwrite(&token, sizeof token, 1, file) != 1) stop("cannot write a token shard");
    }
    if (fclose(file) != 0) stop("cannot write a token shard");
}

static void print_row(const char *label, Measured m) {
    char memory[32];
    format_bytes(memory, m.peak_bytes);
    printf("| %-58s | %8.0f | %5.1f%% | %10s |\n", label, m.tokens_per_second, 100 * m.machine_fraction, memory);
    fflush(stdout);
}

// Both in turn, `pairs` times; returns the median of the pairwise ratio b/a.
static double compare(const char *program, const char *label_a, const char *a, const char *label_b, const char *b,
                      int pairs) {
    double ratio[16];
    Measured last_a, last_b;
    for (int i = 0; i < pairs; i++) {
        last_a = run(program, a);
        last_b = run(program, b);
        ratio[i] = last_b.tokens_per_second / last_a.tokens_per_second;
    }
    print_row(label_a, last_a);
    print_row(label_b, last_b);
    return median(ratio, pairs);
}

#define BYTE_MODEL "--arch gpt2 --layers 4 --heads 4 --dim 256 --batch 1 "

int main(int argc, char **argv) {
    const char *program = argc > 1 ? argv[1] : "./train_gpt";
    printf("## Training steps\n\n");
    printf("| run (byte model: gpt2, 4 layers, 4 heads, width 256) | tokens/s | of matrix rate | peak memory "
           "|\n|---|---:|---:|---:|\n");
    print_row("byte model, T=1,024, 1 rank", run(program, BYTE_MODEL "--sp 1 --context 1024 --steps 16"));
    double ratio =
        compare(program, "byte model, T=4,096, 1 rank", BYTE_MODEL "--sp 1 --context 4096 --steps 6",
                "byte model, T=4,096, 4 ranks on the same processors", BYTE_MODEL "--sp 4 --context 4096 --steps 6", 3);
    print_row("byte model, T=4,096, 1 rank, vanilla attention",
              run(program, BYTE_MODEL "--sp 1 --context 4096 --steps 4 --attention vanilla"));
    print_row("byte model, T=16,384, 1 rank", run(program, BYTE_MODEL "--sp 1 --context 16384 --steps 2"));
    char shard[64], gpt2[256];
    write_shard(shard);
    snprintf(gpt2, sizeof gpt2, "--model gpt2 --sp 1 --context 64 --batch 4 --micro-batch 4 --steps 6 --data %s",
             shard);
    print_row("GPT-2 124M, vocabulary 50,257, T=64, 4 sequences, 1 rank", run(program, gpt2));
    unlink(shard);
    printf("\n4 ranks reach %.0f%% of the throughput of 1 rank (median of 3 pairs in turn).\n", 100 * ratio);
    printf("Operations per token: 6 x parameters in matrix products + 7 x L x T x C for causal attention, no "
           "recomputation.\n");
    return 0;
}
