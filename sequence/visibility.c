// Questions about who sees whom that are asked of whole chunks (sequence/visibility.h).
#include "sequence/visibility.h"

Chunk visibility_seen(const Visibility *v, int64_t b, Chunk queries, Chunk keys) {
    int64_t begin = keys.start, end = chunk_end(keys);
    if (queries.length == 0) return (Chunk){begin, 0};
    int64_t first = visibility_first(v, b, queries.start);
    if (begin < first) begin = first;
    if (end > chunk_end(queries)) end = chunk_end(queries);
    return begin < end ? (Chunk){begin, end - begin} : (Chunk){keys.start, 0};
}

// The sum of i + 1 over i below n.
static int64_t triangle(int64_t n) { return n * (n + 1) / 2; }

// Of the queries below n, where there is a window at most: query i sees i + 1 keys, but no more than the window.
static int64_t pairs_below(int64_t window, int64_t n) {
    if (window == 0 || n <= window) return triangle(n);
    return triangle(window) + (n - window) * window;
}

int64_t visibility_pairs(const Visibility *v, int64_t b, Chunk queries) {
    int64_t pairs = 0;
    if (v->first == NULL) return pairs_below(v->window, chunk_end(queries)) - pairs_below(v->window, queries.start);
    for (int64_t i = queries.start; i < chunk_end(queries); i++) pairs += i + 1 - visibility_first(v, b, i);
    return pairs;
}

void visibility_least(int32_t *least, const int32_t *first, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (least[i] > first[i]) least[i] = first[i];
}

void visibility_of_documents(int32_t *first, const int32_t *tokens, int64_t count, int32_t separator) {
    int32_t begin = 0;
    for (int64_t i = 0; i < count; i++) {
        bool ends = tokens[i] == separator;
        first[i] = begin;
        if (ends) begin = (int32_t)(i + 1);
    }
}
