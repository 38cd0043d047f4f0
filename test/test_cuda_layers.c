// The CUDA device's element-wise layers: moves, conversions, rotary, activations, classifier, AdamW, sums. Each kernel
// against double precision and against the CPU device, on odd sizes, off 16-byte boundaries and with extreme values;
// the same bits whatever the order of threads (test/cuda_cases.h).
#include "test/cuda_cases.h"

static const int64_t some_counts[] = {0, 1, 7, 8, 9, 257, 1023, 8192, 8193, 20005};
enum { COUNTS = sizeof some_counts / sizeof *some_counts };
// Elements after a boundary: on it, on one of 8 bytes for bf16, and on none.
static const int64_t some_offsets[] = {0, 4, 1};
enum { OFFSETS = sizeof some_offsets / sizeof *some_offsets };

static CudaTensor storage_at(const float *values, int64_t count, int64_t offset) {
    return cuda_tensor_at(KIND_STORAGE, values, count, offset);
}
static CudaTensor floats_at(const float *values, int64_t count, int64_t offset) {
    return cuda_tensor_at(KIND_FLOAT, values, count, offset);
}

// Of the exact fp32 value: the results of a copy or of one rounding.
static void expect_rounded(const char *what, const float *got, const float *expected, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (to_bf16_bits(got[i]) != to_bf16_bits(expected[i]) && !(isnan(got[i]) && isnan(expected[i])))
            fail_msg("%s[%lld] is %.9g instead of %.9g, rounded", what, (long long)i, got[i], expected[i]);
}

// The same layer on the CPU device, in fp32, is off by as much as the CUDA one at most.
static void expect_like_cpu(const char *what, int64_t i, double cuda, double cpu, double tolerance) {
    expect_storage(what, i, cuda, cpu, 2 * tolerance);
}

// ---- rows with strides ---------------------------------------------------------------------------------------------
static void to_storage_strided(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    const int64_t shapes[][4] = {{1, 1, 1, 1},           {3, 5, 7, 5},          {37, 8, 8, 20}, {37, 64, 192, 64},
                                 {70, 1000, 1003, 2000}, {2, 9000, 9000, 9000}, {0, 4, 4, 4}}; // rows, columns, strides
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (int o = 0; o < OFFSETS; o++) {
            const int64_t rows = shapes[s][0], columns = shapes[s][1], to = shapes[s][2], from = shapes[s][3];
            float *in = random_floats(rows * from, 81, 0, 1), *expected = floats(rows * to);
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < columns; j++) expected[i * to + j] = in[i * from + j];
            CudaTensor in_tensor = floats_at(in, rows * from, some_offsets[o]),
                       out_tensor = storage_at(NULL, rows * to, some_offsets[o]);
            device->to_storage_strided(device, out_tensor.data, to, in_tensor.data, from, rows, columns);
            float *out = cuda_fetch(&out_tensor);
            expect_rounded("to_storage_strided", out, expected, rows * to);
            cuda_free(&in_tensor), cuda_free(&out_tensor);
            free(in), free(expected), free(out);
        }
    }
}

// ---- conversions and sums of two -----------------------------------------------------------------------------------
// Ties, values that round up to the next power of two and to infinity, the smallest and what is no number.
static const float special[] = {0,          -0.0f,   1,         1.00390625f, 1.01171875f, -1.00390625f,
                                1.9999999f, 3.4e38f, -3.4e38f,  INFINITY,    -INFINITY,   NAN,
                                1e-38f,     1e-40f,  0x1p-133f, 0x1p-134f,   -0x1p-149f};
enum { SPECIALS = sizeof special / sizeof *special };

static void put_specials(float *x, int64_t count) {
    for (int64_t i = 0; i < SPECIALS && i < count; i++) x[count - 1 - i] = special[i];
}

static void conversions(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    for (int c = 0; c < COUNTS; c++) {
        for (int o = 0; o < OFFSETS; o++) {
            const int64_t count = some_counts[c], offset = some_offsets[o];
            float *x = random_floats(count, 1, 0, 1);
            put_specials(x, count);
            CudaTensor in = floats_at(x, count, offset), stored = storage_at(NULL, count, offset),
                       back = floats_at(NULL, count, offset);
            device->to_storage(device, stored.data, in.data, count);
            device->to_float(device, back.data, stored.data, count);
            float *got = cuda_fetch(&stored), *wide = cuda_fetch(&back);
            expect_rounded("to_storage", got, x, count);
            for (int64_t i = 0; i < count; i++) // exact
                assert_true(wide[i] == got[i] || (isnan(wide[i]) && isnan(got[i])));
            cuda_free(&in), cuda_free(&stored), cuda_free(&back);
            free(x), free(got), free(wide);
        }
    }
}

