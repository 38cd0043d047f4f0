// bf16, the storage type of activations and weights on GPUs: the upper half of an fp32. Arithmetic is done in fp32;
// conversion rounds to nearest, ties to even. A Packet is 16 bytes, the widest access a thread can make.
#ifndef LAYERS_CUDA_BF16_H
#define LAYERS_CUDA_BF16_H

#include "layers/cuda/cuda.h"

struct bf16 {
    uint16_t bits;
};

__host__ __device__ inline float to_float(bf16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

// Two values as one register, `low` in the lower half: what mma.sync and packed stores take.
__host__ __device__ inline uint32_t pack_bf16(float low, float high) {
#ifdef __CUDA_ARCH__
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    uint32_t half[2];
    const float value[2] = {low, high};
    for (int i = 0; i < 2; i++) {
        uint32_t bits;
        __builtin_memcpy(&bits, &value[i], sizeof bits);
        half[i] = value[i] != value[i] ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
    return half[0] | half[1] << 16;
#endif
}
__host__ __device__ inline bf16 to_bf16(float x) { return bf16{(uint16_t)pack_bf16(x, 0.0f)}; }

__host__ __device__ inline float low_of(uint32_t packed) { return to_float(bf16{(uint16_t)packed}); }
__host__ __device__ inline float high_of(uint32_t packed) { return to_float(bf16{(uint16_t)(packed >> 16)}); }

enum { PACKET = 8 }; // bf16 values in 16 bytes

// PACKET values from a 16-byte aligned address, and back; store_packet to global memory only. __stwb is an ordinary
// store (st.wb, PTX ISA "Cache operators"), but stays one of 16 bytes: nvcc now and then cuts an assignment into four
// of 4.
__device__ inline void load_packet(float out[PACKET], const bf16 *from) {
    const uint4 p = *reinterpret_cast<const uint4 *>(from);
    const uint32_t words[4] = {p.x, p.y, p.z, p.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = low_of(words[i]);
        out[2 * i + 1] = high_of(words[i]);
    }
}
__device__ inline void store_packet(bf16 *to, const float in[PACKET]) {
    uint4 p;
    p.x = pack_bf16(in[0], in[1]);
    p.y = pack_bf16(in[2], in[3]);
    p.z = pack_bf16(in[4], in[5]);
    p.w = pack_bf16(in[6], in[7]);
    __stwb(reinterpret_cast<uint4 *>(to), p);
}

#endif
