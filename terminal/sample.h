// A sample's two ends: the prompt as tokens, and the generated tokens as text.
#ifndef TERMINAL_SAMPLE_H
#define TERMINAL_SAMPLE_H

#include <stdio.h>

#include "dataloader/tokens.h"

// The prompt, allocated: the characters of `text` where the data are text, else the token numbers written in it. Where
// text is NULL, the 64 tokens of the data from `first` on, or as many as half of the model's `positions` (INT64_MAX: no
// end). NULL and *err where it is empty, fills the positions, or a token is not below vocab_size.
int32_t *prompt_tokens(const char *text, const TokenSource *data, int64_t first, int64_t vocab_size, int64_t positions,
                       int64_t *count, Error *err);

// The prompt and what was generated after it, as text where the data are (NULL: they are not), else as
// numbers. Where that is less than `wanted`, says why: the model's positions are used up, or it ended the text.
void print_generated(FILE *out, const TokenSource *data, const int32_t *tokens, int64_t prompt, int64_t count,
                     int64_t wanted, int64_t positions);

#endif
