// What stands at the end of a step: the classifier's loss and gradient, the sums, AdamW; and the CPU device's memory.
// Against double precision on odd sizes, for every instruction set and number of threads (test/layer_cases.h).
#include "test/layer_cases.h"

// ---- classifier -----------------------------------------------------------------------------------------------------
typedef struct Logits {
    int64_t rows, V, Vp;
    double deviation, d_loss;
    bool with_gap; // one logit of each row 1e4 above the others, and one 1e4 below
    float *first;  // losses and gradients on one thread
} Logits;

// exp(x - max) is off by UNIT |x - max| for the subtraction and 4 UNIT of its own, their sum by the mean of the former
// and some 12 UNIT for the additions (single precision over 64 terms, then double), the quotient by two roundings more.
static void check_row(const Logits *l, const float *x, int32_t target, float loss, const float *gradient) {
    double log_sum_exp, maximum = -INFINITY, spread = 0;
    double *wide = doubles(l->V);
    append(wide, x, l->V);
    log_sum_exp = reference_log_sum_exp(wide, l->V);
    for (int64_t j = 0; j < l->V; j++) maximum = fmax(maximum, wide[j]);
    for (int64_t j = 0; j < l->V; j++) spread += exp(wide[j] - log_sum_exp) * (maximum - wide[j]);
    double expected = log_sum_exp - wide[target], sum_error = (16 + spread) * UNIT;
    expect_near("loss", 0, loss, expected, sum_error + UNIT * fabs(expected));
    for (int64_t j = 0; j < l->V; j++) {
        double p = exp(wide[j] - log_sum_exp), error = p * ((maximum - wide[j] + 6) * UNIT + sum_error);
        if (j == target) error += 2 * UNIT;
        expect_near("d_logits", j, gradient[j], (p - (j == target ? 1 : 0)) * l->d_loss,
                    fabs(l->d_loss) * error + 1e-37);
    }
    free(wide);
}

static void run_classifier(Device *device, void *argument) {
    Logits *l = argument;
    int64_t rows = l->rows, V = l->V, Vp = l->Vp, count = rows * Vp;
    float *logits = random_floats(count, 51, 1, l->deviation), *result = floats(rows + count),
          *gradient = result + rows;
    int32_t *targets = random_tokens(rows, 52, V);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t j = V; j < Vp; j++) logits[row * Vp + j] = j % 2 == 0 ? INFINITY : NAN; // of the padding
        if (!l->with_gap) continue;
        logits[row * Vp + (row * 7) % V] += 1e4f;
        logits[row * Vp + (row * 7 + 1) % V] -= 1e4f;
    }
    memcpy(gradient, logits, (size_t)count * sizeof *logits);

    float *losses = floats(rows);
    device->classifier(device, gradient, losses, targets, rows, V, Vp, 0); // only the losses
    expect_same_bits("logits when d_loss is 0", gradient, logits, count);
    device->classifier(device, gradient, result, targets, rows, V, Vp, (float)l->d_loss);
    expect_same_bits("losses with and without a gradient", losses, result, rows);
    for (int64_t row = 0; row < rows; row++) {
        check_row(l, logits + row * Vp, targets[row], losses[row], gradient + row * Vp);
        for (int64_t j = V; j < Vp; j++) assert_true(gradient[row * Vp + j] == 0);
    }

    if (device->threads == 1) {
        free(l->first);
        l->first = copy_of(result, rows + count);
    }
    expect_same_bits("classifier", result, l->first, rows + count);
    free(logits), free(result), free(targets), free(losses);
}

static void classifier(void **state) {
    (void)state;
    const int64_t sizes[][2] = {{1, 2}, {3, 5}, {37, 5}, {37, 257}, {200, 300}, {3, 50257}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int kind = 0; kind < 3; kind++) {
            Logits l = {.rows = sizes[i][0],
                        .V = sizes[i][1],
                        .Vp = sizes[i][1] + (kind == 1 ? 7 : 0),
                        .deviation = kind == 0 ? 0.1 : 5,
                        .d_loss = kind == 0 ? 1 : -1.0 / 4096,
                        .with_gap = kind == 2};
            for_each_device(run_classifier, &l);
            free(l.first);
        }
    }
}

static void run_large_vocabulary(Device *device, void *argument) {
    (void)argument;
    enum { V = 151936 };
    float *logits = floats(V), loss;
    int32_t target = V - 1;
    device->classifier(device, logits, &loss, &target, 1, V, V, 1);
    expect_near("loss of equal logits", 0, loss, log(V), 2 * UNIT * log(V));
    for (int64_t j = 0; j < V; j++)
        expect_near("d_logits", j, logits[j], j == target ? 1.0 / V - 1 : 1.0 / V, j == target ? UNIT : 4 * UNIT / V);
    free(logits);
}

