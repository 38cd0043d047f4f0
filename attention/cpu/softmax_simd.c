// The softmax of a block of scores, forward (online: Milakov and Gimelshein 2018) and backward. Blocks are key by
// query: a vector is one key and SIMD_WIDTH queries, so all that a query carries along is one lane.
#include <math.h>

#include "attention/cpu/tile_kernels.h"
#include "base/simd.h"

// The key rows of one vector of queries: `first` to before `end` are worked on; `from` to before `to` are seen by every
// query, the others are to be masked. first <= from <= to <= end.
typedef struct Seen {
    int64_t first, from, to, end;
} Seen;

static int64_t clamp(int64_t x, int64_t least, int64_t most) { return x < least ? least : x > most ? most : x; }

static Seen seen_by(int64_t keys, int64_t query, Mask mask) {
    StripRows rows = rows_of_strip(keys, query / STRIP * STRIP, mask);
    int64_t last_first = mask.first == NULL ? 0 : mask.first[query + SIMD_WIDTH - 1] - mask.row;
    int64_t from = clamp(last_first, rows.first, rows.end);
    return (Seen){rows.first, from, clamp(query + mask.diagonal + 1, from, rows.end), rows.end};
}

// Lanes -1 where the query in column `query` + lane sees key `j`.
static inline vint sees(int64_t query, Mask mask, int64_t j) {
    vint lane, first = {0};
    for (int i = 0; i < SIMD_WIDTH; i++) lane[i] = i;
    vint early_enough = lane >= (vint){0} + (int32_t)(j - query - mask.diagonal);
    if (mask.first == NULL) return early_enough;
    for (int i = 0; i < SIMD_WIDTH; i++) first[i] = mask.first[query + i];
    return early_enough & (first <= (vint){0} + (int32_t)(j + mask.row));
}

// Scores `first` to before `end` of a column become -inf where they are not seen.
static void hide(float *column, int64_t stride, int64_t query, Mask mask, int64_t first, int64_t end) {
    for (int64_t j = first; j < end; j++) {
        float *at = column + j * stride;
        vstore(at, vselect(sees(query, mask, j), vload(at), vset(-INFINITY)));
    }
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

void SIMD_NAME(tile_softmax)(Rows scores, int64_t keys, int64_t queries, Mask mask, float *max, float *sum,
                             float *rescale) {
    for (int64_t query = 0; query < queries; query += SIMD_WIDTH) {
        Seen seen = seen_by(keys, query, mask);
        float *column = scores.data + query;
        hide(column, scores.stride, query, mask, seen.first, seen.from);
        hide(column, scores.stride, query, mask, seen.to, seen.end);
        vfloat block_max = column_maximum(column + seen.first * scores.stride, scores.stride, seen.end - seen.first);
        vfloat old_max = vload(max + query), new_max = vmax(old_max, block_max);
        // A query that has seen no key yet has the maximum -inf, and -inf - -inf is not a number: for it 0 stands in.
        vfloat base = vselect(new_max == vset(-INFINITY), vset(0.0f), new_max);
        vfloat factor = vexp_negative(old_max - base), total = factor * vload(sum + query);
        for (int64_t j = seen.first; j < seen.end; j++) {
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

void SIMD_NAME(tile_softmax_backward)(Rows scores, Rows d_weights, int64_t keys, int64_t queries, Mask mask,
                                      const float *log_sum_exp, const float *delta, float scale) {
    for (int64_t query = 0; query < queries; query += SIMD_WIDTH) {
        Seen seen = seen_by(keys, query, mask);
        vfloat base = vload(log_sum_exp + query), offset = vload(delta + query);
        float *score = scores.data + query + seen.first * scores.stride;
        float *d_weight = d_weights.data + query + seen.first * d_weights.stride;
        for (int64_t j = seen.first; j < seen.end; j++, score += scores.stride, d_weight += d_weights.stride) {
            vfloat exponent = vload(score) - base; // positive, even huge, only where the key is not seen
            if (j < seen.from || j >= seen.to) exponent = vselect(sees(query, mask, j), exponent, vset(-INFINITY));
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
