// The emulated Hopper GPU: wgmma, bulk copies, barriers that count bytes, turns between blocks. First their right use
// against plain loops; then planted faults, each of which must be caught. (test_cuda_on_cpu.cu: everything else.)
#include "test/emulated_cases.h"

#include "layers/cuda/bf16.h"
#include "layers/cuda/ptx.h"
#include "layers/cuda/ptx_hopper.h"
#include "layers/cuda/warp.h"

enum { WARPGROUP = 128, M = 64, K = 128 };

static bf16 *random_matrix(uint32_t seed, size_t count) {
    bf16 *x = (bf16 *)malloc(count * sizeof *x);
    for (size_t i = 0; i < count; i++) x[i] = to_bf16(number(seed + (uint32_t)i));
    return x;
}

// A fragment's rows and columns, from the figure of the PTX ISA ("WGMMA .m64nNk16 register fragment layout"): warps own
// 16 rows each; d[n][0..1] are of row lane / 4, d[n][2..3] of 8 rows further down.
template <int N> __device__ static void store_fragments(float *out, const float (&d)[N][4]) {
    const int row = threadIdx.x % WARPGROUP / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (int n = 0; n < N; n++)
        for (int i = 0; i < 4; i++) out[(row + i / 2 * 8) * N * 8 + n * 8 + column + i % 2] = d[n][i];
}

// ---- products ------------------------------------------------------------------------------------------------------

enum Form { ABt, AtB, AB };

// One product over K = 128: operands by the copy engine, from row-major matrices whose rows run as the form says. The
// second half of the sums is started as a group of its own. `shift`: how many pieces too far the swizzled A begins.
template <int form, int N>
__global__ static void products(float *out, const __grid_constant__ CUtensorMap a_map,
                                const __grid_constant__ CUtensorMap b_map, const bf16 *a_plain) {
    DYNAMIC_SHARED(char, memory);
    constexpr int A_ROWS = form == ABt ? M : K, B_ROWS = form == ABt ? N * 8 : K;
    constexpr int A_PARTS = form == ABt ? K / 64 : 1, B_PARTS = form == ABt ? K / 64 : N / 8;
    char *a = memory, *b = memory + A_ROWS * A_PARTS * 128;
    uint64_t *full = (uint64_t *)(b + B_ROWS * B_PARTS * 128);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect_tx(full, (A_ROWS * A_PARTS + B_ROWS * B_PARTS) * 128);
        tma_load(a, &a_map, full, 0, 0, 0, 0);
        tma_load(b, &b_map, full, 0, 0, 0, 0);
    }
    __syncthreads();
    mbarrier_wait(full, 0);
    const uint64_t left = wgmma_operand(a, 0), right = wgmma_operand(b, B_ROWS * 128);
    float d[N][4];
    for (int n = 0; n < N; n++)
        for (int i = 0; i < 4; i++) d[n][i] = form == AB ? 1 : 1e30f;
    uint32_t row[K / 16][4];
    for (int k = 0; k < K / 16 && form == AB; k++) {
        for (int i = 0; i < 4; i++) {
            const int r = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i % 2 * 8;
            row[k][i] = *(const uint32_t *)(a_plain + r * K + k * 16 + threadIdx.x % 4 * 2 + i / 2 * 8);
        }
    }
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < K / 16; k++) {
        if constexpr (form == ABt) {
            const uint64_t at = wgmma_operand_at(left, k / 4 * A_ROWS * 128 + k % 4 * 32);
            const uint64_t to = wgmma_operand_at(right, k / 4 * B_ROWS * 128 + k % 4 * 32);
            if (k == 0) wgmma_ABt<Wgmma::FRESH>(d, at, to);
            else wgmma_ABt<Wgmma::ADD>(d, at, to);
        } else if constexpr (form == AtB) {
            if (k == 0) wgmma_AtB<Wgmma::FRESH>(d, left, right);
            else wgmma_AtB<Wgmma::ADD>(d, wgmma_operand_at(left, k * 2048), wgmma_operand_at(right, k * 2048));
        } else {
            wgmma_AB(d, row[k], wgmma_operand_at(right, k * 2048));
        }
        if (k == K / 32) wgmma_commit();
    }
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_wait<0>();
    wgmma_arrived(d);
    store_fragments(out, d);
}

