// Embedding: rows of the token and position tables, looked up and added; backward, d_out summed into those rows.
//
// Backward without atomics and without depending on luck. (row, token) pairs are sorted by token, rows of one token
// staying in order (sort.cu); then equal tokens are neighbours, a "run". The sorted list is cut into pieces of equal
// length, and a warp walks each piece for 256 channels, summing run after run in registers. A run inside one piece is
// added to its row of the table at once, by the only warp that has it. A run that crosses the ends of pieces - a
// frequent token, or every one of a byte vocabulary - leaves a partial sum for each piece, and a block adds these in
// order. So the work is even, however the tokens are spread, and the order is always the same. Positions need no sort.
//
// Limit: memory, d_out read once, each touched row of the table read and written once.
#include "layers/cuda/columns.h"
#include "layers/cuda/context.h"
#include "layers/cuda/layers.h"
#include "layers/cuda/sort.h"

namespace {

enum { WARPS = 4, THREADS = WARPS * WARP }; // of each block here

// ---- forward -------------------------------------------------------------------------------------------------------
// A warp for each row. Small tables stay in the L2 cache, so what counts is writing `out`.
template <bool whole>
__global__ void __launch_bounds__(THREADS)
    embedding_forward_kernel(bf16 *out, const int32_t *tokens, const int32_t *positions, const bf16 *token_table,
                             const bf16 *position_table, int64_t rows, int64_t C) {
    const int lane = threadIdx.x % WARP;
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row >= rows) return;
    const bf16 *token = token_table + tokens[row] * C;
    const bf16 *position = position_table == NULL ? NULL : position_table + positions[row] * C;
#pragma unroll 4
    for (int64_t first = 0; first < C; first += WARP_COLUMNS) {
        float sum[PACKET], term[PACKET];
        load_columns<whole>(sum, token, first, C, lane);
        if (position != NULL) {
            load_columns<whole>(term, position, first, C, lane);
#pragma unroll
            for (int i = 0; i < PACKET; i++) sum[i] += term[i];
        }
        store_columns<whole>(out + row * C, sum, first, C, lane);
    }
}

template <bool whole>
void launch_forward(cudaStream_t stream, bf16 *out, const int32_t *tokens, const int32_t *positions,
                    const bf16 *token_table, const bf16 *position_table, int64_t rows, int64_t C) {
    launch(embedding_forward_kernel<whole>, ceil_div<int64_t>(rows, WARPS), THREADS, 0, stream, out, tokens, positions,
           token_table, position_table, rows, C);
}

} // namespace

void cuda_embedding_forward(Device *device, void *out, const int32_t *tokens, const int32_t *positions,
                            const void *token_table, const void *position_table, int64_t rows, int64_t C) {
    if (rows == 0 || C == 0) return;
    const bool whole = fits_packets(C, out, token_table, position_table);
    (whole ? launch_forward<true> : launch_forward<false>)(stream_of(device), static_cast<bf16 *>(out), tokens,
                                                           positions, static_cast<const bf16 *>(token_table),
                                                           static_cast<const bf16 *>(position_table), rows, C);
}

// ---- backward ------------------------------------------------------------------------------------------------------

namespace {

// partial (pieces, 2, C): the sum of the run that comes into a piece from the one before, and of the run that begins in
// it and goes on in the next.
enum { INCOMING, OUTGOING };
enum { AT_ONCE = 4 }; // rows of d_out that a warp has under way
enum { JOIN_WARPS = 8, JOIN_THREADS = JOIN_WARPS * WARP };
enum { BLOCKS = 4 }; // of THREADS that a multiprocessor holds at least: said, or nvcc saves registers and cuts AT_ONCE

// The columns of a lane in a row of the table, which may lie at any address, or of partial sums.
template <bool whole>
__device__ inline void load_sums(float sum[PACKET], const float *row, int64_t first, int64_t C, int lane) {
    if (whole && (uintptr_t)row % 16 == 0) load_columns<true>(sum, row, first, C, lane);
    else {
#pragma unroll
        for (int i = 0; i < PACKET; i++) {
            const int64_t column = first + column_of<whole>(i, lane);
            sum[i] = column < C ? row[column] : 0.0f;
        }
    }
}
template <bool whole>
__device__ inline void store_sums(float *row, const float sum[PACKET], int64_t first, int64_t C, int lane) {
    if (whole && (uintptr_t)row % 16 == 0) store_columns<true>(row, sum, first, C, lane);
    else {
#pragma unroll
        for (int i = 0; i < PACKET; i++) {
            const int64_t column = first + column_of<whole>(i, lane);
            if (column < C) row[column] = sum[i];
        }
    }
}

template <int N> __device__ inline void add_to(float (&sum)[N], const float (&term)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] += term[i];
}

