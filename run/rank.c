// A rank's beginning and end: its memory in one block, its groups, its first weights.
#include <stdlib.h>
#include <string.h>

#include "checkpoint/checkpoint.h"
#include "comm/collectives.h"
#include "run/check_tokens.h"
#include "run/same_run.h"
#include "run/saving.h"
#include "train_gpt.h"

// ---- memory --------------------------------------------------------------------------------------------------------

// Where the slice of rank `rank` begins, in elements: at a multiple of 64, so that every slice can be read and written
// in whole cache lines.
static int64_t slice_start(int64_t total, int rank, int ranks) {
    return rank == ranks ? total : total * rank / ranks / 64 * 64;
}

int threads_per_rank(const Run *run) {
    int threads = run->threads / run->ranks_here;
    return threads > 1 ? threads : 1;
}

// The most that a layer's token mixer states.
static size_t mixers_scratch(const MixerSize *size, int threads) {
    size_t most = 0;
    MixerSize of_layer = *size;
    for (of_layer.layer = 0; of_layer.layer < size->config->layers; of_layer.layer++) {
        const Mixer *tokens = layer_kind(size->config, of_layer.layer).tokens;
        size_t bytes = tokens->scratch_bytes == NULL ? 0 : tokens->scratch_bytes(&of_layer, threads);
        if (bytes > most) most = bytes;
    }
    return most;
}

void lend_scratch(Device *device, const Run *run, const MixerSize *size, size_t attention, int threads, Arena *arena) {
    const ModelConfig *c = &run->config;
    const int64_t widths[] = {c->dim, 2 * c->ffn_dim, (c->heads + 2 * c->kv_heads) * c->head_dim};
    int64_t widest = 0;
    for (int i = 0; i < 3; i++) widest = widths[i] > widest ? widths[i] : widest;
    const size_t needs[] = {device_scratch_bytes(run->devices.kind, threads, size->rows, c->dim, widest), attention,
                            mixers_scratch(size, threads)};
    device->scratch_bytes = 0;
    for (int i = 0; i < 3; i++) device->scratch_bytes = needs[i] > device->scratch_bytes ? needs[i] : device->scratch_bytes;
    device->scratch = arena_take(arena, "scratch of the layer at work", device->scratch_bytes);
}

// What sums over ranks need of a device's memory: nothing where that is the host's.
static size_t terms_bytes(const Run *run, int ranks) {
    int64_t longest = 0;
    if (run->devices.kind == DEVICE_CPU) return 0;
    for (int i = 0; i < ranks; i++) {
        int64_t slice = slice_start(run->table.total, i + 1, ranks) - slice_start(run->table.total, i, ranks);
        longest = slice > longest ? slice : longest;
    }
    return comm_staging_bytes(ranks, longest);
}

// What a rank has in every phase of the run.
static void lay_out_model(Rank *r, int world_rank) {
    const Run *run = r->run;
    const Options *o = &run->options;
    int ranks = (int)(o->sp * o->dp);
    Arena *arena = &r->arena;
    Model *model = &r->model;
    int64_t total = run->table.total;
    size_t element = r->device.element_bytes;
    r->replica = world_rank / (int)o->sp;
    r->slice_begin = slice_start(total, world_rank, ranks);
    r->slice_end = slice_start(total, world_rank + 1, ranks);
    int64_t slice = r->slice_end - r->slice_begin;
    model->config = &run->config;
    model->table = &run->table;
    model->device = &r->device;
    model->attention = &r->attention;
    model->ranks = (int)o->sp;
    model->rank = world_rank % (int)o->sp;
    model->recompute = run->recompute;

    model->weights = arena_take(arena, "weights", total * element);
    bool storage_is_fp32 = element == sizeof(float);
    if (!storage_is_fp32) r->master = arena_take(arena, "weights in fp32, my slice", slice * sizeof(float));
    else r->master = model->weights == NULL ? NULL : (float *)model->weights + r->slice_begin;
    model->gradients = arena_take(arena, "gradients", total * sizeof(float));
    r->exp_avg = arena_take(arena, "AdamW moments, my slice", slice * sizeof(float));
    r->exp_avg_sq = arena_take(arena, "AdamW moments, my slice", slice * sizeof(float));
    r->sums = arena_take(arena, "sums of a step", sizeof(StepSums));
    r->terms_bytes = terms_bytes(run, ranks);
    r->terms = arena_take(arena, "sums over ranks", r->terms_bytes);
}

