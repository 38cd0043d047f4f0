// The two functions of attention_kernels_cpu in which the time goes. Their contract is that of forward_pair and
// backward_pair in attention/kernel.h.
#ifndef ATTENTION_CPU_PAIRS_H
#define ATTENTION_CPU_PAIRS_H

#include "attention/kernel.h"

void cpu_forward_pair(Device *, const AttentionShape *, const QueryForward *, const KeyValue *);
void cpu_backward_pair(Device *, const AttentionShape *, const QueryBackward *, const KeyValue *);

#endif
