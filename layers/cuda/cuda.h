// What every .cu file of this project begins with: the CUDA runtime, checked calls and launches, shared memory.
//
// The same sources are compiled by nvcc for GPUs, and by g++ with emulated/ in front of the include path, which
// runs each thread of a block as a fiber on the CPU ("--device emulated"). Three things differ between the two and
// stand behind a name here: a launch, and the two kinds of shared memory.
//
//   launch(kernel, grid, block, shared_bytes, stream, arguments...)     kernel<<<grid, block, shared_bytes,
//   stream>>>(...) SHARED_ARRAY(float, partial, 32);                                   __shared__ float partial[32];
//   DYNAMIC_SHARED(unsigned char, tiles);                               extern __shared__ unsigned char tiles[];
//
// Grids: everything that grows with the number of tokens goes on x, since y and z stop at 65,535.
#ifndef LAYERS_CUDA_CUDA_H
#define LAYERS_CUDA_CUDA_H

#include <cuda_runtime.h>
#include <stdint.h>

// Ends the program with one line that names the call, unless it succeeded.
#define CUDA_CHECK(call) cuda_check((call), #call, __FILE__, __LINE__)
void cuda_check(cudaError_t status, const char *call, const char *file, int line);
// For what a GPU cannot do, with the same kind of line.
[[noreturn]] void cuda_give_up(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#ifdef __CUDACC__

#define SHARED_ARRAY(type, name, count) __shared__ type name[count]
#define DYNAMIC_SHARED(type, name)                                                                                     \
    extern __shared__ __align__(1024) unsigned char dynamic_shared[];                                                  \
    type *name = reinterpret_cast<type *>(dynamic_shared)

#define launch(kernel, grid, block, shared_bytes, stream, ...)                                                         \
    launch_checked(kernel, #kernel, __FILE__, __LINE__, dim3(grid), dim3(block), (size_t)(shared_bytes), stream,       \
                   __VA_ARGS__)

// A launch that asks for too much fails without a word unless its error is fetched; and more than 48 KiB of dynamic
// shared memory must be asked for first.
template <typename... P, typename... A>
inline void launch_checked(void (*kernel)(P...), const char *name, const char *file, int line, dim3 grid, dim3 block,
                           size_t shared_bytes, cudaStream_t stream, A... arguments) {
    if (shared_bytes > (48 << 10)) {
        cuda_check(
            cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes),
            name, file, line);
    }
    kernel<<<grid, block, shared_bytes, stream>>>(static_cast<P>(arguments)...);
    cuda_check(cudaGetLastError(), name, file, line);
}

#endif // otherwise emulated/cuda_runtime.h has them

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f; // log2(e), ln(2)

template <typename T> __host__ __device__ constexpr T smaller_of(T a, T b) { return a < b ? a : b; }
template <typename T> __host__ __device__ constexpr T larger_of(T a, T b) { return a > b ? a : b; }
template <typename T> __host__ __device__ constexpr T ceil_div(T a, T b) { return (a + b - 1) / b; }

#endif
