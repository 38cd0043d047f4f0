// Bodies of test/layers_reference.h.
#include "test/layers_reference.h"

void reference_embedding(const Shape *s, const double *in, double *out) {
    for (int64_t row = 0; row < s->rows; row++)
        for (int64_t c = 0; c < s->C; c++)
            out[row * s->C + c] = in[s->tokens[row] * s->C + c] + in[(s->V + s->positions[row]) * s->C + c];
}

void reference_embedding_backward(const Shape *s, const double *in, const double *d_out, double *d_in) {
    (void)in;
    memset(d_in, 0, (size_t)((s->V + s->positions_count) * s->C) * sizeof *d_in);
    for (int64_t row = 0; row < s->rows; row++) {
        for (int64_t c = 0; c < s->C; c++) {
            d_in[s->tokens[row] * s->C + c] += d_out[row * s->C + c];
            d_in[(s->V + s->positions[row]) * s->C + c] += d_out[row * s->C + c];
        }
    }
}

Moments reference_moments(const double *x, int64_t C, double epsilon) {
    double mean = 0, variance = 0;
    for (int64_t c = 0; c < C; c++) mean += x[c] / (double)C;
    for (int64_t c = 0; c < C; c++) variance += (x[c] - mean) * (x[c] - mean) / (double)C;
    return (Moments){mean, 1 / sqrt(variance + epsilon)};
}

void reference_layernorm(const Shape *s, const double *in, double *out) {
    const double *weight = in + s->rows * s->C, *bias = weight + s->C;
    for (int64_t row = 0; row < s->rows; row++) {
        Moments m = reference_moments(in + row * s->C, s->C, s->epsilon);
        for (int64_t c = 0; c < s->C; c++)
            out[row * s->C + c] = (in[row * s->C + c] - m.mean) * m.rstd * weight[c] + bias[c];
    }
}

void reference_layernorm_backward(const Shape *s, const double *in, const double *d_out, double *d_in) {
    const double *weight = in + s->rows * s->C;
    double *d_weight = d_in + s->rows * s->C, *d_bias = d_weight + s->C;
    memset(d_weight, 0, (size_t)(2 * s->C) * sizeof *d_weight);
    for (int64_t row = 0; row < s->rows; row++) {
        const double *x = in + row * s->C, *dy = d_out + row * s->C;
        Moments m = reference_moments(x, s->C, s->epsilon);
        double g = 0, g_x = 0;
        for (int64_t c = 0; c < s->C; c++) {
            double normalized = (x[c] - m.mean) * m.rstd;
            d_weight[c] += dy[c] * normalized;
            d_bias[c] += dy[c];
            g += dy[c] * weight[c] / (double)s->C;
            g_x += dy[c] * weight[c] * normalized / (double)s->C;
        }
        for (int64_t c = 0; c < s->C; c++)
            d_in[row * s->C + c] = m.rstd * (dy[c] * weight[c] - g - (x[c] - m.mean) * m.rstd * g_x);
    }
}

double reference_rstd(const double *x, int64_t C, double epsilon) {
    double mean_square = 0;
    for (int64_t c = 0; c < C; c++) mean_square += x[c] * x[c] / (double)C;
    return 1 / sqrt(mean_square + epsilon);
}

void reference_rmsnorm(const Shape *s, const double *in, double *out) {
    const double *weight = in + s->rows * s->C;
    for (int64_t row = 0; row < s->rows; row++) {
        double rstd = reference_rstd(in + row * s->C, s->C, s->epsilon);
        for (int64_t c = 0; c < s->C; c++) out[row * s->C + c] = in[row * s->C + c] * rstd * weight[c];
    }
}

void reference_rmsnorm_backward(const Shape *s, const double *in, const double *d_out, double *d_in) {
    const double *weight = in + s->rows * s->C;
    double *d_weight = d_in + s->rows * s->C;
    memset(d_weight, 0, (size_t)s->C * sizeof *d_weight);
    for (int64_t row = 0; row < s->rows; row++) {
        const double *x = in + row * s->C, *dy = d_out + row * s->C;
        double rstd = reference_rstd(x, s->C, s->epsilon), g_x = 0;
        for (int64_t c = 0; c < s->C; c++) {
            d_weight[c] += dy[c] * x[c] * rstd;
            g_x += dy[c] * weight[c] * x[c] * rstd / (double)s->C;
        }
        for (int64_t c = 0; c < s->C; c++) d_in[row * s->C + c] = rstd * (dy[c] * weight[c] - x[c] * rstd * g_x);
    }
}

void reference_matmul(const Shape *s, const double *in, double *out) {
    const double *weight = in + s->rows * s->K, *bias = weight + s->C * s->K;
    for (int64_t row = 0; row < s->rows; row++) {
        for (int64_t c = 0; c < s->C; c++) {
            double sum = bias[c];
            for (int64_t k = 0; k < s->K; k++) sum += in[row * s->K + k] * weight[c * s->K + k];
            out[row * s->C + c] = sum;
        }
    }
}

