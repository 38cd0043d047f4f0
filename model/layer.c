// What each layer of a model is made of, by its configuration.
#include <string.h>

#include "model/model.h"

const Norm *final_norm(const ModelConfig *config) {
    return config->architecture == ARCH_GPT2 ? &norm_layer : &norm_rms;
}

static bool same_choice(const MixerChoice *a, const MixerChoice *b) {
    return a->number == b->number && a->word == b->word && a->values == b->values && a->value[0] == b->value[0] &&
           a->value[1] == b->value[1];
}

LayerKind layer_kind(const ModelConfig *config, int64_t layer) {
    int entry = config->mixers == 0 ? 0 : (int)(layer % config->mixers), first = 0;
    MixerChoice choice = config->mixer[entry]; // all zero where there is no pattern: the first token mixer
    while (!same_choice(&config->mixer[first], &choice)) first++;
    return (LayerKind){first, choice, token_mixers[choice.number],
                       config->architecture == ARCH_GPT2 ? &mlp_gelu : &mlp_swiglu, final_norm(config)};
}

bool config_has_mixer(const ModelConfig *config, const Mixer *mixer) {
    for (int64_t l = 0; l < config->layers && l <= config->mixers; l++)
        if (layer_kind(config, l).tokens == mixer) return true;
    return false;
}

int64_t model_positions(const ModelConfig *config) {
    for (int64_t l = 0; l < config->layers && l <= config->mixers; l++)
        if (layer_kind(config, l).tokens->bounded) return config->max_positions;
    return config_positions(config);
}

bool model_keeps_positions(const ModelConfig *config) {
    for (int64_t l = 0; l < config->layers && l <= config->mixers; l++) {
        const Mixer *mixer = layer_kind(config, l).tokens;
        if (mixer->bounded || mixer->scaled) return true;
    }
    // Other programs derive yarn's angles from it.
    return !config_is_rotary(config) || config->rope_scaling.type == ROPE_YARN;
}

double model_flops(const ModelConfig *config, const ParameterTable *table, int64_t context) {
    double sum = 6.0 * (double)table->in_matrices;
    for (int64_t l = 0; l < config->layers; l++) {
        LayerKind kind = layer_kind(config, l);
        if (kind.tokens->flops != NULL) sum += kind.tokens->flops(config, l, context);
        if (kind.channels->flops != NULL) sum += kind.channels->flops(config, l, context);
    }
    return sum;
}
