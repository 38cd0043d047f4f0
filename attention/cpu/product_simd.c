// The matrix product of small blocks that lie in cache, after the micro-kernel of Van Zee and van de Geijn, "BLIS: a
// framework for rapidly instantiating BLAS functionality", ACM TOMS 41(3), 2015.
//
// A processor loads one or two vectors in the time of one multiply-add of a vector, so every value loaded has to be
// used several times. The innermost loop holds a tile of c, ROWS x VECTORS vectors, in registers; a step over k loads
// one row of VECTORS vectors of b and ROWS single elements of a, each repeated over a vector, for ROWS * VECTORS
// multiply-adds.
//
// An element of c is the sum over k in ascending order, whatever tile it lies in.
#include "attention/cpu/tile_kernels.h"
#include "base/simd.h"

// The tile and the values multiplied into it fill the vector registers: 32 of AVX-512, 16 of the others. VECTORS is at
// most 3.
#if defined(__AVX512F__)
enum { ROWS = 8, VECTORS = 3 };
#else
enum { ROWS = 6, VECTORS = 2 };
#endif

// Inlined for constants `rows` and `vectors`, so that `sum` is registers. One stride of a is a constant 1 as well.
static inline __attribute__((always_inline)) void tile(int rows, int vectors, int64_t k, const float *a, int64_t a_row,
                                                       int64_t a_column, Rows b, Rows c, Update update) {
    vfloat sum[ROWS][3];
    SIMD_UNROLL for (int r = 0; r < rows; r++) {
        SIMD_UNROLL for (int v = 0; v < vectors; v++) {
            const float *old = c.data + r * c.stride + v * SIMD_WIDTH;
            sum[r][v] = update == ADD ? vload(old) : vset(0.0f);
        }
    }

    const float *b_row = b.data;
    for (int64_t p = 0; p < k; p++, a += a_column, b_row += b.stride) {
        vfloat y[3];
        SIMD_UNROLL for (int v = 0; v < vectors; v++) y[v] = vload(b_row + v * SIMD_WIDTH);
        SIMD_UNROLL for (int r = 0; r < rows; r++) {
            vfloat x = vset(a[r * a_row]);
            SIMD_UNROLL for (int v = 0; v < vectors; v++) sum[r][v] += x * y[v];
        }
    }

    SIMD_UNROLL for (int r = 0; r < rows; r++) {
        SIMD_UNROLL for (int v = 0; v < vectors; v++) vstore(c.data + r * c.stride + v * SIMD_WIDTH, sum[r][v]);
    }
}

static inline __attribute__((always_inline)) void tile_of(int rows, int vectors, int64_t k, Factor a, Rows b, Rows c,
                                                          Update update) {
    if (a.row_stride == 1) tile(rows, vectors, k, a.data, 1, a.column_stride, b, c, update);
    else tile(rows, vectors, k, a.data, a.row_stride, 1, b, c, update);
}

// c (m, `vectors` wide): tiles of ROWS rows, then of 4, 2 and 1 for what is left.
static inline __attribute__((always_inline)) void panel(int vectors, int64_t m, int64_t k, Factor a, Rows b, Rows c,
                                                        Update update) {
    for (int64_t done = 0; done < m;) {
        int64_t left = m - done, rows = left >= ROWS ? ROWS : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        switch (rows) {
        case ROWS: tile_of(ROWS, vectors, k, a, b, c, update); break;
        case 4: tile_of(4, vectors, k, a, b, c, update); break;
        case 2: tile_of(2, vectors, k, a, b, c, update); break;
        case 1: tile_of(1, vectors, k, a, b, c, update); break;
        }
        a.data += rows * a.row_stride;
        c = rows_from(c, rows, 0);
        done += rows;
    }
}

static __attribute__((noinline)) void panel_of_1(int64_t m, int64_t k, Factor a, Rows b, Rows c, Update update) {
    panel(1, m, k, a, b, c, update);
}
static __attribute__((noinline)) void panel_of_2(int64_t m, int64_t k, Factor a, Rows b, Rows c, Update update) {
    panel(2, m, k, a, b, c, update);
}
static __attribute__((noinline)) void panel_of_3(int64_t m, int64_t k, Factor a, Rows b, Rows c, Update update) {
    panel(3, m, k, a, b, c, update);
}

TileProduct SIMD_NAME(tile_product);

void SIMD_NAME(tile_product)(int64_t m, int64_t n, int64_t k, Factor a, Rows b, Rows c, Update update) {
    while (n > 0) {
        // A tile of one vector does least for what it loads: four vectors are better cut into two and two.
        int64_t left = n / SIMD_WIDTH, vectors = left > VECTORS ? VECTORS : left;
        if (left == VECTORS + 1 && VECTORS > 2) vectors = VECTORS - 1;
        switch (vectors) {
        case 1: panel_of_1(m, k, a, b, c, update); break;
        case 2: panel_of_2(m, k, a, b, c, update); break;
        case 3: panel_of_3(m, k, a, b, c, update); break;
        }
        b = rows_from(b, 0, vectors * SIMD_WIDTH);
        c = rows_from(c, 0, vectors * SIMD_WIDTH);
        n -= vectors * SIMD_WIDTH;
    }
}
