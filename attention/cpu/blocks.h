// What forward.c and backward.c share: where the rows of one head lie, and products over blocks cut by the diagonal.
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

// How many of the chunk's keys the query at `position` sees.
static inline int64_t visible_keys(Chunk keys, int64_t position) {
    int64_t count = position - keys.start + 1;
    return count < 0 ? 0 : smaller(count, keys.length);
}

// A block of scores, keys x queries, and its place relative to the diagonal (tile_kernels.h). Outside of what is seen,
// strip by strip, nothing is computed, read or written.
typedef struct Block {
    int64_t keys, queries, diagonal;
} Block;

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
