// Rows of the model's tensors beside blocks of the gated delta rule, for its *_simd.c: which row of the one stands
// where in the other, and vectors at the ends of rows of any length.
#ifndef MIXER_CPU_DELTA_ROWS_H
#define MIXER_CPU_DELTA_ROWS_H

#include "base/simd.h"
#include "mixer/cpu/delta.h"

// Block n of sequence b, a task of those that go token by token.
typedef struct BlockRows {
    int64_t b, n, rows; // of tokens that exist
    int chunk;
    int64_t in_chunk; // the first token's place in its chunk
    int64_t position; // and in the sequence
    int64_t row;      // and among the rank's rows
} BlockRows;

static inline BlockRows block_rows_of(const DeltaShape *s, int64_t task) {
    int64_t N = delta_blocks(s), early = delta_chunk_blocks(s, 0);
    BlockRows r = {.b = task / N, .n = task % N};
    r.chunk = r.n >= early;
    r.in_chunk = (r.n - r.chunk * early) * DELTA_BLOCK;
    const Chunk chunk = s->chunk[r.chunk];
    r.rows = chunk.length - r.in_chunk < DELTA_BLOCK ? chunk.length - r.in_chunk : DELTA_BLOCK;
    r.position = chunk.start + r.in_chunk;
    r.row = r.b * delta_tokens(s) + r.chunk * s->chunk[0].length + r.in_chunk;
    return r;
}

static inline int64_t first_seen(const DeltaShape *s, int64_t b, int64_t position) {
    return s->first != NULL ? s->first[b * s->context + position] : 0;
}

// Element (b, h, n, i, 0) of a tensor (B, heads, N, 64, W).
static inline float *block_row(const DeltaShape *s, const void *tensor, int64_t heads, int64_t b, int64_t h, int64_t n,
                               int64_t i) {
    int64_t index = ((b * heads + h) * delta_blocks(s) + n) * DELTA_BLOCK + i;
    return (float *)(uintptr_t)tensor + index * delta_width(s->head_dim);
}

// A vector of which `left` lanes are there, the others 0.
static inline vfloat vload_some(const float *p, int64_t left) {
    if (left >= SIMD_WIDTH) return vload(p);
    float lanes[SIMD_WIDTH] = {0};
    for (int64_t i = 0; i < left; i++) lanes[i] = p[i];
    return vload(lanes);
}
static inline void vstore_some(float *p, vfloat v, int64_t left) {
    if (left >= SIMD_WIDTH) {
        vstore(p, v);
        return;
    }
    float lanes[SIMD_WIDTH];
    vstore(lanes, v);
    for (int64_t i = 0; i < left; i++) p[i] = lanes[i];
}
static inline float dot(const float *a, const float *b, int64_t count) {
    vfloat sum = vset(0.0f);
    for (int64_t i = 0; i < count; i += SIMD_WIDTH) sum += vload_some(a + i, count - i) * vload_some(b + i, count - i);
    return vsum(sum);
}

static inline vfloat vsigmoid(vfloat x) { return 1.0f / (1.0f + vexp(-x)); }
// x sigmoid(x), and its derivative.
static inline vfloat vsilu(vfloat x) { return x * vsigmoid(x); }
static inline vfloat vsilu_slope(vfloat x) {
    vfloat y = vsigmoid(x);
    return y * (1.0f + x * (1.0f - y));
}

#endif
