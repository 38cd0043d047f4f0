// What the tests of the layers share: devices of every instruction set and several numbers of threads, random tensors,
// and comparisons with a tolerance for each element.
//
// UNIT is the largest relative error of one rounding to single precision, 2^-24. Tolerances count roundings: a value
// that comes from n operations on its way is off by about n UNIT of the largest intermediate value. A sum of n terms
// adds up n roundings of its partial sums; as roundings go up as often as down, its error is near sqrt(n) UNIT
// sum|terms| at most.
#ifndef TEST_LAYER_CASES_H
#define TEST_LAYER_CASES_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <setjmp.h>
#include <cmocka.h>

#include "base/cpu_features.h"
#include "base/random.h"
#include "layers/device.h"
#include "test/layers_reference.h"
#include "test/memory.h"
#include "test/scratch.h"

#define UNIT 0x1p-24

double sum_tolerance(int64_t terms, double sum_of_magnitudes);

// ---- tensors ----------------------------------------------------------------------------------------------------
float *floats(int64_t count);
double *doubles(int64_t count);

float *random_floats(int64_t count, uint64_t stream, double mean, double deviation);
int32_t *random_tokens(int64_t count, uint64_t stream, int64_t V);
float *copy_of(const float *x, int64_t count);
double *append(double *to, const float *x, int64_t count); // returns where the next goes

// ---- comparisons ------------------------------------------------------------------------------------------------
void expect_near(const char *what, int64_t i, double got, double expected, double tolerance);
void expect_same_bits(const char *what, const float *a, const float *b, int64_t count);

// ---- devices ------------------------------------------------------------------------------------------------------
// Calls run with a device for every instruction set of this processor and for 1, 2 and 3 threads.
void for_each_device(void (*run)(Device *, void *), void *argument);

// ---- finite differences -------------------------------------------------------------------------------------------
typedef void Reference(const Shape *, const double *in, double *out);
typedef void ReferenceBackward(const Shape *, const double *in, const double *d_out, double *d_in);

// Compares a reference gradient with (f(in + h) - f(in - h)) / 2h, f = sum of d_out * out. With h = 1e-5 the cut-off
// error, f''' h^2 / 6, and the rounding error, 1e-16 f / h, are both near 1e-10 for f of size 1 to 10.
void check_gradient(const Shape *s, Reference *forward, ReferenceBackward *backward, double *in, int64_t in_count,
                    int64_t out_count);

double *random_doubles(int64_t count, double deviation);

#endif
