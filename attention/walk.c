// The walk of one rank's query chunks over key/value chunks, block after block; the exchanges bring the blocks. All
// that is carried from one block to the next is per query: the softmax state in forward, d_q in backward.
//
// Blocks come in the order mine, then those of the ranks after me (rank + 1, rank + 2, ..., round to rank - 1), under
// every exchange: the ring and gather give the same bits. Every query walks over its keys once, in a few large pieces,
// so what is rounded between two pieces is rounded P times at most, against once per 64 or so keys inside the kernel:
// the error does not grow with P.
#include "attention/exchange.h"

int64_t walk_token_elements(const AttentionShape *shape) {
    return 2 * shape->batch * shape->kv_heads * shape->head_dim;
}

int walk_rank(const Walk *walk, int distance) { return (walk->rank + walk->ranks + distance) % walk->ranks; }

static int64_t values_offset(const AttentionShape *shape) { return shape->batch * shape->kv_heads * shape->head_dim; }

static TokenView block_keys(const Walk *walk, const void *block) {
    const AttentionShape *shape = &walk->shape;
    return (TokenView){(void *)block, shape->kv_heads * shape->head_dim, walk_token_elements(shape)};
}

static TokenView block_values(const Walk *walk, const void *block) {
    return block_keys(walk, at(walk->device, block, values_offset(&walk->shape)));
}

void walk_pack(const Walk *walk, void *block, TokenView k, TokenView v) {
    const AttentionShape *shape = &walk->shape;
    Device *device = walk->device;
    int64_t bytes = (int64_t)device->element_bytes, width = shape->kv_heads * shape->head_dim;
    TokenView from[2] = {k, v}, to[2] = {block_keys(walk, block), block_values(walk, block)};
    for (int i = 0; i < 2; i++) {
        for (int64_t b = 0; b < shape->batch; b++) {
            device->copy_strided(device, at(device, to[i].data, b * to[i].batch_stride), to[i].token_stride * bytes,
                                 at(device, from[i].data, b * from[i].batch_stride), from[i].token_stride * bytes,
                                 walk->shard.tokens, (size_t)(width * bytes));
        }
    }
}

// ---- what travels -------------------------------------------------------------------------------
// Every rank knows the window, and where the documents of the whole sequence end: so each knows what is seen by whom.

Shard walk_seen(const Walk *walk, int owner, int reader) {
    return shard_seen(walk->context, walk->ranks, owner, reader, &walk->on_host);
}

Shard walk_seen_from(const Walk *walk, int owner, int reader) {
    return shard_seen_from(walk->context, walk->ranks, owner, reader, &walk->on_host);
}

Load walk_load(const Walk *walk, void *block, int owner, Shard piece) {
    return (Load){block, shard_of(walk->context, walk->ranks, owner), piece};
}

size_t walk_token_bytes(const Walk *walk) {
    return (size_t)walk_token_elements(&walk->shape) * walk->device->element_bytes;
}

// Neighbouring tokens of a block.
typedef struct Span {
    int64_t first, tokens;
} Span;

// The parts of a block that hold these pieces of its owner's chunks: two at most, no tokens in those that are not
// needed.
static int spans_of(const Shard *owner, const Shard *piece, Span span[2]) {
    int count = 0;
    span[0] = span[1] = (Span){0, 0};
    for (int i = 0; i < piece->count; i++) {
        if (piece->chunk[i].length == 0) continue;
        int64_t first = shard_offset(owner, piece->chunk[i].start);
        if (count > 0 && span[0].first + span[0].tokens == first) span[0].tokens += piece->chunk[i].length;
        else span[count++] = (Span){first, piece->chunk[i].length};
    }
    return count;
}

Passage walk_pass(const Walk *walk, Load sent, int to, Load received, int from, size_t token_bytes) {
    Span out[2], in[2];
    int sends = spans_of(&sent.owner, &sent.piece, out), receives = spans_of(&received.owner, &received.piece, in);
    Passage passage = {.count = sends > receives ? sends : receives};
    for (int i = 0; i < passage.count; i++)
        passage.request[i] = comm_exchange_begin(
            walk->group, (char *)sent.block + (size_t)out[i].first * token_bytes, (size_t)out[i].tokens * token_bytes,
            to, (char *)received.block + (size_t)in[i].first * token_bytes, (size_t)in[i].tokens * token_bytes, from);
    return passage;
}

