// What stands behind the gated delta rule on the CPU: RMSNorm of each head's output, times a scale, times silu(gate).
#include <math.h>
#include <string.h>

#include "layers/cpu/parallel.h"
#include "mixer/cpu/delta_rows.h"

typedef struct Finish {
    const DeltaShape *s;
    float *y, *d_out, *d_raw, *sums; // sums (tasks, W): of d_scale
    const float *d_y, *out, *raw, *scale;
    float epsilon;
} Finish;

typedef struct HeadRow { // of one token and head
    const float *out, *gate;
    float rstd;
    int64_t y, gate_at; // its elements in y and in raw
} HeadRow;

// Rows of the model's tensors lie far apart, and processors do not fetch them by themselves.
static void ask_ahead(const float *row, int64_t width, int64_t count) {
    enum { ROWS_AHEAD = 4, LINE = 16 };
    for (int64_t c = 0; c < count; c += LINE) __builtin_prefetch(row + ROWS_AHEAD * width + c);
}

static HeadRow head_row(const Finish *f, const BlockRows *r, int64_t h, int64_t i) {
    const DeltaShape *s = f->s;
    int64_t D = s->head_dim, convolved = (s->heads + 2 * s->kv_heads) * D, row = r->row + i;
    HeadRow head = {.out = block_row(s, f->out, s->heads, r->b, h, r->n, i),
                    .y = (row * s->heads + h) * D,
                    .gate_at = row * (convolved + s->heads * D) + convolved + h * D};
    head.gate = f->raw + head.gate_at;
    ask_ahead(head.gate, convolved + s->heads * D, D);
    if (f->d_y != NULL) ask_ahead(f->d_y + head.y, s->heads * D, D);
    head.rstd = 1 / sqrtf(dot(head.out, head.out, D) / (float)D + f->epsilon);
    return head;
}

static void finish_task(void *context, int64_t task, int worker) {
    const Finish *f = context;
    const BlockRows r = block_rows_of(f->s, task);
    (void)worker;
    for (int64_t h = 0; h < f->s->heads; h++)
        for (int64_t i = 0; i < r.rows; i++) {
            const HeadRow head = head_row(f, &r, h, i);
            for (int64_t c = 0, left = f->s->head_dim; left > 0; c += SIMD_WIDTH, left -= SIMD_WIDTH) {
                vfloat normed = head.rstd * vload_some(head.out + c, left) * vload_some(f->scale + c, left);
                vstore_some(f->y + head.y + c, normed * vsilu(vload_some(head.gate + c, left)), left);
            }
        }
}

static void finish(Device *d, const DeltaShape *s, void *y, const void *out, const void *raw, const void *scale,
                   float epsilon) {
    Finish work = {.s = s, .y = y, .out = out, .raw = raw, .scale = scale, .epsilon = epsilon};
    parallel_for(d->threads, s->batch * delta_blocks(s), finish_task, &work);
}

// With x the normed head: y = x scale silu(gate).
static void finish_head_backward(const Finish *f, const HeadRow *head, float *d_out, float *d_scale) {
    const int64_t D = f->s->head_dim;
    const float *d_y = f->d_y + head->y;
    vfloat along = vset(0.0f); // x . d_x
    for (int64_t c = 0, left = D; left > 0; c += SIMD_WIDTH, left -= SIMD_WIDTH) {
        vfloat x = head->rstd * vload_some(head->out + c, left), gate = vload_some(head->gate + c, left);
        vfloat by = vload_some(d_y + c, left), scale = vload_some(f->scale + c, left), open = vsilu(gate);
        vfloat d_x = by * scale * open;
        along += x * d_x;
        vstore(d_scale + c, vload(d_scale + c) + by * x * open);
        vstore_some(f->d_raw + head->gate_at + c, by * x * scale * vsilu_slope(gate), left);
        vstore(d_out + c, d_x);
    }
    float mean = vsum(along) / (float)D;
    for (int64_t c = 0; c < D; c += SIMD_WIDTH) {
        vfloat x = head->rstd * vload(head->out + c);
        vstore(d_out + c, head->rstd * (vload(d_out + c) - x * mean));
    }
}

static void finish_backward_task(void *context, int64_t task, int worker) {
    const Finish *f = context;
    const DeltaShape *s = f->s;
    const BlockRows r = block_rows_of(s, task);
    int64_t W = delta_width(s->head_dim);
    float *d_scale = f->sums + task * W;
    (void)worker;
    memset(d_scale, 0, (size_t)W * sizeof *d_scale);
    for (int64_t h = 0; h < s->heads; h++) {
        float *d_out = block_row(s, f->d_out, s->heads, r.b, h, r.n, 0);
        memset(d_out, 0, (size_t)(DELTA_BLOCK * W) * sizeof *d_out);
        for (int64_t i = 0; i < r.rows; i++) {
            const HeadRow head = head_row(f, &r, h, i);
            finish_head_backward(f, &head, d_out + i * W, d_scale);
        }
    }
}

static void finish_backward(Device *d, const DeltaShape *s, void *d_out, void *d_raw, float *d_scale, const void *d_y,
                            const void *out, const void *raw, const void *scale, float epsilon) {
    int64_t tasks = s->batch * delta_blocks(s), W = delta_width(s->head_dim);
    Finish work = {.s = s,
                   .d_out = d_out,
                   .d_raw = d_raw,
                   .d_y = d_y,
                   .out = out,
                   .raw = raw,
                   .scale = scale,
                   .epsilon = epsilon,
                   .sums = device_scratch(d, "delta", (size_t)(tasks * W) * sizeof(float))};
    parallel_for(d->threads, tasks, finish_backward_task, &work);
    for (int64_t c = 0; c < s->head_dim; c++) {
        double sum = 0;
        for (int64_t task = 0; task < tasks; task++) sum += work.sums[task * W + c];
        d_scale[c] += (float)sum;
    }
}

extern const DeltaFinishKernels SIMD_NAME(delta_finish);
const DeltaFinishKernels SIMD_NAME(delta_finish) = {finish, finish_backward};
