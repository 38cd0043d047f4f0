// The instructions that only Hopper has (sm_90a), each an inline function named after it: barriers in shared memory
// that count bytes (mbarrier), the copy engine that moves whole tiles (TMA, "bulk copies"), products by a warpgroup of
// 128 threads (wgmma), and registers that one warpgroup leaves to another (setmaxnreg). For GPUs here; in plain C++ in
// emulated/ptx_hopper.h. PTX ISA, chapters "Asynchronous warpgroup level matrix instructions", "Data movement and
// conversion instructions: bulk copy", "Parallel synchronization: mbarrier".
//
// Two ways to memory. Threads read and write by the generic proxy; the copy engine and the tensor cores by the async
// proxy. Who hands what to whom:
//
//   the copy engine has written   -> threads, tensor cores read    mbarrier_wait on the barrier that counts its bytes
//   threads have written          -> copy engine, tensor cores     fence_proxy_async by each of them, then a barrier
//   a product, a copy has read    -> anybody overwrites            wgmma_wait or bulk_wait_read, then an mbarrier
//   another block has added       -> this block adds               bulk_wait, store_release there; wait_acquire here
#ifndef LAYERS_CUDA_PTX_HOPPER_H
#define LAYERS_CUDA_PTX_HOPPER_H

#include "layers/cuda/cuda.h"

#ifdef __CUDACC__

#include <cuda.h> // CUtensorMap
#include <cudaTypedefs.h>

// An address as instructions for shared memory want it: 32 bits, counted from the start of the block's window.
__device__ inline uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// ---- mbarrier -------------------------------------------------------------------------------------------------------
// A barrier in shared memory, 8 bytes, that goes through phases 0, 1, 2, ... A phase ends when `arrivals` arrivals were
// made in it and all bytes that were announced in it have come; the next one begins at once. To wait is to wait for the
// end of a phase, which is named by its parity; a barrier just set up counts as one whose phase of parity 1 has ended.

__device__ inline void mbarrier_init(uint64_t *barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes the barriers that this thread has set up known to the copy engine. Other threads: __syncthreads after it.
__device__ inline void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// One arrival. What this thread did before is seen by those who wait for the phase.
__device__ inline void mbarrier_arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Announces bytes, then arrives.
__device__ inline void mbarrier_arrive_expect_tx(uint64_t *barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
// Until the phase of this parity has ended: returns at once if the barrier's present phase has the other parity.
__device__ inline void mbarrier_wait(uint64_t *barrier, int parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

// What this thread wrote to shared memory is seen by the copy engine and the tensor cores, when asked after this.
__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- bulk copies ----------------------------------------------------------------------------------------------------

// A function of the driver, whose library is not linked.
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
    static PFN_cuTensorMapEncodeTiled_v12000 found;
    PFN_cuTensorMapEncodeTiled_v12000 known = __atomic_load_n(&found, __ATOMIC_RELAXED);
    if (known != nullptr) return known;
    void *address = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    CUDA_CHECK(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address, 12000, cudaEnableDefault, &result));
#else
    CUDA_CHECK(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &address, cudaEnableDefault, &result));
#endif
    if (address == nullptr) cuda_give_up(__FILE__, __LINE__, "the driver has no cuTensorMapEncodeTiled");
    known = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(address);
    __atomic_store_n(&found, known, __ATOMIC_RELAXED);
    return known;
}

// A map of bf16 at data[sequence * batch_stride + token * token_stride + channel], for tma_load and tma_store with the
// coordinates (0, token, channel / 64, sequence): boxes are `rows` tokens of `parts` times 64 channels, each part being
// rows of 128 bytes, swizzled. No dimension may be 0. Ends the program if the copy engine cannot take it: strides are
// multiples of 8 values, data of 16 bytes.
inline CUtensorMap tensor_map(void *data, int64_t batch_stride, int64_t token_stride, int64_t batch, int64_t tokens,
                              int64_t channels, int rows, int parts) {
    const cuuint64_t sizes[4] = {64, (cuuint64_t)tokens, (cuuint64_t)(channels / 64), (cuuint64_t)batch};
    const cuuint64_t strides[3] = {(cuuint64_t)token_stride * 2, 128, // in bytes
                                   (cuuint64_t)(batch > 1 ? batch_stride : token_stride) * 2};
    const cuuint32_t box[4] = {64, (cuuint32_t)rows, (cuuint32_t)parts, 1}, steps[4] = {1, 1, 1, 1};
    CUtensorMap map;
    const CUresult status =
        tensor_map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, data, sizes, strides, box, steps,
                             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS) cuda_give_up(__FILE__, __LINE__, "no tensor map: error %d", (int)status);
    return map;
}

