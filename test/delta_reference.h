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

// How much larger the errors of a decay's gradient are than those of the dot products that it is a sum of
// (mixer/delta.h's last line): three a row, over the rest of its block, of 32 rows in the mean. Where decays are
// strong, later rows cancel each other, and what is left is no larger than one row's; their errors, independent of each
// other, are sqrt(3 * 32).
static const double DELTA_OF_DECAYS = 9.8;

// Runs the mixer on each number of ranks (the first is 1, 0 ends them) that has two tokens for each, against the
// reference: outputs, d_x and each tensor's gradient, each within `allowed` in norm, those of decays within
// DELTA_OF_DECAYS times that, and the others not growing with ranks; and the bytes sent.
void expect_delta(const MixerProblem *problem, const int *ranks, double allowed);
// Fills decays, their biases and scales with different values.
void delta_fill(const Parameter *parameter, float *values);
// The same, but decays are 0.5, or 1 - 1e-6, to the power of softplus(X W^A + dt_bias), which is around 1.
void delta_fill_fast(const Parameter *parameter, float *values);
void delta_fill_slow(const Parameter *parameter, float *values);

#endif