// One rounding: the exact bits.
static void additions(void **state) {
    (void)state;
    Device *device = cuda_device_of_test();
    for (int c = 0; c < COUNTS; c++) {
        for (int o = 0; o < OFFSETS; o++) {
            const int64_t count = some_counts[c], offset = some_offsets[o];
            float *x = rounded(random_floats(count, 2, 0, 1), count),
                  *y = rounded(random_floats(count, 3, 0, 1), count), *sum = floats(count);
            put_specials(x, count);
            rounded(x, count);
            for (int64_t i = 0; i < count; i++) sum[i] = x[i] + y[i];
            CudaTensor wide_x = floats_at(x, count, offset), wide_y = floats_at(y, count, offset);
            device->add_float(device, wide_x.data, wide_y.data, count);
            float *got = cuda_fetch(&wide_x);
            for (int64_t i = 0; i < count; i++) assert_true(got[i] == sum[i] || (isnan(got[i]) && isnan(sum[i])));
            cuda_free(&wide_x), cuda_free(&wide_y);
            free(x), free(y), free(sum), free(got);
        }
    }
}

// ---- rotary --------------------------------------------------------------------------------------------------------
typedef struct RotaryCase {
    int64_t rows, heads, D, sequences, spare, offset; // spare: row_stride - heads * D
} RotaryCase;

static void run_rotary(const RotaryCase *r) {
    Device *device = cuda_device_of_test(), *cpu = cpu_device_of_test();
    const int64_t half = r->D / 2, width = r->heads * r->D, stride = width + r->spare, rows = r->rows * r->sequences;
    float *cosines = floats(r->rows * half), *sines = floats(r->rows * half),
          *x = rounded(random_floats(rows * stride, 21, 0, 1), rows * stride), *on_cpu = copy_of(x, rows * stride);
    for (int64_t i = 0; i < r->rows * half; i++) {
        const double angle = (double)(i / half) * pow(10000, -(double)(i % half) / (double)half);
        cosines[i] = (float)cos(angle);
        sines[i] = (float)sin(angle);
    }
    CudaTensor turned = storage_at(x, rows * stride, r->offset), cos_table = cuda_floats(cosines, r->rows * half),
               sin_table = cuda_floats(sines, r->rows * half);
    device->rotary(device, turned.data, cos_table.data, sin_table.data, rows, r->rows, stride, r->heads, r->D, false);
    cpu->rotary(cpu, on_cpu, cosines, sines, rows, r->rows, stride, r->heads, r->D, false);
    float *got = cuda_fetch(&turned);
    Shape s = {.rows = 1, .C = width, .heads = r->heads};
    double *in = doubles(width), *out = doubles(width);
    for (int64_t row = 0; row < rows; row++) {
        s.cosines = cosines + row % r->rows * half;
        s.sines = sines + row % r->rows * half;
        append(in, x + row * stride, width);
        reference_rotary(&s, in, out);
        for (int64_t i = 0; i < width; i++) { // two products, one sum
            const int64_t pair = i % r->D < half ? i + half : i - half, at = row * stride + i;
            const double tolerance = 2 * UNIT * (fabs(in[i]) + fabs(in[pair]));
            expect_storage("rotary", at, got[at], out[i], tolerance);
            expect_like_cpu("rotary on the CPU", at, got[at], on_cpu[at], tolerance);
        }
        for (int64_t i = width; i < stride; i++) assert_true(got[row * stride + i] == x[row * stride + i]);
    }
    // Back again. Each way rounds once, and a turn makes no value larger than its pair's length.
    device->rotary(device, turned.data, cos_table.data, sin_table.data, rows, r->rows, stride, r->heads, r->D, true);
    float *back = cuda_fetch(&turned);
    for (int64_t i = 0; i < rows * stride; i++) expect_near("rotary there and back", i, back[i], x[i], 3 * 0x1p-8 * 8);
    cuda_free(&turned), cuda_free(&cos_table), cuda_free(&sin_table);
    free(cosines), free(sines), free(x), free(on_cpu), free(got), free(back), free(in), free(out);
}

