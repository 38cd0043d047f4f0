// What kernels call: the thread's coordinates, barriers, warp collectives, atomics, and the mathematics that nvcc has
// built in. The bodies that switch fibers are in block.cpp and warp.cpp.
#ifndef EMULATED_DEVICE_FUNCTIONS_H
#define EMULATED_DEVICE_FUNCTIONS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "emulated/vector_types.h"

// A thread stays the same one while its kernel runs, so the compiler may ask once ("const").
uint3 emulated_thread_index() __attribute__((const));
uint3 emulated_block_index() __attribute__((const));
dim3 emulated_block_dim() __attribute__((const));
dim3 emulated_grid_dim() __attribute__((const));
#define threadIdx (emulated_thread_index())
#define blockIdx (emulated_block_index())
#define blockDim (emulated_block_dim())
#define gridDim (emulated_grid_dim())
static const int warpSize = 32;

// ---- barriers -------------------------------------------------------------------------------------------------------

void __syncthreads();
int __syncthreads_or(int predicate);
int __syncthreads_and(int predicate);
int __syncthreads_count(int predicate);
void __syncwarp(unsigned mask = 0xffffffffu);
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}
static inline void __nanosleep(unsigned) {}
long long clock64();
[[noreturn]] void __trap();

// ---- warp collectives -----------------------------------------------------------------------------------------------

enum EmulatedShuffle { SHUFFLE_INDEX, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR };
// The value of the lane that (how, operand) names among `width` lanes. Values travel as 64 bits.
uint64_t emulated_shuffle(EmulatedShuffle how, unsigned mask, uint64_t value, int operand, int width);
template <typename T>
static inline T emulated_shuffle_value(EmulatedShuffle how, unsigned mask, T value, int operand, int width) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "__shfl_sync takes values of 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = emulated_shuffle(how, mask, bits, operand, width);
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <typename T> static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return emulated_shuffle_value(SHUFFLE_INDEX, mask, value, lane, width);
}
template <typename T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
    return emulated_shuffle_value(SHUFFLE_UP, mask, value, (int)distance, width);
}
template <typename T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
    return emulated_shuffle_value(SHUFFLE_DOWN, mask, value, (int)distance, width);
}
template <typename T> static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    return emulated_shuffle_value(SHUFFLE_XOR, mask, value, lanes, width);
}
unsigned __ballot_sync(unsigned mask, int predicate);
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
unsigned __match_any_sync(unsigned mask, uint64_t value);
enum EmulatedReduce {
    REDUCE_ADD,
    REDUCE_MIN,
    REDUCE_MAX,
    REDUCE_MIN_UNSIGNED,
    REDUCE_MAX_UNSIGNED,
    REDUCE_AND,
    REDUCE_OR,
    REDUCE_XOR
};
unsigned emulated_reduce(EmulatedReduce how, unsigned mask, unsigned value);
static inline unsigned __reduce_add_sync(unsigned mask, unsigned x) { return emulated_reduce(REDUCE_ADD, mask, x); }
static inline int __reduce_add_sync(unsigned mask, int x) {
    return (int)emulated_reduce(REDUCE_ADD, mask, (unsigned)x);
}
static inline unsigned __reduce_min_sync(unsigned mask, unsigned x) {
    return emulated_reduce(REDUCE_MIN_UNSIGNED, mask, x);
}
static inline int __reduce_min_sync(unsigned mask, int x) {
    return (int)emulated_reduce(REDUCE_MIN, mask, (unsigned)x);
}
static inline unsigned __reduce_max_sync(unsigned mask, unsigned x) {
    return emulated_reduce(REDUCE_MAX_UNSIGNED, mask, x);
}
static inline int __reduce_max_sync(unsigned mask, int x) {
    return (int)emulated_reduce(REDUCE_MAX, mask, (unsigned)x);
}
static inline unsigned __reduce_and_sync(unsigned mask, unsigned x) { return emulated_reduce(REDUCE_AND, mask, x); }
static inline unsigned __reduce_or_sync(unsigned mask, unsigned x) { return emulated_reduce(REDUCE_OR, mask, x); }
static inline unsigned __reduce_xor_sync(unsigned mask, unsigned x) { return emulated_reduce(REDUCE_XOR, mask, x); }
// The lanes of the warp that have not ended. On a GPU: those that happen to run together; do not build on it.
unsigned __activemask();

