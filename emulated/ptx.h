// The PTX instructions in use, in plain C++: same names, arguments and results as in layers/cuda/ptx.h, which describes
// them. The bodies are in tensor_core.cpp and async_copy.cpp.
#ifndef EMULATED_PTX_H
#define EMULATED_PTX_H

#include <math.h>
#include <stdint.h>

// By value, so that a kernel's arrays of fragments need no address and stay in registers.
struct EmulatedWords2 {
    uint32_t word[2];
};
struct EmulatedWords4 {
    uint32_t word[4];
};
struct EmulatedFloats4 {
    float value[4];
};
EmulatedFloats4 emulated_mma_m16n8k16(EmulatedFloats4 d, EmulatedWords4 a, EmulatedWords2 b);
EmulatedWords4 emulated_ldmatrix_x4(const void *row, bool transpose);
void emulated_cp_async_16(void *to, const void *from, bool valid);
void emulated_cp_async_commit();
void emulated_cp_async_wait(int pending);

__forceinline__ void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    const EmulatedFloats4 result =
        emulated_mma_m16n8k16({{d[0], d[1], d[2], d[3]}}, {{a[0], a[1], a[2], a[3]}}, {{b[0], b[1]}});
    for (int i = 0; i < 4; i++) d[i] = result.value[i];
}
__forceinline__ void ldmatrix_x4(uint32_t r[4], const void *row) {
    const EmulatedWords4 result = emulated_ldmatrix_x4(row, false);
    for (int i = 0; i < 4; i++) r[i] = result.word[i];
}
__forceinline__ void ldmatrix_x4_trans(uint32_t r[4], const void *row) {
    const EmulatedWords4 result = emulated_ldmatrix_x4(row, true);
    for (int i = 0; i < 4; i++) r[i] = result.word[i];
}
__forceinline__ void cp_async_16(void *to, const void *from, bool valid) { emulated_cp_async_16(to, from, valid); }
__forceinline__ void cp_async_commit() { emulated_cp_async_commit(); }
template <int pending> __forceinline__ void cp_async_wait() {
    static_assert(pending >= 0, "a count of groups");
    emulated_cp_async_wait(pending);
}
// ex2.approx.ftz: results too small for a normal number are 0.
__forceinline__ float exp2_fast(float x) {
    const float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}

#endif
