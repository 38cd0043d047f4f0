// Bodies of test/convolution_reference.h.
#include "test/convolution_reference.h"

enum { FEATURES = 32, WIDTH = 64 };
static const double TURN = 6.283185307179586476925;

const char *const ref_names[REF_TENSORS] = {"d W_in", "d W_out", "d W1", "d W2", "d bias", "d W3", "d skip"};

ConvolutionReference reference_of(const MixerProblem *p, const MixerAnswer *a) {
    ConvolutionReference r = {.T = p->T, .B = p->B, .C = p->C, .positions = a->config.max_positions, .wide = 1};
    int64_t C = r.C, n = r.B * r.T * C;
    r.cosine = strcmp(p->mixer, "fourier") == 0;
    if (strcmp(p->mixer, "conv:gated") == 0) r.wide = 3;
    r.tensors = r.cosine ? 2 : REF_TENSORS;
    const int64_t size[REF_TENSORS] = {r.wide * C * C, C * C, WIDTH * FEATURES, WIDTH * WIDTH, WIDTH, C * WIDTH, C};
    for (int i = 0; i < r.tensors; i++) {
        r.size[i] = size[i];
        r.weight[i] = allocate(2 * size[i], sizeof(double));
        r.gradient[i] = r.weight[i] + size[i];
        for (int64_t k = 0; k < size[i]; k++) r.weight[i][k] = (double)mixer_weight(a, i)[k];
    }
    double **rows[] = {&r.x, &r.d_out, &r.out, &r.d_x, &r.mixed};
    for (int i = 0; i < 5; i++) *rows[i] = allocate(n, sizeof(double));
    r.projected = allocate(r.wide * n, sizeof(double));
    r.h = allocate(2 * r.T * C, sizeof(double));
    r.d_h = r.h + r.T * C;
    for (int64_t i = 0; i < n; i++) r.x[i] = (double)a->x[i], r.d_out[i] = (double)a->d_out[i];
    return r;
}

