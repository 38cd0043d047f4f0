// Bodies of test/scratch.h.
#include "test/scratch.h"

void lend_stated_scratch(Device *device, int64_t rows, int64_t C, int64_t columns, size_t attention) {
    Error err = {0};
    size_t layers = device_scratch_bytes(device_kind(device->name), device->threads, rows, C, columns);
    if (!device_lend_scratch(device, layers > attention ? layers : attention, &err)) die(&err);
}

size_t stated_for_attention(const Device *device, const AttentionShape *shape, int64_t queries) {
    const AttentionKernels *kernels = device->attention;
    return kernels->scratch_bytes == NULL ? 0 : kernels->scratch_bytes(shape, queries, device->threads);
}
