// Kernels that treat every value alike: one loop for all of them.
//
// Such a kernel is as fast as memory, if enough bytes are under way: a GPU moves some 4 TB/s with 0.7 us from asking to
// getting, so 3 MB must be asked for at any time, 20 to 30 KB a multiprocessor. Hence accesses of 16 bytes (8 for bf16
// beside fp32), and a thread that asks for AT_ONCE of them before it uses the first.
//
// What a kernel does to its values is a Map:
//
//   struct Map {
//       enum { WIDTH = ..., AT_ONCE = ... };       WIDTH values are one access: 8 if all are bf16, 4 beside fp32
//       template <int N> struct Input { ... };     N values of each input
//       template <int N> __device__ void read(Input<N> &in, int64_t i) const;         from i on
//       template <int N> __device__ void write(const Input<N> &in, int64_t i) const;  what comes of them
//   };
//
// map_values runs it over `count` values; N is WIDTH, and 1 for the last few or where a pointer is not on a 16-byte
// boundary. map_rows does so for rows with strides: its Map takes (row, column) for i, and N is WIDTH only where that
// divides the columns and the caller says that all rows begin on such boundaries.
#ifndef LAYERS_CUDA_ELEMENTWISE_H
#define LAYERS_CUDA_ELEMENTWISE_H

#include "layers/cuda/bf16.h"
#include "layers/cuda/context.h"

// ---- N values from global memory and back, as fp32 -----------------------------------------------------------------

template <int N> __device__ inline void load(float (&x)[N], const float *from) {
    static_assert(N == 1 || N == 4, "");
    if constexpr (N == 4) {
        const float4 four = *reinterpret_cast<const float4 *>(from);
        x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
    } else x[0] = *from;
}
template <int N> __device__ inline void store(float *to, const float (&x)[N]) {
    static_assert(N == 1 || N == 4, "");
    if constexpr (N == 4) {
        float4 four;
        four.x = x[0], four.y = x[1], four.z = x[2], four.w = x[3];
        __stwb(reinterpret_cast<float4 *>(to), four);
    } else *to = x[0];
}

template <int N> __device__ inline void load(float (&x)[N], const bf16 *from) {
    static_assert(N == 1 || N == 4 || N == PACKET, "");
    if constexpr (N == PACKET) load_packet(x, from);
    else if constexpr (N == 4) {
        const uint2 four = *reinterpret_cast<const uint2 *>(from);
        x[0] = low_of(four.x), x[1] = high_of(four.x), x[2] = low_of(four.y), x[3] = high_of(four.y);
    } else x[0] = to_float(*from);
}
template <int N> __device__ inline void store(bf16 *to, const float (&x)[N]) {
    static_assert(N == 1 || N == 4 || N == PACKET, "");
    if constexpr (N == PACKET) store_packet(to, x);
    else if constexpr (N == 4) {
        uint2 four;
        four.x = pack_bf16(x[0], x[1]), four.y = pack_bf16(x[2], x[3]);
        __stwb(reinterpret_cast<uint2 *>(to), four);
    } else *to = to_bf16(x[0]);
}

// ---- launches ------------------------------------------------------------------------------------------------------

enum { MAP_THREADS = 256 };

