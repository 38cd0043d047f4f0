// Ring attention (Liu, Zaharia and Abbeel, "Ring attention with blockwise transformers for near-infinite context",
// 2023), with zigzag ownership: the queries stay, the key/value blocks go round. At every step a rank works on the
// block it holds while it hands that block on and the next one arrives. Each rank talks to its two neighbours only and
// holds two blocks, however many ranks there are.
//
// Blocks travel towards lower ranks. A block's late chunk is seen by the ranks below its owner, which it meets first;
// past rank 0 it is left behind, and the early chunk goes on alone. A window or documents leave of each chunk only the
// end to be seen by others; that of the early one goes all the way round, to the rank above its owner.
//
// In backward, keys and values go round again. What each rank adds to the gradient of a block is worked out while the
// sum so far is still on its way here, one step behind the block; then the two are added, and the sum goes on. So a
// gradient is summed in fp32 in the order of the ring, starting at its owner, and after the last rank it comes home.
#include "attention/exchange.h"

// At step s a rank holds the block of the rank s places after it, in block[s % 2], and the sum so far of that block's
// gradient. These two hand them on, and begin to receive what belongs to step s + 1. Of a block, only what its next
// holders see is sent; it ends at the rank before its owner.

static Load block_at(const Walk *walk, int step, int reader) {
    int owner = walk_rank(walk, step);
    Shard piece = {0};
    if (owner != reader) piece = walk_seen_from(walk, owner, reader);
    return walk_load(walk, walk->block[step % 2], owner, piece);
}

static Passage pass_block(const Walk *walk, int step) {
    int to = walk_rank(walk, -1), from = walk_rank(walk, 1);
    return walk_pass(walk, block_at(walk, step, to), to, block_at(walk, step + 1, walk->rank), from,
                     walk_token_bytes(walk));
}

// The sum so far of a block's gradient, in gradient[s % 2]. Where nothing is hidden all of it goes round. With a window
// or documents, only what somebody else sees; the rest waits at home, in gradient[3], for what comes back to be put
// among it.
static Load sum_at(const Walk *walk, int step) {
    int owner = walk_rank(walk, step), ranks = walk->ranks;
    if (ranks == 1) return walk_load(walk, walk->gradient[0], owner, walk->shard); // and nothing is sent
    if (!visibility_is_limited(&walk->on_host))
        return walk_load(walk, walk->gradient[step % 2], owner, shard_of(walk->context, ranks, owner));
    bool at_home = step == 0 || step == ranks;
    return walk_load(walk, walk->gradient[at_home ? 3 : step % 2], owner,
                     walk_seen_from(walk, owner, (owner + ranks - 1) % ranks));
}

static Passage pass_gradient(const Walk *walk, int step) {
    return walk_pass(walk, sum_at(walk, step), walk_rank(walk, -1), sum_at(walk, step + 1), walk_rank(walk, 1),
                     (size_t)walk_token_elements(&walk->block_shape) * sizeof(float));
}

void ring_forward(const Walk *walk, const Tensors *mine) {
    walk_begin_forward(walk, mine);
    if (walk->ranks > 1) walk_pack(walk, walk->block[0], mine->k, mine->v);
    for (int step = 0; step < walk->ranks; step++) {
        Passage passing = pass_block(walk, step);
        walk_forward(walk, mine, walk_rank(walk, step), walk->block[step % 2]);
        walk_wait(walk, &passing);
    }
    walk_finish_forward(walk, mine);
}

const float *ring_backward(const Walk *walk, const Tensors *mine) {
    float *part = walk->gradient[2];
    walk_begin_backward(walk);
    if (walk->ranks > 1) walk_pack(walk, walk->block[0], mine->k, mine->v);
    Passage passing = pass_block(walk, 0);
    walk_backward(walk, mine, walk->rank, walk->block[0], sum_at(walk, 0).block);
    walk_wait(walk, &passing);
    for (int step = 1; step < walk->ranks; step++) {
        int owner = walk_rank(walk, step);
        Passage passing_sum = pass_gradient(walk, step - 1);
        passing = pass_block(walk, step);
        walk_backward(walk, mine, owner, walk->block[step % 2], part);
        walk_wait(walk, &passing);
        walk_wait(walk, &passing_sum);
        walk_add_gradient(walk, walk->gradient[step % 2], part, owner, walk_seen(walk, owner, walk->rank));
    }
    if (walk->ranks > 1) {
        Passage coming_home = pass_gradient(walk, walk->ranks - 1);
        walk_wait(walk, &coming_home);
    }
    walk_finish_backward(walk, mine);
    return sum_at(walk, walk->ranks).block;
}