// What the passes of a phase work in.
static void lay_out_passes(Rank *r) {
    const Run *run = r->run;
    const Phase *phase = r->phase;
    Arena *arena = &r->arena;
    int rank = r->model.rank, threads = threads_per_rank(run);
    MixerSize size = run_mixer_size(run, phase, rank);
    r->model.context = phase->context;
    r->model.shard = shard_of(phase->context, r->model.ranks, rank);
    pass_lay_out(&r->pass, size, run->table.padded_vocab_size, arena, PASS_TRAINING, run->recompute);
    if (run->options.document_mask)
        r->pass.first_visible = arena_take(arena, "tokens", phase->micro_batch * phase->context * sizeof(int32_t));
    if (run->task != NULL) accuracy_lay_out(&r->accuracy, r->pass.classifier_rows, run->config.vocab_size, arena);
    size_t attention = 0;
    if (run->attends) {
        attention_lay_out(&r->attention, &phase->attention, rank, arena);
        attention = attention_scratch_bytes(&phase->attention, rank, phase->attention.kernels, threads);
    }
    lend_scratch(&r->device, run, &size, attention, threads, arena);
}

// All of a rank's memory. Runs first over no memory, to add up, then over the real block; and again at the beginning of
// each phase, when what stands first stays where it is.
static void lay_out(Rank *r, const Phase *phase, int world_rank) {
    r->phase = phase;
    r->arena.used = 0;
    r->arena.entry_count = 0;
    lay_out_model(r, world_rank);
    lay_out_passes(r);
}

size_t rank_bytes(Rank *r, int world_rank) {
    const Run *run = r->run;
    Arena most = {0};
    for (int i = 0; i < run->phases; i++) {
        memset(&r->arena, 0, sizeof r->arena);
        lay_out(r, &run->phase[i], world_rank);
        if (run->attends) attention_disconnect(&r->attention);
        if (r->arena.used >= most.used) most = r->arena;
    }
    r->arena = most;
    return most.used;
}

// ---- weights -------------------------------------------------------------------------------------------------------

// Elements [begin, end) of a vector that a run begins with: read from `from`, or where that is NULL, made from the
// seed.
static bool first_values(const Run *run, const char *from, CheckpointVector which, int64_t begin, int64_t end,
                         float *out, Error *err) {
    if (from != NULL) return checkpoint_read(from, which, &run->table, begin, end, out, err);
    parameters_initialize(&run->table, (uint64_t)run->options.seed, begin, end, out);
    return true;
}

// These of my slice, in place where the device's memory is the host's, else piece by piece by way of the host.
static void fill_slice(Rank *r, const char *from, CheckpointVector which, float *slice) {
    const int64_t most = 16 << 20, begin = r->slice_begin, end = r->slice_end;
    Device *d = &r->device;
    Error err;
    if (d->host_memory) {
        require(r, first_values(r->run, from, which, begin, end, slice, &err), &err);
        return;
    }
    float *piece = malloc((size_t)(end - begin < most ? end - begin + 1 : most) * sizeof(float));
    if (piece == NULL) require(r, error_set(&err, "out of memory"), &err);
    for (int64_t first = begin; first < end; first += most) {
        int64_t last = end - first < most ? end : first + most;
        require(r, first_values(r->run, from, which, first, last, piece, &err), &err);
        d->upload(d, slice + (first - begin), piece, (size_t)(last - first) * sizeof(float));
    }
    free(piece);
}

