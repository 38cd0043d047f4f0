// The few lines at the start of a run.
#include <stdio.h>

#include "base/cpu_features.h"
#include "run/run.h"
#include "terminal/report.h"

static const char *ranks_are(const Run *run) {
    if (!run->processes) return "threads of this process";
    return comm_engine_here(run->options.engine) == COMM_MPI ? "MPI processes" : "processes, over NCCL";
}

static void print_machine(const Run *run, FILE *out) {
    const Devices *d = &run->devices;
    char rate[64] = "matrix products not measured (out of memory)";
    bool cpu = d->kind == DEVICE_CPU;
    if (d->matrix_rate > 0)
        snprintf(rate, sizeof rate, "%.0f %s in matrix products, %s", (cpu ? 1e-9 : 1e-12) * d->matrix_rate,
                 cpu ? "GFLOP/s" : "TFLOP/s", d->rate_given ? "as MATRIX_RATE says" : "measured now");
    if (cpu)
        fprintf(out, "machine    %d threads, %s, %s vectors: %s\n", run->threads, cpu_matrix_library(),
                simd_level_name(simd_level()), rate);
    else if (d->kind == DEVICE_EMULATED)
        fprintf(out, "machine    %s: CUDA's kernels run by this processor, to check results; its speed means nothing\n",
                d->description);
    else
        fprintf(out, "machine    %d x %s%s: %s\n", d->distinct, d->description, d->shared ? ", shared by ranks" : "",
                rate);
}

static void print_data(const Run *run, FILE *out) {
    const Options *o = &run->options;
    if (run->task != NULL) {
        fprintf(out, "data       %s, %lld answers in a window of %lld tokens\n", tokens_name(run->train),
                (long long)run->window_answers, (long long)o->context);
        return;
    }
    fprintf(out, "data       %s, %lld training tokens",
            o->data_count > 0 ? tokens_name(run->train) : "the program's own sources and documents",
            (long long)run->train_end);
    bool guessed = o->vocab_size == 0 && o->init == NULL && !o->resume;
    if (tokens_without_header(run->train) && guessed)
        fprintf(out, " (%s, taken for numbers below %lld)", tokens_kind(run->train), (long long)run->config.vocab_size);
    if (tokens_symbols(run->train) != NULL) fprintf(out, " (%s)", tokens_symbols(run->train));
    if (run->validation != run->train)
        fprintf(out, "; validation on %s, %lld tokens", tokens_name(run->validation),
                (long long)tokens_count(run->validation));
    fprintf(out, "\n");
}

// What attention does not see, in the order of the layers, as far as that repeats itself.
static void print_visibility(const Run *run, FILE *out) {
    const ModelConfig *c = &run->config;
    int64_t T = run->options.context, shown = c->layers;
    if (c->full_layers == 0 && c->window_period > 0 && c->window_period < shown) shown = c->window_period;
    if (!config_has_windows(c, T) && !run->options.document_mask) return;
    fprintf(out, "attention  ");
    if (config_has_windows(c, T)) {
        fprintf(out, "over windows of");
        for (int64_t l = 0; l < shown && l < CONFIG_MAX_WINDOWS; l++) {
            int64_t window = config_window(c, l, T);
            if (window > 0) fprintf(out, "%s %lld", l == 0 ? "" : ",", (long long)window);
            else fprintf(out, "%s all", l == 0 ? "" : ",");
        }
        fprintf(out, shown < c->layers || shown > CONFIG_MAX_WINDOWS ? ", ... tokens by layer" : " tokens by layer");
    }
    if (run->options.document_mask)
        fprintf(out, "%swithin documents, which token %d ends", config_has_windows(c, T) ? "; " : "",
                run->document_end);
    fprintf(out, "\n");
}

static void print_schedule(const Run *run, FILE *out) {
    if (run->phases == 1) return;
    fprintf(out, "schedule   sequences of");
    for (int i = 0; i + 1 < run->phases; i++)
        fprintf(out, " %lld%s up to step %lld,", (long long)run->phase[i].context, i == 0 ? " tokens" : "",
                (long long)run->phase[i].end);
    fprintf(out, " then %lld; evaluated with %lld\n", (long long)run->options.context, (long long)run->options.context);
}

void run_print_header(const Run *run, FILE *out, const Arena *rank_arena) {
    const ModelConfig *c = &run->config;
    const Options *o = &run->options;
    const Phase *whole = run_whole(run);
    const AttentionConfig *attention = &whole->attention;
    const char *const architectures[] = {"gpt2", "llama", "llama with q, k, v biases"};
    char parameters[32], memory[32], tokens[32];
    format_count(parameters, (double)run->table.in_model);
    format_bytes(memory, (double)rank_arena->used);
    format_count(tokens, (double)o->batch * (double)o->context);
    fprintf(out,
            "model      %s, %lld layers, width %lld, %lld heads (%lld key/value) of %lld, MLP %lld, vocabulary %lld: "
            "%s parameters\n",
            architectures[c->architecture], (long long)c->layers, (long long)c->dim, (long long)c->heads,
            (long long)c->kv_heads, (long long)c->head_dim, (long long)c->ffn_dim, (long long)c->vocab_size,
            parameters);
    print_visibility(run, out);
    char pattern[MIXERS_TEXT];
    mixers_write(c, pattern);
    if (c->mixers > 0) fprintf(out, "mixers     %s%s\n", pattern, c->layers > c->mixers ? ", repeated over the layers" : "");
    bool alone = o->sp == 1 && attention->exchange != EXCHANGE_VANILLA;
    fprintf(out, "ranks      %lld per sequence, %lld %s, %s; attention %s", (long long)o->sp, (long long)o->dp,
            o->dp == 1 ? "replica" : "replicas", ranks_are(run),
            !run->attends ? "in no layer" : alone ? "on one rank" : exchange_name(attention->exchange));
    if (run->attends && attention->exchange == EXCHANGE_ULYSSES_RING)
        fprintf(out, " (%d x %lld)", attention->ulysses, (long long)o->sp / attention->ulysses);
    fprintf(out, "; %s per rank\n", memory);
    fprintf(out, "step       %lld %s of %lld tokens", (long long)o->batch, o->batch == 1 ? "sequence" : "sequences",
            (long long)o->context);
    if (o->init != NULL && !options_given(o, "context") && c->max_positions > o->context)
        fprintf(out, " (of %lld that the model takes; see --context)", (long long)c->max_positions);
    fprintf(out, " = %s tokens, in passes of %lld; %lld steps\n", tokens, (long long)whole->micro_batch,
            (long long)run->steps);
    print_schedule(run, out);
    print_data(run, out);
    print_machine(run, out);
    if (run->resume_from[0] != '\0')
        fprintf(out, "resuming   %s, step %lld%s%s\n", run->resume_from, (long long)run->resumed.step,
                *run->changes ? "; otherwise than before: " : "", run->changes);
    fflush(out);
}
