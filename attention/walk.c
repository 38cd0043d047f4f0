// The walk of one rank's query chunks over key/value chunks, block after block; the exchanges bring the blocks. All
// that is carried from one block to the next is per query: the softmax state in forward, d_q in backward.
//
// Blocks come in the order mine, then those of the ranks after me (rank + 1, rank + 2, ..., round to rank - 1), under
// every exchange: the ring and gather give the same bits. Every query walks over its keys once, in a few large pieces,
// so what is rounded between two pieces is rounded P times at most, against once per 64 or so keys inside the kernel:
// the error does not grow with P.
#include "attention/dilated.h"
#include "attention/exchange.h"

// ---- chunks of a shard's tensors, beginning at token `offset` -----------------------------------

static TokenView token_chunk(const Walk *walk, TokenView view, int64_t offset) {
    view.data = at(walk->device, view.data, offset * view.token_stride);
    return view;
}

static FloatView query_chunk(const Walk *walk, int64_t offset) { // of walk->queries
    int64_t width = walk->shape.heads * walk->shape.head_dim;
    if (walk->queries == NULL) return (FloatView){NULL, 0, 0};
    return (FloatView){walk->queries + offset * width, walk->shard.tokens * width, width};
}

static RowView row_chunk(const Walk *walk, float *rows, int64_t offset) {
    return (RowView){rows + offset, walk->shape.heads * walk->shard.tokens, walk->shard.tokens};
}

static FloatView gradient_chunk(const Walk *walk, float *gradient, int64_t offset) {
    int64_t token = walk_token_elements(&walk->block_shape);
    return (FloatView){gradient + offset * token, walk->block_shape.kv_heads * walk->block_shape.head_dim, token};
}

// My own keys and values are used where they are; those of others are in their block.
static KeyValue key_value_chunk(const Walk *walk, const Tensors *mine, int owner, const void *block, float *gradient,
                                Chunk chunk, int64_t offset) {
    TokenView k = owner == walk->rank ? mine->k : walk_block_keys(walk, block);
    TokenView v = owner == walk->rank ? mine->v : walk_block_values(walk, block);
    KeyValue kv = {.chunk = chunk, .k = token_chunk(walk, k, offset), .v = token_chunk(walk, v, offset)};
    if (gradient != NULL) {
        kv.d_k = gradient_chunk(walk, gradient, offset);
        kv.d_v = gradient_chunk(walk, gradient + walk_values_offset(&walk->block_shape), offset);
    }
    return kv;
}

// ---- forward ------------------------------------------------------------------------------------

static QueryForward forward_chunk(const Walk *walk, const Tensors *mine, int i) {
    int64_t offset = shard_offset(&walk->shard, walk->shard.chunk[i].start);
    return (QueryForward){.chunk = walk->shard.chunk[i],
                          .q = token_chunk(walk, mine->q, offset),
                          .accumulator = query_chunk(walk, offset),
                          .max = row_chunk(walk, mine->log_sum_exp, offset), // log_sum_exp takes its place at the end
                          .sum = row_chunk(walk, walk->rows, offset),
                          .visibility = walk->visibility};
}

static bool is_dilated(const Walk *walk) { return walk->visibility.dilation > 1; }

void walk_forward_alone(const Walk *walk, const Tensors *mine) {
    QueryForward query = forward_chunk(walk, mine, 0); // with all tokens: the shard of a single rank is one chunk
    KeyValue kv = key_value_chunk(walk, mine, walk->rank, NULL, NULL, query.chunk, 0);
    if (is_dilated(walk))
        dilated_forward_whole(walk->device, &walk->shape, &query, &kv, mine->out, query.max, walk->first);
    else walk->device->attention->forward_whole(walk->device, &walk->shape, &query, &kv, mine->out, query.max);
}

void walk_begin_forward(const Walk *walk, const Tensors *mine) {
    for (int i = 0; i < walk->shard.count; i++) {
        QueryForward query = forward_chunk(walk, mine, i);
        walk->device->attention->begin(walk->device, &walk->shape, &query);
    }
}

void walk_forward(const Walk *walk, const Tensors *mine, int owner, const void *block) {
    Shard keys = shard_of(walk->context, walk->ranks, owner), seen = walk_seen(walk, owner, walk->rank);
    for (int i = 0; i < walk->shard.count; i++) {
        QueryForward query = forward_chunk(walk, mine, i);
        for (int j = 0; j < seen.count; j++) {
            int64_t offset = shard_offset(&keys, seen.chunk[j].start);
            KeyValue kv = key_value_chunk(walk, mine, owner, block, NULL, seen.chunk[j], offset);
            if (!visibility_sees(&walk->on_host, 0, query.chunk, kv.chunk)) continue;
            if (is_dilated(walk))
                dilated_forward_pair(walk->device, &walk->shape, &query, &kv, owner == walk->rank, walk->first);
            else walk->device->attention->forward_pair(walk->device, &walk->shape, &query, &kv);
        }
    }
}

void walk_finish_forward(const Walk *walk, const Tensors *mine) {
    for (int i = 0; i < walk->shard.count; i++) {
        QueryForward query = forward_chunk(walk, mine, i);
        int64_t offset = shard_offset(&walk->shard, query.chunk.start);
        TokenView out = token_chunk(walk, mine->out, offset);
        if (is_dilated(walk)) dilated_finish(walk->device, &walk->shape, &query, out, query.max);
        else walk->device->attention->finish(walk->device, &walk->shape, &query, out, query.max);
    }
}