template <int form, int N> static void product(void) {
    constexpr int a_rows = form == AtB ? K : M, a_columns = form == AtB ? M : K, n = N * 8;
    constexpr int b_rows = form == ABt ? n : K, b_columns = form == ABt ? K : n;
    bf16 *a = random_matrix(1, M * K), *b = random_matrix(100000, (size_t)n * K);
    bf16 *device_a = on_device(a, M * K), *device_b = on_device(b, (size_t)n * K);
    static float got[M * 256];
    float *out = on_device<float>(NULL, M * n);
    // Where A comes from registers, its map serves for nothing but a load of the same size.
    const CUtensorMap a_map = form == ABt   ? tensor_map(device_a, 0, K, 1, M, K, M, K / 64)
                              : form == AtB ? tensor_map(device_a, 0, M, 1, K, M, K, 1)
                                            : tensor_map(device_a, 0, 64, 1, 2 * M, 64, K, 1);
    const CUtensorMap b_map = tensor_map(device_b, 0, b_columns, 1, b_rows, b_columns, b_rows, b_columns / 64);
    const size_t shared = (size_t)(a_rows * a_columns + b_rows * b_columns) * 2 + 16;
    launch((products<form, N>), 1, WARPGROUP, shared, NULL, out, a_map, b_map, device_a);
    to_host(got, out, (size_t)(M * n), NULL);
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < n; j++) {
            double sum = form == AB, size = sum;
            for (int k = 0; k < K; k++) {
                const double x = to_float(form == AtB ? a[k * M + i] : a[i * K + k]);
                const double y = to_float(form == ABt ? b[j * K + k] : b[k * n + j]);
                sum += x * y;
                size += fabs(x * y);
            }
            // K additions, each rounded by at most 2^-24 of a partial sum that is at most `size`.
            REQUIRE(fabs(got[i * n + j] - sum) <= (K + 1) * size * 0x1p-24);
        }
    }
}
static void test_products(void **) {
    passes(product<ABt, 8>);
    passes(product<ABt, 10>);
    passes(product<ABt, 16>);
    passes(product<ABt, 32>);
    passes(product<AtB, 8>);
    passes(product<AtB, 16>);
    passes(product<AtB, 32>);
    passes(product<AB, 8>);
    passes(product<AB, 16>);
    passes(product<AB, 32>);
}

// ---- boxes ---------------------------------------------------------------------------------------------------------

