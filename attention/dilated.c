// Pairs of residue classes: which rows, heads and positions a call of the kernels is given (attention/dilated.h).
#include "attention/dilated.h"

static int64_t round_up(int64_t x, int64_t R) { return (x + R - 1) / R; } // x / R; x > -R

ResidueClass residue_class(Chunk chunk, int64_t residue, int64_t R) {
    int64_t begin = round_up(chunk.start - residue, R), end = round_up(chunk_end(chunk) - residue, R);
    ResidueClass class = {{begin, end - begin}, end > begin ? residue + R * begin - chunk.start : 0, 0};
    for (int64_t c = 0; c < residue; c++)
        class.rows += round_up(chunk_end(chunk) - c, R) - round_up(chunk.start - c, R);
    return class;
}

int64_t dilated_first_elements(int64_t batch, int64_t context, int64_t R) { return batch * round_up(context, R); }

// ---- every R-th row, from a head on
// -----------------------------------------------------------------------------------

static TokenView tokens_of(const Device *d, TokenView view, ResidueClass class, int64_t R, int64_t elements) {
    return (TokenView){at(d, view.data, class.first * view.token_stride + elements), view.batch_stride,
                       R * view.token_stride};
}
static FloatView floats_of(FloatView view, ResidueClass class, int64_t R, int64_t elements) {
    if (view.data == NULL) return view;
    return (FloatView){view.data + class.first * view.token_stride + elements, view.batch_stride,
                       R * view.token_stride};
}
static RowView rows_of(RowView view, ResidueClass class, int64_t head) {
    return (RowView){view.data + class.rows + head * view.head_stride, view.batch_stride, view.head_stride};
}

// ---- the calls that a pair of chunks comes to
// ---------------------------------------------------------------------------

// The queries of class `query` with the keys of class `key` and the heads that look at those.
typedef struct Part {
    Residues residues;
    AttentionShape shape;
    int64_t head, kv_head; // the first
    ResidueClass queries, keys;
    Chunk key_chunk; // their numbers, for these queries
    Visibility visibility;
} Part;

static Part part_of(Device *d, const AttentionShape *shape, const Visibility *v, Chunk queries, Chunk keys, int64_t c,
                    int64_t s, int32_t *first) {
    int64_t R = v->dilation, behind = s > c,
            distance = c - s + R * behind; // of a query to the last key that it may see
    Part part = {.residues = {R, c, s}, .shape = *shape};
    part.shape.heads /= R;
    part.shape.kv_heads /= R;
    part.head = s * part.shape.heads;
    part.kv_head = s * part.shape.kv_heads;
    part.queries = residue_class(queries, c, R);
    part.keys = residue_class(keys, s, R);
    part.key_chunk = (Chunk){part.keys.numbers.start + behind, part.keys.numbers.length};
    if (v->window > 0) part.visibility.window = round_up(v->window - distance, R);
    if (v->first == NULL || part.queries.numbers.length == 0) return part;
    part.visibility.stride = dilated_first_elements(1, chunk_end(queries), R);
    part.visibility.first = first;
    d->attention->first_of_residues(d, shape->batch, v, part.residues, part.queries.numbers, behind, first,
                                    part.visibility.stride);
    return part;
}

static KeyValue keys_of(const Device *d, const KeyValue *kv, const Part *part, bool own) {
    int64_t R = part->residues.step, elements = own ? part->kv_head * part->shape.head_dim : 0;
    return (KeyValue){part->key_chunk, tokens_of(d, kv->k, part->keys, R, elements),
                      tokens_of(d, kv->v, part->keys, R, elements), floats_of(kv->d_k, part->keys, R, 0),
                      floats_of(kv->d_v, part->keys, R, 0)};
}

static QueryForward forward_of(const Device *d, const QueryForward *query, const Part *part) {
    int64_t R = part->residues.step, elements = part->head * part->shape.head_dim;
    return (QueryForward){part->queries.numbers,
                          tokens_of(d, query->q, part->queries, R, elements),
                          floats_of(query->accumulator, part->queries, R, elements),
                          rows_of(query->max, part->queries, part->head),
                          rows_of(query->sum, part->queries, part->head),
                          part->visibility};
}