static void rotary(void **state) {
    (void)state;
    const RotaryCase cases[] = {{1, 1, 2, 1, 0, 0},   {3, 2, 8, 1, 3, 0},    {37, 3, 20, 2, 5, 1},
                                {5, 1, 34, 3, 0, 0},  {30, 4, 64, 1, 0, 0},  {30, 4, 64, 2, 64, 8},
                                {9, 2, 64, 1, 5, 0},  {9, 2, 64, 1, 0, 1},   {2, 2, 128, 2, 8, 0},
                                {70, 5, 96, 1, 0, 0}, {2, 300, 16, 1, 0, 0}, {0, 2, 64, 1, 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_rotary(&cases[i]);
}

// ---- activations ---------------------------------------------------------------------------------------------------
// Of sigma(z) with exp2 and reciprocal of 22 bits: exp(-z) is off by the four roundings of its exponent, |z| each, and
// by 4 UNIT; that shifts sigma by sigma (1 - sigma) of it; the sum and the reciprocal add 3.
static double sigma_error(double sigma, double rest, double z) {
    return sigma * rest * (4 + 4 * fabs(z)) * UNIT + 4 * UNIT * sigma;
}
static double logistic(double z) { return 1 / (1 + exp(-z)); }
// Numbers below 2^-126 are taken for zero, and exp(-z) above 2^126 for infinity.
static double flushed(double x) { return (1 + fabs(x)) * 0x1p-125; }

static const float activation_inputs[] = {0,   -0.0f, 1e-30f, -1e-30f, 9.9f, -9.9f, 10.1f, -10.1f, 88,
                                          -86, -88,   100,    -100,    1e4f, -1e4f, 1e30f, -1e30f};
enum { ACTIVATION_INPUTS = sizeof activation_inputs / sizeof *activation_inputs };

static void run_gelu(int64_t count, int64_t offset) {
    Device *device = cuda_device_of_test(), *cpu = cpu_device_of_test();
    float *x = random_floats(count, 31, 0, 4), *d_out = rounded(random_floats(count, 32, 0, 1), count),
          *on_cpu = floats(2 * count);
    for (int64_t i = 0; i < count && i < ACTIVATION_INPUTS; i++) x[count - 1 - i] = activation_inputs[i];
    rounded(x, count);
    cpu->gelu_forward(cpu, on_cpu, x, count);
    cpu->gelu_backward(cpu, on_cpu + count, d_out, x, count);
    CudaTensor x_tensor = storage_at(x, count, offset), d_out_tensor = storage_at(d_out, count, offset),
               out_tensor = storage_at(NULL, count, 0), d_x_tensor = storage_at(NULL, count, offset);
    device->gelu_forward(device, out_tensor.data, x_tensor.data, count);
    device->gelu_backward(device, d_x_tensor.data, d_out_tensor.data, x_tensor.data, count);
    device->gelu_backward(device, d_out_tensor.data, d_out_tensor.data, x_tensor.data, count);
    float *out = cuda_fetch(&out_tensor), *d_x = cuda_fetch(&d_x_tensor), *in_place = cuda_fetch(&d_out_tensor);
    expect_same_bits("gelu_backward in place", in_place, d_x, count);
    for (int64_t i = 0; i < count; i++) {
        const double wide = x[i], d = d_out[i], z = 2 * reference_gelu_inner(wide), sigma = logistic(z),
                     rest = logistic(-z), slope = 2 * sqrt(2 / acos(-1.0)) * (1 + 3 * 0.044715 * wide * wide);
        double tolerance = fabs(wide) * sigma_error(sigma, rest, z) + 2 * UNIT * fabs(wide * sigma) + flushed(wide);
        if (!(fabs(z) < 1e3)) tolerance = flushed(wide) + UNIT * fabs(wide * sigma);
        expect_storage("gelu", i, out[i], wide * sigma, tolerance);
        expect_like_cpu("gelu on the CPU", i, out[i], on_cpu[i], tolerance + fabs(wide) * 3e-38);
        double gradient = sigma, error = sigma_error(sigma, rest, z);
        if (fabs(wide) < 50) { // beyond, sigma or rest is 0, and it is the other
            gradient += wide * slope * sigma * rest;
            error += (error + 12 * UNIT * sigma) * rest * fabs(wide) * slope;
        } else error = UNIT;
        if (fabs(wide) > 10) error += 1e-30; // there x is held at 10
        expect_storage("d gelu", i, d_x[i], d * gradient, fabs(d) * error + flushed(d));
        expect_like_cpu("d gelu on the CPU", i, d_x[i], on_cpu[count + i], fabs(d) * error + flushed(d));
    }
    cuda_free(&x_tensor), cuda_free(&d_out_tensor), cuda_free(&out_tensor), cuda_free(&d_x_tensor);
    free(x), free(d_out), free(on_cpu), free(out), free(d_x), free(in_place);
}

static void gelu(void **state) {
    (void)state;
    for (int c = 0; c < COUNTS; c++)
        for (int o = 0; o < OFFSETS; o++) run_gelu(some_counts[c], some_offsets[o]);
}

static void run_swiglu(int64_t rows, int64_t F, int64_t offset) {
    Device *device = cuda_device_of_test(), *cpu = cpu_device_of_test();
    const int64_t count = rows * F;
    float *gate_up = random_floats(2 * count, 33, 0, 3), *d_out = rounded(random_floats(count, 34, 0, 1), count),
          *on_cpu = floats(4 * count);
    for (int64_t c = 0; rows > 0 && c < F && c < ACTIVATION_INPUTS; c++)
        gate_up[(rows - 1) * 2 * F + c] = activation_inputs[c];
    rounded(gate_up, 2 * count);
    cpu->swiglu_forward(cpu, on_cpu, gate_up, rows, F);
    cpu->swiglu_backward(cpu, on_cpu + count, on_cpu + 3 * count, d_out, gate_up, rows, F);
    CudaTensor gate_up_tensor = storage_at(gate_up, 2 * count, offset), d_out_tensor = storage_at(d_out, count, offset),
               out_tensor = storage_at(NULL, count, 0), again_tensor = storage_at(NULL, count, offset),
               d_gate_up_tensor = storage_at(NULL, 2 * count, 0);
    device->swiglu_forward(device, out_tensor.data, gate_up_tensor.data, rows, F);
    device->swiglu_backward(device, d_gate_up_tensor.data, again_tensor.data, d_out_tensor.data, gate_up_tensor.data,
                            rows, F);
    device->swiglu_backward(device, gate_up_tensor.data, d_out_tensor.data, d_out_tensor.data, gate_up_tensor.data,
                            rows, F);
    float *out = cuda_fetch(&out_tensor), *d_gate_up = cuda_fetch(&d_gate_up_tensor),
          *again = cuda_fetch(&again_tensor), *in_place = cuda_fetch(&gate_up_tensor),
          *again_in_place = cuda_fetch(&d_out_tensor);
    expect_same_bits("swiglu again", again, out, count);
    expect_same_bits("swiglu again, in place", again_in_place, out, count);
    expect_same_bits("swiglu_backward in place", in_place, d_gate_up, 2 * count);
    for (int64_t i = 0; i < count; i++) {
        const int64_t at_gate = i / F * 2 * F + i % F, at_up = at_gate + F;
        const double gate = gate_up[at_gate], up = gate_up[at_up], d = d_out[i], sigma = logistic(gate),
                     rest = logistic(-gate);
        double error = sigma_error(sigma, rest, gate) + 4 * UNIT * sigma;
        if (!(fabs(gate) < 80)) error = 4 * UNIT * sigma + 0x1p-124; // below -87 the gate is held there
        double tolerance = fabs(gate * up) * error + fabs(up) * flushed(gate);
        if (gate < -80) tolerance = fabs(up) * 1e-33;
        expect_storage("swiglu", i, out[i], gate * sigma * up, tolerance);
        expect_like_cpu("swiglu on the CPU", i, out[i], on_cpu[i], tolerance + fabs(gate * up) * 3e-38);
        tolerance = fabs(gate * d) * error + flushed(d * gate);
        if (gate < -80) tolerance = fabs(d) * 1e-33;
        expect_storage("d_up", i, d_gate_up[at_up], d * gate * sigma, tolerance);
        expect_like_cpu("d_up on the CPU", i, d_gate_up[at_up], on_cpu[count + at_up],
                        tolerance + fabs(gate * d) * 3e-38);
        tolerance = fabs(d * up) * (error * (1 + fabs(gate) * rest) + 8 * UNIT * sigma * (1 + fabs(gate) * rest) +
                                    flushed(gate * rest));
        if (gate < -80) tolerance = fabs(d * up) * 1e-33;
        expect_storage("d_gate", i, d_gate_up[at_gate], d * up * sigma * (1 + gate * rest), tolerance);
        expect_like_cpu("d_gate on the CPU", i, d_gate_up[at_gate], on_cpu[count + at_gate],
                        tolerance + fabs(gate * up * d) * 3e-38);
    }
    cuda_free(&gate_up_tensor), cuda_free(&d_out_tensor), cuda_free(&out_tensor), cuda_free(&again_tensor),
        cuda_free(&d_gate_up_tensor);
    free(gate_up), free(d_out), free(on_cpu), free(out), free(d_gate_up), free(again), free(in_place),
        free(again_in_place);
}

static void swiglu(void **state) {
    (void)state;
    const int64_t sizes[][2] = {{0, 8}, {1, 1}, {1, 8}, {3, 7}, {37, 20}, {37, 64}, {5, 1023}, {3, 2816}, {2, 9001}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int o = 0; o < OFFSETS; o++) run_swiglu(sizes[i][0], sizes[i][1], some_offsets[o]);
}

static void not_a_number_spreads(void **state) {
    (void)state;
    enum { COUNT = 21 };
    Device *device = cuda_device_of_test();
    for (int at = 0; at < COUNT; at += 5) {
        float x[COUNT] = {0}, ones[COUNT], gate_up[2 * COUNT] = {0};
        for (int i = 0; i < COUNT; i++) ones[i] = gate_up[COUNT + i] = 1;
        x[at] = gate_up[at] = NAN;
        CudaTensor x_tensor = cuda_storage(x, COUNT), ones_tensor = cuda_storage(ones, COUNT),
                   gate_up_tensor = cuda_storage(gate_up, 2 * COUNT), out = cuda_storage(NULL, COUNT),
                   d_gate_up = cuda_storage(NULL, 2 * COUNT);
        const int beside = (at + 1) % COUNT;
        device->gelu_forward(device, out.data, x_tensor.data, COUNT);
        float *got = cuda_fetch(&out);
        assert_true(isnan(got[at]) && got[beside] == 0);
        free(got);
        device->gelu_backward(device, out.data, ones_tensor.data, x_tensor.data, COUNT);
        got = cuda_fetch(&out);
        assert_true(isnan(got[at]) && got[beside] == 0.5f);
        free(got);
        device->swiglu_forward(device, out.data, gate_up_tensor.data, 1, COUNT);
        got = cuda_fetch(&out);
        assert_true(isnan(got[at]) && got[beside] == 0);
        free(got);
        device->swiglu_backward(device, d_gate_up.data, out.data, ones_tensor.data, gate_up_tensor.data, 1, COUNT);
        got = cuda_fetch(&d_gate_up);
        assert_true(isnan(got[at]) && isnan(got[COUNT + at]) && got[beside] == 0.5f);
        free(got);
        got = cuda_fetch(&out);
        assert_true(isnan(got[at]) && got[beside] == 0);
        free(got);
        cuda_free(&x_tensor), cuda_free(&ones_tensor), cuda_free(&gate_up_tensor), cuda_free(&out),
            cuda_free(&d_gate_up);
    }
}

// ---- classifier ----------------------------------------------------------------------------------------------------
typedef struct Logits {
    int64_t rows, V, Vp, offset; // the last in whole packets
    double deviation, d_loss;
    bool with_gap; // one logit of each row 1e4 above the others, one 1e4 below, and one of minus infinity
} Logits;

// exp(x - max) is off by 3 UNIT |x - max| (the difference, the product with log2(e), that constant) and 4 UNIT of its
// own; their sum by the mean of the former and some 40 UNIT for the additions (100 terms in a thread, then a tree); its
// logarithm by one unit in the last place more, the quotient by two roundings more.
static void check_row(const Logits *l, const float *x, int32_t target, float loss, const float *gradient) {
    double *wide = doubles(l->V), maximum = -INFINITY, spread = 0;
    append(wide, x, l->V);
    const double log_sum_exp = reference_log_sum_exp(wide, l->V);
    for (int64_t j = 0; j < l->V; j++) maximum = fmax(maximum, wide[j]);
    for (int64_t j = 0; j < l->V; j++)
        if (wide[j] > -INFINITY) spread += exp(wide[j] - log_sum_exp) * (maximum - wide[j]);
    const double expected = log_sum_exp - wide[target], sum_error = (40 + 3 * spread) * UNIT;
    if (isinf(expected)) assert_true(isinf(loss) && loss > 0);
    else expect_near("loss", 0, loss, expected, sum_error + 2 * UNIT * (log_sum_exp - maximum + fabs(expected)));
    for (int64_t j = 0; j < l->V; j++) {
        const double p = exp(wide[j] - log_sum_exp), below = p > 0 ? maximum - wide[j] : 0;
        double error = p * ((3 * below + 8) * UNIT + sum_error) + 0x1p-125;
        if (j == target) error += 2 * UNIT;
        expect_storage("d_logits", j, gradient[j], (p - (j == target ? 1 : 0)) * l->d_loss,
                       fabs(l->d_loss) * error + 0x1p-125);
    }
    free(wide);
}

static int64_t in_memory(int64_t V) { return device_padded_vocab_size(DEVICE_CUDA, V); }

// (rows, Vp), infinity in the padding, where it would make every loss infinite or no number.
static float *padded(const float *logits, int64_t rows, int64_t V, int64_t Vp) {
    float *x = floats(rows * Vp);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t j = 0; j < Vp; j++) x[row * Vp + j] = j < V ? logits[row * V + j] : INFINITY;
    return x;
}

static void run_classifier(const Logits *l) {
    Device *device = cuda_device_of_test(), *cpu = cpu_device_of_test();
    const int64_t rows = l->rows, V = l->V, count = rows * V, Vp = l->Vp;
    float *logits = random_floats(count, 51, 1, l->deviation), *losses = floats(rows), *cpu_losses = floats(rows);
    int32_t *targets = random_tokens(rows, 52, V);
    for (int64_t row = 0; row < rows && l->with_gap; row++) {
        logits[row * V + (row * 7) % V] += 1e4f;
        logits[row * V + (row * 7 + 1) % V] -= 1e4f;
        if (V > 2) logits[row * V + (row * 7 + 2) % V] = -INFINITY;
    }
    rounded(logits, count);
    float *wide = padded(logits, rows, V, Vp);
    CudaTensor logits_tensor = storage_at(wide, rows * Vp, l->offset), targets_tensor = cuda_tokens(targets, rows),
               losses_tensor = cuda_floats(NULL, rows);
    device->classifier(device, logits_tensor.data, losses_tensor.data, targets_tensor.data, rows, V, Vp, 0);
    float *same = cuda_fetch(&logits_tensor), *only_losses = cuda_fetch(&losses_tensor);
    expect_same_bits("logits when d_loss is 0", same, wide, rows * Vp);
    device->classifier(device, logits_tensor.data, losses_tensor.data, targets_tensor.data, rows, V, Vp,
                       (float)l->d_loss);
    float *gradient = cuda_fetch(&logits_tensor);
    cuda_fetch_raw(&losses_tensor, losses);
    expect_same_bits("losses with and without a gradient", losses, only_losses, rows);
    for (int64_t row = 0; row < rows; row++) {
        check_row(l, logits + row * V, targets[row], losses[row], gradient + row * Vp);
        for (int64_t j = V; j < Vp; j++) assert_true(gradient[row * Vp + j] == 0);
    }
    cpu->classifier(cpu, logits, cpu_losses, targets, rows, V, V, 0);
    for (int64_t row = 0; row < rows; row++)
        if (!isinf(cpu_losses[row]))
            expect_near("loss on the CPU", row, losses[row], cpu_losses[row], 1e-5 * (1 + fabs((double)losses[row])));
    cuda_free(&logits_tensor), cuda_free(&targets_tensor), cuda_free(&losses_tensor);
    free(logits), free(losses), free(cpu_losses), free(targets), free(same), free(only_losses), free(gradient);
    free(wide);
}

static void classifier(void **state) {
    (void)state;
    const int64_t sizes[][2] = {{0, 8},    {1, 2},    {3, 5},     {9, 7},     {9, 8},    {9, 9},
                                {37, 257}, {40, 300}, {10, 1023}, {10, 1024}, {9, 8200}, {3, 50257}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int kind = 0; kind < 3; kind++) {
            const Logits l = {.rows = sizes[i][0],
                              .V = sizes[i][1],
                              .Vp = kind == 1 ? (sizes[i][1] + 7) / 8 * 8 : in_memory(sizes[i][1]),
                              .offset = (int64_t)(i + (size_t)kind) % 3 * 8,
                              .deviation = kind == 0 ? 0.1 : 5,
                              .d_loss = kind == 0 ? 1 : -1.0 / 4096,
                              .with_gap = kind == 2};
            run_classifier(&l);
        }
    }
}

