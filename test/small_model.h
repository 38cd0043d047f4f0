// A GPT-2 configuration small enough for tests, of which each sets what it is about.
#ifndef TEST_SMALL_MODEL_H
#define TEST_SMALL_MODEL_H

#include "model/config.h"

// As OpenAI's (learned positions, all biases, tied), without end tokens: of `layers` layers, 32 channels, 4 heads and
// an MLP of 128, for up to 50 tokens.
ModelConfig small_gpt2(int64_t vocab_size, int64_t layers);

#endif
