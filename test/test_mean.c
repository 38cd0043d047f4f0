// The running mean (mixer/mean.c) against its definition in double precision: y_i = W^O mean of x_j over first(i) <= j
// <= i, on any number of ranks, with documents, on the CPU and on the emulated device; its error over a million rows;
// and generation.
#include "test/mixer_problem.h"

#include "mixer/kernels.h"
#include "mixer/scan.h"
#include "test/cuda_device.h"

typedef struct Expected { // (B, T, C), and the gradient of W^O
    double *mean, *out, *d_x, *d_weight;
} Expected;

static int64_t first_of(const MixerProblem *p, const MixerAnswer *a, int64_t b, int64_t i) {
    return a->first == NULL ? 0 : a->first[b * p->T + i];
}

// to += P from, or P^T from.
static void mix(const MixerProblem *p, const MixerAnswer *a, double *to, const double *from, bool transposed) {
    for (int64_t b = 0; b < p->B; b++)
        for (int64_t i = 0; i < p->T; i++) {
            int64_t first = first_of(p, a, b, i);
            for (int64_t j = first; j <= i; j++) {
                const double *x = from + (b * p->T + (transposed ? i : j)) * p->C;
                double *y = to + (b * p->T + (transposed ? j : i)) * p->C;
                for (int64_t c = 0; c < p->C; c++) y[c] += x[c] / (double)(i - first + 1);
            }
        }
}

static Expected expect(const MixerProblem *p, const MixerAnswer *a) {
    int64_t n = p->B * p->T, C = p->C;
    const float *W = mixer_weight(a, 0);
    double *x = allocate(6 * n * C + C * C, sizeof *x), *d_mean = x + n * C;
    Expected e = {x + 2 * n * C, x + 3 * n * C, x + 4 * n * C, x + 5 * n * C};
    for (int64_t i = 0; i < n * C; i++) x[i] = a->x[i];
    mix(p, a, e.mean, x, false);
    for (int64_t i = 0; i < n; i++)
        for (int64_t o = 0; o < C; o++)
            for (int64_t c = 0; c < C; c++) {
                e.out[i * C + o] += W[o * C + c] * e.mean[i * C + c];
                d_mean[i * C + c] += W[o * C + c] * (double)a->d_out[i * C + o];
                e.d_weight[o * C + c] += (double)a->d_out[i * C + o] * e.mean[i * C + c];
            }
    mix(p, a, e.d_x, d_mean, true);
    e.mean = x; // what is to be freed
    return e;
}

// sum d_out . out, as the definition has it.
static double loss_of(const MixerProblem *p, const MixerAnswer *a) {
    Expected e = expect(p, a);
    double sum = 0;
    for (int64_t i = 0; i < p->B * p->T * p->C; i++) sum += (double)a->d_out[i] * e.out[i];
    free(e.mean);
    return sum;
}

// It is linear in x and in W^O, so a difference over any step is the slope, but for roundings to double precision:
// 1e-13 of sums of some 10^2 terms.
static void expect_slopes(const MixerProblem *p, const MixerAnswer *a, float *values, const double *slopes,
                          int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        float was = values[i], side[2] = {was + 1, was - 1};
        double loss[2];
        for (int k = 0; k < 2; k++) {
            values[i] = side[k];
            loss[k] = loss_of(p, a);
        }
        values[i] = was;
        double slope = (loss[0] - loss[1]) / ((double)side[0] - side[1]);
        if (!(fabs(slope - slopes[i]) <= 1e-11 * (1 + fabs(slope))))
            fail_msg("element %lld: a slope of %.15g, by differences %.15g", (long long)i, slopes[i], slope);
    }
}

static void definition_has_its_own_derivative(void **state) {
    (void)state;
    for (int64_t document = 0; document <= 5; document += 5) {
        MixerProblem p = {.mixer = "mean",
                          .device = DEVICE_CPU,
                          .T = 12,
                          .B = 2,
                          .C = 6,
                          .heads = 1,
                          .document = document,
                          .seed = 3};
        MixerAnswer a = mixer_run(&p, 1);
        Expected e = expect(&p, &a);
        expect_slopes(&p, &a, a.x, e.d_x, p.B * p.T * p.C);
        expect_slopes(&p, &a, a.weights + a.table.layer[0].tokens[0], e.d_weight, p.C * p.C);
        free(e.mean);
        mixer_free(&a);
    }
}

