// train_gpt: trains GPT models whose sequences are sharded over ranks, so that the context can be very long.
//
// This file is the story, top to bottom: what a rank holds in memory, the forward pass, the loss, the backward pass,
// the optimizer, evaluation, the training loop, and how the ranks are started. (What a rank holds stands in
// train_gpt.h, generation in generation.c.) It is plain C; everything that computes stands behind the Device table
// (layers/device.h), everything that distributes attention behind attention/attention.h, and everything that ranks say
// to each other behind comm/comm.h. On a GPU these calls only enter a queue: the host runs ahead, and waits once a step
// (read_sums).
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
//   V vocabulary                    L layers                           P ranks that share a sequence

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu_features.h"
#include "checkpoint/checkpoint.h"
#include "comm/collectives.h"
#include "dataloader/bigram.h"
#include "run/saving.h"
#include "run/signals.h"
#include "terminal/check_tokens.h"
#include "terminal/output.h"
#include "terminal/plan.h"
#include "terminal/report.h"
#include "terminal/same_run.h"
#include "terminal/version.h"
#include "train_gpt.h"

// ---------------------------------------------------------------------------------------------------------------------
// What a rank holds, laid out

// The part of a (L, ...) buffer that belongs to a layer; `elements` is the size of one part.
static void *layer_part(const Device *device, const Activations *act, void *buffer, int64_t layer, int64_t elements) {
    return act->per_layer ? at(device, buffer, layer * elements) : buffer;
}

// The logits are the widest tensor of all: (n, V). They are made for some rows at a time. A CPU's products are at their
// best with few: 32 MiB of fp32. A GPU needs thousands to be kept busy, and each time it also reads and writes the
// gradient of the classifier's weights (154 MB in GPT-2), which only many rows repay: 256 MiB of bf16.
static int64_t rows_of_logits(int64_t rows, int64_t vocab_size, size_t element_bytes) {
    const int64_t most_elements = element_bytes == sizeof(float) ? 8 << 20 : 128 << 20;
    int64_t fit = most_elements / vocab_size > 16 ? most_elements / vocab_size : 16;
    return rows < fit ? rows : fit;
}

void lay_out_activations(Activations *a, const ModelConfig *c, const Device *device, Arena *arena, int64_t sequences,
                         int64_t tokens_per_sequence, bool per_layer) {
    int64_t n = sequences * tokens_per_sequence, layers = per_layer ? c->layers : 1;
    size_t element = device->element_bytes;
    a->rows = n;
    a->sequences = sequences;
    a->per_layer = per_layer;
    a->table_rows = tokens_per_sequence;
    a->tokens = (int32_t *)arena_take(arena, "tokens", n * sizeof(int32_t));
    a->targets = (int32_t *)arena_take(arena, "tokens", n * sizeof(int32_t));
    a->positions = (int32_t *)arena_take(arena, "tokens", n * sizeof(int32_t));
    if (config_is_rotary(c)) {
        size_t bytes = tokens_per_sequence * (c->head_dim / 2) * sizeof(float);
        a->cos_table = (float *)arena_take(arena, "rotary tables", bytes);
        a->sin_table = (float *)arena_take(arena, "rotary tables", bytes);
    }
    a->residual = arena_take(arena, "activations: residual", (per_layer ? layers + 1 : 1) * n * c->dim * element);
    a->middle = arena_take(arena, "activations: residual", layers * n * c->dim * element);
    a->qkv = arena_take(arena, "activations: queries, keys, values", layers * n * qkv_width(c) * element);
    a->attended = arena_take(arena, "activations: attention", layers * n * c->heads * c->head_dim * element);
    a->log_sum_exp = (float *)arena_take(arena, "activations: attention", layers * n * c->heads * sizeof(float));
    a->up = arena_take(arena, "activations: MLP", layers * n * up_width(c) * element);
    a->mean = (float *)arena_take(arena, "buffers of one layer", n * sizeof(float));
    a->rstd = (float *)arena_take(arena, "buffers of one layer", n * sizeof(float));
    a->normed = arena_take(arena, "buffers of one layer", n * c->dim * element);
    a->branch = arena_take(arena, "buffers of one layer", n * c->dim * element);
    a->activated = arena_take(arena, "buffers of one layer", n * c->ffn_dim * element);
    a->classifier_rows = rows_of_logits(n, c->vocab_size, element);
    a->logits = arena_take(arena, "logits", a->classifier_rows * c->vocab_size * element);
    a->losses = (float *)arena_take(arena, "logits", n * sizeof(float));
}

static void lay_out_gradients(ActivationGradients *g, const ModelConfig *c, const Device *device, Arena *arena,
                              int64_t n) {
    size_t element = device->element_bytes;
    g->residual = arena_take(arena, "activation gradients", n * c->dim * element);
    g->normed = arena_take(arena, "activation gradients", n * c->dim * element);
    g->qkv = arena_take(arena, "activation gradients", n * qkv_width(c) * element);
    g->attended = arena_take(arena, "activation gradients", n * c->heads * c->head_dim * element);
    g->up = arena_take(arena, "activation gradients", n * up_width(c) * element);
    if (c->architecture != ARCH_GPT2)
        g->activated = arena_take(arena, "activation gradients", n * c->ffn_dim * element);
}