static void large_vocabulary(void **state) {
    (void)state;
    for_each_device(run_large_vocabulary, NULL);
}

static void run_not_finite(Device *device, void *argument) {
    (void)argument;
    enum { V = 21 };
    int32_t target = 3;
    float loss, bad[] = {NAN, INFINITY};
    for (int kind = 0; kind < 2; kind++) {
        for (int at = 0; at < V; at++) {
            float logits[V] = {0};
            logits[at] = bad[kind];
            device->classifier(device, logits, &loss, &target, 1, V, V, 0);
            assert_true(isnan(loss));
            device->classifier(device, logits, &loss, &target, 1, V, V, 1);
            assert_true(isnan(loss) && isnan(logits[0]) && isnan(logits[V - 1]));
        }
    }
    float masked[V] = {0}; // but a logit of minus infinity is a token that cannot be
    masked[7] = -INFINITY;
    device->classifier(device, masked, &loss, &target, 1, V, V, 1);
    expect_near("loss beside a masked logit", 0, loss, log(V - 1), 4 * UNIT * log(V - 1));
    assert_true(masked[7] == 0);
}

static void a_loss_that_is_not_finite_shows(void **state) {
    (void)state;
    for_each_device(run_not_finite, NULL);
}

// Every other row does not count, whatever stands in it, and the others are as they are without it.
static void run_not_asked(Device *device, void *argument) {
    (void)argument;
    enum { ROWS = 9, V = 21, VP = 24 };
    float *logits = random_floats(ROWS * VP, 53, 0, 1), *among = copy_of(logits, ROWS * VP), losses[ROWS], expected[ROWS];
    int32_t *targets = random_tokens(ROWS, 54, V), some[ROWS];
    for (int row = 0; row < ROWS; row++) some[row] = row % 2 == 0 ? -1 : targets[row];
    among[0] = NAN;
    float *untouched = copy_of(among, ROWS * VP);
    device->classifier(device, among, losses, some, ROWS, V, VP, 0);
    expect_same_bits("logits when d_loss is 0", among, untouched, ROWS * VP);
    for (int row = 0; row < ROWS; row += 2) assert_true(losses[row] == 0);
    device->classifier(device, among, losses, some, ROWS, V, VP, 0.25f);
    device->classifier(device, logits, expected, targets, ROWS, V, VP, 0.25f);
    for (int row = 0; row < ROWS; row++) {
        bool counts = row % 2 != 0;
        assert_true(losses[row] == (counts ? expected[row] : 0));
        for (int j = 0; j < VP; j++) assert_true(among[row * VP + j] == (counts ? logits[row * VP + j] : 0));
    }
    free(logits), free(among), free(targets), free(untouched);
}

static void rows_that_do_not_count(void **state) {
    (void)state;
    for_each_device(run_not_asked, NULL);
}

// ---- AdamW ----------------------------------------------------------------------------------------------------------
typedef struct Optimizer {
    double parameter, m, v;
} Optimizer;

// Loshchilov and Hutter's algorithm 2 in double precision, from the same single-precision hyperparameters.
static void reference_adamw(Optimizer *o, double gradient, const AdamW *h) {
    gradient *= h->gradient_scale;
    o->parameter *= 1 - (double)h->learning_rate * h->weight_decay;
    o->m = h->beta1 * o->m + (1 - (double)h->beta1) * gradient;
    o->v = h->beta2 * o->v + (1 - (double)h->beta2) * gradient * gradient;
    double m = o->m / (1 - pow(h->beta1, (double)h->step)), v = o->v / (1 - pow(h->beta2, (double)h->step));
    o->parameter -= h->learning_rate * m / (sqrt(v) + h->epsilon);
}

enum { STEPS = 10 };

