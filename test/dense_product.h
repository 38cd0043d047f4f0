// Products with a weight in double precision, for the definitions that mixers are held against.
#ifndef TEST_DENSE_PRODUCT_H
#define TEST_DENSE_PRODUCT_H

#include <stdint.h>

// out (n, rows) = x (n, columns) w^T; and back: d_x += d_out w, d_w += d_out^T x.
static inline void dense_product(double *out, const double *x, const double *w, int64_t n, int64_t rows,
                                 int64_t columns) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < rows; r++) {
            double sum = 0;
            for (int64_t c = 0; c < columns; c++) sum += x[i * columns + c] * w[r * columns + c];
            out[i * rows + r] = sum;
        }
}
static inline void dense_product_back(double *d_x, double *d_w, const double *d_out, const double *x,
                                      const double *w, int64_t n, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c++) {
                d_x[i * columns + c] += d_out[i * rows + r] * w[r * columns + c];
                d_w[r * columns + c] += d_out[i * rows + r] * x[i * columns + c];
            }
}

#endif
