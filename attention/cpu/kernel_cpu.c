// attention_kernels_cpu: the blocked, streaming kernels for processors. Here the parts that pass over the tokens once;
// the work is in forward.c and backward.c, the speed in the *_simd.c files.
#include <math.h>

#include "attention/cpu/blocks.h"
#include "attention/cpu/pairs.h"
#include "layers/cpu/parallel.h"

enum { TOKENS = 64 }; // of one head in a task

// A pass over all rows (b, h, t) of a chunk, TOKENS of one head at a time.
typedef struct Pass {
    const AttentionShape *shape;
    Chunk chunk;
    const QueryForward *query;
    TokenView out, d_out;
    RowView result; // log_sum_exp or delta
} Pass;

typedef struct PassTask {
    int64_t b, h, first, last;
} PassTask; // tokens first to last, not included

static int64_t task_count(const Pass *pass) {
    return pass->shape->batch * pass->shape->heads * ((pass->chunk.length + TOKENS - 1) / TOKENS);
}

static PassTask task_at(const Pass *pass, int64_t task) {
    int64_t heads = pass->shape->heads, rows = pass->shape->batch * heads;
    int64_t row = task % rows, first = task / rows * TOKENS;
    return (PassTask){row / heads, row % heads, first, smaller(first + TOKENS, pass->chunk.length)};
}

static void begin_task(void *context, int64_t task, int worker) {
    (void)worker;
    const Pass *pass = context;
    PassTask at = task_at(pass, task);
    int64_t D = pass->shape->head_dim;
    Rows accumulator = float_rows(pass->query->accumulator, at.b, 0, at.h, D);
    float *max = row_values(pass->query->max, at.b, 0, at.h), *sum = row_values(pass->query->sum, at.b, 0, at.h);
    for (int64_t t = at.first; t < at.last; t++) {
        for (int64_t d = 0; d < D; d++) accumulator.data[t * accumulator.stride + d] = 0;
        max[t] = -INFINITY;
        sum[t] = 0;
    }
}

static void begin(Device *device, const AttentionShape *shape, const QueryForward *query) {
    Pass pass = {.shape = shape, .chunk = query->chunk, .query = query};
    parallel_for(device->threads, task_count(&pass), begin_task, &pass);
}

static void finish_task(void *context, int64_t task, int worker) {
    (void)worker;
    const Pass *pass = context;
    PassTask at = task_at(pass, task);
    int64_t D = pass->shape->head_dim;
    Rows accumulator = float_rows(pass->query->accumulator, at.b, 0, at.h, D);
    Rows out = token_rows(pass->out, at.b, 0, at.h, D);
    const float *max = row_values(pass->query->max, at.b, 0, at.h), *sum = row_values(pass->query->sum, at.b, 0, at.h);
    float *log_sum_exp = row_values(pass->result, at.b, 0, at.h);
    for (int64_t t = at.first; t < at.last; t++) {
        int seen = sum[t] != 0; // false for a row that saw no key; true for one that is not a number
        float inverse = seen ? 1.0f / sum[t] : 0.0f;
        for (int64_t d = 0; d < D; d++)
            out.data[t * out.stride + d] = accumulator.data[t * accumulator.stride + d] * inverse;
        log_sum_exp[t] = seen ? max[t] + logf(sum[t]) : -INFINITY;
    }
}

static void finish(Device *device, const AttentionShape *shape, const QueryForward *query, TokenView out,
                   RowView log_sum_exp) {
    Pass pass = {.shape = shape, .chunk = query->chunk, .query = query, .out = out, .result = log_sum_exp};
    parallel_for(device->threads, task_count(&pass), finish_task, &pass);
}

static void row_delta_task(void *context, int64_t task, int worker) {
    (void)worker;
    const Pass *pass = context;
    PassTask at = task_at(pass, task);
    int64_t D = pass->shape->head_dim;
    Rows out = token_rows(pass->out, at.b, 0, at.h, D), d_out = token_rows(pass->d_out, at.b, 0, at.h, D);
    float *delta = row_values(pass->result, at.b, 0, at.h);
    for (int64_t t = at.first; t < at.last; t++) {
        double sum = 0;
        for (int64_t d = 0; d < D; d++) sum += (double)out.data[t * out.stride + d] * d_out.data[t * d_out.stride + d];
        delta[t] = (float)sum;
    }
}

