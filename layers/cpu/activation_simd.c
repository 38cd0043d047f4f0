// GELU and SwiGLU, and the element-wise sums.
//
// Both activations are x times a logistic sigmoid, sigma(z) = 1 / (1 + exp(-z)):
//   silu(x) = x sigma(x)
//   gelu(x) = x/2 (1 + tanh u) = x sigma(2u),  u = sqrt(2/pi) (x + 0.044715 x^3),  since 1 + tanh u = 2 sigma(2u).
// In this form nothing cancels, for any x. With e = exp(-z), sigma = 1/(1+e) and 1 - sigma = e sigma, which does not
// cancel either: the derivative of x sigma(z(x)) is sigma (1 + x z'(x) e sigma).
#include "layers/cpu/layers.h"
#include "layers/cpu/vector.h"

static inline vfloat sigmoid(vfloat e) { return 1.0f / (1.0f + e); }

static inline vfloat gelu(vfloat x, vfloat unused) {
    (void)unused;
    vfloat minus_2u = x * (-1.5957691216f - 0.0713548163f * (x * x));
    return x * sigmoid(vexp(minus_2u));
}

// Beyond +-10 the derivative is 1 or 0 in single precision; there the powers of x would overflow.
static inline vfloat gelu_gradient(vfloat d_out, vfloat x) {
    x = vmin(vset(10.0f), vmax(vset(-10.0f), x)); // the order of arguments lets not-a-number through
    vfloat square = x * x;
    vfloat e = vexp(x * (-1.5957691216f - 0.0713548163f * square));
    vfloat two_u_prime = 1.5957691216f + 0.2140644488f * square;
    vfloat sigma = sigmoid(e);
    return d_out * sigma * (1.0f + x * two_u_prime * (e * sigma));
}

static inline vfloat silu_times(vfloat gate, vfloat up) { return gate * sigmoid(vexp(-gate)) * up; }

static inline vfloat sum_of_two(vfloat a, vfloat b) { return a + b; }

// ---- element by element -----------------------------------------------------------------------------------------
typedef struct Elements {
    float *out;
    const float *a, *b;
    int64_t count;
} Elements;

static inline __attribute__((always_inline)) void map_task(const Elements *x, int64_t task,
                                                           vfloat (*f)(vfloat, vfloat)) {
    int64_t begin = task * TASK_VALUES;
    map(x->out + begin, x->a + begin, x->b + begin, smaller(TASK_VALUES, x->count - begin), f);
}

static void gelu_forward_task(void *context, int64_t task, int worker) {
    (void)worker;
    map_task(context, task, gelu);
}

static void gelu_backward_task(void *context, int64_t task, int worker) {
    (void)worker;
    map_task(context, task, gelu_gradient);
}

static void add_task(void *context, int64_t task, int worker) {
    (void)worker;
    map_task(context, task, sum_of_two);
}

static void for_elements(Device *device, ParallelTask *task, Elements elements) {
    parallel_for(device->threads, tasks_of(elements.count, TASK_VALUES), task, &elements);
}

void SIMD_NAME(gelu_forward)(Device *device, void *out, const void *x, int64_t count) {
    for_elements(device, gelu_forward_task, (Elements){out, x, x, count});
}

void SIMD_NAME(gelu_backward)(Device *device, void *d_x, const void *d_out, const void *x, int64_t count) {
    for_elements(device, gelu_backward_task, (Elements){d_x, d_out, x, count});
}

void SIMD_NAME(add_float)(Device *device, float *out, const float *in, int64_t count) {
    for_elements(device, add_task, (Elements){out, out, in, count});
}

// ---- SwiGLU -------------------------------------------------------------------------------------------------------
typedef struct SwiGLU {
    float *out;         // (rows, F)
    float *d_gate_up;   // (rows, 2F), backward
    const float *d_out; // (rows, F), backward
    const float *gate_up;
    int64_t rows, F, per_task;
} SwiGLU;

static void swiglu_forward_task(void *context, int64_t task, int worker) {
    const SwiGLU *s = context;
    (void)worker;
    int64_t F = s->F, end = smaller((task + 1) * s->per_task, s->rows);
    for (int64_t row = task * s->per_task; row < end; row++)
        map(s->out + row * F, s->gate_up + 2 * row * F, s->gate_up + 2 * row * F + F, F, silu_times);
}

void SIMD_NAME(swiglu_forward)(Device *device, void *out, const void *gate_up, int64_t rows, int64_t F) {
    SwiGLU s = {out, NULL, NULL, gate_up, rows, F, rows_per_task(F)};
    parallel_for(device->threads, tasks_of(rows, s.per_task), swiglu_forward_task, &s);
}

typedef struct SwiGLUGradient {
    vfloat d_gate, d_up, out; // out: as silu_times has it
} SwiGLUGradient;

static inline SwiGLUGradient swiglu_gradient(vfloat d_out, vfloat gate, vfloat up) {
    vfloat e = vexp(-gate), sigma = sigmoid(e), value = gate * sigma;
    return (SwiGLUGradient){d_out * up * (sigma * (1.0f + gate * (e * sigma))), d_out * value, value * up};
}

// d_gate and d_up may be gate and up, and out d_out.
static void swiglu_backward_row(float *d_gate, float *d_up, float *out, const float *d_out, const float *gate,
                                const float *up, int64_t F) {
    int64_t i = 0;
    for (; i + SIMD_WIDTH <= F; i += SIMD_WIDTH) {
        SwiGLUGradient g = swiglu_gradient(vload(d_out + i), vload(gate + i), vload(up + i));
        vstore(d_gate + i, g.d_gate);
        vstore(d_up + i, g.d_up);
        vstore(out + i, g.out);
    }
    if (i < F) {
        int64_t rest = F - i;
        SwiGLUGradient g =
            swiglu_gradient(vload_part(d_out + i, rest), vload_part(gate + i, rest), vload_part(up + i, rest));
        vstore_part(d_gate + i, g.d_gate, rest);
        vstore_part(d_up + i, g.d_up, rest);
        vstore_part(out + i, g.out, rest);
    }
}

static void swiglu_backward_task(void *context, int64_t task, int worker) {
    const SwiGLU *s = context;
    (void)worker;
    int64_t F = s->F, end = smaller((task + 1) * s->per_task, s->rows);
    for (int64_t row = task * s->per_task; row < end; row++) {
        float *d_gate = s->d_gate_up + 2 * row * F;
        const float *gate = s->gate_up + 2 * row * F;
        swiglu_backward_row(d_gate, d_gate + F, s->out + row * F, s->d_out + row * F, gate, gate + F, F);
    }
}

void SIMD_NAME(swiglu_backward)(Device *device, void *d_gate_up, void *out, const void *d_out, const void *gate_up,
                                int64_t rows, int64_t F) {
    SwiGLU s = {out, d_gate_up, d_out, gate_up, rows, F, rows_per_task(F)};
    parallel_for(device->threads, tasks_of(rows, s.per_task), swiglu_backward_task, &s);
}
