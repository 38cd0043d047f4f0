// The gated delta rule on the CPU: its kernels by file, and what they have in common. Contracts: mixer/delta.h.
//
// A task is one head of one sequence and chunk, block after block, where a state goes from block to block. What can be
// done of each block by itself is done there as well, while the block is in cache; but where these tasks are fewer than
// threads, afterwards, with a task to each block. The bits are the same.
#ifndef MIXER_CPU_DELTA_H
#define MIXER_CPU_DELTA_H

#include <stdbool.h>

#include "mixer/cpu/delta_tiles.h"
#include "mixer/delta.h"

typedef void DeltaPrepare(Device *, const DeltaShape *, const DeltaInput *, const DeltaTokens *);
typedef void DeltaPrepareBackward(Device *, const DeltaShape *, const DeltaInput *, const DeltaTokens *,
                                  const DeltaGradients *, void *d_raw, void *d_rates, float *d_decay_log,
                                  float *d_decay_bias);
typedef void DeltaConvolveBackward(Device *, const DeltaShape *, const DeltaInput *, void *d_raw, float *d_taps,
                                   const void *d_convolved, const void *edge);
typedef void DeltaFinish(Device *, const DeltaShape *, void *y, const void *out, const void *raw, const void *scale,
                         float epsilon);
typedef void DeltaFinishBackward(Device *, const DeltaShape *, void *d_out, void *d_raw, float *d_scale,
                                 const void *d_y, const void *out, const void *raw, const void *scale, float epsilon);

// delta_tokens_simd.c, delta_finish_simd.c
typedef struct DeltaTokenKernels {
    DeltaPrepare *prepare;
    DeltaPrepareBackward *prepare_backward;
    DeltaConvolveBackward *convolve_backward;
} DeltaTokenKernels;
typedef struct DeltaFinishKernels {
    DeltaFinish *finish;
    DeltaFinishBackward *finish_backward;
} DeltaFinishKernels;

// delta_backward.c
void cpu_delta_retreat(Device *, const DeltaShape *, const DeltaTokens *, const void *d_out, float *const d_initial[2],
                       int64_t d_initial_stride, void *d_states, void *residuals);
void cpu_delta_backward(Device *, const DeltaShape *, const DeltaTokens *, const void *states, const void *updates,
                        const void *d_out, const float *d_final, void *d_states, void *residuals,
                        const DeltaGradients *);

// The copies for this processor (delta.c).
const DeltaTiles *delta_tiles(void);

// Floats that a worker needs.
static inline size_t delta_room_floats(int64_t W) {
    return (size_t)(6 * DELTA_BLOCK * DELTA_BLOCK + 12 * DELTA_BLOCK * W + 5 * W * W + 16 * DELTA_BLOCK);
}

// A worker's memory: matrices are taken one after the other.
typedef struct DeltaRoom {
    float *next;
} DeltaRoom;
static inline Rows delta_take(DeltaRoom *room, int64_t rows, int64_t columns) {
    Rows taken = {room->next, columns};
    room->next += rows * columns;
    return taken;
}

static inline DeltaRoom delta_worker_room(float *room, const DeltaShape *s, int worker) {
    return (DeltaRoom){room + (size_t)worker * delta_room_floats(delta_width(s->head_dim))};
}

// Whether tasks of heads are enough for all threads.
static inline bool delta_at_once(const DeltaShape *s, int threads) {
    return s->chunks * s->batch * s->heads >= threads;
}

// A task that goes from block to block: blocks `first` to before `end` of sequence b, head h; head: of the B H.
typedef struct DeltaRun {
    int chunk;
    int64_t head, b, h, first, end;
} DeltaRun;
DeltaRun delta_run(const DeltaShape *s, int64_t task);

// A block's tokens and what follows from their decays: see mixer/delta.h for the letters.
typedef struct DeltaBlock {
    const TileKernels *tile;
    const DeltaTiles *delta;
    int64_t rows, W;   // rows rounded up to a STRIP
    Rows q, k, v;      // (rows, W)
    const float *beta; // (rows)
    const int32_t *begin;
    Rows decay;        // (rows, rows) D
    float *carry;      // (rows) c
    const float *rest; // (rows) e, the last row of D
    Rows kt;           // (W, rows) K^T
} DeltaBlock;
// Block n of sequence b and head h; room: for decay, carry and K^T.
DeltaBlock delta_block(const DeltaShape *s, const DeltaTokens *t, int64_t b, int64_t h, int64_t n, DeltaRoom *room);

// Block n of a tensor (B, H, N, rows, columns).
static inline Rows delta_part(const DeltaShape *s, const void *tensor, int64_t b, int64_t h, int64_t n, int64_t rows,
                              int64_t columns) {
    int64_t index = (b * s->heads + h) * delta_blocks(s) + n;
    return (Rows){(float *)(uintptr_t)tensor + index * rows * columns, columns};
}

// A (rows, rows)
void delta_system(const DeltaBlock *block, Rows a);
// x (rows, columns) = (I + A)^-1 x, or of the transpose.
void delta_solve(const DeltaBlock *block, Rows a, Rows x, int64_t columns, bool transpose);
// c (rows, columns) += or = L b, or L^T b, for L (rows, rows) with zeros above the diagonal.
void delta_lower(const DeltaBlock *block, Rows lower, bool transpose, Rows b, Rows c, int64_t columns, Update update);
// c (rows, rows), up to the diagonal = a (rows, W) bt (W, rows)
void delta_scores(const DeltaBlock *block, Rows a, Rows bt, Rows c);

#endif
