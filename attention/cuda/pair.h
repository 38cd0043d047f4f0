// Who sees whom in a pair of chunks, one of queries and one of keys (sequence/visibility.h), counted from the first
// query and the first key: query i sees the keys first_key(i) to past_key(i) - 1, and both ends never fall as i grows.
// So a tile of queries sees the keys from the first one's first to the last one's last, and a tile of keys is seen from
// the first query whose end is beyond its first key to the last one whose beginning is not beyond its last.
#ifndef ATTENTION_CUDA_PAIR_H
#define ATTENTION_CUDA_PAIR_H

#include "attention/kernel.h"
#include "layers/cuda/cuda.h"
#include "layers/cuda/warp.h"

struct Pair {
    int queries, keys;
    int ahead;            // query i sees no key after i + ahead: the first query's position minus the first key's
    int behind;           // query i sees no key before i + behind, where there is a window
    const int32_t *first; // where there are documents: no key before position first[b * stride + i]
    int64_t stride;
    int key_start; // position of the first key
};

// How many keys there are up to the last that query i sees, for any i (also one beyond the chunk, or negative).
__host__ __device__ inline int past_key(const Pair &pair, int i) {
    const int past = i + pair.ahead + 1;
    return past < 0 ? 0 : smaller_of(past, pair.keys);
}
// The first key that query i of sequence b sees, at least 0, for i in the chunk. It may be beyond the keys.
__device__ inline int first_key(const Pair &pair, int b, int i) {
    const int of_window = larger_of(i + pair.behind, 0);
    return pair.first == NULL ? of_window : larger_of(of_window, pair.first[b * pair.stride + i] - pair.key_start);
}
// The first query that sees key j or a later one; pair.queries if none does.
__device__ inline int first_query(const Pair &pair, int j) {
    const int first = j - pair.ahead;
    return first < 0 ? 0 : smaller_of(first, pair.queries);
}
// How many queries there are up to the last of sequence b that sees key j or an earlier one. All lanes of a warp call
// it together: where there are documents they search together, 32 queries at a time.
__device__ inline int past_query(const Pair &pair, int b, int j) {
    int past = j - pair.behind + 1;
    past = past < 0 ? 0 : smaller_of(past, pair.queries);
    if (pair.first == NULL) return past;
    int begin = 0; // the answer is from begin to past
    while (begin < past) {
        const int step = ceil_div(past - begin, (int)WARP), i = begin + ((int)threadIdx.x % WARP + 1) * step - 1;
        const bool sees = i < past && pair.first[b * pair.stride + i] - pair.key_start <= j;
        begin += __popc(__ballot_sync(WHOLE_WARP, sees)) * step;
        past = smaller_of(past, begin + step - 1);
    }
    return past;
}

// What the queries from i to `last` of sequence b see together: some of them the keys from `begin` to `end` - 1, and
// every one those from `all_begin` to `all_end` - 1.
struct KeysSeen {
    int begin, end, all_begin, all_end;
};
__device__ inline KeysSeen keys_seen(const Pair &pair, int b, int i, int last) {
    return KeysSeen{first_key(pair, b, i), past_key(pair, last), first_key(pair, b, last), past_key(pair, i)};
}

inline int between(int64_t x, int64_t least, int64_t most) { return (int)(x < least ? least : x > most ? most : x); }

// From the chunks' global positions. Beyond the lengths neither end makes a difference, so they are cut there and fit
// an int.
inline Pair pair_of(Chunk query, Chunk key, const Visibility *visibility) {
    if (query.length > 1 << 29 || key.length > 1 << 29)
        cuda_give_up(__FILE__, __LINE__, "chunks of more than 2^29 tokens are not served");
    const int64_t ahead = query.start - key.start, window = visibility->window;
    Pair pair = {};
    pair.queries = (int)query.length, pair.keys = (int)key.length;
    pair.ahead = between(ahead, -query.length, key.length);
    pair.behind = window == 0 ? -pair.queries : between(ahead - window + 1, -query.length, key.length);
    if (visibility->first != NULL) pair.first = visibility->first + query.start;
    pair.stride = visibility->stride;
    pair.key_start = (int)key.start;
    return pair;
}
// Whether anything is seen, as far as the host can tell: of documents it knows nothing.
inline bool sees_any(const Pair &pair) {
    return pair.queries > 0 && larger_of(pair.behind, 0) < past_key(pair, pair.queries - 1);
}

#endif
