// Our own single-precision matrix product, after Goto and van de Geijn, "Anatomy of high-performance matrix
// multiplication", ACM TOMS 34(3), 2008, and Van Zee and van de Geijn, "BLIS", ACM TOMS 41(3), 2015.
//
// A processor does about one vector multiply-add per vector that it loads from its nearest cache, so to keep it busy
// every loaded value must be used several times. The innermost loop therefore works on a tile of C that fits into the
// registers: one step over k loads ROWS values of A and COLUMNS of B for ROWS * COLUMNS multiply-adds. A and B are
// first packed into panels, in the very order in which that loop reads them:
//
//   panel of A: ROWS rows of op(A), step after step of k:        a(0,p) a(1,p) ... a(ROWS-1,p), then p + 1
//   panel of B: COLUMNS columns of op(B), step after step of k:  b(p,0) b(p,1) ... b(p,COLUMNS-1), then p + 1
//
//   for every BLOCK_N columns of C and every BLOCK_K steps of k:    pack that block of B      (stays in the L2 cache)
//       for every ROWS rows of C:                                   pack that panel of A      (stays in the L1 cache)
//           for every panel of the block of B:                      multiply two panels, add to a tile of C
//
// An element of C is the sum over k in ascending order, BLOCK_K at a time, wherever its tile lies: the result does not
// depend on how callers cut m and n among threads (FEW_ROWS aside).
#include "base/simd.h"
#include "layers/cpu/sgemm.h"
#include "layers/cpu/transpose.h"

// The tile takes the processor's vector registers (32 of AVX-512, 16 of the others) less those for values of A and B.
#if defined(__AVX512F__)
enum { ROWS = 14 };
#elif defined(__AVX__)
enum { ROWS = 6 };
#else
enum { ROWS = 4 };
#endif
enum { VECTORS = 2, COLUMNS = VECTORS * SIMD_WIDTH, BLOCK_K = 256, BLOCK_N = 512, FEW_ROWS = 4 };

// The caller's room: a panel of A, written in whole vectors, of which the last runs over the end; and from the next
// cache line on a block of B.
enum { PACKED_A = (ROWS * BLOCK_K + SIMD_WIDTH + 15) / 16 * 16, PACKED_B = BLOCK_K * BLOCK_N };
_Static_assert(PACKED_A + PACKED_B <= SGEMM_ROOM, "room for the packed panels");

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- packing ----------------------------------------------------------------------------------------------------
// Both kinds of panel hold `width` lines of a matrix side by side: the p-th value of line i goes to panel[p * width +
// i]. Lines past the matrix' last, of which there are `count`, are zero.

// Line i starts at from + i * stride and is contiguous.
static inline void pack_contiguous_lines(float *panel, int width, const float *from, int64_t stride, int64_t count,
                                         int64_t k) {
    int64_t p = 0;
    for (; p + SIMD_WIDTH <= k; p += SIMD_WIDTH) {
        for (int first = 0; first < width; first += SIMD_WIDTH) {
            vfloat block[SIMD_WIDTH];
            SIMD_UNROLL
            for (int i = 0; i < SIMD_WIDTH; i++)
                block[i] = first + i < width && first + i < count ? vload(from + (first + i) * stride + p) : vset(0.0f);
            transpose_block(block);
            // Where width is no multiple of the vector, each store's end is overwritten by the next one.
            SIMD_UNROLL
            for (int q = 0; q < SIMD_WIDTH; q++) vstore(panel + (p + q) * width + first, block[q]);
        }
    }
    for (; p < k; p++)
        for (int i = 0; i < width; i++) panel[p * width + i] = i < count ? from[i * stride + p] : 0.0f;
}

// The p-th values of all lines stand side by side at from + p * stride.
static inline void pack_strided_lines(float *panel, int width, const float *from, int64_t stride, int64_t count,
                                      int64_t k) {
    int whole_vectors = (width + SIMD_WIDTH - 1) / SIMD_WIDTH * SIMD_WIDTH;
    if (count >= whole_vectors) {
        for (int64_t p = 0; p < k; p++)
            for (int i = 0; i < width; i += SIMD_WIDTH) vstore(panel + p * width + i, vload(from + p * stride + i));
        return;
    }
    for (int64_t p = 0; p < k; p++)
        for (int i = 0; i < width; i++) panel[p * width + i] = i < count ? from[p * stride + i] : 0.0f;
}

