// Bodies of test/delta_reference.h.
#include "test/delta_reference.h"

#include "mixer/delta.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RAW, RATES, DECAY_LOG, DECAY_BIAS, SCALE, OUT, TAPS }; // the mixer's tensors

// Sizes, and one sequence's values. E = (H + 2 KV) D is what the convolution is for, R = E + H D.
typedef struct Sequence {
    const DeltaReference *r;
    int64_t b, T, C, H, KV, D, E, R;
    double *raw, *z, *s;  // (T, R); (T, E) what SiLU is given, and gives
    double *q, *k;        // (T, H, D), (T, KV, D) of length 1, q divided by sqrt(D)
    double *beta, *decay; // (T, H)
    double *rate;         // (T, H) what softplus is given
    double *state;        // (T + 1, H, D, D) S before token t
    double *o, *y;        // (T, H, D)
} Sequence;

static double *doubles(int64_t count) { return allocate(count + 1, sizeof(double)); }
static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double silu(double x) { return x * sigmoid(x); }
static double silu_slope(double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }

static const double *tensor(const Sequence *q, int index) {
    int64_t offset = q->r->table->layer[0].tokens[index];
    return offset < 0 ? NULL : q->r->weights + offset;
}
static double *d_tensor(const Sequence *q, int index) { return q->r->gradients + q->r->table->layer[0].tokens[index]; }
static int64_t first_of(const Sequence *q, int64_t t) { return q->r->first != NULL ? q->r->first[q->b * q->T + t] : 0; }

static Sequence begin(const DeltaReference *r, int64_t b) {
    Sequence q = {.r = r,
                  .b = b,
                  .T = r->T,
                  .C = r->config->dim,
                  .H = r->config->heads,
                  .KV = r->config->kv_heads,
                  .D = r->config->head_dim};
    q.E = (q.H + 2 * q.KV) * q.D, q.R = q.E + q.H * q.D;
    q.raw = doubles(q.T * q.R), q.z = doubles(q.T * q.E), q.s = doubles(q.T * q.E);
    q.q = doubles(q.T * q.H * q.D), q.k = doubles(q.T * q.KV * q.D);
    q.beta = doubles(q.T * q.H), q.decay = doubles(q.T * q.H), q.rate = doubles(q.T * q.H);
    q.state = doubles((q.T + 1) * q.H * q.D * q.D), q.o = doubles(q.T * q.H * q.D), q.y = doubles(q.T * q.H * q.D);
    return q;
}

static void end(Sequence *q) {
    double *all[] = {q->raw, q->z, q->s, q->q, q->k, q->beta, q->decay, q->rate, q->state, q->o, q->y};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void project(double *out, const double *x, const double *w, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < columns; c++) out[i] += w[i * columns + c] * x[c];
}
static void project_backward(double *d_x, double *d_w, const double *d_out, const double *x, const double *w,
                             int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < columns; c++) {
            d_x[c] += w[i * columns + c] * d_out[i];
            d_w[i * columns + c] += d_out[i] * x[c];
        }
}

static double length(const double *x, int64_t D) {
    double sum = 1e-6;
    for (int64_t c = 0; c < D; c++) sum += x[c] * x[c];
    return sqrt(sum);
}

