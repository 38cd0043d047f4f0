#ifndef ATTENTION_CPU_FORWARD_H
#define ATTENTION_CPU_FORWARD_H

#include "attention/kernel.h"

// The two that matter of attention_kernels_cpu; their contract is in attention/kernel.h.
void cpu_forward_pair(Device *, const AttentionShape *, const QueryForward *, const KeyValue *);
void cpu_backward_pair(Device *, const AttentionShape *, const QueryBackward *, const KeyValue *);

#endif
