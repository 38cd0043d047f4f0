// The functions of attention_kernels_cpu that have files of their own; their contracts stand in attention/kernel.h.
#ifndef ATTENTION_CPU_PAIRS_H
#define ATTENTION_CPU_PAIRS_H

#include "attention/kernel.h"

void cpu_forward_pair(Device *, const AttentionShape *, const QueryForward *, const KeyValue *);
void cpu_backward_pair(Device *, const AttentionShape *, const QueryBackward *, const KeyValue *);

// Bytes of the device's scratch memory that the two work in, whatever the chunks.
size_t cpu_forward_scratch_bytes(const AttentionShape *, int threads);
size_t cpu_backward_scratch_bytes(const AttentionShape *, int threads);

size_t cpu_vanilla_row_bytes(const AttentionShape *, int64_t T);
void cpu_vanilla_forward(Device *, const AttentionShape *, int64_t T, const Visibility *, void *probabilities,
                         TokenView out, float *log_sum_exp, TokenView q, TokenView k, TokenView v);
void cpu_vanilla_backward(Device *, const AttentionShape *, int64_t T, const Visibility *, void *probabilities,
                          void *rows, TokenView d_q, TokenView d_k, TokenView d_v, TokenView q, TokenView k,
                          TokenView v, TokenView out, const float *log_sum_exp, TokenView d_out, float *delta);

#endif
