// Step 5: ldmatrix and swizzle.
//
// Step 4 gathers its fragments 4 bytes, or for V 2 bytes, at a time, and its rows of 128 or 256 bytes all begin at the
// same bank: the eight rows of a fragment come one after the other. ldmatrix brings four 8 x 8 matrices at once, laid
// out as mma wants them, transposed on the way if asked: that is V's fragment without a single shuffle. And the tile is
// permuted, 16 bytes at a time, so that eight rows lie in eight different places (attention/cuda/tile.h has the
// picture; run with EMULATED_BANKS=1 to have the passes counted). All else is step 4.
//
// What is left for attention/cuda/forward.cu: a warp still waits for every tile to arrive (there the next one is under
// way while this one is worked on), each fragment of K and V serves 16 rows only (there 32), the scores of every tile
// are compared with the diagonal, and the accumulator is rescaled at every tile.
#include "dev/ladder/softmax.h"

namespace {

enum { WARPS = 4, THREADS = WARPS * WARP, ROWS = WARPS * 16, KEYS = 32 };

template <int D>
__device__ void load_tile(unsigned char *tile, const Ladder &x, const bf16 *tensor, int head, int first, int rows) {
    for (int n = threadIdx.x * PACKET; n < rows * D; n += THREADS * PACKET) {
        const int t = first + n / D;
        uint4 piece = {0, 0, 0, 0};
        if (t < x.T) piece = *reinterpret_cast<const uint4 *>(tensor + row_at(x, head, t) + n % D);
        *reinterpret_cast<uint4 *>(tile + tile_offset<D>(n / D, n % D / PACKET)) = piece;
    }
}

template <int D> __global__ void ldmatrix_kernel(Ladder x) {
    DYNAMIC_SHARED(unsigned char, q_tile);
    unsigned char *k_tile = q_tile + tile_bytes<D>(ROWS), *v_tile = k_tile + tile_bytes<D>(KEYS);
    const int blocks = ceil_div(x.T, (int)ROWS), head = blockIdx.x / blocks, first_row = blockIdx.x % blocks * ROWS;
    const int own = (int)threadIdx.x / WARP * 16; // the warp's first row
    const Tile<D> q = {q_tile, tile_bytes<D>(own)}, k = {k_tile, 0}, v = {v_tile, 0};
    const Lane lane = this_lane<D>();
    Rows<D> rows;
    begin(rows);

    load_tile<D>(q_tile, x, x.q, head, first_row, ROWS);
    const int last = smaller_of(first_row + ROWS, x.T) - 1;
    for (int first = 0; first <= last; first += KEYS) {
        __syncthreads();
        load_tile<D>(k_tile, x, x.k, head, first, KEYS);
        load_tile<D>(v_tile, x, x.v, head, first, KEYS);
        __syncthreads();
        Accumulator<1, KEYS> s;
        clear(s);
        mma_ABt(s, q, k, lane); // S = Q K^T
        softmax(rows, s, first_row + own, first, x.scale, lane);
        mma_AB(rows.out, s, v, lane); // out += P V
    }
    store(x, head, first_row + own, rows, lane);
}

} // namespace

void step_5(const Ladder *x) {
    const unsigned blocks = (unsigned)(x->heads * ceil_div(x->T, (int)ROWS));
    const int bytes = (ROWS + 2 * KEYS) * x->D * (int)sizeof(bf16);
    if (x->D == 64) launch(ldmatrix_kernel<64>, blocks, THREADS, bytes, x->stream, *x);
    else launch(ldmatrix_kernel<128>, blocks, THREADS, bytes, x->stream, *x);
}
