// Running sums over positions, for mixers whose past is a sum (mean).
//
// A chunk is scanned in blocks of SCAN_BLOCK rows: first the sum of each block, then of the blocks before it, then
// within it. However long a sequence is, the scan of x_j is off by at most (SCAN_BLOCK + 5) u times that of |x_j|, u =
// 2^-24. For a term goes through SCAN_BLOCK - 1 additions within its block, in fp32; sums over blocks and over chunks
// are taken in double precision, and rounded twice on the way; two additions put the parts together; and the division
// is a reciprocal and a product. A plain scan of a million rows would have a million in place of SCAN_BLOCK.
//
// A document's sums begin anew: positions j and i are in the same one where first(i) <= j <= i.
#ifndef MIXER_SCAN_H
#define MIXER_SCAN_H

#include "layers/device.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SCAN_BLOCK = 64 };

// One chunk of every sequence, to be scanned forward: out_i = (sum of x_j over first(i) <= j <= i) / (i - first(i) +
// 1); or `backward`, by the transpose: out_j = sum of x_i / (i - first(i) + 1) over i >= j with first(i) <= j.
typedef struct Scan {
    int64_t sequences, channels; // B, C
    int64_t tokens;              // rows of a sequence in memory: x and out are (B, tokens, C)
    int64_t row, length;         // of them, this chunk's: the first, and how many
    int64_t start;               // the first one's position
    const int32_t *first;        // (B, context); NULL: 0, there are no documents
    int64_t context;             // positions there are
    bool backward;
} Scan;

// Kernels include layers/cuda/cuda.h before.
#ifdef __cplusplus
#define SCAN_INLINE __host__ __device__ inline
#else
#define SCAN_INLINE static inline
#endif
// Whether what is at position `later` goes on from `earlier`, of sequence b: they are in one document.
SCAN_INLINE bool scan_joined(const Scan *s, int64_t b, int64_t earlier, int64_t later) {
    return s->first == NULL || (later < s->context && s->first[b * s->context + later] <= earlier);
}
// 1 / (i - first(i) + 1)
SCAN_INLINE float scan_share(const Scan *s, int64_t b, int64_t position) {
    int64_t first = s->first == NULL ? 0 : s->first[b * s->context + position];
    return 1.0f / (float)(position - first + 1);
}
SCAN_INLINE int64_t scan_blocks(int64_t length) { return (length + SCAN_BLOCK - 1) / SCAN_BLOCK; }
SCAN_INLINE bool scan_is_empty(const Scan *s) { return s->sequences * s->length * s->channels == 0; }

typedef struct ScanKernels {
    // blocks (B, scan_blocks(length), C): for each block, the sum of the chunk's rows before it (backward: behind it).
    // state (B, C): the sum of all. Both only of the document that goes on there.
    void (*sums)(Device *, const Scan *, float *blocks, float *state, const void *x);
    // before (B, C), double: the sum of those of the `count` states, of other chunks, whose document reaches to this
    // chunk. The states stand at states + place[k] * stride; forward, their chunks lie before this one and end before
    // position edge[k]; backward, they lie behind it and begin there.
    void (*gather)(Device *, const Scan *, double *before, const float *states, int64_t stride, const int *place,
                   const int64_t *edge, int count);
    // out = the scan of x, after what `sums` left in blocks and, of other chunks, `before`.
    void (*scan)(Device *, const Scan *, void *out, const void *x, const float *blocks, const double *before);
    // Forward: makes of `before` what the chunk that follows has before it.
    void (*advance)(Device *, const Scan *, double *before, const float *state);
} ScanKernels;

#ifdef __cplusplus
}
#endif
#endif