void dilated_forward_pair(Device *d, const AttentionShape *shape, const QueryForward *query, const KeyValue *kv,
                          bool own, int32_t *first) {
    const Visibility *v = &query->visibility;
    for (int64_t s = 0; s < v->dilation; s++)
        for (int64_t c = 0; c < v->dilation; c++) {
            Part part = part_of(d, shape, v, query->chunk, kv->chunk, c, s, first);
            if (part.queries.numbers.length == 0 || part.key_chunk.length == 0) continue;
            QueryForward queries = forward_of(d, query, &part);
            KeyValue keys = keys_of(d, kv, &part, own);
            d->attention->forward_pair(d, &part.shape, &queries, &keys);
        }
}

void dilated_forward_whole(Device *d, const AttentionShape *shape, const QueryForward *query, const KeyValue *kv,
                           TokenView out, RowView log_sum_exp, int32_t *first) {
    const Visibility *v = &query->visibility;
    for (int64_t s = 0; s < v->dilation; s++)
        for (int64_t c = 0; c < v->dilation; c++) {
            Part part = part_of(d, shape, v, query->chunk, kv->chunk, c, s, first);
            if (part.queries.numbers.length == 0) continue;
            QueryForward queries = forward_of(d, query, &part);
            KeyValue keys = keys_of(d, kv, &part, true);
            TokenView to = tokens_of(d, out, part.queries, v->dilation, part.head * shape->head_dim);
            d->attention->forward_whole(d, &part.shape, &queries, &keys, to,
                                        rows_of(log_sum_exp, part.queries, part.head));
        }
}

// All heads at once: they differ in the keys that they see, which these two do not ask for.
void dilated_finish(Device *d, const AttentionShape *shape, const QueryForward *query, TokenView out,
                    RowView log_sum_exp) {
    int64_t R = query->visibility.dilation;
    for (int64_t c = 0; c < R; c++) {
        ResidueClass class = residue_class(query->chunk, c, R);
        QueryForward queries = {.chunk = class.numbers,
                                .q = query->q,
                                .accumulator = floats_of(query->accumulator, class, R, 0),
                                .max = rows_of(query->max, class, 0),
                                .sum = rows_of(query->sum, class, 0)};
        if (class.numbers.length == 0) continue;
        d->attention->finish(d, shape, &queries, tokens_of(d, out, class, R, 0), rows_of(log_sum_exp, class, 0));
    }
}

void dilated_row_delta(Device *d, const AttentionShape *shape, int64_t R, Chunk chunk, TokenView out, TokenView d_out,
                       RowView delta) {
    for (int64_t c = 0; c < R; c++) {
        ResidueClass class = residue_class(chunk, c, R);
        if (class.numbers.length == 0) continue;
        d->attention->row_delta(d, shape, class.numbers, tokens_of(d, out, class, R, 0),
                                tokens_of(d, d_out, class, R, 0), rows_of(delta, class, 0));
    }
}

void dilated_backward_pair(Device *d, const AttentionShape *shape, const QueryBackward *query, const KeyValue *kv,
                           bool own, int32_t *first) {
    const Visibility *v = &query->visibility;
    int64_t R = v->dilation;
    for (int64_t s = 0; s < R; s++)
        for (int64_t c = 0; c < R; c++) {
            Part part = part_of(d, shape, v, query->chunk, kv->chunk, c, s, first);
            if (part.queries.numbers.length == 0 || part.key_chunk.length == 0) continue;
            int64_t elements = part.head * shape->head_dim;
            QueryBackward queries = {part.queries.numbers,
                                     tokens_of(d, query->q, part.queries, R, elements),
                                     tokens_of(d, query->d_out, part.queries, R, elements),
                                     rows_of(query->log_sum_exp, part.queries, part.head),
                                     rows_of(query->delta, part.queries, part.head),
                                     floats_of(query->d_q, part.queries, R, elements),
                                     part.visibility};
            KeyValue keys = keys_of(d, kv, &part, own);
            d->attention->backward_pair(d, &part.shape, &queries, &keys);
        }
}
