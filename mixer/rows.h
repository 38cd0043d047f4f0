// The motion of mixers that need every token's row (mlp): all ranks are given all rows, each chunk of tokens beside the
// others; and backward, the sums of all ranks' gradients of them are scattered to their owners.
//
// Rows of all ranks stand by owner, and of each owner its early chunk before its late one. The row of a position holds
// those of all sequences, (B, C): so a chunk is a matrix (tokens, B C), wherever its sequences lie in a pass's (B, Tl,
// C).
#ifndef MIXER_ROWS_H
#define MIXER_ROWS_H

#include "model/model.h"

// (B, Tl, C) of storage <-> (Tl, B, C).
void rows_by_position(const Mixing *m, void *to, const void *from);
void rows_by_sequence(const Mixing *m, void *to, const void *from);

// all (T, B, C), of storage: my rows, from `mine` (B, Tl, C), and everyone's after rows_gather_wait.
void rows_gather_begin(const Mixing *m, void *all, const void *mine);
void rows_gather_wait(const Mixing *m);
// mine (B, Tl, C) of storage = the sums over ranks of my rows of all (T, B, C), fp32. room: (P - 1, Tl, B, C) fp32.
void rows_scatter(const Mixing *m, void *mine, float *all, float *room);

// One of the chunks in which all rows stand: its positions, and where its first row is among them.
typedef struct RowsChunk {
    Chunk chunk;
    int64_t row;
} RowsChunk;
// Chunk i of a rank's; false: it has no such.
bool rows_chunk(const Mixing *m, int rank, int i, RowsChunk *chunk);

// Bytes that a rank sends for a gather, and for the sums.
int64_t rows_gather_bytes(const AttentionConfig *sharding, int64_t width, int rank);
int64_t rows_scatter_bytes(const AttentionConfig *sharding, int64_t width, int rank);

#endif
