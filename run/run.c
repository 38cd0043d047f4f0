// Resolves the options: data, what is resumed, the model, attention, the prompt; and prints the header.
#include "run/run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cpu_features.h"
#include "dataloader/corpus.h"
#include "dataloader/loader.h"
#include "run/preset.h"
#include "run/run_parts.h"
#include "terminal/report.h"
#include "terminal/sample.h"

// --context where --init is given without it: that of the run which made the checkpoint, else of the model, if that is
// no more than the default; a published model may take more tokens than fit into memory here. What is wrong with the
// checkpoint is said later, where it is opened.
static bool settle_context(Options *o, Error *err) {
    ModelConfig config;
    TrainingState state;
    Error unsaid;
    if (o->init == NULL || options_given(o, "context") || !config_read(&config, o->init, &unsaid)) return true;
    if (checkpoint_read_state(o->init, &state, &unsaid) && state.context > 0 &&
        state.context <= model_positions(&config))
        o->context = state.context;
    else if (o->context > config.max_positions) o->context = config.max_positions;
    if (o->context >= 2 * o->sp) return true;
    return error_usage(err, "--init %s: its %lld tokens are too few for --sp %lld: a rank owns two chunks; lower --sp",
                       o->init, (long long)o->context, (long long)o->sp);
}

// Bytes, and other symbols without a tokenizer, are token numbers of one vocabulary only; in another their values stand
// for tokens that have nothing to do with them.
static bool check_symbols(const Run *run, const char *from, Error *err) {
    const Options *o = &run->options;
    const char *kind = tokens_kind(run->train);
    long long has = run->config.vocab_size, needs = tokens_vocabulary(run->train);
    if (!run_has_data(o) || tokens_unit(run->train) == NULL || has == needs) return true;
    if (from == NULL)
        return error_usage(err,
                           "--vocab-size %lld: %s is %s, whose vocabulary is %lld; leave it out, or give --data "
                           "with token numbers",
                           has, tokens_name(run->train), kind, needs);
    if (o->data_count == 0)
        return error_usage(err,
                           "%s has a vocabulary of %lld, and the bundled corpus is bytes, which need %lld; give "
                           "--data with token numbers of its tokenizer",
                           from, has, needs);
    return error_usage(err,
                       "--data: %s is %s, which need a vocabulary of %lld, but %s has %lld; give token numbers "
                       "of its tokenizer",
                       tokens_name(run->train), kind, needs, from, has);
}

// What is often given for a model's folder: the folder of a run, or a file of the model's.
static bool is_model_folder(const char *path, Error *err) {
    char checkpoint[1100];
    struct stat status;
    if (stat(path, &status) != 0) return true; // whoever opens its files will say why
    if (!S_ISDIR(status.st_mode))
        return error_usage(err, "--init %s: not a folder; give the one that holds config.json and model.safetensors",
                           path);
    if ((size_t)snprintf(checkpoint, sizeof checkpoint, "%s/config.json", path) >= sizeof checkpoint) return true;
    if (stat(checkpoint, &status) == 0 || !checkpoint_newest(path, checkpoint, sizeof checkpoint)) return true;
    return error_usage(err, "--init %s: a run's folder, not a model's; give its newest checkpoint, %s", path,
                       checkpoint);
}

// A task's tokens mean nothing to a model of other data, whatever the size of its vocabulary: the least that can be seen
// is that this is another.
static bool check_task(const Run *run, const char *from, Error *err) {
    long long has = run->config.vocab_size;
    if (run->task == NULL || has == task_vocabulary(run->task)) return true;
    return error_usage(err, "--task %s has a vocabulary of %lld tokens, and %s has %lld; give a model of this task",
                       run->task->text, (long long)task_vocabulary(run->task), from, has);
}

static bool choose_model(Run *run, Error *err) {
    const Options *o = &run->options;
    ModelConfig *c = &run->config;
    const char *from = run->resume_from[0] != '\0' ? run->resume_from : o->init;
    if (from == NULL) {
        int64_t vocabulary = o->vocab_size > 0 ? o->vocab_size : tokens_vocabulary(run->train);
        if (!config_from_options(c, o, vocabulary, err)) return false;
    } else {
        char path[1100];
        if (!is_model_folder(from, err)) return false;
        if ((size_t)snprintf(path, sizeof path, "%s/config.json", from) >= sizeof path)
            return error_usage(err, "%s: the path is too long", from);
        if (!config_read(c, path, err)) return false;
        if (!config_is_rotary(c) && o->context > c->max_positions)
            return error_usage(err, "--context %lld: %s has learned %lld positions; give at most that",
                               (long long)o->context, from, (long long)c->max_positions);
        if (!run_same_sizes(o, c, from, err)) return false;
        if (options_given(o, "rope-theta")) c->rope_theta = o->rope_theta;
        config_set_windows(c, o);
        if (!config_check(c, err)) return false;
        // config.json's length is raised to what the model now sees.
        if (!model_keeps_positions(c) && c->max_positions < o->context) c->max_positions = o->context;
    }
    if (!check_symbols(run, from, err) || !check_task(run, from, err)) return false;
    return parameters_list(&run->table, c, device_padded_vocab_size(run->devices.kind, c->vocab_size), err);
}

