// The yardstick: a bigram model of bytes, or of other symbols of a small vocabulary V, fitted on the training split.
//
// p(b | a) = (count(ab) + alpha * p(b)) / (count(a) + alpha), p(b) = (count(b) + 1) / (N + V): counts over the N pairs
// of neighbours, smoothed with the unigram (Jelinek and Mercer's idea with Dirichlet weights; MacKay and Peto 1995).
// alpha is the power of two with which the rest of the training split predicts its last tenth best. A Transformer that
// has learned anything beats it.
#ifndef DATALOADER_BIGRAM_H
#define DATALOADER_BIGRAM_H

#include "dataloader/loader.h"

// Mean loss in nats per token over the given windows (their T targets each) of `validation`, of the model fitted on
// tokens [begin, end) of the training source. Sources with a tokens_unit() only, both of one kind. Reads them all
// once.
bool bigram_loss(const TokenSource *training, int64_t begin, int64_t end, const Loader *validation,
                 const int64_t *first_token, int64_t windows, double *loss, Error *err);

#endif
