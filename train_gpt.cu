// train_gpt: trains GPT models whose sequences are sharded over ranks, so that the context can be very long.
//
// This file is the story, top to bottom: the forward pass, the loss, the backward pass, the optimizer, evaluation, the
// training loop, and how the ranks are started. What a rank holds stands in train_gpt.h, one layer of the model in
// model/block.c. It is plain C; everything that computes stands behind the Device table (layers/device.h), everything
// that mixes tokens behind model/mixer.h, everything that ranks say to each other behind comm/comm.h, and the life of a
// run (options, plan, memory, saving, signals) in run/. On a GPU the calls only enter a queue: the host runs ahead, and
// waits once a step (read_sums).
//
// One step, seen from one rank:
//
//   my tokens -> embedding -> [ norm -> q,k,v -> rotary -> DISTRIBUTED ATTENTION -> projection -> norm -> MLP ] x L
//   -> norm -> classifier and loss, chunk by chunk -> the same way back -> gradients summed over ranks -> clip -> AdamW
//
// The ranks form a grid: D replicas ("--dp"), each training on other sequences, of P ranks ("--sp"), each holding its
// share of the tokens of every sequence of the replica. Only attention, a few sums and the optimizer talk to other
// ranks.
//
// Dimensions, everywhere in this project:
//   B sequences of a micro-batch    T tokens of a sequence (context)   Tl those of this rank     n = B*Tl rows
//   C width of the model            H heads    KV key/value heads      D size of a head          F width of the MLP
//   V vocabulary (Vp: padded)       L layers                           P ranks that share a sequence

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "run/mixing.h"
#include "run/positions.h"
#include "run/prepare.h"
#include "run/saving.h"
#include "run/signals.h"
#include "run/tuning.h"
#include "run/validation.h"
#include "terminal/output.h"
#include "terminal/report.h"
#include "terminal/version.h"
#include "train_gpt.h"

// ---------------------------------------------------------------------------------------------------------------------
// Forward

// What leaves layer l enters the next one, or the final norm: the norm there takes the layer's last sum.
static void leave_layer(Model *model, Pass *pass, int64_t l) {
    bool last = l + 1 == model->config->layers;
    void *next = last ? pass->last : pass->layer[l + 1].input;
    const Norm *norm = last ? final_norm(model->config) : layer_kind(model->config, l + 1).norm;
    norm->forward(model, pass, next, pass->layer[l].middle, pass->branch,
                  last ? model->table->final_norm : model->table->layer[l + 1].norm1);
}

// pass->tokens, pass->positions -> pass->normed, the output of the final norm, which the classifier reads.
void forward(Model *model, Pass *pass) {
    const ParameterTable *table = model->table;
    Device *d = model->device;
    void *first = pass->layer[0].input;
    d->embedding_forward(d, first, pass->tokens, pass->positions, weight(model, table->token_table),
                         weight(model, table->position_table), pass->rows, model->config->dim);
    layer_kind(model->config, 0).norm->forward(model, pass, NULL, first, NULL, table->layer[0].norm1);
    for (int64_t l = 0; l < model->config->layers; l++) {
        block_forward(model, pass, l);
        leave_layer(model, pass, l);
    }
}

// --dump: the logits of the rows at work, on the host. Waits for the device.
static void keep_logits(Rank *r, int64_t first, int64_t rows) {
    Device *d = &r->device;
    int64_t V = r->run->config.vocab_size, Vp = r->run->table.padded_vocab_size;
    float *host = r->dump_logits + first * V, *dense = d->host_memory ? host : r->dump_room;
    for (int64_t row = 0; row < rows; row++) d->to_float(d, dense + row * V, at(d, r->pass.logits, row * Vp), V);
    if (!d->host_memory) d->download(d, host, r->dump_room, (size_t)(rows * V) * sizeof(float));
}

