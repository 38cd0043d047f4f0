// Where wgmma finds its operands in shared memory, and what it makes of them. PTX ISA, "Asynchronous warpgroup level
// matrix multiply-accumulate: shared memory matrix layout", 128-byte swizzle.
#include "emulated/wgmma.h"

const char *operand_pieces(uint64_t descriptor, bool mn_major, int size, uint16_t *piece) {
    const uint32_t start = (uint32_t)(descriptor & 0x3fff) << 4, block = (uint32_t)(descriptor >> 16 & 0x3fff) << 4;
    const uint32_t unit = (uint32_t)(descriptor >> 32 & 0x3fff) << 4; // from 8 rows to the next
    const uint32_t first = start >> 4 & 7;                            // piece of the row
    if (descriptor >> 62 != 1) return "is not swizzled by 128 bytes (bits 62-63 are not 1)";
    if (start >> 7 & 7) return "does not begin in the first row of a unit of 1,024 bytes";
    if (mn_major ? (int)first + (size < 64 ? size : 64) / 8 > 8 : first > 6)
        return "reaches beyond its rows of 128 bytes";
    const int rows = mn_major ? PRODUCT_K : size, of_row = mn_major ? size / 8 : 2;
    for (int row = 0; row < rows; row++) {
        for (int i = 0; i < of_row; i++) {
            const uint32_t plain =
                start + (uint32_t)(row / 8) * unit + (uint32_t)(row % 8) * 128 +
                (mn_major ? (uint32_t)(i / 8) * block + (uint32_t)(i % 8) * PIECE : (uint32_t)i * PIECE);
            const uint32_t address = plain ^ (plain >> 7 & 7) << 4;
            if (address + PIECE > SHARED_SPACE) return "reaches beyond shared memory";
            *piece++ = (uint16_t)(address / PIECE);
        }
    }
    return NULL;
}

typedef float Columns __attribute__((vector_size(32)));
static inline __attribute__((always_inline)) void add(float *sum, const ProductOperands *x, int columns) {
    enum { ROWS = 8 }; // so that sums stay in registers and need not wait for one another
    for (int row = 0; row < PRODUCT_ROWS; row += ROWS) {
        for (int column = 0; column < columns; column += 8) {
            Columns part[ROWS], b;
            for (int i = 0; i < ROWS; i++) memcpy(&part[i], &sum[(row + i) * columns + column], sizeof b);
            for (int k = 0; k < PRODUCT_K; k++) {
                memcpy(&b, &x->b[k][column], sizeof b);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; i++) part[i] += x->a[row + i][k] * b;
            }
            for (int i = 0; i < ROWS; i++) memcpy(&sum[(row + i) * columns + column], &part[i], sizeof b);
        }
    }
}
#if defined(__x86_64__)
// The same by wider registers. (Fused with the product a sum is the same, since the product of two bf16 is exact.)
__attribute__((target("avx2,fma"))) static void add_avx2(float *sum, const ProductOperands *x, int columns) {
    add(sum, x, columns);
}
#endif

void product_add(float *sum, const ProductOperands *x, int columns) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return add_avx2(sum, x, columns);
#endif
    add(sum, x, columns);
}
