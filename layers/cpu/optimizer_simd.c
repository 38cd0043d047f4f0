// AdamW, in the order of operations of PyTorch's torch.optim.AdamW.
#include <math.h>

#include "layers/cpu/layers.h"
#include "layers/cpu/vector.h"

typedef struct Update {
    float *master, *weight, *m, *v;
    const float *gradient;
    int64_t count;
    float gradient_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
    float keep;            // 1 - learning_rate * weight_decay
    float step_size;       // learning_rate / (1 - beta1^step)
    float root_correction; // 1 / sqrt(1 - beta2^step)
    float epsilon;
} Update;

typedef struct Values {
    vfloat parameter, m, v;
} Values;

static inline Values update(const Update *u, Values old, vfloat gradient) {
    Values next;
    gradient *= u->gradient_scale;
    next.m = u->beta1 * old.m + u->one_minus_beta1 * gradient;
    next.v = u->beta2 * old.v + u->one_minus_beta2 * (gradient * gradient);
    vfloat denominator = vsqrt(next.v) * u->root_correction + u->epsilon;
    next.parameter = old.parameter * u->keep - u->step_size * (next.m / denominator);
    return next;
}

static void adamw_task(void *context, int64_t task, int worker) {
    const Update *u = context;
    (void)worker;
    int64_t i = task * TASK_VALUES, end = smaller(i + TASK_VALUES, u->count);
    for (; i + SIMD_WIDTH <= end; i += SIMD_WIDTH) {
        Values next =
            update(u, (Values){vload(u->master + i), vload(u->m + i), vload(u->v + i)}, vload(u->gradient + i));
        vstore(u->master + i, next.parameter);
        vstore(u->m + i, next.m);
        vstore(u->v + i, next.v);
        if (u->weight != NULL) vstore(u->weight + i, next.parameter);
    }
    if (i < end) {
        int64_t n = end - i;
        Values next =
            update(u, (Values){vload_part(u->master + i, n), vload_part(u->m + i, n), vload_part(u->v + i, n)},
                   vload_part(u->gradient + i, n));
        vstore_part(u->master + i, next.parameter, n);
        vstore_part(u->m + i, next.m, n);
        vstore_part(u->v + i, next.v, n);
        if (u->weight != NULL) vstore_part(u->weight + i, next.parameter, n);
    }
}

void SIMD_NAME(adamw)(Device *device, float *master, void *weight, float *m, float *v, const float *gradient,
                      int64_t count, const AdamW *h) {
    double beta1 = h->beta1, beta2 = h->beta2, learning_rate = h->learning_rate;
    Update u = {.master = master,
                .weight = weight == master ? NULL : weight,
                .m = m,
                .v = v,
                .gradient = gradient,
                .count = count,
                .gradient_scale = h->gradient_scale,
                .beta1 = h->beta1,
                .one_minus_beta1 = (float)(1 - beta1),
                .beta2 = h->beta2,
                .one_minus_beta2 = (float)(1 - beta2),
                .keep = (float)(1 - learning_rate * h->weight_decay),
                .step_size = (float)(learning_rate / (1 - pow(beta1, (double)h->step))),
                .root_correction = (float)(1 / sqrt(1 - pow(beta2, (double)h->step))),
                .epsilon = h->epsilon};
    parallel_for(device->threads, tasks_of(count, TASK_VALUES), adamw_task, &u);
}