// sum += `rows` rows, one after the other, each `stride` values behind the one before.
template <bool whole, typename T>
__device__ inline void add_rows(float (&sum)[PACKET], const T *from, int64_t stride, int64_t rows, int64_t first,
                                int64_t C, int lane) {
    for (; rows >= AT_ONCE; rows -= AT_ONCE, from += AT_ONCE * stride) {
        float term[AT_ONCE][PACKET];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) load_columns<whole>(term[i], from + i * stride, first, C, lane);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) add_to(sum, term[i]);
    }
    for (; rows > 0; rows--, from += stride) {
        float term[PACKET];
        load_columns<whole>(term, from, first, C, lane);
        add_to(sum, term);
    }
}

struct Piece {
    int64_t index, first_column; // of 256
    int64_t begin, end;          // in the sorted list
};
__device__ inline Piece piece_of(int64_t number, int64_t count, int64_t length, int64_t column_groups) {
    const int64_t index = number / column_groups;
    return Piece{index, number % column_groups * WARP_COLUMNS, smaller_of(index * length, count),
                 smaller_of((index + 1) * length, count)};
}

// WARP pairs of a piece, one in each lane.
struct Pairs {
    int32_t key;
    uint32_t row;
    unsigned ends; // bit i: with pair i ends its run, or what the piece has of it
    bool comes_in; // the run of pair 0, from the piece before
    int goes_out;  // the number of the pair whose run goes on in the next piece; -1: none
};

// Where the sum of the run goes that ends with pair i: to the piece's partial sums, or it is added to the table.
__device__ inline bool is_incoming(const Pairs &p, int i) { return p.comes_in && (p.ends & ((1u << i) - 1)) == 0; }
__device__ inline bool is_partial(const Pairs &p, int i) { return is_incoming(p, i) || p.goes_out == i; }
__device__ inline bool ends_at(const Pairs &p, int i) { return (p.ends >> i & 1) != 0; }

