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

struct MixerKernels; // mixer/kernels.h

enum { MIXER_BUFFERS = 16 };

// Buffers of a mixer, in an order of its own.
typedef struct MixerMemory {
    void *buffer[MIXER_BUFFERS];
} MixerMemory;

// One layer, and the rows that a pass works on: `rows` = n tokens of `sequences` sequences.
typedef struct MixerSize {
    const ModelConfig *config;
    int64_t layer;
    int64_t rows, sequences;
    size_t element_bytes;               // of storage
    int64_t context;                    // T, tokens of a sequence over all ranks; of generation, as many as there may be
    int ranks, rank;                    // P ranks share a sequence, and which of them this is
    bool documents;                     // mixing stops at the ends of documents
    const struct MixerKernels *kernels; // the device's; NULL where it is not at hand (planning)
} MixerSize;

// What else decides whether a mixer can serve.
typedef struct MixerUse {
    MixerSize size;
    DeviceKind device;
    const char *option; // the text of this layer's choice, "conv:gated", for messages
} MixerUse;

// One layer's mixer at work.
typedef struct Mixing {
    struct Model *model;
    struct Pass *pass;
    int64_t layer;
    MixerChoice choice;    // of the token mixer
    const int64_t *tensor; // its tensors' offsets in the flat vectors; -1: it has none of this kind
    MixerMemory kept;      // of this layer, or where layers are replayed, of all
    MixerMemory room;      // of all layers of this kind
    MixerMemory cache;     // generation: what this layer keeps of the tokens before (pass->generation)
} Mixing;

typedef struct Mixer {
    const char *name;
    // Options of a token mixer in --mixer, as in "conv:gated" and "dilated:2048,4": the one word that it knows (NULL:
    // none), and how many numbers it takes. What they mean, and which are sound, `check` says.
    const char *word;
    int least_values, most_values;
    // Whether it can serve this model so; else a usage error that begins with use->option. NULL: always.
    bool (*check)(const MixerUse *use, Error *err);
    // Adds the tensors of one layer to the list; their offsets go into tensor[MIXER_TENSORS].
    void (*parameters)(ParameterList *list, int64_t layer, int64_t *tensor);
    // What mix leaves for output and backward. NULL: nothing.
    void (*lay_out_kept)(const MixerSize *size, MixerMemory *kept, Arena *arena);
    // What it works in; `backward`: also what backward needs. NULL: nothing.
    void (*lay_out_room)(const MixerSize *size, bool backward, MixerMemory *room, Arena *arena);
    // What one layer keeps of up to size->context tokens while it generates. NULL: it needs nothing.
    void (*lay_out_cache)(const MixerSize *size, MixerMemory *cache, Arena *arena);
    // Bytes of Device.scratch that its calls need beside what layers do, on a device of so many threads. NULL: none.
    size_t (*scratch_bytes)(const MixerSize *size, int threads);
    void (*mix)(const Mixing *m);      // pass->normed (n, C), which stays as it is, -> kept
    void (*output)(const Mixing *m);   // right after mix: kept -> pass->branch (n, C)
    // pass->d_residual, the gradient of branch, -> pass->d_normed, that of normed; adds the gradients of its tensors.
    // pass->normed is what mix was given.
    void (*backward)(const Mixing *m);
    // Operations per token of one layer's forward and backward beside 6 for each element of its matrices. NULL: none.
    double (*flops)(const ModelConfig *config, int64_t layer, int64_t context);
    // Bytes that rank `rank` sends for one layer and pass. `sharding`: context, ranks and exchange, resolved. NULL: none.
    AttentionBytes (*bytes_sent)(const ModelConfig *config, int64_t layer, const AttentionConfig *sharding, int rank);
    bool attends; // works by model->attention
    bool bounded; // its weights are of config->max_positions positions, and it serves no others
    bool scaled;  // what it computes depends on config->max_positions, but it serves more positions than these
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
    int entry; // of the pattern: the first that is the same token mixer with the same options; what layers share is its
    MixerChoice choice;
    const Mixer *tokens, *channels;
    const Norm *norm;
} LayerKind;
LayerKind layer_kind(const ModelConfig *config, int64_t layer);
const Norm *final_norm(const ModelConfig *config);

// ---- the pattern of --mixer -----------------------------------------------------------------------------------------

enum { MIXERS_TEXT = 512 };
// "conv:gated,dilated:2048,4,attention" into config->mixer. `what` begins the line of an error.
bool mixers_read(ModelConfig *config, const char *list, const char *what, Error *err);
// One choice as text, and the whole pattern; as mixers_read reads them.
void mixer_write(const MixerChoice *choice, char text[MIXERS_TEXT]);
void mixers_write(const ModelConfig *config, char text[MIXERS_TEXT]);
// Whether some layer's token mixer is `mixer`.
bool config_has_mixer(const ModelConfig *config, const Mixer *mixer);
// The longest sequence that the model can see: config_positions, or where a layer is bounded its max_positions.
int64_t model_positions(const ModelConfig *config);
// Whether max_positions is a part of what the model computes, so that it must stay where a longer context comes.
bool model_keeps_positions(const ModelConfig *config);

#endif
