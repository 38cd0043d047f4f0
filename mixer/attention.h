// Softmax attention as a token mixer: which of its tensors stands where in LayerOffsets.tokens.
#ifndef MIXER_ATTENTION_H
#define MIXER_ATTENTION_H

enum {
    ATTENTION_QKV,      // ((H + 2 KV) D, C)
    ATTENTION_QKV_BIAS, // ((H + 2 KV) D)
    ATTENTION_OUT,      // (C, H D)
    ATTENTION_OUT_BIAS  // (C)
};

#endif