// ---- the register tile -----------------------------------------------------------------------------------------
// Where a tile goes: c = alpha * tile + beta * addend, the addend being C itself or a bias (then its stride is 0).
typedef struct Output {
    float alpha, beta;
    const float *addend;
    int64_t addend_stride;
    float *c;
    int64_t ldc;
} Output;

// Multiplies a panel of A by a panel of B, of which only the first `rows` rows count. Inlined with a constant `rows`,
// so that the tile is nothing but registers.
static inline __attribute__((always_inline)) void multiply_panels(int rows, const float *a, const float *b, int64_t k,
                                                                  const Output *to) {
    vfloat tile[ROWS][VECTORS];
    SIMD_UNROLL
    for (int i = 0; i < rows; i++) {
        __builtin_prefetch(to->c + i * to->ldc, 1);
        __builtin_prefetch(to->c + i * to->ldc + SIMD_WIDTH, 1);
        tile[i][0] = tile[i][1] = vset(0.0f);
    }
    for (int64_t p = 0; p < k; p++, a += ROWS, b += COLUMNS) {
        vfloat b0 = vload(b), b1 = vload(b + SIMD_WIDTH);
        SIMD_UNROLL
        for (int i = 0; i < rows; i++) {
            tile[i][0] += a[i] * b0;
            tile[i][1] += a[i] * b1;
        }
    }
    SIMD_UNROLL
    for (int i = 0; i < rows; i++) {
        SIMD_UNROLL
        for (int v = 0; v < VECTORS; v++) {
            vfloat sum = to->alpha * tile[i][v];
            if (to->beta != 0) sum += to->beta * vload(to->addend + i * to->addend_stride + v * SIMD_WIDTH);
            vstore(to->c + i * to->ldc + v * SIMD_WIDTH, sum);
        }
    }
}

// One to ROWS rows, rounded up to an even number.
static void multiply_rows(int64_t rows, const float *a, const float *b, int64_t k, const Output *to) {
    switch ((rows + 1) / 2) {
    case 1: multiply_panels(2, a, b, k, to); return;
    case 2: multiply_panels(4, a, b, k, to); return;
#if defined(__AVX__)
    case 3: multiply_panels(6, a, b, k, to); return;
#endif
#if defined(__AVX512F__)
    case 4: multiply_panels(8, a, b, k, to); return;
    case 5: multiply_panels(10, a, b, k, to); return;
    case 6: multiply_panels(12, a, b, k, to); return;
    default: multiply_panels(14, a, b, k, to); return;
#endif
    }
}

// A tile at the edge of C: by way of a whole one beside it.
static void multiply_edge(int64_t rows, int64_t columns, const float *a, const float *b, int64_t k, const Output *to) {
    float whole[ROWS * COLUMNS] = {0};
    if (to->beta != 0)
        for (int64_t i = 0; i < rows; i++)
            memcpy(whole + i * COLUMNS, to->addend + i * to->addend_stride, (size_t)columns * sizeof *whole);
    Output beside = {to->alpha, to->beta, whole, COLUMNS, whole, COLUMNS};
    multiply_rows(rows, a, b, k, &beside);
    for (int64_t i = 0; i < rows; i++)
        memcpy(to->c + i * to->ldc, whole + i * COLUMNS, (size_t)columns * sizeof *whole);
}

// ---- the product ----------------------------------------------------------------------------------------------
typedef struct Operand { // op(X): element (line i, step p of k)
    const float *data;
    int64_t stride;
    bool contiguous; // at data[i * stride + p], else at data[p * stride + i]
} Operand;

static Operand part_of_operand(Operand x, int64_t line, int64_t p) {
    x.data += x.contiguous ? line * x.stride + p : p * x.stride + line;
    return x;
}

static Output part_of_output(Output to, int64_t row, int64_t column) {
    if (to.addend != NULL) to.addend += row * to.addend_stride + column;
    to.c += row * to.ldc + column;
    return to;
}

static void pack(float *panel, int width, Operand x, int64_t lines, int64_t k) {
    if (x.contiguous) pack_contiguous_lines(panel, width, x.data, x.stride, lines, k);
    else pack_strided_lines(panel, width, x.data, x.stride, lines, k);
}

