// Who sees whom: which keys a query attends to, as data. Every kernel, walk, exchange and cost asks here.
//
// The query at position i sees the keys first(i) to i: never a later one (causal), and of the earlier ones all, those
// of a window, those of its own document, or those of both. first(i) never falls as i grows, and that makes it simple
// to leave out what nobody sees: the first key that any of some neighbouring queries sees is that of the first of them.
#ifndef SEQUENCE_VISIBILITY_H
#define SEQUENCE_VISIBILITY_H

#include <stddef.h>

#include "sequence/chunk.h"

#ifdef __cplusplus
extern "C" {
#endif

// All zero: every earlier key is seen. A window needs no memory to be read; documents, which the data decide, do.
typedef struct Visibility {
    int64_t window;       // W: a query sees the last W keys, its own included; 0: no limit
    const int32_t *first; // and none before first[b * stride + position]; NULL: no limit. In the memory of the device
    int64_t stride;       // of `first`, from one sequence of the batch to the next
    const int32_t *least; // the least of these over the batch by position, in the host's memory; NULL: not known there
    int64_t
        dilation; // R: of all these a head sees every R-th alone (attention/dilated.h); 0: every one. Not for kernels
} Visibility;

// The same for all sequences of the batch together, as the host sees it, for what is decided before kernels are
// started: which keys travel, which pairs are visited. It hides no key that one of the sequences needs.
static inline Visibility visibility_on_host(const Visibility *v) {
    Visibility host = {v->window, v->least, 0, v->least, v->dilation};
    return host;
}

// The first key that the query at `position` of sequence b sees: from 0 to `position`.
static inline int64_t visibility_first(const Visibility *v, int64_t b, int64_t position) {
    int64_t first = v->first == NULL ? 0 : v->first[b * v->stride + position];
    int64_t of_window = v->window > 0 ? position - v->window + 1 : 0;
    return first > of_window ? first : of_window;
}

// Whether any earlier key may be hidden.
static inline bool visibility_is_limited(const Visibility *v) { return v->window > 0 || v->first != NULL; }

// The keys of one chunk that some query of another, or of the same, sees: a piece of it, of no length if there are
// none.
Chunk visibility_seen(const Visibility *v, int64_t b, Chunk queries, Chunk keys);
// Whether there are any.
static inline bool visibility_sees(const Visibility *v, int64_t b, Chunk queries, Chunk keys) {
    return visibility_seen(v, b, queries, keys).length > 0;
}
// How many (query, key) pairs these queries make: their work. Takes no time where there are no documents.
int64_t visibility_pairs(const Visibility *v, int64_t b, Chunk queries);

// least[i] = the lesser of itself and first[i]: of one sequence after the other, it becomes what Visibility says.
void visibility_least(int32_t *least, const int32_t *first, int64_t count);

// Fills in first[0 .. count) for tokens[0 .. count) of one sequence: a token sees those of its own document. The token
// `separator` ends its document and is part of it; the one after it begins the next. `first` may be `tokens` itself.
void visibility_of_documents(int32_t *first, const int32_t *tokens, int64_t count, int32_t separator);

#ifdef __cplusplus
}
#endif
#endif
