// Running sums over all ranks' tokens, for mixers whose past is a sum (mean): each chunk of tokens has its sum for a
// state, all ranks are given all of them (mixer/states.h), and each goes on from those of the chunks before its own; of
// the transpose, from those behind it. What a device does for it is in mixer/scan.h.
#ifndef MIXER_SUMS_H
#define MIXER_SUMS_H

#include "model/model.h"

enum { SUMS_BUFFERS = 3 }; // the first of a mixer's room

void sums_lay_out_room(const MixerSize *size, MixerMemory *room, Arena *arena);
// Bytes of what generation keeps: the sum of the tokens before.
size_t sums_cache_bytes(const MixerSize *size);

// out (n, C) of storage = P x with P_ij = 1 / (i - first(i) + 1) for first(i) <= j <= i; `transposed`: P^T x.
void sums_mean(const Mixing *m, void *out, const void *x, bool transposed);
// P x for the new tokens of m->pass->generation.
void sums_go_on(const Mixing *m, void *cache, void *out, const void *x);

// Bytes that a rank sends for one of the former.
int64_t sums_bytes(const AttentionConfig *sharding, int64_t width);
#endif
