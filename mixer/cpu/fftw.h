// Real transforms of N floats by FFTW, in place: a row of N + 2 floats holds N values, or N / 2 + 1 complex ones.
#ifndef MIXER_CPU_FFTW_H
#define MIXER_CPU_FFTW_H

#include <stdint.h>

#include "base/error.h"

typedef struct RealTransform RealTransform;

// Whether FFTW can be opened; else a usage error that begins with `option`.
bool fftw_opens(const char *option, Error *err);
// The transform of N values. Made once, at the first call for that N, and kept: FFTW takes memory for it then. `row`:
// any row of N + 2 floats at a multiple of 64 bytes, which is not written.
const RealTransform *fftw_transform(int64_t N, float *row);
// row at a multiple of 64 bytes. Any thread. Neither scales: back and forth gives N times what was there.
void fftw_forward(const RealTransform *transform, float *row);
void fftw_backward(const RealTransform *transform, float *row);

#endif