// Where the slice of rank `rank` begins, in elements: at a multiple of 64, so that every slice can be read and written
// in whole cache lines.
static int64_t slice_start(int64_t total, int rank, int ranks) {
    return rank == ranks ? total : total * rank / ranks / 64 * 64;
}

// All of a rank's memory. Runs first over no memory, to add up, then over the real block.
static void lay_out_rank(Rank *r, int world_rank) {
    const Run *run = r->run;
    const ModelConfig *c = &run->config;
    int ranks = (int)(run->options.sp * run->options.dp);
    Arena *arena = &r->arena;
    int64_t total = run->table.total;
    r->replica = world_rank / (int)run->options.sp;
    int sequence_rank = world_rank % (int)run->options.sp;
    r->shard = shard_of(run->options.context, (int)run->options.sp, sequence_rank);
    r->slice_begin = slice_start(total, world_rank, ranks);
    r->slice_end = slice_start(total, world_rank + 1, ranks);
    int64_t slice = r->slice_end - r->slice_begin;

    r->weights = arena_take(arena, "weights", total * r->device.element_bytes);
    bool storage_is_fp32 = r->device.element_bytes == sizeof(float);
    if (!storage_is_fp32) r->master = (float *)arena_take(arena, "weights in fp32, my slice", slice * sizeof(float));
    else r->master = r->weights == NULL ? NULL : (float *)r->weights + r->slice_begin;
    r->gradients = (float *)arena_take(arena, "gradients", total * sizeof(float));
    r->exp_avg = (float *)arena_take(arena, "AdamW moments, my slice", slice * sizeof(float));
    r->exp_avg_sq = (float *)arena_take(arena, "AdamW moments, my slice", slice * sizeof(float));
    r->sums = (StepSums *)arena_take(arena, "sums of a step", sizeof(StepSums));
    lay_out_activations(&r->act, c, &r->device, arena, run->micro_batch, r->shard.tokens, true);
    lay_out_gradients(&r->grad, c, &r->device, arena, r->act.rows);
    if (run->options.document_mask)
        r->first_visible =
            (int32_t *)arena_take(arena, "tokens", run->micro_batch * run->options.context * sizeof(int32_t));
    attention_lay_out(&r->attention, &run->attention, sequence_rank, arena);
}

