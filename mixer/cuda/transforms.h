// Real transforms by cuFFT, many rows at once and in place, as mixer/cpu/fftw.h has them of one row.
#ifndef MIXER_CUDA_TRANSFORMS_H
#define MIXER_CUDA_TRANSFORMS_H

#include <stddef.h>
#include <stdint.h>

#include "layers/device.h"

struct RealTransforms; // of one device: its plans

// N values, or N / 2 + 1 complex numbers, in each of `count` rows, `stride` floats apart. Neither scales: back and
// forth gives N times what was there. Into the stream of work. `work`: work_bytes of the device's memory, for the call
// alone; needing more ends the program. A plan is made at the first call of its sizes.
struct RowsToTransform {
    float *rows;
    int64_t N, stride, count;
    void *work;
    size_t work_bytes;
};
void transform_forward(Device *device, const RowsToTransform &rows);
void transform_backward(Device *device, const RowsToTransform &rows);

void real_transforms_free(struct RealTransforms *transforms); // may be NULL

#endif
