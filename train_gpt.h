// What a rank holds: the memory that the story in train_gpt.cu is about, and the few functions of it that generation
// (generation.c) shares. The letters of the dimensions are explained there.
#ifndef TRAIN_GPT_H
#define TRAIN_GPT_H

#include "attention/attention.h"
#include "base/arena.h"
#include "comm/comm.h"
#include "dataloader/loader.h"
#include "layers/device.h"
#include "model/parameters.h"
#include "terminal/run.h"

// The results of the forward pass that the backward pass needs, and buffers for both. Each entry marked (L, ...) has
// one part a layer when training and one part in all when only evaluating one token after the other (generation).
// Norms' outputs and the MLP's activation are cheap to compute again, so the backward pass does that instead of keeping
// them.
typedef struct Activations {
    int64_t rows, sequences; // n, B
    bool per_layer;
    int32_t *tokens, *targets, *positions; // (n)
    float *cos_table, *sin_table;          // (Tl, D/2) angles of this rank's positions
    int64_t table_rows;                    // Tl
    void *residual;                        // (L+1, n, C) what enters each layer, then the final norm
    void *middle;                          // (L, n, C) the residual between attention and MLP
    void *qkv;                             // (L, n, (H + 2 KV) D) after rotary
    void *attended;                        // (L, n, H D)
    float *log_sum_exp;                    // (L, B, H, Tl)
    void *up;                              // (L, n, U) before the activation; U = F, or 2F for gate and up
    float *mean, *rstd;                    // (n) of the norm at work
    void *normed;                          // (n, C)
    void *branch;                          // (n, C) what attention or the MLP adds to the residual
    void *activated;                       // (n, F)
    void *logits;                          // (classifier_rows, V)
    int64_t classifier_rows;               // logits exist only for so many rows at a time
    float *losses;                         // (n)
} Activations;

// Gradients on their way back through the layers; the last pass's are overwritten by the next.
typedef struct ActivationGradients {
    void *residual;  // (n, C)
    void *normed;    // (n, C)
    void *qkv;       // (n, (H + 2 KV) D)
    void *attended;  // (n, H D)
    void *up;        // (n, U)
    void *activated; // (n, F); llama: GPT-2's goes through GELU on its way out of the product
} ActivationGradients;

// The two sums of a step that the host reads. They stand side by side on the device, to come in one download.
typedef struct StepSums {
    double losses;  // nats, of this rank's tokens
    double squares; // of this rank's slice of the summed gradient
} StepSums;

// Keys and values of all tokens so far, for generation.
typedef struct KeyValueCache {
    void *k, *v; // (L, capacity, KV D)
    int64_t capacity, length;
    int32_t *first; // (capacity) the first token that each one sees; NULL without --document-mask
    float *max, *sum; // of the softmax, for the rows at work
} KeyValueCache;

typedef struct Rank {
    const Run *run;
    Device device;
    Comm *world, *sequence;                 // all ranks; the P ranks that share my sequences. On the host
    Comm *world_tensors, *sequence_tensors; // the same ranks, for what lies in the device's memory
    int replica;                            // which of the --dp
    Arena arena;
    Attention attention;
    Shard shard;                    // my tokens of a sequence
    int64_t slice_begin, slice_end; // the part of the flat parameters whose optimizer state is mine
    int64_t *slice_counts;          // (world) sizes of all ranks' slices
    void *weights;                  // (total) storage type
    float *master;                  // (slice) fp32 weights; on the CPU part of `weights`
    float *gradients;               // (total)
    float *exp_avg, *exp_avg_sq;    // (slice) AdamW's moments
    Activations act;
    ActivationGradients grad;
    StepSums *sums; // on the device
    Loader loader;
    int32_t *first_visible; // (B, T) the first token that each one of a sequence sees; NULL without --document-mask
    int32_t *documents;     // host: (T) the same of one sequence, on its way there
    double visible_pairs;   // of a query and a key, in this step's sequences so far, all layers; 0 without documents
    int32_t *staging;   // host: (3, Tl) inputs, targets and positions on their way to the device
    KeptFiles *kept;    // rank 0: what checkpoints take along from the model's folder; NULL: nothing
    float *host_vector; // host: (total) on its way to a file, NULL at other times
    float *dump_logits; // host: (n, V) of the pass at work, NULL: not wanted
    float *dump_room;   // (classifier_rows, V) for these, where the device's memory is not the host's
} Rank;

static inline int64_t qkv_width(const ModelConfig *c) { return (c->heads + 2 * c->kv_heads) * c->head_dim; }
static inline int64_t up_width(const ModelConfig *c) {
    return c->architecture == ARCH_GPT2 ? c->ffn_dim : 2 * c->ffn_dim;
}

static inline void *weight(const Rank *r, int64_t offset) {
    return offset < 0 ? NULL : at(&r->device, r->weights, offset);
}

// Heads side by side in rows of `width` elements, `tokens` rows to a sequence.
static inline TokenView token_view(void *data, int64_t width, int64_t tokens) {
    TokenView view = {data, tokens * width, width};
    return view;
}

// The queries, keys and values inside a fused (n, (H + 2 KV) D) buffer.
typedef struct Heads {
    TokenView q, k, v;
} Heads;

static inline Heads heads_of(const Rank *r, void *qkv, int64_t tokens) {
    const ModelConfig *c = &r->run->config;
    int64_t width = qkv_width(c), q_width = c->heads * c->head_dim, kv_width = c->kv_heads * c->head_dim;
    Heads heads = {token_view(qkv, width, tokens), token_view(at(&r->device, qkv, q_width), width, tokens),
                   token_view(at(&r->device, qkv, q_width + kv_width), width, tokens)};
    return heads;
}

// Activations of `sequences` sequences in `arena`; per_layer: kept for the backward pass.
void lay_out_activations(Activations *a, const ModelConfig *c, const Device *device, Arena *arena, int64_t sequences,
                         int64_t tokens_per_sequence, bool per_layer);
// act->tokens, act->positions -> act->normed, the output of the final norm, which the classifier reads. With a cache:
// generation.
void forward(Rank *r, Activations *act, KeyValueCache *cache);
// The mean loss (nats per token) of the tokens that were loaded last, with the weights as they are now. Collective.
double loss_of_last_tokens(Rank *r);
// Every rank's slice of a flat vector (total, of elements of that size) to every rank. Collective.
void gather_slices(Rank *r, void *flat, size_t element_bytes);

// ---- generation.c ---------------------------------------------------------------------------------------------------

// The new rows' keys and values join the cache, and the new queries attend to all of it.
void attend_cached(Rank *r, Activations *act, KeyValueCache *cache, int64_t layer, void *attended, Heads new_rows);
// Bytes of the device that generation takes beside the ranks' memory.
size_t bytes_of_generator(const Run *run, const Device *device);
// Continues run->prompt and prints it. By one rank alone, when the others have finished.
bool print_sample(Rank *r, Error *err);

#endif
