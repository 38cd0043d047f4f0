// Rotary positions: pair i of a head, (x_i, x_{i+D/2}), is a point in the plane, turned by the angle of its position.
#include "layers/cpu/layers.h"
#include "layers/cpu/vector.h"

typedef struct Rotary {
    float *x;
    const float *cos_table, *sin_table;
    int64_t rows, table_rows, row_stride, heads, half, per_task;
    float direction; // -1 turns back
} Rotary;

static void turn_head(float *x, const float *cosines, const float *sines, int64_t half, float direction) {
    int64_t i = 0;
    for (; i + SIMD_WIDTH <= half; i += SIMD_WIDTH) {
        vfloat cosine = vload(cosines + i), sine = direction * vload(sines + i);
        vfloat first = vload(x + i), second = vload(x + half + i);
        vstore(x + i, first * cosine - second * sine);
        vstore(x + half + i, second * cosine + first * sine);
    }
    for (; i < half; i++) {
        float sine = direction * sines[i], first = x[i], second = x[half + i];
        x[i] = first * cosines[i] - second * sine;
        x[half + i] = second * cosines[i] + first * sine;
    }
}

static void rotary_task(void *context, int64_t task, int worker) {
    const Rotary *r = context;
    (void)worker;
    int64_t end = smaller((task + 1) * r->per_task, r->rows);
    for (int64_t row = task * r->per_task; row < end; row++) {
        int64_t angle = row % r->table_rows * r->half;
        for (int64_t h = 0; h < r->heads; h++)
            turn_head(r->x + row * r->row_stride + 2 * h * r->half, r->cos_table + angle, r->sin_table + angle, r->half,
                      r->direction);
    }
}

void SIMD_NAME(rotary)(Device *device, void *x, const float *cos_table, const float *sin_table, int64_t rows,
                       int64_t table_rows, int64_t row_stride, int64_t heads, int64_t D, bool inverse) {
    float direction = inverse ? -1.0f : 1.0f;
    int64_t half = D / 2, per_task = rows_per_task(heads * D);
    Rotary r = {x, cos_table, sin_table, rows, table_rows, row_stride, heads, half, per_task, direction};
    parallel_for(device->threads, tasks_of(rows, r.per_task), rotary_task, &r);
}
