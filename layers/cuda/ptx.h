// The few PTX instructions in use, each an inline function named after it: for GPUs here, and in plain C++ in the
// emulator's cuda_runtime.h. Layouts of fragments: PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
#ifndef LAYERS_CUDA_PTX_H
#define LAYERS_CUDA_PTX_H

#include "layers/cuda/cuda.h"

#ifdef __CUDACC__

// d (16 x 8, fp32) += a (16 x 16, bf16, row-major) b (16 x 8, bf16, column-major), by one warp. Lane l, group g = l /
// 4, q = l % 4, holds
//   a[0]: (g, 2q..2q+1)   a[1]: (g+8, 2q..)   a[2]: (g, 2q+8..)   a[3]: (g+8, 2q+8..)
//   b[0]: (k = 2q..2q+1, n = g)   b[1]: (k = 2q+8.., n = g)
//   d[0], d[1]: (g, 2q), (g, 2q+1)   d[2], d[3]: (g+8, 2q), (g+8, 2q+1)
__device__ inline void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16-bit values from shared memory; lane l gives the 16-byte aligned address of row l % 8 of
// matrix l / 8, and receives in r[i] the values (l / 4, 2 (l % 4) ..+1) of matrix i; with _trans, of its transpose.
__device__ inline void ldmatrix_x4(uint32_t r[4], const void *row) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ inline void ldmatrix_x4_trans(uint32_t r[4], const void *row) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// Starts copying 16 bytes from global to shared memory, both 16-byte aligned; zeros instead where !valid (`from` is not
// read then, but must still be an address of its tensor). Arrives at cp_async_wait.
__device__ inline void cp_async_16(void *to, const void *from, bool valid) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
}
// Closes the group of copies started since the last one.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `pending` of this thread's groups are still under way. Other threads' copies: a barrier after it.
template <int pending> __device__ inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// 2^x with 22 bits, 0 for -inf (ex2.approx.ftz).
__device__ inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif // otherwise emulated/ptx.h has them
#endif
