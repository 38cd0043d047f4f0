// The MLP as a channel mixer: which of its tensors stands where in LayerOffsets.channels.
#ifndef MIXER_CHANNEL_MLP_H
#define MIXER_CHANNEL_MLP_H

enum {
    MLP_UP,       // GELU (F, C); SwiGLU: gate and up, (2F, C)
    MLP_UP_BIAS,  // (F); (2F)
    MLP_DOWN,     // (C, F)
    MLP_DOWN_BIAS // (C)
};

#endif