// The classifier, a few rows at a time. Adds the losses (nats) of the first `counted` rows to r->sums. With d_loss !=
// 0, the gradient of d_loss * (the sum of all losses) goes into the classifier's weights and, by the final norm's
// output, into r->pass.d_normed.
static void classify(Rank *r, float d_loss, int64_t counted) {
    const ModelConfig *c = &r->run->config;
    const ParameterTable *table = &r->run->table;
    Device *d = &r->device;
    Pass *pass = &r->pass;
    int64_t C = c->dim, V = c->vocab_size, Vp = table->padded_vocab_size;
    for (int64_t first = 0; first < pass->rows; first += pass->classifier_rows) {
        int64_t rows = pass->rows - first < pass->classifier_rows ? pass->rows - first : pass->classifier_rows;
        void *normed = at(d, pass->normed, first * C);
        d->matmul_forward(d, pass->logits, normed, weight(&r->model, table->classifier), NULL, rows, C, Vp);
        if (r->dump_logits != NULL) keep_logits(r, first, rows);
        int64_t judged = counted - first < rows ? counted - first : rows;
        if (r->accuracy.counts) accuracy_add(&r->accuracy, d, pass, first, judged, V, Vp);
        d->classifier(d, pass->logits, pass->losses + first, pass->targets + first, rows, V, Vp, d_loss);
        if (d_loss == 0) continue;
        d->matmul_backward(d, at(d, pass->d_normed, first * C), gradient(&r->model, table->classifier), NULL,
                           pass->logits, normed, weight(&r->model, table->classifier), rows, C, Vp, false);
    }
    d->sum(d, &r->sums->losses, pass->losses, counted);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward: the forward pass read from the bottom up

// From pass->d_normed (set by classify) to every parameter's gradient, added to model->gradients.
static void backward(Model *model, Pass *pass) {
    const ParameterTable *table = model->table;
    Device *d = model->device;
    int64_t n = pass->rows, C = model->config->dim;
    d->zero(d, pass->d_residual, n * C * d->element_bytes);
    final_norm(model->config)->backward(model, pass, pass->last, table->final_norm);
    for (int64_t l = model->config->layers - 1; l >= 0; l--) block_backward(model, pass, l);
    d->embedding_backward(d, gradient(model, table->token_table), gradient(model, table->position_table),
                          pass->d_residual, pass->tokens, pass->positions, n, pass->table_rows, C,
                          model->config->vocab_size);
}

// ---------------------------------------------------------------------------------------------------------------------
// The optimizer: gradients summed over all ranks, clipped, AdamW. Every rank updates its slice of the parameters and
// keeps only that slice's moments (Rajbhandari et al., ZeRO, 2020, stage 1); then everyone gathers everyone's slices.

static double learning_rate(const Options *o, int64_t step, int64_t steps) { // step counts from 1
    if (step <= o->warmup) return o->lr * (double)step / (double)o->warmup;
    if (o->schedule == SCHEDULE_CONSTANT) return o->lr;
    double floor_rate = o->lr * o->min_lr, decay_steps, done;
    if (o->schedule == SCHEDULE_WSD) { // warmup-stable-decay: straight down over the last part (Hu et al. 2024)
        decay_steps = ceil(o->decay_fraction * (double)steps);
        done = (double)(step - steps) + decay_steps;
        return done <= 0 ? o->lr : o->lr + (floor_rate - o->lr) * done / decay_steps;
    }
    decay_steps = (double)(steps - o->warmup);
    done = decay_steps > 0 ? (double)(step - o->warmup) / decay_steps : 1;
    return floor_rate + 0.5 * (o->lr - floor_rate) * (1 + cos(3.141592653589793 * (done < 1 ? done : 1)));
}

// Leaves in this rank's slice of the gradients the sum over ranks, and in r->sums its squares.
static void sum_gradients(Rank *r) {
    Device *d = &r->device;
    comm_doing(r->world, "sum of gradients");
    float *mine = r->model.gradients + r->slice_begin;
    comm_reduce_scatter_sum(r->world_tensors, mine, r->model.gradients, r->slice_counts);
    d->sum_of_squares(d, &r->sums->squares, mine, r->slice_end - r->slice_begin);
}

// The sums over all ranks. The one place in a step where the host waits for the device: clipping needs the norm, and
// the loop has to know that both are numbers.
static StepSums read_sums(Rank *r) {
    StepSums sums;
    r->device.download(&r->device, &sums, r->sums, sizeof sums);
    double both[2] = {sums.losses, sums.squares};
    comm_all_reduce_sum(r->world, both, 2);
    sums.losses = both[0];
    sums.squares = both[1];
    return sums;
}

void gather_slices(Rank *r, void *flat, size_t element_bytes) {
    for (int i = 0; i < comm_size(r->world); i++) r->slice_bytes[i] = (size_t)r->slice_counts[i] * element_bytes;
    comm_all_gather(r->world_tensors, flat, r->slice_bytes);
}

// Each tensor decays or does not; my slice is updated run by run of tensors that agree on it.
static void update(Rank *r, int64_t step, double rate, double gradient_norm) {
    const Run *run = r->run;
    const Options *o = &run->options;
    Device *d = &r->device;
    AdamW adamw;
    adamw.learning_rate = (float)rate;
    adamw.beta1 = (float)o->beta1;
    adamw.beta2 = (float)o->beta2;
    adamw.epsilon = (float)o->adam_epsilon;
    adamw.step = step;
    adamw.gradient_scale =
        o->grad_clip > 0 && gradient_norm > o->grad_clip ? (float)(o->grad_clip / gradient_norm) : 1.0f;
    for (int i = 0, last; i < run->table.count; i = last + 1) {
        last = parameters_decaying_alike(&run->table, i);
        const Parameter *from = &run->table.parameter[i], *to = &run->table.parameter[last];
        int64_t begin = from->offset > r->slice_begin ? from->offset : r->slice_begin;
        int64_t end = to->offset + to->size < r->slice_end ? to->offset + to->size : r->slice_end;
        if (begin >= end) continue;
        adamw.weight_decay = from->decay ? (float)o->weight_decay : 0.0f;
        int64_t mine = begin - r->slice_begin;
        d->adamw(d, r->master + mine, weight(&r->model, begin), r->exp_avg + mine, r->exp_avg_sq + mine,
                 r->model.gradients + begin, end - begin, &adamw);
    }
    comm_doing(r->world, "gathering of weights");
    gather_slices(r, r->model.weights, d->element_bytes);
}

// ---------------------------------------------------------------------------------------------------------------------
// One pass, one step, evaluation

static double tokens_in_step(const Run *run) { return (double)run->options.batch * (double)run->options.context; }
// Targets that count: all of them, but for synthetic tasks.
static double answers_in_step(const Run *run) { return (double)run->options.batch * (double)run->window_answers; }

// Fills the micro-batch with the shards of `count` sequences; missing sequences repeat the first one.
bool load(Rank *r, const Loader *loader, const int64_t *window, int64_t count, Error *err) {
    Pass *pass = &r->pass;
    Device *d = &r->device;
    int64_t tokens = r->model.shard.tokens;
    int32_t *inputs = r->staging, *targets = inputs + tokens, *positions = targets + tokens;
    for (int64_t b = 0; b < pass->sequences; b++) {
        if (!loader_read(loader, window[b < count ? b : 0], &r->model.shard, r->run->config.vocab_size, inputs, targets,
                         positions, err))
            return false;
        d->upload(d, pass->tokens + b * tokens, inputs, tokens * sizeof(int32_t));
        d->upload(d, pass->targets + b * tokens, targets, tokens * sizeof(int32_t));
        d->upload(d, pass->positions + b * tokens, positions, tokens * sizeof(int32_t));
        if (pass->first_visible == NULL) continue;
        int64_t T = r->phase->context;
        if (!loader_read_documents(loader, window[b < count ? b : 0], r->run->config.vocab_size, r->run->document_end,
                                   r->documents, err))
            return false;
        d->upload(d, pass->first_visible + b * T, r->documents, T * sizeof(int32_t));
        if (b == 0) memcpy(pass->least_visible, r->documents, T * sizeof(int32_t));
        else visibility_least(pass->least_visible, r->documents, T);
        if (loader == &r->loader && r->run->attends)
            r->flops_saved += attention_flops_saved(&r->phase->attention, r->documents);
    }
    return true;
}

// Forward and backward over this replica's share of a batch of windows: leaves this rank's gradients of the mean loss
// over all tokens of all ranks that count, and in r->sums its losses. False, on all ranks, where a window cannot be
// read.
static bool forward_backward(Rank *r, const int64_t *window, Error *err) {
    const Run *run = r->run;
    Device *d = &r->device;
    int64_t per_replica = r->phase->batch / run->options.dp, micro = r->phase->micro_batch;
    d->zero(d, r->model.gradients, run->table.total * sizeof(float));
    d->zero(d, r->sums, sizeof *r->sums);
    r->flops_saved = 0;
    for (int64_t done = 0; done < per_replica; done += micro) {
        bool loaded = load(r, &r->loader, window + r->replica * per_replica + done, micro, err);
        if (!all_well(r, loaded, err)) return false;
        comm_doing(r->world, "forward pass");
        forward(&r->model, &r->pass);
        classify(r, (float)(1.0 / answers_in_step(run)), r->pass.rows);
        comm_doing(r->world, "backward pass");
        backward(&r->model, &r->pass);
    }
    return true;
}

// Mean loss over windows of the validation split, into t->validation_loss, and a task's accuracy; replicas share the
// windows out. `by_position` (may be NULL) takes the losses. False, on all ranks, where a window cannot be read.
static bool evaluate(Rank *r, const Validation *v, PositionLosses *by_position, Training *t, Error *err) {
    int64_t micro = r->phase->micro_batch, replicas = r->run->options.dp, most = (v->windows + replicas - 1) / replicas;
    int64_t begin = v->windows * r->replica / replicas, end = v->windows * (r->replica + 1) / replicas;
    comm_doing_slowly(r->world, "evaluation");
    r->device.zero(&r->device, r->sums, sizeof *r->sums);
    for (int64_t first = begin; first < begin + most; first += micro) { // as many passes on every replica
        int64_t count = end - first < micro ? end - first : micro;
        bool loaded = count <= 0 || load(r, &v->loader, v->window + first, count, err);
        if (!all_well(r, loaded, err)) return false;
        if (count <= 0) continue;
        forward(&r->model, &r->pass);
        r->accuracy.counts = r->run->task != NULL;
        classify(r, 0, count * r->model.shard.tokens);
        r->accuracy.counts = false;
        if (by_position != NULL) positions_add(by_position, r, first, count);
    }
    double answers = (double)v->windows * (double)r->run->window_answers;
    t->validation_loss = read_sums(r).losses / answers;
    if (r->run->task != NULL) t->accuracy = accuracy_share(&r->accuracy, r->world, answers);
    return true;
}

// The mean loss of the tokens that were loaded last, with the weights as they are now. Collective.
double loss_of_last_tokens(Rank *r) {
    double windows = (double)(r->pass.sequences * r->phase->context) / (double)r->run->options.context;
    double answers = windows * (double)r->run->window_answers * (double)r->run->options.dp;
    r->device.zero(&r->device, r->sums, sizeof *r->sums);
    forward(&r->model, &r->pass);
    classify(r, 0, r->pass.rows);
    return read_sums(r).losses / answers;
}

// ---------------------------------------------------------------------------------------------------------------------
// The training loop, on every rank

static void open_loaders(Rank *r, Validation *v) {
    const Run *run = r->run;
    const Options *o = &run->options;
    Error err;
    require(r, loader_init(&r->loader, run->train, 0, run->train_end, o->context, (uint64_t)o->seed, true, &err), &err);
    r->loader.state = run->resumed.loader;
    r->loader.sequence = r->phase->context;
    int64_t begin = run->validation_begin, end = o->eval_tokens > 0 ? begin + o->eval_tokens + 1 : run->validation_end;
    bool drawn = o->eval_tokens == 0; // else all of them, in order
    require(r, loader_init(&v->loader, run->validation, begin, end, o->context, 0, drawn, &err), &err);
    int64_t all = loader_windows(&v->loader);
    v->windows = drawn && all > o->eval_windows ? o->eval_windows : all; // the same ones in every run of any seed
    v->window = malloc((size_t)v->windows * sizeof(int64_t));
    if (v->window == NULL) require(r, error_set(&err, "out of memory"), &err);
    loader_next(&v->loader, v->windows, v->window);
}

// One optimizer step on the next windows. False, on all ranks, where its data cannot be read or its numbers are none:
// then nothing has changed, the place in the data included.
static bool step_once(Rank *r, Training *t, StepReport *report, Error *err) {
    const Run *run = r->run;
    const Options *o = &run->options;
    LoaderState before = r->loader.state;
    int64_t step = t->step + 1;
    double start = now();
    rank_take_phase(r, run_phase(run, step));
    int64_t sent_before = bytes_sent_by_mixers(r);
    bool dump_now = o->dump != NULL && step == run->resumed.step + 1;
    loader_next(&r->loader, r->phase->batch, t->window);
    if (dump_now) want_dump(r);
    bool ok = forward_backward(r, t->window, err);
    if (ok) {
        sum_gradients(r);
        StepSums sums = read_sums(r);
        report->loss = sums.losses / answers_in_step(run);
        report->gradient_norm = sqrt(sums.squares);
        if (dump_now) dump(r);
        t->diverged = !isfinite(report->loss) || !isfinite(report->gradient_norm);
        if (t->diverged)
            ok = error_set(err,
                           "step %lld: the loss is %g and the gradient's norm %g; give a smaller --lr or --grad-clip",
                           (long long)step, report->loss, report->gradient_norm);
    }
    if (!ok) {
        r->loader.state = before;
        return false;
    }
    report->learning_rate = learning_rate(o, step, run->steps);
    update(r, step, report->learning_rate, report->gradient_norm);
    t->step = report->step = step;
    report->steps = run->steps;
    report->seconds = now() - start;
    report->bytes_sent = bytes_sent_by_mixers(r) - sent_before;
    report->context = run->phases > 1 ? r->phase->context : 0;
    return true;
}

// What follows from a step's time.
static void report_speed(const Rank *r, Training *t, StepReport *report) {
    const Run *run = r->run;
    const Phase *phase = run_phase(run, t->step);
    double tokens = tokens_in_step(run), flops = model_flops(&run->config, &run->table, phase->context);
    // Of what documents hide, the sequences of this replica stand for all.
    flops -= r->flops_saved / (tokens / (double)run->options.dp);
    bool first = t->usual_seconds == 0 || run_phase(run, t->step - 1) != phase;
    double usual = first ? report->seconds : 0.9 * t->usual_seconds + 0.1 * report->seconds;
    t->usual_seconds = usual;
    report->tokens_per_second = tokens / report->seconds;
    report->machine_fraction = machine_share(tokens * flops / report->seconds, &t->machine_rate);
    report->fraction_of = r->device.host_memory ? NULL : "MFU"; // model FLOPs utilization, causal
    report->seconds_left = (double)(run->steps - t->step) * usual;
}

// The validation loss, at --context in every phase, into *t. False, on all ranks, where it is no number or cannot be
// had.
static bool validate(Rank *r, const Validation *v, Training *t, Error *err) {
    bool last = t->step >= r->run->steps, wanted = last && r->run->options.eval_by_position != NULL;
    rank_take_phase(r, run_whole(r->run));
    PositionLosses *by_position = wanted ? positions_open(r, v->windows) : NULL;
    bool ok = evaluate(r, v, by_position, t, err);
    if (wanted) positions_close(by_position, r, ok);
    if (!ok) return false;
    if (isfinite(t->validation_loss)) return true;
    if (t->step > r->run->resumed.step)
        return error_set(err,
                         "step %lld: the update has made the validation loss %g; give a smaller --lr or --grad-clip",
                         (long long)t->step, t->validation_loss);
    return error_set(err, "before any step the validation loss is %g: the weights are too large; give other ones",
                     t->validation_loss);
}

// Where no step is left to do: the validation loss, unless only text is wanted; and a checkpoint of a new run.
static void finish_untrained(Rank *r, const Validation *v, Training *t) {
    const Options *o = &r->run->options;
    Error err;
    if (leader(r) && r->run->resume_from[0] != '\0')
        printf("resumed at step %lld of %lld: no step is left to do; --steps gives more\n", (long long)t->step,
               (long long)r->run->steps);
    bool wanted = o->sample == NULL || o->eval_by_position != NULL;
    if (wanted && !validate(r, v, t, &err)) end_saving(r, t, &err);
    if (o->out != NULL && t->saved < 0) save(r, t, true);
}

static void train(Rank *r, Reporter *reporter) {
    const Run *run = r->run;
    const Options *o = &run->options;
    Validation validation;
    Error err;
    Training t = {.step = run->resumed.step, .saved = -1, .saved_at = now(), .validation_loss = NAN, .accuracy = NAN};
    t.machine_rate = run->devices.matrix_rate * (run->processes ? comm_size(r->world) : 1);
    if (run->resume_from[0] != '\0') t.saved = t.step;
    open_loaders(r, &validation);
    if (leader(r)) require(r, reporter_open(reporter, o->log, o->resume, t.step, &err), &err);
    t.window = malloc((size_t)run_most_sequences(run) * sizeof(int64_t));
    if (t.window == NULL) require(r, error_set(&err, "out of memory"), &err);
    if (o->tune != NULL) tune(r, t.window, t.step < run->steps, forward_backward);
    if (leader(r) || run->processes) signals_are_requests(leader(r) ? answer_to_signals(run) : NULL);

    Asked asked = {0, false};
    if (t.step >= run->steps) finish_untrained(r, &validation, &t);
    while (t.step < run->steps && asked.stop == 0) {
        StepReport report = {.validation_loss = NAN, .accuracy = NAN};
        if (!step_once(r, &t, &report, &err)) end_saving(r, &t, &err);
        if (t.step == run->steps || (o->eval_every > 0 && t.step % o->eval_every == 0)) {
            if (!validate(r, &validation, &t, &err)) end_saving(r, &t, &err);
            report.validation_loss = t.validation_loss;
            report.accuracy = t.accuracy;
        }
        asked = ask_all(r, &t); // of what came while it was evaluated, too
        bool last = t.step == run->steps || asked.stop != 0;
        report_speed(r, &t, &report);
        // The log first, so that a run that is killed goes on from a step with a line; standard output last, since
        // nobody may read it.
        if (leader(r)) reporter_log(reporter, &report);
        if (o->out != NULL && (last || asked.save || (o->save_every > 0 && t.step % o->save_every == 0)))
            save(r, &t, last);
        if (leader(r)) reporter_step(reporter, &report);
    }
    signals_end_at_once();
    if (leader(r)) {
        reporter_line_end(reporter);
        if (asked.stop != 0)
            printf("stopped by signal %d after step %lld%s%s\n", asked.stop, (long long)t.step,
                   o->out != NULL ? ", saved in " : ", not saved: no --out was given", o->out != NULL ? o->out : "");
        else if (isfinite(t.validation_loss)) validation_print(run, &validation, &t);
    }
    if (o->dump_mixing != NULL) mixing_dump(r, &validation.loader);
    free(t.window);
    free(validation.window);
    loader_close(&validation.loader);
    loader_close(&r->loader);
}

// ---------------------------------------------------------------------------------------------------------------------
// A rank's life, and the process

// What the ranks of a process are started with.
typedef struct Job {
    const Run *run;
    Device *device; // engine nccl: the GPU of this process, which carries the ranks' messages from the start; else NULL
    int exit_status; // left by rank 0
} Job;

static void rank_main(Comm *world, void *argument) {
    Job *job = argument;
    const Run *run = job->run;
    Reporter reporter;
    Error err;
    Rank *r = rank_open(run, world, job->device);
    train(r, &reporter);
    rank_leave_groups(r);
    if (leader(r)) {
        if (!reporter_close(&reporter)) job->exit_status = EXIT_RUNTIME;
        if (run->prompt != NULL && signals_stop() == 0) require(r, print_sample(r, &err), &err);
    }
    rank_close(r);
}

static bool start_ranks(Job *job, Error *err) {
    const Run *run = job->run;
    const Options *o = &run->options;
    Device device;
    CommLaunch launch = {.engine = o->engine,
                         .ranks = (int)(o->sp * o->dp),
                         .timeout_seconds = o->timeout,
                         .start_seconds = fmax(o->timeout, 60)}; // the first rank measures the machine before it comes
    bool by_nccl = run->devices.kind != DEVICE_CPU && comm_engine_here(o->engine) == COMM_NCCL;
    if (by_nccl && !devices_open(&run->devices, 0, threads_per_rank(run), &device, err)) return false;
    if (by_nccl) launch.device = job->device = &device;
    bool ok = comm_run(&launch, rank_main, job, err);
    if (by_nccl) device.close(&device);
    return ok;
}

int main(int argc, char **argv) {
    static Run run; // shared by the ranks; too large for some stacks
    Job job = {&run, NULL, 0};
    output_open();
    signals_install();
    bool speaks = comm_process_rank() == 0;
    Error err;
    err.exit_code = 0;
    if (options_parse(&run.options, argc, (const char *const *)argv, &err)) {
        if (run.options.help || run.options.version) {
            if (run.options.help) options_help(stdout);
            else version_print(stdout);
            return output_flush() ? 0 : EXIT_RUNTIME;
        }
        if (prepare(&run, speaks, &err) && !run.options.plan) start_ranks(&job, &err);
    }
    if (err.exit_code != 0) {
        if (!speaks) sleep(1); // process 0 says what all of them find, and ends all; else this one has to
        die(&err);
    }
    run_close(&run);
    if (signals_stop() != 0) return 128 + signals_stop();
    return output_flush() ? job.exit_status : EXIT_RUNTIME;
}
