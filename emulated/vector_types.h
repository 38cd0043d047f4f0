// dim3, float4 and their family. Aligned as on a GPU, where a thread loads such a value in one piece: a copy from or to
// an address that is not a multiple of its size is reported.
#ifndef EMULATED_VECTOR_TYPES_H
#define EMULATED_VECTOR_TYPES_H

#include <stdint.h>

// Ends the program with a report of the running thread.
void emulated_misaligned(const void *address, int bytes);

static inline void emulated_check_alignment(const void *address, int bytes) {
    uintptr_t number = (uintptr_t)address;
    __asm__("" : "+r"(number)); // hides where it comes from: compilers believe that a reference is aligned
    if (number % (unsigned)bytes != 0) emulated_misaligned(address, bytes);
}

#define EMULATED_VECTOR2(name, type, bytes)                                                                            \
    struct __attribute__((aligned(bytes))) name {                                                                      \
        type x, y;                                                                                                     \
        name() = default;                                                                                              \
        name(type x, type y) : x(x), y(y) {}                                                                           \
        name(const name &from) {                                                                                       \
            emulated_check_alignment(&from, bytes);                                                                    \
            x = from.x, y = from.y;                                                                                    \
        }                                                                                                              \
        name &operator=(const name &from) {                                                                            \
            emulated_check_alignment(&from, bytes);                                                                    \
            emulated_check_alignment(this, bytes);                                                                     \
            x = from.x, y = from.y;                                                                                    \
            return *this;                                                                                              \
        }                                                                                                              \
    };                                                                                                                 \
    static inline name make_##name(type x, type y) { return name(x, y); }

#define EMULATED_VECTOR4(name, type, bytes)                                                                            \
    struct __attribute__((aligned(bytes))) name {                                                                      \
        type x, y, z, w;                                                                                               \
        name() = default;                                                                                              \
        name(type x, type y, type z, type w) : x(x), y(y), z(z), w(w) {}                                               \
        name(const name &from) {                                                                                       \
            emulated_check_alignment(&from, bytes);                                                                    \
            x = from.x, y = from.y, z = from.z, w = from.w;                                                            \
        }                                                                                                              \
        name &operator=(const name &from) {                                                                            \
            emulated_check_alignment(&from, bytes);                                                                    \
            emulated_check_alignment(this, bytes);                                                                     \
            x = from.x, y = from.y, z = from.z, w = from.w;                                                            \
            return *this;                                                                                              \
        }                                                                                                              \
    };                                                                                                                 \
    static inline name make_##name(type x, type y, type z, type w) { return name(x, y, z, w); }

#define EMULATED_VECTOR3(name, type)                                                                                   \
    struct name {                                                                                                      \
        type x, y, z;                                                                                                  \
    };                                                                                                                 \
    static inline name make_##name(type x, type y, type z) { return name{x, y, z}; }

EMULATED_VECTOR2(char2, signed char, 2)
EMULATED_VECTOR2(uchar2, unsigned char, 2)
EMULATED_VECTOR2(short2, short, 4)
EMULATED_VECTOR2(ushort2, unsigned short, 4)
EMULATED_VECTOR2(int2, int, 8)
EMULATED_VECTOR2(uint2, unsigned, 8)
EMULATED_VECTOR2(float2, float, 8)
EMULATED_VECTOR2(double2, double, 16)
EMULATED_VECTOR2(longlong2, long long, 16)
EMULATED_VECTOR2(ulonglong2, unsigned long long, 16)
EMULATED_VECTOR4(char4, signed char, 4)
EMULATED_VECTOR4(uchar4, unsigned char, 4)
EMULATED_VECTOR4(short4, short, 8)
EMULATED_VECTOR4(ushort4, unsigned short, 8)
EMULATED_VECTOR4(int4, int, 16)
EMULATED_VECTOR4(uint4, unsigned, 16)
EMULATED_VECTOR4(float4, float, 16)
EMULATED_VECTOR3(int3, int)
EMULATED_VECTOR3(uint3, unsigned)
EMULATED_VECTOR3(float3, float)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

#endif
