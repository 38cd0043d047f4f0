// Softmax attention as a token mixer: which of its tensors stands where in LayerOffsets.tokens, and what `attention`
// and `dilated` share, which is all but what a query sees.
#ifndef MIXER_ATTENTION_H
#define MIXER_ATTENTION_H

#include "model/mixer.h"

enum {
    ATTENTION_QKV,      // ((H + 2 KV) D, C)
    ATTENTION_QKV_BIAS, // ((H + 2 KV) D)
    ATTENTION_OUT,      // (C, H D)
    ATTENTION_OUT_BIAS  // (C)
};

extern const Mixer mixer_attention, mixer_dilated;

// What the queries of a layer see, one of the two mixers being its own.
LayersOfWindow attention_sees(const ModelConfig *config, int64_t layer, int64_t context);

// Members of Mixer.
void softmax_parameters(ParameterList *list, int64_t layer, int64_t *tensor);
void softmax_lay_out_kept(const MixerSize *size, MixerMemory *kept, Arena *arena);
void softmax_lay_out_room(const MixerSize *size, bool backward, MixerMemory *room, Arena *arena);
void softmax_lay_out_cache(const MixerSize *size, MixerMemory *cache, Arena *arena);
void softmax_mix(const Mixing *m);
void softmax_output(const Mixing *m);
void softmax_backward(const Mixing *m);
double softmax_flops(const ModelConfig *config, int64_t layer, int64_t context);
AttentionBytes softmax_bytes_sent(const ModelConfig *config, int64_t layer, const AttentionConfig *sharding, int rank);

#endif
