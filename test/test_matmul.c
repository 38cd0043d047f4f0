// Matrix products: our own in every instruction set and the CBLAS library's, in all orientations and odd sizes, against
// double precision; and the layers made of them, forward and backward, on 1, 2 and 3 threads.
//
// An element is a sum of k products, so it may be off by (4 + sqrt(k)) UNIT sum|a||b| (test/layer_cases.h).
#include "test/layer_cases.h"

#include "layers/cpu/sgemm.h"

// ---- products -----------------------------------------------------------------------------------------------------
typedef struct ProductCase {
    int64_t m, n, k;
    float alpha, beta;
} ProductCase;

enum { PAD = 3 }; // rows in memory are longer than those of the matrices
static const float UNTOUCHED = 12345;

typedef struct Matrix {
    float *data;
    int64_t rows, columns, stride;
} Matrix;

static Matrix random_matrix(int64_t rows, int64_t columns, uint64_t stream) {
    return (Matrix){random_floats(rows * (columns + PAD) + 1, stream, 0, 1), rows, columns, columns + PAD};
}

static double element(Matrix x, bool transposed, int64_t row, int64_t column) {
    return transposed ? x.data[column * x.stride + row] : x.data[row * x.stride + column];
}

static _Alignas(64) float room[SGEMM_ROOM]; // of one product at a time

static void check_product(const MatrixProduct *product, const ProductCase *p, bool ta, bool tb) {
    Matrix a = ta ? random_matrix(p->k, p->m, 1) : random_matrix(p->m, p->k, 1);
    Matrix b = tb ? random_matrix(p->n, p->k, 2) : random_matrix(p->k, p->n, 2);
    Matrix c = random_matrix(p->m, p->n, 3);
    float *before = copy_of(c.data, p->m * c.stride);
    for (int64_t i = 0; i < p->m; i++) {
        for (int64_t j = 0; j < c.stride; j++) {
            if (j >= p->n) c.data[i * c.stride + j] = UNTOUCHED;
            else if (p->beta == 0) c.data[i * c.stride + j] = NAN; // must not be read
        }
    }
    product->sgemm(room, ta, tb, p->m, p->n, p->k, p->alpha, a.data, a.stride, b.data, b.stride, p->beta, c.data, c.stride);
    for (int64_t i = 0; i < p->m; i++) {
        for (int64_t j = 0; j < p->n; j++) {
            double sum = 0, magnitudes = 0, old = p->beta == 0 ? 0 : (double)p->beta * before[i * c.stride + j];
            for (int64_t q = 0; q < p->k; q++) {
                double term = p->alpha * element(a, ta, i, q) * element(b, tb, q, j);
                sum += term;
                magnitudes += fabs(term);
            }
            expect_near(product->name, i * p->n + j, c.data[i * c.stride + j], sum + old,
                        sum_tolerance(p->k, magnitudes) + 4 * UNIT * fabs(old));
        }
        for (int64_t j = p->n; j < c.stride; j++) assert_true(c.data[i * c.stride + j] == UNTOUCHED);
    }
    free(a.data), free(b.data), free(c.data), free(before);
}

static void check_product_with_bias(const MatrixProduct *product, const ProductCase *p, bool with_bias) {
    Matrix a = random_matrix(p->m, p->k, 1), b = random_matrix(p->n, p->k, 2), c = random_matrix(p->m, p->n, 3);
    float *bias = with_bias ? random_floats(p->n, 4, 0, 1) : NULL;
    for (int64_t i = 0; i < p->m * c.stride; i++) c.data[i] = NAN;
    product->sgemm_bias(room, p->m, p->n, p->k, a.data, a.stride, b.data, b.stride, bias, c.data, c.stride);
    for (int64_t i = 0; i < p->m; i++) {
        for (int64_t j = 0; j < p->n; j++) {
            double sum = with_bias ? bias[j] : 0, magnitudes = fabs(sum);
            for (int64_t q = 0; q < p->k; q++) {
                sum += element(a, false, i, q) * element(b, true, q, j);
                magnitudes += fabs(element(a, false, i, q) * element(b, true, q, j));
            }
            expect_near(product->name, i * p->n + j, c.data[i * c.stride + j], sum,
                        sum_tolerance(p->k + 1, magnitudes));
        }
        for (int64_t j = p->n; j < c.stride; j++) assert_true(isnan(c.data[i * c.stride + j]));
    }
    free(a.data), free(b.data), free(c.data), free(bias);
}

