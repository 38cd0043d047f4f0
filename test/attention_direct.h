// Attention written out directly, forward and backward, over a whole sequence: in double precision, to judge kernels
// by, or with every operation rounded to fp32, to know what fp32 costs at its plainest.
#ifndef TEST_ATTENTION_DIRECT_H
#define TEST_ATTENTION_DIRECT_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "sequence/visibility.h"

typedef struct Problem {
    int64_t B, T, H, KV, D;
    double gain; // of the queries: 1 gives scores of variance 1
} Problem;

void *allocate(int64_t count, size_t size);

// Contiguous tensors: q, out, d_out, d_q (B, T, H, D); k, v, d_k, d_v (B, T, KV, D); log_sum_exp (B, H, T).
typedef struct Direct {
    Problem problem;
    Visibility visibility; // `first` belongs to the test
    double *q, *k, *v, *d_out, *out, *log_sum_exp, *d_q, *d_k, *d_v;
} Direct;

int64_t query_count(Problem p);
int64_t key_count(Problem p);

Direct direct_allocate(Problem p);

void direct_free(Direct *x);

// Normally distributed values that fp32 can hold.
Direct direct_random(Problem p, uint64_t seed);

float scale_of(Problem p);

// What an operation gives in double or, if `single`, in fp32: rounding its double result once more is the same.
void direct_attention(Direct *x, bool single);

// The same inputs, and the answer in fp32.
Direct direct_single(const Direct *exact);

#endif
