// The MLP over positions (mixer/mlp.c) against its definition in double precision, y = W^O gelu(W x + b) with W lower
// triangular, on any number of ranks, of as many positions as the sequence has and of more, on the CPU and on the
// emulated device; generation; and what it refuses. Here W is not zero above its diagonal: nothing there is read or
// written.
#include "test/mixer_problem.h"
#include "test/program.h"

#include "test/cuda_device.h"

enum { W, B, OUT }; // the mixer's tensors

typedef struct Reference { // all (B, T, C) in double precision, and gradients of the tensors
    int64_t T, positions, sequences, C;
    double *x, *d_out, *weight, *bias, *out_weight;
    double *pre, *out, *d_pre, *d_x, *d_weight, *d_bias, *d_out_weight;
} Reference;

static double gelu(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
static double gelu_slope(double x) {
    double t = tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

static double *doubles(const float *from, int64_t count) { // NULL: zeros
    double *to = allocate(count, sizeof *to);
    for (int64_t i = 0; from != NULL && i < count; i++) to[i] = from[i];
    return to;
}

static Reference reference_of(const MixerProblem *p, const MixerAnswer *a) {
    int64_t n = p->B * p->T * p->C, positions = a->config.max_positions;
    return (Reference){.T = p->T,
                       .positions = positions,
                       .sequences = p->B,
                       .C = p->C,
                       .x = doubles(a->x, n),
                       .d_out = doubles(a->d_out, n),
                       .weight = doubles(mixer_weight(a, W), positions * positions),
                       .bias = doubles(mixer_weight(a, B), positions),
                       .out_weight = doubles(mixer_weight(a, OUT), p->C * p->C),
                       .pre = doubles(NULL, n),
                       .out = doubles(NULL, n),
                       .d_pre = doubles(NULL, n),
                       .d_x = doubles(NULL, n),
                       .d_weight = doubles(NULL, positions * positions),
                       .d_bias = doubles(NULL, positions),
                       .d_out_weight = doubles(NULL, p->C * p->C)};
}

static void reference_free(Reference *r) {
    double *all[] = {r->x,   r->d_out, r->weight, r->bias,     r->out_weight, r->pre,
                     r->out, r->d_pre, r->d_x,    r->d_weight, r->d_bias,     r->d_out_weight};
    for (int i = 0; i < 12; i++) free(all[i]);
}

static void forward(Reference *r) {
    memset(r->out, 0, (size_t)(r->sequences * r->T * r->C) * sizeof(double));
    for (int64_t b = 0; b < r->sequences; b++)
        for (int64_t i = 0; i < r->T; i++) {
            double *pre = r->pre + (b * r->T + i) * r->C;
            for (int64_t c = 0; c < r->C; c++) pre[c] = r->bias[i];
            for (int64_t j = 0; j <= i; j++)
                for (int64_t c = 0; c < r->C; c++)
                    pre[c] += r->weight[i * r->positions + j] * r->x[(b * r->T + j) * r->C + c];
            for (int64_t o = 0; o < r->C; o++)
                for (int64_t c = 0; c < r->C; c++)
                    r->out[(b * r->T + i) * r->C + o] += r->out_weight[o * r->C + c] * gelu(pre[c]);
        }
}

static void backward(Reference *r) {
    for (int64_t row = 0; row < r->sequences * r->T; row++) {
        const double *d_out = r->d_out + row * r->C, *pre = r->pre + row * r->C;
        for (int64_t c = 0; c < r->C; c++) {
            double d_activated = 0;
            for (int64_t o = 0; o < r->C; o++) {
                d_activated += r->out_weight[o * r->C + c] * d_out[o];
                r->d_out_weight[o * r->C + c] += d_out[o] * gelu(pre[c]);
            }
            r->d_pre[row * r->C + c] = d_activated * gelu_slope(pre[c]);
            r->d_bias[row % r->T] += r->d_pre[row * r->C + c];
        }
    }
    for (int64_t b = 0; b < r->sequences; b++)
        for (int64_t i = 0; i < r->T; i++)
            for (int64_t j = 0; j <= i; j++) {
                const double *d_pre = r->d_pre + (b * r->T + i) * r->C, *x = r->x + (b * r->T + j) * r->C;
                double *d_x = r->d_x + (b * r->T + j) * r->C, sum = 0;
                for (int64_t c = 0; c < r->C; c++) {
                    d_x[c] += r->weight[i * r->positions + j] * d_pre[c];
                    sum += d_pre[c] * x[c];
                }
                r->d_weight[i * r->positions + j] += sum;
            }
}

// ---- the reference itself, by finite differences --------------------------------------------------------------------

static double loss(Reference *r) {
    double sum = 0;
    forward(r);
    for (int64_t i = 0; i < r->sequences * r->T * r->C; i++) sum += r->d_out[i] * r->out[i];
    return sum;
}

// d_values along a direction of +1 and -1 against the loss's slope along it, of third order of 1e-4: 1e-8 or so.
static void check_slope(Reference *r, double *values, const double *d_values, int64_t count) {
    const double step = 1e-4;
    double slope = 0, sides[2], size = 0;
    for (int side = 0; side < 2; side++) {
        for (int64_t i = 0; i < count; i++) values[i] += (i * 7 % 5 < 2 ? 1 : -1) * (side == 0 ? step : -2 * step);
        sides[side] = loss(r);
    }
    for (int64_t i = 0; i < count; i++) {
        values[i] += (i * 7 % 5 < 2 ? step : -step);
        slope += (i * 7 % 5 < 2 ? 1 : -1) * d_values[i];
        size += fabs(d_values[i]);
    }
    if (!(fabs((sides[0] - sides[1]) / (2 * step) - slope) <= 1e-6 * size))
        fail_msg("a slope of %.9g, not %.9g", slope, (sides[0] - sides[1]) / (2 * step));
}

static MixerProblem problem_of(DeviceKind device, int64_t T, int64_t positions, int64_t C) {
    return (MixerProblem){.mixer = "mlp",
                          .device = device,
                          .T = T,
                          .B = 2,
                          .C = C,
                          .heads = C > 256 ? 2 : 1,
                          .max_positions = positions,
                          .weight_std = 1 / sqrt((double)(T < 64 ? T : 64)),
                          .seed = 5};
}

static void reference_is_its_derivative(void **state) {
    (void)state;
    MixerProblem p = problem_of(DEVICE_CPU, 9, 12, 4);
    MixerAnswer a = mixer_run(&p, 1);
    Reference r = reference_of(&p, &a);
    forward(&r);
    backward(&r);
    check_slope(&r, r.x, r.d_x, p.B * p.T * p.C);
    check_slope(&r, r.weight, r.d_weight, 12 * 12);
    check_slope(&r, r.bias, r.d_bias, 12);
    check_slope(&r, r.out_weight, r.d_out_weight, p.C * p.C);
    reference_free(&r);
    mixer_free(&a);
}

// ---- the mixer ------------------------------------------------------------------------------------------------------

static void fill_bias(const Parameter *parameter, float *values) {
    for (int64_t i = 0; i < parameter->size; i++) values[i] = 0.5f * sinf(1.0f + 0.7f * (float)i);
}

static void check(MixerProblem *p, int ranks, double allowed) {
    p->fill = fill_bias;
    MixerAnswer a = mixer_run(p, ranks);
    Reference r = reference_of(p, &a);
    int64_t n = p->B * p->T * p->C, positions = r.positions;
    forward(&r);
    backward(&r);
    mixer_expect(p, ranks, "out", mixer_error(a.out, r.out, n), allowed);
    mixer_expect(p, ranks, "d_x", mixer_error(a.d_x, r.d_x, n), allowed);
    mixer_expect(p, ranks, "d_weight", mixer_error(mixer_gradient(&a, W), r.d_weight, positions * positions), allowed);
    mixer_expect(p, ranks, "d_bias", mixer_error(mixer_gradient(&a, B), r.d_bias, positions), allowed);
    mixer_expect(p, ranks, "d_out_weight", mixer_error(mixer_gradient(&a, OUT), r.d_out_weight, p->C * p->C), allowed);
    for (int64_t i = 0; i < positions; i++)
        for (int64_t j = i + 1; j < positions; j++) assert_true(mixer_gradient(&a, W)[i * positions + j] == 0);
    assert_int_equal(a.forward_bytes, a.stated_forward);
    assert_int_equal(a.backward_bytes, a.stated_backward);
    reference_free(&r);
    mixer_free(&a);
}

// fp32: sums of T terms, of both signs, in parts: their errors are some u sqrt(T) of the terms' norm at most, u =
// 2^-24, and T <= 1000.
static const double ALLOWED_FP32 = 40 * 0x1p-24;
// bf16: five tensors are rounded on the way to a gradient, with an error of u / sqrt(3) in the mean each, u = 2^-9; the
// slope of gelu passes on that of its argument.
static const double ALLOWED_BF16 = 4 * 0x1p-9;

static void cpu_is_its_definition(void **state) {
    (void)state;
    const int64_t lengths[] = {16, 37, 129, 1000};
    const int ranks[] = {1, 2, 3, 4, 8};
    for (int t = 0; t < 4; t++)
        for (int r = 0; r < 5; r++) {
            MixerProblem p = problem_of(DEVICE_CPU, lengths[t], lengths[t] + (t + r) % 3, 6);
            check(&p, ranks[r], ALLOWED_FP32);
        }
    MixerProblem wide = problem_of(DEVICE_CPU, 150, 160, 300); // more columns than a task has
    check(&wide, 2, ALLOWED_FP32);
}

static void emulated_is_its_definition(void **state) {
    (void)state;
    if (cuda_devices_here() == 0) skip();
    const struct {
        int64_t T, positions, C;
        int ranks;
    } cases[] = {{16, 16, 8, 1}, {16, 24, 8, 8}, {37, 40, 12, 3}, {129, 136, 8, 2}, {129, 131, 8, 4}, {300, 304, 8, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        MixerProblem p = problem_of(cuda_device_kind(), cases[i].T, cases[i].positions, cases[i].C);
        check(&p, cases[i].ranks, ALLOWED_BF16);
    }
}

static void same_bits_in_two_runs(void **state) {
    (void)state;
    MixerProblem p = problem_of(DEVICE_CPU, 300, 300, 16);
    mixer_expect_same_bits(&p, 4);
}

static void generates_what_it_was_trained_for(void **state) {
    (void)state;
    const int64_t pieces[] = {1, 40};
    const DeviceKind kinds[] = {DEVICE_CPU, cuda_device_kind()};
    for (int i = 0; i < 4; i++) {
        if (i >= 2 && cuda_devices_here() == 0) skip();
        MixerProblem p = problem_of(kinds[i / 2], 100, 104, 16);
        p.B = 1;
        p.fill = fill_bias;
        MixerAnswer a = mixer_run(&p, 1);
        float *out = mixer_generate(&p, pieces[i % 2]);
        double *expected = doubles(a.out, p.T * p.C);
        mixer_expect(&p, 1, "generated", mixer_error(out, expected, p.T * p.C), i < 2 ? ALLOWED_FP32 : ALLOWED_BF16);
        free(expected);
        free(out);
        mixer_free(&a);
    }
}

// ---- parameters -----------------------------------------------------------------------------------------------------

// Of new models: zeros above the diagonal, and below it row i has a variance of 1 / (i + 1). It counts no operations of
// its own for each token, as matrices of channels do.
static void new_weights_are_a_triangle(void **state) {
    (void)state;
    enum { T = 200 };
    ModelConfig config = {.architecture = ARCH_LLAMA,
                          .vocab_size = 64,
                          .layers = 1,
                          .heads = 2,
                          .kv_heads = 2,
                          .head_dim = 4,
                          .dim = 8,
                          .ffn_dim = 8,
                          .max_positions = T,
                          .norm_epsilon = 1e-5,
                          .init_std = 0.02,
                          .tied_embeddings = true,
                          .rope_theta = 10000,
                          .bos_token = -1,
                          .eos_token = -1};
    ParameterTable table;
    Error err;
    if (!mixers_read(&config, "mlp", "mixer", &err) || !parameters_list(&table, &config, 64, &err))
        fail_msg("%s", err.message);
    assert_int_equal(table.in_matrices, 64 * 8 + 8 * 8 + 3 * 8 * 8);
    float *values = allocate(table.total, sizeof *values);
    parameters_initialize(&table, 1, 0, table.total, values);
    const float *weight = values + table.layer[0].tokens[W];
    double sum = 0;
    for (int64_t i = 0; i < T; i++)
        for (int64_t j = 0; j < T; j++) {
            double normal = weight[i * T + j] * sqrt((double)(i + 1));
            if (j > i) assert_true(weight[i * T + j] == 0);
            else sum += normal * normal;
        }
    assert_true(fabs(sum / (T * (T + 1) / 2.0) - 1) <
                5 * sqrt(2 / (T * (T + 1) / 2.0))); // 5 of its standard deviations
    free(values);
    parameters_free(&table);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_is_its_derivative),       cmocka_unit_test(cpu_is_its_definition),
        cmocka_unit_test(emulated_is_its_definition),        cmocka_unit_test(same_bits_in_two_runs),
        cmocka_unit_test(generates_what_it_was_trained_for), cmocka_unit_test(new_weights_are_a_triangle),
    };
    return cmocka_run_group_tests_name("token_mlp", tests, NULL, NULL);
}