// Around the tiles' sizes (4 x 8, 6 x 16, 14 x 32), the blocks' (256 steps of k, 512 columns), and few rows.
static const ProductCase product_cases[] = {
    {1, 1, 1, 1, 0},      {1, 5, 300, 1, 0},  {2, 37, 33, 2, 0},   {3, 20, 8, 1, 1},     {4, 31, 257, 1, 0.5f},
    {5, 9, 17, 1, 0},     {6, 16, 256, 1, 1}, {7, 17, 255, 1, 0},  {13, 33, 20, 1, 0},   {14, 32, 16, 1, 1},
    {15, 31, 100, -1, 2}, {37, 70, 40, 1, 0}, {28, 64, 513, 1, 1}, {29, 520, 260, 1, 0}, {66, 12, 9, 1, 0},
    {6, 7, 0, 1, 0.5f},   {3, 9, 0, 1, 0},    {9, 9, 9, 0, 0.5f},  {2, 1030, 5, 1, 1},   {0, 5, 5, 1, 0},
    {5, 0, 5, 1, 0},
};

static void check_products(const MatrixProduct *product) {
    for (size_t i = 0; i < sizeof product_cases / sizeof *product_cases; i++) {
        for (int orientation = 0; orientation < 4; orientation++)
            check_product(product, &product_cases[i], orientation & 1, orientation >> 1);
        if (product_cases[i].m == 0 || product_cases[i].n == 0) continue;
        check_product_with_bias(product, &product_cases[i], true);
        check_product_with_bias(product, &product_cases[i], false);
    }
}

static void builtin_product(void **state) {
    (void)state;
    unsetenv("SIMD");
    SimdLevel best = simd_level();
    for (SimdLevel level = SIMD_PORTABLE; level <= best; level++) {
        setenv("SIMD", simd_level_name(level), 1);
        check_products(cpu_builtin_product());
    }
    unsetenv("SIMD");
}

static void library_product(void **state) {
    (void)state;
    Error err;
    if (cpu_library_product(&err) == NULL) skip();
    check_products(cpu_library_product(&err));
}

static void environment_chooses_the_product(void **state) {
    (void)state;
    setenv("MATMUL", "builtin", 1);
    assert_ptr_equal(cpu_matrix_product(), cpu_builtin_product());
    assert_string_equal(cpu_matrix_library(), "built-in blocked product");
    setenv("MATMUL", "cblas", 1);
    Error err;
    const MatrixProduct *library = cpu_library_product(&err);
    assert_ptr_equal(cpu_matrix_product(), library != NULL ? library : cpu_builtin_product());
    assert_ptr_equal(cpu_chosen_product(&err), library);
    setenv("MATMUL", "blas", 1);
    assert_null(cpu_chosen_product(&err));
    assert_int_equal(err.exit_code, EXIT_USAGE);
    assert_string_equal(err.message, "MATMUL=blas in the environment: give builtin or cblas, or leave it out");
    unsetenv("MATMUL");
    ProductCase small = {3, 4, 5, 1, 0};
    MatrixProduct by_name = {"cpu_sgemm", cpu_sgemm, NULL};
    check_product(&by_name, &small, false, true);
}

// ---- layers -------------------------------------------------------------------------------------------------------
typedef struct LayerCase {
    int64_t rows, K, N;
    bool thread_independent; // our own product: the same bits on any number of threads
    float *first;
} LayerCase;