static void large_vocabulary(void **state) {
    (void)state;
    enum { V = 151936 };
    Device *device = cuda_device_of_test();
    const int32_t target = V - 1;
    assert_int_equal(in_memory(V), V); // already
    CudaTensor logits = cuda_storage(NULL, V), loss = cuda_floats(NULL, 1), targets = cuda_tokens(&target, 1);
    device->classifier(device, logits.data, loss.data, targets.data, 1, V, in_memory(V), 1);
    float *gradient = cuda_fetch(&logits), *got = cuda_fetch(&loss);
    expect_near("loss of equal logits", 0, got[0], log(V), 4 * UNIT * log(V));
    for (int64_t j = 0; j < V; j++)
        expect_storage("d_logits", j, gradient[j], j == target ? 1.0 / V - 1 : 1.0 / V,
                       8 * UNIT / V + UNIT * (j == target));
    cuda_free(&logits), cuda_free(&loss), cuda_free(&targets);
    free(gradient), free(got);
}

static void a_loss_that_is_not_finite_shows(void **state) {
    (void)state;
    enum { V = 21 };
    Device *device = cuda_device_of_test();
    const int32_t target = 3;
    const float bad[] = {NAN, INFINITY};
    CudaTensor loss = cuda_floats(NULL, 1), targets = cuda_tokens(&target, 1);
    for (int kind = 0; kind < 3; kind++) {
        for (int at = 0; at < V; at += 4) {
            float logits[V] = {0}, got;
            for (int j = 0; j < V; j++)
                if (kind == 2) logits[j] = -INFINITY; // a row in which nothing is possible
            if (kind < 2) logits[at] = bad[kind];
            float *wide = padded(logits, 1, V, in_memory(V));
            CudaTensor t = storage_at(wide, in_memory(V), 0);
            device->classifier(device, t.data, loss.data, targets.data, 1, V, in_memory(V), 1);
            float *gradient = cuda_fetch(&t);
            cuda_fetch_raw(&loss, &got);
            assert_true(isnan(got) && isnan(gradient[0]) && isnan(gradient[V - 1]) && isnan(gradient[target]));
            free(gradient), free(wide);
            cuda_free(&t);
        }
    }
    cuda_free(&loss), cuda_free(&targets);
}

