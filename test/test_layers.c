// Every layer but attention and the matrix products (test_matmul.c), forward and backward: against double precision on
// odd sizes, for every instruction set and number of threads; the double precision one against finite differences; the
// same bits again and with any number of threads; and the aliases that layers/device.h allows.
#include "test/layer_cases.h"

static const int64_t some_rows[] = {1, 3, 37, 200}, some_C[] = {1, 8, 20, 33, 256};
enum { ROWS_COUNT = 4, C_COUNT = 5 };

// Runs a test body for every combination of rows and C on every device.
typedef struct Case {
    int64_t rows, C;
    bool with_delta;
    float *first; // the results of the first device of an instruction set: the others give the same bits
    int64_t first_count;
} Case;

static void for_each_case(void (*run)(Device *, void *)) {
    for (int r = 0; r < ROWS_COUNT; r++) {
        for (int c = 0; c < C_COUNT; c++) {
            Case one = {.rows = some_rows[r], .C = some_C[c], .with_delta = (r + c) % 2 == 0};
            for_each_device(run, &one);
            free(one.first);
        }
    }
}

static void same_for_all_threads(const Device *device, Case *one, const char *what, const float *x, int64_t count) {
    if (device->threads == 1) {
        free(one->first);
        one->first = copy_of(x, count);
        one->first_count = count;
    }
    assert_int_equal(count, one->first_count);
    expect_same_bits(what, x, one->first, count);
}

// ---- finite differences -------------------------------------------------------------------------------------------
static void references_have_the_right_gradients(void **state) {
    (void)state;
    enum { ROWS = 3, C = 8, V = 5, POSITIONS = 4, BIG = 1000 };
    int32_t tokens[ROWS] = {4, 0, 4}, positions[ROWS] = {3, 1, 3};
    float cosines[ROWS * 2], sines[ROWS * 2];
    for (int i = 0; i < ROWS * 2; i++) cosines[i] = cosf((float)i), sines[i] = sinf((float)i);
    Shape s = {.rows = ROWS,
               .C = C,
               .K = 5,
               .epsilon = 1e-5,
               .tokens = tokens,
               .positions = positions,
               .V = V,
               .positions_count = POSITIONS,
               .heads = 2,
               .cosines = cosines,
               .sines = sines};
    double *in = random_doubles(BIG, 1);
    check_gradient(&s, reference_embedding, reference_embedding_backward, in, (V + POSITIONS) * C, ROWS * C);
    check_gradient(&s, reference_layernorm, reference_layernorm_backward, in, ROWS * C + 2 * C, ROWS * C);
    check_gradient(&s, reference_rmsnorm, reference_rmsnorm_backward, in, ROWS * C + C, ROWS * C);
    check_gradient(&s, reference_matmul, reference_matmul_backward, in, ROWS * 5 + C * 5 + C, ROWS * C);
    check_gradient(&s, reference_rotary, reference_rotary_backward, in, ROWS * C, ROWS * C);
    check_gradient(&s, reference_gelu, reference_gelu_backward, in, ROWS * C, ROWS * C);
    check_gradient(&s, reference_swiglu, reference_swiglu_backward, in, ROWS * 2 * C, ROWS * C);
    check_gradient(&s, reference_classifier, reference_classifier_backward, in, ROWS * C, ROWS);
    free(in);
}

