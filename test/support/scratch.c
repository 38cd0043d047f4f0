// Bodies of test/scratch.h.
#include "test/scratch.h"

void lend_stated_scratch(Device *device, int64_t rows, int64_t C, int64_t columns, const AttentionShape *shape) {
    const AttentionKernels *kernels = device->attention;
    Error err = {0};
    size_t bytes = device_scratch_bytes(device_kind(device->name), device->threads, rows, C, columns), attention = 0;
    if (shape != NULL && kernels->scratch_bytes != NULL) attention = kernels->scratch_bytes(shape, device->threads);
    if (!device_lend_scratch(device, bytes > attention ? bytes : attention, &err)) die(&err);
}
