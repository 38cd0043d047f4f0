// Ulysses (Jacobs et al., "DeepSpeed Ulysses", 2023): an all-to-all turns "my tokens, all heads" into "all tokens, my
// heads", attention is worked on there, and a second all-to-all turns its result back. Over U ranks, each with H/U
// query heads.
//
// Where there are fewer key/value heads than ranks, a key/value head is given to each of the U/KV ranks whose query
// heads read it, and the parts of its gradient that come back from them are added in fp32 in the order of ranks.
//
// Both all-to-alls move records, one per token and rank: everything that goes the same way, such as q, k and v of that
// rank's heads. On the side of the tokens they are packed per rank; on the side of the heads they stand in the order of
// the tokens of the whole group, so a rank's chunk is one message, which arrives where it is used. Only rows
// (log_sum_exp, delta), whose tokens must be contiguous, are packed on both sides; they are a D-th of the rest.
#include "attention/exchange.h"

int64_t ulysses_kv_heads(int64_t kv_heads, int ulysses) { return kv_heads >= ulysses ? kv_heads / ulysses : 1; }
// The first of them for rank `rank` of the group; several ranks may be given the same.
static int64_t first_kv_head(int64_t kv_heads, int ulysses, int rank) { return rank * kv_heads / ulysses; }

static Shard shard_of_peer(const Ulysses *u, int peer) { return shard_of(u->context, u->all_ranks, u->first + peer); }

// ---- records ------------------------------------------------------------------------------------

// Elements of the parts of a record. Forward there: q, k, v; back: out. Backward there: q, k, v, d_out; back: d_q, and
// apart from it the gradient of k and v in fp32.
static int64_t query_part(const Ulysses *u) {
    return u->heads_shape.batch * u->heads_shape.heads * u->heads_shape.head_dim;
}
static int64_t key_part(const Ulysses *u) {
    return u->heads_shape.batch * u->heads_shape.kv_heads * u->heads_shape.head_dim;
}
static int64_t forward_record(const Ulysses *u) { return query_part(u) + 2 * key_part(u); }
static int64_t backward_record(const Ulysses *u) { return 2 * query_part(u) + 2 * key_part(u); }

void ulysses_lay_out(Ulysses *u, Arena *arena) {
    size_t widest = (size_t)backward_record(u) * u->element_bytes;
    size_t returned = (size_t)query_part(u) * u->element_bytes + (size_t)key_part(u) * 2 * sizeof(float);
    size_t token_record = widest > returned ? widest : returned;
    size_t rows = (size_t)(u->heads_shape.batch * u->heads_shape.heads) * sizeof(float);
    size_t token_side = (size_t)u->ranks * (size_t)u->mine.tokens, head_side = (size_t)u->group.tokens;
    u->token_side = arena_take(arena, "attention: heads to and from other ranks", token_side * token_record);
    u->head_side = arena_take(arena, "attention: all tokens of this rank's heads", head_side * widest);
    for (int i = 0; i < 2; i++) {
        u->token_rows[i] = arena_take(arena, "attention: rows to and from other ranks", token_side * rows);
        u->head_rows[i] = arena_take(arena, "attention: rows to and from other ranks", head_side * rows);
    }
    u->delta = arena_take(arena, "attention: delta", token_side * rows);
    u->log_sum_exp = arena_take(arena, "attention: log-sum-exp of this rank's heads", head_side * rows);
}

// Copies between part `part` of the records for every rank and a tensor of my tokens in storage type.
static void move_part(const Ulysses *u, bool pack, void *records, int64_t record, int64_t part, TokenView view,
                      bool kv) {
    Device *device = u->device;
    int64_t bytes = (int64_t)u->element_bytes, D = u->heads_shape.head_dim;
    int64_t heads = kv ? u->heads_shape.kv_heads : u->heads_shape.heads, tokens = u->mine.tokens;
    for (int peer = 0; peer < u->ranks; peer++) {
        int64_t first = kv ? first_kv_head(u->tokens_shape.kv_heads, u->ranks, peer) : peer * heads;
        for (int64_t b = 0; b < u->heads_shape.batch; b++) {
            void *packed = at(device, records, peer * tokens * record + part + b * heads * D);
            void *tensor = at(device, view.data, b * view.batch_stride + first * D);
            int64_t packed_stride = record * bytes, tensor_stride = view.token_stride * bytes;
            size_t row = (size_t)(heads * D * bytes);
            if (pack) device->copy_strided(device, packed, packed_stride, tensor, tensor_stride, tokens, row);
            else device->copy_strided(device, tensor, tensor_stride, packed, packed_stride, tokens, row);
        }
    }
}

