// What each layer of a model is made of, by its configuration.
#include <string.h>

#include "model/model.h"

const Norm *final_norm(const ModelConfig *config) {
    return config->architecture == ARCH_GPT2 ? &norm_layer : &norm_rms;
}

LayerKind layer_kind(const ModelConfig *config, int64_t layer) {
    int number = config->mixers == 0 ? 0 : config->mixer[layer % config->mixers];
    return (LayerKind){number, token_mixers[number], config->architecture == ARCH_GPT2 ? &mlp_gelu : &mlp_swiglu,
                       final_norm(config)};
}

int token_mixer_named(const char *name, size_t length) {
    for (int i = 0; token_mixers[i] != NULL; i++)
        if (strlen(token_mixers[i]->name) == length && memcmp(token_mixers[i]->name, name, length) == 0) return i;
    return -1;
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
