// CUDA's matrix products and bias gradients, emulated or on a GPU (test/cuda_cases.h), against double precision: odd
// sizes, addresses that fit nothing, gradients on top of what is there, more shapes than plans are kept, the same bits
// again.
//
// Inputs are exact in bf16. A sum of k products in fp32 is off by product_tolerance; a result in bf16 was rounded once
// more.
#include "test/cuda_cases.h"

typedef struct Product {
    int64_t rows, K, N, offset; // offset: elements of each tensor behind a boundary of 256 bytes
    float *x, *weight, *bias, *d_out;
    // In double precision: out = x weight^T + bias, gradients, and the same sums of absolute values.
    double *out, *d_x, *d_weight, *d_bias, *out_size, *d_x_size, *d_weight_size, *d_bias_size;
} Product;

static void reference(const Product *p, bool sizes, double *out, double *d_x, double *d_weight, double *d_bias) {
    const int64_t rows = p->rows, K = p->K, N = p->N;
    double *in = doubles(rows * K + N * K + N), *d_in = doubles(rows * K + N * K + N), *d_out = doubles(rows * N);
    append(append(append(in, p->x, rows * K), p->weight, N * K), p->bias, N);
    append(d_out, p->d_out, rows * N);
    for (int64_t i = 0; sizes && i < rows * K + N * K + N; i++) in[i] = fabs(in[i]);
    for (int64_t i = 0; sizes && i < rows * N; i++) d_out[i] = fabs(d_out[i]);
    const Shape s = {.rows = rows, .C = N, .K = K};
    reference_matmul(&s, in, out);
    reference_matmul_backward(&s, in, d_out, d_in);
    memcpy(d_x, d_in, (size_t)(rows * K) * sizeof *d_x);
    memcpy(d_weight, d_in + rows * K, (size_t)(N * K) * sizeof *d_weight);
    memcpy(d_bias, d_in + rows * K + N * K, (size_t)N * sizeof *d_bias);
    free(in), free(d_in), free(d_out);
}

static Product make_product(int64_t rows, int64_t K, int64_t N, int64_t offset) {
    Product p = {.rows = rows, .K = K, .N = N, .offset = offset};
    p.x = rounded(random_floats(rows * K, 1, 0, 1), rows * K);
    p.weight = rounded(random_floats(N * K, 2, 0, 1 / sqrt((double)K)), N * K);
    p.bias = rounded(random_floats(N, 3, 0, 1), N);
    p.d_out = rounded(random_floats(rows * N, 4, 0, 1), rows * N);
    p.out = doubles(rows * N), p.out_size = doubles(rows * N);
    p.d_x = doubles(rows * K), p.d_x_size = doubles(rows * K);
    p.d_weight = doubles(N * K), p.d_weight_size = doubles(N * K);
    p.d_bias = doubles(N), p.d_bias_size = doubles(N);
    reference(&p, false, p.out, p.d_x, p.d_weight, p.d_bias);
    reference(&p, true, p.out_size, p.d_x_size, p.d_weight_size, p.d_bias_size);
    return p;
}
static void free_product(Product *p) {
    free(p->x), free(p->weight), free(p->bias), free(p->d_out);
    free(p->out), free(p->d_x), free(p->d_weight), free(p->d_bias);
    free(p->out_size), free(p->d_x_size), free(p->d_weight_size), free(p->d_bias_size);
}
static CudaTensor storage_of(const Product *p, const float *values, int64_t count) {
    return cuda_tensor_at(KIND_STORAGE, values, count, p->offset);
}
static CudaTensor floats_of(const Product *p, const float *values, int64_t count) {
    return cuda_tensor_at(KIND_FLOAT, values, count, p->offset);
}

