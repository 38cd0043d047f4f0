// Saving, and ends. What must not happen: that hours of training are lost to something beside it (a data file that was
// cut short, a full disk, a loss that ran away, a batch system's time limit). So every end that the ranks reach
// together saves first what is sound, and only then says what was wrong.
//
// Sound means: with these weights the loss of the tokens at hand is a number. What is not is never written over what
// is.
#include "run/saving.h"

#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "checkpoint/dump.h"
#include "run/kept_options.h"
#include "run/signals.h"

double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// ---- all ranks together --------------------------------------------------------------------------------------------

bool leader(const Rank *r) { return comm_rank(r->world) == 0; }

void require(Rank *r, bool ok, const Error *err) {
    if (!ok) comm_fail(r->world, err);
}

bool all_well(Rank *r, bool ok, Error *err) {
    double failed = !ok;
    comm_all_reduce_sum(r->world, &failed, 1);
    for (int rank = 0; failed > 0; rank++) { // whose error it is
        double its = rank == comm_rank(r->world) && !ok;
        comm_all_reduce_sum(r->world, &its, 1);
        if (its == 0) continue;
        comm_broadcast(r->world, err, sizeof *err, rank);
        return false;
    }
    return true;
}

static bool save_is_due(const Rank *r, const Training *t) {
    const Options *o = &r->run->options;
    return leader(r) && o->out != NULL && o->save_minutes > 0 && now() - t->saved_at >= 60 * o->save_minutes;
}

Asked ask_all(Rank *r, const Training *t) {
    static const int stops[] = {SIGTERM, SIGINT, SIGHUP};
    int mine = signals_stop();
    bool signalled = (leader(r) || r->run->processes) && signals_take_save();
    double asked[5] = {mine == SIGTERM, mine == SIGINT, mine == SIGHUP, save_is_due(r, t), signalled};
    comm_all_reduce_sum(r->world, asked, 5);
    Asked together = {0, asked[3] > 0 || asked[4] > 0};
    for (int i = 2; i >= 0; i--)
        if (asked[i] > 0) together.stop = stops[i];
    if (together.stop != 0) signals_stop_elsewhere(together.stop);
    if (asked[4] > 0 && r->run->options.out == NULL && leader(r))
        fprintf(stderr, "train_gpt: SIGUSR1 asks to save, but no --out was given; training goes on\n");
    return together;
}

const char *answer_to_signals(const Run *run) {
    static char line[1200]; // of the one process
    const char *out = run->options.out;
    if (out != NULL)
        snprintf(line, sizeof line,
                 "train_gpt: asked to stop: the step at work is finished and saved in %.1000s first; the same signal "
                 "again, 2 s from now or later, ends it at once\n",
                 out);
    else
        snprintf(line, sizeof line,
                 "train_gpt: asked to stop: the step at work is finished first (nothing is saved: no --out was given); "
                 "the same signal again, 2 s from now or later, ends it at once\n");
    return line;
}

// ---- from the ranks' memory to files -------------------------------------------------------------------------------

// The flat vector in the room of the gradients, where the leader can read it; NULL, on the leader: out of memory.
static const float *for_file(Rank *r) {
    Device *d = &r->device;
    if (d->host_memory || !leader(r)) return r->model.gradients;
    size_t bytes = (size_t)r->run->table.total * sizeof(float);
    if (r->host_vector == NULL) r->host_vector = (float *)malloc(bytes);
    if (r->host_vector != NULL) d->download(d, r->host_vector, r->model.gradients, bytes);
    return r->host_vector;
}

static void free_host_vector(Rank *r) {
    free(r->host_vector);
    r->host_vector = NULL;
}

// The flat vector of the parameters in fp32 or of a moment, from everyone's slices, in the room of the gradients (which
// are not needed between steps).
static const float *gather_flat(Rank *r, const float *slice) {
    r->device.copy(&r->device, r->model.gradients + r->slice_begin, slice,
                   (r->slice_end - r->slice_begin) * sizeof(float));
    gather_slices(r, r->model.gradients, sizeof(float));
    return for_file(r);
}

static bool write_vector(Rank *r, CheckpointWriter *writer, CheckpointVector which, const float *flat, Error *err) {
    if (flat != NULL) return checkpoint_write(writer, which, flat, err);
    return error_set(err, "out of memory for saving: a vector of all parameters takes %zu bytes",
                     (size_t)r->run->table.total * sizeof(float));
}

static void fill_state(const Rank *r, const Training *t, TrainingState *state) {
    const Run *run = r->run;
    memset(state, 0, sizeof *state);
    state->step = t->step;
    state->steps = run->steps;
    state->seed = (uint64_t)run->options.seed;
    state->loader = r->loader.state;
    state->context = run->options.context;
    state->batch = run->options.batch;
    run_describe_data(run, state);
    state->validation_loss = t->validation_loss;
    kept_options_of(&run->options, &state->kept);
}

