// Sizes that all devices' convolutions share.
#include "mixer/convolution.h"

int64_t convolution_length(int64_t T) {
    int64_t least = 2 * T - 1, best = 2;
    while (best < least) best *= 2;
    for (int64_t five = 1; 2 * five < best; five *= 5)
        for (int64_t three = five; 2 * three < best; three *= 3) {
            int64_t length = 2 * three;
            while (length < least) length *= 2;
            if (length < best) best = length;
        }
    return best;
}

// CPU: whole cache lines; and not a multiple of 4 KiB, since rows then share few sets of the caches.
int64_t convolution_stride(int64_t T) {
    enum { LINE = 16, PAGE = 1024 };
    int64_t stride = (convolution_length(T) + 2 + LINE - 1) / LINE * LINE;
    return stride % PAGE == 0 ? stride + LINE : stride;
}

// A worker's rows of one tile: spectra of the filter, of d_z, of u, and of d_filter.
size_t convolution_scratch_cpu(int64_t T, int threads) {
    return (size_t)threads * 4 * CONVOLUTION_TILE * (size_t)convolution_stride(T) * sizeof(float);
}

// GPUs: a channel's row is dense. cuFFT has faster transforms of such rows, which need no work area.
static size_t row_bytes_cuda(int64_t T) { return (size_t)(convolution_length(T) + 2) * sizeof(float); }

// As many channels as are some 32 MiB, in groups of about the same size.
int64_t convolution_group(int64_t T, int64_t channels) {
    int64_t most = ((int64_t)32 << 20) / (int64_t)row_bytes_cuda(T);
    if (most < 1) most = 1;
    int64_t groups = (channels + most - 1) / most;
    return groups > 0 ? (channels + groups - 1) / groups : 1;
}

size_t convolution_spectra_bytes(int64_t T, int64_t channels) {
    return ((size_t)convolution_group(T, channels) * row_bytes_cuda(T) + 255) / 256 * 256;
}

// The same four spectra of a group, and as much as two for cuFFT to work in, which takes as much as one at most.
size_t convolution_scratch_cuda(int64_t T, int64_t channels) { return 6 * convolution_spectra_bytes(T, channels); }
