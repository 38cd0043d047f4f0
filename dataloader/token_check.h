// Are all token numbers below the vocabulary? Known before the first step, not when a window meets one that is not.
#ifndef DATALOADER_TOKEN_CHECK_H
#define DATALOADER_TOKEN_CHECK_H

#include "dataloader/tokens.h"

// A part of a source, and how far it has been looked at: tokens [next, end) are left.
typedef struct TokenCheck {
    const TokenSource *source;
    int64_t vocabulary;
    int64_t next, end;
} TokenCheck;

// Part `part` of `parts` of a source, to be shared by as many. Nothing of it is left where no token can be beyond.
TokenCheck token_check_begin(const TokenSource *source, int64_t vocabulary, int part, int parts);
// Looks at what is left for about `seconds`, with so many threads. Fails at the first token beyond the vocabulary (file
// and place are named), or where a file was cut short.
bool token_check_go_on(TokenCheck *check, int threads, double seconds, Error *err);

#endif