// ---- embedding ----------------------------------------------------------------------------------------------------
static void run_embedding(Device *device, void *argument) {
    Case *one = argument;
    int64_t rows = one->rows, C = one->C, V = 7, P = 3 * rows + 2;
    const int64_t sequence = (rows + 1) / 2; // rows of one: the last may be shorter
    int32_t *tokens = random_tokens(rows, 1, V), *positions = random_tokens(rows, 2, P);
    for (int64_t i = 0; i < rows; i++) positions[i] = (int32_t)((i % sequence * 3 + 1) % P); // in no order
    float *table = random_floats(V * C, 3, 0, 1), *places = random_floats(P * C, 4, 0, 1), *out = floats(rows * C);
    float *d_out = random_floats(rows * C, 5, 0, 1);

    // Forward: one rounding at most.
    device->embedding_forward(device, out, tokens, positions, table, places, rows, C);
    for (int64_t i = 0; i < rows * C; i++)
        assert_true(out[i] == table[tokens[i / C] * C + i % C] + places[positions[i / C] * C + i % C]);
    device->embedding_forward(device, out, tokens, NULL, table, NULL, rows, C);
    for (int64_t i = 0; i < rows * C; i++) assert_true(out[i] == table[tokens[i / C] * C + i % C]);

    // Backward: exactly the sum in the order of rows, on top of what is there.
    float *d_table = random_floats((V + P) * C, 6, 0, 1), *d_places = d_table + V * C,
          *expected = copy_of(d_table, (V + P) * C);
    for (int64_t i = 0; i < rows * C; i++) {
        expected[tokens[i / C] * C + i % C] += d_out[i];
        expected[(V + positions[i / C]) * C + i % C] += d_out[i];
    }
    device->embedding_backward(device, d_table, d_places, d_out, tokens, positions, rows, sequence, C, V);
    expect_same_bits("embedding_backward", d_table, expected, (V + P) * C);
    for (int64_t i = 0; i < rows * C; i++) expected[tokens[i / C] * C + i % C] += d_out[i];
    device->embedding_backward(device, d_table, NULL, d_out, tokens, NULL, rows, 0, C, V);
    expect_same_bits("embedding_backward without positions", d_table, expected, (V + P) * C);
    free(tokens), free(positions), free(table), free(places), free(out), free(d_out), free(d_table), free(expected);
}

static void embedding(void **state) {
    (void)state;
    for_each_case(run_embedding);
}

// ---- norms ----------------------------------------------------------------------------------------------------------
// Rows of mean 3 and deviation 2. Rounding: x + delta, x - mean (the mean's own error is some UNIT of |x|), rstd, two
// products, one sum: 8 UNIT of the larger of what is multiplied, which for x - mean is |x| + |mean|. A weight's
// gradient is a sum over rows, d_x has two sums over C in it.
typedef struct Norm {
    bool is_layernorm;
    int64_t rows, C;
    float *x, *delta, *weight, *bias, *d_out; // weight and bias in one block
    double *in, *out, *d_in, *wide_d_out;     // the reference's
} Norm;

static Norm make_norm(const Case *one, bool is_layernorm) {
    int64_t rows = one->rows, C = one->C, count = rows * C;
    Norm n = {.is_layernorm = is_layernorm, .rows = rows, .C = C};
    n.x = random_floats(count, 11, 3, 2);
    n.delta = one->with_delta ? random_floats(count, 12, 0, 1) : NULL;
    n.weight = random_floats(2 * C, 13, 1, 0.5);
    n.bias = n.weight + C;
    n.d_out = random_floats(count, 14, 0, 1);
    n.in = doubles(count + 2 * C);
    n.d_in = doubles(count + 2 * C);
    n.out = doubles(count);
    n.wide_d_out = doubles(count);
    append(append(n.in, n.x, count), n.weight, 2 * C);
    for (int64_t i = 0; i < count && n.delta != NULL; i++) n.in[i] = n.x[i] + n.delta[i]; // in single precision
    append(n.wide_d_out, n.d_out, count);
    Shape s = {.rows = rows, .C = C, .epsilon = 1e-5};
    (is_layernorm ? reference_layernorm : reference_rmsnorm)(&s, n.in, n.out);
    (is_layernorm ? reference_layernorm_backward : reference_rmsnorm_backward)(&s, n.in, n.wide_d_out, n.d_in);
    return n;
}

static void free_norm(Norm *n) {
    free(n->x), free(n->delta), free(n->weight), free(n->d_out);
    free(n->in), free(n->out), free(n->d_in), free(n->wide_d_out);
}

static void norm_forward(Device *device, const Norm *n, float *out, float *residual, float *mean, float *rstd,
                         const float *x) {
    if (n->is_layernorm)
        device->layernorm_forward(device, out, residual, mean, rstd, x, n->delta, n->weight, n->bias, n->rows, n->C,
                                  1e-5f);
    else device->rmsnorm_forward(device, out, residual, rstd, x, n->delta, n->weight, n->rows, n->C, 1e-5f);
}

static Moments norm_moments(const Norm *n, int64_t row) {
    if (n->is_layernorm) return reference_moments(n->in + row * n->C, n->C, 1e-5);
    return (Moments){0, reference_rstd(n->in + row * n->C, n->C, 1e-5)};
}