// A box of 16 tokens of two parts, from (token, part, sequence) on; as it stands in shared memory to `seen`, and stored
// at the same place of another tensor.
enum { BOX_ROWS = 16, BOX_PARTS = 2, TOKENS = 20, PARTS = 3, SEQUENCES = 2, STRIDE = PARTS * 64 + 8 };
__global__ static void move_box(bf16 *seen, const __grid_constant__ CUtensorMap from,
                                const __grid_constant__ CUtensorMap to, int token, int part, int sequence) {
    DYNAMIC_SHARED(bf16, box);
    SHARED_ARRAY(uint64_t, full, 1);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect_tx(full, BOX_ROWS * BOX_PARTS * 128);
        tma_load(box, &from, full, 0, token, part, sequence);
    }
    __syncthreads();
    mbarrier_wait(full, 0);
    for (int i = threadIdx.x; i < BOX_ROWS * BOX_PARTS * 64; i += blockDim.x) seen[i] = box[i];
    if (threadIdx.x > 0) return;
    tma_store(&to, box, 0, token, part, sequence);
    bulk_commit();
    bulk_wait_read();
}
static void boxes(void) {
    const size_t count = SEQUENCES * TOKENS * STRIDE;
    bf16 *x = random_matrix(7, count), *from = on_device(x, count), *to = on_device<bf16>(NULL, count);
    bf16 *device_seen = on_device<bf16>(NULL, BOX_ROWS * BOX_PARTS * 64);
    static bf16 seen[BOX_PARTS * BOX_ROWS * 64], moved[SEQUENCES * TOKENS * STRIDE];
    const auto map_of = [](bf16 *data) {
        return tensor_map(data, TOKENS * STRIDE, STRIDE, SEQUENCES, TOKENS, PARTS * 64, BOX_ROWS, BOX_PARTS);
    };
    const int places[][3] = {{0, 0, 0}, {-5, 1, 1}, {10, 2, 0}, {19, -1, 1}, {3, 0, 2}, {25, 0, 0}};
    for (const int *at : places) {
        CUDA_CHECK(cudaMemset(to, 0xff, count * sizeof *to));
        launch(move_box, 1, 64, BOX_ROWS * BOX_PARTS * 128, NULL, device_seen, map_of(from), map_of(to), at[0], at[1],
               at[2]);
        to_host(seen, device_seen, BOX_ROWS * BOX_PARTS * 64, NULL);
        to_host(moved, to, count, NULL);
        for (int s = 0; s < SEQUENCES; s++) {
            for (int t = 0; t < TOKENS; t++) {
                for (int c = 0; c < STRIDE; c++) {
                    const int row = t - at[0], part = c / 64 - at[1];
                    const bool inside =
                        s == at[2] && row >= 0 && row < BOX_ROWS && part >= 0 && part < BOX_PARTS && c < PARTS * 64;
                    const size_t i = (size_t)((s * TOKENS + t) * STRIDE + c);
                    REQUIRE(moved[i].bits == (inside ? x[i].bits : 0xffff));
                    if (!inside) continue;
                    const int swizzled = (c % 64 / 8 ^ row % 8) * 8 + c % 8;
                    REQUIRE(seen[(part * BOX_ROWS + row) * 64 + swizzled].bits == x[i].bits);
                }
            }
        }
        for (int part = 0; part < BOX_PARTS; part++) {
            for (int row = 0; row < BOX_ROWS; row++) {
                const bool outside = at[2] >= SEQUENCES || at[0] + row < 0 || at[0] + row >= TOKENS ||
                                     at[1] + part < 0 || at[1] + part >= PARTS;
                for (int c = 0; c < 64 && outside; c++) REQUIRE(seen[(part * BOX_ROWS + row) * 64 + c].bits == 0);
            }
        }
    }
}
static void box_map_of_odd_stride(void) { tensor_map(on_device<bf16>(NULL, 4096), 0, 68, 1, 20, 64, 16, 1); }
static void test_boxes(void **) {
    passes(boxes);
    assert_int_equal(in_child(box_map_of_odd_stride, 1, false), 4);
}

// ---- stmatrix ------------------------------------------------------------------------------------------------------

__global__ static void through_matrices(uint32_t *out) {
    DYNAMIC_SHARED(bf16, tile); // (32, 8)
    uint32_t r[4], back[4];
    for (int i = 0; i < 4; i++) r[i] = threadIdx.x * 4 + i;
    stmatrix_x4(tile + threadIdx.x * 8, r);
    __syncwarp();
    ldmatrix_x4(back, tile + threadIdx.x * 8);
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = back[i];
}
static void matrices(void) {
    uint32_t got[128], *out = on_device<uint32_t>(NULL, 128);
    launch(through_matrices, 1, 32, 512, NULL, out);
    to_host(got, out, 128, NULL);
    for (uint32_t i = 0; i < 128; i++) REQUIRE(got[i] == i);
}
static void test_stmatrix(void **) { passes(matrices); }

// ---- a kernel in the manner of the attention kernels ----------------------------------------------------------------

