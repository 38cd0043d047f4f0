// Ring attention (Liu, Zaharia and Abbeel, "Ring attention with blockwise transformers for near-infinite context",
// 2023), with zigzag ownership: the queries stay, the key/value blocks go round. At every step a rank works on the
// block it holds while it hands that block on and the next one arrives. Each rank talks to its two neighbours only and
// holds two blocks, however many ranks there are.
//
// Blocks travel towards lower ranks. A block's late chunk is seen by the ranks below its owner, which it meets first;
// past rank 0 it is left behind, and the early chunk goes on alone.
//
// In backward, keys and values go round again. What each rank adds to the gradient of a block is worked out while the
// sum so far is still on its way here, one step behind the block; then the two are added, and the sum goes on. So a
// gradient is summed in fp32 in the order of the ring, starting at its owner, and after the last rank it comes home.
#include "attention/exchange.h"

// At step s a rank holds the block of the rank s places after it, in block[s % 2], and the sum so far of that block's
// gradient, in gradient[s % 2]. These two hand them on, and begin to receive what belongs to step s + 1. Of a block,
// only what its next holder sees is sent: nobody after that one sees more.

static CommRequest pass_block(const Walk *walk, int step) {
    int owner = walk_rank(walk, step), arriving_owner = walk_rank(walk, step + 1);
    int to = walk_rank(walk, -1), from = walk_rank(walk, 1);
    size_t token = (size_t)walk_token_elements(&walk->shape) * walk->device->element_bytes;
    return comm_exchange_begin(walk->group, walk->block[step % 2], (size_t)walk_tokens_for(walk, owner, to) * token, to,
                               walk->block[(step + 1) % 2],
                               (size_t)walk_tokens_for(walk, arriving_owner, walk->rank) * token, from);
}

static CommRequest pass_gradient(const Walk *walk, int step) {
    Shard sent = shard_of(walk->context, walk->ranks, walk_rank(walk, step));
    Shard received = shard_of(walk->context, walk->ranks, walk_rank(walk, step + 1));
    size_t token = (size_t)walk_token_elements(&walk->shape) * sizeof(float);
    return comm_exchange_begin(walk->group, walk->gradient[step % 2], (size_t)sent.tokens * token, walk_rank(walk, -1),
                               walk->gradient[(step + 1) % 2], (size_t)received.tokens * token, walk_rank(walk, 1));
}

void ring_forward(const Walk *walk, const Tensors *mine) {
    walk_begin_forward(walk, mine);
    if (walk->ranks > 1) walk_pack(walk, walk->block[0], mine->k, mine->v);
    for (int step = 0; step < walk->ranks; step++) {
        CommRequest passing = pass_block(walk, step);
        walk_forward(walk, mine, walk_rank(walk, step), walk->block[step % 2]);
        comm_wait(walk->group, &passing);
    }
    walk_finish_forward(walk, mine);
}

const float *ring_backward(const Walk *walk, const Tensors *mine) {
    float *part = walk->gradient[2];
    walk_begin_backward(walk);
    if (walk->ranks > 1) walk_pack(walk, walk->block[0], mine->k, mine->v);
    CommRequest passing = pass_block(walk, 0);
    walk_backward(walk, mine, walk->rank, walk->block[0], walk->gradient[0]);
    comm_wait(walk->group, &passing);
    for (int step = 1; step < walk->ranks; step++) {
        int owner = walk_rank(walk, step);
        CommRequest passing_sum = pass_gradient(walk, step - 1);
        passing = pass_block(walk, step);
        walk_backward(walk, mine, owner, walk->block[step % 2], part);
        comm_wait(walk->group, &passing);
        comm_wait(walk->group, &passing_sum);
        walk_add_gradient(walk, walk->gradient[step % 2], part, walk_tokens_for(walk, owner, walk->rank));
    }
    if (walk->ranks > 1) {
        CommRequest coming_home = pass_gradient(walk, walk->ranks - 1);
        comm_wait(walk->group, &coming_home);
    }
    walk_finish_backward(walk, mine);
    return walk->gradient[walk->ranks > 1 ? walk->ranks % 2 : 0];
}