// Kernels for GPUs take 16 bytes of a row at a time.
static bool check_widths(const Run *run, Error *err) {
    const ModelConfig *c = &run->config;
    int64_t packet = run->devices.element_bytes == sizeof(float) ? 1 : 16 / (int64_t)run->devices.element_bytes;
    if (c->dim % packet == 0 && c->ffn_dim % packet == 0 && c->head_dim % packet == 0) return true;
    return error_usage(err,
                       "--device %s takes a width, an MLP width and heads that are multiples of %lld: this model has "
                       "%lld, %lld and %lld; change --dim, --ffn or --heads, or use --device cpu",
                       device_kind_name(run->devices.kind), (long long)packet, (long long)c->dim, (long long)c->ffn_dim,
                       (long long)c->head_dim);
}

// The token after which attention starts anew.
static bool choose_document_end(Run *run, Error *err) {
    const Options *o = &run->options;
    const int gpt2_vocabulary = 50257; // its last token ends a document
    int64_t end = o->document_end;
    if (!o->document_mask) return true;
    if (end < 0) end = tokens_document_end(run->train);
    if (end < 0) end = run->config.eos_token;
    if (end < 0 && tokens_vocabulary(run->train) == gpt2_vocabulary) end = gpt2_vocabulary - 1;
    if (end < 0)
        return error_usage(err, "--document-mask: nothing says which token ends a document; give --document-end N");
    if (end >= run->config.vocab_size)
        return error_usage(err, "--document-end %lld: the vocabulary has %lld tokens", (long long)end,
                           (long long)run->config.vocab_size);
    run->document_end = (int32_t)end;
    return true;
}

// Wider models need smaller steps, about as 1 / width (Yang et al., "Tensor programs V", 2022).
static void usual_learning_rate(Options *o, const ModelConfig *c) {
    const double most = 4e-3, rate = 0.25 / (double)c->dim;
    if (o->lr == 0) o->lr = rate < most ? rate : most;
}

// The prompt is read before anything is trained, so that a bad one is told at once.
static bool read_prompt(Run *run, Error *err) {
    const Options *o = &run->options;
    const ModelConfig *c = &run->config;
    if (o->sample_tokens == 0) return true;
    if (run->task != NULL && o->sample == NULL) return true; // its accuracy says more than numbers
    if (tokens_unit(run->validation) != NULL && !tokens_are_text(run->validation)) {
        if (o->sample == NULL) return true;
        return error_usage(err, "--sample: %s holds %s, and a prompt is text; leave it out",
                           tokens_name(run->validation), tokens_kind(run->validation));
    }
    int64_t positions = model_positions(c), vocabulary = run_has_data(o) ? c->vocab_size : BYTE_VOCABULARY;
    run->prompt = prompt_tokens(o->sample, run->validation, run->validation_begin, vocabulary, positions,
                                &run->prompt_tokens, err);
    if (run->prompt == NULL) return false;
    run->sample_end = run->prompt_tokens + o->sample_tokens;
    if (run->sample_end > positions) run->sample_end = positions;
    return true;
}

bool run_open(Run *run, bool writes, Error *err) {
    Options *o = &run->options;
    int processes = comm_processes_here();
    run->processes = comm_ranks_are_processes(o->engine);
    if (!options_given(o, "sp") && !run->processes) o->sp = devices_usual_ranks(o);
    run->ranks_here = run->processes ? 1 : (int)(o->sp * o->dp);
    run->threads = o->threads > 0 ? (int)o->threads : cpu_count() / processes > 1 ? cpu_count() / processes : 1;
    if (o->out != NULL && writes && !o->plan && !checkpoint_claim(o->out, err)) return false;
    if (o->out != NULL && !o->resume && checkpoint_any(o->out))
        return error_usage(
            err, "--out %s: it holds the checkpoints of a run; --resume continues it, another folder starts anew",
            o->out);
    if (o->resume && !run_find_resumed(run, err)) return false;
    if (!settle_context(o, err)) return false;
    if (o->context > INT32_MAX - 2 * o->sp)
        return error_usage(err, "--context %lld: positions are 32-bit numbers; give less than 2^31 - 2 --sp",
                           (long long)o->context);
    if (!run->processes && o->sp * o->dp > DEVICES_MOST_RANKS)
        return error_usage(
            err, "--sp %lld x --dp %lld: at most %d ranks can be threads of one process; start MPI processes for more",
            (long long)o->sp, (long long)o->dp, DEVICES_MOST_RANKS);
    if (!devices_choose(&run->devices, o, run->ranks_here, run->processes, err)) return false;
    if (!run_open_data(run, err)) return false;
    if (o->resume && !run_open_resumed(run, err)) return false;
    if (!choose_model(run, err) || !check_widths(run, err) || !choose_document_end(run, err) ||
        !run_make_phases(run, err) || !run_check_mixers(run, err))
        return false;
    usual_learning_rate(&run->options, &run->config);
    return read_prompt(run, err);
}

void run_close(Run *run) {
    free(run->prompt);
    parameters_free(&run->table);
    if (run->validation != run->train) tokens_close(run->validation);
    tokens_close(run->train);
    options_free(&run->options);
}
