// What the two mixers that convolve all tokens, channel by channel, have in common (conv, fourier).
#ifndef MIXER_LONG_CONVOLUTION_H
#define MIXER_LONG_CONVOLUTION_H

#include "model/mixer.h"

// Refuses documents, more ranks than channels, and devices without the transforms.
bool long_convolution_check(const MixerUse *use, Error *err);
// Bytes of (B, T, this rank's channels) in storage.
size_t long_convolution_bytes(const MixerSize *size);
size_t long_convolution_scratch_bytes(const MixerSize *size, int threads);
// Per token, with so many transforms of each channel forward and backward.
double long_convolution_flops(const ModelConfig *config, int64_t context, int transforms);
AttentionBytes long_convolution_bytes_sent(const ModelConfig *config, int64_t layer, const AttentionConfig *sharding,
                                           int rank);

#endif
