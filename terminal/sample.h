// A sample's two ends: the prompt as tokens, and the generated tokens as text.
#ifndef TERMINAL_SAMPLE_H
#define TERMINAL_SAMPLE_H

#include <stdio.h>

#include "dataloader/tokens.h"

#ifdef __cplusplus
extern "C" {
#endif

// The prompt, allocated: the bytes of `text` where the data are bytes, else the token numbers written in it. Where text
// is NULL, the 64 tokens of the data from `first` on. NULL and *err where it is empty or a token is not below
// vocab_size.
int32_t *prompt_tokens(const char *text, const TokenSource *data, int64_t first, int64_t vocab_size, int64_t *count,
                       Error *err);

// The prompt and what was generated after it, as text where the tokens are bytes, else as numbers.
void print_generated(FILE *out, bool bytes, const int32_t *tokens, int64_t prompt, int64_t count);

#ifdef __cplusplus
}
#endif
#endif