// Every other row does not count, whatever stands in it, and the others are as they are without it.
static void rows_that_do_not_count(void **state) {
    (void)state;
    enum { ROWS = 9 };
    const int64_t sizes[] = {21, 8200}; // of a warp, and of more packets than a block has threads
    Device *device = cuda_device_of_test();
    for (int i = 0; i < 2; i++) {
        const int64_t V = sizes[i], Vp = in_memory(V), count = ROWS * Vp;
        float *logits = random_floats(ROWS * V, 53, 0, 1), got[ROWS], expected[ROWS];
        int32_t *targets = random_tokens(ROWS, 54, V), some[ROWS];
        for (int row = 0; row < ROWS; row++) some[row] = row % 2 == 0 ? -1 : targets[row];
        rounded(logits, ROWS * V);
        float *wide = padded(logits, ROWS, V, Vp);
        CudaTensor all = storage_at(wide, count, 0), among = storage_at(wide, count, 0), losses = cuda_floats(NULL, ROWS),
                   all_targets = cuda_tokens(targets, ROWS), some_targets = cuda_tokens(some, ROWS);
        device->classifier(device, among.data, losses.data, some_targets.data, ROWS, V, Vp, 0);
        float *same = cuda_fetch(&among);
        expect_same_bits("logits when d_loss is 0", same, wide, count);
        device->classifier(device, among.data, losses.data, some_targets.data, ROWS, V, Vp, 0.25f);
        cuda_fetch_raw(&losses, got);
        device->classifier(device, all.data, losses.data, all_targets.data, ROWS, V, Vp, 0.25f);
        cuda_fetch_raw(&losses, expected);
        float *gradient = cuda_fetch(&among), *expected_gradient = cuda_fetch(&all);
        for (int row = 0; row < ROWS; row++) {
            const bool counts = row % 2 != 0;
            assert_true(got[row] == (counts ? expected[row] : 0));
            for (int64_t j = row * Vp; j < (row + 1) * Vp; j++)
                assert_true(gradient[j] == (counts ? expected_gradient[j] : 0));
        }
        cuda_free(&all), cuda_free(&among), cuda_free(&losses), cuda_free(&all_targets), cuda_free(&some_targets);
        free(logits), free(wide), free(targets), free(same), free(gradient), free(expected_gradient);
    }
}

