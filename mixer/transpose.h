// The motion of mixers that treat every channel by itself, over all positions (conv, fourier): an all-to-all from "my
// tokens, all channels" to "all tokens, my channels", and back. Rank r has the channels from floor(r C / P) on.
//
// Each rank sends B Tl (C - its channels) elements to there, and B (T - Tl) (its channels) back: less than its rows,
// however many ranks there are. On the way a message is rows of one rank's tokens and another's channels; the tokens of
// a rank's two chunks are put to their places by whoever receives, or taken from them by whoever sends.
#ifndef MIXER_TRANSPOSE_H
#define MIXER_TRANSPOSE_H

#include "mixer/convolution.h"
#include "model/model.h"

Channels channels_of(int64_t C, int ranks, int rank);

// Bytes of each of the two rooms that messages are packed in and unpacked from; 0 for one rank.
size_t transpose_room_bytes(const MixerSize *size);
// What this rank sends of B sequences to there, and back.
typedef struct TransposeBytes {
    int64_t there, back;
} TransposeBytes;
TransposeBytes transpose_bytes_sent(int64_t C, int64_t B, const AttentionConfig *sharding, int rank);

// from (B Tl, C), this rank's tokens, -> to (B, T, its channels), in the order of positions. Between begin and end
// there may be work that uses neither the rooms nor `to`; `from` is free after begin.
void tokens_to_channels_begin(const Mixing *m, int64_t B, void *to, const void *from, void *const room[2]);
void tokens_to_channels_end(const Mixing *m, int64_t B, void *to, void *const room[2]);
// Back.
void channels_to_tokens(const Mixing *m, int64_t B, void *to, const void *from, void *const room[2]);

#endif