// Each rank makes or reads its own slice; then everyone gathers everyone's.
static void fill_weights(Rank *r) {
    const Run *run = r->run;
    bool resumed = run->resume_from[0] != '\0';
    const char *from = resumed ? run->resume_from : run->options.init;
    if (leader(r) && from != NULL && run->options.out != NULL) {
        Error err;
        r->kept = kept_files_read(from, &err);
        require(r, r->kept != NULL, &err);
    }
    fill_slice(r, from, CHECKPOINT_PARAMETERS, r->master);
    r->device.to_storage(&r->device, weight(&r->model, r->slice_begin), r->master, r->slice_end - r->slice_begin);
    comm_doing(r->world, "gathering of the first weights");
    gather_slices(r, r->model.weights, r->device.element_bytes);
    if (!resumed) return;
    fill_slice(r, from, CHECKPOINT_EXP_AVG, r->exp_avg);
    fill_slice(r, from, CHECKPOINT_EXP_AVG_SQ, r->exp_avg_sq);
}

// Cosines and sines of this rank's positions, which are the same for every sequence.
static bool fill_rotary_tables(Rank *r, Error *err) {
    const ModelConfig *c = &r->run->config;
    if (!config_is_rotary(c)) return true;
    int64_t tokens = r->model.shard.tokens, elements = tokens * (c->head_dim / 2), n = 0;
    float *tables = malloc((size_t)(2 * elements) * sizeof(float));
    if (tables == NULL) return error_set(err, "out of memory for the rotary tables of %lld tokens", (long long)tokens);
    for (int i = 0; i < r->model.shard.count; i++)
        for (int64_t t = 0; t < r->model.shard.chunk[i].length; t++)
            r->staging[n++] = (int32_t)(r->model.shard.chunk[i].start + t);
    rope_tables(c, r->staging, tokens, tables, tables + elements);
    r->device.upload(&r->device, r->pass.cos_table, tables, (size_t)elements * sizeof(float));
    r->device.upload(&r->device, r->pass.sin_table, tables + elements, (size_t)elements * sizeof(float));
    free(tables);
    return true;
}

// Whether some layer's token mixer is none of attention's.
static bool mixes_otherwise(const Run *run) {
    for (int64_t l = 0; l < run->config.layers; l++)
        if (!layer_kind(&run->config, l).tokens->attends) return true;
    return false;
}

int64_t bytes_sent_by_mixers(const Rank *r) {
    return (r->run->attends ? attention_bytes_sent(&r->attention) : 0) +
           (r->model.sequence != NULL ? comm_bytes_sent(r->model.sequence) : 0);
}

// The groups of ranks that messages go through.
static void join_groups(Rank *r) {
    // NCCL may not be installed and cannot have two ranks on one GPU; copies from device to device cannot leave the
    // process. Within one, attention's messages are copies all the same: they leave the multiprocessors to the kernels.
    const CommCollectives *nccl = r->device.collectives;
    int me = comm_rank(r->world);
    bool processes = r->run->processes;
    bool collectives = processes || (nccl != NULL && nccl->available() && !r->run->devices.shared);
    comm_doing(r->world, "start of the groups of ranks");
    r->sequence = comm_split(r->world, r->replica, me);
    r->world_tensors = comm_on_device(r->world, &r->device, collectives);
    if (collectives && !processes) r->sequence_tensors = comm_on_device(r->sequence, &r->device, false);
    else if (r->run->options.dp > 1) r->sequence_tensors = comm_split(r->world_tensors, r->replica, me);
    else r->sequence_tensors = r->world_tensors; // the same ranks
    comm_lend_staging(r->world_tensors, r->terms, r->terms_bytes);
    if (mixes_otherwise(r->run)) r->model.sequence = comm_split(r->sequence_tensors, 0, me);
}

// What lies in the host's memory, as large as any phase needs it.
static bool allocate_on_host(Rank *r, Error *err) {
    const Run *run = r->run;
    int64_t T = run->options.context, tokens = shard_of(T, r->model.ranks, r->model.rank).tokens;
    int ranks = comm_size(r->world);
    bool documents = run->options.document_mask;
    r->model.requests = calloc(MODEL_REQUESTS(run->options.sp), sizeof *r->model.requests);
    r->slice_counts = malloc((size_t)ranks * sizeof(int64_t));
    r->slice_bytes = malloc((size_t)ranks * sizeof(size_t));
    if (documents) r->documents = malloc((size_t)(2 * T) * sizeof(int32_t));
    if (r->documents != NULL) r->pass.least_visible = r->documents + T;
    r->staging = malloc((size_t)(3 * tokens) * sizeof(int32_t));
    if (r->slice_counts == NULL || r->slice_bytes == NULL || r->staging == NULL || r->model.requests == NULL ||
        (documents && r->documents == NULL))
        return error_set(err, "out of memory");
    if (run->task != NULL && !accuracy_open(&r->accuracy, r->pass.classifier_rows, run->config.vocab_size, err))
        return false;
    for (int i = 0; i < ranks; i++)
        r->slice_counts[i] = slice_start(run->table.total, i + 1, ranks) - slice_start(run->table.total, i, ranks);
    return true;
}