static void row_delta(Device *device, const AttentionShape *shape, Chunk chunk, TokenView out, TokenView d_out,
                      RowView delta) {
    Pass pass = {.shape = shape, .chunk = chunk, .out = out, .d_out = d_out, .result = delta};
    parallel_for(device->threads, task_count(&pass), row_delta_task, &pass);
}

// The two passes of a single pair. Storage is fp32: what is summed up stands where the result will be.
static FloatView as_floats(TokenView view) { return (FloatView){view.data, view.batch_stride, view.token_stride}; }

static void forward_whole(Device *device, const AttentionShape *shape, const QueryForward *query, const KeyValue *kv,
                          TokenView out, RowView log_sum_exp) {
    QueryForward state = *query;
    state.accumulator = as_floats(out);
    begin(device, shape, &state);
    cpu_forward_pair(device, shape, &state, kv);
    finish(device, shape, &state, out, log_sum_exp);
}

static void zero_task(void *context, int64_t task, int worker) {
    (void)worker;
    const Pass *pass = context;
    PassTask at = task_at(pass, task);
    int64_t D = pass->shape->head_dim;
    Rows out = token_rows(pass->out, at.b, 0, at.h, D);
    for (int64_t t = at.first; t < at.last; t++)
        for (int64_t d = 0; d < D; d++) out.data[t * out.stride + d] = 0;
}

static void zero(Device *device, AttentionShape shape, int64_t heads, Chunk chunk, TokenView view) {
    shape.heads = heads;
    Pass pass = {.shape = &shape, .chunk = chunk, .out = view};
    parallel_for(device->threads, task_count(&pass), zero_task, &pass);
}

static void backward_whole(Device *device, const AttentionShape *shape, const QueryBackward *query, const KeyValue *kv,
                           TokenView d_q, TokenView d_k, TokenView d_v) {
    QueryBackward query_sums = *query;
    KeyValue key_sums = *kv;
    query_sums.d_q = as_floats(d_q);
    key_sums.d_k = as_floats(d_k);
    key_sums.d_v = as_floats(d_v);
    zero(device, *shape, shape->heads, query->chunk, d_q);
    zero(device, *shape, shape->kv_heads, kv->chunk, d_k);
    zero(device, *shape, shape->kv_heads, kv->chunk, d_v);
    cpu_backward_pair(device, shape, &query_sums, &key_sums);
}

static void first_of_residues(Device *device, int64_t batch, const Visibility *visibility, Residues r, Chunk queries,
                              int64_t key_start, int32_t *out, int64_t out_stride) {
    (void)device;
    for (int64_t b = 0; b < batch; b++)
        for (int64_t m = queries.start; m < chunk_end(queries); m++) {
            int64_t first = visibility->first[b * visibility->stride + r.query + r.step * m];
            out[b * out_stride + m] = (int32_t)((first - r.key + r.step - 1) / r.step + key_start);
        }
}

static size_t scratch_bytes_of_pairs(const AttentionShape *shape, int64_t queries, int threads) {
    (void)queries;
    size_t forward = cpu_forward_scratch_bytes(shape, threads), backward = cpu_backward_scratch_bytes(shape, threads);
    return forward > backward ? forward : backward;
}

static const char *unsupported(const AttentionShape *shape) {
    (void)shape;
    return NULL;
}

const AttentionKernels attention_kernels_cpu = {.begin = begin,
                                                .forward_pair = cpu_forward_pair,
                                                .finish = finish,
                                                .forward_whole = forward_whole,
                                                .row_delta = row_delta,
                                                .backward_pair = cpu_backward_pair,
                                                .backward_whole = backward_whole,
                                                .first_of_residues = first_of_residues,
                                                .vanilla_row_bytes = cpu_vanilla_row_bytes,
                                                .vanilla_forward = cpu_vanilla_forward,
                                                .vanilla_backward = cpu_vanilla_backward,
                                                .unsupported = unsupported,
                                                .scratch_bytes = scratch_bytes_of_pairs};