// The bias is in the sum before it is rounded, whichever way it came there.
static void check_forward(const Product *p, bool with_bias) {
    Device *device = cuda_device_of_test();
    CudaTensor x = storage_of(p, p->x, p->rows * p->K), weight = storage_of(p, p->weight, p->N * p->K);
    CudaTensor bias = storage_of(p, p->bias, p->N), out = storage_of(p, NULL, p->rows * p->N);
    device->matmul_forward(device, out.data, x.data, weight.data, with_bias ? bias.data : NULL, p->rows, p->K, p->N);
    float *got = cuda_fetch(&out);
    for (int64_t i = 0; i < p->rows * p->N; i++) {
        const double b = p->bias[i % p->N], expected = p->out[i] - (with_bias ? 0 : b);
        expect_storage("out", i, got[i], expected, product_tolerance(p->K + 1, p->out_size[i]));
    }
    free(got);
    cuda_free(&x), cuda_free(&weight), cuda_free(&bias), cuda_free(&out);
}

static void check_backward(const Product *p) {
    Device *device = cuda_device_of_test();
    const int64_t rows = p->rows, K = p->K, N = p->N;
    float *old_x = rounded(random_floats(rows * K, 5, 0, 1), rows * K), *old_w = random_floats(N * K, 6, 0, 1),
          *old_b = random_floats(N, 7, 0, 1);
    CudaTensor x = storage_of(p, p->x, rows * K), weight = storage_of(p, p->weight, N * K);
    CudaTensor d_out = storage_of(p, p->d_out, rows * N), d_x = storage_of(p, old_x, rows * K);
    CudaTensor d_weight = floats_of(p, old_w, N * K), d_bias = floats_of(p, old_b, N);

    device->matmul_backward(device, d_x.data, d_weight.data, d_bias.data, d_out.data, x.data, weight.data, rows, K, N,
                            false);
    float *got_x = cuda_fetch(&d_x), *got_w = cuda_fetch(&d_weight), *got_b = cuda_fetch(&d_bias);
    for (int64_t i = 0; i < rows * K; i++)
        expect_storage("d_x", i, got_x[i], p->d_x[i], product_tolerance(N, p->d_x_size[i]));
    for (int64_t i = 0; i < N * K; i++)
        expect_near("d_weight", i, got_w[i], old_w[i] + p->d_weight[i],
                    product_tolerance(rows + 1, p->d_weight_size[i] + fabs(old_w[i])));
    for (int64_t i = 0; i < N; i++)
        expect_near("d_bias", i, got_b[i], old_b[i] + p->d_bias[i],
                    sum_tolerance(rows + 1, p->d_bias_size[i] + fabs(old_b[i])));

    // d_x accumulated on what came before; the rest skipped.
    device->matmul_backward(device, d_x.data, NULL, NULL, d_out.data, x.data, weight.data, rows, K, N, true);
    float *twice = cuda_fetch(&d_x), *same_w = cuda_fetch(&d_weight), *same_b = cuda_fetch(&d_bias);
    for (int64_t i = 0; i < rows * K; i++)
        expect_storage("d_x accumulated", i, twice[i], got_x[i] + p->d_x[i],
                       product_tolerance(N + 1, p->d_x_size[i] + fabs((double)got_x[i])));
    expect_same_bits("skipped d_weight", same_w, got_w, N * K);
    expect_same_bits("skipped d_bias", same_b, got_b, N);
    free(old_x), free(old_w), free(old_b), free(got_x), free(got_w), free(got_b), free(twice), free(same_w),
        free(same_b);
    cuda_free(&x), cuda_free(&weight), cuda_free(&d_out), cuda_free(&d_x), cuda_free(&d_weight), cuda_free(&d_bias);
}

static const int64_t sizes[][3] = {{1, 8, 8},     {1, 1, 1},      {3, 20, 33},  {37, 64, 96},   {64, 72, 257},
                                   {5, 256, 264}, {130, 40, 530}, {300, 7, 16}, {259, 128, 24}, {26, 40, 72}};