void reference_free(ConvolutionReference *r) {
    for (int i = 0; i < r->tensors; i++) free(r->weight[i]);
    double *all[] = {r->x, r->d_out, r->out, r->d_x, r->mixed, r->projected, r->h};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

// ---- the filter -----------------------------------------------------------------------------------------------------

// What the network has at one position.
typedef struct Network {
    double f[FEATURES], a_inside[WIDTH], a[WIDTH], b_inside[WIDTH], b[WIDTH];
} Network;

static double dot(const double *x, const double *y, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += x[i] * y[i];
    return sum;
}

static Network network_at(const ConvolutionReference *r, int64_t t) {
    Network net;
    net.f[0] = 1;
    net.f[1] = (double)t / (double)r->positions;
    for (int k = 0; k < 15; k++) {
        double angle = TURN * (double)t / pow(2, 2 + k);
        net.f[2 + 2 * k] = sin(angle);
        net.f[3 + 2 * k] = cos(angle);
    }
    for (int i = 0; i < WIDTH; i++) {
        net.a_inside[i] = dot(r->weight[REF_W1] + i * FEATURES, net.f, FEATURES);
        net.a[i] = sin(10 * net.a_inside[i]);
    }
    for (int i = 0; i < WIDTH; i++) {
        net.b_inside[i] = dot(r->weight[REF_W2] + i * WIDTH, net.a, WIDTH) + r->weight[REF_BIAS][i];
        net.b[i] = sin(10 * net.b_inside[i]);
    }
    return net;
}

static double window_at(const ConvolutionReference *r, int64_t c, int64_t t) {
    double T = (double)r->positions, length = 32 * pow(1.5 * T / 32, (double)c / (double)(r->C - 1));
    double rate = log(100) / length;
    return sqrt(2 * rate) * exp(-rate * (double)t) + 0.05 / sqrt(T);
}

static void make_filter(ConvolutionReference *r) {
    for (int64_t t = 0; t < r->T; t++) {
        Network net = {{0}, {0}, {0}, {0}, {0}};
        if (!r->cosine) net = network_at(r, t);
        for (int64_t c = 0; c < r->C; c++) {
            double *h = &r->h[t * r->C + c];
            double cycles = floor(0.500001 + pow((double)r->positions / 2, (double)c / (double)(r->C - 1)));
            if (r->cosine) *h = sqrt(2 / (double)r->positions) * cos(TURN * cycles * (double)t / (double)r->positions);
            else *h = dot(r->weight[REF_W3] + c * WIDTH, net.b, WIDTH) * window_at(r, c, t);
            if (!r->cosine && t == 0) *h += r->weight[REF_SKIP][c];
        }
    }
}

static void filter_backward(ConvolutionReference *r) {
    for (int64_t t = 0; t < r->T; t++) {
        Network net = network_at(r, t);
        double d_a[WIDTH] = {0}, d_b[WIDTH] = {0};
        for (int64_t c = 0; c < r->C; c++) {
            double d = r->d_h[t * r->C + c] * window_at(r, c, t);
            if (t == 0) r->gradient[REF_SKIP][c] += r->d_h[c];
            for (int i = 0; i < WIDTH; i++) {
                r->gradient[REF_W3][c * WIDTH + i] += d * net.b[i];
                d_b[i] += d * r->weight[REF_W3][c * WIDTH + i];
            }
        }
        for (int i = 0; i < WIDTH; i++) {
            double d = d_b[i] * 10 * cos(10 * net.b_inside[i]);
            r->gradient[REF_BIAS][i] += d;
            for (int j = 0; j < WIDTH; j++) {
                r->gradient[REF_W2][i * WIDTH + j] += d * net.a[j];
                d_a[j] += d * r->weight[REF_W2][i * WIDTH + j];
            }
        }
        for (int i = 0; i < WIDTH; i++) {
            double d = d_a[i] * 10 * cos(10 * net.a_inside[i]);
            for (int j = 0; j < FEATURES; j++) r->gradient[REF_W1][i * FEATURES + j] += d * net.f[j];
        }
    }
}

// ---- the mixer ------------------------------------------------------------------------------------------------------

// u of a row: v, or x2 . v.
static double u_of(const ConvolutionReference *r, int64_t row, int64_t c) {
    const double *p = r->projected + row * r->wide * r->C;
    return r->wide == 1 ? p[c] : p[c] * p[2 * r->C + c];
}
static double gate_of(const ConvolutionReference *r, int64_t row, int64_t c) {
    return r->wide == 1 ? 1 : r->projected[row * 3 * r->C + r->C + c];
}

void reference_forward(ConvolutionReference *r) {
    int64_t C = r->C, T = r->T;
    make_filter(r);
    for (int64_t row = 0; row < r->B * T; row++)
        for (int64_t i = 0; i < r->wide * C; i++)
            r->projected[row * r->wide * C + i] = dot(r->weight[REF_IN] + i * C, r->x + row * C, C);
    for (int64_t b = 0; b < r->B; b++)
        for (int64_t i = 0; i < T; i++) {
            double *sum = r->mixed + (b * T + i) * C, gated[256];
            for (int64_t c = 0; c < C; c++) sum[c] = 0;
            for (int64_t j = 0; j <= i; j++)
                for (int64_t c = 0; c < C; c++) sum[c] += r->h[(i - j) * C + c] * u_of(r, b * T + j, c);
            for (int64_t c = 0; c < C; c++) gated[c] = gate_of(r, b * T + i, c) * sum[c];
            for (int64_t c = 0; c < C; c++) r->out[(b * T + i) * C + c] = dot(r->weight[REF_OUT] + c * C, gated, C);
        }
}

double reference_loss(const ConvolutionReference *r) { return dot(r->out, r->d_out, r->B * r->T * r->C); }

// Row i's d_out to W_out, the gate, and d_mixed.
static void output_backward(ConvolutionReference *r, int64_t row, double *d_mixed, double *d_projected) {
    int64_t C = r->C;
    for (int64_t c = 0; c < C; c++) {
        double d = 0, gate = gate_of(r, row, c), mixed = r->mixed[row * C + c];
        for (int64_t i = 0; i < C; i++) {
            d += r->d_out[row * C + i] * r->weight[REF_OUT][i * C + c];
            r->gradient[REF_OUT][i * C + c] += r->d_out[row * C + i] * gate * mixed;
        }
        d_mixed[row * C + c] = d * gate;
        if (r->wide > 1) d_projected[row * 3 * C + C + c] = d * mixed;
    }
}

static void input_backward(ConvolutionReference *r, int64_t row, const double *d_u, double *d_projected) {
    int64_t C = r->C, wide = r->wide * C;
    const double *p = r->projected + row * wide;
    double *d = d_projected + row * wide;
    for (int64_t c = 0; c < C; c++) {
        d[c] = r->wide == 1 ? d_u[row * C + c] : d_u[row * C + c] * p[2 * C + c];
        if (r->wide > 1) d[2 * C + c] = d_u[row * C + c] * p[c];
        r->d_x[row * C + c] = 0;
    }
    for (int64_t i = 0; i < wide; i++)
        for (int64_t c = 0; c < C; c++) {
            r->d_x[row * C + c] += d[i] * r->weight[REF_IN][i * C + c];
            r->gradient[REF_IN][i * C + c] += d[i] * r->x[row * C + c];
        }
}

void reference_backward(ConvolutionReference *r) {
    int64_t C = r->C, T = r->T, rows = r->B * T;
    double *d_mixed = allocate(rows * C, sizeof(double)), *d_u = allocate(rows * C, sizeof(double));
    double *d_projected = allocate(rows * r->wide * C, sizeof(double));
    for (int i = 0; i < r->tensors; i++) memset(r->gradient[i], 0, (size_t)r->size[i] * sizeof(double));
    memset(r->d_h, 0, (size_t)(T * C) * sizeof(double));
    for (int64_t row = 0; row < rows; row++) output_backward(r, row, d_mixed, d_projected);
    for (int64_t b = 0; b < r->B; b++)
        for (int64_t i = 0; i < T; i++)
            for (int64_t j = 0; j <= i; j++)
                for (int64_t c = 0; c < C; c++) {
                    double d = d_mixed[(b * T + i) * C + c];
                    d_u[(b * T + j) * C + c] += r->h[(i - j) * C + c] * d;
                    r->d_h[(i - j) * C + c] += u_of(r, b * T + j, c) * d;
                }
    for (int64_t row = 0; row < rows; row++) input_backward(r, row, d_u, d_projected);
    if (!r->cosine) filter_backward(r);
    free(d_mixed), free(d_u), free(d_projected);
}

void reference_expect(const ConvolutionReference *r, const MixerProblem *p, int ranks, const MixerAnswer *a,
                      const Allowed *allowed) {
    int64_t n = r->B * r->T * r->C;
    mixer_expect(p, ranks, "out", mixer_error(a->out, r->out, n), allowed->out);
    mixer_expect(p, ranks, "d_x", mixer_error(a->d_x, r->d_x, n), allowed->d_x);
    for (int i = 0; i < r->tensors; i++)
        mixer_expect(p, ranks, ref_names[i], mixer_error(mixer_gradient(a, i), r->gradient[i], r->size[i]),
                     allowed->gradient[i]);
}