template <typename... P> inline bool aligned(const P *...pointers) {
    return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// How many blocks, each of which treats `per_block`.
inline unsigned grid_for(int64_t count, int64_t per_block) {
    const int64_t blocks = ceil_div(count, per_block);
    if (blocks > INT32_MAX)
        cuda_give_up(__FILE__, __LINE__, "%lld values are too many for one kernel", (long long)count);
    return (unsigned)blocks;
}

// ---- values one after the other ------------------------------------------------------------------------------------

template <int N, typename Map>
__global__ void __launch_bounds__(MAP_THREADS) map_values_kernel(Map map, int64_t count) {
    const int64_t stride = MAP_THREADS * N, first = blockIdx.x * (stride * Map::AT_ONCE) + threadIdx.x * N;
    typename Map::template Input<N> in[Map::AT_ONCE];
#pragma unroll
    for (int k = 0; k < Map::AT_ONCE; k++)
        if (first + k * stride + N <= count) map.template read<N>(in[k], first + k * stride);
#pragma unroll
    for (int k = 0; k < Map::AT_ONCE; k++)
        if (first + k * stride + N <= count) map.template write<N>(in[k], first + k * stride);
    if constexpr (N > 1) { // the last count % N values
        const int64_t last = count / N * N + threadIdx.x;
        if (blockIdx.x == gridDim.x - 1 && last < count) {
            typename Map::template Input<1> one;
            map.template read<1>(one, last);
            map.template write<1>(one, last);
        }
    }
}

// `pointers`: all that the map reads and writes.
template <typename Map, typename... P>
inline void map_values(Device *device, const Map &map, int64_t count, const P *...pointers) {
    const int64_t accesses = MAP_THREADS * Map::AT_ONCE;
    if (count == 0) return;
    if (aligned(pointers...))
        launch((map_values_kernel<Map::WIDTH, Map>), grid_for(count, accesses * Map::WIDTH), MAP_THREADS, 0,
               stream_of(device), map, count);
    else launch((map_values_kernel<1, Map>), grid_for(count, accesses), MAP_THREADS, 0, stream_of(device), map, count);
}

// ---- rows with strides ---------------------------------------------------------------------------------------------

// A block treats a tile of rows x accesses, about MAP_THREADS * AT_ONCE of them, whatever the length of a row: many
// short rows, or part of a long one.
struct Tiles {
    int64_t rows, accesses; // of all; a row is so many accesses
    unsigned height, width; // of a tile
    unsigned tiles_per_row;
};

inline Tiles tiles_for(int64_t rows, int64_t accesses, int at_once) {
    const int64_t tiles_per_row = ceil_div(accesses, (int64_t)MAP_THREADS), width = ceil_div(accesses, tiles_per_row);
    return Tiles{rows, accesses, (unsigned)(MAP_THREADS * at_once / width), (unsigned)width, (unsigned)tiles_per_row};
}

template <int N, typename Map> __global__ void __launch_bounds__(MAP_THREADS) map_rows_kernel(Map map, Tiles t) {
    const unsigned tile_row = blockIdx.x / t.tiles_per_row, tile_column = blockIdx.x - tile_row * t.tiles_per_row;
    typename Map::template Input<N> in[Map::AT_ONCE];
    int64_t row[Map::AT_ONCE], column[Map::AT_ONCE];
    bool valid[Map::AT_ONCE];
#pragma unroll
    for (int k = 0; k < Map::AT_ONCE; k++) {
        const unsigned i = threadIdx.x + k * MAP_THREADS, y = i / t.width;
        const int64_t access = (int64_t)tile_column * t.width + (i - y * t.width);
        row[k] = (int64_t)tile_row * t.height + y;
        column[k] = access * N;
        valid[k] = y < t.height && row[k] < t.rows && access < t.accesses;
        if (valid[k]) map.template read<N>(in[k], row[k], column[k]);
    }
#pragma unroll
    for (int k = 0; k < Map::AT_ONCE; k++)
        if (valid[k]) map.template write<N>(in[k], row[k], column[k]);
}

// wide: every row of every tensor begins on a 16-byte boundary.
template <typename Map> inline void map_rows(Device *device, const Map &map, int64_t rows, int64_t columns, bool wide) {
    if (rows == 0 || columns == 0) return;
    const bool packed = wide && columns % Map::WIDTH == 0;
    const Tiles t = tiles_for(rows, packed ? columns / Map::WIDTH : columns, Map::AT_ONCE);
    const unsigned grid = grid_for(ceil_div(rows, (int64_t)t.height) * t.tiles_per_row, 1);
    if (packed) launch((map_rows_kernel<Map::WIDTH, Map>), grid, MAP_THREADS, 0, stream_of(device), map, t);
    else launch((map_rows_kernel<1, Map>), grid, MAP_THREADS, 0, stream_of(device), map, t);
}

#endif
