// The memory of a pass. The same code adds it up for --plan and lays it out.
#include <stdlib.h>

#include "model/model.h"

// The logits are the widest tensor of all: (n, Vp). They are made for some rows at a time. A CPU's products are at
// their best with few: 32 MiB of fp32. A GPU needs thousands to be kept busy, and each time it also reads and writes
// the gradient of the classifier's weights (154 MB in GPT-2), which only many rows repay: 256 MiB of bf16.
static int64_t rows_of_logits(int64_t rows, int64_t width, size_t element_bytes) {
    const int64_t most_elements = element_bytes == sizeof(float) ? 8 << 20 : 128 << 20;
    int64_t fit = most_elements / width > 16 ? most_elements / width : 16;
    return rows < fit ? rows : fit;
}

static void lay_out_inputs(Pass *p, const ModelConfig *c, Arena *arena) {
    p->tokens = arena_take(arena, "tokens", (size_t)p->rows * sizeof(int32_t));
    p->targets = arena_take(arena, "tokens", (size_t)p->rows * sizeof(int32_t));
    p->positions = arena_take(arena, "tokens", (size_t)p->rows * sizeof(int32_t));
    if (!config_is_rotary(c)) return;
    size_t bytes = (size_t)(p->table_rows * (c->head_dim / 2)) * sizeof(float);
    p->cos_table = arena_take(arena, "rotary tables", bytes);
    p->sin_table = arena_take(arena, "rotary tables", bytes);
}

// What the layers before `l` of its kind have in common with it, where it is not kept; NULL: it is the first of its kind.
static const LayerMemory *shared_with(const Pass *p, const ModelConfig *c, int64_t l) {
    int entry = layer_kind(c, l).entry;
    for (int64_t before = 0; before < l; before++)
        if (layer_kind(c, before).entry == entry) return &p->layer[before];
    return NULL;
}

static void lay_out_layers(Pass *p, MixerSize *size, Arena *arena, bool training, Recompute recompute) {
    const ModelConfig *c = size->config;
    size_t stream = (size_t)(p->rows * c->dim) * size->element_bytes;
    bool inputs = training, tokens = training && recompute != RECOMPUTE_BLOCK;
    bool channels = training && recompute == RECOMPUTE_NONE; // what each layer keeps for itself
    for (int64_t l = 0; l < c->layers; l++) {
        LayerKind kind = layer_kind(c, l);
        LayerMemory *memory = &p->layer[l];
        const LayerMemory *alike = shared_with(p, c, l);
        size->layer = l;
        memory->input = inputs || l == 0 ? arena_take(arena, "activations: residual", stream) : p->layer[0].input;
        memory->middle = tokens || l == 0 ? arena_take(arena, "activations: residual", stream) : p->layer[0].middle;
        if (!tokens && alike != NULL) memory->tokens = alike->tokens;
        else if (kind.tokens->lay_out_kept != NULL) kind.tokens->lay_out_kept(size, &memory->tokens, arena);
        if (!channels && l > 0) memory->channels = p->layer[0].channels;
        else if (kind.channels->lay_out_kept != NULL) kind.channels->lay_out_kept(size, &memory->channels, arena);
        if (alike == NULL && kind.tokens->lay_out_room != NULL)
            kind.tokens->lay_out_room(size, training, &p->tokens_room[kind.entry], arena);
        if (!training && kind.tokens->lay_out_cache != NULL) kind.tokens->lay_out_cache(size, &memory->cache, arena);
        if (l == 0 && kind.channels->lay_out_room != NULL)
            kind.channels->lay_out_room(size, training, &p->channels_room, arena);
    }
    p->last = inputs ? arena_take(arena, "activations: residual", stream) : p->layer[0].input;
}

void pass_lay_out(Pass *p, MixerSize size, int64_t padded_vocab_size, Arena *arena, PassKind kind,
                  Recompute recompute) {
    const ModelConfig *c = size.config;
    bool training = kind == PASS_TRAINING;
    size_t n = (size_t)size.rows, element_bytes = size.element_bytes, stream = n * (size_t)c->dim * element_bytes;
    if (p->layer == NULL) p->layer = calloc((size_t)c->layers, sizeof *p->layer);
    if (p->layer == NULL) {
        Error err;
        error_set(&err, "out of memory for the list of %lld layers", (long long)c->layers);
        die(&err);
    }
    p->rows = size.rows;
    p->sequences = size.sequences;
    p->table_rows = size.rows / size.sequences;
    lay_out_inputs(p, c, arena);
    lay_out_layers(p, &size, arena, training, recompute);
    p->mean = arena_take(arena, "buffers of one layer", n * sizeof(float));
    p->rstd = arena_take(arena, "buffers of one layer", n * sizeof(float));
    p->normed = arena_take(arena, "buffers of one layer", stream);
    p->branch = arena_take(arena, "buffers of one layer", stream);
    p->classifier_rows = rows_of_logits((int64_t)n, padded_vocab_size, element_bytes);
    p->logits = arena_take(arena, "logits", (size_t)(p->classifier_rows * padded_vocab_size) * element_bytes);
    p->losses = arena_take(arena, "logits", n * sizeof(float));
    if (!training) return;
    p->d_residual = arena_take(arena, "activation gradients", stream);
    p->d_normed = p->branch; // on the way back nothing is added to the stream, but while a block is replayed
}

void pass_free(Pass *pass) {
    free(pass->layer);
    pass->layer = NULL;
}
