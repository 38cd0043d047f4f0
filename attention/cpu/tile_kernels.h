// The border between the attention algorithm and the processor: the few inner loops in which all the time is spent.
// Above it, forward.c and backward.c cut the scores into blocks that stay in cache, and know nothing of vectors. Below
// it, the *_simd.c files know no more of attention than its softmax; they are compiled once per instruction set.
//
// Blocks of scores are held transposed, key by query, so that one vector holds one key and many queries. Then maximum,
// sum, log-sum-exp and delta, of which each query has one, are plain vectors, and no sum ever runs across a vector.
#ifndef ATTENTION_CPU_TILE_KERNELS_H
#define ATTENTION_CPU_TILE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

// A matrix with contiguous rows: element (r, c) is data[r * stride + c].
typedef struct Rows {
    float *data;
    int64_t stride;
} Rows;

static inline Rows rows_from(Rows x, int64_t row, int64_t column) {
    return (Rows){x.data + row * x.stride + column, x.stride};
}

// The left factor of a product, read one element at a time: a matrix as it is, or its transpose.
typedef struct Factor {
    const float *data;
    int64_t row_stride, column_stride;
} Factor;

static inline Factor plain(Rows x) { return (Factor){x.data, x.stride, 1}; }
static inline Factor transposed(Rows x) { return (Factor){x.data, 1, x.stride}; }

// The queries of a block are handled in strips of this many, the least multiple of every vector width; at the diagonal,
// so are the keys.
enum { STRIP = 16 };

static inline int64_t round_up_to_strip(int64_t n) { return (n + STRIP - 1) / STRIP * STRIP; }

// Who sees whom in a block: query column c the key rows j with first[c] - row <= j <= c + diagonal. `first`, of whole
// strips of columns, never falls; NULL: from the block's first row on.
typedef struct Mask {
    int64_t diagonal;
    const int32_t *first;
    int64_t row;
} Mask;

// Of a block's `keys` rows, `first` to before `end` are worked on for the strip of queries that starts at column
// `query`: from the first that any of them sees to the last, both rounded outwards to multiples of STRIP.
typedef struct StripRows {
    int64_t first, end;
} StripRows;

static inline StripRows rows_of_strip(int64_t keys, int64_t query, Mask mask) {
    int64_t end = round_up_to_strip(query + STRIP + mask.diagonal > 0 ? query + STRIP + mask.diagonal : 0);
    if (end > keys) end = keys;
    int64_t first = mask.first == NULL || mask.first[query] <= mask.row ? 0 : mask.first[query] - mask.row;
    first = first / STRIP * STRIP;
    return (StripRows){first < end ? first : end, end};
}

typedef enum Update { OVERWRITE, ADD } Update;

// c (m, n) = a (m, k) b (k, n), or += with ADD. n is a multiple of STRIP.
typedef void TileProduct(int64_t m, int64_t n, int64_t k, Factor a, Rows b, Rows c, Update update);

// One step of the online softmax, in place: scores (keys, queries) become exp(score - max), or 0 where not seen, after
// max (queries) has taken them in; sum (queries) takes in the result. rescale (queries) receives exp(old max - new
// max). `queries` is a multiple of STRIP; of each strip the rows_of_strip() are read and written.
typedef void TileSoftmax(Rows scores, int64_t keys, int64_t queries, Mask mask, float *max, float *sum,
                         float *rescale);

// Scores become the weights p = exp(score - log_sum_exp); d_weights become the gradient by the scores,
// scale * p * (d_weights - delta). Both in place, both 0 where not seen; the same rows as in the softmax.
typedef void TileSoftmaxBackward(Rows scores, Rows d_weights, int64_t keys, int64_t queries, Mask mask,
                                 const float *log_sum_exp, const float *delta, float scale);

// Row r of c (rows, n) is multiplied by factor[r].
typedef void TileScaleRows(Rows c, int64_t rows, int64_t n, const float *factor);

// to (rows, padded) = from (rows, columns), filled up with columns of zeros.
typedef void TilePack(Rows to, int64_t padded, Rows from, int64_t rows, int64_t columns);

// to (columns, padded) = scale * transpose of from (rows, columns), filled up with columns of zeros to `padded`, a
// multiple of STRIP.
typedef void TilePackTransposed(Rows to, int64_t padded, Rows from, int64_t rows, int64_t columns, float scale);

// to += from, both (rows, columns).
typedef void TileAdd(Rows to, Rows from, int64_t rows, int64_t columns);

typedef struct TileKernels {
    TileProduct *product;
    TileSoftmax *softmax;
    TileSoftmaxBackward *softmax_backward;
    TileScaleRows *scale_rows;
    TilePack *pack;
    TilePackTransposed *pack_transposed;
    TileAdd *add;
} TileKernels;

// Those of the processor's best instruction set (base/cpu_features.h).
const TileKernels *tile_kernels(void);

#endif