static void products(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int64_t offset = 0; offset <= 1; offset++) {
            Product p = make_product(sizes[i][0], sizes[i][1], sizes[i][2], offset);
            check_forward(&p, true);
            check_forward(&p, false);
            check_backward(&p);
            free_product(&p);
        }
    }
}

// ---- GELU ----------------------------------------------------------------------------------------------------------
static double gelu(double x) {
    double out;
    reference_gelu(&(Shape){.rows = 1, .C = 1}, &x, &out);
    return out;
}
static double gelu_slope(double x) {
    const double one = 1;
    double slope;
    reference_gelu_backward(&(Shape){.rows = 1, .C = 1}, &x, &one, &slope);
    return slope;
}
// |gelu'| <= 1.13 and |gelu''| <= 1.13 carry errors of what goes in. Besides, gelu = x/2 (1 + t) with t = tanh(u) is
// off by |x|/2 |dt|, and its slope, (1 + t)/2 + x/2 (1 - t^2) u', by |1/2 - x t u'| |dt|. tanhf and all the rest are
// off by some UNIT; the GPU's own tanh, which cuBLASLt may take, by |dt| <= 2^-11 |t| (PTX, tanh.approx.f32).
static double tanh_error(double x) {
    return strcmp(cuda_device_name(), "cuda") == 0 ? 0x1p-11 * fabs(tanh(reference_gelu_inner(x))) : 0;
}
static double gelu_tolerance(double x) { return 16 * UNIT * (fabs(x) + 1) + fabs(x) / 2 * tanh_error(x); }
static double gelu_slope_tolerance(double x) {
    const double inner_slope = sqrt(2 / acos(-1.0)) * (1 + 3 * 0.044715 * x * x);
    return 16 * UNIT * (fabs(x) + 1) + fabs(0.5 - x * tanh(reference_gelu_inner(x)) * inner_slope) * tanh_error(x);
}

static void check_gelu(const Product *p, bool with_bias) {
    Device *device = cuda_device_of_test();
    const int64_t rows = p->rows, K = p->K, N = p->N;
    CudaTensor x = storage_of(p, p->x, rows * K), weight = storage_of(p, p->weight, N * K);
    CudaTensor bias = storage_of(p, p->bias, N), out = storage_of(p, NULL, rows * N),
               pre = storage_of(p, NULL, rows * N);
    device->matmul_gelu_forward(device, out.data, pre.data, x.data, weight.data, with_bias ? bias.data : NULL, rows, K,
                                N);
    float *got = cuda_fetch(&out), *got_pre = cuda_fetch(&pre);
    for (int64_t i = 0; i < rows * N; i++) {
        const double b = p->bias[i % N], expected = p->out[i] - (with_bias ? 0 : b);
        const double tolerance = product_tolerance(K + 1, p->out_size[i]);
        expect_storage("pre", i, got_pre[i], expected, tolerance);
        expect_storage("gelu", i, got[i], gelu(expected),
                       1.13 * (tolerance + half_ulp(fabs(expected) + tolerance)) + gelu_tolerance(expected));
    }
    free(got), free(got_pre);
    cuda_free(&x), cuda_free(&weight), cuda_free(&bias), cuda_free(&out), cuda_free(&pre);
}

