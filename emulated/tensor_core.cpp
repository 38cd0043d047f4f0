// mma.sync and ldmatrix. Layouts: PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type" and "ldmatrix".
#include "emulated/cuda_runtime.h"

#include "emulated/block.h"
#include "emulated/checks.h"
#include "emulated/report.h"
#include "emulated/settings.h"
#include "emulated/shared.h"

static float from_bf16(uint32_t bits) {
    const uint32_t word = bits << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

// A register of an operand holds two neighbours along k: the lower half the first. With group g = lane / 4 and q = lane
// % 4: a[i] is row g + 8 (i % 2), columns 2q + 8 (i / 2) and the next; b[i] is column g, rows 2q + 8i and the next;
// d[i] is row g + 8 (i / 2), column 2q + i % 2. Products of bf16 are exact in fp32; here they are added one by one
// along k, each sum rounded to nearest. A tensor core adds several at once with its own rounding: results differ from
// it by rounding, and only by that.

typedef float Row __attribute__((vector_size(32)));
enum { AT_ONCE = 8 }; // rows, so that their sums stay in registers and need not wait for one another
static inline __attribute__((always_inline)) void multiply(Row d[16], const float a[16][16], const Row b[16]) {
    for (int row = 0; row < 16; row += AT_ONCE) {
        Row sum[AT_ONCE];
        for (int i = 0; i < AT_ONCE; i++) sum[i] = d[row + i];
        for (int k = 0; k < 16; k++) {
#pragma GCC unroll 8
            for (int i = 0; i < AT_ONCE; i++) sum[i] += a[row + i][k] * b[k];
        }
        for (int i = 0; i < AT_ONCE; i++) d[row + i] = sum[i];
    }
}
#if defined(__x86_64__)
// The same additions by wider registers. (Fused with the product they give the same, since the product is exact.)
__attribute__((target("avx2,fma"))) static void multiply_avx2(Row d[16], const float a[16][16], const Row b[16]) {
    multiply(d, a, b);
}
static bool has_avx2() {
    static int known; // 0: not yet; threads that find out at the same time find the same
    if (known == 0) known = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1 : 2;
    return known == 1;
}
#endif

struct MmaOperands { // of one lane
    EmulatedFloats4 d;
    EmulatedWords4 a;
    EmulatedWords2 b;
};
static void complete_mma(Thread *lane, unsigned lanes) {
    if (lanes != ~0u) report(lane, lane->where, "mma.sync by a part of a warp");
    float a[16][16];
    union {
        float at[16][8];
        Row row[16];
    } b, d;
    for (int l = 0; l < WARP_LANES; l++) {
        const int g = l / 4, q = l % 4;
        const MmaOperands *mine = (const MmaOperands *)lane[l].in[0];
        for (int i = 0; i < 4; i++) {
            const int row = g + 8 * (i % 2), column = 2 * q + 8 * (i / 2);
            a[row][column] = from_bf16(mine->a.word[i] & 0xffff);
            a[row][column + 1] = from_bf16(mine->a.word[i] >> 16);
            d.at[g + 8 * (i / 2)][2 * q + i % 2] = mine->d.value[i];
        }
        for (int i = 0; i < 2; i++) {
            b.at[2 * q + 8 * i][g] = from_bf16(mine->b.word[i] & 0xffff);
            b.at[2 * q + 8 * i + 1][g] = from_bf16(mine->b.word[i] >> 16);
        }
    }
#if defined(__x86_64__)
    if (has_avx2()) multiply_avx2(d.row, a, b.row);
    else
#endif
        multiply(d.row, a, b.row);
    for (int l = 0; l < WARP_LANES; l++) {
        MmaOperands *mine = (MmaOperands *)lane[l].in[0];
        for (int i = 0; i < 4; i++) mine->d.value[i] = d.at[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
    }
}

EmulatedFloats4 emulated_mma_m16n8k16(EmulatedFloats4 d, EmulatedWords4 a, EmulatedWords2 b) {
    static const WarpOperation operation = {"mma.sync", complete_mma};
    MmaOperands mine = {d, a, b}; // on this thread's stack, which waits here
    Thread *thread = emulated_thread;
    thread->in[0] = (uint64_t)&mine;
    thread->where = CALLER;
    warp_collective(&operation, ~0u, CALLER);
    return mine.d;
}

// Passes over the 32 banks of 4 bytes that 8 rows of 16 bytes take: 1 if no two different rows meet in a bank.
static unsigned passes(Thread *lane) {
    unsigned worst = 1;
    for (unsigned bank = 0; bank < 32; bank++) {
        uint64_t word[8];
        unsigned different = 0;
        for (int i = 0; i < 8; i++) {
            const uint64_t first = lane[i].in[0] / 4;
            const uint64_t here = first + (bank - first % 32) % 32; // the word in this bank at or after the row's start
            if (here >= first + 4) continue;
            unsigned k = 0;
            while (k < different && word[k] != here) k++;
            if (k == different) word[different++] = here;
        }
        if (different > worst) worst = different;
    }
    return worst;
}

static void complete_ldmatrix(Thread *lane, unsigned lanes) {
    if (lanes != ~0u) report(lane, lane->where, "ldmatrix by a part of a warp");
    Block *block = lane->block;
    for (int l = 0; l < WARP_LANES; l++) {
        const void *row = (const void *)lane[l].in[0];
        if (!shared_contains(block, row))
            report(&lane[l], lane[l].where, "ldmatrix from %p, which is not shared memory", row);
        if ((uintptr_t)row % 16 != 0) report_misaligned(&lane[l], "ldmatrix reads", row, 16, lane[l].where);
        shared_access(&lane[l], row, 16, ACCESS_READ, lane[l].where);
    }
    const bool transpose = lane->in[1] != 0;
    uint16_t result[WARP_LANES][4][2];
    for (int matrix = 0; matrix < 4; matrix++) {
        for (int l = 0; l < WARP_LANES; l++) {
            for (int half = 0; half < 2; half++) {
                const int row = transpose ? 2 * (l % 4) + half : l / 4;
                const int column = transpose ? l / 4 : 2 * (l % 4) + half;
                memcpy(&result[l][matrix][half], (const char *)lane[8 * matrix + row].in[0] + 2 * column, 2);
            }
        }
        if (settings()->banks) {
            block->banks.accesses++;
            block->banks.wavefronts += passes(&lane[8 * matrix]);
        }
    }
    for (int l = 0; l < WARP_LANES; l++) memcpy(lane[l].out, result[l], sizeof result[l]);
}

EmulatedWords4 emulated_ldmatrix_x4(const void *row, bool transpose) {
    static const WarpOperation operation[] = {{"ldmatrix", complete_ldmatrix}, {"ldmatrix.trans", complete_ldmatrix}};
    Thread *thread = emulated_thread;
    thread->in[0] = (uint64_t)row;
    thread->in[1] = transpose;
    thread->where = CALLER;
    warp_collective(&operation[transpose], ~0u, CALLER);
    EmulatedWords4 result;
    memcpy(&result, thread->out, sizeof result);
    return result;
}
