// Hopper's instructions in plain C++: same names, arguments and results as in layers/cuda/ptx_hopper.h, which describes
// them. The bodies are in hopper.cpp, mbarrier.cpp, bulk_copy.cpp, turns.cpp, wgmma.cpp and warpgroup.cpp.
#ifndef EMULATED_PTX_HOPPER_H
#define EMULATED_PTX_HOPPER_H

#include <stdint.h>

void cuda_give_up(const char *file, int line, const char *format, ...) // the project's own
    __attribute__((noreturn, format(printf, 3, 4)));

uint32_t emulated_shared_address(const void *address);
__forceinline__ uint32_t shared_address(const void *p) { return emulated_shared_address(p); }

// ---- mbarrier -------------------------------------------------------------------------------------------------------

void emulated_mbarrier_init(uint64_t *barrier, int arrivals);
void emulated_mbarrier_init_fence();
void emulated_mbarrier_arrive(uint64_t *barrier, int bytes);
void emulated_mbarrier_wait(uint64_t *barrier, int parity);
void emulated_fence_proxy_async();

__forceinline__ void mbarrier_init(uint64_t *barrier, int arrivals) { emulated_mbarrier_init(barrier, arrivals); }
__forceinline__ void mbarrier_init_fence() { emulated_mbarrier_init_fence(); }
__forceinline__ void mbarrier_arrive(uint64_t *barrier) { emulated_mbarrier_arrive(barrier, 0); }
__forceinline__ void mbarrier_arrive_expect_tx(uint64_t *barrier, int bytes) {
    emulated_mbarrier_arrive(barrier, bytes);
}
__forceinline__ void mbarrier_wait(uint64_t *barrier, int parity) { emulated_mbarrier_wait(barrier, parity); }
__forceinline__ void fence_proxy_async() { emulated_fence_proxy_async(); }

// ---- bulk copies ----------------------------------------------------------------------------------------------------

// Dimensions innermost first: 64 channels, tokens, 64s of channels, sequences. Strides of the last three, in bytes.
struct CUtensorMap {
    char *data;
    int64_t size[4], stride[3];
    int rows, parts; // of a box
};
inline CUtensorMap tensor_map(void *data, int64_t batch_stride, int64_t token_stride, int64_t batch, int64_t tokens,
                              int64_t channels, int rows, int parts) {
    const int64_t most = (int64_t)1 << 32, sequence = batch > 1 ? batch_stride : token_stride;
    const bool right = data != NULL && (uintptr_t)data % 16 == 0 && batch > 0 && tokens > 0 && channels >= 64 &&
                       batch < most && tokens < most && channels / 64 < most && token_stride > 0 && sequence > 0 &&
                       token_stride % 8 == 0 && sequence % 8 == 0 && token_stride * 2 < most * 256 &&
                       sequence * 2 < most * 256 && rows > 0 && rows <= 256 && parts > 0 && parts <= 256;
    if (!right) cuda_give_up(__FILE__, __LINE__, "no tensor map: error %d", 1);
    return CUtensorMap{static_cast<char *>(data),
                       {64, tokens, channels / 64, batch},
                       {token_stride * 2, 128, sequence * 2},
                       rows,
                       parts};
}

void emulated_tma_load(void *to, const CUtensorMap *map, uint64_t *barrier, const int (&at)[4]);
void emulated_tma_store(const CUtensorMap *map, const void *from, const int (&at)[4]);
void emulated_bulk_to_global(float *to, const float *from, int bytes, bool add);
void emulated_bulk_commit();
void emulated_bulk_wait(bool written);

__forceinline__ void tma_load(void *to, const CUtensorMap *map, uint64_t *barrier, int c0, int c1, int c2, int c3) {
    emulated_tma_load(to, map, barrier, {c0, c1, c2, c3});
}
__forceinline__ void tma_store(const CUtensorMap *map, const void *from, int c0, int c1, int c2, int c3) {
    emulated_tma_store(map, from, {c0, c1, c2, c3});
}
__forceinline__ void bulk_store(float *to, const float *from, int bytes) {
    emulated_bulk_to_global(to, from, bytes, false);
}
__forceinline__ void bulk_reduce_add(float *to, const float *from, int bytes) {
    emulated_bulk_to_global(to, from, bytes, true);
}
__forceinline__ void bulk_commit() { emulated_bulk_commit(); }
__forceinline__ void bulk_wait_read() { emulated_bulk_wait(false); }
__forceinline__ void bulk_wait() { emulated_bulk_wait(true); }