// ---- AdamW ---------------------------------------------------------------------------------------------------------
// Loshchilov and Hutter's algorithm 2 in double precision, from the same single-precision hyperparameters. `moved` adds
// up the lengths of the steps and m_size what m would be if nothing cancelled: what roundings are relative to.
typedef struct Optimizer {
    double parameter, m, v, m_size, moved;
} Optimizer;

static void reference_adamw(Optimizer *o, double gradient, const AdamW *h) {
    const double beta1 = h->beta1, beta2 = h->beta2, step = (double)h->step;
    gradient *= h->gradient_scale;
    o->parameter *= 1 - (double)h->learning_rate * h->weight_decay;
    o->m = beta1 * o->m + (1 - beta1) * gradient;
    o->v = beta2 * o->v + (1 - beta2) * gradient * gradient;
    o->m_size = beta1 * o->m_size + (1 - beta1) * fabs(gradient);
    const double root = sqrt(o->v / (1 - pow(beta2, step))) + h->epsilon,
                 rate = h->learning_rate / (1 - pow(beta1, step));
    o->parameter -= rate * o->m / root;
    o->moved += rate * o->m_size / root;
}

static void run_adamw(int64_t count, int64_t offset) {
    Device *device = cuda_device_of_test(), *cpu = cpu_device_of_test();
    float *parameter = random_floats(count, 61, 0, 1), *cpu_state = floats(3 * count);
    memcpy(cpu_state, parameter, (size_t)count * sizeof *parameter);
    Optimizer *o = checked(calloc((size_t)count + 1, sizeof *o));
    for (int64_t i = 0; i < count; i++) o[i].parameter = parameter[i];
    CudaTensor master = floats_at(parameter, count, 0), m = floats_at(NULL, count, 0), v = floats_at(NULL, count, 0),
               weight = storage_at(NULL, count, offset);
    for (int64_t step = 1; step <= 4; step++) {
        AdamW h = {.learning_rate = 1e-2f,
                   .beta1 = 0.9f,
                   .beta2 = 0.95f,
                   .epsilon = 1e-8f,
                   .weight_decay = step % 2 == 0 ? 0.1f : 0,
                   .step = step,
                   .gradient_scale = step % 2 == 0 ? 0.37f : 1};
        float *gradient = floats(count);
        for (int64_t i = 0; i < count; i++) { // sizes from 1e-6 to 1e2, and some zeros
            const double size = pow(10, (double)(i % 9) - 6);
            if (i % 11 != 0) gradient[i] = (float)(size * random_normal(7, 62 + (uint64_t)step, (uint64_t)i));
        }
        CudaTensor gradient_tensor = floats_at(gradient, count, offset);
        device->adamw(device, master.data, step == 2 ? NULL : weight.data, m.data, v.data, gradient_tensor.data, count,
                      &h);
        cpu->adamw(cpu, cpu_state, NULL, cpu_state + count, cpu_state + 2 * count, gradient, count, &h);
        float *got = cuda_fetch(&master), *got_m = cuda_fetch(&m), *got_v = cuda_fetch(&v),
              *stored = cuda_fetch(&weight);
        for (int64_t i = 0; i < count; i++) {
            reference_adamw(&o[i], gradient[i], &h);
            const double n = (double)step, tolerance = 3 * n * UNIT * (fabs(o[i].parameter) + o[i].moved) +
                                                       (8 + 4 * n) * UNIT * o[i].moved;
            expect_near("m", i, got_m[i], o[i].m, 4 * n * UNIT * o[i].m_size);
            expect_near("v", i, got_v[i], o[i].v, 4 * n * UNIT * o[i].v);
            expect_near("parameter", i, got[i], o[i].parameter, tolerance);
            expect_near("parameter on the CPU", i, got[i], cpu_state[i], 2 * tolerance);
            if (step != 2) assert_true(stored[i] == round_to_bf16(got[i]));
        }
        cuda_free(&gradient_tensor);
        free(gradient), free(got), free(got_m), free(got_v), free(stored);
    }
    cuda_free(&master), cuda_free(&m), cuda_free(&v), cuda_free(&weight);
    free(parameter), free(cpu_state), free(o);
}