// Rows of d_out come AT_ONCE at a time, and with them those of the table to which sums are added: all that is needed
// for asking stands in the warp's registers, so nothing waits for one row alone.
template <bool whole>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    sum_pieces_kernel(float *table, float *partial, const bf16 *d_out, const SortedPairs pairs, int64_t count,
                      int64_t length, int64_t C, int64_t column_groups) {
    const int lane = threadIdx.x % WARP;
    const Piece piece = piece_of(((int64_t)blockIdx.x * THREADS + threadIdx.x) / WARP, count, length, column_groups);
    if (piece.begin >= piece.end) return; // the whole warp
    const int64_t first = piece.first_column, last = piece.end - 1;
    const bool goes_out = piece.end < count && pairs.keys[last] == pairs.keys[piece.end];
    Pairs p;
    p.comes_in = piece.begin > 0 && pairs.keys[piece.begin - 1] == pairs.keys[piece.begin];
    float sum[PACKET] = {};
    for (int64_t begin = piece.begin; begin < piece.end; begin += WARP) {
        const int64_t mine = smaller_of(begin + lane, last);
        const int here = (int)smaller_of((int64_t)WARP, piece.end - begin);
        p.key = pairs.keys[mine];
        p.row = pairs.rows[mine];
        p.ends = __ballot_sync(WHOLE_WARP, begin + lane <= last && (mine == last || pairs.keys[mine + 1] != p.key));
        p.goes_out = goes_out && piece.end - begin <= WARP ? here - 1 : -1;
        for (int at = 0; at < here; at += AT_ONCE) { // all conditions here are the same for all lanes
            uint4 value[AT_ONCE];
            float old[AT_ONCE][PACKET];
            float *row[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) { // beyond the last pair of the piece, that one again
                const uint32_t from = __shfl_sync(WHOLE_WARP, p.row, at + i);
                value[i] = load_raw_columns<whole>(d_out + (int64_t)from * C, first, C, lane);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                row[i] = table + __shfl_sync(WHOLE_WARP, p.key, at + i) * C;
                if (ends_at(p, at + i) && !is_partial(p, at + i)) load_sums<whole>(old[i], row[i], first, C, lane);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                if (at + i >= here) break;
                float term[PACKET];
                unpack(term, value[i]);
                add_to(sum, term);
                if (!ends_at(p, at + i)) continue;
                if (is_partial(p, at + i)) {
                    const int64_t which = 2 * piece.index + (is_incoming(p, at + i) ? INCOMING : OUTGOING);
                    store_columns<whole>(partial + which * C, sum, first, C, lane);
                } else {
                    add_to(old[i], sum);
                    store_sums<whole>(row[i], old[i], first, C, lane);
                }
#pragma unroll
                for (int j = 0; j < PACKET; j++) sum[j] = 0.0f;
            }
        }
        p.comes_in = p.comes_in && p.ends == 0;
    }
}

// The last piece, from `piece` on, that begins with `key`, which is that of the run going out of `piece`; `piece`
// itself if none does. Each round of the warp leaves a 32nd of the pieces.
__device__ inline int64_t last_piece_of(const SortedPairs pairs, int64_t piece, int64_t pieces, int64_t length,
                                        int32_t key, int lane) {
    int64_t low = piece, high = pieces; // low: begins with `key`, or before it
    while (high - low > 1) {
        const int64_t step = ceil_div(high - low, (int64_t)WARP), mine = low + lane * step;
        const bool before = lane == 0 || (mine < high && pairs.keys[mine * length] <= key);
        const int still = __popc(__ballot_sync(WHOLE_WARP, before)) - 1;
        high = smaller_of(high, low + (still + 1) * step);
        low += still * step;
    }
    return low;
}

// Block (piece, columns): if a run begins in the piece and goes on in others, adds its partial sums, and the total to
// the table. Each warp adds those of neighbouring pieces in order, and these sums follow in order.
template <bool whole>
__global__ void __launch_bounds__(JOIN_THREADS, BLOCKS / 2)
    join_pieces_kernel(float *table, const float *partial, const SortedPairs pairs, int64_t count, int64_t length,
                       int64_t C, int64_t column_groups) {
    SHARED_ARRAY(float, of_warp, JOIN_WARPS *WARP_COLUMNS);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const Piece piece = piece_of(blockIdx.x, count, length, column_groups);
    if (piece.end == count) return; // the whole block, here and below
    const int32_t key = pairs.keys[piece.end];
    if (pairs.keys[piece.end - 1] != key) return;                      // nothing goes out
    if (piece.begin > 0 && pairs.keys[piece.begin - 1] == key) return; // it only passes through
    const int64_t pieces = ceil_div(count, length);
    const int64_t parts = last_piece_of(pairs, piece.index, pieces, length, key, lane) - piece.index + 1;
    const int64_t share = ceil_div(parts, (int64_t)JOIN_WARPS), end = smaller_of((warp + 1) * share, parts);
    float sum[PACKET] = {};
    const float *of_piece = partial + 2 * piece.index * C;
    int64_t part = warp * share;
    if (part == 0) load_columns<whole>(sum, of_piece + (part++ + OUTGOING) * C, piece.first_column, C, lane);
    add_rows<whole>(sum, of_piece + (2 * part + INCOMING) * C, 2 * C, end - part, piece.first_column, C, lane);
#pragma unroll
    for (int i = 0; i < PACKET; i++) of_warp[(warp * PACKET + i) * WARP + lane] = sum[i];
    __syncthreads();
    if (warp > 0) return;
    for (int other = 1; other < JOIN_WARPS && other * share < parts; other++) {
#pragma unroll
        for (int i = 0; i < PACKET; i++) sum[i] += of_warp[(other * PACKET + i) * WARP + lane];
    }
    float old[PACKET];
    load_sums<whole>(old, table + key * C, piece.first_column, C, lane);
    add_to(old, sum);
    store_sums<whole>(table + key * C, old, piece.first_column, C, lane);
}