static void forward_token(Sequence *q, int64_t t) {
    int64_t D = q->D, H = q->H;
    const double *x = q->r->x + (q->b * q->T + t) * q->C, *taps = tensor(q, TAPS);
    project(q->raw + t * q->R, x, tensor(q, RAW), q->R, q->C);
    double *rates = doubles(2 * H), *z = q->z + t * q->E, *s = q->s + t * q->E;
    project(rates, x, tensor(q, RATES), 2 * H, q->C);
    for (int64_t c = 0; c < q->E; c++) {
        z[c] = taps != NULL ? 0 : q->raw[t * q->R + c];
        for (int64_t j = 0; taps != NULL && j < 4; j++)
            if (t - j >= first_of(q, t)) z[c] += taps[j * q->E + c] * q->raw[(t - j) * q->R + c];
        s[c] = silu(z[c]);
    }
    for (int64_t h = 0; h < H; h++) {
        double by = 1 / (length(s + h * D, D) * sqrt((double)D));
        for (int64_t c = 0; c < D; c++) q->q[(t * H + h) * D + c] = s[h * D + c] * by;
        q->beta[t * H + h] = sigmoid(rates[h]);
        q->rate[t * H + h] = rates[H + h] + tensor(q, DECAY_BIAS)[h];
        q->decay[t * H + h] = exp(-exp(tensor(q, DECAY_LOG)[h]) * log1p(exp(q->rate[t * H + h])));
    }
    for (int64_t g = 0; g < q->KV; g++) {
        double by = 1 / length(s + (H + g) * D, D);
        for (int64_t c = 0; c < D; c++) q->k[(t * q->KV + g) * D + c] = s[(H + g) * D + c] * by;
    }
    for (int64_t h = 0; h < H; h++) {
        int64_t g = h / (H / q->KV);
        const double *before = q->state + (t * H + h) * D * D;
        double *after = q->state + ((t + 1) * H + h) * D * D;
        const double *k = q->k + (t * q->KV + g) * D, *v = s + (H + q->KV + g) * D;
        double alpha = first_of(q, t) == t ? 0 : q->decay[t * H + h], beta = q->beta[t * H + h];
        double *o = q->o + (t * H + h) * D, *y = q->y + (t * H + h) * D, square = 0;
        for (int64_t i = 0; i < D; i++) {
            double held = 0;
            for (int64_t j = 0; j < D; j++) held += before[i * D + j] * k[j];
            for (int64_t j = 0; j < D; j++) {
                after[i * D + j] = alpha * (before[i * D + j] - beta * held * k[j]) + beta * v[i] * k[j];
                o[i] += after[i * D + j] * q->q[(t * H + h) * D + j];
            }
            square += o[i] * o[i];
        }
        double rstd = 1 / sqrt(square / (double)D + q->r->config->norm_epsilon);
        for (int64_t i = 0; i < D; i++)
            y[i] = o[i] * rstd * tensor(q, SCALE)[i] * silu(q->raw[t * q->R + q->E + h * D + i]);
    }
    project(q->r->out + (q->b * q->T + t) * q->C, q->y + t * H * D, tensor(q, OUT), q->C, H * D);
    free(rates);
}

// From the gradient of y = factor x / |x| to that of x, added.
static void unit_backward(double *d_x, const double *x, const double *d_y, int64_t D, double factor) {
    double r = length(x, D), along = 0;
    for (int64_t c = 0; c < D; c++) along += x[c] * d_y[c];
    for (int64_t c = 0; c < D; c++) d_x[c] += factor * (d_y[c] / r - x[c] * along / (r * r * r));
}

// One token and head: d_state (D, D) is of the state after it, and becomes that of the state before; s of silu's
// outputs.
static void backward_head(Sequence *q, int64_t t, int64_t h, const double *d_y, double *d_state, double *d_s,
                          double *d_raw, double *d_rates) {
    int64_t D = q->D, H = q->H, g = h / (H / q->KV);
    const double *before = q->state + (t * H + h) * D * D, *after = before + H * D * D;
    const double *k = q->k + (t * q->KV + g) * D, *s = q->s + t * q->E, *v = s + (H + q->KV + g) * D;
    const double *query = q->q + (t * H + h) * D, *o = q->o + (t * H + h) * D, *gate = q->raw + t * q->R + q->E + h * D;
    bool starts = first_of(q, t) == t; // then the state before counts for nothing
    double alpha = starts ? 0 : q->decay[t * H + h], beta = q->beta[t * H + h], square = 0, along = 0;
    double *d_o = doubles(D), *d_q = doubles(D), *d_k = doubles(D), *held = doubles(D), *d_held = doubles(D);
    for (int64_t i = 0; i < D; i++) square += o[i] * o[i];
    double rstd = 1 / sqrt(square / (double)D + q->r->config->norm_epsilon);
    for (int64_t i = 0; i < D; i++) {
        double scale = tensor(q, SCALE)[i];
        d_tensor(q, SCALE)[i] += d_y[i] * o[i] * rstd * silu(gate[i]);
        d_raw[q->E + h * D + i] += d_y[i] * o[i] * rstd * scale * silu_slope(gate[i]);
        d_o[i] = d_y[i] * scale * silu(gate[i]);
        along += d_o[i] * o[i];
    }
    for (int64_t i = 0; i < D; i++) d_o[i] = rstd * (d_o[i] - o[i] * along * rstd * rstd / (double)D);

    double d_alpha = 0, d_beta = 0;
    for (int64_t i = 0; i < D; i++)
        for (int64_t j = 0; j < D; j++) {
            d_q[j] += after[i * D + j] * d_o[i];
            d_state[i * D + j] += d_o[i] * query[j];
            held[i] += before[i * D + j] * k[j];
        }
    for (int64_t i = 0; i < D; i++) {
        double d_k_row = 0; // (dS k)_i
        for (int64_t j = 0; j < D; j++) d_k_row += d_state[i * D + j] * k[j];
        d_beta += (v[i] - alpha * held[i]) * d_k_row;
        d_s[(H + q->KV + g) * D + i] += beta * d_k_row;
        d_held[i] = -alpha * beta * d_k_row;
        for (int64_t j = 0; j < D; j++) {
            d_alpha += d_state[i * D + j] * (before[i * D + j] - beta * held[i] * k[j]);
            d_k[j] += beta * (v[i] - alpha * held[i]) * d_state[i * D + j] + before[i * D + j] * d_held[i];
        }
    }
    for (int64_t i = 0; i < D * D; i++) d_state[i] = alpha * d_state[i] + d_held[i / D] * k[i % D];

    unit_backward(d_s + h * D, s + h * D, d_q, D, 1 / sqrt((double)D));
    unit_backward(d_s + (H + g) * D, s + (H + g) * D, d_k, D, 1);
    double decay_scale = exp(tensor(q, DECAY_LOG)[h]), rate = q->rate[t * H + h], d_a = d_alpha * alpha;
    d_rates[h] = d_beta * beta * (1 - beta);
    d_rates[H + h] = -d_a * decay_scale * sigmoid(rate);
    d_tensor(q, DECAY_LOG)[h] -= d_a * decay_scale * log1p(exp(rate));
    d_tensor(q, DECAY_BIAS)[h] += d_rates[H + h];
    free(d_o), free(d_q), free(d_k), free(held), free(d_held);
}

