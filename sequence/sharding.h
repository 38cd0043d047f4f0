// Who owns which tokens.
//
// T tokens are cut into 2P chunks at floor(i*T/2P); rank r of P owns chunks r and 2P-1-r ("zigzag"), one early and one
// late, so that causal work (a query sees all earlier keys) is even. Any T >= 2P works; nothing is padded. In memory a
// rank's tokens stand in this order: its early chunk, then its late one. Where the two are adjacent (P = 1, or the last
// rank) they are one chunk, so one rank's walk is exactly the unsharded one.
#ifndef SEQUENCE_SHARDING_H
#define SEQUENCE_SHARDING_H

#include "sequence/visibility.h"

enum { SHARD_MOST_RANKS = 4096 }; // that share a sequence: --sp takes no more

typedef struct Shard {
    int count;      // chunks: 1 or 2
    Chunk chunk[2]; // ascending by position
    int64_t tokens; // sum of their lengths
} Shard;

Shard shard_of(int64_t T, int ranks, int rank);

// Where the token at `position`, one of the shard's, stands among them.
int64_t shard_offset(const Shard *shard, int64_t position);

// What some query of rank `reader` sees of the chunks of rank `owner`: a piece of each of them, perhaps of no length.
// on_host: of the layer (visibility_on_host). A late chunk lies after every query of the ranks that follow its owner,
// so those see only the early one: a quarter of all keys and values need not travel. And of what a window or documents
// leave, only the end.
Shard shard_seen(int64_t T, int ranks, int owner, int reader, const Visibility *on_host);

// What `reader` or any rank behind it sees of them, where blocks go round a ring towards lower ranks: reader, reader -
// 1, ..., 0, ranks - 1, ..., owner + 1. What is seen of a chunk is seen by the next chunk after it; that one is the
// reader's where the chunk is late, and of rank owner + 1 where it is early. So these two know.
Shard shard_seen_from(int64_t T, int ranks, int owner, int reader, const Visibility *on_host);

#endif