// out (64 x 64) = the sum over tiles x_i (64 x 64) of x_i x_i^T, each x_i packed anew on the way by other threads: one
// thread copies tiles into a ring of two, warpgroup 1 doubles each (by ordinary stores), warpgroup 0 makes the product.
enum Fault {
    RIGHT,
    NO_INIT_FENCE,
    NO_BARRIER_AFTER_INIT,
    NO_PROXY_FENCE,
    LATE_PROXY_FENCE, // after the arrival
    NO_SYNCWARP,      // one lane arrives before the others have done
    TOO_FEW_ARRIVALS, // one warp releases the slot for all
    EARLY_RELEASE,    // the producer overwrites what a product reads
    EARLY_OVERWRITE,  // the consumer does
    WRONG_PARITY,     // waits for a phase that has ended already
    NO_WAIT_FOR_COPY, // at all
    TOO_MANY_BYTES,   // announced
    TWO_ARRIVALS,
    EARLY_ACCUMULATOR_READ,
    EARLY_ACCUMULATOR_WRITE,
    NO_WGMMA_FENCE,
    NO_WGMMA_WAIT,
    PART_OF_A_WARPGROUP,
    OFF_BY_ONE_SWIZZLE,
    MISALIGNED_TILE,
    OTHER_BARRIER_COUNT,
    TOO_MANY_REGISTERS,
    PART_CHANGES_REGISTERS,
    MBARRIER_NOT_SET_UP,
    MBARRIER_READ,
};
enum { TILES = 5, RING_THREADS = 3 * WARPGROUP };
struct Ring {
    bf16 tile[2][64 * 64];
    uint64_t full[2], doubled[2], empty[2];
    uint64_t never;
};

