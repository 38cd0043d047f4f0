// The data of a run: opened, split, and known again by their content.
#include "run/run_parts.h"

#include "dataloader/corpus.h"
#include "dataloader/loader.h"

#include <stdio.h>
#include <string.h>

// A plan without --data is made for data that are elsewhere: of what kind, only the vocabulary says.
bool run_has_data(const Options *o) { return o->data_count > 0 || o->task != NULL || !o->plan; }

static bool open_task(Run *run, Error *err) {
    const Options *o = &run->options;
    Task task;
    if (!task_parse(&task, o->task, err) || !task_check_context(&task, o->context, err)) return false;
    run->train = run->validation = tokens_open_task(&task, err);
    if (run->train == NULL) return false;
    run->task = tokens_task(run->train);
    run->window_answers = task_answers(&task, o->context);
    run->train_end = run->validation_begin = TASK_SPLIT_TOKENS;
    run->validation_end = tokens_count(run->validation);
    return true;
}

// That --eval-tokens are whole windows, and are there.
static bool check_eval_tokens(const Run *run, Error *err) {
    int64_t N = run->options.eval_tokens, T = run->options.context, held = run->validation_end - run->validation_begin;
    if (N % T != 0)
        return error_usage(err, "--eval-tokens %lld: must be a multiple of --context %lld", (long long)N, (long long)T);
    if (N < held) return true; // the last target is a token more
    return error_usage(err, "--eval-tokens %lld: %s has %lld tokens for validation, of which one is the last target; "
                       "give less", (long long)N, tokens_name(run->validation), (long long)held);
}

static bool open_and_split(Run *run, Error *err) {
    const Options *o = &run->options;
    size_t size;
    if (o->task != NULL) return open_task(run, err);
    run->window_answers = o->context;
    if (o->data_count > 0) run->train = tokens_open(o->data, o->data_count, o->data_format, err);
    else {
        const unsigned char *corpus = bundled_corpus(&size);
        run->train = tokens_open_memory(corpus, size, err);
    }
    if (run->train == NULL) return false;
    if (o->val_data_count > 0) {
        run->validation = tokens_open(o->val_data, o->val_data_count, o->data_format, err);
        if (run->validation == NULL) return false;
        run->train_end = tokens_count(run->train);
        run->validation_end = tokens_count(run->validation);
        if (strcmp(tokens_kind(run->train), tokens_kind(run->validation)) != 0)
            return error_usage(err, "--val-data: %s holds %s, but --data, %s, holds %s; give data of one kind",
                               tokens_name(run->validation), tokens_kind(run->validation), tokens_name(run->train),
                               tokens_kind(run->train));
        return true;
    }
    run->validation = run->train;
    run->validation_end = run->train_end = tokens_count(run->train);
    if (o->plan) return true; // needs the vocabulary only, whatever the context
    if (!loader_split(run->train, o->context, &run->train_end, err)) return false;
    run->validation_begin = run->train_end;
    return true;
}

bool run_open_data(Run *run, Error *err) {
    return open_and_split(run, err) && (run->options.plan || check_eval_tokens(run, err));
}

// The same files cut elsewhere are other training data.
static uint64_t with_split(const Run *run, uint64_t fingerprint) {
    return fingerprint ^ ((uint64_t)run->train_end * UINT64_C(0x9E3779B97F4A7C15));
}

uint64_t run_data_fingerprint(const Run *run) {
    uint64_t fingerprint = with_split(run, tokens_fingerprint(run->train));
    return fingerprint != 0 ? fingerprint : 1; // 0 is "not kept" in a checkpoint
}

void run_describe_data(const Run *run, TrainingState *state) {
    state->data_fingerprint = with_split(run, tokens_sizes_fingerprint(run->train));
    state->data_content = run_data_fingerprint(run);
    state->data_tokens = run->train_end;
    snprintf(state->data_name, sizeof state->data_name, "%s", tokens_name(run->train));
}

// A resume's place in the data means nothing in others. Earlier checkpoints know no more than sizes.
bool run_check_same_data(const Run *run, const TrainingState *then, Error *err) {
    TrainingState now;
    run_describe_data(run, &now);
    bool sizes_agree = then->data_fingerprint == now.data_fingerprint;
    if (then->data_content == 0)
        return sizes_agree || error_usage(err,
                                          "--resume: %s was trained on other data (files, their sizes or "
                                          "--val-data differ); give the same, or use --init",
                                          run->resume_from);
    if (then->data_content == now.data_content) return true;
    if (run->task != NULL || strncmp(then->data_name, TASK_NAME, strlen(TASK_NAME)) == 0)
        return error_usage(err, "--resume: %s was trained on %s, not on %s; give the same --task or --data, or use "
                           "--init", run->resume_from, then->data_name, now.data_name);
    return error_usage(
        err,
        "--resume: %s was trained on %s (%lld training tokens), not on %s (%lld), which has %s; give the "
        "same --data and --val-data, or use --init",
        run->resume_from, then->data_name, (long long)then->data_tokens, now.data_name, (long long)now.data_tokens,
        sizes_agree ? "the same sizes but another content" : "other files, sizes or another split");
}
