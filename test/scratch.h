// Scratch memory for devices that a test opens: exactly what is stated for its sizes, so that a call which takes more
// ends the test.
#ifndef TEST_SCRATCH_H
#define TEST_SCRATCH_H

#include "attention/kernel.h"

// For layers on up to `rows` rows of width C, biases of up to `columns`, and attention that needs so many bytes.
// device_return_scratch gives it back.
void lend_stated_scratch(Device *device, int64_t rows, int64_t C, int64_t columns, size_t attention);
// What the device's kernels state for this shape, and up to `queries` queries.
size_t stated_for_attention(const Device *device, const AttentionShape *shape, int64_t queries);

#endif
