// Products of linear attention's blocks. Blocks of scores are key by query; a query sees no key behind it, so of each
// strip of STRIP queries only the keys up to its last are worked on (linear_tiles.h, mask). Results are made a strip of
// rows at a time, which stays in the nearest cache until it is given away.
#include "mixer/cpu/linear.h"

void scores_of(const Walk *w, int64_t length, int64_t k, Rows a, Rows b, Rows scores) {
    int64_t columns = round_up_to_strip(length);
    for (int64_t key = 0; key < length; key += STRIP)
        w->kernels->product(smaller(STRIP, length - key), columns - key, k, plain(rows_from(a, key, 0)),
                            rows_from(b, 0, key), rows_from(scores, key, key), OVERWRITE);
}

void strip_of_state(const Walk *w, int64_t rows, int64_t k, Factor a, Rows state, const float *factor, Rows result) {
    w->kernels->product(rows, w->padded, k, a, state, result, OVERWRITE);
    w->kernels->scale_rows(result, rows, w->padded, factor);
}

void strip_from_keys(const Walk *w, int64_t row, int64_t length, Rows scores, Rows b, Rows result) {
    w->kernels->product(smaller(STRIP, length - row), w->padded, smaller(length, row + STRIP),
                        transposed(rows_from(scores, 0, row)), b, result, ADD);
}

void strip_from_queries(const Walk *w, int64_t row, int64_t length, Rows scores, Rows b, Rows result) {
    w->kernels->product(smaller(STRIP, length - row), w->padded, length - row, plain(rows_from(scores, row, row)),
                        rows_from(b, row, 0), result, ADD);
}
