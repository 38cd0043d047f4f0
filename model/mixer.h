// What a layer is made of: a token mixer, a channel mixer, and the norm before each. All three are data, chosen per
// layer by the configuration; whoever runs, plans or counts a layer asks them and knows none by name.
//
// The template is that of Hè and Kabic (arXiv 2302.06218): Y = P(X), P an operator over positions (attention, an MLP over
// positions, a convolution, ...); between two of them, channels are mixed token by token. A kind states each thing
// once: its parameters, its memory, forward, backward, its operations and the bytes that it sends.
//
// Forward comes in two parts, so that a layer can be replayed from its input alone (--recompute): `mix` fills what is
// kept for backward, `output` makes of that what is added to the residual stream. A replay needs only `mix`.
#ifndef MODEL_MIXER_H
#define MODEL_MIXER_H

#include "attention/attention.h"
#include "base/arena.h"
#include "layers/device.h"
#include "model/config.h"
#include "model/parameters.h"

struct Model; // model/model.h
struct Pass;

enum { MIXER_BUFFERS = 8, TOKEN_MIXERS_MOST = 16 };

// Buffers of a mixer, in an order of its own.
typedef struct MixerMemory {
    void *buffer[MIXER_BUFFERS];
} MixerMemory;

// The rows that a pass works on: `rows` = n tokens of `sequences` sequences.
typedef struct MixerSize {
    const ModelConfig *config;
    int64_t rows, sequences;
    size_t element_bytes; // of storage
} MixerSize;

// One layer's mixer at work.
typedef struct Mixing {
    struct Model *model;
    struct Pass *pass;
    int64_t layer;
    const int64_t *tensor; // its tensors' offsets in the flat vectors; -1: it has none of this kind
    MixerMemory kept;      // of this layer, or where layers are replayed, of all
    MixerMemory room;      // of all layers of this kind
} Mixing;

typedef struct Mixer {
    const char *name;
    // Adds the tensors of one layer to the list; their offsets go into tensor[MIXER_TENSORS].
    void (*parameters)(ParameterList *list, int64_t layer, int64_t *tensor);
    // What mix leaves for output and backward. NULL: nothing.
    void (*lay_out_kept)(const MixerSize *size, MixerMemory *kept, Arena *arena);
    // What it works in; `backward`: also what backward needs. NULL: nothing.
    void (*lay_out_room)(const MixerSize *size, bool backward, MixerMemory *room, Arena *arena);
    void (*mix)(const Mixing *m);      // pass->normed (n, C), which stays as it is, -> kept
    void (*output)(const Mixing *m);   // right after mix: kept -> pass->branch (n, C)
    // pass->d_residual, the gradient of branch, -> pass->d_normed, that of normed; adds the gradients of its tensors.
    // pass->normed is what mix was given.
    void (*backward)(const Mixing *m);
    // Operations per token of one layer's forward and backward beside 6 for each element of its matrices. NULL: none.
    double (*flops)(const ModelConfig *config, int64_t layer, int64_t context);
    // Bytes that rank `rank` sends for one layer and pass. `sharding`: context, ranks and exchange, resolved. NULL: none.
    AttentionBytes (*bytes_sent)(const ModelConfig *config, int64_t layer, const AttentionConfig *sharding, int rank);
    bool generates; // mix serves pass->cache, token after token
} Mixer;

// All token mixers, in the order in which ModelConfig numbers them; NULL ends the list. Whoever adds one adds it here
// (mixer/mixers.c).
extern const Mixer *const token_mixers[];
// GPT-2's MLP with GELU, and Llama's with SwiGLU.
extern const Mixer mlp_gelu, mlp_swiglu;

// A norm that takes in what is added to the residual stream on its way (see layers/device.h).
typedef struct Norm {
    const char *name;
    bool biased;
    // pass->normed = norm(x + delta), leaving x + delta in `sum`; delta NULL: norm(x), and sum is not written.
    void (*forward)(const struct Model *, struct Pass *, void *sum, const void *x, const void *delta, NormTensors);
    // pass->d_residual += the gradient that comes through norm(x) from pass->d_normed. After forward of the same x.
    void (*backward)(const struct Model *, struct Pass *, const void *x, NormTensors);
} Norm;
extern const Norm norm_layer, norm_rms;

typedef struct LayerKind {
    int number; // of the token mixer
    const Mixer *tokens, *channels;
    const Norm *norm;
} LayerKind;
LayerKind layer_kind(const ModelConfig *config, int64_t layer);
const Norm *final_norm(const ModelConfig *config);

// The number of the token mixer with this name in token_mixers; -1: none.
int token_mixer_named(const char *name, size_t length);

#endif