// The packed panel of A, of which `rows` rows count, times the packed block of B, of which n columns do.
static void multiply_block(const float *packed_a, const float *packed_b, int64_t rows, int64_t n, int64_t k,
                           Output to) {
    for (int64_t j = 0; j < n; j += COLUMNS) {
        const float *panel = packed_b + j * k;
        Output tile = part_of_output(to, 0, j);
        if (n - j < COLUMNS || rows % 2 != 0) multiply_edge(rows, smaller(COLUMNS, n - j), packed_a, panel, k, &tile);
        else if (rows < ROWS) multiply_rows(rows, packed_a, panel, k, &tile);
        else multiply_panels(ROWS, packed_a, panel, k, &tile);
    }
}

static void product(float *room, int64_t m, int64_t n, int64_t k, Operand a, Operand b, Output to) {
    float *packed_a = room, *packed_b = room + PACKED_A;
    const Output add_to_c = {to.alpha, 1.0f, to.c, to.ldc, to.c, to.ldc}; // for every block of k but the first
    for (int64_t j = 0; j < n; j += BLOCK_N) {
        int64_t block_n = smaller(BLOCK_N, n - j);
        for (int64_t p = 0; p < k; p += BLOCK_K) {
            int64_t block_k = smaller(BLOCK_K, k - p);
            for (int64_t v = 0; v < block_n; v += COLUMNS)
                pack(packed_b + v * block_k, COLUMNS, part_of_operand(b, j + v, p), block_n - v, block_k);
            for (int64_t i = 0; i < m; i += ROWS) {
                pack(packed_a, ROWS, part_of_operand(a, i, p), m - i, block_k);
                multiply_block(packed_a, packed_b, smaller(ROWS, m - i), block_n, block_k,
                               part_of_output(p == 0 ? to : add_to_c, i, j));
            }
        }
    }
}

// A few rows times B^T: packing B would cost more than it saves, so its rows are read once, as they lie. Four of them
// at a time stay in the L1 cache for all rows of A. This is what generating one token after the other does.
static void few_rows(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                     const Output *to) {
    for (int64_t j = 0; j < n; j += 4) {
        int64_t columns = smaller(4, n - j);
        const float *row[4];
        for (int64_t v = 0; v < 4; v++) row[v] = b + (j + smaller(v, columns - 1)) * ldb;
        for (int64_t i = 0; i < m; i++) {
            const float *x = a + i * lda;
            vfloat sum[4] = {{0}, {0}, {0}, {0}};
            int64_t p = 0;
            for (; p + SIMD_WIDTH <= k; p += SIMD_WIDTH) {
                vfloat value = vload(x + p);
                SIMD_UNROLL
                for (int v = 0; v < 4; v++) sum[v] += value * vload(row[v] + p);
            }
            for (int64_t v = 0; v < columns; v++) {
                float dot = vsum(sum[v]);
                for (int64_t q = p; q < k; q++) dot += x[q] * row[v][q];
                dot *= to->alpha;
                if (to->beta != 0) dot += to->beta * to->addend[i * to->addend_stride + j + v];
                to->c[i * to->ldc + j + v] = dot;
            }
        }
    }
}

static void scale(int64_t m, int64_t n, const Output *to) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            to->c[i * to->ldc + j] = to->beta == 0 ? 0.0f : to->beta * to->addend[i * to->addend_stride + j];
}

static void sgemm(float *room, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                  const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    Output to = {alpha, beta, c, ldc, c, ldc};
    if (k == 0 || alpha == 0) scale(m, n, &to);
    else if (m <= FEW_ROWS && !transpose_a && transpose_b) few_rows(m, n, k, a, lda, b, ldb, &to);
    else product(room, m, n, k, (Operand){a, lda, !transpose_a}, (Operand){b, ldb, transpose_b}, to);
}

static void sgemm_bias(float *room, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                       int64_t ldb, const float *bias, float *c, int64_t ldc) {
    Output to = {1.0f, bias != NULL ? 1.0f : 0.0f, bias, 0, c, ldc};
    if (k == 0) scale(m, n, &to);
    else if (m <= FEW_ROWS) few_rows(m, n, k, a, lda, b, ldb, &to);
    else product(room, m, n, k, (Operand){a, lda, true}, (Operand){b, ldb, true}, to);
}

extern const MatrixProduct SIMD_NAME(builtin_product);
const MatrixProduct SIMD_NAME(builtin_product) = {"built-in blocked product", sgemm, sgemm_bias};