// y = gelu(pre) weight^T: d_pre has the shape of x, which is gelu(pre) here only in name.
static void check_gelu_backward(const Product *p) {
    Device *device = cuda_device_of_test();
    const int64_t rows = p->rows, K = p->K, N = p->N;
    float *before = rounded(random_floats(rows * K, 8, 0, 2), rows * K);
    CudaTensor x = storage_of(p, p->x, rows * K), weight = storage_of(p, p->weight, N * K);
    CudaTensor d_out = storage_of(p, p->d_out, rows * N), pre = storage_of(p, before, rows * K);
    CudaTensor d_pre = storage_of(p, NULL, rows * K), d_weight = floats_of(p, NULL, N * K),
               d_bias = floats_of(p, NULL, N);
    device->matmul_gelu_backward(device, d_pre.data, d_weight.data, d_bias.data, d_out.data, x.data, pre.data,
                                 weight.data, rows, K, N);
    float *got = cuda_fetch(&d_pre), *got_w = cuda_fetch(&d_weight), *got_b = cuda_fetch(&d_bias);
    for (int64_t i = 0; i < rows * K; i++) {
        const double tolerance = product_tolerance(N, p->d_x_size[i]), size = fabs(p->d_x[i]) + tolerance;
        // The product is rounded too where GELU's derivative is not in its epilogue, which the library alone knows.
        expect_storage("d_pre", i, got[i], p->d_x[i] * gelu_slope(before[i]),
                       1.13 * (tolerance + half_ulp(size)) + size * gelu_slope_tolerance(before[i]));
    }
    for (int64_t i = 0; i < N * K; i++)
        expect_near("d_weight", i, got_w[i], p->d_weight[i], product_tolerance(rows + 1, p->d_weight_size[i]));
    for (int64_t i = 0; i < N; i++)
        expect_near("d_bias", i, got_b[i], p->d_bias[i], sum_tolerance(rows + 1, p->d_bias_size[i]));
    free(before), free(got), free(got_w), free(got_b);
    cuda_free(&x), cuda_free(&weight), cuda_free(&d_out), cuda_free(&pre), cuda_free(&d_pre), cuda_free(&d_weight),
        cuda_free(&d_bias);
}

static void products_with_gelu(void **state) {
    (void)state;
    const int64_t gelu_sizes[][3] = {{1, 8, 8},   {3, 20, 33},   {37, 64, 96}, {26, 40, 72},
                                     {9, 20, 40}, {70, 72, 130}, {5, 256, 264}};
    for (size_t i = 0; i < sizeof gelu_sizes / sizeof *gelu_sizes; i++) {
        for (int64_t offset = 0; offset <= 1; offset++) {
            Product p = make_product(gelu_sizes[i][0], gelu_sizes[i][1], gelu_sizes[i][2], offset);
            check_gelu(&p, true);
            check_gelu(&p, false);
            check_gelu_backward(&p);
            free_product(&p);
        }
    }
}

// ---- bias ----------------------------------------------------------------------------------------------------------
static void check_bias_gradient(int64_t rows, int64_t N, int64_t offset) {
    Device *device = cuda_device_of_test();
    float *d_out = rounded(random_floats(rows * N, 9, 0.5, 1), rows * N), *old = random_floats(N, 10, 0, 1);
    double *sum = doubles(N), *size = doubles(N);
    for (int64_t i = 0; i < rows * N; i++) sum[i % N] += d_out[i], size[i % N] += fabs(d_out[i]);
    CudaTensor on_device = cuda_tensor_at(KIND_STORAGE, d_out, rows * N, offset);
    CudaTensor d_bias = cuda_tensor_at(KIND_FLOAT, old, N, offset);
    device->matmul_backward(device, NULL, NULL, d_bias.data, on_device.data, NULL, NULL, rows, 1, N, false);
    float *got = cuda_fetch(&d_bias);
    for (int64_t i = 0; i < N; i++)
        expect_near("d_bias", i, got[i], sum[i] + old[i], sum_tolerance(rows, size[i] + fabs((double)old[i])));
    free(d_out), free(old), free(sum), free(size), free(got);
    cuda_free(&on_device), cuda_free(&d_bias);
}

static void bias_gradients(void **state) {
    (void)state;
    // Around a warp's 256 columns, a block's 64 rows at least, and many blocks.
    const int64_t cases[][2] = {{1, 1}, {63, 8}, {64, 255}, {65, 256}, {129, 264}, {1, 600}, {5000, 16}, {3000, 33}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int64_t offset = 0; offset <= 1; offset++) check_bias_gradient(cases[i][0], cases[i][1], offset);
}

