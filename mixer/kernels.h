// What a device computes for token mixers beside its layers (layers/device.h): a table for each family, in the header of
// that name. The rules of the device's functions hold: storage is opaque, calls run in the order made, and whatever a
// family works in it states (Mixer.scratch_bytes). NULL: this device cannot serve the family.
#ifndef MIXER_KERNELS_H
#define MIXER_KERNELS_H

#ifdef __cplusplus
extern "C" {
#endif

typedef struct MixerKernels {
    const struct ScanKernels *scan;               // mixer/scan.h: running sums (mean)
    const struct LinearKernels *linear;           // mixer/linear.h
    const struct DeltaKernels *delta;             // mixer/delta.h
    const struct ConvolutionKernels *convolution; // mixer/convolution.h: conv, fourier
    const struct TriangleKernels *triangle;       // mixer/triangle.h: mlp
} MixerKernels;

extern const MixerKernels mixer_kernels_cpu;

#ifdef __cplusplus
}
#endif
#endif