static void check_norm_forward(const Norm *n, const float *out, const float *mean, const float *rstd) {
    int64_t C = n->C;
    for (int64_t row = 0; row < n->rows; row++) {
        Moments m = norm_moments(n, row);
        double size = 0; // of x in this row
        for (int64_t c = 0; c < C; c++) size = fmax(size, fabs(n->in[row * C + c]));
        if (n->is_layernorm) expect_near("mean", row, mean[row], m.mean, 8 * UNIT * size);
        // d rstd = -rstd^3 x dx: where all x are nearly alike, their rounding is most of the variance.
        expect_near("rstd", row, rstd[row], m.rstd,
                    m.rstd * (8 * UNIT + 8 * UNIT * size * size * m.rstd * m.rstd * UNIT));
        for (int64_t c = 0; c < C; c++) {
            double weight = fabs(n->weight[c]), bias = n->is_layernorm ? fabs(n->bias[c]) : 0;
            expect_near("norm", row * C + c, out[row * C + c], n->out[row * C + c],
                        8 * UNIT * (weight * size * m.rstd + bias));
        }
    }
}

static void check_norm_backward(const Norm *n, const float *d_x, const float *d_weight) {
    int64_t rows = n->rows, C = n->C;
    for (int64_t row = 0; row < rows; row++) {
        Moments m = norm_moments(n, row);
        double g_size = 0, g_x_size = 0, x_size = 0;
        for (int64_t c = 0; c < C; c++) {
            double x = (fabs(n->in[row * C + c]) + fabs(m.mean)) * m.rstd,
                   g = fabs(n->wide_d_out[row * C + c] * n->weight[c]);
            g_size += g / (double)C;
            g_x_size += g * x / (double)C;
            x_size = fmax(x_size, x);
        }
        for (int64_t c = 0; c < C; c++) {
            double g = fabs(n->wide_d_out[row * C + c] * n->weight[c]), parts = g + g_size + x_size * g_x_size;
            expect_near("d_x", row * C + c, d_x[row * C + c] - 1.0, n->d_in[row * C + c],
                        8 * UNIT * m.rstd * parts + sum_tolerance(C, m.rstd * (g_size + x_size * g_x_size)) + 2 * UNIT);
        }
    }
    for (int64_t c = 0; c < C; c++) {
        double x_sum = 0, sum = 0;
        for (int64_t row = 0; row < rows; row++) {
            Moments m = norm_moments(n, row);
            sum += fabs(n->wide_d_out[row * C + c]);
            x_sum += fabs(n->wide_d_out[row * C + c]) * (fabs(n->in[row * C + c]) + fabs(m.mean)) * m.rstd;
        }
        expect_near("d_weight", c, d_weight[c] - 1.0, n->d_in[rows * C + c], sum_tolerance(rows, x_sum) + 2 * UNIT);
        if (n->is_layernorm)
            expect_near("d_bias", c, d_weight[C + c] - 1.0, n->d_in[rows * C + C + c],
                        sum_tolerance(rows, sum) + 2 * UNIT);
    }
}

static void run_norm(Device *device, Case *one, bool is_layernorm) {
    Norm n = make_norm(one, is_layernorm);
    int64_t rows = n.rows, C = n.C, count = rows * C, all = 3 * count + 2 * rows + 2 * C;
    float *out = floats(all), *residual = out + count, *d_x = residual + count, *d_weight = d_x + count;
    float *mean = d_weight + 2 * C, *rstd = mean + rows;

    norm_forward(device, &n, out, residual, mean, rstd, n.x);
    for (int64_t i = 0; i < count; i++) assert_true(residual[i] == (n.delta == NULL ? 0.0f : (float)n.in[i]));
    check_norm_forward(&n, out, mean, rstd);

    // Gradients are added to what is there, here ones.
    for (int64_t i = 0; i < count; i++) d_x[i] = 1;
    for (int64_t c = 0; c < 2 * C; c++) d_weight[c] = 1;
    const float *normalized = n.delta == NULL ? n.x : residual;
    if (is_layernorm)
        device->layernorm_backward(device, d_x, d_weight, d_weight + C, n.d_out, normalized, n.weight, mean, rstd, rows,
                                   C);
    else device->rmsnorm_backward(device, d_x, d_weight, n.d_out, normalized, n.weight, rstd, rows, C);
    check_norm_backward(&n, d_x, d_weight);
    same_for_all_threads(device, one, "norm", out, all);

    if (n.delta != NULL) { // the residual may replace x
        float *again = floats(count), *in_place = copy_of(n.x, count);
        norm_forward(device, &n, again, in_place, mean, rstd, in_place);
        expect_same_bits("norm in place", again, out, count);
        expect_same_bits("residual in place", in_place, residual, count);
        free(again), free(in_place);
    }
    free(out);
    free_norm(&n);
}