template <int fault> __device__ static void copy_tiles(Ring *ring, const CUtensorMap &map) {
    for (int i = 0; i < TILES; i++) {
        const int slot = i % 2, parity = i / 2 % 2;
        mbarrier_wait(&ring->empty[slot], parity ^ 1);
        mbarrier_arrive_expect_tx(&ring->full[slot], 64 * 128 + (fault == TOO_MANY_BYTES ? 16 : 0));
        if (fault == TWO_ARRIVALS && i == 0) mbarrier_arrive(&ring->full[slot]);
        tma_load((char *)ring->tile[slot] + (fault == MISALIGNED_TILE ? 128 : 0), &map, &ring->full[slot], 0, i * 64, 0,
                 0);
    }
}
template <int fault> __device__ static void double_tiles(Ring *ring) {
    for (int i = 0; i < TILES; i++) {
        const int slot = i % 2, parity = i / 2 % 2, row = threadIdx.x % WARPGROUP / 2;
        if (fault != NO_WAIT_FOR_COPY) mbarrier_wait(&ring->full[slot], fault == WRONG_PARITY ? parity ^ 1 : parity);
        for (int k = 0; k < 4; k++) { // a thread has 4 pieces of a row
            const int piece = threadIdx.x % 2 * 4 + k;
            bf16 *at = ring->tile[slot] + row * 64 + (piece ^ (row + (fault == OFF_BY_ONE_SWIZZLE)) % 8) * 8;
            for (int j = 0; j < 8; j++) at[j] = to_bf16(to_float(at[j]) * (piece == 0 ? 2 : 1));
        }
        if (fault != NO_PROXY_FENCE && fault != LATE_PROXY_FENCE) fence_proxy_async();
        if (fault != NO_SYNCWARP) __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier_arrive(&ring->doubled[slot]);
        if (fault == LATE_PROXY_FENCE) fence_proxy_async();
    }
}
template <int fault> __device__ static void multiply_tiles(Ring *ring, float *out) {
    float d[8][4] = {};
    uint32_t *other = (uint32_t *)d;
    for (int i = 0; i < TILES; i++) {
        const int slot = i % 2, parity = i / 2 % 2;
        mbarrier_wait(fault == MBARRIER_NOT_SET_UP ? &ring->never : &ring->doubled[slot], parity);
        if (fault == MBARRIER_READ && ring->full[0] == 0) return;
        const uint64_t tile = wgmma_operand(ring->tile[slot], 0);
        if (fault != NO_WGMMA_FENCE) wgmma_fence();
        if (fault == PART_OF_A_WARPGROUP && threadIdx.x >= 96) break;
        for (int k = 0; k < 4; k++)
            wgmma_ABt<Wgmma::ADD>(d, wgmma_operand_at(tile, k * 32), wgmma_operand_at(tile, k * 32));
        wgmma_commit();
        const auto release = [&] {
            __syncwarp();
            if (threadIdx.x % (fault == TOO_FEW_ARRIVALS ? WARPGROUP : 32) == 0) mbarrier_arrive(&ring->empty[slot]);
        };
        if (fault == EARLY_RELEASE) release();
        if (fault == EARLY_OVERWRITE) named_barrier_wait(4, WARPGROUP); // until all have started the product
        if (fault == EARLY_OVERWRITE && i == 2 && threadIdx.x == 5) ring->tile[slot][70].bits = 0;
        if (fault == EARLY_ACCUMULATOR_WRITE && threadIdx.x == 7) other[3] = 0;
        if (fault == EARLY_ACCUMULATOR_READ && i == TILES - 1) store_fragments(out, d);
        if (fault == NO_WGMMA_WAIT && i == TILES - 1) return;
        wgmma_wait<0>();
        wgmma_arrived(d);
        if (fault != EARLY_RELEASE) release();
    }
    if (fault != EARLY_ACCUMULATOR_READ) store_fragments(out, d);
}
template <int fault> __global__ static void ring_kernel(float *out, const __grid_constant__ CUtensorMap map) {
    DYNAMIC_SHARED(Ring, ring);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            mbarrier_init(&ring->full[i], 1);
            mbarrier_init(&ring->doubled[i], 4);
            mbarrier_init(&ring->empty[i], fault == TOO_FEW_ARRIVALS ? 1 : 4);
        }
        if (fault != NO_INIT_FENCE) mbarrier_init_fence();
    }
    if (fault != NO_BARRIER_AFTER_INIT) __syncthreads();
    const int group = threadIdx.x / WARPGROUP;
    if (group == 2) {
        if (fault == PART_CHANGES_REGISTERS && threadIdx.x % WARPGROUP >= 64) return;
        setmaxnreg_dec<24>();
        if (threadIdx.x % WARPGROUP == 0) copy_tiles<fault>(ring, map);
        return;
    }
    // 2 x 240 + 24 = 3 x 168, which 384 threads have.
    setmaxnreg_inc<fault == TOO_MANY_REGISTERS ? 248 : fault == PART_CHANGES_REGISTERS ? 168 : 240>();
    if (group == 1) double_tiles<fault>(ring);
    else multiply_tiles<fault>(ring, out);
    if (group == 0) named_barrier_wait(3, 2 * WARPGROUP);
    else named_barrier_arrive(3, fault == OTHER_BARRIER_COUNT ? 160 : 256);
}
template <int fault> static void ring_case(void) {
    bf16 *x = random_matrix(3, TILES * 64 * 64);
    static float got[64 * 64];
    float *out = on_device<float>(NULL, 64 * 64);
    const CUtensorMap map = tensor_map(on_device(x, TILES * 64 * 64), 0, 64, 1, TILES * 64, 64, 64, 1);
    launch(ring_kernel<fault>, 1, RING_THREADS, sizeof(Ring), NULL, out, map);
    to_host(got, out, 64 * 64, NULL);
    for (int i = 0; i < 64; i++) {
        for (int j = 0; j < 64; j++) {
            double sum = 0, size = 0;
            for (int k = 0; k < TILES * 64; k++) {
                const size_t at = (size_t)(k / 64 * 64);
                double y = (double)to_float(x[(at + i) * 64 + k % 64]) * to_float(x[(at + j) * 64 + k % 64]);
                if (k % 64 < 8) y *= 4; // the first piece is doubled
                sum += y;
                size += fabs(y);
            }
            REQUIRE(fabs(got[i * 64 + j] - sum) <= TILES * 64 * size * 0x1p-24);
        }
    }
}
static void test_ring(void **) { passes(ring_case<RIGHT>); }