// ---- plans --- More
// shapes than plans are kept, twice in the same order: every one is made anew.
static void more_shapes_than_plans(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    enum { MOST = 300, K = 8, N = 8 };
    Product p = make_product(MOST, K, N, 0);
    CudaTensor x = cuda_storage(p.x, MOST * K), weight = cuda_storage(p.weight, N * K);
    CudaTensor out = cuda_storage(NULL, MOST * N);
    for (int64_t round = 0; round < 2; round++)
        for (int64_t rows = 1; rows <= MOST; rows++) { // each writes the last rows of all that were written before
            const int64_t first = MOST - rows;
            device->matmul_forward(device, at(device, out.data, first * N), at(device, x.data, first * K), weight.data,
                                   NULL, rows, K, N);
        }
    float *got = cuda_fetch(&out);
    for (int64_t i = 0; i < MOST * N; i++)
        expect_storage("out", i, got[i], p.out[i] - p.bias[i % N], product_tolerance(K + 1, p.out_size[i]));
    free(got);
    free_product(&p);
    cuda_free(&x), cuda_free(&weight), cuda_free(&out);
}

static void no_rows_is_nothing(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    CudaTensor some = cuda_storage(NULL, 64), gradient = cuda_floats(NULL, 64);
    device->matmul_forward(device, some.data, some.data, some.data, some.data, 0, 8, 8);
    device->matmul_backward(device, some.data, gradient.data, gradient.data, some.data, some.data, some.data, 0, 8, 8,
                            true);
    device->matmul_gelu_forward(device, some.data, some.data, some.data, some.data, some.data, 0, 8, 8);
    device->matmul_gelu_backward(device, some.data, gradient.data, gradient.data, some.data, some.data, some.data,
                                 some.data, 0, 8, 8);
    float *got = cuda_fetch(&gradient);
    for (int i = 0; i < 64; i++) assert_true(got[i] == 0);
    free(got);
    cuda_free(&some), cuda_free(&gradient);
}

// A value that is not a number spoils its row of the result, and no other.
static void not_a_number_stays_in_its_row(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    Product p = make_product(5, 16, 24, 0);
    p.x[2 * p.K + 3] = NAN;
    CudaTensor x = cuda_storage(p.x, p.rows * p.K), weight = cuda_storage(p.weight, p.N * p.K);
    CudaTensor out = cuda_storage(NULL, p.rows * p.N);
    device->matmul_forward(device, out.data, x.data, weight.data, NULL, p.rows, p.K, p.N);
    float *got = cuda_fetch(&out);
    for (int64_t i = 0; i < p.rows * p.N; i++) assert_true(isnan(got[i]) == (i / p.N == 2));
    free(got);
    free_product(&p);
    cuda_free(&x), cuda_free(&weight), cuda_free(&out);
}

static void matrix_rate_is_plausible(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    const double rate = device->matrix_rate(device);
    assert_true(rate > 1e6 && rate < 1e17); // from an emulated GPU under load to many times today's
}

