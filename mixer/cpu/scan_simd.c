// Running sums within a block of rows, SLAB channels at a time, so that the sums stay in the nearest cache.
#include "mixer/cpu/scan.h"

#include "base/simd.h"
#include "layers/cpu/layers.h"

enum { SLAB = 256 };

ScanBlockSum SIMD_NAME(scan_block_sum);
ScanBlock SIMD_NAME(scan_block);

// Where row k of a block, in the order in which it is scanned, stands in the chunk.
static int64_t row_of(const Scan *s, int64_t block, int64_t k, int64_t rows) {
    return block * SCAN_BLOCK + (s->backward ? rows - 1 - k : k);
}
static int64_t rows_of(const Scan *s, int64_t block) { return smaller(SCAN_BLOCK, s->length - block * SCAN_BLOCK); }

// Whether a row goes on from the one scanned before it.
static bool goes_on(const Scan *s, int64_t b, int64_t position) {
    return s->backward ? scan_joined(s, b, position, position + 1) : scan_joined(s, b, position - 1, position);
}

static void slab_sum(const Scan *s, int64_t b, int64_t block, float *restrict sum, const float *restrict x,
                     int64_t width) {
    int64_t rows = rows_of(s, block);
    memset(sum, 0, (size_t)width * sizeof *sum);
    for (int64_t k = 0; k < rows; k++) {
        int64_t row = row_of(s, block, k, rows), position = s->start + row;
        const float *from = x + row * s->channels, share = s->backward ? scan_share(s, b, position) : 1.0f;
        if (!goes_on(s, b, position)) memset(sum, 0, (size_t)width * sizeof *sum);
        for (int64_t c = 0; c < width; c++) sum[c] += from[c] * share;
    }
}

void SIMD_NAME(scan_block_sum)(const Scan *s, int64_t b, int64_t block, float *sum, const float *x) {
    x += (b * s->tokens + s->row) * s->channels;
    for (int64_t c = 0; c < s->channels; c += SLAB)
        slab_sum(s, b, block, sum + c, x + c, smaller(SLAB, s->channels - c));
}

// What a block goes on from: the blocks before it, and where the document reaches so far, the other chunks.
static void carried_in(const Scan *s, int64_t b, int64_t block, float *carried, const float *sum, const double *before,
                       int64_t width) {
    int64_t entry = s->start + row_of(s, block, 0, rows_of(s, block));
    bool reaches =
        s->backward ? scan_joined(s, b, entry, s->start + s->length) : scan_joined(s, b, s->start - 1, entry);
    for (int64_t c = 0; c < width; c++) carried[c] = sum[c] + (reaches ? (float)before[c] : 0.0f);
}

static void slab_scan(const Scan *s, int64_t b, int64_t block, float *restrict out, const float *restrict x,
                      float *restrict carried, int64_t width) {
    float sum[SLAB] = {0};
    int64_t rows = rows_of(s, block);
    for (int64_t k = 0; k < rows; k++) {
        int64_t row = row_of(s, block, k, rows), position = s->start + row;
        const float *from = x + row * s->channels, share = scan_share(s, b, position);
        const float in = s->backward ? share : 1.0f, scale = s->backward ? 1.0f : share;
        float *to = out + row * s->channels;
        if (!goes_on(s, b, position)) {
            memset(sum, 0, sizeof sum);
            memset(carried, 0, (size_t)width * sizeof *carried);
        }
        for (int64_t c = 0; c < width; c++) sum[c] += from[c] * in;
        for (int64_t c = 0; c < width; c++) to[c] = (carried[c] + sum[c]) * scale;
    }
}

void SIMD_NAME(scan_block)(const Scan *s, int64_t b, int64_t block, float *out, const float *x, const float *blocks,
                           const double *before) {
    float carried[SLAB];
    int64_t at = (b * s->tokens + s->row) * s->channels, C = s->channels;
    const float *sum = blocks + (b * scan_blocks(s->length) + block) * C;
    for (int64_t c = 0; c < C; c += SLAB) {
        int64_t width = smaller(SLAB, C - c);
        carried_in(s, b, block, carried, sum + c, before + b * C + c, width);
        slab_scan(s, b, block, out + at + c, x + at + c, carried, width);
    }
}