// The result is wrong.
static void is_wrong(void (*body)(void)) {
    const int status = in_child(body, 1, false);
    if (status != 2) fail_msg("wanted a wrong result; got exit status %d: %s", status, child_said);
}
// Under every seed, by this report or that one: it depends on who comes first.
template <int fault> static void ring_is_caught(const char *what, const char *or_what = "-") {
    for (int seed = 1; seed <= SEEDS; seed++) {
        const int status = in_child(ring_case<fault>, seed, false);
        if (status != 1 || strstr(child_said, "emulated GPU: kernel ring_kernel<fault>, block (0,0,0)") == NULL ||
            (strstr(child_said, what) == NULL && strstr(child_said, or_what) == NULL) ||
            strstr(child_said, "test/test_hopper_on_cpu.cu:") == NULL)
            fail_msg("seed %d: wanted \"%s\" or \"%s\"; got exit status %d: %s", seed, what, or_what, status,
                     child_said);
    }
}
static void test_ring_faults(void **) {
    ring_is_caught<NO_INIT_FENCE>("no mbarrier_init_fence: dynamic shared memory");
    ring_is_caught<NO_PROXY_FENCE>("wrote without fence_proxy_async after it");
    ring_is_caught<NO_BARRIER_AFTER_INIT>("has set up, with no barrier between", "was never set up");
    ring_is_caught<LATE_PROXY_FENCE>("its fence_proxy_async came after what orders the two",
                                     "without fence_proxy_async");
    ring_is_caught<NO_SYNCWARP>("and nothing orders the two", "without fence_proxy_async");
    ring_is_caught<TOO_FEW_ARRIVALS>("overwrites what a product of warpgroup 0 still reads",
                                     "starts a tma_load over what thread");
    ring_is_caught<EARLY_RELEASE>("overwrites what a product of warpgroup 0 still reads",
                                  "starts a tma_load over what thread");
    ring_is_caught<EARLY_OVERWRITE>("overwrites what a product of warpgroup 0 still reads");
    ring_is_caught<WRONG_PARITY>("reads 2 bytes ", "reads what a tma_load wrote, and nothing orders the two");
    ring_is_caught<NO_WAIT_FOR_COPY>("never written by this block");
    ring_is_caught<TOO_MANY_BYTES>("1 of 1 arrivals made, and 16 bytes announced have not come");
    ring_is_caught<TWO_ARRIVALS>("whose 1 arrivals of phase 0 have all been made");
    is_wrong(ring_case<EARLY_ACCUMULATOR_READ>);
    ring_is_caught<EARLY_ACCUMULATOR_WRITE>("has changed an accumulator while products");
    ring_is_caught<NO_WGMMA_FENCE>("without wgmma_fence");
    ring_is_caught<NO_WGMMA_WAIT>("ends with products under way");
    ring_is_caught<PART_OF_A_WARPGROUP>("only 96 of the warpgroup's 128 threads have started");
    is_wrong(ring_case<OFF_BY_ONE_SWIZZLE>);
    ring_is_caught<MISALIGNED_TILE>("a swizzled tile is aligned to 1,024 bytes");
    ring_is_caught<OTHER_BARRIER_COUNT>("while others have come to it for");
    ring_is_caught<TOO_MANY_REGISTERS>("all warps together would have");
    ring_is_caught<PART_CHANGES_REGISTERS>("executed by a part of a warpgroup");
    ring_is_caught<MBARRIER_NOT_SET_UP>("an mbarrier that was never set up");
    ring_is_caught<MBARRIER_READ>("of an mbarrier: dynamic shared memory");
}

// ---- turns between blocks -------------------------------------------------------------------------------------------

