// Matrix products of the layers: each is cut into one piece of the result per thread, and a piece is a product on one
// thread (layers/cpu/sgemm.h). Sums are never cut, so the number of threads does not change them.
#include "layers/cpu/layers.h"
#include "layers/cpu/sgemm.h"

typedef struct Product {
    const MatrixProduct *with;
    float *room; // (threads, SGEMM_ROOM)
    int64_t m, n, k;
    int64_t down, across, columns; // cut into `down` x `across` pieces, of about equal rows and of `columns` columns
    bool transpose_a, transpose_b, add_bias;
    const float *a, *b, *bias;
    float beta, *c; // c (m, n)
} Product;

static void product_task(void *context, int64_t task, int worker) {
    const Product *p = context;
    float *room = p->room + (int64_t)worker * SGEMM_ROOM;
    int64_t down = task / p->across, row = down * p->m / p->down, column = task % p->across * p->columns;
    int64_t m = (down + 1) * p->m / p->down - row, n = smaller(p->columns, p->n - column);
    int64_t lda = p->transpose_a ? p->m : p->k, ldb = p->transpose_b ? p->k : p->n;
    const float *a = p->a + (p->transpose_a ? row : row * lda), *b = p->b + (p->transpose_b ? column * ldb : column);
    float *c = p->c + row * p->n + column;
    if (p->add_bias)
        p->with->sgemm_bias(room, m, n, p->k, a, lda, b, ldb, p->bias == NULL ? NULL : p->bias + column, c, p->n);
    else p->with->sgemm(room, p->transpose_a, p->transpose_b, m, n, p->k, 1.0f, a, lda, b, ldb, p->beta, c, p->n);
}

// The best cut into at most one piece per thread: the one whose largest piece costs least. A piece packs its columns of
// B and, again for every COLUMNS_AT_ONCE columns, its rows of A; packing a value takes the time of some PACKING
// multiply-adds. Pieces begin at cache lines; fewer than LEAST_ROWS rows would hardly repay the packing of B.
static void cut(Product *p, int threads) {
    enum { COLUMNS_AT_ONCE = 512, PACKING = 5, UNIT = 32, LEAST_ROWS = 16 };
    int64_t least = INT64_MAX;
    for (int across = 1; across <= threads; across++) {
        int64_t down = larger(1, smaller(threads / across, p->m / LEAST_ROWS)), rows = tasks_of(p->m, down);
        int64_t columns = tasks_of(tasks_of(p->n, across), UNIT) * UNIT;
        int64_t cost = rows * columns + PACKING * (rows * tasks_of(columns, COLUMNS_AT_ONCE) + columns);
        if (cost < least) {
            least = cost;
            p->down = down;
            p->across = tasks_of(p->n, columns);
            p->columns = columns;
        }
    }
}

static void multiply(Device *device, Product p) {
    if (p.m == 0 || p.n == 0) return;
    p.with = device->context;
    p.room = device_scratch(device, "a matrix product", product_scratch_bytes(device->threads));
    cut(&p, device->threads);
    parallel_for(device->threads, p.down * p.across, product_task, &p);
}

void SIMD_NAME(matmul_forward)(Device *device, void *out, const void *x, const void *weight, const void *bias,
                               int64_t rows, int64_t K, int64_t N) {
    Product out_product = {.m = rows, .n = N, .k = K, .transpose_b = true, .a = x, .b = weight, .c = out};
    out_product.add_bias = true;
    out_product.bias = bias;
    multiply(device, out_product);
}

// ---- column sums --------------------------------------------------------------------------------------------------
enum { SUM_COLUMNS = 512, SUM_ROWS = 256 };

typedef struct ColumnSums {
    float *sum; // +=
    const float *x;
    int64_t rows, N, per_task;
} ColumnSums;

// Sums SUM_ROWS rows at a time and then these sums: the error grows with the numbers of both, not with their product.
static void column_sums_task(void *context, int64_t task, int worker) {
    const ColumnSums *s = context;
    (void)worker;
    int64_t first = task * s->per_task, columns = smaller(s->per_task, s->N - first);
    float total[SUM_COLUMNS] = {0};
    for (int64_t begin = 0; begin < s->rows; begin += SUM_ROWS) {
        float block[SUM_COLUMNS] = {0};
        int64_t end = smaller(begin + SUM_ROWS, s->rows);
        for (int64_t row = begin; row < end; row++) {
            const float *x = s->x + row * s->N + first;
            for (int64_t c = 0; c < columns; c++) block[c] += x[c];
        }
        for (int64_t c = 0; c < columns; c++) total[c] += block[c];
    }
    for (int64_t c = 0; c < columns; c++) s->sum[first + c] += total[c];
}

static void add_column_sums(Device *device, float *sum, const float *x, int64_t rows, int64_t N) {
    int64_t cache_line = 16; // floats
    int64_t per_task = smaller(SUM_COLUMNS, tasks_of(tasks_of(N, device->threads), cache_line) * cache_line);
    ColumnSums s = {sum, x, rows, N, per_task};
    parallel_for(device->threads, tasks_of(N, per_task), column_sums_task, &s);
}

void SIMD_NAME(matmul_backward)(Device *device, void *d_x, float *d_weight, float *d_bias, const void *d_out,
                                const void *x, const void *weight, int64_t rows, int64_t K, int64_t N,
                                bool accumulate) {
    Product d_x_product = {.m = rows, .n = K, .k = N, .a = d_out, .b = weight, .c = d_x};
    Product d_weight_product = {.m = N, .n = K, .k = rows, .transpose_a = true, .a = d_out, .b = x, .c = d_weight};
    d_x_product.beta = accumulate ? 1.0f : 0.0f;
    d_weight_product.beta = 1.0f;
    if (d_x != NULL) multiply(device, d_x_product);
    if (d_weight != NULL) multiply(device, d_weight_product);
    if (d_bias != NULL) add_column_sums(device, d_bias, d_out, rows, N);
}