// What lay_out_rank would take, leaving the rank's arena empty but for its list of buffers.
static size_t bytes_of_rank(Rank *r, int world_rank) {
    memset(&r->arena, 0, sizeof r->arena);
    lay_out_rank(r, world_rank);
    attention_disconnect(&r->attention);
    return r->arena.used;
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward

static float *gradient(const Rank *r, int64_t offset) { return offset < 0 ? NULL : r->gradients + offset; }

// act->normed = norm(x + delta), leaving x + delta in `sum`; or norm(x) where delta is NULL.
static void norm_forward(Rank *r, Activations *act, void *sum, const void *x, const void *delta, int64_t scale,
                         int64_t bias) {
    const ModelConfig *c = &r->run->config;
    Device *d = &r->device;
    float epsilon = (float)c->norm_epsilon;
    if (c->architecture == ARCH_GPT2)
        d->layernorm_forward(d, act->normed, sum, act->mean, act->rstd, x, delta, weight(r, scale), weight(r, bias),
                             act->rows, c->dim, epsilon);
    else d->rmsnorm_forward(d, act->normed, sum, act->rstd, x, delta, weight(r, scale), act->rows, c->dim, epsilon);
}

static void activation_forward(Rank *r, Activations *act, const void *up) {
    const ModelConfig *c = &r->run->config;
    Device *d = &r->device;
    if (c->architecture == ARCH_GPT2) d->gelu_forward(d, act->activated, up, act->rows * c->ffn_dim);
    else d->swiglu_forward(d, act->activated, up, act->rows, c->ffn_dim);
}

// act->branch = down(activation(up(act->normed))), leaving up's output in `up`.
static void mlp_forward(Rank *r, Activations *act, void *up, const LayerOffsets *w) {
    const ModelConfig *c = &r->run->config;
    Device *d = &r->device;
    int64_t n = act->rows, C = c->dim, F = c->ffn_dim;
    if (c->architecture == ARCH_GPT2)
        d->matmul_gelu_forward(d, act->activated, up, act->normed, weight(r, w->up), weight(r, w->up_bias), n, C, F);
    else {
        d->matmul_forward(d, up, act->normed, weight(r, w->up), weight(r, w->up_bias), n, C, 2 * F);
        d->swiglu_forward(d, act->activated, up, n, F);
    }
    d->matmul_forward(d, act->branch, act->activated, weight(r, w->down), weight(r, w->down_bias), n, F, C);
}

// Rotates queries and keys, which stand side by side at the start of each row, by their positions' angles; or back.
static void rotate(Rank *r, const Activations *act, void *qkv, bool inverse) {
    const ModelConfig *c = &r->run->config;
    if (!config_is_rotary(c)) return;
    r->device.rotary(&r->device, qkv, act->cos_table, act->sin_table, act->rows, act->table_rows, qkv_width(c),
                     c->heads + c->kv_heads, c->head_dim, inverse);
}

// What the queries of a layer see.
static Visibility visibility_of(const Rank *r, int64_t layer) {
    int64_t T = r->run->options.context;
    Visibility visibility = {config_window(&r->run->config, layer, T), r->first_visible, T};
    return visibility;
}

// act->tokens, act->positions -> act->normed, the output of the final norm, which the classifier reads. With a cache:
// generation.
void forward(Rank *r, Activations *act, KeyValueCache *cache) {
    const ModelConfig *c = &r->run->config;
    const ParameterTable *table = &r->run->table;
    Device *d = &r->device;
    int64_t n = act->rows, C = c->dim, HD = c->heads * c->head_dim, U = up_width(c);

    void *residual = act->residual;
    d->embedding_forward(d, residual, act->tokens, act->positions, weight(r, table->token_table),
                         weight(r, table->position_table), n, C);
    for (int64_t l = 0; l < c->layers; l++) {
        const LayerOffsets *w = &table->layer[l];
        void *qkv = layer_part(d, act, act->qkv, l, n * qkv_width(c));
        void *attended = layer_part(d, act, act->attended, l, n * HD);
        void *middle = layer_part(d, act, act->middle, l, n * C);
        void *up = layer_part(d, act, act->up, l, n * U);
        float *log_sum_exp = act->per_layer ? act->log_sum_exp + l * n * c->heads : act->log_sum_exp;

        if (l == 0) {
            norm_forward(r, act, NULL, residual, NULL, w->norm1, w->norm1_bias);
        } else { // the layer before left its sum to this norm: residual[l] = middle[l-1] + its MLP's output
            void *middle_before = layer_part(d, act, act->middle, l - 1, n * C);
            residual = layer_part(d, act, act->residual, l, n * C);
            norm_forward(r, act, residual, middle_before, act->branch, w->norm1, w->norm1_bias);
        }
        d->matmul_forward(d, qkv, act->normed, weight(r, w->qkv), weight(r, w->qkv_bias), n, C, qkv_width(c));
        rotate(r, act, qkv, false);
        Heads heads = heads_of(r, qkv, n / act->sequences);
        if (cache != NULL) attend_cached(r, act, cache, l, attended, heads);
        else
            attention_forward(&r->attention, d, visibility_of(r, l), token_view(attended, HD, n / act->sequences), log_sum_exp, heads.q,
                              heads.k, heads.v);
        d->matmul_forward(d, act->branch, attended, weight(r, w->attention_out), weight(r, w->attention_out_bias), n,
                          HD, C);

        norm_forward(r, act, middle, residual, act->branch, w->norm2, w->norm2_bias);
        mlp_forward(r, act, up, w);
    }
    void *middle_last = layer_part(d, act, act->middle, c->layers - 1, n * C);
    norm_forward(r, act, layer_part(d, act, act->residual, c->layers, n * C), middle_last, act->branch,
                 table->final_norm, table->final_norm_bias);
    if (cache != NULL) cache->length += n;
}

// --dump: the logits of the rows at work, on the host. Waits for the device.
static void keep_logits(Rank *r, int64_t first, int64_t rows) {
    Device *d = &r->device;
    int64_t V = r->run->config.vocab_size;
    float *host = r->dump_logits + first * V;
    d->to_float(d, d->host_memory ? host : r->dump_room, r->act.logits, rows * V);
    if (!d->host_memory) d->download(d, host, r->dump_room, (size_t)(rows * V) * sizeof(float));
}

// The classifier, a few rows at a time. Adds the losses (nats) of the first `counted` rows to r->sums. With d_loss !=
// 0, the gradient of d_loss * (the sum of all losses) goes into the classifier's weights and, by the final norm's
// output, into r->grad.normed.
static void classify(Rank *r, float d_loss, int64_t counted) {
    const ModelConfig *c = &r->run->config;
    const ParameterTable *table = &r->run->table;
    Device *d = &r->device;
    Activations *act = &r->act;
    int64_t C = c->dim, V = c->vocab_size;
    for (int64_t first = 0; first < act->rows; first += act->classifier_rows) {
        int64_t rows = act->rows - first < act->classifier_rows ? act->rows - first : act->classifier_rows;
        void *normed = at(d, act->normed, first * C);
        d->matmul_forward(d, act->logits, normed, weight(r, table->classifier), NULL, rows, C, V);
        if (r->dump_logits != NULL) keep_logits(r, first, rows);
        d->classifier(d, act->logits, act->losses + first, act->targets + first, rows, V, d_loss);
        if (d_loss == 0) continue;
        d->matmul_backward(d, at(d, r->grad.normed, first * C), gradient(r, table->classifier), NULL, act->logits,
                           normed, weight(r, table->classifier), rows, C, V, false);
    }
    d->sum(d, &r->sums->losses, act->losses, counted);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward: the forward pass read from the bottom up

// r->grad.residual += the gradient that comes through norm(x) from r->grad.normed. Needs the statistics in act->mean,
// act->rstd.
static void norm_backward(Rank *r, const void *x, int64_t scale, int64_t bias) {
    const ModelConfig *c = &r->run->config;
    Device *d = &r->device;
    Activations *act = &r->act;
    if (c->architecture == ARCH_GPT2)
        d->layernorm_backward(d, r->grad.residual, gradient(r, scale), gradient(r, bias), r->grad.normed, x,
                              weight(r, scale), act->mean, act->rstd, act->rows, c->dim);
    else
        d->rmsnorm_backward(d, r->grad.residual, gradient(r, scale), r->grad.normed, x, weight(r, scale), act->rstd,
                            act->rows, c->dim);
}

// r->grad.up = the gradient that comes through down(activation(up)) from r->grad.residual. Needs act->activated.
static void mlp_backward(Rank *r, const void *up, const LayerOffsets *w) {
    const ModelConfig *c = &r->run->config;
    Device *d = &r->device;
    const ActivationGradients *g = &r->grad;
    const void *down = weight(r, w->down), *activated = r->act.activated;
    float *d_down = gradient(r, w->down), *d_bias = gradient(r, w->down_bias);
    int64_t n = r->act.rows, C = c->dim, F = c->ffn_dim;
    if (c->architecture == ARCH_GPT2) {
        d->matmul_gelu_backward(d, g->up, d_down, d_bias, g->residual, activated, up, down, n, F, C);
        return;
    }
    d->matmul_backward(d, g->activated, d_down, d_bias, g->residual, activated, down, n, F, C, false);
    d->swiglu_backward(d, g->up, g->activated, up, n, F);
}

// From r->grad.normed (set by classify) to every parameter's gradient, added to r->gradients.
static void backward(Rank *r) {
    const ModelConfig *c = &r->run->config;
    const ParameterTable *table = &r->run->table;
    Device *d = &r->device;
    Activations *act = &r->act;
    ActivationGradients *g = &r->grad;
    int64_t n = act->rows, C = c->dim, HD = c->heads * c->head_dim, U = up_width(c);
    int64_t tokens = n / act->sequences;

    d->zero(d, g->residual, n * C * d->element_bytes);
    norm_backward(r, at(d, act->residual, c->layers * n * C), table->final_norm, table->final_norm_bias);
    for (int64_t l = c->layers - 1; l >= 0; l--) {
        const LayerOffsets *w = &table->layer[l];
        void *residual = at(d, act->residual, l * n * C), *middle = at(d, act->middle, l * n * C);
        void *qkv = at(d, act->qkv, l * n * qkv_width(c)), *attended = at(d, act->attended, l * n * HD);
        void *up = at(d, act->up, l * n * U);

        // residual[l+1] = middle + down(activation(up(norm2(middle))))
        norm_forward(r, act, NULL, middle, NULL, w->norm2, w->norm2_bias);
        activation_forward(r, act, up);
        mlp_backward(r, up, w);
        d->matmul_backward(d, g->normed, gradient(r, w->up), gradient(r, w->up_bias), g->up, act->normed,
                           weight(r, w->up), n, C, U, false);
        norm_backward(r, middle, w->norm2, w->norm2_bias);

        // middle = residual[l] + projection(attention(rotary(qkv(norm1(residual[l])))))
        d->matmul_backward(d, g->attended, gradient(r, w->attention_out), gradient(r, w->attention_out_bias),
                           g->residual, attended, weight(r, w->attention_out), n, HD, C, false);
        Heads heads = heads_of(r, qkv, tokens), d_heads = heads_of(r, g->qkv, tokens);
        attention_backward(&r->attention, d, visibility_of(r, l), d_heads.q, d_heads.k, d_heads.v, heads.q, heads.k, heads.v,
                           token_view(attended, HD, tokens), act->log_sum_exp + l * n * c->heads,
                           token_view(g->attended, HD, tokens));
        rotate(r, act, g->qkv, true);
        norm_forward(r, act, NULL, residual, NULL, w->norm1, w->norm1_bias);
        d->matmul_backward(d, g->normed, gradient(r, w->qkv), gradient(r, w->qkv_bias), g->qkv, act->normed,
                           weight(r, w->qkv), n, C, qkv_width(c), false);
        norm_backward(r, residual, w->norm1, w->norm1_bias);
    }
    d->embedding_backward(d, gradient(r, table->token_table), gradient(r, table->position_table), g->residual,
                          act->tokens, act->positions, n, C, c->vocab_size);
}

// ---------------------------------------------------------------------------------------------------------------------
// The optimizer: gradients summed over all ranks, clipped, AdamW. Every rank updates its slice of the parameters and
// keeps only that slice's moments (Rajbhandari et al., ZeRO, 2020, stage 1); then everyone gathers everyone's slices.

static double learning_rate(const Options *o, int64_t step, int64_t steps) { // step counts from 1
    if (step <= o->warmup) return o->lr * (double)step / (double)o->warmup;
    if (strcmp(o->schedule, "constant") == 0) return o->lr;
    double floor_rate = o->lr * o->min_lr, decay_steps, done;
    if (strcmp(o->schedule, "wsd") == 0) { // warmup-stable-decay: straight down over the last part (Hu et al. 2024)
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
    float *mine = r->gradients + r->slice_begin;
    comm_reduce_scatter_sum(r->world_tensors, mine, r->gradients, r->slice_counts);
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

static size_t *slice_bytes(const Rank *r, size_t element_bytes) {
    size_t *bytes = (size_t *)malloc(comm_size(r->world) * sizeof(size_t));
    if (bytes != NULL)
        for (int i = 0; i < comm_size(r->world); i++) bytes[i] = (size_t)r->slice_counts[i] * element_bytes;
    return bytes;
}

void gather_slices(Rank *r, void *flat, size_t element_bytes) {
    size_t *bytes = slice_bytes(r, element_bytes);
    Error err;
    if (bytes == NULL) require(r, error_set(&err, "out of memory"), &err);
    comm_all_gather(r->world_tensors, flat, bytes);
    free(bytes);
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
    for (int i = 0; i < run->table.count; i++) {
        const Parameter *p = &run->table.parameter[i];
        int64_t begin = p->offset > r->slice_begin ? p->offset : r->slice_begin;
        int64_t end = p->offset + p->size < r->slice_end ? p->offset + p->size : r->slice_end;
        if (begin >= end) continue;
        adamw.weight_decay = p->decay ? (float)o->weight_decay : 0.0f;
        int64_t mine = begin - r->slice_begin;
        d->adamw(d, r->master + mine, weight(r, begin), r->exp_avg + mine, r->exp_avg_sq + mine, r->gradients + begin,
                 end - begin, &adamw);
    }
    comm_doing(r->world, "gathering of weights");
    gather_slices(r, r->weights, d->element_bytes);
}

// ---------------------------------------------------------------------------------------------------------------------
// One pass, one step, evaluation

typedef struct Validation {
    Loader loader;
    int64_t *window, windows;
} Validation;

static double tokens_in_step(const Run *run) { return (double)run->options.batch * (double)run->options.context; }

// Fills the micro-batch with the shards of `count` windows; missing sequences repeat the first one.
static bool load(Rank *r, const Loader *loader, const int64_t *window, int64_t count, Error *err) {
    Activations *act = &r->act;
    Device *d = &r->device;
    int64_t tokens = r->shard.tokens;
    int32_t *inputs = r->staging, *targets = inputs + tokens, *positions = targets + tokens;
    for (int64_t b = 0; b < act->sequences; b++) {
        if (!loader_read(loader, window[b < count ? b : 0], &r->shard, r->run->config.vocab_size, inputs, targets,
                         positions, err))
            return false;
        d->upload(d, act->tokens + b * tokens, inputs, tokens * sizeof(int32_t));
        d->upload(d, act->targets + b * tokens, targets, tokens * sizeof(int32_t));
        d->upload(d, act->positions + b * tokens, positions, tokens * sizeof(int32_t));
        if (r->first_visible == NULL) continue;
        int64_t T = r->run->options.context;
        if (!loader_read_documents(loader, window[b < count ? b : 0], r->run->config.vocab_size, r->run->document_end,
                                   r->documents, err))
            return false;
        d->upload(d, r->first_visible + b * T, r->documents, T * sizeof(int32_t));
        if (loader == &r->loader) r->visible_pairs += attention_pairs(&r->run->attention, r->documents);
    }
    return true;
}

// Forward and backward over this replica's share of a batch of windows: leaves this rank's gradients of the mean loss
// over all tokens of all ranks, and in r->sums its losses. False, on all ranks, where a window cannot be read.
static bool forward_backward(Rank *r, const int64_t *window, Error *err) {
    const Run *run = r->run;
    Device *d = &r->device;
    int64_t per_replica = run->options.batch / run->options.dp, micro = run->micro_batch;
    d->zero(d, r->gradients, run->table.total * sizeof(float));
    d->zero(d, r->sums, sizeof *r->sums);
    r->visible_pairs = 0;
    for (int64_t done = 0; done < per_replica; done += micro) {
        bool loaded = load(r, &r->loader, window + r->replica * per_replica + done, micro, err);
        if (!all_well(r, loaded, err)) return false;
        comm_doing(r->world, "forward pass");
        forward(r, &r->act, NULL);
        classify(r, (float)(1.0 / tokens_in_step(run)), r->act.rows);
        comm_doing(r->world, "backward pass");
        backward(r);
    }
    return true;
}

// Mean loss over windows of the validation split, into *loss; replicas share them out. False, on all ranks, where a
// window cannot be read.
static bool evaluate(Rank *r, const Validation *v, double *loss, Error *err) {
    int64_t micro = r->run->micro_batch, replicas = r->run->options.dp, most = (v->windows + replicas - 1) / replicas;
    int64_t begin = v->windows * r->replica / replicas, end = v->windows * (r->replica + 1) / replicas;
    comm_doing(r->world, "evaluation");
    r->device.zero(&r->device, r->sums, sizeof *r->sums);
    for (int64_t first = begin; first < begin + most; first += micro) { // as many passes on every replica
        int64_t count = end - first < micro ? end - first : micro;
        bool loaded = count <= 0 || load(r, &v->loader, v->window + first, count, err);
        if (!all_well(r, loaded, err)) return false;
        if (count <= 0) continue;
        forward(r, &r->act, NULL);
        classify(r, 0, count * r->shard.tokens);
    }
    *loss = read_sums(r).losses / ((double)v->windows * (double)r->run->options.context);
    return true;
}

// The mean loss of the tokens that were loaded last, with the weights as they are now. Collective.
double loss_of_last_tokens(Rank *r) {
    double tokens = (double)r->act.sequences * (double)r->run->options.context * (double)r->run->options.dp;
    r->device.zero(&r->device, r->sums, sizeof *r->sums);
    forward(r, &r->act, NULL);
    classify(r, 0, r->act.rows);
    return read_sums(r).losses / tokens;
}

// ---------------------------------------------------------------------------------------------------------------------
// The training loop, on every rank

static void open_loaders(Rank *r, Validation *v) {
    const Run *run = r->run;
    const Options *o = &run->options;
    Error err;
    require(r, loader_init(&r->loader, run->train, 0, run->train_end, o->context, (uint64_t)o->seed, true, &err), &err);
    r->loader.state = run->resumed.loader;
    require(
        r,
        loader_init(&v->loader, run->validation, run->validation_begin, run->validation_end, o->context, 0, true, &err),
        &err);
    int64_t all = loader_windows(&v->loader);
    v->windows = all < o->eval_windows ? all : o->eval_windows; // the same ones in every run, whatever its seed
    v->window = (int64_t *)malloc((size_t)v->windows * sizeof(int64_t));
    if (v->window == NULL) require(r, error_set(&err, "out of memory"), &err);
    loader_next(&v->loader, v->windows, v->window);
}

static void report_validation(const Run *run, const Validation *v, double loss) {
    printf("validation loss %.4f nats per token", loss);
    if (!tokens_are_bytes(run->validation)) {
        printf(", perplexity %.2f, over %lld windows of %lld tokens\n", exp(loss), (long long)v->windows,
               (long long)run->options.context);
        return;
    }
    printf(" = %.4f bits per byte, over %lld windows of %lld tokens\n", loss / log(2.0), (long long)v->windows,
           (long long)run->options.context);
    double bigram;
    Error err;
    if (!tokens_are_bytes(run->train)) return;
    if (!bigram_loss(run->train, 0, run->train_end, &v->loader, v->window, v->windows, &bigram, &err)) {
        fprintf(stderr, "train_gpt: no bigram baseline: %s\n", err.message);
        return;
    }
    printf("byte-bigram model %.4f nats per token = %.4f bits per byte, same training split, same windows\n", bigram,
           bigram / log(2.0));
}

// One optimizer step on the next windows. False, on all ranks, where its data cannot be read or its numbers are none:
// then nothing has changed, the place in the data included.
static bool step_once(Rank *r, Training *t, StepReport *report, Error *err) {
    const Run *run = r->run;
    const Options *o = &run->options;
    LoaderState before = r->loader.state;
    int64_t sent_before = attention_bytes_sent(&r->attention), step = t->step + 1;
    double start = now();
    bool dump_now = o->dump != NULL && step == run->resumed.step + 1;
    loader_next(&r->loader, o->batch, t->window);
    if (dump_now) want_dump(r);
    bool ok = forward_backward(r, t->window, err);
    if (ok) {
        sum_gradients(r);
        StepSums sums = read_sums(r);
        report->loss = sums.losses / tokens_in_step(run);
        report->gradient_norm = sqrt(sums.squares);
        if (dump_now) dump(r);
        t->diverged = !isfinite(report->loss) || !isfinite(report->gradient_norm);
        if (t->diverged)
            ok = error_set(err, "step %lld: the loss is %g and the gradient's norm %g; give a smaller --lr or --grad-clip",
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
    report->bytes_sent = attention_bytes_sent(&r->attention) - sent_before;
    return true;
}

// What follows from a step's time.
static void report_speed(const Rank *r, Training *t, StepReport *report) {
    const Run *run = r->run;
    double tokens = tokens_in_step(run), keys = visible_keys(&run->config, run->options.context);
    // With documents, those that the sequences of this replica had: others have theirs, and much the same.
    if (r->first_visible != NULL) keys = r->visible_pairs / (tokens / (double)run->options.dp);
    double flops = flops_per_token(&run->config, &run->table, keys);
    double usual = t->usual_seconds == 0 ? report->seconds : 0.9 * t->usual_seconds + 0.1 * report->seconds;
    t->usual_seconds = usual;
    report->tokens_per_second = tokens / report->seconds;
    report->machine_fraction = machine_share(tokens * flops / report->seconds, &t->machine_rate);
    report->fraction_of = r->device.host_memory ? NULL : "MFU"; // model FLOPs utilization, causal
    report->seconds_left = (double)(run->steps - t->step) * usual;
}

// The validation loss, into *t. False, on all ranks, where it is no number or cannot be had.
static bool validate(Rank *r, const Validation *v, Training *t, Error *err) {
    if (!evaluate(r, v, &t->validation_loss, err)) return false;
    if (isfinite(t->validation_loss)) return true;
    if (t->step > r->run->resumed.step)
        return error_set(err, "step %lld: the update has made the validation loss %g; give a smaller --lr or --grad-clip",
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
    if (o->sample == NULL && !validate(r, v, t, &err)) end_saving(r, t, &err);
    if (o->out != NULL && t->saved < 0) save(r, t, true);
}

static void train(Rank *r, Reporter *reporter) {
    const Run *run = r->run;
    const Options *o = &run->options;
    Validation validation;
    Error err;
    Training t = {.step = run->resumed.step, .saved = -1, .saved_at = now(), .validation_loss = NAN};
    t.machine_rate = run->devices.matrix_rate * (run->processes ? comm_size(r->world) : 1);
    if (run->resume_from[0] != '\0') t.saved = t.step;
    open_loaders(r, &validation);
    if (leader(r)) require(r, reporter_open(reporter, o->log, o->resume, t.step, &err), &err);
    t.window = (int64_t *)malloc((size_t)o->batch * sizeof(int64_t));
    if (t.window == NULL) require(r, error_set(&err, "out of memory"), &err);
    if (leader(r) || run->processes) signals_are_requests(leader(r) ? answer_to_signals(run) : NULL);

    Asked asked = {0, false};
    if (t.step >= run->steps) finish_untrained(r, &validation, &t);
    while (t.step < run->steps && asked.stop == 0) {
        StepReport report = {.validation_loss = NAN};
        if (!step_once(r, &t, &report, &err)) end_saving(r, &t, &err);
        asked = ask_all(r, &t);
        bool last = t.step == run->steps || asked.stop != 0;
        if (t.step == run->steps || (o->eval_every > 0 && t.step % o->eval_every == 0)) {
            if (!validate(r, &validation, &t, &err)) end_saving(r, &t, &err);
            report.validation_loss = t.validation_loss;
        }
        if (o->out != NULL && (last || asked.save || (o->save_every > 0 && t.step % o->save_every == 0)))
            save(r, &t, last);
        report_speed(r, &t, &report);
        if (leader(r)) reporter_step(reporter, &report);
    }
    signals_end_at_once();
    if (leader(r)) {
        reporter_line_end(reporter);
        if (asked.stop != 0)
            printf("stopped by signal %d after step %lld%s%s\n", asked.stop, (long long)t.step,
                   o->out != NULL ? ", saved in " : ", not saved: no --out was given", o->out != NULL ? o->out : "");
        else if (isfinite(t.validation_loss)) report_validation(run, &validation, t.validation_loss);
    }
    free(t.window);
    free(validation.window);
}

// ---------------------------------------------------------------------------------------------------------------------
// A rank's life: memory, groups, weights, training

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
    float *piece = (float *)malloc((size_t)(end - begin < most ? end - begin + 1 : most) * sizeof(float));
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
    r->device.to_storage(&r->device, weight(r, r->slice_begin), r->master, r->slice_end - r->slice_begin);
    comm_doing(r->world, "gathering of the first weights");
    gather_slices(r, r->weights, r->device.element_bytes);
    if (!resumed) return;
    fill_slice(r, from, CHECKPOINT_EXP_AVG, r->exp_avg);
    fill_slice(r, from, CHECKPOINT_EXP_AVG_SQ, r->exp_avg_sq);
}

// Cosines and sines of this rank's positions, which are the same for every sequence.
static bool fill_rotary_tables(Rank *r, Error *err) {
    const ModelConfig *c = &r->run->config;
    if (!config_is_rotary(c)) return true;
    int64_t tokens = r->shard.tokens, elements = tokens * (c->head_dim / 2), n = 0;
    float *tables = (float *)malloc((size_t)(2 * elements) * sizeof(float));
    if (tables == NULL) return error_set(err, "out of memory for the rotary tables of %lld tokens", (long long)tokens);
    for (int i = 0; i < r->shard.count; i++)
        for (int64_t t = 0; t < r->shard.chunk[i].length; t++) r->staging[n++] = (int32_t)(r->shard.chunk[i].start + t);
    rope_tables(c, r->staging, tokens, tables, tables + elements);
    r->device.upload(&r->device, r->act.cos_table, tables, (size_t)elements * sizeof(float));
    r->device.upload(&r->device, r->act.sin_table, tables + elements, (size_t)elements * sizeof(float));
    free(tables);
    return true;
}

static bool set_up_rank(Rank *r, Error *err) {
    int ranks = comm_size(r->world), me = comm_rank(r->world);
    size_t bytes = bytes_of_rank(r, me);
    memset(&r->arena, 0, sizeof r->arena);
    r->arena.base = (char *)r->device.allocate(&r->device, bytes, err);
    r->arena.capacity = bytes;
    if (r->arena.base == NULL) return false;
    lay_out_rank(r, me);
    // NCCL may not be installed and cannot have two ranks on one GPU; copies from device to device cannot leave the
    // process. Within one, attention's messages are copies all the same: they leave the multiprocessors to the kernels.
    const CommCollectives *nccl = r->device.collectives;
    bool processes = r->run->processes;
    bool collectives = processes || (nccl != NULL && nccl->available() && !r->run->devices.shared);
    comm_doing(r->world, "start of the groups of ranks");
    r->sequence = comm_split(r->world, r->replica, me);
    r->world_tensors = comm_on_device(r->world, &r->device, collectives);
    if (collectives && !processes) r->sequence_tensors = comm_on_device(r->sequence, &r->device, false);
    else if (r->run->options.dp > 1) r->sequence_tensors = comm_split(r->world_tensors, r->replica, me);
    else r->sequence_tensors = r->world_tensors; // the same ranks
    attention_connect(&r->attention, r->sequence_tensors);
    r->slice_counts = (int64_t *)malloc((size_t)ranks * sizeof(int64_t));
    r->staging = (int32_t *)malloc((size_t)(3 * r->shard.tokens) * sizeof(int32_t));
    if (r->run->options.document_mask)
        r->documents = (int32_t *)malloc((size_t)r->run->options.context * sizeof(int32_t));
    if (r->slice_counts == NULL || r->staging == NULL || (r->run->options.document_mask && r->documents == NULL))
        return error_set(err, "out of memory");
    for (int i = 0; i < ranks; i++)
        r->slice_counts[i] =
            slice_start(r->run->table.total, i + 1, ranks) - slice_start(r->run->table.total, i, ranks);
    return fill_rotary_tables(r, err);
}

static void leave_groups(Rank *r) {
    r->device.synchronize(&r->device); // what others copy from here is part of our order too
    attention_disconnect(&r->attention);
    if (r->sequence_tensors != r->world_tensors) comm_free(r->sequence_tensors);
    comm_free(r->world_tensors);
    comm_free(r->sequence);
}

static int threads_per_rank(const Run *run) {
    int threads = run->threads / run->ranks_here;
    return threads > 1 ? threads : 1;
}

// What the ranks of a process are started with.
typedef struct Job {
    const Run *run;
    int exit_status; // left by rank 0
} Job;

static void rank_main(Comm *world, void *argument) {
    Job *job = (Job *)argument;
    const Run *run = job->run;
    Rank *r = (Rank *)calloc(1, sizeof(Rank));
    Reporter reporter;
    Error err;
    if (r == NULL) {
        error_set(&err, "out of memory");
        comm_fail(world, &err);
    }
    r->run = run;
    r->world = world;
    if (run->processes) require(r, same_run(run, world, &err), &err);
    int rank_here = run->processes ? 0 : comm_rank(world);
    require(r, devices_open(&run->devices, rank_here, threads_per_rank(run), &r->device, &err), &err);
    require(r, check_tokens(run, world, threads_per_rank(run), &err), &err);
    require(r, set_up_rank(r, &err), &err);
    fill_weights(r);
    train(r, &reporter);
    leave_groups(r);
    if (leader(r)) {
        if (!reporter_close(&reporter)) job->exit_status = EXIT_RUNTIME;
        if (run->prompt != NULL && signals_stop() == 0) require(r, print_sample(r, &err), &err);
    }
    r->device.release(&r->device, r->arena.base, r->arena.capacity);
    r->device.close(&r->device);
    kept_files_free(r->kept);
    free(r->slice_counts);
    free(r->staging);
    free(r->documents);
    free(r);
}

// ---------------------------------------------------------------------------------------------------------------------
// The process: options, model, data, plan; then the ranks

// Adds up the memory of this process; prints the plan where asked, and refuses what cannot fit. Leaves rank 0's list of
// buffers in *first. Opens no device: only the size of an element is needed to add up.
static bool plan(const Run *run, bool speaks, Arena *first, Error *err) {
    const Options *o = &run->options;
    Rank *r = (Rank *)calloc(1, sizeof(Rank));
    size_t *bytes = (size_t *)calloc((size_t)run->ranks_here, sizeof(size_t)), all = 0, generator = 0;
    bool ok = r != NULL && bytes != NULL;
    if (ok) {
        r->run = run;
        r->device.element_bytes = run->devices.element_bytes;
        generator = bytes_of_generator(run, &r->device);
        bool messages_on_device = strcmp(run->devices.name, "cpu") != 0 && o->sp * o->dp > 1;
        for (int rank = run->ranks_here - 1; rank >= 0; rank--) {
            bytes_of_rank(r, rank);
            // What is not laid out, but taken by those who use it.
            if (messages_on_device) arena_take(&r->arena, "sums over ranks", COMM_STAGING_BYTES);
            arena_take(&r->arena, "device's own", device_own_bytes(run->devices.name, r->act.rows, run->config.dim));
            bytes[rank] = r->arena.used;
            all += bytes[rank];
        }
        *first = r->arena;
        DevicesNeed tightest = devices_need(&run->devices, bytes, generator);
        bool fits = tightest.have < 0 || tightest.need < tightest.have;
        if (speaks && (o->plan || !fits))
            print_plan(stdout, &run->config, &run->table, &run->attention, first, all, o->batch,
                       o->batch / o->dp / run->micro_batch);
        if (speaks && o->plan && tightest.have < 0)
            printf(
                "memory of a GPU: not known, there is none here; the one to run on needs at least what a rank takes\n");
        if (!fits && !o->plan) ok = devices_too_small(&tightest, o->sample_tokens, err);
    } else {
        error_set(err, "out of memory");
    }
    free(r);
    free(bytes);
    return ok;
}

// Everything up to the ranks' start. Only one of several processes speaks.
static bool prepare(Run *run, bool speaks, Error *err) {
    Arena arena;
    if (!run_open(run, speaks, err)) return false;
    if (speaks) options_print_command(&run->options, stdout);
    output_flush();
    if (!plan(run, speaks, &arena, err)) return false;
    if (run->options.plan) return true;
    int busy = cpu_count(), ranks = run->ranks_here; // of the processors that will work; every rank has a thread
    if (busy > run->threads && busy > ranks) busy = run->threads > ranks ? run->threads : ranks;
    // By the process that reports, while the others wait for it: at the same time they would measure each other.
    if (speaks && !devices_measure(&run->devices, busy, err)) return false;
    if (speaks) run_print_header(run, stdout, &arena);
    output_flush();
    return true;
}

int main(int argc, char **argv) {
    static Run run; // shared by the ranks; too large for some stacks
    Job job = {&run, 0};
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
        if (prepare(&run, speaks, &err) && !run.options.plan) {
            CommLaunch launch = {COMM_AUTO, (int)(run.options.sp * run.options.dp), run.options.timeout};
            comm_engine_from_name(run.options.engine, &launch.engine);
            comm_run(&launch, rank_main, &job, &err);
        }
    }
    if (err.exit_code != 0) {
        if (!speaks) sleep(1); // process 0 says what all of them find, and ends all; else this one has to
        die(&err);
    }
    run_close(&run);
    if (signals_stop() != 0) return 128 + signals_stop();
    return output_flush() ? job.exit_status : EXIT_RUNTIME;
}
