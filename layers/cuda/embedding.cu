// Embedding: rows of the token and position tables, looked up and added; backward, d_out summed into those rows.
//
// Backward without atomics and without depending on luck. (row, token) pairs are sorted by token, rows of one token
// staying in order (sort.cu); then equal tokens are neighbours, a "run". The sorted list is cut into pieces of equal
// length, and a warp walks each piece for 256 channels, summing run after run in registers. A run inside one piece is
// added to its row of the table at once, by the only warp that has it. A run that crosses the ends of pieces - a
// frequent token, or every one of a byte vocabulary - leaves a partial sum for each piece, and the warp of the piece
// where it begins adds these in order. So the work is even, however the tokens are spread, and the order is always the
// same.
//
// Limit: memory, d_out read once, each touched row of the table read and written once. Positions go the same way.
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
enum { AT_ONCE = 8 }; // rows of d_out that a warp has under way

struct Piece {
    int64_t index, first_column; // of 256
    int64_t begin, end;          // in the sorted list
};
__device__ inline Piece my_piece(int64_t count, int64_t length, int64_t column_groups) {
    const int64_t warp = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP, index = warp / column_groups;
    return Piece{index, warp % column_groups * WARP_COLUMNS, smaller_of(index * length, count),
                 smaller_of((index + 1) * length, count)};
}

// row[columns] += sum. The table may lie at any address.
template <bool whole>
__device__ inline void add_to_row(float *row, const float sum[PACKET], int64_t first, int64_t C, int lane) {
    float value[PACKET];
    if (whole && (uintptr_t)row % 16 == 0) {
        load_columns<true>(value, row, first, C, lane);
#pragma unroll
        for (int i = 0; i < PACKET; i++) value[i] += sum[i];
        store_columns<true>(row, value, first, C, lane);
    } else {
#pragma unroll
        for (int i = 0; i < PACKET; i++) {
            const int64_t column = first + column_of<whole>(i, lane);
            if (column < C) row[column] += sum[i];
        }
    }
}

// Puts the sum of a run where it belongs. begin, end: of the run's part in this piece.
template <bool whole>
__device__ inline void end_run(float *table, float *partial, const SortedPairs pairs, int64_t count, const Piece piece,
                               int64_t begin, int64_t end, int32_t key, const float sum[PACKET], int64_t C, int lane) {
    const bool incoming = begin == piece.begin && begin > 0 && pairs.keys[begin - 1] == key;
    const bool outgoing = end == piece.end && end < count && pairs.keys[end] == key;
    if (!incoming && !outgoing) add_to_row<whole>(table + key * C, sum, piece.first_column, C, lane);
    else
        store_columns<whole>(partial + (2 * piece.index + (incoming ? INCOMING : OUTGOING)) * C, sum,
                             piece.first_column, C, lane);
}

template <bool whole>
__global__ void __launch_bounds__(THREADS)
    sum_pieces_kernel(float *table, float *partial, const bf16 *d_out, const SortedPairs pairs, int64_t count,
                      int64_t length, int64_t C, int64_t column_groups) {
    const int lane = threadIdx.x % WARP;
    const Piece piece = my_piece(count, length, column_groups);
    if (piece.begin >= piece.end) return; // the whole warp
    float sum[PACKET] = {};
    int32_t run_key = pairs.keys[piece.begin];
    int64_t run_begin = piece.begin;
    for (int64_t first = piece.begin; first < piece.end; first += AT_ONCE) {
        float value[AT_ONCE][PACKET]; // all loads first
        int32_t key[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int64_t at = smaller_of(first + i, piece.end - 1);
            key[i] = pairs.keys[at];
            load_columns<whole>(value[i], d_out + (int64_t)pairs.rows[at] * C, piece.first_column, C, lane);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (first + i >= piece.end) break;
            if (key[i] != run_key) { // the same for all lanes
                end_run<whole>(table, partial, pairs, count, piece, run_begin, first + i, run_key, sum, C, lane);
                run_key = key[i];
                run_begin = first + i;
#pragma unroll
                for (int j = 0; j < PACKET; j++) sum[j] = 0.0f;
            }
#pragma unroll
            for (int j = 0; j < PACKET; j++) sum[j] += value[i][j];
        }
    }
    end_run<whole>(table, partial, pairs, count, piece, run_begin, piece.end, run_key, sum, C, lane);
}