// Starts to bring the box that begins at these coordinates, innermost first, to `to` in shared memory (a multiple of
// 1,024 bytes), the innermost dimension running fastest. What lies outside the tensor, also at negative coordinates,
// becomes zeros. The barrier is told of all bytes of the box as they arrive. By one thread. Swizzle of 128 bytes: rows
// are 128 bytes, and piece p of 16 bytes of row r stands at p ^ r % 8.
__device__ inline void tma_load(void *to, const CUtensorMap *map, uint64_t *barrier, int c0, int c1, int c2, int c3) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
                 "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}
// The way back; what lies outside the tensor is left out. Belongs to this thread's group of bulk copies.
__device__ inline void tma_store(const CUtensorMap *map, const void *from, int c0, int c1, int c2, int c3) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
                 "r"(shared_address(from)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}
// Starts to copy consecutive bytes (a multiple of 16, both ends aligned to 16) to global memory, or to add them to the
// fp32 values there: each by one addition, rounded to nearest, where the memory is. Copies and additions under way at
// the same time come in any order. Both belong to this thread's group.
__device__ inline void bulk_store(float *to, const float *from, int bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)),
                 "r"(bytes)
                 : "memory");
}
__device__ inline void bulk_reduce_add(float *to, const float *from, int bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
                 "r"(shared_address(from)), "r"(bytes)
                 : "memory");
}
// Closes the group of what was started since the last one.
__device__ inline void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until all of this thread's groups have read shared memory, which may then be overwritten.
__device__ inline void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
// Until they have also written global memory, as this thread sees it.
__device__ inline void bulk_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// ---- between blocks -------------------------------------------------------------------------------------------------

