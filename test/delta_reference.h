// The gated delta rule as mixer/delta.c defines it, in double precision and token by token: forward by the recurrence,
// backward by the same recurrence from the other end, derived by hand. It shares nothing with the kernels.
#ifndef TEST_DELTA_REFERENCE_H
#define TEST_DELTA_REFERENCE_H

#include "test/mixer_problem.h"

typedef struct DeltaReference {
    const ModelConfig *config;
    const ParameterTable *table;
    const int32_t *first; // (B, T); NULL: no documents
    int64_t B, T;
    const double *weights, *x, *d_out; // (table.total), (B, T, C), (B, T, C)
    double *out, *d_x, *gradients;     // as these; d_x NULL: forward alone
} DeltaReference;

// gradients are added to.
void delta_reference(const DeltaReference *reference);

// Runs the problem's reference and holds an answer against it: outputs, d_x and each tensor's gradient, each within
// `allowed` in norm; those of decays, which are small differences of large sums, within 10 times that.
void delta_expect(const MixerProblem *problem, const MixerAnswer *answer, int ranks, double allowed);
// Fills decays, their biases and scales with different values.
void delta_fill(const Parameter *parameter, float *values);

#endif
