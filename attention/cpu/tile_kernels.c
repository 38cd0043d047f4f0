// The tile kernels of the instruction set that this processor is best at.
#include "attention/cpu/tile_kernels.h"

#include "base/cpu_features.h"

extern TileProduct tile_product_portable, tile_product_avx2, tile_product_avx512;
extern TileSoftmax tile_softmax_portable, tile_softmax_avx2, tile_softmax_avx512;
extern TileSoftmaxBackward tile_softmax_backward_portable, tile_softmax_backward_avx2, tile_softmax_backward_avx512;
extern TileScaleRows tile_scale_rows_portable, tile_scale_rows_avx2, tile_scale_rows_avx512;
extern TilePack tile_pack_portable, tile_pack_avx2, tile_pack_avx512;
extern TilePackTransposed tile_pack_transposed_portable, tile_pack_transposed_avx2, tile_pack_transposed_avx512;
extern TileAdd tile_add_portable, tile_add_avx2, tile_add_avx512;

static const TileKernels kernels_portable = {
    .product = tile_product_portable,
    .softmax = tile_softmax_portable,
    .softmax_backward = tile_softmax_backward_portable,
    .scale_rows = tile_scale_rows_portable,
    .pack = tile_pack_portable,
    .pack_transposed = tile_pack_transposed_portable,
    .add = tile_add_portable,
};

#if defined(__x86_64__)
static const TileKernels kernels_avx2 = {
    .product = tile_product_avx2,
    .softmax = tile_softmax_avx2,
    .softmax_backward = tile_softmax_backward_avx2,
    .scale_rows = tile_scale_rows_avx2,
    .pack = tile_pack_avx2,
    .pack_transposed = tile_pack_transposed_avx2,
    .add = tile_add_avx2,
};

static const TileKernels kernels_avx512 = {
    .product = tile_product_avx512,
    .softmax = tile_softmax_avx512,
    .softmax_backward = tile_softmax_backward_avx512,
    .scale_rows = tile_scale_rows_avx512,
    .pack = tile_pack_avx512,
    .pack_transposed = tile_pack_transposed_avx512,
    .add = tile_add_avx512,
};
#endif

const TileKernels *tile_kernels(void) {
    switch (simd_level()) {
#if defined(__x86_64__)
    case SIMD_AVX512: return &kernels_avx512;
    case SIMD_AVX2: return &kernels_avx2;
#endif
    default: return &kernels_portable;
    }
}
