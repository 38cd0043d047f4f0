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
    Attention *attention; // over the ranks that share a sequence, where some layer uses it
    Comm *sequence;       // these ranks, for what other mixers send of the device's memory; NULL: there are none
    CommRequest *requests; // host: room for MODEL_REQUESTS(P) messages of the mixer at work
    int64_t context;      // T
    int ranks, rank;      // P ranks share a sequence; which of them I am
    Shard shard;          // my tokens of a sequence
    Recompute recompute;
    void *weights;        // (total) storage type
    float *gradients;     // (total)
} Model;

// Messages under way that a mixer may have at once.
#define MODEL_REQUESTS(ranks) (4 * (size_t)(ranks))

// Memory of one layer. What is not kept is the same for all layers.
typedef struct LayerMemory {
    void *input;  // (n, C) the residual stream that enters
    void *middle; // (n, C) between the mixers
    MixerMemory tokens, channels;
    MixerMemory cache; // generation: of the tokens before
} LayerMemory;

// Generation: where it is. One sequence; its tokens come in some at a time, the pass's rows, by one rank alone.
typedef struct Generation {
    int64_t capacity, length; // tokens that there may be; those before the pass's
    int32_t *first;           // (capacity) the first token that each one sees; NULL: the first of all
} Generation;

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
    MixerMemory tokens_room[CONFIG_MAX_MIXERS], channels_room; // the former by entry (LayerKind)
    Generation *generation;                // NULL: the pass is of whole sequences
} Pass;

// Lays out a pass over size->rows rows (size->layer is not read). training: with all that backward needs; generating:
// with what layers keep of the tokens before. Only the list of layers is of the host's memory (pass_free).
typedef enum PassKind { PASS_TRAINING, PASS_GENERATING } PassKind;
void pass_lay_out(Pass *pass, MixerSize size, int64_t padded_vocab_size, Arena *arena, PassKind kind,
                  Recompute recompute);
void pass_free(Pass *pass);

// The token mixer of layer l, at work on this pass.
Mixing token_mixing(Model *model, Pass *pass, int64_t l);
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