static void run_layernorm(Device *device, void *argument) { run_norm(device, argument, true); }
static void run_rmsnorm(Device *device, void *argument) { run_norm(device, argument, false); }

static void layernorm(void **state) {
    (void)state;
    for_each_case(run_layernorm);
}

static void rmsnorm(void **state) {
    (void)state;
    for_each_case(run_rmsnorm);
}

// A row of huge, of tiny and of equal values: nothing overflows that need not, and rstd stays finite.
static void run_extreme_norm(Device *device, void *argument) {
    (void)argument;
    enum { C = 33, ROWS = 3 };
    float x[ROWS * C], out[ROWS * C], mean[ROWS], rstd[ROWS], weight[C], bias[C] = {0};
    for (int c = 0; c < C; c++) {
        weight[c] = 1;
        x[c] = (float)(c % 2 == 0 ? 1e18 : -1e18);
        x[C + c] = (float)(c % 2 == 0 ? 1e-30 : -1e-30);
        x[2 * C + c] = 5;
    }
    device->layernorm_forward(device, out, NULL, mean, rstd, x, NULL, weight, bias, ROWS, C, 1e-5f);
    for (int c = 0; c < C; c++) {
        // 17 values up and 16 down: mean 1/33, variance 1 - 1/33^2 in units of 1e18.
        double expected = ((c % 2 == 0 ? 1 : -1) - 1.0 / 33) / sqrt(1 - 1.0 / (33 * 33));
        expect_near("huge", c, out[c], expected, 16 * UNIT);
        expect_near("tiny", c, out[C + c], 0, 1e-27);
        expect_near("equal", c, out[2 * C + c], 0, 5 * UNIT / sqrt(1e-5));
    }
    device->rmsnorm_forward(device, out, NULL, rstd, x, NULL, weight, ROWS, C, 1e-5f);
    for (int c = 0; c < C; c++) {
        expect_near("huge", c, out[c], c % 2 == 0 ? 1 : -1, 16 * UNIT);
        expect_near("tiny", c, out[C + c], 0, 1e-27);
        expect_near("equal", c, out[2 * C + c], 1 / sqrt(1 + 1e-5 / 25), 16 * UNIT);
    }
}

static void norms_of_extreme_rows(void **state) {
    (void)state;
    for_each_device(run_extreme_norm, NULL);
}

// ---- rotary -------------------------------------------------------------------------------------------------------
typedef struct RotaryCase {
    int64_t rows, heads, D, sequences;
} RotaryCase;

static void run_rotary(Device *device, void *argument) {
    const RotaryCase *r = argument;
    int64_t half = r->D / 2, width = r->heads * r->D, stride = width + 5, rows = r->rows * r->sequences;
    float *cosines = floats(r->rows * half), *sines = floats(r->rows * half),
          *x = random_floats(rows * stride, 21, 0, 1);
    for (int64_t i = 0; i < r->rows * half; i++) {
        double angle = (double)(i / half) * pow(10000, -(double)(i % half) / (double)half);
        cosines[i] = (float)cos(angle);
        sines[i] = (float)sin(angle);
    }
    float *turned = copy_of(x, rows * stride);
    device->rotary(device, turned, cosines, sines, rows, r->rows, stride, r->heads, r->D, false);
    Shape s = {.rows = 1, .C = width, .heads = r->heads};
    double *in = doubles(width), *out = doubles(width);
    for (int64_t row = 0; row < rows; row++) {
        s.cosines = cosines + row % r->rows * half;
        s.sines = sines + row % r->rows * half;
        append(in, x + row * stride, width);
        reference_rotary(&s, in, out);
        for (int64_t i = 0; i < width; i++) { // two products, one sum
            int64_t pair = i % r->D < half ? i + half : i - half;
            expect_near("rotary", row * stride + i, turned[row * stride + i], out[i],
                        2 * UNIT * (fabs(in[i]) + fabs(in[pair])));
        }
        for (int64_t i = width; i < stride; i++) assert_true(turned[row * stride + i] == x[row * stride + i]);
    }
    device->rotary(device, turned, cosines, sines, rows, r->rows, stride, r->heads, r->D, true);
    for (int64_t i = 0; i < rows * stride; i++) // back again; cos^2 + sin^2 is 1 within their own rounding
        expect_near("rotary there and back", i, turned[i], x[i], 8 * UNIT * 5);
    free(cosines), free(sines), free(x), free(turned), free(in), free(out);
}

