// Softmax attention as its definition says, in double precision, every head with a mask of its own: what `attention`
// and `dilated` are held against.
//
//   q, k, v = x W^T, q and k rotated    p_ij = softmax_j(q_i . k_j / sqrt(D)) over j that i sees, none: 0
//   y_i = sum_j p_ij v_j, heads side by side    out = y W^O^T
#ifndef TEST_SOFTMAX_DENSE_H
#define TEST_SOFTMAX_DENSE_H

#include "test/mixer_problem.h"

#include "mixer/attention.h"

typedef struct SoftmaxDense {
    int64_t W, R, T, B, C, H, KV, D;         // the last W positions, of which head h sees one in R
    const int32_t *first;                    // (B, T) or NULL
    double *x, *d_out, *qkv_weight, *weight; // ((H + 2 KV) D, C), (C, H D)
    double *out, *d_x, *d_qkv_weight, *d_weight;
} SoftmaxDense;

// Of the same inputs; nothing is worked out yet.
SoftmaxDense softmax_dense(const MixerProblem *p, const MixerAnswer *a);
void softmax_dense_run(SoftmaxDense *s, bool backward); // backward adds to the gradients
void softmax_dense_free(SoftmaxDense *s);

// Fails unless the gradients are those that central differences of the output have.
void expect_softmax_derivative(SoftmaxDense *s);

// What is allowed, in units of storage's rounding u. In fp32 every product and the softmax of up to T terms round some
// ten times on the way, at random, and backward twice as often. In bf16 (u = 2^-9) only what is stored is rounded: q,
// k, v, attended, out, and backward their gradients; scores of variance 1 turn that of q and k into as much of p.
// Errors of single elements go with the size of their row, and rows that many queries see have large gradients.
enum { SOFTMAX_FORWARD = 8, SOFTMAX_BACKWARD = 16 };

// The output, all gradients, and the bytes sent, over each of these numbers of ranks by these exchanges in turn (one that
// needs a head for each rank only where there is: else what `auto` takes). The definition is worked out once. More ranks
// than half the tokens are left out.
void expect_softmax(MixerProblem p, const int *ranks, int count, const Exchange *exchanges, int kinds);

#endif