// out[i] = ((x_0 + x_1) + x_2) ..., each block adding its x by bulk_reduce_add when it is its turn. `chunks`: of values
// that have a turn each.
enum TurnFault {
    TURNS_RIGHT,
    TURN_SKIPPED,
    TURN_PASSED_EARLY, // before bulk_wait
    TURN_NEVER_PASSED,
    TURN_BY_BLOCK_NUMBER, // and not by ticket: then all that run may wait for one that does not
    SOURCE_NOT_FENCED,
    SOURCE_OVERWRITTEN,
    NO_COMMIT,
    NO_WAIT_READ,
};
enum { ADDERS = 9, CHUNKS = 3, CHUNK = 64 };
template <int fault> __global__ static void add_in_turn(float *out, int *turn, int *ticket, const float *x) {
    DYNAMIC_SHARED(float, mine); // (CHUNK)
    SHARED_ARRAY(int, shared_number, 1);
    if (threadIdx.x == 0) *shared_number = atomicAdd(ticket, 1);
    __syncthreads();
    const int number = fault == TURN_BY_BLOCK_NUMBER ? (int)blockIdx.x : *shared_number;
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        mine[threadIdx.x] = x[(number * CHUNKS + chunk) * CHUNK + threadIdx.x];
        if (fault != SOURCE_NOT_FENCED) fence_proxy_async();
        __syncthreads();
        if (threadIdx.x == 0) {
            float *to = out + chunk * CHUNK;
            if (number > 0 && (fault != TURN_SKIPPED || number != 4)) wait_acquire(&turn[chunk], number);
            if (number > 0) bulk_reduce_add(to, mine, CHUNK * 4);
            else bulk_store(to, mine, CHUNK * 4);
            if (fault != NO_COMMIT) bulk_commit();
            if (fault == NO_WAIT_READ && chunk == CHUNKS - 1) return;
            if (fault == SOURCE_OVERWRITTEN) mine[5] = 0;
            bulk_wait_read();
            if (fault != TURN_PASSED_EARLY) bulk_wait();
            if (fault != TURN_NEVER_PASSED || number != 5) store_release(&turn[chunk], number + 1);
        }
        __syncthreads();
    }
}
template <int fault> static void turns(void) {
    static float x[ADDERS][CHUNKS * CHUNK], got[CHUNKS * CHUNK];
    for (int i = 0; i < ADDERS * CHUNKS * CHUNK; i++) x[0][i] = number((uint32_t)i) * exp2f((float)(i * 7 % 13));
    int *words = on_device<int>(NULL, CHUNKS + 1);
    float *out = on_device<float>(NULL, CHUNKS * CHUNK);
    CUDA_CHECK(cudaMemset(words, 0, (CHUNKS + 1) * sizeof *words));
    launch(add_in_turn<fault>, ADDERS, CHUNK, CHUNK * 4, NULL, out, words, words + CHUNKS,
           on_device(x[0], sizeof x / 4));
    to_host(got, out, CHUNKS * CHUNK, NULL);
    for (int i = 0; i < CHUNKS * CHUNK; i++) {
        float sum = x[0][i];
        for (int n = 1; n < ADDERS; n++) sum += x[n][i];
        REQUIRE(got[i] == sum); // the same bits
    }
}
template <int fault> static void turns_are_caught(const char *what) {
    is_caught(turns<fault>, false, "add_in_turn<fault>", what, "test/test_hopper_on_cpu.cu:");
}
static void test_turns(void **) {
    passes(turns<TURNS_RIGHT>);
    turns_are_caught<TURN_SKIPPED>("copied to, without a turn between");
    turns_are_caught<TURN_PASSED_EARLY>("copied to, without a turn between");
    turns_are_caught<TURN_NEVER_PASSED>("waits in wait_acquire for ever, for a word to become 6, which is 5");
    turns_are_caught<TURN_BY_BLOCK_NUMBER>("waits in wait_acquire for ever");
    turns_are_caught<SOURCE_NOT_FENCED>("wrote without fence_proxy_async after it: dynamic shared memory");
    turns_are_caught<SOURCE_OVERWRITTEN>("overwrites what a bulk copy of thread 0 still reads");
    turns_are_caught<NO_COMMIT>("overwrites what a bulk copy of thread 0 still reads");
    turns_are_caught<NO_WAIT_READ>("still reads shared memory: no bulk_wait_read");
}

static void turns_on_another_gpu(void) {
    setenv("EMULATED_ARCH", "80", 1);
    turns<TURNS_RIGHT>();
}
static void test_other_gpus_have_none_of_it(void **) {
    is_caught(turns_on_another_gpu, false, "add_in_turn<fault>", "which only a GPU of compute capability 9.0 has",
              "test/test_hopper_on_cpu.cu:");
}

int main(void) {
    setenv("EMULATED_ARCH", "90", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_boxes),
        cmocka_unit_test(test_stmatrix),
        cmocka_unit_test(test_ring),
        cmocka_unit_test(test_ring_faults),
        cmocka_unit_test(test_turns),
        cmocka_unit_test(test_other_gpus_have_none_of_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