// Positions need no sort: row n has that of row n % position_rows. A warp adds all rows of one position, in order.
template <bool whole>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    sum_positions_kernel(float *table, const bf16 *d_out, const int32_t *positions, int64_t rows, int64_t position_rows,
                         int64_t C, int64_t column_groups) {
    const int lane = threadIdx.x % WARP;
    const int64_t warp = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / WARP, place = warp / column_groups;
    const int64_t first = warp % column_groups * WARP_COLUMNS;
    if (place >= position_rows) return; // the whole warp
    float *to = table + positions[place] * C;
    float old[PACKET], sum[PACKET] = {};
    load_sums<whole>(old, to, first, C, lane);
    add_rows<whole>(sum, d_out + place * C, position_rows * C, ceil_div(rows - place, position_rows), first, C, lane);
    add_to(old, sum);
    store_sums<whole>(to, old, first, C, lane);
}

struct Gradient {
    float *table;
    const bf16 *d_out;
    const int32_t *keys;
    int64_t rows, C, column_groups;
};

template <bool whole> void add_tokens(Device *device, const Gradient *g, int token_bits) {
    const size_t sort_bytes = sort_scratch_bytes(g->rows), sums_bytes = embedding_sums_bytes(g->rows, g->C);
    char *scratch = static_cast<char *>(cuda_scratch(device, "the embedding", sort_bytes + sums_bytes));
    float *partial = reinterpret_cast<float *>(scratch + sort_bytes);
    const SortedPairs pairs = sort_rows_by_key(stream_of(device), scratch, g->keys, g->rows, token_bits);
    const int64_t length = embedding_piece_length(g->rows), warps = ceil_div(g->rows, length) * g->column_groups;
    launch(sum_pieces_kernel<whole>, ceil_div<int64_t>(warps, WARPS), THREADS, 0, stream_of(device), g->table, partial,
           g->d_out, pairs, g->rows, length, g->C, g->column_groups);
    launch(join_pieces_kernel<whole>, warps, JOIN_THREADS, 0, stream_of(device), g->table, partial, pairs, g->rows,
           length, g->C, g->column_groups);
}

template <bool whole> void add_positions(Device *device, const Gradient *g, int64_t position_rows) {
    const int64_t places = smaller_of(g->rows, position_rows);
    launch(sum_positions_kernel<whole>, ceil_div<int64_t>(places * g->column_groups, WARPS), THREADS, 0,
           stream_of(device), g->table, g->d_out, g->keys, g->rows, places, g->C, g->column_groups);
}

} // namespace

void cuda_embedding_backward(Device *device, float *d_token_table, float *d_position_table, const void *d_out,
                             const int32_t *tokens, const int32_t *positions, int64_t rows, int64_t position_rows,
                             int64_t C, int64_t V) {
    if (rows == 0 || C == 0) return;
    int token_bits = 1;
    while (token_bits < 31 && (int64_t)1 << token_bits < V) token_bits++;
    const bool whole = fits_packets(C, d_out);
    const int64_t column_groups = ceil_div<int64_t>(C, WARP_COLUMNS);
    const Gradient of_tokens = {d_token_table, static_cast<const bf16 *>(d_out), tokens, rows, C, column_groups};
    const Gradient of_positions = {d_position_table, of_tokens.d_out, positions, rows, C, column_groups};
    (whole ? add_tokens<true> : add_tokens<false>)(device, &of_tokens, token_bits);
    if (d_position_table == NULL) return;
    (whole ? add_positions<true> : add_positions<false>)(device, &of_positions, position_rows);
}
