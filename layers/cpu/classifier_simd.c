// Softmax cross-entropy, and its gradient over the logits in place.
//
// loss = log(sum_j exp(x_j - max)) + max - x_target. No exp of a positive number occurs, so logits may lie any distance
// apart. Sums run in single precision over short blocks, and in double from block to block.
#include <math.h>
#include <string.h>

#include "layers/cpu/layers.h"
#include "layers/cpu/vector.h"

enum { SUM_BLOCK = 64 * SIMD_WIDTH };

typedef struct Classifier {
    float *logits, *losses;
    const int32_t *targets;
    int64_t rows, V, Vp, per_task;
    float d_loss;
} Classifier;

// The largest value, or not-a-number where there is one (comparisons alone would step over it).
static float row_maximum(const float *x, int64_t V) {
    vfloat best = vset(-INFINITY);
    vint unordered = {0};
    int64_t i = 0;
    for (; i + SIMD_WIDTH <= V; i += SIMD_WIDTH) {
        vfloat value = vload(x + i);
        best = vmax(value, best);
        unordered |= value != value;
    }
    float maximum = vmaximum(best);
    for (; i < V; i++) {
        if (x[i] > maximum) maximum = x[i];
        if (isnan(x[i])) return x[i];
    }
    for (int lane = 0; lane < SIMD_WIDTH; lane++)
        if (unordered[lane] != 0) return NAN;
    return maximum;
}

// The sum of exp(x - maximum) over one block; also stored over x if wanted.
static float exp_block(float *x, int64_t count, float maximum, bool store) {
    vfloat sum = {0};
    int64_t i = 0;
    for (; i + SIMD_WIDTH <= count; i += SIMD_WIDTH) {
        vfloat e = vexp(vload(x + i) - maximum);
        sum += e;
        if (store) vstore(x + i, e);
    }
    float total = vsum(sum);
    if (i < count) {
        vfloat e = vexp(vload_part(x + i, count - i) - maximum);
        if (store) vstore_part(x + i, e, count - i);
        for (int64_t j = 0; j < count - i; j++) total += e[j];
    }
    return total;
}

static void scale_row(float *x, int64_t V, float factor) {
    int64_t i = 0;
    for (; i + SIMD_WIDTH <= V; i += SIMD_WIDTH) vstore(x + i, vload(x + i) * factor);
    for (; i < V; i++) x[i] *= factor;
}

static float classify_row(float *x, int32_t target, int64_t V, float d_loss) {
    float maximum = row_maximum(x, V), at_target = x[target];
    double sum = maximum - maximum; // 0, or not-a-number where the maximum is not finite
    for (int64_t i = 0; i < V; i += SUM_BLOCK) sum += exp_block(x + i, smaller(SUM_BLOCK, V - i), maximum, d_loss != 0);
    if (d_loss != 0) {
        scale_row(x, V, (float)(d_loss / sum));
        x[target] -= d_loss;
    }
    return (float)(log(sum) + ((double)maximum - at_target));
}

static void classifier_task(void *context, int64_t task, int worker) {
    const Classifier *c = context;
    (void)worker;
    int64_t end = smaller((task + 1) * c->per_task, c->rows);
    for (int64_t row = task * c->per_task; row < end; row++) {
        float *x = c->logits + row * c->Vp;
        if (c->targets[row] < 0) { // does not count
            c->losses[row] = 0;
            if (c->d_loss != 0) memset(x, 0, (size_t)c->Vp * sizeof *x);
            continue;
        }
        c->losses[row] = classify_row(x, c->targets[row], c->V, c->d_loss);
        if (c->d_loss != 0) memset(x + c->V, 0, (size_t)(c->Vp - c->V) * sizeof *x);
    }
}

void SIMD_NAME(classifier)(Device *device, void *logits, float *losses, const int32_t *targets, int64_t rows, int64_t V,
                           int64_t Vp, float d_loss) {
    Classifier c = {logits, losses, targets, rows, V, Vp, rows_per_task(V), d_loss};
    parallel_for(device->threads, tasks_of(rows, c.per_task), classifier_task, &c);
}