// The first place in the sorted list with a key above `key`.
__device__ inline int64_t end_of_key(const int32_t *keys, int64_t count, int32_t key) {
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (keys[middle] <= key) low = middle + 1;
        else high = middle;
    }
    return low;
}

// Each warp whose piece has an outgoing run adds that run's partial sums, and the total to the table.
template <bool whole>
__global__ void __launch_bounds__(THREADS)
    join_pieces_kernel(float *table, const float *partial, const SortedPairs pairs, int64_t count, int64_t length,
                       int64_t C, int64_t column_groups) {
    const int lane = threadIdx.x % WARP;
    const Piece piece = my_piece(count, length, column_groups);
    if (piece.begin >= piece.end || piece.end == count) return;
    const int32_t key = pairs.keys[piece.end];
    if (pairs.keys[piece.end - 1] != key) return;                           // nothing goes out
    if (piece.begin > 0 && pairs.keys[piece.begin - 1] == key) return;      // it only passes through
    const int64_t last = (end_of_key(pairs.keys, count, key) - 1) / length; // the piece where the run ends
    float sum[PACKET];
    load_columns<whole>(sum, partial + (2 * piece.index + OUTGOING) * C, piece.first_column, C, lane);
#pragma unroll 4
    for (int64_t next = piece.index + 1; next <= last; next++) {
        float term[PACKET];
        load_columns<whole>(term, partial + (2 * next + INCOMING) * C, piece.first_column, C, lane);
#pragma unroll
        for (int i = 0; i < PACKET; i++) sum[i] += term[i];
    }
    add_to_row<whole>(table + key * C, sum, piece.first_column, C, lane);
}

template <bool whole>
void launch_sums(cudaStream_t stream, float *table, float *partial, const bf16 *d_out, SortedPairs pairs, int64_t count,
                 int64_t C) {
    const int64_t length = embedding_piece_length(count), column_groups = ceil_div<int64_t>(C, WARP_COLUMNS);
    const int64_t blocks = ceil_div<int64_t>(ceil_div(count, length) * column_groups, WARPS);
    launch(sum_pieces_kernel<whole>, blocks, THREADS, 0, stream, table, partial, d_out, pairs, count, length, C,
           column_groups);
    launch(join_pieces_kernel<whole>, blocks, THREADS, 0, stream, table, partial, pairs, count, length, C,
           column_groups);
}

// table[keys[row]] += d_out[row], for keys below 2^key_bits.
void add_rows(Device *device, float *table, const bf16 *d_out, const int32_t *keys, int key_bits, int64_t rows,
              int64_t C) {
    const size_t sort_bytes = sort_scratch_bytes(rows);
    char *scratch =
        static_cast<char *>(cuda_scratch(device, "the embedding", sort_bytes + embedding_sums_bytes(rows, C)));
    float *partial = reinterpret_cast<float *>(scratch + sort_bytes);
    const SortedPairs pairs = sort_rows_by_key(stream_of(device), scratch, keys, rows, key_bits);
    (fits_packets(C, d_out) ? launch_sums<true> : launch_sums<false>)(stream_of(device), table, partial, d_out, pairs,
                                                                      rows, C);
}

} // namespace

void cuda_embedding_backward(Device *device, float *d_token_table, float *d_position_table, const void *d_out,
                             const int32_t *tokens, const int32_t *positions, int64_t rows, int64_t C, int64_t V) {
    if (rows == 0 || C == 0) return;
    int token_bits = 1;
    while (token_bits < 31 && (int64_t)1 << token_bits < V) token_bits++;
    const bf16 *from = static_cast<const bf16 *>(d_out);
    add_rows(device, d_token_table, from, tokens, token_bits, rows, C);
    // How many positions there are is not known here.
    if (d_position_table != NULL) add_rows(device, d_position_table, from, positions, 31, rows, C);
}
