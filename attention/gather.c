// All keys and values to everyone at once: every exchange is begun before any work, and the blocks are worked on in the
// order of the ring as they come. Fewest waits, but room for the keys and values of the whole sequence: best for short
// sequences and for few key/value heads.
//
// In backward they are gathered again (keeping them would take room for every layer). The part of a block's gradient
// that is worked out here goes straight to the block's owner while the next block is worked on; the owner adds the
// parts in fp32 in a fixed order: its own, then those of the ranks before it, nearest first.
#include "attention/exchange.h"

static void *block_of(const Walk *walk, int owner) {
    int64_t tokens_before = 0;
    for (int rank = 0; rank < owner; rank++) tokens_before += shard_of(walk->context, walk->ranks, rank).tokens;
    return at(walk->device, walk->block[0], tokens_before * walk_token_elements(&walk->block_shape));
}

// What `reader` sees of a block, on its way there; or its part of the gradient, on its way back.
static Load seen_by(const Walk *walk, void *block, int owner, int reader) {
    return walk_load(walk, block, owner, walk_seen(walk, owner, reader));
}

// passage[step]: the block of the rank `step` after me. Of a block, only what its reader sees is sent.
static void begin_gather(const Walk *walk, const Tensors *mine) {
    if (walk->ranks == 1) return;
    void *own = block_of(walk, walk->rank);
    walk_pack(walk, own, mine->k, mine->v);
    comm_batch_begin(walk->group);
    for (int step = 1; step < walk->ranks; step++) {
        int to = walk_rank(walk, -step), from = walk_rank(walk, step);
        walk->passage[step] =
            walk_pass(walk, seen_by(walk, own, walk->rank, to), to,
                      seen_by(walk, block_of(walk, from), from, walk->rank), from, walk_token_bytes(walk));
    }
    comm_batch_end(walk->group);
}

void gather_forward(const Walk *walk, const Tensors *mine) {
    begin_gather(walk, mine);
    walk_begin_forward(walk, mine);
    walk_forward(walk, mine, walk->rank, NULL);
    for (int step = 1; step < walk->ranks; step++) {
        int owner = walk_rank(walk, step);
        walk_wait(walk, &walk->passage[step]);
        walk_forward(walk, mine, owner, block_of(walk, owner));
    }
    walk_finish_forward(walk, mine);
}

// Sends my part of the gradient of the block of the rank `step` after me, and receives the part that the rank `step`
// before me has of mine.
static Passage exchange_parts(const Walk *walk, int step, float *part, float *arriving) {
    int owner = walk_rank(walk, step), reader = walk_rank(walk, -step);
    return walk_pass(walk, seen_by(walk, part, owner, walk->rank), owner, seen_by(walk, arriving, walk->rank, reader),
                     reader, (size_t)walk_token_elements(&walk->block_shape) * sizeof *part);
}

static void add_arrived(const Walk *walk, int step, Passage *parts, float *sum, const float *arriving) {
    walk_wait(walk, parts);
    walk_add_gradient(walk, sum, arriving, walk->rank, walk_seen(walk, walk->rank, walk_rank(walk, -step)));
}

const float *gather_backward(const Walk *walk, const Tensors *mine) {
    float *sum = walk->gradient[0], *arriving = walk->gradient[3];
    Passage parts = {.count = 0};
    begin_gather(walk, mine);
    walk_begin_backward(walk);
    walk_backward(walk, mine, walk->rank, NULL, sum);
    for (int step = 1; step < walk->ranks; step++) {
        float *part = walk->gradient[1 + step % 2]; // the other one is being sent
        int owner = walk_rank(walk, step);
        walk_wait(walk, &walk->passage[step]);
        walk_backward(walk, mine, owner, block_of(walk, owner), part);
        if (step > 1) add_arrived(walk, step - 1, &parts, sum, arriving);
        parts = exchange_parts(walk, step, part, arriving);
    }
    if (walk->ranks > 1) add_arrived(walk, walk->ranks - 1, &parts, sum, arriving);
    walk_finish_backward(walk, mine);
    return sum;
}
