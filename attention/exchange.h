// What the exchanges share; for the files of attention/ only.
//
// Every exchange comes down to a walk: my query chunks meet the key/value chunks of every rank, block after block. A
// block is what one rank's tokens contribute, in storage type, (tokens, 2, B, KV, D): for each token, in shard order,
// its keys and then its values. So the early chunk of a block is a contiguous beginning of it, and can travel alone.
// The gradient of a block has the same shape in fp32. Where attention is dilated, a block holds of each token the heads
// that look at it, KV/R of them.
//
// After Ulysses' all-to-all the walk is that of a smaller problem: U times the tokens, 1/U of the heads, and P/U ranks.
// The tokens that U neighbouring ranks of P own together are exactly those that one rank of P/U owns (the boundaries
// floor(gU T / 2P) and floor(g T / 2(P/U)) are equal), so nothing but numbers changes; with U = P it is one rank's
// problem.
#ifndef ATTENTION_EXCHANGE_H
#define ATTENTION_EXCHANGE_H

#include "attention/attention.h"

bool attention_is_dilated(const AttentionConfig *config); // some layer

// The tensors of one layer: n tokens, in shard order, of H query heads and KV key/value heads.
typedef struct Tensors {
    TokenView q, k, v, out;
    float *log_sum_exp;   // (B, H, n)
    TokenView d_out, d_q; // these only in backward
    float *delta;         // (B, H, n)
} Tensors;

typedef struct Walk {
    int64_t context;
    int ranks, rank;            // among whom keys and values travel
    Shard shard;                // my tokens
    AttentionShape shape;       // with the heads worked on here
    AttentionShape block_shape; // with the key/value heads of a token that travel, for the length of a call
    Device *device;             // for the length of a call
    Visibility visibility;      // of the layer, for the length of a call
    Visibility on_host;         // the same, of all sequences together
    Comm *group;
    float *queries;     // (B, n, H, D): the softmax accumulator in forward, d_q in backward; NULL where P = 1
    float *rows;        // (B, H, n): the softmax sum in forward, delta in backward
    void *block[2];     // ring: one here and one arriving. gather: block[0] holds those of all ranks, in their order
    float *gradient[4]; // blocks of fp32 gradients: 1 where U = P, 3 for the ring, 4 for gather and where some layer
                        // has a window, none where P = 1
    struct Passage *passage; // (ranks) of gather
    int32_t *first;          // where some layer is dilated and there are documents: room for what dilated calls see
} Walk;

// Tokens of a block on their way from one rank to another, while others come. Both sides know what is seen, so nothing
// but the tokens is sent.
typedef struct Passage {
    CommRequest request[2]; // a piece of each chunk at most; pieces that touch go together
    int count;
} Passage;

// A part of a block that travels.
typedef struct Load {
    void *block; // with room for all tokens of its owner, each at its place
    Shard owner, piece;
} Load;

// ---- blocks, and how they travel (attention/passage.c) --------------------------------------------

int64_t walk_token_elements(const AttentionShape *shape); // of a block: 2 B KV D
int64_t walk_values_offset(const AttentionShape *shape);  // of a token's values, behind its keys
TokenView walk_block_keys(const Walk *walk, const void *block);
TokenView walk_block_values(const Walk *walk, const void *block);
int walk_rank(const Walk *walk, int distance); // the rank `distance` places after mine (< 0: before), round the ring

// Tokens of my shard, and where in their keys and values the heads begin that stand in a block: one strip; where
// attention is dilated, one for each chunk and residue.
typedef struct Strip {
    int64_t first, step, tokens, elements;
} Strip;
enum { MOST_STRIPS = 2 * ATTENTION_MAX_DILATION };
int walk_strips(const Walk *walk, Strip strip[MOST_STRIPS]);

void walk_pack(const Walk *walk, void *block, TokenView k, TokenView v); // my own block, to be sent
// What `reader` sees of the block of `owner`, in this layer; and what it or any rank behind it round the ring does.
Shard walk_seen(const Walk *walk, int owner, int reader);
Shard walk_seen_from(const Walk *walk, int owner, int reader);
Load walk_load(const Walk *walk, void *block, int owner, Shard piece);

