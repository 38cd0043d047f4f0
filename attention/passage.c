// Blocks of keys and values, and how they travel: my own packed to be sent, and the parts that somebody still has to
// see. Every rank knows the window, and where the documents of the whole sequence end: so each knows what is seen by
// whom.
#include "attention/dilated.h"
#include "attention/exchange.h"

int64_t walk_token_elements(const AttentionShape *shape) {
    return 2 * shape->batch * shape->kv_heads * shape->head_dim;
}

int walk_rank(const Walk *walk, int distance) { return (walk->rank + walk->ranks + distance) % walk->ranks; }

int64_t walk_values_offset(const AttentionShape *shape) { return shape->batch * shape->kv_heads * shape->head_dim; }

TokenView walk_block_keys(const Walk *walk, const void *block) {
    const AttentionShape *shape = &walk->block_shape;
    return (TokenView){(void *)block, shape->kv_heads * shape->head_dim, walk_token_elements(shape)};
}

TokenView walk_block_values(const Walk *walk, const void *block) {
    return walk_block_keys(walk, at(walk->device, block, walk_values_offset(&walk->block_shape)));
}

int walk_strips(const Walk *walk, Strip strip[MOST_STRIPS]) {
    int64_t R = walk->visibility.dilation, width = walk->block_shape.kv_heads * walk->block_shape.head_dim;
    if (R <= 1) {
        strip[0] = (Strip){0, 1, walk->shard.tokens, 0};
        return 1;
    }
    int count = 0;
    for (int i = 0; i < walk->shard.count; i++)
        for (int64_t s = 0; s < R; s++) {
            ResidueClass class = residue_class(walk->shard.chunk[i], s, R);
            int64_t first = shard_offset(&walk->shard, walk->shard.chunk[i].start) + class.first;
            strip[count++] = (Strip){first, R, class.numbers.length, s * width};
        }
    return count;
}

void walk_pack(const Walk *walk, void *block, TokenView k, TokenView v) {
    const AttentionShape *shape = &walk->block_shape;
    Device *device = walk->device;
    int64_t bytes = (int64_t)device->element_bytes, width = shape->kv_heads * shape->head_dim;
    TokenView from[2] = {k, v}, to[2] = {walk_block_keys(walk, block), walk_block_values(walk, block)};
    Strip strip[MOST_STRIPS];
    int strips = walk_strips(walk, strip);
    for (int i = 0; i < 2 * strips; i++) {
        Strip s = strip[i / 2];
        TokenView in = from[i % 2], out = to[i % 2];
        for (int64_t b = 0; b < shape->batch; b++)
            device->copy_strided(device, at(device, out.data, b * out.batch_stride + s.first * out.token_stride),
                                 s.step * out.token_stride * bytes,
                                 at(device, in.data, b * in.batch_stride + s.first * in.token_stride + s.elements),
                                 s.step * in.token_stride * bytes, s.tokens, (size_t)(width * bytes));
    }
}

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
    return (size_t)walk_token_elements(&walk->block_shape) * walk->device->element_bytes;
}

int walk_spans_of(const Shard *owner, const Shard *piece, Span span[2]) {
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
    int sends = walk_spans_of(&sent.owner, &sent.piece, out),
        receives = walk_spans_of(&received.owner, &received.piece, in);
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