static void adamw(void **state) {
    (void)state;
    for (int c = 0; c < COUNTS; c++)
        for (int o = 0; o < OFFSETS; o++) run_adamw(some_counts[c], some_offsets[o]);
}

// ---- sums ----------------------------------------------------------------------------------------------------------
static double sum_on_device(const float *x, int64_t count, int64_t offset, bool squares, double before) {
    Device *device = cuda_device_of_test();
    CudaTensor values = floats_at(x, count, offset), sum = cuda_tensor_at(KIND_DOUBLE, &before, 1, 0);
    (squares ? device->sum_of_squares : device->sum)(device, sum.data, values.data, count);
    double got;
    cuda_fetch_raw(&sum, &got);
    cuda_free(&values), cuda_free(&sum);
    return got;
}

// Double precision: (4 + sqrt(n)) 2^-53 of the magnitudes. The same bits wherever the values lie.
static void sums(void **state) {
    (void)state;
    const int64_t counts[] = {0, 1, 3, 255, 1000, 4095, 4096, 4097, 70001, 300001};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        const int64_t count = counts[c];
        float *x = random_floats(count, 71, 0.5, 1);
        long double sum = 0, squares = 0, magnitudes = 0;
        for (int64_t i = 0; i < count; i++) {
            sum += x[i];
            magnitudes += fabsf(x[i]);
            squares += (long double)x[i] * x[i];
        }
        const double relative = (4 + sqrt((double)count)) * 0x1p-53, got = sum_on_device(x, count, 0, false, 0),
                     got_squares = sum_on_device(x, count, 0, true, 0);
        expect_near("sum", 0, got, (double)sum, relative * (double)magnitudes);
        expect_near("sum of squares", 0, got_squares, (double)squares, relative * (double)squares);
        assert_true(sum_on_device(x, count, 1, false, 0) == got);
        assert_true(sum_on_device(x, count, 2, true, 0) == got_squares);
        assert_true(sum_on_device(x, count, 0, true, 3.25) == got_squares + 3.25);
        free(x);
    }
    const float huge[] = {3e38f, -3e38f, 1, 2}, bad[] = {1, NAN, 2};
    assert_true(sum_on_device(huge, 4, 0, false, 0) == 3);
    expect_near("squares of huge values", 0, sum_on_device(huge, 4, 0, true, 0) / (2 * 9e76), 1, 4 * UNIT);
    assert_true(isnan(sum_on_device(bad, 3, 0, false, 0)) && isnan(sum_on_device(bad, 3, 0, true, 0)));
}