// ---- atomics --------------------------------------------------------------------------------------------------------

// Each returns the old value. The checks of the address are those of any access (atomic.cpp).
int atomicAdd(int *address, int value);
unsigned atomicAdd(unsigned *address, unsigned value);
unsigned long long atomicAdd(unsigned long long *address, unsigned long long value);
float atomicAdd(float *address, float value);
double atomicAdd(double *address, double value);
int atomicSub(int *address, int value);
unsigned atomicSub(unsigned *address, unsigned value);
int atomicMin(int *address, int value);
unsigned atomicMin(unsigned *address, unsigned value);
int atomicMax(int *address, int value);
unsigned atomicMax(unsigned *address, unsigned value);
unsigned atomicInc(unsigned *address, unsigned limit); // old >= limit ? 0 : old + 1
unsigned atomicAnd(unsigned *address, unsigned value);
unsigned atomicOr(unsigned *address, unsigned value);
int atomicExch(int *address, int value);
unsigned atomicExch(unsigned *address, unsigned value);
float atomicExch(float *address, float value);
int atomicCAS(int *address, int expected, int value);
unsigned atomicCAS(unsigned *address, unsigned expected, unsigned value);
unsigned long long atomicCAS(unsigned long long *address, unsigned long long expected, unsigned long long value);

// ---- memory hints ---------------------------------------------------------------------------------------------------

template <typename T> static inline T __ldg(const T *from) { return *from; }
template <typename T> static inline T __ldcs(const T *from) { return *from; }
template <typename T> static inline T __ldcg(const T *from) { return *from; }
template <typename T> static inline T __ldca(const T *from) { return *from; }
template <typename T> static inline T __ldlu(const T *from) { return *from; }
template <typename T> static inline T __ldcv(const T *from) { return *from; }
template <typename T> static inline void __stcs(T *to, T value) { *to = value; }
template <typename T> static inline void __stcg(T *to, T value) { *to = value; }
template <typename T> static inline void __stwb(T *to, T value) { *to = value; }
template <typename T> static inline void __stwt(T *to, T value) { *to = value; }

// ---- mathematics ----------------------------------------------------------------------------------------------------

template <typename To, typename From> static inline To emulated_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return emulated_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
static inline float __int_as_float(int x) { return emulated_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }

// Macros, since glibc has private functions of these names.
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __sincosf(x, s, c) sincosf(x, s, c)
#define __tanhf(x) tanhf(x)
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fsub_rn(float x, float y) { return x - y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline double __dadd_rn(double x, double y) { return x + y; }
static inline double __dmul_rn(double x, double y) { return x * y; }
static inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline int __float2int_rn(float x) { return (int)rintf(x); }
static inline int __float2int_rz(float x) { return (int)x; }
static inline int __float2int_rd(float x) { return (int)floorf(x); }
static inline int __float2int_ru(float x) { return (int)ceilf(x); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
static inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
static inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned)((uint64_t)x * y >> 32); }
static inline int __mulhi(int x, int y) { return (int)((int64_t)x * y >> 32); }
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline long min(long a, long b) { return a < b ? a : b; }
static inline long max(long a, long b) { return a > b ? a : b; }
static inline unsigned long min(unsigned long a, unsigned long b) { return a < b ? a : b; }
static inline unsigned long max(unsigned long a, unsigned long b) { return a > b ? a : b; }
static inline long long min(long long a, long long b) { return a < b ? a : b; }
static inline long long max(long long a, long long b) { return a > b ? a : b; }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

#endif
