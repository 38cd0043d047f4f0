// Resuming: what the command line leaves open is as the checkpoint's run had it; what it gives has to fit.
#include <stdio.h>
#include <string.h>

#include "checkpoint/checkpoint.h"
#include "run/kept_options.h"
#include "run/preset.h"
#include "run/run_parts.h"

static void note_change(Run *run, const char *option, int64_t now, int64_t was) {
    size_t used = strlen(run->changes);
    if (now != was)
        snprintf(run->changes + used, sizeof run->changes - used, "%s--%s %lld (was %lld)", used > 0 ? ", " : "",
                 option, (long long)now, (long long)was);
}

// What the command line leaves open is as it was; what it gives has to fit, and is told where it is another.
static bool settle_resumed(Run *run, Error *err) {
    Options *o = &run->options;
    const TrainingState *state = &run->resumed;
    if (!options_given(o, "steps")) o->steps = state->steps;
    if (!options_given(o, "batch")) o->batch = state->batch;
    note_change(run, "steps", o->steps, state->steps);
    note_change(run, "batch", o->batch, state->batch);
    if (!kept_options_restore(o, &state->kept, run->changes, sizeof run->changes, err)) {
        char why[sizeof err->message];
        memcpy(why, err->message, sizeof why);
        return error_set(err, "%.300s/training_state.json: %.600s", run->resume_from, why);
    }
    if (!options_given(o, "warmup") && o->warmup > o->steps) o->warmup = o->steps;
    return options_check(o, err);
}

// The state of the run to resume, and its context, by which the data are split.
bool run_find_resumed(Run *run, Error *err) {
    Options *o = &run->options;
    TrainingState *state = &run->resumed;
    if (!checkpoint_find(o->out, run->resume_from, sizeof run->resume_from, err)) return false;
    if (!checkpoint_read_state(run->resume_from, state, err)) return false;
    if (!options_given(o, "context")) o->context = state->context;
    return state->context == o->context ||
           error_usage(
               err, "--resume: %s was trained with --context %lld, not %lld; leave it out, or use --init for a new run",
               run->resume_from, (long long)state->context, (long long)o->context);
}

// That it is the same run.
bool run_open_resumed(Run *run, Error *err) {
    Options *o = &run->options;
    const TrainingState *state = &run->resumed;
    if (!run_check_same_data(run, state, err)) return false;
    run->train_checked = state->data_content != 0 && state->step > 0; // before its first step
    if (!options_given(o, "seed")) o->seed = (int64_t)state->seed;
    if ((uint64_t)o->seed != state->seed)
        return error_usage(err, "--seed %lld: %s was trained with seed %llu; leave --seed out", (long long)o->seed,
                           run->resume_from, (unsigned long long)state->seed);
    return settle_resumed(run, err);
}

// Sizes that were typed beside --resume must be those of the checkpoint.
// --mixer, given again, must say what the layers have.
static bool same_mixers(const Options *o, const ModelConfig *c, const char *from, Error *err) {
    ModelConfig given = *c;
    char has[MIXERS_TEXT];
    if (!options_given(o, "mixer")) return true;
    if (!mixers_read(&given, o->mixer, "--mixer", err)) return false;
    for (int64_t l = 0; l < c->layers; l++) {
        char here[MIXERS_TEXT], there[MIXERS_TEXT];
        LayerKind wanted = layer_kind(&given, l), kind = layer_kind(c, l);
        mixer_write(&wanted.choice, here);
        mixer_write(&kind.choice, there);
        if (strcmp(here, there) == 0) continue;
        mixers_write(c, has);
        return error_usage(err, "--mixer %s: %s has %s; leave it out", o->mixer, from, has);
    }
    return true;
}

bool run_same_sizes(const Options *o, const ModelConfig *c, const char *from, Error *err) {
    const struct Size {
        const char *option;
        int64_t given, has;
    } sizes[] = {
        {"layers", o->layers, c->layers}, {"heads", o->heads, c->heads}, {"kv-heads", o->kv_heads, c->kv_heads},
        {"dim", o->dim, c->dim},          {"ffn", o->ffn, c->ffn_dim},   {"vocab-size", o->vocab_size, c->vocab_size}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (options_given(o, sizes[i].option) && sizes[i].given > 0 && sizes[i].given != sizes[i].has)
            return error_usage(err, "--%s %lld: %s has %lld; leave it out", sizes[i].option, (long long)sizes[i].given,
                               from, (long long)sizes[i].has);
    if (options_given(o, "arch") && (o->arch == ARCH_GPT2) == config_is_rotary(c))
        return error_usage(err, "--arch %s: %s has the other architecture; leave it out",
                           o->arch == ARCH_GPT2 ? "gpt2" : "llama", from);
    if ((o->untied && c->tied_embeddings) || (o->qkv_bias && !c->qkv_bias))
        return error_usage(err, "--%s: %s is without it; leave it out",
                           o->untied && c->tied_embeddings ? "untied" : "qkv-bias", from);
    for (int64_t l = 0; o->resume && o->window_count > 0 && l < c->layers; l++)
        if (config_window(c, l, INT64_MAX) != o->windows[l % o->window_count])
            return error_usage(err, "--window %s: layer %lld of %s has %lld; leave it out", o->window, (long long)l,
                               from, (long long)config_window(c, l, INT64_MAX));
    if (!same_mixers(o, c, from, err)) return false;
    ModelConfig named;
    if (!options_given(o, "model")) return true;
    if (!config_from_options(&named, o, c->vocab_size, err)) return false;
    if (named.layers != c->layers || named.dim != c->dim || named.heads != c->heads)
        return error_usage(err, "--model %s: %s has %lld layers, %lld heads and width %lld; leave it out", o->model,
                           from, (long long)c->layers, (long long)c->heads, (long long)c->dim);
    return true;
}