// ---- backward -----------------------------------------------------------------------------------

static QueryBackward backward_chunk(const Walk *walk, const Tensors *mine, int i) {
    int64_t offset = shard_offset(&walk->shard, walk->shard.chunk[i].start);
    return (QueryBackward){.chunk = walk->shard.chunk[i],
                           .q = token_chunk(walk, mine->q, offset),
                           .d_out = token_chunk(walk, mine->d_out, offset),
                           .log_sum_exp = row_chunk(walk, mine->log_sum_exp, offset),
                           .delta = row_chunk(walk, mine->delta, offset),
                           .d_q = query_chunk(walk, offset),
                           .visibility = walk->visibility};
}

void walk_backward_alone(const Walk *walk, const Tensors *mine, TokenView d_k, TokenView d_v) {
    QueryBackward query = backward_chunk(walk, mine, 0);
    KeyValue kv = key_value_chunk(walk, mine, walk->rank, NULL, NULL, query.chunk, 0);
    walk->device->attention->backward_whole(walk->device, &walk->shape, &query, &kv, mine->d_q, d_k, d_v);
}

void walk_row_delta(const Walk *walk, const Tensors *mine) {
    for (int i = 0; i < walk->shard.count; i++) {
        int64_t offset = shard_offset(&walk->shard, walk->shard.chunk[i].start);
        TokenView out = token_chunk(walk, mine->out, offset), d_out = token_chunk(walk, mine->d_out, offset);
        dilated_row_delta(walk->device, &walk->shape, walk->visibility.dilation, walk->shard.chunk[i], out, d_out,
                          row_chunk(walk, mine->delta, offset));
    }
}

static int64_t query_elements(const Walk *walk) {
    return walk->shape.batch * walk->shard.tokens * walk->shape.heads * walk->shape.head_dim;
}

void walk_begin_backward(const Walk *walk) {
    walk->device->zero(walk->device, walk->queries, (size_t)query_elements(walk) * sizeof(float));
}

void walk_backward(const Walk *walk, const Tensors *mine, int owner, const void *block, float *gradient) {
    Shard keys = shard_of(walk->context, walk->ranks, owner), seen = walk_seen(walk, owner, walk->rank);
    int64_t token = walk_token_elements(&walk->block_shape);
    Span span[2];
    for (int i = 0, spans = walk_spans_of(&keys, &seen, span); i < spans; i++)
        walk->device->zero(walk->device, gradient + span[i].first * token,
                           (size_t)(span[i].tokens * token) * sizeof *gradient);
    for (int i = 0; i < walk->shard.count; i++) {
        QueryBackward query = backward_chunk(walk, mine, i);
        for (int j = 0; j < seen.count; j++) {
            int64_t offset = shard_offset(&keys, seen.chunk[j].start);
            KeyValue kv = key_value_chunk(walk, mine, owner, block, gradient, seen.chunk[j], offset);
            if (!visibility_sees(&walk->on_host, 0, query.chunk, kv.chunk)) continue;
            if (is_dilated(walk))
                dilated_backward_pair(walk->device, &walk->shape, &query, &kv, owner == walk->rank, walk->first);
            else walk->device->attention->backward_pair(walk->device, &walk->shape, &query, &kv);
        }
    }
}

void walk_add_gradient(const Walk *walk, float *sum, const float *part, int owner, Shard piece) {
    Shard keys = shard_of(walk->context, walk->ranks, owner);
    int64_t token = walk_token_elements(&walk->block_shape);
    Span span[2];
    for (int i = 0, spans = walk_spans_of(&keys, &piece, span); i < spans; i++)
        walk->device->add_float(walk->device, sum + span[i].first * token, part + span[i].first * token,
                                span[i].tokens * token);
}

void walk_finish_backward(const Walk *walk, const Tensors *mine) {
    Device *device = walk->device;
    int64_t tokens = walk->shard.tokens, width = walk->shape.heads * walk->shape.head_dim;
    for (int64_t b = 0; b < walk->shape.batch; b++) {
        device->to_storage_strided(device, at(device, mine->d_q.data, b * mine->d_q.batch_stride),
                                   mine->d_q.token_stride, walk->queries + b * tokens * width, width, tokens, width);
    }
}

void walk_store_gradient(const Walk *walk, const float *gradient, TokenView d_k, TokenView d_v) {
    Device *device = walk->device;
    int64_t width = walk->block_shape.kv_heads * walk->block_shape.head_dim,
            token = walk_token_elements(&walk->block_shape);
    TokenView to[2] = {d_k, d_v};
    Strip strip[MOST_STRIPS];
    int strips = walk_strips(walk, strip);
    for (int i = 0; i < 2 * strips; i++) {
        Strip s = strip[i / 2];
        TokenView out = to[i % 2];
        for (int64_t b = 0; b < walk->shape.batch; b++)
            device->to_storage_strided(
                device, at(device, out.data, b * out.batch_stride + s.first * out.token_stride + s.elements),
                s.step * out.token_stride,
                gradient + s.first * token + i % 2 * walk_values_offset(&walk->block_shape) + b * width, s.step * token,
                s.tokens, width);
    }
}
