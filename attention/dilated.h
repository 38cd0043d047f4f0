// Dilated attention (after LongNet, Ding et al. 2023) by the kernels of ordinary attention.
//
// Of the keys that its window and its document let it see, a query of head h sees those at the positions s_h modulo R,
// s_h = floor(h R / H): the heads are shifted, so that every key is seen by some of them. R divides KV, so heads that
// share keys look at the same ones, and those of one residue stand side by side.
//
// The tokens of one residue class, positions c, c + R, c + 2R, ..., are a sequence of their own, numbered m = 0, 1,
// ...: in memory every R-th row. The queries of a class c and the keys of a class s make an ordinary causal pair, the
// keys being numbered from 1 on where s > c, since the first of them lies behind the first query. The window is ceil((W
// - d) / R) of these, d = (c - s) mod R. So a pair of chunks is R x R calls of the kernels, each with 1/R of the
// queries, of the keys and of the heads.
//
// Values by row (max, sum, log_sum_exp, delta) must be contiguous for kernels: those of a chunk stand class by class.
#ifndef ATTENTION_DILATED_H
#define ATTENTION_DILATED_H

#include "attention/kernel.h"

// Elements of the room `first` that the calls below need where there are documents.
int64_t dilated_first_elements(int64_t batch, int64_t context, int64_t dilation);

// As the kernels of these names (attention/kernel.h), for a query whose Visibility has a dilation. Key/value heads of
// keys, unless `own`, and of the gradients are KV/R to a token: those that look at it.
void dilated_forward_pair(Device *, const AttentionShape *, const QueryForward *, const KeyValue *, bool own,
                          int32_t *first);
void dilated_finish(Device *, const AttentionShape *, const QueryForward *, TokenView out, RowView log_sum_exp);
void dilated_forward_whole(Device *, const AttentionShape *, const QueryForward *, const KeyValue *, TokenView out,
                           RowView log_sum_exp, int32_t *first); // keys: own
void dilated_row_delta(Device *, const AttentionShape *, int64_t dilation, Chunk, TokenView out, TokenView d_out,
                       RowView delta);
void dilated_backward_pair(Device *, const AttentionShape *, const QueryBackward *, const KeyValue *, bool own,
                           int32_t *first);

// The tokens of a chunk whose positions are `residue` modulo R.
typedef struct ResidueClass {
    Chunk numbers; // m of the first, and how many they are
    int64_t first; // where the first stands among the chunk's tokens
    int64_t rows;  // where their rows begin among the chunk's, class by class
} ResidueClass;
ResidueClass residue_class(Chunk chunk, int64_t residue, int64_t dilation);

#endif