// One over the other: a rank's bytes are those that it says, and what it computes is the definition up to `allowed`.
static void check(const MixerProblem *p, int ranks, double allowed) {
    MixerAnswer a = mixer_run(p, ranks);
    Expected e = expect(p, &a);
    int64_t n = p->B * p->T * p->C;
    mixer_expect(p, ranks, "out", mixer_error(a.out, e.out, n), allowed);
    mixer_expect(p, ranks, "d_x", mixer_error(a.d_x, e.d_x, n), allowed);
    mixer_expect(p, ranks, "d_weight", mixer_error(mixer_gradient(&a, 0), e.d_weight, p->C * p->C), allowed);
    assert_int_equal(a.forward_bytes, a.stated_forward);
    assert_int_equal(a.backward_bytes, a.stated_backward);
    assert_int_equal(a.forward_bytes, (ranks - 1) * 2 * p->B * p->C * (int64_t)sizeof(float));
    free(e.mean);
    mixer_free(&a);
}

static MixerProblem problem_of(DeviceKind device, int64_t T, int64_t C, int64_t document) {
    return (MixerProblem){
        .mixer = "mean", .device = device, .T = T, .B = 2, .C = C, .heads = 2, .document = document, .seed = 11};
}

// fp32: a sum of terms of both signs is off by some u = 2^-24 of its terms' norm for each of its last few roundings;
// the products with W^O, of C terms, about as much again. Single values may be off by 8 times as much: those of a
// document's first rows are several times the others, in which more terms cancel.
static const double ALLOWED_FP32 = 20 * 0x1p-24;
// bf16: the mean (or its gradient) and what leaves are rounded to u = 2^-9 each, which are errors of u / sqrt(3) at
// most in the mean. The first rows of a document have gradients of ten times the others' size, and errors so.
static const double ALLOWED_BF16 = 4 * 0x1p-9;

static void cpu_is_its_definition(void **state) {
    (void)state;
    const int64_t lengths[] = {16, 37, 129, 1000}, documents[] = {0, 1, 7, 50, 2000};
    const int ranks[] = {1, 2, 3, 4, 8};
    for (int t = 0; t < 4; t++)
        for (int d = 0; d < 5; d++)
            for (int r = 0; r < 5; r++) {
                MixerProblem p = problem_of(DEVICE_CPU, lengths[t], 12, documents[d]);
                check(&p, ranks[r], ALLOWED_FP32);
            }
    MixerProblem wide = problem_of(DEVICE_CPU, 70, 300, 33);
    check(&wide, 3, ALLOWED_FP32);
}

static void emulated_is_its_definition(void **state) {
    (void)state;
    if (cuda_devices_here() == 0) skip();
    const struct {
        int64_t T, C, document;
        int ranks;
    } cases[] = {{16, 16, 0, 1}, {16, 16, 0, 8}, {37, 12, 0, 3}, {129, 16, 0, 2}, {129, 16, 50, 1}, {129, 12, 7, 4}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        MixerProblem p = problem_of(cuda_device_kind(), cases[i].T, cases[i].C, cases[i].document);
        check(&p, cases[i].ranks, ALLOWED_BF16);
    }
}

static void same_bits_in_two_runs(void **state) {
    (void)state;
    MixerProblem p = problem_of(DEVICE_CPU, 1000, 12, 70);
    mixer_expect_same_bits(&p, 4);
}

// ---- a million rows -------------------------------------------------------------------------------------------------

enum { LONG = 1 << 20, CHUNKS = 16 };

