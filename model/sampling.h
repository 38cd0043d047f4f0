// Generation's choice of the next token.
#ifndef MODEL_SAMPLING_H
#define MODEL_SAMPLING_H

#include <stdint.h>

// Draws from softmax(logits / temperature) over the top_k likeliest of V tokens (0: all; temperature 0: the likeliest),
// by `uniform` in [0, 1). room: V floats, overwritten.
int32_t sample_token(const float *logits, float *room, int64_t V, double temperature, int64_t top_k, double uniform);

#endif