static void run_matmul(Device *device, void *argument) {
    LayerCase *l = argument;
    int64_t rows = l->rows, K = l->K, N = l->N, in_count = rows * K + N * K + N;
    float *in = random_floats(in_count, 11, 0, 1), *x = in, *weight = x + rows * K, *bias = weight + N * K;
    float *d_out = random_floats(rows * N, 12, 0, 1), *result = floats(rows * N + in_count);
    float *out = result, *d_x = out + rows * N, *d_weight = d_x + rows * K, *d_bias = d_weight + N * K;

    // The magnitudes that tolerances need are the same functions of the absolute values.
    Shape s = {.rows = rows, .C = N, .K = K};
    double *wide = doubles(in_count), *wide_out = doubles(rows * N), *wide_d_out = doubles(rows * N);
    double *d_in = doubles(in_count), *size = doubles(in_count), *out_size = doubles(rows * N);
    append(wide, in, in_count);
    append(wide_d_out, d_out, rows * N);
    reference_matmul(&s, wide, wide_out);
    reference_matmul_backward(&s, wide, wide_d_out, d_in);
    for (int64_t i = 0; i < in_count; i++) wide[i] = fabs(wide[i]);
    for (int64_t i = 0; i < rows * N; i++) wide_d_out[i] = fabs(wide_d_out[i]);
    reference_matmul(&s, wide, out_size);
    reference_matmul_backward(&s, wide, wide_d_out, size);

    device->matmul_forward(device, out, x, weight, bias, rows, K, N);
    for (int64_t i = 0; i < rows * N; i++)
        expect_near("out", i, out[i], wide_out[i], sum_tolerance(K + 1, out_size[i]));

    // d_x is overwritten, then added to; gradients of weights are always added to.
    for (int64_t i = 0; i < in_count; i++) d_x[i] = i < rows * K ? NAN : 1;
    device->matmul_backward(device, d_x, d_weight, d_bias, d_out, x, weight, rows, K, N, false);
    for (int64_t i = 0; i < in_count; i++)
        expect_near("gradient", i, i < rows * K ? d_x[i] : d_x[i] - 1.0, d_in[i],
                    sum_tolerance(1 + (i < rows * K ? N : rows), size[i]) + (i < rows * K ? 0 : 2 * UNIT));
    float *sum = copy_of(d_x, in_count);
    device->matmul_backward(device, sum, NULL, NULL, d_out, x, weight, rows, K, N, true);
    for (int64_t i = 0; i < rows * K; i++)
        expect_near("d_x twice", i, sum[i], 2 * d_in[i], 2 * sum_tolerance(1 + N, size[i]));
    expect_same_bits("skipped gradients", sum + rows * K, d_weight, N * K + N);
    device->matmul_backward(device, NULL, NULL, sum + rows * K + N * K, d_out, x, weight, rows, K, N, false);
    expect_same_bits("skipped d_weight", sum + rows * K, d_weight, N * K);

    if (device->threads == 1 || !l->thread_independent) { // a second run, or the first device's
        free(l->first);
        l->first = floats(rows * N + in_count);
        for (int64_t i = rows * N + rows * K; i < rows * N + in_count; i++) l->first[i] = 1;
        device->matmul_forward(device, l->first, x, weight, bias, rows, K, N);
        float *again = l->first + rows * N;
        device->matmul_backward(device, again, again + rows * K, again + rows * K + N * K, d_out, x, weight, rows, K, N,
                                false);
    }
    expect_same_bits("matmul", result, l->first, rows * N + in_count);

    device->matmul_forward(device, out, x, weight, NULL, rows, K, N);
    for (int64_t i = 0; i < rows * N; i++)
        expect_near("out without bias", i, out[i], wide_out[i] - bias[i % N], sum_tolerance(K + 1, out_size[i]));
    free(in), free(d_out), free(result), free(sum), free(wide), free(wide_out), free(wide_d_out), free(d_in),
        free(size);
    free(out_size);
}

static void run_layers(const char *matmul) {
    const int64_t sizes[][3] = {{1, 8, 5},     {1, 256, 70},   {3, 20, 33},  {4, 33, 300},  {33, 7, 9},
                                {37, 256, 66}, {200, 64, 100}, {300, 20, 8}, {64, 300, 520}};
    setenv("MATMUL", matmul, 1);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        LayerCase l = {.rows = sizes[i][0],
                       .K = sizes[i][1],
                       .N = sizes[i][2],
                       .thread_independent = strcmp(matmul, "builtin") == 0};
        for_each_device(run_matmul, &l);
        free(l.first);
    }
    unsetenv("MATMUL");
}

static void layers_with_builtin_product(void **state) {
    (void)state;
    run_layers("builtin");
}

static void layers_with_library_product(void **state) {
    (void)state;
    Error err;
    if (cpu_library_product(&err) == NULL) skip();
    run_layers("cblas");
}

// Numbers as large as single precision allows, and as small: nothing in between overflows or is lost.
static void run_extreme(Device *device, void *argument) {
    (void)argument;
    enum { ROWS = 9, K = 40, N = 21 };
    float x[ROWS * K], weight[N * K], bias[N], out[ROWS * N];
    for (int i = 0; i < ROWS * K; i++) x[i] = i / K % 2 == 0 ? 1e30f : 1e-30f;
    for (int i = 0; i < N * K; i++) weight[i] = i % 2 == 0 ? 1e7f : -1e7f;
    for (int i = 0; i < N; i++) bias[i] = 1e-20f;
    device->matmul_forward(device, out, x, weight, bias, ROWS, K, N);
    // Products cancel in pairs: what is left is the bias and the rounding of the sum.
    for (int i = 0; i < ROWS * N; i++) {
        double size = i / N % 2 == 0 ? 1e37 : 1e-23;
        expect_near("extreme out", i, out[i], bias[i % N], sum_tolerance(K + 1, K * size + bias[i % N]));
    }
    weight[0] = NAN;
    device->matmul_forward(device, out, x, weight, NULL, ROWS, K, N);
    for (int i = 0; i < ROWS * N; i++) assert_true(isnan(out[i]) == (i % N == 0));
}

static void extreme_values(void **state) {
    (void)state;
    for_each_device(run_extreme, NULL);
}

static void matrix_rate_is_plausible(void **state) {
    (void)state;
    double rate = cpu_matrix_rate(1);
    assert_true(rate > 1e7 && rate < 1e13); // from a slow processor under sanitizers to many times today's
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(builtin_product),
        cmocka_unit_test(library_product),
        cmocka_unit_test(environment_chooses_the_product),
        cmocka_unit_test(layers_with_builtin_product),
        cmocka_unit_test(layers_with_library_product),
        cmocka_unit_test(extreme_values),
        cmocka_unit_test(matrix_rate_is_plausible),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