// m is a sum of terms, each rounded about 3 times a step, v likewise, all of v's positive. A step moves the parameter
// by learning_rate m/sqrt(v), with 8 roundings of its own; the parameter is rounded twice a step, and its decay once.
static void run_adamw(Device *device, void *argument) {
    int64_t count = *(const int64_t *)argument;
    float *master = random_floats(count, 61, 0, 1), *weight = floats(count), *m = floats(count), *v = floats(count);
    float *gradient = floats(count);
    Optimizer *o = checked(calloc((size_t)count, sizeof *o));
    double *m_size = doubles(count), *moved = doubles(count);
    for (int64_t i = 0; i < count; i++) o[i].parameter = master[i];
    for (int64_t step = 1; step <= STEPS; step++) {
        AdamW h = {.learning_rate = 3e-3f / (float)step,
                   .beta1 = 0.9f,
                   .beta2 = 0.95f,
                   .epsilon = 1e-8f,
                   .weight_decay = 0.1f,
                   .step = step,
                   .gradient_scale = step % 2 == 0 ? 0.25f : 1.0f};
        // Gradients of all sizes, some of them zero.
        for (int64_t i = 0; i < count; i++) {
            double size = pow(10, (double)(i % 13) - 9);
            gradient[i] = i % 17 == 0 ? 0 : (float)(size * random_normal(7, 62 + (uint64_t)step, (uint64_t)i));
        }
        device->adamw(device, master, step % 2 == 0 ? weight : NULL, m, v, gradient, count, &h);
        for (int64_t i = 0; i < count; i++) {
            reference_adamw(&o[i], gradient[i], &h);
            m_size[i] = h.beta1 * m_size[i] + (1 - (double)h.beta1) * fabs((double)gradient[i] * h.gradient_scale);
            double root = sqrt(o[i].v / (1 - pow(h.beta2, (double)step))) + h.epsilon;
            moved[i] += h.learning_rate * (m_size[i] / (1 - pow(h.beta1, (double)step))) / root;
            expect_near("m", i, m[i], o[i].m, 4 * (double)step * UNIT * m_size[i]);
            expect_near("v", i, v[i], o[i].v, 4 * (double)step * UNIT * o[i].v);
            expect_near("parameter", i, master[i], o[i].parameter,
                        3 * (double)step * UNIT * (fabs(o[i].parameter) + moved[i]) +
                            (8 + 4 * (double)step) * UNIT * moved[i]);
        }
    }
    expect_same_bits("the weight in storage type", weight, master, count);
    float *expected = copy_of(master, count), *m2 = copy_of(m, count), *v2 = copy_of(v, count);
    AdamW h = {
        .learning_rate = 1e-3f, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .step = 11, .gradient_scale = 1};
    device->adamw(device, expected, NULL, m2, v2, gradient, count, &h);
    device->adamw(device, master, master, m, v, gradient, count, &h);
    expect_same_bits("a weight that is the master", master, expected, count);
    free(master), free(weight), free(m), free(v), free(gradient), free(o), free(m_size), free(moved);
    free(expected), free(m2), free(v2);
}

static void adamw(void **state) {
    (void)state;
    int64_t counts[] = {1, 5, 33, 70000};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) for_each_device(run_adamw, &counts[i]);
}

// ---- sums -----------------------------------------------------------------------------------------------------------
typedef struct SumCase {
    int64_t count;
    bool known;
    double sum, squares;
} SumCase;

static double sum_of(Device *device, const float *x, int64_t count) {
    double sum = 0;
    device->sum(device, &sum, x, count);
    return sum;
}
static double sum_of_squares_of(Device *device, const float *x, int64_t count) {
    double sum = 0;
    device->sum_of_squares(device, &sum, x, count);
    return sum;
}

// Double precision: (4 + sqrt(n)) 2^-53 of the magnitudes. And the same bits from every instruction set.
static void run_sums(Device *device, void *argument) {
    SumCase *c = argument;
    float *x = random_floats(c->count, 71, 0.5, 1);
    long double sum = 0, squares = 0, magnitudes = 0;
    for (int64_t i = 0; i < c->count; i++) {
        sum += x[i];
        magnitudes += fabsf(x[i]);
        squares += (long double)x[i] * x[i];
    }
    double got = sum_of(device, x, c->count), got_squares = sum_of_squares_of(device, x, c->count);
    double relative = (4 + sqrt((double)c->count)) * 0x1p-53;
    expect_near("sum", 0, got, (double)sum, relative * (double)magnitudes);
    expect_near("sum of squares", 0, got_squares, (double)squares, relative * (double)squares);
    double on_top = 0.5; // what is there is added to
    device->sum(device, &on_top, x, c->count);
    assert_true(on_top == 0.5 + got);
    if (!c->known) *c = (SumCase){c->count, true, got, got_squares};
    assert_true(got == c->sum && got_squares == c->squares);
    free(x);
}

static void sums(void **state) {
    (void)state;
    const int64_t counts[] = {0, 1, 15, 16, 17, 1000, 32768, 32769, 300001};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        SumCase c = {.count = counts[i]};
        for_each_device(run_sums, &c);
    }
}

