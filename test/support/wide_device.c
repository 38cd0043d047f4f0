// Bodies of test/wide_device.h.
#include "test/wide_device.h"

static void wide_to_storage(Device *device, void *out, const float *in, int64_t count) {
    (void)device;
    for (int64_t i = 0; i < count; i++) ((double *)out)[i] = in[i];
}

static void wide_to_float(Device *device, float *out, const void *in, int64_t count) {
    (void)device;
    for (int64_t i = 0; i < count; i++) out[i] = (float)((const double *)in)[i];
}

static void wide_to_storage_strided(Device *device, void *out, int64_t out_stride, const float *in, int64_t in_stride,
                                    int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++)
        wide_to_storage(device, (double *)out + i * out_stride, in + i * in_stride, columns);
}

// An fp32 copy (B, tokens, heads, D) of a view; to be freed.
static TokenView narrow(const AttentionShape *s, TokenView view, int64_t tokens, int64_t heads) {
    int64_t width = heads * s->head_dim;
    float *copy = checked(malloc((size_t)(s->batch * tokens * width) * sizeof *copy));
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t t = 0; t < tokens; t++)
            wide_to_float(NULL, copy + (b * tokens + t) * width,
                          (const double *)view.data + b * view.batch_stride + t * view.token_stride, width);
    return (TokenView){copy, tokens * width, width};
}

static void wide_forward_pair(Device *device, const AttentionShape *s, const QueryForward *query, const KeyValue *kv) {
    QueryForward q = *query;
    KeyValue k = *kv;
    q.q = narrow(s, query->q, query->chunk.length, s->heads);
    k.k = narrow(s, kv->k, kv->chunk.length, s->kv_heads);
    k.v = narrow(s, kv->v, kv->chunk.length, s->kv_heads);
    attention_kernels_reference.forward_pair(device, s, &q, &k);
    free(q.q.data), free(k.k.data), free(k.v.data);
}

static void wide_finish(Device *device, const AttentionShape *s, const QueryForward *query, TokenView out,
                        RowView log_sum_exp) {
    int64_t tokens = query->chunk.length, width = s->heads * s->head_dim;
    float *rows = checked(malloc((size_t)(s->batch * tokens * width) * sizeof *rows));
    attention_kernels_reference.finish(device, s, query, (TokenView){rows, tokens * width, width}, log_sum_exp);
    for (int64_t b = 0; b < s->batch; b++) {
        wide_to_storage_strided(device, (double *)out.data + b * out.batch_stride, out.token_stride,
                                rows + b * tokens * width, width, tokens, width);
    }
    free(rows);
}

static void wide_row_delta(Device *device, const AttentionShape *s, Chunk chunk, TokenView out, TokenView d_out,
                           RowView delta) {
    TokenView o = narrow(s, out, chunk.length, s->heads), d = narrow(s, d_out, chunk.length, s->heads);
    attention_kernels_reference.row_delta(device, s, chunk, o, d, delta);
    free(o.data), free(d.data);
}

static void wide_backward_pair(Device *device, const AttentionShape *s, const QueryBackward *query,
                               const KeyValue *kv) {
    QueryBackward q = *query;
    KeyValue k = *kv;
    q.q = narrow(s, query->q, query->chunk.length, s->heads);
    q.d_out = narrow(s, query->d_out, query->chunk.length, s->heads);
    k.k = narrow(s, kv->k, kv->chunk.length, s->kv_heads);
    k.v = narrow(s, kv->v, kv->chunk.length, s->kv_heads);
    attention_kernels_reference.backward_pair(device, s, &q, &k);
    free(q.q.data), free(q.d_out.data), free(k.k.data), free(k.v.data);
}

static void wide_begin(Device *device, const AttentionShape *s, const QueryForward *query) {
    attention_kernels_reference.begin(device, s, query);
}

// fp32 room (B, tokens, heads, D) for what a kernel sums up; and its way to storage, which frees it.
static FloatView wide_sums(const AttentionShape *s, int64_t tokens, int64_t heads) {
    int64_t width = heads * s->head_dim;
    return (FloatView){checked(calloc((size_t)(s->batch * tokens * width), sizeof(float))), tokens * width, width};
}

static void wide_keep(const AttentionShape *s, TokenView out, FloatView sums, int64_t tokens) {
    for (int64_t b = 0; b < s->batch; b++) {
        wide_to_storage_strided(NULL, (double *)out.data + b * out.batch_stride, out.token_stride,
                                sums.data + b * sums.batch_stride, sums.token_stride, tokens, sums.token_stride);
    }
    free(sums.data);
}

static void wide_forward_whole(Device *device, const AttentionShape *s, const QueryForward *query, const KeyValue *kv,
                               TokenView out, RowView log_sum_exp) {
    QueryForward state = *query;
    state.accumulator = wide_sums(s, query->chunk.length, s->heads);
    wide_begin(device, s, &state);
    wide_forward_pair(device, s, &state, kv);
    wide_finish(device, s, &state, out, log_sum_exp);
    free(state.accumulator.data);
}

static void wide_backward_whole(Device *device, const AttentionShape *s, const QueryBackward *query, const KeyValue *kv,
                                TokenView d_q, TokenView d_k, TokenView d_v) {
    QueryBackward q = *query;
    KeyValue k = *kv;
    q.d_q = wide_sums(s, query->chunk.length, s->heads);
    k.d_k = wide_sums(s, kv->chunk.length, s->kv_heads);
    k.d_v = wide_sums(s, kv->chunk.length, s->kv_heads);
    wide_backward_pair(device, s, &q, &k);
    wide_keep(s, d_q, q.d_q, query->chunk.length);
    wide_keep(s, d_k, k.d_k, kv->chunk.length);
    wide_keep(s, d_v, k.d_v, kv->chunk.length);
}

static const char *wide_unsupported(const AttentionShape *s) { return attention_kernels_reference.unsupported(s); }

void wide_device(Device *device, int rank) {
    (void)rank;
    static const AttentionKernels kernels = {.begin = wide_begin,
                                             .forward_pair = wide_forward_pair,
                                             .finish = wide_finish,
                                             .forward_whole = wide_forward_whole,
                                             .row_delta = wide_row_delta,
                                             .backward_pair = wide_backward_pair,
                                             .backward_whole = wide_backward_whole,
                                             .unsupported = wide_unsupported};
    cpu_device(device, 1);
    device->element_bytes = sizeof(double);
    device->to_storage = wide_to_storage;
    device->to_float = wide_to_float;
    device->to_storage_strided = wide_to_storage_strided;
    device->attention = &kernels;
}