// ---- the same bits -------------------------------------------------------------------------------------------------
enum { BITS_V = 1001, BITS_VP = 1024, BITS_ROWS = 5, BITS_COUNT = 20005 };

static void *bits_work_step(const CudaTensor *t, void *results) {
    cuda_fetch_raw(t, results);
    return (char *)results + (size_t)t->count * kind_bytes(t->kind);
}

static void bits_work(Device *device, void *results) {
    float *x = random_floats(BITS_COUNT, 91, 0, 3);
    int32_t *targets = random_tokens(BITS_ROWS, 92, BITS_V);
    CudaTensor sum = cuda_tensor_at(KIND_DOUBLE, NULL, 1, 0), values = cuda_floats(x, BITS_COUNT),
               logits = cuda_storage(x, BITS_ROWS * BITS_VP), losses = cuda_floats(NULL, BITS_ROWS),
               tokens = cuda_tokens(targets, BITS_ROWS), activated = cuda_storage(x, BITS_COUNT);
    device->sum(device, sum.data, values.data, BITS_COUNT);
    device->sum_of_squares(device, sum.data, values.data, BITS_COUNT);
    device->classifier(device, logits.data, losses.data, tokens.data, BITS_ROWS, BITS_V, BITS_VP, 0.25f);
    device->gelu_backward(device, activated.data, activated.data, activated.data, BITS_COUNT);
    results = bits_work_step(&sum, results);
    results = bits_work_step(&logits, results);
    results = bits_work_step(&losses, results);
    (void)bits_work_step(&activated, results);
    cuda_free(&sum), cuda_free(&values), cuda_free(&logits), cuda_free(&losses), cuda_free(&tokens),
        cuda_free(&activated);
    free(x), free(targets);
}

static void the_same_bits_in_any_order_of_threads(void **state) {
    (void)state;
    expect_same_bits_twice("layers", bits_work, 8 + 2 * BITS_ROWS * BITS_VP + 4 * BITS_ROWS + 2 * BITS_COUNT);
}

// Exactly the sum in the order of terms; on boundaries and off them; onto any of the terms.
static void sum_terms(void **state) {
    (void)state;
    enum { MOST = 9 };
    Device *device = cuda_device_of_test();
    const int term_counts[] = {1, 2, 3, MOST};
    for (int c = 0; c < COUNTS; c++) {
        for (size_t k = 0; k < 4; k++) {
            const int64_t count = some_counts[c];
            const int n = term_counts[k];
            float *values[MOST], *expected = floats(count);
            CudaTensor terms[MOST];
            const float *pointers[MOST];
            for (int t = 0; t < n; t++) {
                values[t] = random_floats(count, 100 + (uint64_t)t, 0, 1);
                terms[t] = floats_at(values[t], count, (int64_t)(k == 2 ? t : 0));
                pointers[t] = terms[t].data;
                for (int64_t i = 0; i < count; i++) expected[i] = t == 0 ? values[0][i] : expected[i] + values[t][i];
            }
            const CudaTensor *out = &terms[n - 1];
            device->synchronize(device); // the terms came in the stream of work
            device->sum_terms(device, STREAM_EXCHANGE, out->data, pointers, n, count);
            device->synchronize(device);
            float *got = cuda_fetch(out);
            expect_same_bits("sum_terms", got, expected, count);
            for (int t = 0; t < n; t++) cuda_free(&terms[t]), free(values[t]);
            free(expected), free(got);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_bits_in_any_order_of_threads), // in processes of their own, so first
        cmocka_unit_test(to_storage_strided),
        cmocka_unit_test(conversions),
        cmocka_unit_test(additions),
        cmocka_unit_test(rotary),
        cmocka_unit_test(gelu),
        cmocka_unit_test(swiglu),
        cmocka_unit_test(not_a_number_spreads),
        cmocka_unit_test(classifier),
        cmocka_unit_test(large_vocabulary),
        cmocka_unit_test(a_loss_that_is_not_finite_shows),
        cmocka_unit_test(rows_that_do_not_count),
        cmocka_unit_test(adamw),
        cmocka_unit_test(sums),
        cmocka_unit_test(sum_terms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
