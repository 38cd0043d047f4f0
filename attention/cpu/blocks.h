// What forward.c and backward.c share: where the rows of one head lie, and products over blocks of which a part is
// hidden: beyond the diagonal, or before the first key that a query sees.
#ifndef ATTENTION_CPU_BLOCKS_H
#define ATTENTION_CPU_BLOCKS_H

#include <stddef.h>

#include "attention/cpu/tile_kernels.h"
#include "attention/kernel.h"

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The rows of head h from token t of the chunk on, D values each.
static inline Rows token_rows(TokenView view, int64_t b, int64_t t, int64_t h, int64_t D) {
    return (Rows){(float *)view.data + b * view.batch_stride + t * view.token_stride + h * D, view.token_stride};
}
static inline Rows float_rows(FloatView view, int64_t b, int64_t t, int64_t h, int64_t D) {
    return (Rows){view.data + b * view.batch_stride + t * view.token_stride + h * D, view.token_stride};
}
static inline float *row_values(RowView view, int64_t b, int64_t t, int64_t h) {
    return view.data + b * view.batch_stride + h * view.head_stride + t;
}

// Asks for rows that will be read soon. They lie far apart in memory, where the processor does not look ahead by
// itself.
static inline void prefetch_rows(Rows x, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += 16) __builtin_prefetch(x.data + r * x.stride + c, 0, 2);
}

// The keys of the chunk that some of `queries` neighbouring queries see, counted from its start: from `first` to before
// `end`.
typedef struct KeyRange {
    int64_t first, end;
} KeyRange;

static inline KeyRange visible_keys(const Visibility *visibility, int64_t b, Chunk queries, Chunk keys) {
    Chunk seen = visibility_seen(visibility, b, queries, keys);
    return (KeyRange){seen.start - keys.start, chunk_end(seen) - keys.start};
}

// Whether any query sees any key, in any sequence of the batch.
bool pair_is_seen(const Visibility *visibility, int64_t batch, Chunk queries, Chunk keys);

// The first key that each of the queries sees, counted from the chunk's start, into `row`, for whole strips of them.
// Returns it; NULL where nothing limits them.
const int32_t *first_keys(int32_t *row, const Visibility *visibility, int64_t b, Chunk queries, Chunk keys);

// A block of scores, keys x queries, and who sees whom in it (tile_kernels.h). Outside of what is seen, strip by strip,
// nothing is computed, read or written.
typedef struct Block {
    int64_t keys, queries;
    Mask mask;
} Block;

// The block of keys from row `key` of the chunk on, `diagonal` being that of this row. first: as first_keys gave it. A
// block of which all queries see the beginning has no bound there.
static inline Block block_at(int64_t key, int64_t keys, int64_t queries, int64_t diagonal, const int32_t *first) {
    bool bounded = first != NULL && first[queries - 1] > key;
    return (Block){keys, queries, {diagonal, bounded ? first : NULL, key}};
}

// scores (keys, queries) = a (keys, D) b (D, queries).
void block_scores(const TileKernels *kernels, Block block, int64_t D, Rows a, Rows b, Rows scores);
// out (queries, n) += weights^T b, b (keys, n).
void block_add_to_queries(const TileKernels *kernels, Block block, int64_t n, Rows weights, Rows b, Rows out);
// out (keys, n) += weights b, b (queries, n).
void block_add_to_keys(const TileKernels *kernels, Block block, int64_t n, Rows weights, Rows b, Rows out);

// Scratch memory of one worker, laid out by the same code that measures it: with memory == NULL only `used` counts.
typedef struct Layout {
    float *memory;
    int64_t used;
} Layout;

static inline Rows take_rows(Layout *layout, int64_t rows, int64_t stride) {
    Rows taken = {layout->memory == NULL ? NULL : layout->memory + layout->used, stride};
    layout->used += rows * stride;
    return taken;
}

// Scratch memory of a call, out of what was lent to the device: one piece of `floats` floats for each of its threads,
// apart by whole cache lines.
typedef struct Scratch {
    float *memory;
    int64_t floats;
} Scratch;

size_t scratch_bytes(int threads, int64_t floats);
Scratch scratch_from(const Device *device, const char *who, int64_t floats);
static inline Layout scratch_of(const Scratch *scratch, int worker) {
    return (Layout){scratch->memory + worker * scratch->floats, 0};
}

#endif