static void backward_sequence(Sequence *q) {
    int64_t D = q->D, H = q->H;
    double *d_state = doubles(H * D * D), *d_raw = doubles(q->T * q->R), *d_y = doubles(H * D), *d_s = doubles(q->E);
    double *d_rates = doubles(2 * H), *d_taps = tensor(q, TAPS) != NULL ? d_tensor(q, TAPS) : NULL;
    for (int64_t t = q->T - 1; t >= 0; t--) {
        const double *x = q->r->x + (q->b * q->T + t) * q->C, *d_out = q->r->d_out + (q->b * q->T + t) * q->C;
        double *d_x = q->r->d_x + (q->b * q->T + t) * q->C;
        memset(d_y, 0, (size_t)(H * D) * sizeof *d_y);
        memset(d_s, 0, (size_t)q->E * sizeof *d_s);
        project_backward(d_y, d_tensor(q, OUT), d_out, q->y + t * H * D, tensor(q, OUT), q->C, H * D);
        for (int64_t h = 0; h < H; h++)
            backward_head(q, t, h, d_y + h * D, d_state + h * D * D, d_s, d_raw + t * q->R, d_rates);
        for (int64_t c = 0; c < q->E; c++) {
            double d_z = d_s[c] * silu_slope(q->z[t * q->E + c]);
            if (d_taps == NULL) d_raw[t * q->R + c] += d_z;
            for (int64_t j = 0; d_taps != NULL && j < 4; j++)
                if (t - j >= first_of(q, t)) {
                    d_raw[(t - j) * q->R + c] += d_z * tensor(q, TAPS)[j * q->E + c];
                    d_taps[j * q->E + c] += d_z * q->raw[(t - j) * q->R + c];
                }
        }
        project_backward(d_x, d_tensor(q, RATES), d_rates, x, tensor(q, RATES), 2 * H, q->C);
    }
    for (int64_t t = 0; t < q->T; t++)
        project_backward(q->r->d_x + (q->b * q->T + t) * q->C, d_tensor(q, RAW), d_raw + t * q->R,
                         q->r->x + (q->b * q->T + t) * q->C, tensor(q, RAW), q->R, q->C);
    free(d_state), free(d_raw), free(d_y), free(d_s), free(d_rates);
}

void delta_reference(const DeltaReference *r) {
    int64_t n = r->B * r->T * r->config->dim;
    memset(r->out, 0, (size_t)n * sizeof(double));
    if (r->d_x != NULL) memset(r->d_x, 0, (size_t)n * sizeof(double));
    for (int64_t b = 0; b < r->B; b++) {
        Sequence q = begin(r, b);
        for (int64_t t = 0; t < r->T; t++) forward_token(&q, t);
        if (r->d_x != NULL) backward_sequence(&q);
        end(&q);
    }
}

