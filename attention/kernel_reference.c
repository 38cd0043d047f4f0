// The local attention kernel in its simplest right form: plain loops, one (query, key) pair at a time, double precision
// inside. It is the oracle for every other kernel, and the first one to read.
//
// Forward, for a query i and the keys j of the chunk that it sees (equation 1 of Vaswani et al. 2017, made to stream):
//   s_ij = scale q_i.k_j;   when a new maximum m' replaces m, what was summed so far is multiplied by exp(m - m')
// Backward, with p_ij = exp(s_ij - log_sum_exp_i), which is the softmax itself (Dao et al. 2022, appendix B.2):
//   dv_j += sum_i p_ij do_i
//   ds_ij = p_ij (do_i.v_j - delta_i),   delta_i = do_i.o_i = sum_j p_ij do_i.v_j
//   dq_i += scale sum_j ds_ij k_j,   dk_j += scale sum_i ds_ij q_i
#include <math.h>

#include "attention/kernel.h"
#include "attention/reference_whole.h"

// Row (b, t, h) of a view: D values. `t` counts from the start of the chunk.
static const float *token_row(TokenView view, int64_t b, int64_t t, int64_t h, int64_t D) {
    return (const float *)view.data + b * view.batch_stride + t * view.token_stride + h * D;
}
static float *float_row(FloatView view, int64_t b, int64_t t, int64_t h, int64_t D) {
    return view.data + b * view.batch_stride + t * view.token_stride + h * D;
}
static float *row_value(RowView view, int64_t b, int64_t t, int64_t h) {
    return view.data + b * view.batch_stride + h * view.head_stride + t;
}

static double dot(const float *x, const float *y, int64_t D) {
    double sum = 0;
    for (int64_t d = 0; d < D; d++) sum += (double)x[d] * y[d];
    return sum;
}

// The keys of the chunk that the query at `position` sees, counted from its start: from `first` to before `end`.
typedef struct Range {
    int64_t first, end;
} Range;

static Range visible_keys(const Visibility *visibility, int64_t b, Chunk keys, int64_t position) {
    Chunk seen = visibility_seen(visibility, b, (Chunk){position, 1}, keys);
    return (Range){seen.start - keys.start, chunk_end(seen) - keys.start};
}

static void begin(Device *device, const AttentionShape *shape, const QueryForward *query) {
    (void)device;
    for (int64_t b = 0; b < shape->batch; b++) {
        for (int64_t h = 0; h < shape->heads; h++) {
            for (int64_t i = 0; i < query->chunk.length; i++) {
                float *accumulator = float_row(query->accumulator, b, i, h, shape->head_dim);
                for (int64_t d = 0; d < shape->head_dim; d++) accumulator[d] = 0;
                *row_value(query->max, b, i, h) = -INFINITY;
                *row_value(query->sum, b, i, h) = 0;
            }
        }
    }
}

static void forward_row(const AttentionShape *shape, const QueryForward *query, const KeyValue *kv, int64_t b,
                        int64_t h, int64_t i) {
    int64_t D = shape->head_dim, kv_head = h / (shape->heads / shape->kv_heads);
    Range visible = visible_keys(&query->visibility, b, kv->chunk, query->chunk.start + i);
    const float *q = token_row(query->q, b, i, h, D);
    float *state = float_row(query->accumulator, b, i, h, D);
    double max = *row_value(query->max, b, i, h), sum = *row_value(query->sum, b, i, h);
    double accumulator[ATTENTION_MAX_HEAD_DIM];
    for (int64_t d = 0; d < D; d++) accumulator[d] = state[d];

    for (int64_t j = visible.first; j < visible.end; j++) {
        const float *v = token_row(kv->v, b, j, kv_head, D);
        double score = shape->scale * dot(q, token_row(kv->k, b, j, kv_head, D), D);
        if (score > max) {
            double rescale = exp(max - score);
            sum *= rescale;
            for (int64_t d = 0; d < D; d++) accumulator[d] *= rescale;
            max = score;
        }
        double weight = exp(score - max);
        sum += weight;
        for (int64_t d = 0; d < D; d++) accumulator[d] += weight * v[d];
    }

    // The state is relative to its maximum, so it is stored relative to the maximum as fp32 keeps it.
    double correction = visible.first < visible.end ? exp(max - (float)max) : 1;
    *row_value(query->max, b, i, h) = (float)max;
    *row_value(query->sum, b, i, h) = (float)(sum * correction);
    for (int64_t d = 0; d < D; d++) state[d] = (float)(accumulator[d] * correction);
}

static void forward_pair(Device *device, const AttentionShape *shape, const QueryForward *query, const KeyValue *kv) {
    (void)device;
    for (int64_t b = 0; b < shape->batch; b++)
        for (int64_t h = 0; h < shape->heads; h++)
            for (int64_t i = 0; i < query->chunk.length; i++) forward_row(shape, query, kv, b, h, i);
}

static void finish(Device *device, const AttentionShape *shape, const QueryForward *query, TokenView out,
                   RowView log_sum_exp) {
    (void)device;
    int64_t D = shape->head_dim;
    for (int64_t b = 0; b < shape->batch; b++) {
        for (int64_t h = 0; h < shape->heads; h++) {
            for (int64_t i = 0; i < query->chunk.length; i++) {
                const float *accumulator = float_row(query->accumulator, b, i, h, D);
                float *out_row = (float *)out.data + b * out.batch_stride + i * out.token_stride + h * D;
                double max = *row_value(query->max, b, i, h), sum = *row_value(query->sum, b, i, h);
                for (int64_t d = 0; d < D; d++) out_row[d] = sum == 0 ? 0 : (float)(accumulator[d] / sum);
                *row_value(log_sum_exp, b, i, h) = sum == 0 ? -INFINITY : (float)(max + log(sum));
            }
        }
    }
}