static void run_extreme_sums(Device *device, void *argument) {
    (void)argument;
    float huge[] = {3e38f, -3e38f, 1, 2}, bad[] = {1, NAN, 2};
    assert_true(sum_of(device, huge, 4) == 3);
    expect_near("squares of huge values", 0, sum_of_squares_of(device, huge, 4) / (2 * 9e76), 1, 4 * UNIT);
    assert_true(isnan(sum_of(device, bad, 3)) && isnan(sum_of_squares_of(device, bad, 3)));
}

static void sums_of_extreme_values(void **state) {
    (void)state;
    for_each_device(run_extreme_sums, NULL);
}

// ---- memory ---------------------------------------------------------------------------------------------------------
static void run_memory(Device *device, void *argument) {
    (void)argument;
    Error err = {0};
    const size_t sizes[] = {0, 1, 255, 4097, (size_t)5 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t bytes = sizes[i];
        unsigned char *a = device->allocate(device, bytes, &err), *b = device->allocate(device, bytes, &err);
        assert_non_null(a);
        assert_non_null(b);
        assert_int_equal((uintptr_t)a % 256, 0);
        for (size_t j = 0; j < bytes; j++) assert_true(a[j] == 0);
        for (size_t j = 0; j < bytes; j++) a[j] = (unsigned char)(j * 31 + j / 251);
        device->copy(device, b, a, bytes);
        assert_memory_equal(a, b, bytes);
        device->zero(device, a, bytes);
        device->upload(device, a, b, bytes);
        assert_memory_equal(a, b, bytes);
        device->zero(device, a, bytes);
        for (size_t j = 0; j < bytes; j++) assert_true(a[j] == 0);
        device->download(device, a, b, bytes);
        assert_memory_equal(a, b, bytes);
        device->release(device, a, bytes);
        device->release(device, b, bytes);
    }
    assert_int_equal(err.exit_code, 0);
}

static void memory(void **state) {
    (void)state;
    for_each_device(run_memory, NULL);
}

static void no_memory_is_an_error(void **state) {
    (void)state;
    Device device;
    cpu_device(&device, 1);
    size_t sizes[] = {SIZE_MAX, SIZE_MAX / 2, (size_t)1 << 56, (size_t)memory_available() / 2 * 3};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        Error err = {0};
        assert_null(device.allocate(&device, sizes[i], &err));
        assert_int_equal(err.exit_code, EXIT_RUNTIME);
        assert_non_null(strstr(err.message, "out of memory"));
    }
}

static void run_strided(Device *device, void *argument) {
    (void)argument;
    const int64_t shapes[][4] = {
        {1, 1, 1, 1}, {3, 5, 7, 5}, {37, 8, 8, 20}, {700, 1000, 1003, 2000}}; // rows, columns, strides
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int64_t rows = shapes[i][0], columns = shapes[i][1], to = shapes[i][2], from = shapes[i][3];
        float *in = random_floats(rows * from, 81, 0, 1), *out = floats(rows * to), *expected = floats(rows * to);
        for (int64_t row = 0; row < rows; row++)
            for (int64_t c = 0; c < columns; c++) expected[row * to + c] = in[row * from + c];
        device->to_storage_strided(device, out, to, in, from, rows, columns);
        expect_same_bits("to_storage_strided", out, expected, rows * to);
        memset(out, 0, (size_t)(rows * to) * sizeof *out);
        device->copy_strided(device, out, to * 4, in, from * 4, rows, (size_t)columns * 4);
        expect_same_bits("copy_strided", out, expected, rows * to);
        float *dense = floats(rows * from);
        device->to_storage(device, dense, in, rows * from);
        expect_same_bits("to_storage", dense, in, rows * from);
        device->to_storage(device, dense, dense, rows * from);
        expect_same_bits("to_storage in place", dense, in, rows * from);
        memset(dense, 0, (size_t)(rows * from) * sizeof *dense);
        device->to_float(device, dense, in, rows * from);
        expect_same_bits("to_float", dense, in, rows * from);
        free(in), free(out), free(expected), free(dense);
    }
    char odd[] = "0123456789abcdef", to[9] = "________";
    device->copy_strided(device, to, 3, odd + 1, 5, 3, 2); // any bytes, any alignment
    assert_memory_equal(to, "12_67_bc", 8);
}

static void strided_copies(void **state) {
    (void)state;
    for_each_device(run_strided, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(classifier),
        cmocka_unit_test(large_vocabulary),
        cmocka_unit_test(a_loss_that_is_not_finite_shows),
        cmocka_unit_test(rows_that_do_not_count),
        cmocka_unit_test(adamw),
        cmocka_unit_test(sums),
        cmocka_unit_test(sums_of_extreme_values),
        cmocka_unit_test(memory),
        cmocka_unit_test(no_memory_is_an_error),
        cmocka_unit_test(strided_copies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
