// Linear attention as its definition says, in double precision, P built as a matrix: what its programs hold it against.
#ifndef TEST_LINEAR_DENSE_H
#define TEST_LINEAR_DENSE_H

#include "test/mixer_problem.h"

#include "mixer/linear.h"

// Everything in double precision. w: by LINEAR_Q, ...
typedef struct LinearDense {
    int64_t B, T, C, H, KV, D;
    double decay; // of all heads; 0: by head
    const int32_t *first;
    double *x, *d_out, *w[4];
    double *out, *d_x, *d_w[4];
} LinearDense;

int64_t linear_weight_rows(const LinearDense *s, int i);
int64_t linear_weight_columns(const LinearDense *s, int i);
LinearDense linear_dense(const MixerProblem *p, const MixerAnswer *a); // of the same inputs; nothing is worked out yet
void linear_dense_run(LinearDense *s, bool backward);
void linear_dense_free(LinearDense *s);

// Runs the mixer on each number of ranks (the first is 1, 0 ends them) that has two tokens for each, against the
// definition: errors of the output and of all gradients, which do not grow with ranks, and the bytes sent.
void expect_linear(const MixerProblem *p, const int *ranks, double forward, double backward);

#endif
