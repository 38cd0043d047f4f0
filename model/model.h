// What a rank holds of the model while it runs, and a pass over some of its rows, layer by layer.
//
// Dimensions as in train_gpt.cu: n = B Tl rows, C width, V vocabulary, Vp with padding, L layers, D size of a head.
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include "model/mixer.h"

// What backward works out again instead of keeping it: nothing but norms and activations; also what the MLP's first
// product gives; or whole layers, of which only their input is kept. The bits do not depend on it.
typedef enum Recompute { RECOMPUTE_NONE, RECOMPUTE_MLP, RECOMPUTE_BLOCK } Recompute;

typedef struct Model {
    const ModelConfig *config;
    const ParameterTable *table;
    Device *device;
    Attention *attention; // over the ranks that share a sequence
    Comm *sequence;       // these ranks, for what lies in the device's memory
    Shard shard;          // my tokens of a sequence
    Recompute recompute;
    void *weights;        // (total) storage type
    float *gradients;     // (total)
} Model;

// Memory of one layer. What is not kept is the same for all layers.
typedef struct LayerMemory {
    void *input;  // (n, C) the residual stream that enters
    void *middle; // (n, C) between the mixers
    MixerMemory tokens, channels;
} LayerMemory;

// Keys and values of all tokens so far, for generation.
typedef struct KeyValueCache {
    void *k, *v; // (L, capacity, KV D)
    int64_t capacity, length;
    int32_t *first;   // (capacity) the first token that each one sees; NULL: the first of all
    float *max, *sum; // (PREFILL rows, H) of the softmax, for the rows at work
} KeyValueCache;

// A pass over n rows: its inputs, what goes from layer to layer, what is kept for backward, and on the way back the
// gradients, which the next pass overwrites. Norms' outputs and activations are cheap to work out again, and never kept.
typedef struct Pass {
    int64_t rows, sequences; // n, B
    int32_t *tokens, *targets, *positions; // (n)
    float *cos_table, *sin_table;          // (Tl, D/2) angles of this rank's positions
    int64_t table_rows;                    // Tl
    int32_t *first_visible;                // (B, T) the first token that each one of a sequence sees; NULL: the first
    int32_t *least_visible;                // host: (T) the least of these over the sequences; NULL as well
    LayerMemory *layer;                    // (L), on the host
    void *last;                            // (n, C) what enters the final norm
    float *mean, *rstd;                    // (n) of the norm at work
    void *normed;                          // (n, C)
    void *branch;                          // (n, C) what a mixer adds to the residual stream
    void *logits;                          // (classifier_rows, Vp): logits exist only for so many rows at a time
    int64_t classifier_rows;
    float *losses;                         // (n)
    void *d_residual, *d_normed;           // (n, C)
    MixerMemory tokens_room[TOKEN_MIXERS_MOST], channels_room; // the former by number
    KeyValueCache *cache;                  // generation: the tokens before these; NULL: the pass is of whole sequences
} Pass;

// Lays out a pass over `sequences` sequences of `tokens` tokens here. training: with all that backward needs. Only the
// list of layers is of the host's memory (pass_free).
void pass_lay_out(Pass *pass, const ModelConfig *config, int64_t padded_vocab_size, size_t element_bytes, Arena *arena,
                  int64_t sequences, int64_t tokens, bool training, Recompute recompute);
void pass_free(Pass *pass);

// pass->normed, the first norm of layer[l].input, -> pass->branch, to be added to layer[l].middle.
void block_forward(Model *model, Pass *pass, int64_t l);
// From the gradient of what leaves layer l to that of what entered it, in pass->d_residual; adds the parameters'.
void block_backward(Model *model, Pass *pass, int64_t l);

// Floating-point operations of one token's training step: 6 for each parameter in matrix products (2 forward, 4
// backward), and what the mixers state. No recomputation is counted.
double model_flops(const ModelConfig *config, const ParameterTable *table, int64_t context);

static inline void *weight(const Model *model, int64_t offset) {
    return offset < 0 ? NULL : at(model->device, model->weights, offset);
}
static inline float *gradient(const Model *model, int64_t offset) {
    return offset < 0 ? NULL : model->gradients + offset;
}

#endif
