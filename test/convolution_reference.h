// The mixers conv, conv:gated and fourier from their definitions, forward and backward, in double precision: sums over
// all pairs of positions, and the filter's network written out for one position at a time.
#ifndef TEST_CONVOLUTION_REFERENCE_H
#define TEST_CONVOLUTION_REFERENCE_H

#include "test/mixer_problem.h"

// The mixer's tensors in the order of its file, of which fourier has the first two.
enum { REF_IN, REF_OUT, REF_W1, REF_W2, REF_BIAS, REF_W3, REF_SKIP, REF_TENSORS };
extern const char *const ref_names[REF_TENSORS];

typedef struct ConvolutionReference {
    int64_t T, B, C, positions, wide; // wide: 1, or gated 3 projections
    bool cosine;                      // fourier
    int tensors;
    int64_t size[REF_TENSORS];
    double *weight[REF_TENSORS], *gradient[REF_TENSORS];
    double *x, *d_out, *out, *d_x; // (B, T, C)
    double *projected, *mixed;     // (B, T, wide C), (B, T, C)
    double *h, *d_h;               // (T, C)
} ConvolutionReference;

// The inputs of an answer.
ConvolutionReference reference_of(const MixerProblem *problem, const MixerAnswer *answer);
void reference_free(ConvolutionReference *r);
void reference_forward(ConvolutionReference *r);
void reference_backward(ConvolutionReference *r);     // after forward
double reference_loss(const ConvolutionReference *r); // sum of out . d_out

// Holds out, d_x and all gradients of an answer against it, within what is allowed of each.
typedef struct Allowed {
    double out, d_x, gradient[REF_TENSORS];
} Allowed;
void reference_expect(const ConvolutionReference *r, const MixerProblem *problem, int ranks, const MixerAnswer *answer,
                      const Allowed *allowed);

#endif
