// Products of linear attention's blocks, a few rows at a time, and between them what the next window will read from
// memory is asked for, some cache lines at a time: as many as a processor has on their way at once, while it
// multiplies.
//
// Blocks of scores are key by query; a query sees no key behind it, so of each strip of STRIP queries only the keys up
// to its last are worked on (linear_tiles.h, mask).
#include "mixer/cpu/linear.h"

enum { ROWS_ASKED = 16 }; // for each strip

static void ask(Ahead *a) {
    for (int n = 0; n < ROWS_ASKED && a->at < a->count; n++) {
        prefetch_rows(rows_from(a->from[a->at], a->row, 0), 1, a->columns);
        if (++a->row == a->rows) a->row = 0, a->at++;
    }
}

void ask_for(Ahead *a, Rows from, int64_t rows, int64_t columns) {
    if (rows <= 0 || a->count == AHEAD_MOST) return;
    a->from[a->count++] = from;
    a->rows = rows, a->columns = columns;
}

static Factor factor_from(Factor x, int64_t row, int64_t column) {
    x.data += row * x.row_stride + column * x.column_stride;
    return x;
}

void block_product(const Walk *w, const Part *part, int64_t m, int64_t n, int64_t k, Factor a, Rows b, Rows c) {
    for (int64_t row = 0; row < m; row += STRIP) {
        ask(&part->scratch->ahead);
        w->kernels->product(smaller(STRIP, m - row), n, k, factor_from(a, row, 0), b, rows_from(c, row, 0), OVERWRITE);
    }
}

void block_scores_of(const Walk *w, const Part *part, int64_t length, int64_t k, Rows a, Rows b, Rows scores) {
    int64_t columns = round_up_to_strip(length);
    for (int64_t key = 0; key < length; key += STRIP) {
        ask(&part->scratch->ahead);
        w->kernels->product(smaller(STRIP, length - key), columns - key, k, plain(rows_from(a, key, 0)),
                            rows_from(b, 0, key), rows_from(scores, key, key), OVERWRITE);
    }
}

void block_give_queries(const Walk *w, const Part *part, int64_t length, int64_t n, Rows scores, Rows b, Rows out) {
    for (int64_t query = 0; query < length; query += STRIP) {
        int64_t keys = smaller(length, query + STRIP);
        ask(&part->scratch->ahead);
        w->kernels->product(smaller(STRIP, length - query), n, keys, transposed(rows_from(scores, 0, query)), b,
                            rows_from(out, query, 0), ADD);
    }
}

void block_give_keys(const Walk *w, const Part *part, int64_t length, int64_t n, Rows scores, Rows b, Rows out) {
    for (int64_t key = 0; key < length; key += STRIP) {
        ask(&part->scratch->ahead);
        w->kernels->product(smaller(STRIP, length - key), n, length - key, plain(rows_from(scores, key, key)),
                            rows_from(b, key, 0), rows_from(out, key, 0), ADD);
    }
}
