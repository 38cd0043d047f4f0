// A blocked product: blocks of A and B are widened to fp32 and packed into panels, so that the innermost loop reads
// both from front to back, with a tile of the result in registers (Goto and van de Geijn, "Anatomy of high-performance
// matrix multiplication", 2008). A stretch of k is summed on its own first, which also keeps rounding errors small.
#include "emulated/product.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "emulated/report.h"
#include "emulated/settings.h"

typedef float Four __attribute__((vector_size(16)));
enum { TILE_M = 8, TILE_N = 4, STRETCH = 256 /* the most */ }; // of m, n, k

static float widen(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static uint16_t narrow(float x) { // to nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static float *floats(int64_t count) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, (size_t)count * sizeof(float)) != 0)
        report_host("cublasLtMatmul: no memory for %lld values", (long long)count);
    return static_cast<float *>(memory);
}

// Panels of `width` rows (or columns) of op(x), k from `first` on: packed[panel][k][width], with zeros beyond the end.
// Element (i, k) is x[i * along + k * across].
static void pack(float *packed, int width, const uint16_t *x, int64_t along, int64_t across, int64_t count,
                 int64_t first, int64_t depth) {
    for (int64_t panel = 0; panel < count; panel += width) {
        for (int64_t k = 0; k < depth; k++) {
            const uint16_t *from = x + panel * along + (first + k) * across;
            for (int i = 0; i < width; i++) *packed++ = panel + i < count ? widen(from[i * along]) : 0.0f;
        }
    }
}

static void add_tile(float *sum, int64_t stride, const float *a, const float *b, int64_t depth) {
    Four low[TILE_N] = {}, high[TILE_N] = {};
    for (int64_t k = 0; k < depth; k++, a += TILE_M, b += TILE_N) {
        Four a_low, a_high;
        memcpy(&a_low, a, sizeof a_low);
        memcpy(&a_high, a + 4, sizeof a_high);
        for (int j = 0; j < TILE_N; j++) {
            low[j] += a_low * b[j];
            high[j] += a_high * b[j];
        }
    }
    for (int j = 0; j < TILE_N; j++) {
        float tile[TILE_M];
        memcpy(tile, &low[j], sizeof low[j]);
        memcpy(tile + 4, &high[j], sizeof high[j]);
        for (int i = 0; i < TILE_M; i++) sum[j * stride + i] += tile[i];
    }
}

static float gelu_tanh(float x) { return tanhf(0.7978845608f * (x + 0.044715f * x * x * x)); }
static float gelu(float x) { return 0.5f * x * (1.0f + gelu_tanh(x)); }
static float gelu_slope(float x) {
    const float t = gelu_tanh(x);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608f * (1.0f + 3.0f * 0.044715f * x * x);
}

// The value that goes to (i, j) of the result, from the sum over k.
static float finish(const EmulatedProduct *p, int64_t i, int64_t j, float sum) {
    const int64_t at = i + j * p->ldc;
    float value = p->alpha * sum;
    if (p->beta != 0)
        value += p->beta *
                 (p->float_out ? static_cast<const float *>(p->c)[at] : widen(static_cast<const uint16_t *>(p->c)[at]));
    if (p->bias != NULL) value += widen(p->bias[i]);
    if (p->aux == NULL) return value;
    uint16_t *aux = &p->aux[i + j * p->ldaux];
    if (!p->gelu) return value * gelu_slope(widen(*aux));
    *aux = narrow(value);
    return gelu(value);
}

void emulated_product(const EmulatedProduct *p) {
    const int64_t m = round_up(p->m, TILE_M), n = round_up(p->n, TILE_N);
    float *sum = floats(m * n), *a = floats(m * STRETCH), *b = floats(n * STRETCH);
    memset(sum, 0, (size_t)(m * n) * sizeof *sum);
    const int64_t stretches = (p->k + p->stretch - 1) / p->stretch;
    const int64_t start = p->any_order ? (int64_t)random_below((uint32_t)stretches) : 0;
    for (int64_t i = 0; i < stretches; i++) {
        const int64_t first = (start + i) % stretches * p->stretch, depth = least(p->stretch, p->k - first);
        pack(a, TILE_M, p->a, p->transpose_a ? p->lda : 1, p->transpose_a ? 1 : p->lda, p->m, first, depth);
        pack(b, TILE_N, p->b, p->transpose_b ? 1 : p->ldb, p->transpose_b ? p->ldb : 1, p->n, first, depth);
        for (int64_t column = 0; column < n; column += TILE_N)
            for (int64_t row = 0; row < m; row += TILE_M)
                add_tile(sum + row + column * m, m, a + row * depth, b + column * depth, depth);
    }
    for (int64_t j = 0; j < p->n; j++) {
        for (int64_t i = 0; i < p->m; i++) {
            const float value = finish(p, i, j, sum[i + j * m]);
            if (p->float_out) static_cast<float *>(p->d)[i + j * p->ldd] = value;
            else static_cast<uint16_t *>(p->d)[i + j * p->ldd] = narrow(value);
        }
    }
    free(sum);
    free(a);
    free(b);
}
