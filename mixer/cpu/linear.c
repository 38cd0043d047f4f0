// linear_kernels_cpu: linear attention on processors. The work is in linear_forward.c and linear_backward.c, by the
// walk of linear_walk.c; here are the parts that pass over values once.
#include "mixer/cpu/linear.h"

#include <math.h>

#include "base/cpu_features.h"
#include "layers/cpu/parallel.h"

extern const LinearTiles linear_tiles_portable, linear_tiles_avx2, linear_tiles_avx512; // linear_simd.c

const LinearTiles *linear_tiles(void) {
    switch (simd_level()) {
#if defined(__x86_64__)
    case SIMD_AVX512: return &linear_tiles_avx512;
    case SIMD_AVX2: return &linear_tiles_avx2;
#endif
    default: return &linear_tiles_portable;
    }
}

// ---- states of other chunks -----------------------------------------------------------------------------------------

typedef struct Combination {
    const LinearShape *shape;
    const LinearPast *past;
    int count;
    const float *all;
    float *states;
    bool add;
} Combination;

static void combine_task(void *context, int64_t head, int worker) {
    (void)worker;
    const Combination *c = context;
    const LinearShape *s = c->shape;
    int64_t size = linear_state(s->head_dim), heads = s->sequences * s->heads, b = head / s->heads;
    float *to = c->states + head * size;
    for (int64_t i = 0; !c->add && i < size; i++) to[i] = 0;
    for (int n = 0; n < c->count; n++) {
        const LinearPast *past = &c->past[n];
        if (s->first != NULL && s->first[b * s->context + past->seer] > past->seen) continue;
        float factor = (float)exp2((double)past->distance * s->log2_decay[head % s->heads]);
        linear_tiles()->add_scaled(to, c->all + (past->place * heads + head) * size, factor, size);
    }
}

static void combine(Device *device, const LinearShape *shape, const LinearPast *past, int count, const float *all,
                    float *states, bool add) {
    Combination c = {shape, past, count, all, states, add};
    parallel_for(device->threads, shape->sequences * shape->heads, combine_task, &c);
}

size_t linear_scratch_bytes_cpu(const LinearShape *shape, int threads) { return walk_scratch_bytes(shape, threads); }

const LinearKernels linear_kernels_cpu = {cpu_linear_own_before, cpu_linear_own_behind, combine, cpu_linear_forward,
                                          cpu_linear_backward};