static double *widened(const float *from, int64_t count) {
    double *to = doubles(count);
    for (int64_t i = 0; i < count; i++) to[i] = from[i];
    return to;
}

static void expect_gradients(const MixerProblem *p, const MixerAnswer *a, int ranks, const double *gradients,
                             double allowed, MixerError *of_one) {
    for (int i = 0; i < a->table.count; i++) {
        const Parameter *parameter = &a->table.parameter[i];
        if (strstr(parameter->name, "delta.") == NULL) continue;
        const char *const of_decay[] = {"A_log", "dt_bias", "a_proj"};
        bool decay = false;
        double size = 0;
        for (int k = 0; k < 3; k++) decay = decay || strstr(parameter->name, of_decay[k]) != NULL;
        const float *got = a->gradients + parameter->offset;
        const double *expected = gradients + parameter->offset;
        for (int64_t k = 0; k < parameter->size; k++) size += expected[k] * expected[k];
        for (int64_t k = 0; size == 0 && k < parameter->size; k++) assert_true(got[k] == 0);
        if (size == 0) continue;
        MixerError error = mixer_error(got, expected, parameter->size);
        // How near a few numbers come is chance, and what is off of a decay depends on where in its block a token is.
        if (decay) mixer_expect(p, ranks, parameter->name, error, DELTA_OF_DECAYS * allowed);
        else if (parameter->dimensions == 1) mixer_expect(p, ranks, parameter->name, error, allowed);
        else mixer_expect_flat(p, ranks, DELTA_BLOCK, parameter->name, error, allowed, &of_one[i]);
    }
}

void expect_delta(const MixerProblem *p, const int *ranks, double allowed) {
    enum { PARAMETERS = 32 }; // at most, of one layer
    MixerError of_one[PARAMETERS] = {0}, out_of_one = {0}, d_x_of_one = {0};
    int64_t n = p->B * p->T * p->C;
    double *out = doubles(n), *d_x = doubles(n), *gradients = NULL;
    for (int r = 0; ranks[r] != 0; r++) {
        if (p->T < 2 * ranks[r]) continue;
        MixerAnswer a = mixer_run(p, ranks[r]);
        assert_true(a.table.count <= PARAMETERS);
        if (gradients == NULL) {
            double *weights = widened(a.weights, a.table.total), *x = widened(a.x, n), *d_out = widened(a.d_out, n);
            gradients = doubles(a.table.total);
            DeltaReference reference = {&a.config, &a.table, a.first, p->B, p->T,     weights,
                                        x,         d_out,    out,     d_x,  gradients};
            delta_reference(&reference);
            free(weights), free(x), free(d_out);
        }
        mixer_expect_flat(p, ranks[r], DELTA_BLOCK, "out", mixer_error(a.out, out, n), allowed, &out_of_one);
        mixer_expect_flat(p, ranks[r], DELTA_BLOCK, "d_x", mixer_error(a.d_x, d_x, n), allowed, &d_x_of_one);
        expect_gradients(p, &a, ranks[r], gradients, allowed, of_one);
        assert_int_equal(a.forward_bytes, a.stated_forward);
        assert_int_equal(a.backward_bytes, a.stated_backward);
        mixer_free(&a);
    }
    free(out), free(d_x), free(gradients);
}

void delta_fill(const Parameter *parameter, float *values) {
    for (int64_t i = 0; i < parameter->size; i++) {
        double wave = sin(1.7 * (double)i + 0.3);
        if (strstr(parameter->name, "A_log") != NULL) values[i] = (float)(0.5 + wave);
        else if (strstr(parameter->name, "dt_bias") != NULL) values[i] = (float)(-2 + wave);
        else if (strstr(parameter->name, "delta.norm") != NULL) values[i] = (float)(1 + 0.3 * wave);
    }
}

static void fill_decays(const Parameter *parameter, float *values, double rate) {
    delta_fill(parameter, values);
    for (int64_t i = 0; i < parameter->size; i++) {
        if (strstr(parameter->name, "A_log") != NULL) values[i] = (float)log(rate);
        else if (strstr(parameter->name, "dt_bias") != NULL) values[i] = (float)log(exp(1) - 1);
    }
}
void delta_fill_fast(const Parameter *parameter, float *values) { fill_decays(parameter, values, log(2)); }
void delta_fill_slow(const Parameter *parameter, float *values) { fill_decays(parameter, values, 1e-6); }
