// One layer, forward, backward, and again.
//
//   middle = input + tokens(norm1(input))      leaves = middle + channels(norm2(middle))
//
// The two sums are taken by the norm that follows (in one pass over memory): norm2 here, and for what leaves the first
// norm of the next layer, which is why block_forward begins behind its own first norm and ends before the last sum.
#include "model/model.h"

Mixing token_mixing(Model *model, Pass *pass, int64_t l) {
    LayerKind kind = layer_kind(model->config, l);
    const LayerMemory *memory = &pass->layer[l];
    return (Mixing){.model = model,
                    .pass = pass,
                    .layer = l,
                    .choice = kind.choice,
                    .tensor = model->table->layer[l].tokens,
                    .kept = memory->tokens,
                    .room = pass->tokens_room[kind.entry],
                    .cache = memory->cache};
}

static Mixing channels_of(Model *model, Pass *pass, int64_t l) {
    return (Mixing){.model = model,
                    .pass = pass,
                    .layer = l,
                    .tensor = model->table->layer[l].channels,
                    .kept = pass->layer[l].channels,
                    .room = pass->channels_room};
}

// Up to the input of the channel mixer, in pass->normed.
static void mix_tokens(Model *model, Pass *pass, int64_t l) {
    LayerKind kind = layer_kind(model->config, l);
    LayerMemory *memory = &pass->layer[l];
    Mixing tokens = token_mixing(model, pass, l);
    kind.tokens->mix(&tokens);
    kind.tokens->output(&tokens);
    kind.norm->forward(model, pass, memory->middle, memory->input, pass->branch, model->table->layer[l].norm2);
}

void block_forward(Model *model, Pass *pass, int64_t l) {
    LayerKind kind = layer_kind(model->config, l);
    mix_tokens(model, pass, l);
    Mixing channels = channels_of(model, pass, l);
    kind.channels->mix(&channels);
    kind.channels->output(&channels);
}

// What forward kept, or would have kept, for backward: replayed as far as it was not. Leaves norm2(middle) in
// pass->normed, which the channel mixer's backward takes.
static void block_again(Model *model, Pass *pass, int64_t l) {
    LayerKind kind = layer_kind(model->config, l);
    const LayerOffsets *w = &model->table->layer[l];
    if (model->recompute == RECOMPUTE_BLOCK) {
        kind.norm->forward(model, pass, NULL, pass->layer[l].input, NULL, w->norm1);
        mix_tokens(model, pass, l);
    } else {
        kind.norm->forward(model, pass, NULL, pass->layer[l].middle, NULL, w->norm2);
    }
    if (model->recompute == RECOMPUTE_NONE) return;
    Mixing channels = channels_of(model, pass, l);
    kind.channels->mix(&channels);
}

void block_backward(Model *model, Pass *pass, int64_t l) {
    LayerKind kind = layer_kind(model->config, l);
    const LayerOffsets *w = &model->table->layer[l];
    LayerMemory *memory = &pass->layer[l];
    Mixing tokens = token_mixing(model, pass, l), channels = channels_of(model, pass, l);
    block_again(model, pass, l);
    kind.channels->backward(&channels);
    kind.norm->backward(model, pass, memory->middle, w->norm2);

    kind.norm->forward(model, pass, NULL, memory->input, NULL, w->norm1);
    kind.tokens->backward(&tokens);
    kind.norm->backward(model, pass, memory->input, w->norm1);
}