// ---- between blocks -------------------------------------------------------------------------------------------------

void emulated_wait_acquire(const int *word, int value);
void emulated_store_release(int *word, int value);
__forceinline__ void wait_acquire(const int *word, int value) { emulated_wait_acquire(word, value); }
__forceinline__ void store_release(int *word, int value) { emulated_store_release(word, value); }

// ---- wgmma ----------------------------------------------------------------------------------------------------------

enum EmulatedMajor { EMULATED_K_MAJOR, EMULATED_MN_MAJOR, EMULATED_REGISTERS }; // of an operand
struct EmulatedWgmma {
    int fragments; // of 8 columns
    bool add;
    EmulatedMajor a_major, b_major;
    uint64_t a, b; // descriptors
    const uint32_t *a_registers;
};
void emulated_wgmma(float *d, const EmulatedWgmma &product);
void emulated_wgmma_fence();
void emulated_wgmma_commit();
void emulated_wgmma_wait(int pending);

__forceinline__ uint64_t wgmma_operand(const void *tile, int block) {
    return (uint64_t)(shared_address(tile) >> 4) | (uint64_t)(block >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}
__forceinline__ uint64_t wgmma_operand_at(uint64_t operand, int bytes) { return operand + (uint64_t)(bytes >> 4); }
__forceinline__ void wgmma_fence() { emulated_wgmma_fence(); }
__forceinline__ void wgmma_commit() { emulated_wgmma_commit(); }
template <int pending> __forceinline__ void wgmma_wait() {
    static_assert(pending >= 0 && pending <= 7, "a count of groups");
    emulated_wgmma_wait(pending);
}
template <int N> __forceinline__ void wgmma_arrived(float (&)[N][4]) {}

enum class Wgmma { FRESH, IN_PLACE, ADD };
template <Wgmma into, int N> __forceinline__ void wgmma_ABt(float (&d)[N][4], uint64_t a, uint64_t b) {
    static_assert(N >= 1 && N <= 32, "8 to 256 columns");
    emulated_wgmma(&d[0][0], EmulatedWgmma{N, into == Wgmma::ADD, EMULATED_K_MAJOR, EMULATED_K_MAJOR, a, b, NULL});
}
template <Wgmma into, int N> __forceinline__ void wgmma_AtB(float (&d)[N][4], uint64_t a, uint64_t b) {
    static_assert(N >= 1 && N <= 32, "8 to 256 columns");
    emulated_wgmma(&d[0][0], EmulatedWgmma{N, into == Wgmma::ADD, EMULATED_MN_MAJOR, EMULATED_MN_MAJOR, a, b, NULL});
}
template <int N> __forceinline__ void wgmma_AB(float (&d)[N][4], const uint32_t (&a)[4], uint64_t b) {
    static_assert(N >= 1 && N <= 32, "8 to 256 columns");
    emulated_wgmma(&d[0][0], EmulatedWgmma{N, true, EMULATED_REGISTERS, EMULATED_MN_MAJOR, 0, b, a});
}

void emulated_stmatrix_x4(void *row, EmulatedWords4 r);
__forceinline__ void stmatrix_x4(void *row, const uint32_t (&r)[4]) {
    emulated_stmatrix_x4(row, {{r[0], r[1], r[2], r[3]}});
}

// ---- warpgroups -----------------------------------------------------------------------------------------------------

void emulated_setmaxnreg(int registers, bool more);
void emulated_named_barrier(int id, int threads, bool wait);
template <int registers> __forceinline__ void setmaxnreg_dec() {
    static_assert(registers >= 24 && registers <= 256 && registers % 8 == 0, "24 to 256, a multiple of 8");
    emulated_setmaxnreg(registers, false);
}
template <int registers> __forceinline__ void setmaxnreg_inc() {
    static_assert(registers >= 24 && registers <= 256 && registers % 8 == 0, "24 to 256, a multiple of 8");
    emulated_setmaxnreg(registers, true);
}
__forceinline__ void named_barrier_wait(int id, int threads) { emulated_named_barrier(id, threads, true); }
__forceinline__ void named_barrier_arrive(int id, int threads) { emulated_named_barrier(id, threads, false); }

#endif
