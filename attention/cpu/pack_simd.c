// Blocks of tokens copied from where the model keeps them, rows far apart and D values long, to where the products want
// them: close together and padded to whole vectors. And back.
#include <string.h>

#include "attention/cpu/tile_kernels.h"
#include "base/simd.h"
#include "layers/cpu/transpose.h"

TilePack SIMD_NAME(tile_pack);

void SIMD_NAME(tile_pack)(Rows to, int64_t padded, Rows from, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r++) {
        float *out = to.data + r * to.stride;
        const float *in = from.data + r * from.stride;
        for (int64_t i = 0; i < columns; i++) out[i] = in[i];
        for (int64_t i = columns; i < padded; i++) out[i] = 0;
    }
}

TilePackTransposed SIMD_NAME(tile_pack_transposed);

void SIMD_NAME(tile_pack_transposed)(Rows to, int64_t padded, Rows from, int64_t rows, int64_t columns, float scale) {
    int64_t whole_rows = rows / SIMD_WIDTH * SIMD_WIDTH, whole_columns = columns / SIMD_WIDTH * SIMD_WIDTH;
    for (int64_t r = 0; r < whole_rows; r += SIMD_WIDTH) {
        for (int64_t c = 0; c < whole_columns; c += SIMD_WIDTH) {
            vfloat block[SIMD_WIDTH];
            for (int i = 0; i < SIMD_WIDTH; i++) block[i] = scale * vload(from.data + (r + i) * from.stride + c);
            transpose_block(block);
            for (int i = 0; i < SIMD_WIDTH; i++) vstore(to.data + (c + i) * to.stride + r, block[i]);
        }
    }
    for (int64_t c = 0; c < columns; c++) {
        for (int64_t r = c < whole_columns ? whole_rows : 0; r < padded; r++)
            to.data[c * to.stride + r] = r < rows ? scale * from.data[r * from.stride + c] : 0;
    }
}

TileAdd SIMD_NAME(tile_add);

void SIMD_NAME(tile_add)(Rows to, Rows from, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < columns; i++) to.data[r * to.stride + i] += from.data[r * from.stride + i];
}