// out = the scan of x (LONG), as `chunks` ranks' chunks one after the other.
static void scan_in_chunks(Device *d, float *out, const float *x, int chunks, bool backward) {
    static float blocks[LONG / SCAN_BLOCK], state[CHUNKS];
    int64_t length = LONG / chunks;
    for (int pass = 0; pass < 2; pass++)
        for (int k = 0; k < chunks; k++) {
            int64_t edge[CHUNKS], start = k * length;
            int place[CHUNKS], count = 0;
            float *of_chunk = blocks + start / SCAN_BLOCK;
            double before;
            Scan s = {1, 1, LONG, start, length, start, NULL, LONG, backward};
            if (pass == 0) d->mixers->scan->sums(d, &s, of_chunk, &state[k], x);
            for (int i = backward ? chunks - 1 : 0; i != k; i += backward ? -1 : 1) {
                edge[count] = (i + !backward) * length;
                place[count++] = i;
            }
            d->mixers->scan->gather(d, &s, &before, state, 1, place, edge, count);
            if (pass == 1) d->mixers->scan->scan(d, &s, out, x, of_chunk, &before);
        }
}

// Sums of positive numbers, where roundings of growing sums do most harm: each is off by at most (SCAN_BLOCK + 5) u of
// itself, whatever the length and however it is cut (mixer/scan.h); a plain sum in fp32 by more.
static void long_sums_keep_their_accuracy(void **state) {
    (void)state;
    Device device;
    cpu_device(&device, 2);
    float *x = allocate(2 * LONG, sizeof *x), *out = x + LONG;
    for (int64_t i = 0; i < LONG; i++) x[i] = (float)random_uniform(3, 1, (uint64_t)i);
    for (int run = 0; run < 4; run++) {
        bool backward = run % 2;
        double sum = 0, worst = 0, worst_plain = 0;
        float plain = 0;
        scan_in_chunks(&device, out, x, run < 2 ? 1 : CHUNKS, backward);
        for (int64_t k = 0; k < LONG; k++) {
            int64_t i = backward ? LONG - 1 - k : k;
            sum += backward ? x[i] / (double)(i + 1) : x[i];
            plain += backward ? x[i] / (float)(i + 1) : x[i];
            double expected = backward ? sum : sum / (double)(i + 1);
            worst = fmax(worst, fabs(out[i] - expected) / expected);
            worst_plain = fmax(worst_plain, fabs(plain / sum - 1));
        }
        print_message("# %d rows%s: off by %.1e, a plain sum by %.1e\n", LONG, backward ? ", backward" : "", worst,
                      worst_plain);
        assert_true(worst <= (SCAN_BLOCK + 5) * 0x1p-24 && worst < worst_plain);
    }
    free(x);
    device.close(&device);
}

// ---- generation -----------------------------------------------------------------------------------------------------

static void generates_what_it_was_trained_for(void **state) {
    (void)state;
    const int64_t documents[] = {0, 23}, pieces[] = {1, 40};
    const DeviceKind kinds[] = {DEVICE_CPU, cuda_device_kind()};
    for (int i = 0; i < 8; i++) {
        if (i >= 4 && cuda_devices_here() == 0) skip();
        MixerProblem p = problem_of(kinds[i / 4], 100, 16, documents[i / 2 % 2]);
        p.B = 1;
        MixerAnswer a = mixer_run(&p, 1);
        float *out = mixer_generate(&p, pieces[i % 2]);
        double *expected = allocate(p.T * p.C, sizeof *expected);
        for (int64_t k = 0; k < p.T * p.C; k++) expected[k] = a.out[k];
        mixer_expect(&p, 1, "generated", mixer_error(out, expected, p.T * p.C), i < 4 ? ALLOWED_FP32 : ALLOWED_BF16);
        free(expected);
        free(out);
        mixer_free(&a);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(definition_has_its_own_derivative), cmocka_unit_test(cpu_is_its_definition),
        cmocka_unit_test(emulated_is_its_definition),        cmocka_unit_test(same_bits_in_two_runs),
        cmocka_unit_test(long_sums_keep_their_accuracy),     cmocka_unit_test(generates_what_it_was_trained_for),
    };
    return cmocka_run_group_tests_name("mean", tests, NULL, NULL);
}
