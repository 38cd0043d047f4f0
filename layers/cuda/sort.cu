// Stable radix sort of (key, row) pairs, 9 bits of the key at a time, lowest first (Harris, Merrill and Garland build
// on the same three steps): one pass for bytes and their separator, two for up to 262,144 tokens. The pairs are cut
// into tiles; a warp, a block of its own, has one, loads all of it, and treats it in order, 32 pairs at a time.
//
//   count    how often each digit occurs in each tile
//   scan     per digit: how many of it are in the tiles before
//   scatter  a pair's place = pairs with smaller digits + same digit in tiles before + same digit before it in its tile
//
// A pair's place depends on the input alone, so no order of threads shows in the result. Little data (16 bytes a row
// and pass, where the tensors beside have thousands), so simplicity goes first.
#include "layers/cuda/sort.h"
#include "layers/cuda/warp.h"

namespace {

enum {
    DIGIT_BITS = SORT_DIGIT_BITS,
    DIGITS = SORT_DIGITS,
    TILE = SORT_TILE, // pairs
    ROUNDS = TILE / WARP,
    SCAN_WARPS = 4,
    SCAN_THREADS = SCAN_WARPS * WARP,
    SCAN_AT_ONCE = 4, // tiles of a lane
};

__device__ inline int digit_of(int32_t key, int shift) { return key >> shift & (DIGITS - 1); }

// The pairs of a lane: every 32nd of the tile. Beyond the end it has the last one once more.
__device__ inline int64_t pair_of(int round, int lane, int64_t count) {
    return smaller_of((int64_t)blockIdx.x * TILE + round * WARP + lane, count - 1);
}
__device__ inline bool is_pair(int round, int lane, int64_t count) {
    return (int64_t)blockIdx.x * TILE + round * WARP + lane < count;
}

// counts (DIGITS, tiles)
__global__ void __launch_bounds__(WARP)
    count_digits_kernel(uint32_t *counts, const int32_t *keys, int64_t count, int64_t tiles, int shift) {
    SHARED_ARRAY(uint32_t, of_digit, DIGITS);
    const int lane = threadIdx.x;
    int32_t key[ROUNDS];
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) key[i] = keys[pair_of(i, lane, count)];
    for (int digit = lane; digit < DIGITS; digit += WARP) of_digit[digit] = 0;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < ROUNDS; i++)
        if (is_pair(i, lane, count)) atomicAdd(&of_digit[digit_of(key[i], shift)], 1u);
    __syncwarp();
    for (int digit = lane; digit < DIGITS; digit += WARP) counts[digit * tiles + blockIdx.x] = of_digit[digit];
}

// The sum of the lanes before this one.
__device__ inline uint32_t sum_before(uint32_t x, int lane) {
    uint32_t sum = x;
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        const uint32_t other = __shfl_up_sync(WHOLE_WARP, sum, distance);
        if (lane >= distance) sum += other;
    }
    return sum - x;
}

// A warp for each digit: counts[digit] becomes the sums before each tile, totals[digit] the sum over all.
__global__ void __launch_bounds__(SCAN_THREADS) scan_counts_kernel(uint32_t *counts, uint32_t *totals, int64_t tiles) {
    const int lane = threadIdx.x % WARP, digit = blockIdx.x * SCAN_WARPS + threadIdx.x / WARP;
    counts += digit * tiles;
    uint32_t before = 0; // the tiles of earlier rounds
    for (int64_t first = 0; first < tiles; first += WARP * SCAN_AT_ONCE) {
        uint32_t mine[SCAN_AT_ONCE], sum = 0; // of neighbouring tiles
#pragma unroll
        for (int i = 0; i < SCAN_AT_ONCE; i++) {
            const int64_t tile = first + lane * SCAN_AT_ONCE + i;
            sum += mine[i] = tile < tiles ? counts[tile] : 0;
        }
        uint32_t place = before + sum_before(sum, lane);
        before = __shfl_sync(WHOLE_WARP, place + sum, WARP - 1);
#pragma unroll
        for (int i = 0; i < SCAN_AT_ONCE; i++) {
            const int64_t tile = first + lane * SCAN_AT_ONCE + i;
            if (tile < tiles) counts[tile] = place;
            place += mine[i];
        }
    }
    if (lane == 0) totals[digit] = before;
}

// rows NULL: the row of pair i is i.
__global__ void __launch_bounds__(WARP)
    scatter_kernel(int32_t *keys_out, uint32_t *rows_out, const int32_t *keys, const uint32_t *rows,
                   const uint32_t *counts, const uint32_t *totals, int64_t count, int64_t tiles, int shift) {
    SHARED_ARRAY(uint32_t, next_place, DIGITS);
    const int lane = threadIdx.x;
    int32_t key[ROUNDS];
    uint32_t row[ROUNDS];
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
        const int64_t at = pair_of(i, lane, count);
        key[i] = keys[at];
        row[i] = rows == NULL ? (uint32_t)at : rows[at];
    }

    // Pairs with smaller digits: each lane has some neighbouring digits.
    enum { PER_LANE = DIGITS / WARP };
    uint32_t total[PER_LANE], before_tile[PER_LANE], lane_sum = 0;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const int digit = lane * PER_LANE + i;
        before_tile[i] = counts[digit * tiles + blockIdx.x];
        lane_sum += total[i] = totals[digit];
    }
    uint32_t sum = sum_before(lane_sum, lane);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        next_place[lane * PER_LANE + i] = sum + before_tile[i];
        sum += total[i];
    }
    __syncwarp();

#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
        const bool valid = is_pair(i, lane, count);
        const int digit = valid ? digit_of(key[i], shift) : DIGITS; // no lane that counts has that one
        const unsigned same = __match_any_sync(WHOLE_WARP, (unsigned)digit);
        const int before = __popc(same & ((1u << lane) - 1));
        const uint32_t place = valid ? next_place[digit] + before : 0;
        __syncwarp(); // all have read
        if (valid) {
            if (before == 0) next_place[digit] = place + __popc(same);
            keys_out[place] = key[i];
            rows_out[place] = row[i];
        }
        __syncwarp();
    }
}

} // namespace

SortedPairs sort_rows_by_key(cudaStream_t stream, void *scratch, const int32_t *keys, int64_t count, int key_bits) {
    char *at = static_cast<char *>(scratch);
    int32_t *keys_of[2];
    uint32_t *rows_of[2];
    for (int i = 0; i < 2; i++) {
        keys_of[i] = reinterpret_cast<int32_t *>(at);
        rows_of[i] = reinterpret_cast<uint32_t *>(at + sort_pairs_bytes(count));
        at += 2 * sort_pairs_bytes(count);
    }
    uint32_t *counts = reinterpret_cast<uint32_t *>(at);
    uint32_t *totals = reinterpret_cast<uint32_t *>(at + sort_counts_bytes(count));

    const int64_t tiles = ceil_div<int64_t>(count, TILE);
    const uint32_t *rows = NULL;
    int to = 0;
    for (int shift = 0; shift < key_bits; shift += DIGIT_BITS, to ^= 1) {
        launch(count_digits_kernel, tiles, WARP, 0, stream, counts, keys, count, tiles, shift);
        launch(scan_counts_kernel, DIGITS / SCAN_WARPS, SCAN_THREADS, 0, stream, counts, totals, tiles);
        launch(scatter_kernel, tiles, WARP, 0, stream, keys_of[to], rows_of[to], keys, rows, counts, totals, count,
               tiles, shift);
        keys = keys_of[to];
        rows = rows_of[to];
    }
    return SortedPairs{keys, rows};
}
