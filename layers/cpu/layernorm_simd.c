// LayerNorm: out = (x - mean) rstd weight + bias, rstd = 1 / sqrt(variance + epsilon), mean and variance over the row.
//
// Backward, with x^ = (x - mean) rstd and g = d_out weight:  d_x = rstd (g - mean(g) - x^ mean(g x^)),
// d_weight = sum over rows of d_out x^,  d_bias = sum over rows of d_out. One pass over memory: the second look at a
// row finds it in the cache.
#include "layers/cpu/norm.h"

typedef struct LayerNorm {
    float *out, *residual, *mean, *rstd;
    const float *x, *delta, *weight, *bias;
    int64_t rows, C, per_task;
    float epsilon;
} LayerNorm;

static float row_mean(const float *x, int64_t C) {
    vfloat sum = {0};
    int64_t c = 0;
    for (; c + SIMD_WIDTH <= C; c += SIMD_WIDTH) sum += vload(x + c);
    float total = vsum(sum);
    for (; c < C; c++) total += x[c];
    return total / (float)C;
}

static float row_variance(const float *x, float mean, int64_t C) {
    vfloat sum = {0};
    int64_t c = 0;
    for (; c + SIMD_WIDTH <= C; c += SIMD_WIDTH) {
        vfloat deviation = vload(x + c) - mean;
        sum += deviation * deviation;
    }
    float total = vsum(sum);
    for (; c < C; c++) total += (x[c] - mean) * (x[c] - mean);
    return total / (float)C;
}

static void normalize_row(float *out, const float *x, float mean, float rstd, const float *weight, const float *bias,
                          int64_t C) {
    int64_t c = 0;
    for (; c + SIMD_WIDTH <= C; c += SIMD_WIDTH)
        vstore(out + c, (vload(x + c) - mean) * rstd * vload(weight + c) + vload(bias + c));
    for (; c < C; c++) out[c] = (x[c] - mean) * rstd * weight[c] + bias[c];
}

static void forward_task(void *context, int64_t task, int worker) {
    const LayerNorm *n = context;
    (void)worker;
    int64_t C = n->C, end = smaller((task + 1) * n->per_task, n->rows);
    for (int64_t row = task * n->per_task; row < end; row++) {
        const float *x = residual_row(n->residual, n->x, n->delta, row, C);
        float mean = row_mean(x, C), rstd = 1.0f / sqrtf(row_variance(x, mean, C) + n->epsilon);
        normalize_row(n->out + row * C, x, mean, rstd, n->weight, n->bias, C);
        n->mean[row] = mean;
        n->rstd[row] = rstd;
    }
}

void SIMD_NAME(layernorm_forward)(Device *device, void *out, void *residual_out, float *mean, float *rstd,
                                  const void *x, const void *delta, const void *weight, const void *bias, int64_t rows,
                                  int64_t C, float epsilon) {
    LayerNorm n = {out, residual_out, mean, rstd, x, delta, weight, bias, rows, C, rows_per_task(C), epsilon};
    parallel_for(device->threads, tasks_of(rows, n.per_task), forward_task, &n);
}

typedef struct LayerNormGradient {
    float *d_x, *partial; // partial (blocks, 2, C): sums for d_weight and d_bias
    const float *d_out, *x, *weight, *mean, *rstd;
    int64_t rows, C, per_task;
} LayerNormGradient;

typedef struct RowMeans {
    float g, g_x;
} RowMeans; // mean(g), mean(g x^)

static RowMeans add_to_sums(float *d_weight, float *d_bias, const float *d_out, const float *x, const float *weight,
                            float mean, float rstd, int64_t C) {
    vfloat g_sum = {0}, g_x_sum = {0};
    int64_t c = 0;
    for (; c + SIMD_WIDTH <= C; c += SIMD_WIDTH) {
        vfloat dy = vload(d_out + c), dy_x = dy * ((vload(x + c) - mean) * rstd), w = vload(weight + c);
        vstore(d_weight + c, vload(d_weight + c) + dy_x);
        vstore(d_bias + c, vload(d_bias + c) + dy);
        g_sum += dy * w;
        g_x_sum += dy_x * w;
    }
    float g = vsum(g_sum), g_x = vsum(g_x_sum);
    for (; c < C; c++) {
        float dy_x = d_out[c] * ((x[c] - mean) * rstd);
        d_weight[c] += dy_x;
        d_bias[c] += d_out[c];
        g += d_out[c] * weight[c];
        g_x += dy_x * weight[c];
    }
    return (RowMeans){g / (float)C, g_x / (float)C};
}

static void add_row_gradient(float *d_x, const float *d_out, const float *x, const float *weight, float mean,
                             float rstd, RowMeans means, int64_t C) {
    int64_t c = 0;
    for (; c + SIMD_WIDTH <= C; c += SIMD_WIDTH) {
        vfloat normalized = (vload(x + c) - mean) * rstd;
        vfloat d = vload(d_out + c) * vload(weight + c) - means.g - normalized * means.g_x;
        vstore(d_x + c, vload(d_x + c) + d * rstd);
    }
    for (; c < C; c++) {
        float normalized = (x[c] - mean) * rstd;
        d_x[c] += (d_out[c] * weight[c] - means.g - normalized * means.g_x) * rstd;
    }
}

static void backward_task(void *context, int64_t task, int worker) {
    const LayerNormGradient *n = context;
    (void)worker;
    int64_t C = n->C, end = smaller((task + 1) * n->per_task, n->rows);
    float *d_weight = n->partial + task * 2 * C, *d_bias = d_weight + C;
    memset(d_weight, 0, (size_t)(2 * C) * sizeof *d_weight);
    for (int64_t row = task * n->per_task; row < end; row++) {
        const float *d_out = n->d_out + row * C, *x = n->x + row * C;
        float mean = n->mean[row], rstd = n->rstd[row];
        RowMeans means = add_to_sums(d_weight, d_bias, d_out, x, n->weight, mean, rstd, C);
        add_row_gradient(n->d_x + row * C, d_out, x, n->weight, mean, rstd, means, C);
    }
}

void SIMD_NAME(layernorm_backward)(Device *device, void *d_x, float *d_weight, float *d_bias, const void *d_out,
                                   const void *x, const void *weight, const float *mean, const float *rstd,
                                   int64_t rows, int64_t C) {
    int64_t per_block = norm_rows_per_block(rows), blocks = tasks_of(rows, per_block);
    float *partial = device_scratch(device, "LayerNorm", norm_scratch_bytes(rows, C, 2));
    LayerNormGradient n = {d_x, partial, d_out, x, weight, mean, rstd, rows, C, per_block};
    parallel_for(device->threads, blocks, backward_task, &n);
    add_blocks(d_weight, partial, blocks, 2 * C, C);
    add_blocks(d_bias, partial + C, blocks, 2 * C, C);
}
