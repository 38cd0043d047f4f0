// A product of a warpgroup: its operands in shared memory, and its arithmetic.
#ifndef EMULATED_WGMMA_H
#define EMULATED_WGMMA_H

#include "emulated/hopper.h"

enum { PRODUCT_ROWS = 64, PRODUCT_K = 16, MOST_COLUMNS = 256, MOST_PIECES = 2 * (PRODUCT_ROWS + MOST_COLUMNS) };

// The pieces of 16 bytes that an operand is made of, by their number in shared memory. K-major: of each row two.
// MN-major: of each k, `size` / 8. NULL, or what is wrong with the descriptor.
const char *operand_pieces(uint64_t descriptor, bool mn_major, int size, uint16_t *piece);

// sum (64 x columns, row after row) += a b, by plain additions in fp32, k after k.
struct ProductOperands {
    float a[PRODUCT_ROWS][PRODUCT_K];
    float b[PRODUCT_K][MOST_COLUMNS] __attribute__((aligned(64)));
};
void product_add(float *sum, const ProductOperands *x, int columns);

static inline float product_value(uint16_t bits) { // of a bf16
    const uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

#endif
