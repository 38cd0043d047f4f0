// The loops of a scan over one block of SCAN_BLOCK rows, one copy for each instruction set (scan_simd.c).
#ifndef MIXER_CPU_SCAN_H
#define MIXER_CPU_SCAN_H

#include "mixer/scan.h"

// sum (C) = of block `block` of sequence b.
typedef void ScanBlockSum(const Scan *, int64_t b, int64_t block, float *sum, const float *x);
// The block's rows of out; blocks and before as ScanKernels.scan takes them.
typedef void ScanBlock(const Scan *, int64_t b, int64_t block, float *out, const float *x, const float *blocks,
                       const double *before);

#endif