static void row_delta(Device *device, const AttentionShape *shape, Chunk chunk, TokenView out, TokenView d_out,
                      RowView delta) {
    (void)device;
    int64_t D = shape->head_dim;
    for (int64_t b = 0; b < shape->batch; b++)
        for (int64_t h = 0; h < shape->heads; h++)
            for (int64_t i = 0; i < chunk.length; i++)
                *row_value(delta, b, i, h) = (float)dot(token_row(out, b, i, h, D), token_row(d_out, b, i, h, D), D);
}

// p_ij and scale * ds_ij of query row (b, i, h) and key row j of its key/value head.
typedef struct PairGradient {
    double weight, d_score;
} PairGradient;

static PairGradient pair_gradient(const AttentionShape *shape, const QueryBackward *query, const KeyValue *kv,
                                  int64_t b, int64_t h, int64_t i, int64_t j) {
    int64_t D = shape->head_dim, kv_head = h / (shape->heads / shape->kv_heads);
    double score = shape->scale * dot(token_row(query->q, b, i, h, D), token_row(kv->k, b, j, kv_head, D), D);
    double d_weight = dot(token_row(query->d_out, b, i, h, D), token_row(kv->v, b, j, kv_head, D), D);
    double weight = exp(score - *row_value(query->log_sum_exp, b, i, h));
    return (PairGradient){weight, shape->scale * weight * (d_weight - *row_value(query->delta, b, i, h))};
}

static void backward_query_row(const AttentionShape *shape, const QueryBackward *query, const KeyValue *kv, int64_t b,
                               int64_t h, int64_t i) {
    int64_t D = shape->head_dim, kv_head = h / (shape->heads / shape->kv_heads);
    Range visible = visible_keys(&query->visibility, b, kv->chunk, query->chunk.start + i);
    double d_q[ATTENTION_MAX_HEAD_DIM] = {0};
    for (int64_t j = visible.first; j < visible.end; j++) {
        double d_score = pair_gradient(shape, query, kv, b, h, i, j).d_score;
        const float *k = token_row(kv->k, b, j, kv_head, D);
        for (int64_t d = 0; d < D; d++) d_q[d] += d_score * k[d];
    }
    float *out = float_row(query->d_q, b, i, h, D);
    for (int64_t d = 0; d < D; d++) out[d] = (float)(out[d] + d_q[d]);
}

static void backward_key_row(const AttentionShape *shape, const QueryBackward *query, const KeyValue *kv, int64_t b,
                             int64_t kv_head, int64_t j) {
    int64_t D = shape->head_dim, group = shape->heads / shape->kv_heads;
    double d_k[ATTENTION_MAX_HEAD_DIM] = {0}, d_v[ATTENTION_MAX_HEAD_DIM] = {0};
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
        for (int64_t i = 0; i < query->chunk.length; i++) {
            Range visible = visible_keys(&query->visibility, b, kv->chunk, query->chunk.start + i);
            if (j < visible.first || j >= visible.end) continue;
            PairGradient g = pair_gradient(shape, query, kv, b, h, i, j);
            const float *q = token_row(query->q, b, i, h, D), *d_out = token_row(query->d_out, b, i, h, D);
            for (int64_t d = 0; d < D; d++) {
                d_k[d] += g.d_score * q[d];
                d_v[d] += g.weight * d_out[d];
            }
        }
    }
    float *d_k_out = float_row(kv->d_k, b, j, kv_head, D), *d_v_out = float_row(kv->d_v, b, j, kv_head, D);
    for (int64_t d = 0; d < D; d++) {
        d_k_out[d] = (float)(d_k_out[d] + d_k[d]);
        d_v_out[d] = (float)(d_v_out[d] + d_v[d]);
    }
}

// The pair's scores are computed twice, once by rows and once by columns, so that every sum stays in double precision.
static void backward_pair(Device *device, const AttentionShape *shape, const QueryBackward *query, const KeyValue *kv) {
    (void)device;
    for (int64_t b = 0; b < shape->batch; b++) {
        for (int64_t h = 0; h < shape->heads; h++)
            for (int64_t i = 0; i < query->chunk.length; i++) backward_query_row(shape, query, kv, b, h, i);
        for (int64_t kv_head = 0; kv_head < shape->kv_heads; kv_head++)
            for (int64_t j = 0; j < kv->chunk.length; j++) backward_key_row(shape, query, kv, b, kv_head, j);
    }
}

// Storage is fp32: what is summed up can stand where the result will be.
static const char *unsupported(const AttentionShape *shape) {
    (void)shape;
    return NULL;
}

const AttentionKernels attention_kernels_reference = {.begin = begin,
                                                      .forward_pair = forward_pair,
                                                      .finish = finish,
                                                      .forward_whole = reference_forward_whole,
                                                      .row_delta = row_delta,
                                                      .backward_pair = backward_pair,
                                                      .backward_whole = reference_backward_whole,
                                                      .unsupported = unsupported};
