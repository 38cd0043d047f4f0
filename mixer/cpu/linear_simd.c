// Linear attention's loops over the values of a block, in vectors (linear_tiles.h).
#include "layers/cpu/vector.h"
#include "mixer/cpu/linear_tiles.h"

static inline vfloat phi(vfloat u) { return vselect(u > vset(0.0f), u + 1.0f, vexp_negative(vmin(u, vset(0.0f)))); }

// A head's rows of the model's tensors, to be read or written, lie far apart, and processors do not fetch them by
// themselves. Always inlined, since compilers leave out calls of a function that does nothing else.
static inline __attribute__((always_inline)) void ask_ahead(const float *row, int64_t stride, int64_t columns) {
    enum { ROWS_AHEAD = 16, LINE = 16 };
    if (stride < 2 * columns) return; // near
    for (int64_t i = 0; i < columns; i += LINE) __builtin_prefetch(row + ROWS_AHEAD * stride + i, 0, 2);
}

static void features(Rows x, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r++) {
        float *row = x.data + r * x.stride;
        int64_t i = 0;
        ask_ahead(row, x.stride, columns);
        for (; i + SIMD_WIDTH <= columns; i += SIMD_WIDTH) vstore(row + i, phi(vload(row + i)));
        if (i < columns) vstore_part(row + i, phi(vload_part(row + i, columns - i)), columns - i);
    }
}

static void pack(Rows to, int64_t padded, Rows from, int64_t rows, int64_t columns, const float *factor) {
    for (int64_t r = 0; r < rows; r++) {
        float *out = to.data + r * to.stride;
        const float *in = from.data + r * from.stride;
        vfloat by = vset(factor == NULL ? 1.0f : factor[r]);
        int64_t i = 0;
        ask_ahead(in, from.stride, columns);
        ask_ahead(out, to.stride, columns);
        for (; i + 4 * SIMD_WIDTH <= columns; i += 4 * SIMD_WIDTH) {
            vfloat x[4];
            SIMD_UNROLL for (int v = 0; v < 4; v++) x[v] = vload(in + i + v * SIMD_WIDTH);
            SIMD_UNROLL for (int v = 0; v < 4; v++) vstore(out + i + v * SIMD_WIDTH, by * x[v]);
        }
        for (; i + SIMD_WIDTH <= columns; i += SIMD_WIDTH) vstore(out + i, by * vload(in + i));
        if (i < columns) {
            vstore_part(out + i, by * vload_part(in + i, columns - i), columns - i);
            i = columns;
        }
        for (; i < padded; i++) out[i] = 0;
    }
}

static void mask(Rows scores, int64_t keys, int64_t queries, const float *power, const int32_t *first, float *sums) {
    for (int64_t i = 0; i < queries; i += SIMD_WIDTH) {
        int64_t strip = i / STRIP * STRIP, end = strip + STRIP < keys ? strip + STRIP : keys;
        vfloat sum = vset(0.0f);
        vint begin = {0};
        if (first != NULL) memcpy(&begin, first + i, sizeof begin);
        for (int64_t j = 0; j < end; j++) {
            float *at = scores.data + j * scores.stride + i;
            vfloat x = vload(at) * vload(power + i - j);
            if (first != NULL) x = vselect(begin > (int32_t)j, vset(0.0f), x);
            vstore(at, x);
            sum += x;
        }
        if (sums != NULL) vstore(sums + i, vload(sums + i) + sum);
    }
}

static void sum_rows(float *sums, Rows x, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < columns; i += SIMD_WIDTH) {
        vfloat sum = vset(0.0f);
        for (int64_t r = 0; r < rows; r++) sum += vload(x.data + r * x.stride + i);
        vstore(sums + i, sum);
    }
}

static void add_scaled(float *to, const float *from, float factor, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] += factor * from[i];
}

static inline __attribute__((always_inline)) vfloat given(vfloat from, const float *x, vfloat old, int64_t part) {
    vfloat y = from;
    if (x != NULL) y *= vmin(part == 0 ? vload(x) : vload_part(x, part), vset(1.0f));
    return y + old;
}

static void give(Rows to, Rows from, Rows x, int64_t rows, int64_t columns, bool add) {
    for (int64_t r = 0; r < rows; r++) {
        float *out = to.data + r * to.stride;
        const float *in = from.data + r * from.stride, *features = x.data == NULL ? NULL : x.data + r * x.stride;
        int64_t i = 0, left;
        ask_ahead(out, to.stride, columns);
        for (; i + SIMD_WIDTH <= columns; i += SIMD_WIDTH)
            vstore(out + i,
                   given(vload(in + i), features == NULL ? NULL : features + i, add ? vload(out + i) : vset(0.0f), 0));
        if ((left = columns - i) == 0) continue;
        vfloat old = add ? vload_part(out + i, left) : vset(0.0f);
        vstore_part(out + i, given(vload_part(in + i, left), features == NULL ? NULL : features + i, old, left), left);
    }
}

static void dots(float *out, Rows a, Rows b, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r++) {
        const float *x = a.data + r * a.stride, *y = b.data + r * b.stride;
        ask_ahead(x, a.stride, columns);
        vfloat sum = vset(0.0f);
        int64_t i = 0;
        for (; i + SIMD_WIDTH <= columns; i += SIMD_WIDTH) sum += vload(x + i) * vload(y + i);
        if (i < columns) sum += vload_part(x + i, columns - i) * vload_part(y + i, columns - i);
        out[r] = vsum(sum);
    }
}

extern const LinearTiles SIMD_NAME(linear_tiles);
const LinearTiles SIMD_NAME(linear_tiles) = {features, pack, mask, sum_rows, add_scaled, give, dots};
