// RMSNorm: out = x rstd weight, rstd = 1 / sqrt(mean(x^2) + epsilon). LayerNorm without the mean and the bias.
//
// Backward, with x^ = x rstd and g = d_out weight:  d_x = rstd (g - x^ mean(g x^)),  d_weight = sum of d_out x^.
#include "layers/cpu/norm.h"

typedef struct RMSNorm {
    float *out, *residual, *rstd;
    const float *x, *delta, *weight;
    int64_t rows, C, per_task;
    float epsilon;
} RMSNorm;

static float row_mean_square(const float *x, int64_t C) {
    vfloat sum = {0};
    int64_t c = 0;
    for (; c + SIMD_WIDTH <= C; c += SIMD_WIDTH) sum += vload(x + c) * vload(x + c);
    float total = vsum(sum);
    for (; c < C; c++) total += x[c] * x[c];
    return total / (float)C;
}

static void forward_task(void *context, int64_t task, int worker) {
    const RMSNorm *n = context;
    (void)worker;
    int64_t C = n->C, end = smaller((task + 1) * n->per_task, n->rows);
    for (int64_t row = task * n->per_task; row < end; row++) {
        const float *x = residual_row(n->residual, n->x, n->delta, row, C);
        float *out = n->out + row * C, rstd = 1.0f / sqrtf(row_mean_square(x, C) + n->epsilon);
        int64_t c = 0;
        for (; c + SIMD_WIDTH <= C; c += SIMD_WIDTH) vstore(out + c, vload(x + c) * rstd * vload(n->weight + c));
        for (; c < C; c++) out[c] = x[c] * rstd * n->weight[c];
        n->rstd[row] = rstd;
    }
}

void SIMD_NAME(rmsnorm_forward)(Device *device, void *out, void *residual_out, float *rstd, const void *x,
                                const void *delta, const void *weight, int64_t rows, int64_t C, float epsilon) {
    RMSNorm n = {out, residual_out, rstd, x, delta, weight, rows, C, rows_per_task(C), epsilon};
    parallel_for(device->threads, tasks_of(rows, n.per_task), forward_task, &n);
}

typedef struct RMSNormGradient {
    float *d_x, *partial; // partial (blocks, C): sums for d_weight
    const float *d_out, *x, *weight, *rstd;
    int64_t rows, C, per_task;
} RMSNormGradient;

// Returns mean(g x^).
static float add_to_sum(float *d_weight, const float *d_out, const float *x, const float *weight, float rstd,
                        int64_t C) {
    vfloat sum = {0};
    int64_t c = 0;
    for (; c + SIMD_WIDTH <= C; c += SIMD_WIDTH) {
        vfloat dy_x = vload(d_out + c) * (vload(x + c) * rstd);
        vstore(d_weight + c, vload(d_weight + c) + dy_x);
        sum += dy_x * vload(weight + c);
    }
    float total = vsum(sum);
    for (; c < C; c++) {
        float dy_x = d_out[c] * (x[c] * rstd);
        d_weight[c] += dy_x;
        total += dy_x * weight[c];
    }
    return total / (float)C;
}

static void add_row_gradient(float *d_x, const float *d_out, const float *x, const float *weight, float rstd,
                             float mean_g_x, int64_t C) {
    int64_t c = 0;
    for (; c + SIMD_WIDTH <= C; c += SIMD_WIDTH) {
        vfloat d = vload(d_out + c) * vload(weight + c) - vload(x + c) * rstd * mean_g_x;
        vstore(d_x + c, vload(d_x + c) + d * rstd);
    }
    for (; c < C; c++) d_x[c] += (d_out[c] * weight[c] - x[c] * rstd * mean_g_x) * rstd;
}

static void backward_task(void *context, int64_t task, int worker) {
    const RMSNormGradient *n = context;
    (void)worker;
    int64_t C = n->C, end = smaller((task + 1) * n->per_task, n->rows);
    float *d_weight = n->partial + task * C;
    memset(d_weight, 0, (size_t)C * sizeof *d_weight);
    for (int64_t row = task * n->per_task; row < end; row++) {
        const float *d_out = n->d_out + row * C, *x = n->x + row * C;
        float mean_g_x = add_to_sum(d_weight, d_out, x, n->weight, n->rstd[row], C);
        add_row_gradient(n->d_x + row * C, d_out, x, n->weight, n->rstd[row], mean_g_x, C);
    }
}

void SIMD_NAME(rmsnorm_backward)(Device *device, void *d_x, float *d_weight, const void *d_out, const void *x,
                                 const void *weight, const float *rstd, int64_t rows, int64_t C) {
    int64_t per_block = norm_rows_per_block(rows), blocks = tasks_of(rows, per_block);
    float *partial = device_scratch(device, "RMSNorm", norm_scratch_bytes(rows, C, 1));
    RMSNormGradient n = {d_x, partial, d_out, x, weight, rstd, rows, C, per_block};
    parallel_for(device->threads, blocks, backward_task, &n);
    add_blocks(d_weight, partial, blocks, C, C);
}