// All ranks gather; the leader writes, as far as it gets.
static bool write_checkpoint(Rank *r, Training *t, Error *err) {
    const Run *run = r->run;
    CheckpointWriter *writer = NULL;
    bool ok = true;
    comm_doing_slowly(r->world, "saving of a checkpoint");
    if (leader(r)) {
        writer = checkpoint_begin(run->options.out, t->step, &run->config, &run->table, r->kept, err);
        ok = writer != NULL;
    }
    for (int i = 0; i < 3; i++) {
        const CheckpointVector which[] = {CHECKPOINT_PARAMETERS, CHECKPOINT_EXP_AVG, CHECKPOINT_EXP_AVG_SQ};
        const float *slice[] = {r->master, r->exp_avg, r->exp_avg_sq};
        // Never weights that have been rounded: a resume goes on from the very bits.
        bool whole = i == 0 && r->device.host_memory;
        const float *flat = whole ? (const float *)r->model.weights : gather_flat(r, slice[i]);
        if (leader(r) && ok) ok = write_vector(r, writer, which[i], flat, err);
    }
    if (leader(r) && ok) {
        TrainingState state;
        fill_state(r, t, &state);
        ok = checkpoint_commit(writer, &state, (int)run->options.keep, err);
    } else {
        checkpoint_abandon(writer);
    }
    free_host_vector(r);
    if (!all_well(r, ok, err)) return false;
    t->saved = t->step;
    return true;
}

// ---- saving --------------------------------------------------------------------------------------------------------

// Weights that this run has not changed are as good as they came.
static bool sound(Rank *r, const Training *t, Error *err) {
    if (t->step == r->run->resumed.step) return true;
    double loss = loss_of_last_tokens(r);
    return isfinite(loss) || error_set(err, "step %lld: the update has made the loss %g; lower --lr or --grad-clip",
                                       (long long)t->step, loss);
}

void save(Rank *r, Training *t, bool last) {
    Error err;
    t->saved_at = now(); // also where it fails: not at every step from now on
    if (!sound(r, t, &err)) end_saving(r, t, &err);
    if (write_checkpoint(r, t, &err)) return;
    if (last) end_saving(r, t, &err);
    if (leader(r))
        fprintf(stderr, "train_gpt: step %lld is not saved: %s; training goes on\n", (long long)t->step, err.message);
}

static void append(Error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void append(Error *err, const char *format, ...) {
    size_t used = strlen(err->message);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(err->message + used, sizeof err->message - used, format, arguments);
    va_end(arguments);
}

void end_saving(Rank *r, Training *t, const Error *cause) {
    const char *out = r->run->options.out;
    Error line = *cause, err;
    err.message[0] = '\0';
    bool more = t->step > r->run->resumed.step && t->saved < t->step; // than is saved
    if (out != NULL && more && !t->diverged && sound(r, t, &err)) write_checkpoint(r, t, &err);
    if (out == NULL && t->step > 0) append(&line, "; step %lld is lost: no --out was given", (long long)t->step);
    else if (out != NULL && t->saved == t->step) append(&line, "; step %lld is saved in %s", (long long)t->step, out);
    else if (out != NULL && t->saved >= 0)
        append(&line, "; the newest checkpoint in %s is of step %lld", out, (long long)t->saved);
    else if (out != NULL) append(&line, "; there is no checkpoint yet in %s", out);
    if (err.message[0] != '\0' && strncmp(err.message, cause->message, strlen(err.message)) != 0)
        append(&line, " (%s)", err.message);
    if (leader(r)) comm_fail(r->world, &line);
    for (;;) comm_barrier(r->world); // until the leader ends all
}

// ---- --dump --------------------------------------------------------------------------------------------------------

static size_t room_of_logits(const Rank *r) {
    return (size_t)(r->pass.classifier_rows * r->run->config.vocab_size) * sizeof(float);
}

void want_dump(Rank *r) {
    size_t bytes = (size_t)(r->pass.rows * r->run->config.vocab_size) * sizeof(float);
    r->dump_logits = (float *)malloc(bytes);
    Error err;
    if (r->dump_logits == NULL)
        require(r, error_set(&err, "--dump: out of memory for %zu bytes of logits", bytes), &err);
    if (r->device.host_memory) return;
    r->dump_room = (float *)r->device.allocate(&r->device, room_of_logits(r), &err);
    require(r, r->dump_room != NULL, &err);
}

void dump(Rank *r) {
    const Run *run = r->run;
    Error err;
    bool ok = r->replica != 0 || dump_logits(run->options.dump, r->sequence, r->dump_logits, r->pass.sequences,
                                             r->phase->context, run->config.vocab_size, &err);
    require(r, ok, &err);
    gather_slices(r, r->model.gradients, sizeof(float));
    if (leader(r)) {
        const float *flat = for_file(r);
        if (flat == NULL) require(r, error_set(&err, "--dump: out of memory for the gradients"), &err);
        require(r, dump_gradients(run->options.dump, &run->table, flat, &err), &err);
    }
    comm_barrier(r->world);
    free_host_vector(r);
    free(r->dump_logits);
    if (r->dump_room != NULL) r->device.release(&r->device, r->dump_room, room_of_logits(r));
    r->dump_logits = r->dump_room = NULL;
}
