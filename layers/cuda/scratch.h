// What CUDA's layers need of scratch memory (Device.scratch), in plain C: the kernels' hosts take these sizes from
// here, and so does a plan, made perhaps where there is no GPU.
//
//   [ cuBLASLt's workspace | sums over blocks of the layer at work ]
#ifndef LAYERS_CUDA_SCRATCH_H
#define LAYERS_CUDA_SCRATCH_H

#include <stddef.h>
#include <stdint.h>

// cuBLASLt's workspace: what its best products want on Hopper.
enum { CUDA_WORKSPACE_BYTES = 32 << 20 };

static inline int64_t scratch_least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t scratch_most(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t scratch_parts(int64_t count, int64_t of) { return (count + of - 1) / of; }
static inline size_t scratch_padded(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Beside the GPU's memory, of the host's: what uploads wait in (upload.cu).
enum { CUDA_UPLOAD_BYTES = 16 << 20 };

// ---- sort.cu: two of (keys, rows), counts of each digit in each tile, totals; each from a multiple of 256 bytes on
enum { SORT_DIGIT_BITS = 9, SORT_DIGITS = 1 << SORT_DIGIT_BITS, SORT_TILE = 512 };
static inline size_t sort_pairs_bytes(int64_t rows) { return scratch_padded((size_t)rows * 4); }
static inline size_t sort_counts_bytes(int64_t rows) {
    return scratch_padded((size_t)scratch_parts(rows, SORT_TILE) * SORT_DIGITS * 4);
}
static inline size_t sort_scratch_bytes(int64_t rows) {
    return 4 * sort_pairs_bytes(rows) + sort_counts_bytes(rows) + scratch_padded(SORT_DIGITS * 4);
}

// ---- embedding.cu: the sort, and two rows of sums for each piece of the sorted list
// Pieces long enough to be worth their partial sums, and short enough that there are thousands.
static inline int64_t embedding_piece_length(int64_t rows) {
    return scratch_most(64, scratch_least(512, scratch_parts(rows, 2048)));
}
static inline size_t embedding_sums_bytes(int64_t rows, int64_t C) {
    return (size_t)(scratch_parts(rows, embedding_piece_length(rows)) * 2 * C) * sizeof(float);
}

// ---- norm.cu: a row of sums for each block of the backward kernel, LayerNorm two
enum { NORM_MOST_BLOCKS = 1024 }; // more than any GPU has at work at once
static inline size_t norm_sums_bytes(int64_t blocks, int64_t C, int vectors) {
    return (size_t)(blocks * vectors * C) * sizeof(float);
}

// ---- bias.cu: a row of sums for each block of rows; about BIAS_BLOCKS blocks over all groups of columns
enum {
    BIAS_BLOCKS = 1024, // about as many as a large GPU runs at once, over all columns
    BIAS_GROUP = 256,
    BIAS_LEAST_ROWS = 64, // of a block: fewer would not repay writing and reading its sums
};
static inline int64_t bias_rows_per_block(int64_t rows, int64_t N) {
    const int64_t wanted = scratch_most(1, BIAS_BLOCKS / scratch_parts(N, BIAS_GROUP));
    return scratch_most(BIAS_LEAST_ROWS, scratch_parts(rows, wanted));
}
static inline size_t bias_sums_bytes(int64_t rows, int64_t N) {
    return (size_t)(scratch_parts(rows, bias_rows_per_block(rows, N)) * N) * sizeof(float);
}

// ---- reduce.cu: a sum for each block
enum { REDUCE_BLOCKS = 4096 };

// ---- all together ---------------------------------------------------------------------------------------------------

// The most for up to `rows` rows of width C and biases of up to `columns`.
static inline size_t cuda_scratch_bytes(int64_t rows, int64_t C, int64_t columns) {
    // Of the embedding, fewer rows can make more pieces: at most 2,048 of up to 512 rows, or whole pieces of 512.
    const int64_t pieces = scratch_least(scratch_parts(rows, 64), scratch_most(2048, scratch_parts(rows, 512)));
    const size_t embedding = sort_scratch_bytes(rows) + (size_t)(pieces * 2 * C) * sizeof(float);
    const size_t norm = norm_sums_bytes(scratch_least(rows, NORM_MOST_BLOCKS), C, 2);
    // A group of columns for each block that sums some: not more values than this, but where one row has more.
    const size_t bias = (size_t)scratch_most(BIAS_BLOCKS * BIAS_GROUP, columns) * sizeof(float);
    const size_t sum = REDUCE_BLOCKS * sizeof(double);
    size_t most = embedding > norm ? embedding : norm;
    if (most < bias) most = bias;
    if (most < sum) most = sum;
    return CUDA_WORKSPACE_BYTES + most;
}

#endif