void reference_matmul_backward(const Shape *s, const double *in, const double *d_out, double *d_in) {
    const double *weight = in + s->rows * s->K;
    double *d_weight = d_in + s->rows * s->K, *d_bias = d_weight + s->C * s->K;
    memset(d_in, 0, (size_t)(s->rows * s->K + s->C * s->K + s->C) * sizeof *d_in);
    for (int64_t row = 0; row < s->rows; row++) {
        for (int64_t c = 0; c < s->C; c++) {
            double dy = d_out[row * s->C + c];
            d_bias[c] += dy;
            for (int64_t k = 0; k < s->K; k++) {
                d_in[row * s->K + k] += dy * weight[c * s->K + k];
                d_weight[c * s->K + k] += dy * in[row * s->K + k];
            }
        }
    }
}

static void reference_turn(const Shape *s, const double *in, double *out, double direction) {
    int64_t D = s->C / s->heads, half = D / 2;
    for (int64_t row = 0; row < s->rows; row++) {
        for (int64_t h = 0; h < s->heads; h++) {
            const double *x = in + row * s->C + h * D;
            double *y = out + row * s->C + h * D;
            for (int64_t i = 0; i < half; i++) {
                double cosine = s->cosines[row * half + i], sine = direction * s->sines[row * half + i];
                y[i] = x[i] * cosine - x[half + i] * sine;
                y[half + i] = x[half + i] * cosine + x[i] * sine;
            }
        }
    }
}

void reference_rotary(const Shape *s, const double *in, double *out) { reference_turn(s, in, out, 1); }

void reference_rotary_backward(const Shape *s, const double *in, const double *d_out, double *d_in) {
    (void)in;
    reference_turn(s, d_out, d_in, -1);
}

double reference_gelu_inner(double x) { return sqrt(2 / acos(-1.0)) * (x + 0.044715 * x * x * x); }

void reference_gelu(const Shape *s, const double *in, double *out) {
    for (int64_t i = 0; i < s->rows * s->C; i++) out[i] = 0.5 * in[i] * (1 + tanh(reference_gelu_inner(in[i])));
}

void reference_gelu_backward(const Shape *s, const double *in, const double *d_out, double *d_in) {
    for (int64_t i = 0; i < s->rows * s->C; i++) {
        double x = in[i], t = tanh(reference_gelu_inner(x));
        double inner_slope = sqrt(2 / acos(-1.0)) * (1 + 3 * 0.044715 * x * x);
        d_in[i] = d_out[i] * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner_slope);
    }
}

void reference_swiglu(const Shape *s, const double *in, double *out) {
    for (int64_t row = 0; row < s->rows; row++) {
        for (int64_t c = 0; c < s->C; c++) {
            double gate = in[row * 2 * s->C + c], up = in[row * 2 * s->C + s->C + c];
            out[row * s->C + c] = gate / (1 + exp(-gate)) * up;
        }
    }
}

void reference_swiglu_backward(const Shape *s, const double *in, const double *d_out, double *d_in) {
    for (int64_t row = 0; row < s->rows; row++) {
        for (int64_t c = 0; c < s->C; c++) {
            double gate = in[row * 2 * s->C + c], up = in[row * 2 * s->C + s->C + c], dy = d_out[row * s->C + c];
            double sigma = 1 / (1 + exp(-gate));
            d_in[row * 2 * s->C + c] = dy * up * sigma * (1 + gate * (1 - sigma));
            d_in[row * 2 * s->C + s->C + c] = dy * gate * sigma;
        }
    }
}

double reference_log_sum_exp(const double *x, int64_t C) {
    double maximum = -INFINITY, sum = 0;
    for (int64_t c = 0; c < C; c++) maximum = fmax(maximum, x[c]);
    for (int64_t c = 0; c < C; c++) sum += exp(x[c] - maximum);
    return maximum + log(sum);
}

void reference_classifier(const Shape *s, const double *in, double *out) {
    for (int64_t row = 0; row < s->rows; row++)
        out[row] = reference_log_sum_exp(in + row * s->C, s->C) - in[row * s->C + s->tokens[row]];
}

void reference_classifier_backward(const Shape *s, const double *in, const double *d_out, double *d_in) {
    for (int64_t row = 0; row < s->rows; row++) {
        const double *x = in + row * s->C;
        double log_sum_exp = reference_log_sum_exp(x, s->C);
        for (int64_t c = 0; c < s->C; c++)
            d_in[row * s->C + c] = d_out[row] * (exp(x[c] - log_sum_exp) - (c == s->tokens[row] ? 1 : 0));
    }
}