// Neighbouring tokens of a block.
typedef struct Span {
    int64_t first, tokens;
} Span;
// The parts of a block that hold these pieces of its owner's chunks: two at most, no tokens in those that are not
// needed.
int walk_spans_of(const Shard *owner, const Shard *piece, Span span[2]);

// Begins to send and to receive; token_bytes: of a token in these blocks.
Passage walk_pass(const Walk *walk, Load sent, int to, Load received, int from, size_t token_bytes);
void walk_wait(const Walk *walk, Passage *passage);
size_t walk_token_bytes(const Walk *walk); // in storage type: of keys and values

// ---- the walk (attention/walk.c) -----------------------------------------------------------------

// All of forward where no other rank has keys: out may not alias q, k or v. `queries` is not used.
void walk_forward_alone(const Walk *walk, const Tensors *mine);
// All of backward there, unless it is dilated: d_q, d_k, d_v may not alias q, k, v or d_out. `queries` and `gradient`
// are not used.
void walk_backward_alone(const Walk *walk, const Tensors *mine, TokenView d_k, TokenView d_v);

void walk_begin_forward(const Walk *walk, const Tensors *mine);
// block: the owner's; not used where the owner is this rank.
void walk_forward(const Walk *walk, const Tensors *mine, int owner, const void *block);
void walk_finish_forward(const Walk *walk, const Tensors *mine);

void walk_row_delta(const Walk *walk, const Tensors *mine); // dilated: fills in delta
void walk_begin_backward(const Walk *walk);
// gradient = this rank's part of the gradient of the owner's block, for those of its tokens that are seen here.
void walk_backward(const Walk *walk, const Tensors *mine, int owner, const void *block, float *gradient);
void walk_add_gradient(const Walk *walk, float *sum, const float *part, int owner, Shard piece); // sum += part, there
void walk_finish_backward(const Walk *walk, const Tensors *mine);
// Of my own block. Where attention is dilated, heads that do not look at a token are left as they are.
void walk_store_gradient(const Walk *walk, const float *gradient, TokenView d_k, TokenView d_v);

// ---- the exchanges ------------------------------------------------------------------------------

// Fill in out and log_sum_exp.
void ring_forward(const Walk *walk, const Tensors *mine);
void gather_forward(const Walk *walk, const Tensors *mine);
// Fill in d_q and return the whole gradient of this rank's own block.
const float *ring_backward(const Walk *walk, const Tensors *mine);
const float *gather_backward(const Walk *walk, const Tensors *mine);

typedef struct Ulysses {
    int ranks, rank; // U, and my place among those who share heads
    int64_t context;
    int all_ranks, first;                     // P, and where among them this group begins
    Shard mine, group;                        // my tokens; the tokens of all U ranks together
    AttentionShape tokens_shape, heads_shape; // with all heads; with those of one rank
    size_t element_bytes;
    Device *device; // for the length of a call
    Comm *comm;
    char *token_side;     // (U, my tokens, record): what I give each rank of the tokens that are mine, or get of them
    char *head_side;      // (group's tokens, record): all tokens, of my heads
    float *token_rows[2]; // (U, B, H/U, my tokens)
    float *head_rows[2];  // (B, H/U, tokens of each rank), one rank after the other
    float *delta;         // (B, H, my tokens)
    float *log_sum_exp;   // (B, H/U, group's tokens)
    CommRequest *request; // (4 U)
} Ulysses;

int64_t ulysses_kv_heads(int64_t kv_heads, int ulysses); // of one rank

void ulysses_lay_out(Ulysses *ulysses, Arena *arena);
// From my tokens of all heads to all tokens of my heads, and back. Backward also brings the gradient of the group's
// block, summed where several ranks had the same key/value head. heads_delta: room for (B, H/U, group's tokens).
Tensors ulysses_forward_to_heads(const Ulysses *ulysses, const Tensors *mine);
void ulysses_forward_to_tokens(const Ulysses *ulysses, const Tensors *mine, const Tensors *heads);
Tensors ulysses_backward_to_heads(const Ulysses *ulysses, const Tensors *mine, float *heads_delta);
void ulysses_backward_to_tokens(const Ulysses *ulysses, TokenView d_q, TokenView d_k, TokenView d_v,
                                const Tensors *heads, const float *gradient);

#endif
