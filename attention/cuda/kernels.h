// The functions that kernel_cuda.cu makes a table of, by file. Contracts: attention/kernel.h.
#ifndef ATTENTION_CUDA_KERNELS_H
#define ATTENTION_CUDA_KERNELS_H

#include "attention/kernel.h"

// forward.cu
void cuda_forward_pair(Device *, const AttentionShape *, const QueryForward *, const KeyValue *);
void cuda_forward_whole(Device *, const AttentionShape *, const QueryForward *, const KeyValue *, TokenView out,
                        RowView log_sum_exp);
// backward.cu
void cuda_backward_pair(Device *, const AttentionShape *, const QueryBackward *, const KeyValue *);
void cuda_backward_whole(Device *, const AttentionShape *, const QueryBackward *, const KeyValue *, TokenView d_q,
                         TokenView d_k, TokenView d_v);
#ifdef HOPPER // hopper/forward.cu, hopper/backward.cu: the same four, where hopper::serves (hopper/hopper.h) says so
void hopper_forward_pair(Device *, const AttentionShape *, const QueryForward *, const KeyValue *);
void hopper_forward_whole(Device *, const AttentionShape *, const QueryForward *, const KeyValue *, TokenView out,
                          RowView log_sum_exp);
void hopper_backward_pair(Device *, const AttentionShape *, const QueryBackward *, const KeyValue *);
void hopper_backward_whole(Device *, const AttentionShape *, const QueryBackward *, const KeyValue *, TokenView d_q,
                           TokenView d_k, TokenView d_v);
size_t hopper_backward_scratch_bytes(const AttentionShape *, int64_t queries); // for up to so many queries in a call
#endif
// vanilla.cu
size_t cuda_vanilla_row_bytes(const AttentionShape *, int64_t T);
void cuda_vanilla_forward(Device *, const AttentionShape *, int64_t T, const Visibility *, void *probabilities,
                          TokenView out, float *log_sum_exp, TokenView q, TokenView k, TokenView v);
void cuda_vanilla_backward(Device *, const AttentionShape *, int64_t T, const Visibility *, void *probabilities,
                           void *rows, TokenView d_q, TokenView d_k, TokenView d_v, TokenView q, TokenView k,
                           TokenView v, TokenView out, const float *log_sum_exp, TokenView d_out, float *delta);

#endif