// Makes what was laid out ready for passes: sound tokens stand in it before any are loaded.
static bool begin_phase(Rank *r, Error *err) {
    Pass *pass = &r->pass;
    Device *d = &r->device;
    size_t bytes = (size_t)pass->rows * sizeof(int32_t);
    r->loader.sequence = r->phase->context;
    d->zero(d, pass->tokens, bytes);
    d->zero(d, pass->targets, bytes);
    d->zero(d, pass->positions, bytes);
    if (pass->first_visible != NULL) {
        d->zero(d, pass->first_visible, (size_t)(pass->sequences * r->phase->context) * sizeof(int32_t));
        memset(pass->least_visible, 0, (size_t)r->phase->context * sizeof(int32_t));
    }
    return fill_rotary_tables(r, err);
}

static bool set_up(Rank *r, Error *err) {
    int me = comm_rank(r->world);
    size_t bytes = rank_bytes(r, me);
    memset(&r->arena, 0, sizeof r->arena);
    r->arena.base = r->device.allocate(&r->device, bytes, err);
    r->arena.capacity = bytes;
    if (r->arena.base == NULL) return false;
    lay_out(r, run_phase(r->run, r->run->resumed.step + 1), me);
    join_groups(r);
    if (r->run->attends) attention_connect(&r->attention, r->sequence_tensors);
    return allocate_on_host(r, err) && begin_phase(r, err);
}

void rank_take_phase(Rank *r, const Phase *phase) {
    Error err;
    if (phase == r->phase) return;
    comm_doing(r->world, "change of the context");
    r->device.synchronize(&r->device);
    comm_barrier(r->world); // nobody reads any more what is moved here
    Attention before = r->attention;
    lay_out(r, phase, comm_rank(r->world));
    if (r->run->attends) attention_take_over(&r->attention, &before);
    require(r, begin_phase(r, &err), &err);
}

void rank_leave_groups(Rank *r) {
    r->device.synchronize(&r->device); // what others copy from here is part of our order too
    if (r->run->attends) attention_disconnect(&r->attention);
    comm_free(r->model.sequence);
    if (r->sequence_tensors != r->world_tensors) comm_free(r->sequence_tensors);
    comm_free(r->world_tensors);
    comm_free(r->sequence);
}

Rank *rank_open(const Run *run, Comm *world, const Device *device) {
    Error err;
    Rank *r = calloc(1, sizeof *r);
    if (r == NULL) {
        error_set(&err, "out of memory");
        comm_fail(world, &err);
    }
    r->run = run;
    r->world = world;
    if (run->processes) require(r, same_run(run, world, &err), &err);
    int rank_here = run->processes ? 0 : comm_rank(world);
    r->device_is_mine = device == NULL;
    if (device != NULL) r->device = *device;
    else require(r, devices_open(&run->devices, rank_here, threads_per_rank(run), &r->device, &err), &err);
    require(r, check_tokens(run, world, threads_per_rank(run), &err), &err);
    require(r, set_up(r, &err), &err);
    fill_weights(r);
    return r;
}

void rank_close(Rank *r) {
    r->device.release(&r->device, r->arena.base, r->arena.capacity);
    if (r->device_is_mine) r->device.close(&r->device);
    kept_files_free(r->kept);
    pass_free(&r->pass);
    accuracy_close(&r->accuracy);
    free(r->model.requests);
    free(r->slice_counts);
    free(r->slice_bytes);
    free(r->staging);
    free(r->documents);
    free(r);
}
