// A CPU device whose storage is double, so that code which takes storage for fp32 is found out before there is a device
// of 2-byte storage. It only stores: what is written is rounded to fp32, and the reference kernel works on fp32 copies.
// So its results must be, to the bit, those of the reference kernel on fp32 storage.
#ifndef TEST_WIDE_DEVICE_H
#define TEST_WIDE_DEVICE_H

#include "attention_problem.h"

void wide_to_storage(Device *device, void *out, const float *in, int64_t count);

void wide_to_float(Device *device, float *out, const void *in, int64_t count);

void wide_to_storage_strided(Device *device, void *out, int64_t out_stride, const float *in,
                                           int64_t in_stride, int64_t rows, int64_t columns);

// An fp32 copy (B, tokens, heads, D) of a view; to be freed.
TokenView narrow(const AttentionShape *s, TokenView view, int64_t tokens, int64_t heads);

void wide_forward_pair(Device *device, const AttentionShape *s, const QueryForward *query,
                                     const KeyValue *kv);

void wide_finish(Device *device, const AttentionShape *s, const QueryForward *query, TokenView out,
                               RowView log_sum_exp);

void wide_row_delta(Device *device, const AttentionShape *s, Chunk chunk, TokenView out, TokenView d_out,
                                  RowView delta);

void wide_backward_pair(Device *device, const AttentionShape *s, const QueryBackward *query,
                                      const KeyValue *kv);

void wide_begin(Device *device, const AttentionShape *s, const QueryForward *query);

// fp32 room (B, tokens, heads, D) for what a kernel sums up; and its way to storage, which frees it.
FloatView wide_sums(const AttentionShape *s, int64_t tokens, int64_t heads);
void wide_keep(const AttentionShape *s, TokenView out, FloatView sums, int64_t tokens);

void wide_forward_whole(Device *device, const AttentionShape *s, const QueryForward *query,
                                      const KeyValue *kv, TokenView out, RowView log_sum_exp);

void wide_backward_whole(Device *device, const AttentionShape *s, const QueryBackward *query,
                                       const KeyValue *kv, TokenView d_q, TokenView d_k, TokenView d_v);

const char *wide_unsupported(const AttentionShape *s);

void wide_device(Device *device, int rank);

#endif
