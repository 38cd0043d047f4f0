// How a warp shares out 256 columns of a row, 8 to a lane. Where rows are whole packets (their width a multiple of 8,
// their addresses of 16 bytes) a lane has 8 columns in a row, one access; otherwise every 32nd column, 8 accesses which
// for the warp as a whole are still of neighbouring addresses.
#ifndef LAYERS_CUDA_COLUMNS_H
#define LAYERS_CUDA_COLUMNS_H

#include "layers/cuda/bf16.h"
#include "layers/cuda/warp.h"

enum { WARP_COLUMNS = WARP * PACKET };

// A packet as it is in memory: half the registers of its values.
__device__ inline uint4 load_raw(const bf16 *from) { return *reinterpret_cast<const uint4 *>(from); }
__device__ inline void store_raw(bf16 *to, uint4 raw) { *reinterpret_cast<uint4 *>(to) = raw; }
__device__ inline void unpack(float out[PACKET], uint4 raw) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = low_of(words[i]);
        out[2 * i + 1] = high_of(words[i]);
    }
}
__device__ inline uint4 pack(const float in[PACKET]) {
    return make_uint4(pack_bf16(in[0], in[1]), pack_bf16(in[2], in[3]), pack_bf16(in[4], in[5]),
                      pack_bf16(in[6], in[7]));
}

// Which of the 256 is a lane's number i?
template <bool whole> __device__ inline int column_of(int i, int lane) {
    return whole ? lane * PACKET + i : i * WARP + lane;
}

// Columns first + column_of(i, lane) of a row of `width`; 0 from the width on. Width 0: the row is not touched.
template <bool whole>
__device__ inline void load_columns(float out[PACKET], const bf16 *row, int64_t first, int64_t width, int lane) {
    if (whole) {
        if (first + lane * PACKET < width) {
            load_packet(out, row + first + lane * PACKET);
        } else {
#pragma unroll
            for (int i = 0; i < PACKET; i++) out[i] = 0.0f;
        }
    } else {
#pragma unroll
        for (int i = 0; i < PACKET; i++) {
            const int64_t column = first + column_of<whole>(i, lane);
            out[i] = column < width ? to_float(row[column]) : 0.0f;
        }
    }
}

// The same columns as they are in memory, for unpack.
template <bool whole>
__device__ inline uint4 load_raw_columns(const bf16 *row, int64_t first, int64_t width, int lane) {
    if constexpr (whole)
        return first + lane * PACKET < width ? load_raw(row + first + lane * PACKET) : make_uint4(0, 0, 0, 0);
    else {
        uint32_t bits[PACKET];
#pragma unroll
        for (int i = 0; i < PACKET; i++) {
            const int64_t column = first + column_of<whole>(i, lane);
            bits[i] = column < width ? row[column].bits : 0;
        }
        return make_uint4(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16, bits[4] | bits[5] << 16,
                          bits[6] | bits[7] << 16);
    }
}

template <bool whole>
__device__ inline void store_columns(bf16 *row, const float in[PACKET], int64_t first, int64_t width, int lane) {
    if (whole) {
        if (first + lane * PACKET < width) store_packet(row + first + lane * PACKET, in);
    } else {
#pragma unroll
        for (int i = 0; i < PACKET; i++) {
            const int64_t column = first + column_of<whole>(i, lane);
            if (column < width) row[column] = to_bf16(in[i]);
        }
    }
}

// PACKET fp32 values from a 16-byte aligned address, and back: 32 bytes, what a memory transaction holds.
__device__ inline void load_floats(float out[PACKET], const float *from) {
    const float4 low = reinterpret_cast<const float4 *>(from)[0], high = reinterpret_cast<const float4 *>(from)[1];
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
}
__device__ inline void store_floats(float *to, const float in[PACKET]) {
    reinterpret_cast<float4 *>(to)[0] = make_float4(in[0], in[1], in[2], in[3]);
    reinterpret_cast<float4 *>(to)[1] = make_float4(in[4], in[5], in[6], in[7]);
}

// The same columns of a row of fp32 values, 16-byte aligned where it is `whole`.
template <bool whole>
__device__ inline void load_columns(float out[PACKET], const float *row, int64_t first, int64_t width, int lane) {
#pragma unroll
    for (int i = 0; i < PACKET; i++) out[i] = 0.0f;
    if (whole) {
        if (first + lane * PACKET < width) load_floats(out, row + first + lane * PACKET);
    } else {
#pragma unroll
        for (int i = 0; i < PACKET; i++) {
            const int64_t column = first + column_of<whole>(i, lane);
            if (column < width) out[i] = row[column];
        }
    }
}
template <bool whole>
__device__ inline void store_columns(float *row, const float in[PACKET], int64_t first, int64_t width, int lane) {
    if (whole) {
        if (first + lane * PACKET < width) store_floats(row + first + lane * PACKET, in);
    } else {
#pragma unroll
        for (int i = 0; i < PACKET; i++) {
            const int64_t column = first + column_of<whole>(i, lane);
            if (column < width) row[column] = in[i];
        }
    }
}

// Host: may rows of this width, at these addresses, be accessed by packets? NULL: does not matter.
inline bool fits_packets(int64_t width, const void *a, const void *b = NULL, const void *c = NULL, const void *d = NULL,
                         const void *e = NULL, const void *f = NULL) {
    const uintptr_t all = (uintptr_t)a | (uintptr_t)b | (uintptr_t)c | (uintptr_t)d | (uintptr_t)e | (uintptr_t)f;
    return width % PACKET == 0 && all % 16 == 0;
}

#endif