// A part of the records of all tokens of my heads.
static TokenView heads_view(const Ulysses *u, const char *records, int64_t record, int64_t part, int64_t heads) {
    return (TokenView){at(u->device, records, part), heads * u->heads_shape.head_dim, record};
}

typedef struct Piece { // what one message carries
    char *data;
    size_t bytes;
} Piece;

// My chunk i, among the records exchanged with `peer`, and the peer's chunk i, among those of the group's tokens.
static Piece token_piece(const Ulysses *u, void *token_side, size_t record, int peer, int i) {
    if (i >= u->mine.count) return (Piece){token_side, 0};
    int64_t first = peer * u->mine.tokens + shard_offset(&u->mine, u->mine.chunk[i].start);
    return (Piece){(char *)token_side + (size_t)first * record, (size_t)u->mine.chunk[i].length * record};
}
static Piece head_piece(const Ulysses *u, const void *head_side, size_t record, int peer, int i) {
    Shard theirs = shard_of_peer(u, peer);
    if (i >= theirs.count) return (Piece){(char *)head_side, 0};
    int64_t first = shard_offset(&u->group, theirs.chunk[i].start);
    return (Piece){(char *)head_side + (size_t)first * record, (size_t)theirs.chunk[i].length * record};
}

// At each step of an all-to-all a rank sends to the one `step` places before it and receives from the one after it.
static int receiver(const Ulysses *u, int step) { return (u->rank + u->ranks - step) % u->ranks; }
static int sender(const Ulysses *u, int step) { return (u->rank + step) % u->ranks; }

static CommRequest begin(const Ulysses *u, int step, Piece sent, Piece received) {
    return comm_exchange_begin(u->comm, sent.data, sent.bytes, receiver(u, step), received.data, received.bytes,
                               sender(u, step));
}

// All that an all-to-all exchanges is begun together, between begin_all and wait_for_all.
static CommRequest *begin_all(const Ulysses *u) {
    comm_batch_begin(u->comm);
    return u->request;
}
static void wait_for_all(const Ulysses *u, const CommRequest *end) {
    comm_batch_end(u->comm);
    for (CommRequest *request = u->request; request < end; request++) comm_wait(u->comm, request);
}

// These two begin an all-to-all of records of `record` bytes, and return where the next may put its requests.
static CommRequest *records_to_heads(const Ulysses *u, void *token_side, void *head_side, size_t record,
                                     CommRequest *request) {
    for (int step = 0; step < u->ranks; step++) {
        for (int i = 0; i < 2; i++) {
            *request++ = begin(u, step, token_piece(u, token_side, record, receiver(u, step), i),
                               head_piece(u, head_side, record, sender(u, step), i));
        }
    }
    return request;
}
static CommRequest *records_to_tokens(const Ulysses *u, void *token_side, const void *head_side, size_t record,
                                      CommRequest *request) {
    for (int step = 0; step < u->ranks; step++) {
        for (int i = 0; i < 2; i++) {
            *request++ = begin(u, step, head_piece(u, head_side, record, receiver(u, step), i),
                               token_piece(u, token_side, record, sender(u, step), i));
        }
    }
    return request;
}

// ---- rows ---------------------------------------------------------------------------------------

// Rows of `tokens` values for each batch and head of one rank.
static int64_t row_elements(const Ulysses *u, int64_t tokens) {
    return u->heads_shape.batch * u->heads_shape.heads * tokens;
}

static Piece token_row_piece(const Ulysses *u, float *token_rows, int peer) {
    int64_t count = row_elements(u, u->mine.tokens);
    return (Piece){(char *)(token_rows + peer * count), (size_t)count * sizeof *token_rows};
}
static Piece head_row_piece(const Ulysses *u, float *head_rows, int peer) {
    int64_t tokens_before = 0;
    for (int i = 0; i < peer; i++) tokens_before += shard_of_peer(u, i).tokens;
    return (Piece){(char *)(head_rows + row_elements(u, tokens_before)),
                   (size_t)row_elements(u, shard_of_peer(u, peer).tokens) * sizeof *head_rows};
}

