// The reference kernels' passes over a single pair (attention/kernel.h: forward_whole, backward_whole).
#ifndef ATTENTION_REFERENCE_WHOLE_H
#define ATTENTION_REFERENCE_WHOLE_H

#include "attention/kernel.h"

void reference_forward_whole(Device *, const AttentionShape *, const QueryForward *, const KeyValue *, TokenView out,
                             RowView log_sum_exp);
void reference_backward_whole(Device *, const AttentionShape *, const QueryBackward *, const KeyValue *, TokenView d_q,
                              TokenView d_k, TokenView d_v);

#endif