static void rotary(void **state) {
    (void)state;
    RotaryCase cases[] = {{1, 1, 2, 1}, {3, 2, 8, 1}, {37, 3, 20, 2}, {5, 1, 34, 3}, {300, 4, 64, 1}, {2, 2, 128, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) for_each_device(run_rotary, &cases[i]);
}

// ---- activations ----------------------------------------------------------------------------------------------------
// A relative error r of exp(-z) shifts sigma(z) by sigma (1 - sigma) r. exp is within 2 units in the last place, which
// are 4 UNIT, and z = 2u comes from 3 roundings, which shift exp(-z) by 3 |z| UNIT.
static double sigma_error(double sigma, double rest, double z, double roundings_of_z) {
    return sigma * rest * (4 + roundings_of_z * fabs(z)) * UNIT;
}

static double logistic(double z) { return 1 / (1 + exp(-z)); }

// Where exp(-z) would overflow it is held at 3e38: the results there, 0, are off by no more than |x| 1e-38.
static double floor_of(double x) { return (1 + fabs(x)) * 1e-37; }

static void run_gelu(Device *device, void *argument) {
    Case *one = argument;
    int64_t count = one->rows * one->C;
    float *x = random_floats(count, 31, 0, 4), *d_out = random_floats(count, 32, 0, 1), *result = floats(2 * count);
    const float special[] = {0, -0.0f, 1e-30f, -1e-30f, 9.99f, -9.99f, 10.01f, -10.01f, 100, -100, 1e4f, -1e4f};
    for (int64_t i = 0; i < count && i < 12; i++) x[count - 1 - i] = special[i];
    double *in = doubles(count), *out = doubles(count), *wide_d_out = doubles(count), *d_in = doubles(count);
    append(in, x, count);
    append(wide_d_out, d_out, count);
    Shape s = {.rows = one->rows, .C = one->C};
    reference_gelu(&s, in, out);
    reference_gelu_backward(&s, in, wide_d_out, d_in);
    device->gelu_forward(device, result, x, count);
    device->gelu_backward(device, result + count, d_out, x, count);
    for (int64_t i = 0; i < count; i++) {
        double z = 2 * reference_gelu_inner(in[i]), sigma = logistic(z), rest = logistic(-z);
        double slope = fabs(in[i]) * 2 * sqrt(2 / acos(-1.0)) * (1 + 3 * 0.044715 * in[i] * in[i]);
        // 1 + tanh of the reference cancels below -3 or so: the true value is x sigma(z).
        expect_near("gelu", i, result[i], in[i] * sigma,
                    fabs(in[i]) * sigma_error(sigma, rest, z, 3) + 4 * UNIT * fabs(in[i] * sigma) + floor_of(in[i]));
        expect_near("gelu reference", i, out[i], in[i] * sigma, 1e-15 * fabs(in[i]));
        double tolerance = sigma_error(sigma, rest, z, 3) * (1 + slope) + 8 * UNIT * sigma * (1 + slope * rest);
        if (fabs(in[i]) > 10) tolerance += 1e-30; // there x is held at 10
        expect_near("d gelu", i, result[count + i], d_in[i], fabs(wide_d_out[i]) * (tolerance + 1e-14) + 1e-37);
    }
    same_for_all_threads(device, one, "gelu", result, 2 * count);
    float *in_place = copy_of(d_out, count);
    device->gelu_backward(device, in_place, in_place, x, count);
    expect_same_bits("gelu_backward in place", in_place, result + count, count);
    free(x), free(d_out), free(result), free(in), free(out), free(wide_d_out), free(d_in), free(in_place);
}

static void gelu(void **state) {
    (void)state;
    for_each_case(run_gelu);
}

static void run_swiglu(Device *device, void *argument) {
    Case *one = argument;
    int64_t rows = one->rows, F = one->C, count = rows * F;
    float *gate_up = random_floats(2 * count, 33, 0, 3), *d_out = random_floats(count, 34, 0, 1),
          *result = floats(4 * count);
    const float special[] = {0, -0.0f, 1e-30f, -1e-30f, 88, -86, 100, -100, 1e4f, -1e4f};
    for (int64_t c = 0; c < F && c < 10; c++) gate_up[(rows - 1) * 2 * F + c] = special[c];
    double *in = doubles(2 * count), *out = doubles(count), *wide_d_out = doubles(count), *d_in = doubles(2 * count);
    append(in, gate_up, 2 * count);
    append(wide_d_out, d_out, count);
    Shape s = {.rows = rows, .C = F};
    reference_swiglu(&s, in, out);
    reference_swiglu_backward(&s, in, wide_d_out, d_in);
    device->swiglu_forward(device, result, gate_up, rows, F);
    device->swiglu_backward(device, result + count, result + 3 * count, d_out, gate_up, rows, F);
    expect_same_bits("swiglu again", result + 3 * count, result, count);
    for (int64_t i = 0; i < count; i++) {
        int64_t at_gate = i / F * 2 * F + i % F, at_up = at_gate + F;
        double gate = in[at_gate], up = in[at_up], dy = wide_d_out[i], sigma = logistic(gate), rest = logistic(-gate);
        double error = sigma_error(sigma, rest, gate, 0) + 4 * UNIT * sigma;
        expect_near("swiglu", i, result[i], out[i], fabs(gate * up) * error + fabs(up) * floor_of(gate));
        expect_near("d_up", i, result[count + at_up], d_in[at_up], fabs(dy * gate) * error + fabs(dy) * floor_of(gate));
        expect_near("d_gate", i, result[count + at_gate], d_in[at_gate],
                    fabs(dy * up) *
                        (error * (1 + fabs(gate)) + 4 * UNIT * sigma * (1 + fabs(gate) * rest) + floor_of(gate)));
    }
    same_for_all_threads(device, one, "swiglu", result, 4 * count);
    device->swiglu_backward(device, gate_up, d_out, d_out, gate_up, rows, F);
    expect_same_bits("swiglu again, in place", d_out, result, count);
    expect_same_bits("swiglu_backward in place", gate_up, result + count, 2 * count);
    free(gate_up), free(d_out), free(result), free(in), free(out), free(wide_d_out), free(d_in);
}

static void swiglu(void **state) {
    (void)state;
    for_each_case(run_swiglu);
}

static void run_not_a_number(Device *device, void *argument) {
    (void)argument;
    enum { COUNT = 21 };
    for (int at = 0; at < COUNT; at++) {
        float x[COUNT] = {0}, ones[COUNT], out[COUNT], gate_up[2 * COUNT] = {0}, d_gate_up[2 * COUNT];
        for (int i = 0; i < COUNT; i++) ones[i] = gate_up[COUNT + i] = 1;
        x[at] = gate_up[at] = NAN;
        device->gelu_forward(device, out, x, COUNT);
        assert_true(isnan(out[at]) && out[(at + 1) % COUNT] == 0);
        device->gelu_backward(device, out, ones, x, COUNT);
        assert_true(isnan(out[at]) && out[(at + 1) % COUNT] == 0.5f);
        device->swiglu_forward(device, out, gate_up, 1, COUNT);
        assert_true(isnan(out[at]) && out[(at + 1) % COUNT] == 0);
        device->swiglu_backward(device, d_gate_up, out, ones, gate_up, 1, COUNT);
        assert_true(isnan(d_gate_up[at]) && d_gate_up[(at + 1) % COUNT] == 0.5f);
    }
}

static void not_a_number_is_not_lost(void **state) {
    (void)state;
    for_each_device(run_not_a_number, NULL);
}

static void run_add(Device *device, void *argument) {
    Case *one = argument;
    int64_t count = one->rows * one->C * 40, drawn = one->rows * one->C + 7, wrong = 0; // of which `drawn` differ
    float *some = random_floats(2 * drawn, 41, 0, 1);
    float *a = malloc((size_t)count * sizeof *a), *b = malloc((size_t)count * sizeof *b);
    assert_true(a != NULL && b != NULL);
    for (int64_t i = 0; i < count; i++) a[i] = some[i % drawn], b[i] = some[drawn + i % drawn];
    float *sum = copy_of(a, count);
    device->add_float(device, sum, b, count);
    for (int64_t i = 0; i < count; i++) wrong += sum[i] != a[i] + b[i];
    assert_int_equal(wrong, 0);
    free(some), free(a), free(b), free(sum);
}

static void add(void **state) {
    (void)state;
    for_each_case(run_add);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(references_have_the_right_gradients),
        cmocka_unit_test(embedding),
        cmocka_unit_test(layernorm),
        cmocka_unit_test(rmsnorm),
        cmocka_unit_test(norms_of_extreme_rows),
        cmocka_unit_test(rotary),
        cmocka_unit_test(gelu),
        cmocka_unit_test(swiglu),
        cmocka_unit_test(not_a_number_is_not_lost),
        cmocka_unit_test(add),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