// Copies between the rows for every rank and rows (B, H, my tokens).
static void move_token_rows(const Ulysses *u, bool pack, float *token_rows, float *rows) {
    Device *device = u->device;
    int64_t heads = u->heads_shape.heads, tokens = u->mine.tokens, bytes = sizeof *rows;
    int64_t packed_stride = heads * tokens * bytes, tensor_stride = u->tokens_shape.heads * tokens * bytes;
    for (int peer = 0; peer < u->ranks; peer++) {
        char *packed = token_row_piece(u, token_rows, peer).data;
        float *tensor = rows + peer * heads * tokens;
        size_t row = (size_t)packed_stride;
        if (pack) device->copy_strided(device, packed, packed_stride, tensor, tensor_stride, u->heads_shape.batch, row);
        else device->copy_strided(device, tensor, tensor_stride, packed, packed_stride, u->heads_shape.batch, row);
    }
}

// Copies between the rows of every rank and rows (B, H/U, group's tokens).
static void move_head_rows(const Ulysses *u, bool pack, float *head_rows, float *rows) {
    Device *device = u->device;
    int64_t bytes = sizeof *rows, tensor_stride = u->group.tokens * bytes;
    for (int peer = 0; peer < u->ranks; peer++) {
        Shard theirs = shard_of_peer(u, peer);
        float *first = (float *)head_row_piece(u, head_rows, peer).data;
        int64_t packed_stride = theirs.tokens * bytes, count = row_elements(u, 1);
        for (int i = 0; i < theirs.count; i++) {
            float *packed = first + shard_offset(&theirs, theirs.chunk[i].start);
            float *tensor = rows + shard_offset(&u->group, theirs.chunk[i].start);
            size_t row = (size_t)(theirs.chunk[i].length * bytes);
            if (pack) device->copy_strided(device, packed, packed_stride, tensor, tensor_stride, count, row);
            else device->copy_strided(device, tensor, tensor_stride, packed, packed_stride, count, row);
        }
    }
}

static CommRequest *rows_to_heads(const Ulysses *u, int kind, CommRequest *request) {
    for (int step = 0; step < u->ranks; step++) {
        *request++ = begin(u, step, token_row_piece(u, u->token_rows[kind], receiver(u, step)),
                           head_row_piece(u, u->head_rows[kind], sender(u, step)));
    }
    return request;
}
static CommRequest *rows_to_tokens(const Ulysses *u, int kind, CommRequest *request) {
    for (int step = 0; step < u->ranks; step++) {
        *request++ = begin(u, step, head_row_piece(u, u->head_rows[kind], receiver(u, step)),
                           token_row_piece(u, u->token_rows[kind], sender(u, step)));
    }
    return request;
}

// ---- forward ------------------------------------------------------------------------------------

Tensors ulysses_forward_to_heads(const Ulysses *u, const Tensors *mine) {
    int64_t record = forward_record(u), k_part = query_part(u), v_part = k_part + key_part(u);
    move_part(u, true, u->token_side, record, 0, mine->q, false);
    move_part(u, true, u->token_side, record, k_part, mine->k, true);
    move_part(u, true, u->token_side, record, v_part, mine->v, true);
    wait_for_all(u, records_to_heads(u, u->token_side, u->head_side, (size_t)record * u->element_bytes, begin_all(u)));

    int64_t heads = u->heads_shape.heads, kv_heads = u->heads_shape.kv_heads;
    return (Tensors){
        .q = heads_view(u, u->head_side, record, 0, heads),
        .k = heads_view(u, u->head_side, record, k_part, kv_heads),
        .v = heads_view(u, u->head_side, record, v_part, kv_heads),
        .out = heads_view(u, u->token_side, query_part(u), 0, heads), // not over q, k and v: a kernel may read on
        .log_sum_exp = u->log_sum_exp};
}

// The two sides have changed their places: the output stands on the side of the tokens, which had nothing left to do,
// and what is mine of it arrives on the side of the heads. Both have room for it. They were laid out for records at
// least twice as long, and no rank has more than twice the tokens of another: its chunks have c or c + 1, with c >= 1.