void walk_wait(const Walk *walk, Passage *passage) {
    for (int i = 0; i < passage->count; i++) comm_wait(walk->group, &passage->request[i]);
}

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
    int64_t token = walk_token_elements(&walk->shape);
    return (FloatView){gradient + offset * token, walk->shape.kv_heads * walk->shape.head_dim, token};
}

// My own keys and values are used where they are; those of others are in their block.
static KeyValue key_value_chunk(const Walk *walk, const Tensors *mine, int owner, const void *block, float *gradient,
                                Chunk chunk, int64_t offset) {
    TokenView k = owner == walk->rank ? mine->k : block_keys(walk, block);
    TokenView v = owner == walk->rank ? mine->v : block_values(walk, block);
    KeyValue kv = {.chunk = chunk, .k = token_chunk(walk, k, offset), .v = token_chunk(walk, v, offset)};
    if (gradient != NULL) {
        kv.d_k = gradient_chunk(walk, gradient, offset);
        kv.d_v = gradient_chunk(walk, gradient + values_offset(&walk->shape), offset);
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

void walk_forward_alone(const Walk *walk, const Tensors *mine) {
    QueryForward query = forward_chunk(walk, mine, 0); // with all tokens: the shard of a single rank is one chunk
    KeyValue kv = key_value_chunk(walk, mine, walk->rank, NULL, NULL, query.chunk, 0);
    walk->device->attention->forward_whole(walk->device, &walk->shape, &query, &kv, mine->out, query.max);
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
            if (visibility_sees(&walk->on_host, 0, query.chunk, kv.chunk)) {
                walk->device->attention->forward_pair(walk->device, &walk->shape, &query, &kv);
            }
        }
    }
}

void walk_finish_forward(const Walk *walk, const Tensors *mine) {
    for (int i = 0; i < walk->shard.count; i++) {
        QueryForward query = forward_chunk(walk, mine, i);
        int64_t offset = shard_offset(&walk->shard, query.chunk.start);
        walk->device->attention->finish(walk->device, &walk->shape, &query, token_chunk(walk, mine->out, offset),
                                        query.max);
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

static int64_t query_elements(const Walk *walk) {
    return walk->shape.batch * walk->shard.tokens * walk->shape.heads * walk->shape.head_dim;
}

void walk_begin_backward(const Walk *walk) {
    walk->device->zero(walk->device, walk->queries, (size_t)query_elements(walk) * sizeof(float));
}

void walk_backward(const Walk *walk, const Tensors *mine, int owner, const void *block, float *gradient) {
    Shard keys = shard_of(walk->context, walk->ranks, owner), seen = walk_seen(walk, owner, walk->rank);
    int64_t token = walk_token_elements(&walk->shape);
    Span span[2];
    for (int i = 0, spans = spans_of(&keys, &seen, span); i < spans; i++)
        walk->device->zero(walk->device, gradient + span[i].first * token,
                           (size_t)(span[i].tokens * token) * sizeof *gradient);
    for (int i = 0; i < walk->shard.count; i++) {
        QueryBackward query = backward_chunk(walk, mine, i);
        for (int j = 0; j < seen.count; j++) {
            int64_t offset = shard_offset(&keys, seen.chunk[j].start);
            KeyValue kv = key_value_chunk(walk, mine, owner, block, gradient, seen.chunk[j], offset);
            if (visibility_sees(&walk->on_host, 0, query.chunk, kv.chunk)) {
                walk->device->attention->backward_pair(walk->device, &walk->shape, &query, &kv);
            }
        }
    }
}

void walk_add_gradient(const Walk *walk, float *sum, const float *part, int owner, Shard piece) {
    Shard keys = shard_of(walk->context, walk->ranks, owner);
    int64_t token = walk_token_elements(&walk->shape);
    Span span[2];
    for (int i = 0, spans = spans_of(&keys, &piece, span); i < spans; i++)
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
    int64_t width = walk->shape.kv_heads * walk->shape.head_dim, token = walk_token_elements(&walk->shape);
    TokenView to[2] = {d_k, d_v};
    for (int i = 0; i < 2; i++) {
        for (int64_t b = 0; b < walk->shape.batch; b++) {
            device->to_storage_strided(device, at(device, to[i].data, b * to[i].batch_stride), to[i].token_stride,
                                       gradient + i * values_offset(&walk->shape) + b * width, token,
                                       walk->shard.tokens, width);
        }
    }
}
