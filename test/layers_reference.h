// The layers in double precision, in the plainest way: what the tests of the real ones compare with. The backward ones
// are proved by central finite differences of the forward ones (check_gradient).
//
// A reference layer is a function of one vector, which holds all that a gradient is taken of: `in`, laid out as its
// comment says. Its backward pass fills d_in from d_out likewise.
#ifndef TEST_LAYERS_REFERENCE_H
#define TEST_LAYERS_REFERENCE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct Shape {
    int64_t rows, C, K; // C: the length of a row of the result
    double epsilon;
    const int32_t *tokens, *positions;
    int64_t V, positions_count; // rows of the embedding tables
    int64_t heads;              // rotary; C = heads * D
    const float *cosines, *sines;
    double d_loss;
} Shape;

// ---- embedding: in = token_table (V, C), position_table (positions_count, C) -------------------------------------
void reference_embedding(const Shape *s, const double *in, double *out);
void reference_embedding_backward(const Shape *s, const double *in, const double *d_out, double *d_in);

// ---- LayerNorm: in = x (rows, C), weight (C), bias (C) -------------------------------------------------------------
typedef struct Moments {
    double mean, rstd;
} Moments;
Moments reference_moments(const double *x, int64_t C, double epsilon);
void reference_layernorm(const Shape *s, const double *in, double *out);
void reference_layernorm_backward(const Shape *s, const double *in, const double *d_out, double *d_in);

// ---- RMSNorm: in = x (rows, C), weight (C) -------------------------------------------------------------------------
double reference_rstd(const double *x, int64_t C, double epsilon);
void reference_rmsnorm(const Shape *s, const double *in, double *out);
void reference_rmsnorm_backward(const Shape *s, const double *in, const double *d_out, double *d_in);

// ---- matmul: in = x (rows, K), weight (C, K), bias (C) --------------------------------------------------------------
void reference_matmul(const Shape *s, const double *in, double *out);
void reference_matmul_backward(const Shape *s, const double *in, const double *d_out, double *d_in);

// ---- rotary: in = x (rows, heads * D) ----------------------------------------------------------------------------
void reference_rotary(const Shape *s, const double *in, double *out);
void reference_rotary_backward(const Shape *s, const double *in, const double *d_out, double *d_in);

// ---- GELU: in = x (rows, C) -----------------------------------------------------------------------------------------
double reference_gelu_inner(double x);
void reference_gelu(const Shape *s, const double *in, double *out);
void reference_gelu_backward(const Shape *s, const double *in, const double *d_out, double *d_in);

// ---- SwiGLU: in = gate_up (rows, 2C) --------------------------------------------------------------------------------
void reference_swiglu(const Shape *s, const double *in, double *out);
void reference_swiglu_backward(const Shape *s, const double *in, const double *d_out, double *d_in);

// ---- classifier: in = logits (rows, C), out = losses (rows), targets are s->tokens ----------------------------------
double reference_log_sum_exp(const double *x, int64_t C);
void reference_classifier(const Shape *s, const double *in, double *out);
void reference_classifier_backward(const Shape *s, const double *in, const double *d_out, double *d_in);

#endif