void ulysses_forward_to_tokens(const Ulysses *u, const Tensors *mine, const Tensors *heads) {
    int64_t record = query_part(u);
    move_head_rows(u, true, u->head_rows[0], heads->log_sum_exp);
    CommRequest *end =
        records_to_tokens(u, u->head_side, heads->out.data, (size_t)record * u->element_bytes, begin_all(u));
    wait_for_all(u, rows_to_tokens(u, 0, end));
    move_part(u, false, u->head_side, record, 0, mine->out, false);
    move_token_rows(u, false, u->token_rows[0], mine->log_sum_exp);
}

// ---- backward -----------------------------------------------------------------------------------

Tensors ulysses_backward_to_heads(const Ulysses *u, const Tensors *mine, float *heads_delta) {
    int64_t record = backward_record(u), d_out_part = query_part(u), k_part = 2 * query_part(u),
            v_part = k_part + key_part(u);
    move_part(u, true, u->token_side, record, 0, mine->q, false);
    move_part(u, true, u->token_side, record, d_out_part, mine->d_out, false);
    move_part(u, true, u->token_side, record, k_part, mine->k, true);
    move_part(u, true, u->token_side, record, v_part, mine->v, true);
    move_token_rows(u, true, u->token_rows[0], mine->log_sum_exp);
    move_token_rows(u, true, u->token_rows[1], mine->delta);
    CommRequest *end =
        records_to_heads(u, u->token_side, u->head_side, (size_t)record * u->element_bytes, begin_all(u));
    wait_for_all(u, rows_to_heads(u, 1, rows_to_heads(u, 0, end)));
    move_head_rows(u, false, u->head_rows[0], u->log_sum_exp);
    move_head_rows(u, false, u->head_rows[1], heads_delta);

    int64_t heads = u->heads_shape.heads, kv_heads = u->heads_shape.kv_heads;
    const char *records = u->head_side;
    return (Tensors){.q = heads_view(u, records, record, 0, heads),
                     .k = heads_view(u, records, record, k_part, kv_heads),
                     .v = heads_view(u, records, record, v_part, kv_heads),
                     .d_out = heads_view(u, records, record, d_out_part, heads),
                     .d_q = heads_view(u, records, query_part(u), 0, heads), // written after the last use of the others
                     .log_sum_exp = u->log_sum_exp,
                     .delta = heads_delta};
}

// The parts of the gradient of one key/value head are added up in the place of the first rank that had it.
static void sum_shared_heads(const Ulysses *u, float *parts, int64_t record) {
    int sharing = (int)(u->heads_shape.kv_heads * u->ranks / u->tokens_shape.kv_heads);
    int64_t count = u->mine.tokens * record;
    for (int peer = 0; peer < u->ranks; peer++) {
        int first = peer / sharing * sharing;
        if (peer > first) u->device->add_float(u->device, parts + first * count, parts + peer * count, count);
    }
}

static void store_gradient(const Ulysses *u, TokenView view, const float *parts, int64_t record) {
    Device *device = u->device;
    int64_t tokens = u->mine.tokens, width = u->heads_shape.kv_heads * u->heads_shape.head_dim;
    int sharing = (int)(u->heads_shape.kv_heads * u->ranks / u->tokens_shape.kv_heads);
    for (int peer = 0; peer < u->ranks; peer += sharing) {
        int64_t first = first_kv_head(u->tokens_shape.kv_heads, u->ranks, peer) * u->heads_shape.head_dim;
        for (int64_t b = 0; b < u->heads_shape.batch; b++) {
            device->to_storage_strided(device, at(device, view.data, b * view.batch_stride + first), view.token_stride,
                                       parts + peer * tokens * record + b * width, record, tokens, width);
        }
    }
}

void ulysses_backward_to_tokens(const Ulysses *u, TokenView d_q, TokenView d_k, TokenView d_v, const Tensors *heads,
                                const float *gradient) {
    int64_t query_record = query_part(u), gradient_record = 2 * key_part(u);
    float *parts = (float *)u->token_side; // and d_q behind them
    char *queries = (char *)(parts + u->ranks * u->mine.tokens * gradient_record);
    CommRequest *end =
        records_to_tokens(u, queries, heads->d_q.data, (size_t)query_record * u->element_bytes, begin_all(u));
    wait_for_all(u, records_to_tokens(u, parts, gradient, (size_t)gradient_record * sizeof *gradient, end));
    move_part(u, false, queries, query_record, 0, d_q, false);
    sum_shared_heads(u, parts, gradient_record);
    store_gradient(u, d_k, parts, gradient_record);
    store_gradient(u, d_v, parts + key_part(u), gradient_record);
}
