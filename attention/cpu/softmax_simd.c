// The softmax of a block of scores, forward (online: Milakov and Gimelshein 2018) and backward. Blocks are key by
// query: a vector is one key and SIMD_WIDTH queries, so all that a query carries along is one lane.
#include <math.h>

#include "attention/cpu/tile_kernels.h"
#include "base/simd.h"

// The key rows of one vector of queries: the first `all` are seen by every one of them, those up to `some` are to be
// masked.
typedef struct Seen {
    int64_t all, some;
} Seen;

static Seen seen_by(int64_t keys, int64_t query, int64_t diagonal) {
    int64_t some = keys_of_strip(keys, query / STRIP * STRIP, diagonal), all = query + diagonal + 1;
    return (Seen){all < 0 ? 0 : all < some ? all : some, some};
}

// Lanes -1 where the query in column `query` + lane sees key `j`.
static inline vint sees(int64_t query, int64_t diagonal, int64_t j) {
    vint lane;
    for (int i = 0; i < SIMD_WIDTH; i++) lane[i] = i;
    return lane >= (vint){0} + (int32_t)(j - query - diagonal);
}

// The maximum over a column of vectors: four running ones, so that no comparison waits for the one before.
static vfloat column_maximum(const float *scores, int64_t stride, int64_t keys) {
    vfloat max[4];
    for (int i = 0; i < 4; i++) max[i] = vset(-INFINITY);
    int64_t j = 0;
    for (; j + 4 <= keys; j += 4, scores += 4 * stride)
        for (int i = 0; i < 4; i++) max[i] = vmax(max[i], vload(scores + i * stride));
    for (; j < keys; j++, scores += stride) max[0] = vmax(max[0], vload(scores));
    return vmax(vmax(max[0], max[1]), vmax(max[2], max[3]));
}

TileSoftmax SIMD_NAME(tile_softmax);

void SIMD_NAME(tile_softmax)(Rows scores, int64_t keys, int64_t queries, int64_t diagonal, float *max, float *sum,
                             float *rescale) {
    for (int64_t query = 0; query < queries; query += SIMD_WIDTH) {
        Seen seen = seen_by(keys, query, diagonal);
        float *column = scores.data + query;
        for (int64_t j = seen.all; j < seen.some; j++) {
            float *at = column + j * scores.stride;
            vstore(at, vselect(sees(query, diagonal, j), vload(at), vset(-INFINITY)));
        }
        vfloat old_max = vload(max + query), new_max = vmax(old_max, column_maximum(column, scores.stride, seen.some));
        // A query that has seen no key yet has the maximum -inf, and -inf - -inf is not a number: for it 0 stands in.
        vfloat base = vselect(new_max == vset(-INFINITY), vset(0.0f), new_max);
        vfloat factor = vexp_negative(old_max - base), total = factor * vload(sum + query);
        for (int64_t j = 0; j < seen.some; j++) {
            vfloat weight = vexp_negative(vload(column + j * scores.stride) - base);
            vstore(column + j * scores.stride, weight);
            total += weight;
        }
        vstore(max + query, new_max);
        vstore(sum + query, total);
        vstore(rescale + query, factor);
    }
}

TileSoftmaxBackward SIMD_NAME(tile_softmax_backward);

void SIMD_NAME(tile_softmax_backward)(Rows scores, Rows d_weights, int64_t keys, int64_t queries, int64_t diagonal,
                                      const float *log_sum_exp, const float *delta, float scale) {
    for (int64_t query = 0; query < queries; query += SIMD_WIDTH) {
        Seen seen = seen_by(keys, query, diagonal);
        vfloat base = vload(log_sum_exp + query), offset = vload(delta + query);
        float *score = scores.data + query, *d_weight = d_weights.data + query;
        for (int64_t j = 0; j < seen.some; j++, score += scores.stride, d_weight += d_weights.stride) {
            vfloat exponent = vload(score) - base; // positive, even huge, only where the key is not seen
            if (j >= seen.all) exponent = vselect(sees(query, diagonal, j), exponent, vset(-INFINITY));
            vfloat weight = vexp_negative(exponent);
            vstore(score, weight);
            vstore(d_weight, scale * weight * (vload(d_weight) - offset));
        }
    }
}

TileScaleRows SIMD_NAME(tile_scale_rows);

void SIMD_NAME(tile_scale_rows)(Rows c, int64_t rows, int64_t n, const float *factor) {
    for (int64_t r = 0; r < rows; r++) {
        if (factor[r] == 1.0f) continue; // most rows, once the maximum has been met
        for (int64_t i = 0; i < n; i++) c.data[r * c.stride + i] *= factor[r];
    }
}