// Until *word is `value`. What was done before store_release of it is seen by this thread, and bulk copies that it
// starts from now on come after it.
__device__ inline void wait_acquire(const int *word, int value) {
    int now;
    do asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(now) : "l"(word) : "memory");
    while (now != value);
    asm volatile("fence.proxy.async.global;" ::: "memory");
}
// After bulk_wait, where what was done were bulk copies.
__device__ inline void store_release(int *word, int value) {
    asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

// ---- wgmma ----------------------------------------------------------------------------------------------------------
// d (64 x 8 N, fp32) = a (64 x 16, bf16) b (16 x 8 N, bf16), or d += a b where `add`, by the four warps of a warpgroup
// together. Products of a warpgroup are done in the order in which they were started, beside whatever its threads do
// next; d, and a in registers, may not be touched before wgmma_wait. Warp w of the four owns rows 16w to 16w + 15, and
// a lane holds of d[n] (columns 8n to 8n + 7), and of a, what it does in mma.m16n8k16 (layers/cuda/ptx.h).

// Where an operand lies in shared memory: a 64-bit descriptor. Swizzled as by tma_load: 8 rows of 128 bytes are a unit
// of 1,024 bytes, in which the operand begins at any piece of the first row.
//   rows run along m or n (columns along k; "K-major"): 16 values of each row. The next 8 rows follow 1,024 bytes on;
//     `block` is not used. 16 further k are 32 bytes further on, up to the 64 that a row has.
//   rows run along k (columns along m or n; "MN-major"): 16 rows. Rows 8 to 15 follow after 1,024 bytes, and columns
//     from 64 on after `block` bytes. 16 further k are 2,048 bytes further on.
// Bits: address / 16 (0-13), block / 16 (16-29), 1,024 / 16 (32-45), swizzle of 128 bytes (62-63: 1).
__device__ inline uint64_t wgmma_operand(const void *tile, int block) {
    return (uint64_t)(shared_address(tile) >> 4) | (uint64_t)(block >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}
// The same so many bytes, a multiple of 16, further on.
__device__ inline uint64_t wgmma_operand_at(uint64_t operand, int bytes) { return operand + (uint64_t)(bytes >> 4); }

// Before the first product that uses registers which other instructions have written.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Closes the group of products started since the last one.
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most `pending` groups are still under way.
template <int pending> __device__ inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// No instruction. After wgmma_wait: d has changed, so the compiler may not have read it before.
template <int N> __device__ inline void wgmma_arrived(float (&d)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}

// What becomes of d. ADD: d += a b. FRESH: d = a b, and d is an output only ("=f"): as an input too, what was in it
// would first be moved to its registers, in the midst of products under way, and the assembler would then do these one
// by one (C7515). IN_PLACE: d = a b as well, but for the compiler d is read ("+f"): so the product of one tile after
// another stays in the same registers, where there is no room for a second d.
enum class Wgmma { FRESH, IN_PLACE, ADD };

#define D1(mode, n) mode(d[n][0]), mode(d[n][1]), mode(d[n][2]), mode(d[n][3])
#define D2(mode, n) D1(mode, n), D1(mode, n + 1)
#define D8(mode) D2(mode, 0), D2(mode, 2), D2(mode, 4), D2(mode, 6)
#define D10(mode) D8(mode), D2(mode, 8)
#define D16(mode) D10(mode), D2(mode, 10), D2(mode, 12), D2(mode, 14)
#define R32                                                                                                            \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"   \
    "%30,%31"
#define R40 R32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define R64                                                                                                            \
    R40 ",%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
// shape, its registers, the operands a and b as text, add (0 or 1), which are MN-major: ", a's, b's" or ", b's"
#define WGMMA(shape, registers, operands, add, mn_major)                                                               \
    "{\n.reg .pred add;\nsetp.ne.b32 add, " #add ", 0;\nwgmma.mma_async.sync.aligned." shape                           \
    ".f32.bf16.bf16 {" registers "}, " operands ", add, 1, 1" mn_major ";\n}"
// A product with both operands in shared memory, for d of so many fragments.
#define WGMMA_SHARED(name, count, shape, registers, operands, mn_major, D)                                             \
    template <Wgmma into> __device__ inline void name(float (&d)[count][4], uint64_t a, uint64_t b) {                  \
        if (into == Wgmma::ADD)                                                                                        \
            asm volatile(WGMMA(shape, registers, operands, 1, mn_major) : D("+f") : "l"(a), "l"(b));                   \
        else if (into == Wgmma::IN_PLACE)                                                                              \
            asm volatile(WGMMA(shape, registers, operands, 0, mn_major) : D("+f") : "l"(a), "l"(b));                   \
        else asm volatile(WGMMA(shape, registers, operands, 0, mn_major) : D("=f") : "l"(a), "l"(b));                  \
    }

// d = a b^T: the rows of both run along m and n.
WGMMA_SHARED(wgmma_ABt, 8, "m64n64k16", R32, "%32, %33", ", 0, 0", D8)
WGMMA_SHARED(wgmma_ABt, 10, "m64n80k16", R40, "%40, %41", ", 0, 0", D10)
WGMMA_SHARED(wgmma_ABt, 16, "m64n128k16", R64, "%64, %65", ", 0, 0", D16)
// d = a^T b: the rows of both run along k.
WGMMA_SHARED(wgmma_AtB, 8, "m64n64k16", R32, "%32, %33", ", 1, 1", D8)

// d += a b: a in registers; b in shared memory, its rows run along k.
__device__ inline void wgmma_AB(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(WGMMA("m64n64k16", R32, "{%32,%33,%34,%35}, %36", 1, ", 1")
                 : D8("+f")
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void wgmma_AB(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(WGMMA("m64n128k16", R64, "{%64,%65,%66,%67}, %68", 1, ", 1")
                 : D16("+f")
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef D1
#undef D2
#undef D8
#undef D10
#undef D16
#undef R32
#undef R40
#undef R64
#undef WGMMA
#undef WGMMA_SHARED

// Four 8 x 8 matrices of 16-bit values to shared memory: lane l gives the address of row l % 8 of matrix l / 8, and
// holds in r[i] the values (l / 4, 2 (l % 4) ..+1) of matrix i. The way back of ldmatrix_x4 (layers/cuda/ptx.h).
__device__ inline void stmatrix_x4(void *row, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

// ---- warpgroups -----------------------------------------------------------------------------------------------------

// From here on each thread of this warpgroup has so many registers (a multiple of 8): fewer than before, the others go
// back to the block; or more, when the block has got them back. The block keeps what it was launched with: registers at
// entry x threads. All four warps of a warpgroup execute it, outside of divergent code.
template <int registers> __device__ inline void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers> __device__ inline void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
// Barrier `id` (1 to 15) opens when `threads` threads have come to it, by waiting at it or only by arriving, and begins
// anew.
__device__ inline void named_barrier_wait(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void named_barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#endif // otherwise emulated/ptx_hopper.h has them
#endif
