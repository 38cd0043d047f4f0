// Who owns which tokens.
//
// T tokens are cut into 2P chunks at floor(i*T/2P); rank r of P owns chunks r and 2P-1-r ("zigzag"), one early and one
// late, so that causal work (a query sees all earlier keys) is even. Any T >= 2P works; nothing is padded. In memory a
// rank's tokens stand in this order: its early chunk, then its late one. Where the two are adjacent (P = 1, or the last
// rank) they are one chunk, so one rank's walk is exactly the unsharded one.
#ifndef SEQUENCE_SHARDING_H
#define SEQUENCE_SHARDING_H

#include "sequence/chunk.h"

#ifdef __cplusplus
extern "C" {
#endif

static inline bool chunk_sees(Chunk queries, Chunk keys) { return keys.start < queries.start + queries.length; }

typedef struct Shard {
    int count;      // chunks: 1 or 2
    Chunk chunk[2]; // ascending by position
    int64_t tokens; // sum of their lengths
} Shard;

Shard shard_of(int64_t T, int ranks, int rank);

// Where the token at `position`, one of the shard's, stands among them.
int64_t shard_offset(const Shard *shard, int64_t position);

// The chunks of rank `owner` that some query of rank `reader` sees. A late chunk lies after every query of the ranks
// that follow its owner, so those see only the early one: a quarter of all keys and values need not travel.
Shard shard_seen(int64_t T, int ranks, int owner, int reader);

// How many tokens rank `reader` has to be given of the owner's: those it sees, the first ones in shard order; none if it
// is the owner itself.
int64_t shard_tokens_for(int64_t T, int ranks, int owner, int reader);

// Query-key pairs (i, j), j <= i, that a rank's queries make: its causal work.
int64_t shard_causal_pairs(int64_t T, int ranks, int rank);

#ifdef __cplusplus
}
#endif
#endif
