// Who sees whom in a pair of chunks, one of queries and one of keys. It is described by three numbers: how many there
// are of each, and `ahead`, the position of the first query minus that of the first key. Query i of the chunk sees the
// keys j <= i + ahead, of those there are.
#ifndef ATTENTION_CUDA_PAIR_H
#define ATTENTION_CUDA_PAIR_H

#include "attention/kernel.h"
#include "layers/cuda/cuda.h"

struct Pair {
    int queries, keys, ahead;
};

// How many keys query i sees, for any i (also one beyond the chunk, or negative).
__host__ __device__ inline int keys_seen(Pair pair, int i) {
    const int seen = i + pair.ahead + 1;
    return seen < 0 ? 0 : smaller_of(seen, pair.keys);
}
// The first query that sees key j; pair.queries if none does.
__host__ __device__ inline int first_query_seeing(Pair pair, int j) {
    const int first = j - pair.ahead;
    return first < 0 ? 0 : smaller_of(first, pair.queries);
}

// From the chunks' global positions. Beyond the lengths `ahead` makes no difference, so it is cut there and fits an
// int.
inline Pair pair_of(Chunk query, Chunk key) {
    int64_t ahead = query.start - key.start;
    if (query.length > 1 << 29 || key.length > 1 << 29)
        cuda_give_up(__FILE__, __LINE__, "chunks of more than 2^29 tokens are not served");
    ahead = ahead > key.length ? key.length : ahead < -query.length ? -query.length : ahead;
    return Pair{(int)query.length, (int)key.length, (int)ahead};
}
// Whether there is anything to do.
inline bool sees_any(Pair pair) { return pair.queries > 0 && keys_seen(pair, pair.queries - 1) > 0; }

#endif