// ---- large ---------------------------------------------------------------------------------------------------------
// Everything in the last row, zeros before it. On a GPU with more values than 32 bits count, and more rows than one
// call of cuBLASLt gets; emulated, to prove the test.
static void the_last_of_many_rows(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    const bool large = strcmp(cuda_device_name(), "cuda") == 0;
    const int64_t K = 8, N = 136, rows = large ? ((int64_t)1 << 24) + 100 : 100, last = rows - 1;
    const int64_t x_bytes = rows * K * 2, out_bytes = rows * N * 2;
    if (device->memory_available(device) < 2 * x_bytes + 3 * out_bytes) skip();
    Product p = make_product(1, K, N, 0);
    CudaTensor weight = cuda_storage(p.weight, N * K), bias = cuda_storage(p.bias, N), x_row = cuda_storage(p.x, K);
    CudaTensor row = cuda_storage(p.d_out, N), d_weight = cuda_floats(NULL, N * K), d_bias = cuda_floats(NULL, N);
    Error err = {0};
    char *memory = device->allocate(device, (size_t)(2 * x_bytes + 2 * out_bytes), &err);
    if (memory == NULL) fail_msg("%s", err.message);
    char *x = memory, *d_x = x + x_bytes, *out = d_x + x_bytes, *d_out = out + out_bytes;
    device->copy(device, at(device, x, last * K), x_row.data, (size_t)K * 2);
    device->copy(device, at(device, d_out, last * N), row.data, (size_t)N * 2);

    device->matmul_forward(device, out, x, weight.data, bias.data, rows, K, N);
    device->matmul_backward(device, d_x, d_weight.data, d_bias.data, d_out, x, weight.data, rows, K, N, false);
    device->copy(device, row.data, at(device, out, last * N), (size_t)N * 2);
    device->copy(device, x_row.data, at(device, d_x, last * K), (size_t)K * 2);
    float *got = cuda_fetch(&row), *got_x = cuda_fetch(&x_row), *got_w = cuda_fetch(&d_weight),
          *got_b = cuda_fetch(&d_bias);
    for (int64_t i = 0; i < N; i++) {
        expect_storage("out", i, got[i], p.out[i], product_tolerance(K + 1, p.out_size[i]));
        expect_near("d_bias", i, got_b[i], p.d_bias[i], 0);
    }
    for (int64_t i = 0; i < K; i++) expect_storage("d_x", i, got_x[i], p.d_x[i], product_tolerance(N, p.d_x_size[i]));
    for (int64_t i = 0; i < N * K; i++)
        expect_near("d_weight", i, got_w[i], p.d_weight[i], product_tolerance(1, p.d_weight_size[i]));
    free(got), free(got_x), free(got_w), free(got_b);
    device->release(device, memory, (size_t)(2 * x_bytes + 2 * out_bytes));
    free_product(&p);
    cuda_free(&weight), cuda_free(&bias), cuda_free(&x_row), cuda_free(&row), cuda_free(&d_weight), cuda_free(&d_bias);
}

// ---- determinism ---------------------------------------------------------------------------------------------------
enum { BITS_ROWS = 1500, BITS_K = 24, BITS_N = 40 };
static void results_for_bits(Device *device, void *results) {
    const int64_t rows = BITS_ROWS, K = BITS_K, N = BITS_N;
    float *x = random_floats(rows * K, 1, 0, 1), *d_out = random_floats(rows * N, 2, 0, 1),
          *w = random_floats(N * K, 3, 0, 1);
    CudaTensor x_there = cuda_storage(x, rows * K), d_out_there = cuda_storage(d_out, rows * N),
               weight = cuda_storage(w, N * K);
    CudaTensor d_weight = cuda_floats(NULL, N * K), d_bias = cuda_floats(NULL, N), d_x = cuda_storage(NULL, rows * K);
    device->matmul_backward(device, d_x.data, d_weight.data, d_bias.data, d_out_there.data, x_there.data, weight.data,
                            rows, K, N, false);
    cuda_fetch_raw(&d_weight, results);
    cuda_fetch_raw(&d_bias, (float *)results + N * K);
    cuda_fetch_raw(&d_x, (float *)results + N * K + N);
    free(x), free(d_out), free(w);
}

static void same_bits_in_another_order(void **state) {
    (void)state;
    expect_same_bits_twice("matmul_backward", results_for_bits,
                           (BITS_N * BITS_K + BITS_N) * sizeof(float) + BITS_ROWS * BITS_K * sizeof(uint16_t));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits_in_another_order), // first: no device is open yet
        cmocka_unit_test(products),
        cmocka_unit_test(products_with_gelu),
        cmocka_unit_test(bias_gradients),
        cmocka_unit_test(more_shapes_than_plans),
        cmocka_unit_test(no_rows_is_nothing),
        cmocka_unit_test(not_a_number_stays_in_its_row),
        cmocka_unit_test(the_last_of_many_rows),
        cmocka_unit_test(matrix_rate_is_plausible),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
