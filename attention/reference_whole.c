// A query chunk that meets no other keys: the pair kernels, begun and finished. Storage is fp32, so what is summed up
// stands where the result will be.
#include "attention/reference_whole.h"

static FloatView as_floats(TokenView view) { return (FloatView){view.data, view.batch_stride, view.token_stride}; }

void reference_forward_whole(Device *device, const AttentionShape *shape, const QueryForward *query, const KeyValue *kv,
                             TokenView out, RowView log_sum_exp) {
    QueryForward state = *query;
    state.accumulator = as_floats(out);
    attention_kernels_reference.begin(device, shape, &state);
    attention_kernels_reference.forward_pair(device, shape, &state, kv);
    attention_kernels_reference.finish(device, shape, &state, out, log_sum_exp);
}

static void zero(const AttentionShape *shape, FloatView view, int64_t tokens, int64_t heads) {
    for (int64_t b = 0; b < shape->batch; b++) {
        for (int64_t t = 0; t < tokens; t++) {
            float *row = view.data + b * view.batch_stride + t * view.token_stride;
            for (int64_t i = 0; i < heads * shape->head_dim; i++) row[i] = 0;
        }
    }
}

void reference_backward_whole(Device *device, const AttentionShape *shape, const QueryBackward *query,
                              const KeyValue *kv, TokenView d_q, TokenView d_k, TokenView d_v) {
    QueryBackward query_sums = *query;
    KeyValue key_sums = *kv;
    query_sums.d_q = as_floats(d_q);
    key_sums.d_k = as_floats(d_k);
    key_sums.d_v = as_floats(d_v);
    zero(shape, query_sums.d_q, query->chunk.length, shape->heads);
    zero(shape, key_sums.d_k, kv->chunk.length, shape->kv_heads);
    zero(shape, key_sums.d_v, kv->chunk.length, shape->kv_heads);
    attention_kernels_reference.backward_pair(device, shape, &query_sums, &key_sums);
}
