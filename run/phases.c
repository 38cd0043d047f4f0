// --context-schedule: a run in phases, each of sequences of a length of its own, and how attention is distributed in each.
//
// Only the length of sequences changes. The loader draws windows of --context tokens in every phase, and cuts each into
// sequences; so a step has the same tokens as without a schedule, and so has a pass, in other rows. The phase follows
// from the number of the step, so a resumed run needs no more than the schedule.
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mixer/attention.h"
#include "run/run_parts.h"
#include "terminal/options_table.h"

const Phase *run_whole(const Run *run) { return &run->phase[run->phases - 1]; }

const Phase *run_phase(const Run *run, int64_t step) {
    const Phase *phase = run->phase;
    while (phase->end < step) phase++;
    return phase;
}

int64_t run_most_sequences(const Run *run) {
    int64_t most = 0;
    for (int i = 0; i < run->phases; i++) most = most < run->phase[i].batch ? run->phase[i].batch : most;
    return most;
}

// ---- the schedule ---------------------------------------------------------------------------------------------------

// Reads the pair of whole numbers from 1 that *text begins with, and leaves *text at the next one; NULL: there is none.
static bool read_pair(const char **text, int64_t *context, int64_t *steps) {
    char *end = NULL;
    errno = 0;
    *context = isdigit((unsigned char)**text) ? strtoll(*text, &end, 10) : 0;
    if (*context < 1 || errno != 0 || *end != ':') return false;
    *steps = isdigit((unsigned char)end[1]) ? strtoll(end + 1, &end, 10) : 0;
    if (*steps < 1 || errno != 0 || (*end != ',' && *end != '\0')) return false;
    *text = *end == ',' ? end + 1 : NULL;
    return true;
}

static bool check_pair(const Options *o, int64_t context, int64_t steps, int64_t steps_left, Error *err) {
    long long C = context, S = steps, T = o->context, sp = o->sp;
    if (T % C != 0)
        return error_usage(err, "--context-schedule: %lld:%lld does not divide --context %lld; give a divisor", C, S, T);
    if (C < 2 * sp)
        return error_usage(err, "--context-schedule: %lld:%lld is too short for --sp %lld: a rank owns two chunks, give at "
                           "least %lld", C, S, sp, 2 * sp);
    if (S > steps_left)
        return error_usage(err, "--context-schedule: %lld:%lld ends behind the run: --steps is %lld", C, S,
                           (long long)o->steps);
    return true;
}

// "64:100,1024:300" into phases; the last one is that of --context, though no step may be left for it.
static bool read_schedule(Run *run, Error *err) {
    const Options *o = &run->options;
    int64_t context, steps, done = 0;
    bool none = o->context_schedule == NULL || strcmp(o->context_schedule, "none") == 0;
    run->phases = 0;
    for (const char *text = none ? NULL : o->context_schedule; text != NULL; run->phases++) {
        if (!read_pair(&text, &context, &steps))
            return error_usage(err,
                               "--context-schedule: \"%s\" is not a list of tokens and steps, such as 64:100,1024:300",
                               shown_text(o->context_schedule).text);
        if (run->phases == RUN_MAX_PHASES - 1 || strlen(o->context_schedule) > KEPT_OPTION_TEXT)
            return error_usage(err, "--context-schedule: at most %d pairs and %d characters are served",
                               RUN_MAX_PHASES - 1, KEPT_OPTION_TEXT);
        if (!check_pair(o, context, steps, o->steps - done, err)) return false;
        done += steps;
        run->phase[run->phases] = (Phase){.context = context, .end = done};
    }
    run->phase[run->phases++] = (Phase){.context = o->context, .end = INT64_MAX};
    return true;
}

// ---- attention ------------------------------------------------------------------------------------------------------

// The largest divisor of a replica's batch whose rows on one rank stay few enough to be cheap in memory and many enough
// to be fast.
static int64_t usual_micro_batch(const Options *o) {
    const int64_t enough_rows = 4096;
    int64_t batch = o->batch / o->dp, tokens = o->context / o->sp > 0 ? o->context / o->sp : 1;
    for (int64_t micro = batch; micro > 1; micro--)
        if (batch % micro == 0 && micro * tokens <= enough_rows) return micro;
    return 1;
}

// Counts the layers of each window and dilation.
static void count_windows(AttentionConfig *a, const ModelConfig *c) {
    _Static_assert((int)ATTENTION_MAX_WINDOWS > (int)CONFIG_MAX_WINDOWS + (int)CONFIG_MAX_MIXERS, "and layers without");
    a->window_count = 0;
    for (int64_t l = 0; l < c->layers; l++) {
        if (!layer_kind(c, l).tokens->attends) continue;
        LayersOfWindow sees = attention_sees(c, l, a->context);
        int i = 0;
        while (i < a->window_count && (a->windows[i].window != sees.window || a->windows[i].dilation != sees.dilation))
            i++;
        if (i == a->window_count) a->windows[a->window_count++] = sees;
        else a->windows[i].layers++;
    }
}

static bool configure_attention(const Run *run, Phase *phase, Error *err) {
    const Options *o = &run->options;
    const ModelConfig *c = &run->config;
    AttentionConfig *a = &phase->attention;
    *a = (AttentionConfig){.context = phase->context,
                           .ranks = (int)o->sp,
                           .exchange = o->attention,
                           .ulysses = (int)o->ulysses,
                           .shape = {.batch = phase->micro_batch,
                                     .heads = c->heads,
                                     .kv_heads = c->kv_heads,
                                     .head_dim = c->head_dim,
                                     .scale = (float)(1.0 / sqrt((double)c->head_dim))},
                           .element_bytes = run->devices.element_bytes,
                           .kernels = run->attends ? run->devices.kernels : NULL,
                           .documents = o->document_mask};
    count_windows(a, c);
    return attention_resolve(a, err);
}

static bool check_size(const Run *run, int64_t micro_batch, Error *err) {
    const ModelConfig *c = &run->config;
    double elements = (double)micro_batch * (double)run->options.context * (double)c->layers *
                      (double)(2 * c->ffn_dim + (c->heads + 2 * c->kv_heads) * c->head_dim + c->dim);
    return elements <= 1e17 ||
           error_set(err,
                     "out of memory: about %.1e activations are more than any machine holds; lower --context, "
                     "--micro-batch or the model's sizes",
                     elements);
}

bool run_make_phases(Run *run, Error *err) {
    const Options *o = &run->options;
    int64_t micro_batch = o->micro_batch > 0 ? o->micro_batch : usual_micro_batch(o);
    run->steps = o->steps;
    run->recompute = o->recompute;
    run->attends = false;
    for (int64_t l = 0; l < run->config.layers; l++)
        run->attends = run->attends || layer_kind(&run->config, l).tokens->attends;
    if (!check_size(run, micro_batch, err) || !read_schedule(run, err)) return false;
    for (int i = 0; i < run->phases; i++) {
        Phase *phase = &run->phase[i];
        int64_t pieces = o->context / phase->context; // of a window
        phase->batch = o->batch * pieces;
        phase->micro_batch = micro_batch * pieces;
        if (!configure_attention(run, phase, err)) return false;
    }
    return true;
}
