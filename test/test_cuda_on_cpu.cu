// The emulated GPU itself (emulated/): kernels that are right give the right results in any order of threads,
// and kernels with a planted fault are caught, each with the message that names it.
#include "test/emulated_cases.h"

#include "layers/cuda/bf16.h"
#include "layers/cuda/ptx.h"
#include "layers/cuda/warp.h"

// ---- kernels that are right ----------------------------------------------------------------------------------------

__global__ static void sum_of_block(double *out, const float *x, int64_t count) {
    SHARED_ARRAY(double, partial, 32);
    double sum = 0.0;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        sum += x[i];
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}
static void sums(void) {
    enum { COUNT = 10007, BLOCKS = 5 };
    static float x[COUNT];
    double expected = 0.0, out[BLOCKS], got = 0.0;
    for (int i = 0; i < COUNT; i++) expected += x[i] = (float)(i % 101 - 30);
    cudaStream_t stream = new_stream();
    float *device_x = on_device(x, COUNT);
    double *device_out = on_device<double>(NULL, BLOCKS);
    for (int threads = 32; threads <= 1024; threads *= 2) {
        launch(sum_of_block, BLOCKS, threads, 0, stream, device_out, device_x, COUNT);
        to_host(out, device_out, BLOCKS, stream);
        got = 0.0;
        for (int i = 0; i < BLOCKS; i++) got += out[i];
        REQUIRE(got == expected); // small integers: exact in any order
    }
}
static void test_sums(void **) { passes(sums); }

// Through shared memory, one column more than needed, as usual; block and grid of two dimensions.
__global__ static void transpose(float *out, const float *in, int rows, int columns) {
    DYNAMIC_SHARED(float, tile); // (16, 17)
    const int column = (int)(blockIdx.x * 16 + threadIdx.x), row = (int)(blockIdx.y * 16 + threadIdx.y);
    if (row < rows && column < columns) tile[threadIdx.y * 17 + threadIdx.x] = in[(int64_t)row * columns + column];
    __syncthreads();
    const int new_column = (int)(blockIdx.y * 16 + threadIdx.x), new_row = (int)(blockIdx.x * 16 + threadIdx.y);
    if (new_row < columns && new_column < rows)
        out[(int64_t)new_row * rows + new_column] = tile[threadIdx.x * 17 + threadIdx.y];
}
static void transposes(void) {
    enum { ROWS = 37, COLUMNS = 50 };
    static float x[ROWS * COLUMNS], y[ROWS * COLUMNS];
    for (int i = 0; i < ROWS * COLUMNS; i++) x[i] = (float)i;
    cudaStream_t stream = new_stream();
    float *device_x = on_device(x, ROWS * COLUMNS), *device_y = on_device<float>(NULL, ROWS * COLUMNS);
    launch(transpose, dim3(ceil_div<int>(COLUMNS, 16), ceil_div<int>(ROWS, 16)), dim3(16, 16), 16 * 17 * sizeof(float),
           stream, device_y, device_x, ROWS, COLUMNS);
    to_host(y, device_y, ROWS * COLUMNS, stream);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) REQUIRE(y[j * ROWS + i] == x[i * COLUMNS + j]);
}
static void test_transposes(void **) { passes(transposes); }

// Each lane writes what each kind of collective gave it.
enum { COLLECTIVES = 16 };
__global__ static void collectives(int *out, double *wide) {
    const int lane = threadIdx.x % WARP;
    int *mine = out + threadIdx.x * COLLECTIVES;
    mine[0] = __shfl_sync(WHOLE_WARP, lane * lane, 5);
    mine[1] = __shfl_sync(WHOLE_WARP, lane, lane + 3, 8);
    mine[2] = __shfl_up_sync(WHOLE_WARP, lane, 3, 8);
    mine[3] = __shfl_down_sync(WHOLE_WARP, lane, 5, 16);
    mine[4] = __shfl_xor_sync(WHOLE_WARP, lane, 9);
    mine[5] = (int)__ballot_sync(WHOLE_WARP, lane % 3 == 0);
    mine[6] = __any_sync(WHOLE_WARP, lane == 40);
    mine[7] = __all_sync(WHOLE_WARP, lane < 32);
    // Two halves that do different things.
    if (lane < 16) {
        mine[8] = __shfl_xor_sync(0x0000ffffu, lane, 1);
        mine[9] = __shfl_xor_sync(0x0000ffffu, lane, 2);
    } else {
        mine[8] = (int)__ballot_sync(0xffff0000u, lane & 1);
        mine[9] = __reduce_add_sync(0xffff0000u, lane);
    }
    mine[10] = __reduce_max_sync(WHOLE_WARP, -lane);
    mine[11] = __syncthreads_count(lane == 7);
    mine[12] = __syncthreads_or(threadIdx.x == 1000);
    mine[13] = __syncthreads_and(threadIdx.x < 1000);
    mine[14] = (int)__float_as_uint(__shfl_down_sync(WHOLE_WARP, (float)lane, 1));
    mine[15] = (int)__match_any_sync(WHOLE_WARP, (uint64_t)(lane / 4));
    wide[threadIdx.x] = __shfl_xor_sync(WHOLE_WARP, 1.0 / (lane + 1), 31);
}
static void collectives_case(void) {
    enum { THREADS = 96 };
    static int out[THREADS * COLLECTIVES];
    static double wide[THREADS];
    cudaStream_t stream = new_stream();
    int *device_out = on_device<int>(NULL, THREADS * COLLECTIVES);
    double *device_wide = on_device<double>(NULL, THREADS);
    launch(collectives, 1, THREADS, 0, stream, device_out, device_wide);
    to_host(out, device_out, THREADS * COLLECTIVES, stream);
    to_host(wide, device_wide, THREADS, stream);
    for (int i = 0; i < THREADS; i++) {
        const int lane = i % 32, *mine = out + i * COLLECTIVES;
        REQUIRE(mine[0] == 25);
        REQUIRE(mine[1] == lane / 8 * 8 + (lane + 3) % 8);
        REQUIRE(mine[2] == (lane % 8 < 3 ? lane : lane - 3));
        REQUIRE(mine[3] == (lane % 16 + 5 < 16 ? lane + 5 : lane));
        REQUIRE(mine[4] == (lane ^ 9));
        REQUIRE((unsigned)mine[5] == 0x49249249u);
        REQUIRE(mine[6] == 0 && mine[7] == 1);
        if (lane < 16) REQUIRE(mine[8] == (lane ^ 1) && mine[9] == (lane ^ 2));
        else REQUIRE((unsigned)mine[8] == 0xaaaa0000u && mine[9] == (16 + 31) * 16 / 2);
        REQUIRE(mine[10] == 0 && mine[11] == 3 && mine[12] == 0 && mine[13] == 1);
        REQUIRE(__uint_as_float((unsigned)mine[14]) == (float)(lane < 31 ? lane + 1 : lane));
        REQUIRE((unsigned)mine[15] == 0xfu << lane / 4 * 4);
        REQUIRE(wide[i] == 1.0 / (32 - lane));
    }
}
static void test_collectives(void **) { passes(collectives_case); }

__global__ static void histogram(int *out, const int *x, int count) {
    SHARED_ARRAY(int, bins, 8);
    if (threadIdx.x < 8) bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < count; i += (int)(gridDim.x * blockDim.x))
        atomicAdd(&bins[x[i]], 1);
    __syncthreads();
    if (threadIdx.x < 8) atomicAdd(&out[threadIdx.x], bins[threadIdx.x]);
}
static void histograms(void) {
    enum { COUNT = 4000 };
    static int x[COUNT], expected[8], got[8];
    for (int i = 0; i < COUNT; i++) expected[x[i] = i * i % 8]++;
    cudaStream_t stream = new_stream();
    int *device_x = on_device(x, COUNT), *device_out = on_device<int>(NULL, 8);
    CUDA_CHECK(cudaMemsetAsync(device_out, 0, sizeof got, stream));
    launch(histogram, 7, 96, 0, stream, device_out, device_x, COUNT);
    to_host(got, device_out, 8, stream);
    REQUIRE(memcmp(got, expected, sizeof got) == 0);
}
static void test_atomics(void **) { passes(histograms); }

// ---- tensor cores --------------------------------------------------------------------------------------------------

// Written from the figures of the PTX ISA, not from the formulas that the emulator uses: which lane and register hold
// the element (row, column). A: the quadrants in the order upper left, lower left, upper right, lower right are
// registers 0 to 3, each with eight rows of four lanes of two neighbours. B: the upper and the lower half are registers
// 0 and 1, each with columns of four lanes of two neighbours. D: like the left half of A, one value per register.
struct Place {
    int lane, reg, half;
};
static Place place_in_a(int row, int column) {
    static const int quadrant[2][2] = {{0, 2}, {1, 3}}; // [lower][right]
    return {(row & 7) << 2 | (column & 7) >> 1, quadrant[row >> 3][column >> 3], column & 1};
}
static Place place_in_b(int row, int column) { return {column << 2 | (row & 7) >> 1, row >> 3, row & 1}; }
static Place place_in_d(int row, int column) {
    return {(row & 7) << 2 | column >> 1, (row >> 3) << 1 | (column & 1), 0};
}

__global__ static void mma(float *d, const uint32_t *a, const uint32_t *b) {
    const int lane = threadIdx.x;
    uint32_t my_a[4], my_b[2];
    float my_d[4];
    for (int i = 0; i < 4; i++) my_a[i] = a[lane * 4 + i];
    for (int i = 0; i < 2; i++) my_b[i] = b[lane * 2 + i];
    for (int i = 0; i < 4; i++) my_d[i] = d[lane * 4 + i];
    mma_m16n8k16(my_d, my_a, my_b);
    for (int i = 0; i < 4; i++) d[lane * 4 + i] = my_d[i];
}
static void mma_case(void) {
    static float a[16][16], b[16][8], d[16][8], fragment_d[32 * 4];
    static uint16_t half_a[32 * 4][2], half_b[32 * 2][2];
    static uint32_t fragment_a[32 * 4], fragment_b[32 * 2];
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 16; j++) {
            const bf16 x = to_bf16(number((uint32_t)(i * 16 + j)));
            const Place place = place_in_a(i, j);
            a[i][j] = to_float(x);
            half_a[place.lane * 4 + place.reg][place.half] = x.bits;
        }
        for (int j = 0; j < 8; j++) {
            const bf16 x = to_bf16(number((uint32_t)(1000 + i * 8 + j)));
            const Place in_b = place_in_b(i, j), in_d = place_in_d(i, j);
            b[i][j] = to_float(x);
            half_b[in_b.lane * 2 + in_b.reg][in_b.half] = x.bits;
            d[i][j] = fragment_d[in_d.lane * 4 + in_d.reg] = 10.0f * number((uint32_t)(2000 + i * 8 + j));
        }
    }
    memcpy(fragment_a, half_a, sizeof fragment_a); // little-endian: the lower half first
    memcpy(fragment_b, half_b, sizeof fragment_b);
    cudaStream_t stream = new_stream();
    float *device_d = on_device(fragment_d, 32 * 4);
    launch(mma, 1, 32, 0, stream, device_d, on_device(fragment_a, 32 * 4), on_device(fragment_b, 32 * 2));
    to_host(fragment_d, device_d, 32 * 4, stream);
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 8; j++) {
            double sum = d[i][j], size = fabs(sum);
            for (int k = 0; k < 16; k++) {
                sum += (double)a[i][k] * b[k][j];
                size += fabs((double)a[i][k] * b[k][j]);
            }
            const Place place = place_in_d(i, j);
            // 16 additions, each rounded by at most 2^-24 of a partial sum that is at most `size`.
            REQUIRE(fabs(fragment_d[place.lane * 4 + place.reg] - sum) <= 16 * size * 0x1p-24);
        }
    }
}
static void test_mma(void **) { passes(mma_case); }

__global__ static void load_matrices(uint32_t *out, uint32_t *out_trans, const bf16 *in) {
    DYNAMIC_SHARED(bf16, tile); // (32, 16): matrix i is rows 8i.. of the left half
    for (int i = threadIdx.x; i < 32 * 16; i += 32) tile[i] = in[i];
    __syncthreads();
    uint32_t r[4];
    ldmatrix_x4(r, tile + threadIdx.x * 16);
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = r[i];
    ldmatrix_x4_trans(r, tile + threadIdx.x * 16);
    for (int i = 0; i < 4; i++) out_trans[threadIdx.x * 4 + i] = r[i];
}
static void ldmatrix_case(void) {
    static bf16 in[32][16];
    static uint32_t out[32 * 4], out_trans[32 * 4];
    for (int i = 0; i < 32 * 16; i++) in[i / 16][i % 16].bits = (uint16_t)(i * 3 + 1);
    cudaStream_t stream = new_stream();
    uint32_t *device_out = on_device<uint32_t>(NULL, 32 * 4), *device_trans = on_device<uint32_t>(NULL, 32 * 4);
    launch(load_matrices, 1, 32, sizeof in, stream, device_out, device_trans, on_device(&in[0][0], 32 * 16));
    to_host(out, device_out, 32 * 4, stream);
    to_host(out_trans, device_trans, 32 * 4, stream);
    for (int matrix = 0; matrix < 4; matrix++) {
        for (int row = 0; row < 8; row++) {
            for (int column = 0; column < 8; column++) {
                const uint16_t expected = in[8 * matrix + row][column].bits;
                const Place plain = place_in_d(row, column); // the same eight rows of four lanes of two
                const Place turned = place_in_d(column, row);
                REQUIRE((uint16_t)(out[plain.lane * 4 + matrix] >> 16 * (column & 1)) == expected);
                REQUIRE((uint16_t)(out_trans[turned.lane * 4 + matrix] >> 16 * (row & 1)) == expected);
            }
        }
    }
}
static void test_ldmatrix(void **) { passes(ldmatrix_case); }

// ---- asynchronous copies -------------------------------------------------------------------------------------------

// Two stages: the next 512 bytes are under way while these are summed. `early`: how many groups too few are waited for.
template <int early> __global__ static void pipeline(float *out, const float *in, int stages, int valid_floats) {
    DYNAMIC_SHARED(float, buffer); // (2, 128)
    const int mine = threadIdx.x * 4;
    float sum = 0.0f;
    cp_async_16(buffer + mine, in + mine, mine < valid_floats);
    cp_async_commit();
    for (int stage = 0; stage < stages; stage++) {
        if (stage + 1 < stages) {
            const int next = (stage + 1) * 128 + mine;
            cp_async_16(buffer + (stage + 1) % 2 * 128 + mine, in + (next < valid_floats ? next : 0),
                        next < valid_floats);
        }
        cp_async_commit();
        cp_async_wait<1 + early>();
        __syncthreads();
        for (int i = 0; i < 4; i++) sum += buffer[stage % 2 * 128 + (mine + 32 * i + 1) % 128];
        __syncthreads();
    }
    out[threadIdx.x] = sum;
}
static void pipelines(void) {
    enum { STAGES = 5, FLOATS = 5 * 128, VALID = 5 * 128 - 60 };
    static float in[FLOATS], out[32];
    for (int i = 0; i < FLOATS; i++) in[i] = (float)(i % 50);
    cudaStream_t stream = new_stream();
    float *device_out = on_device<float>(NULL, 32);
    launch(pipeline<0>, 1, 32, 1024, stream, device_out, on_device(in, VALID), STAGES, VALID);
    to_host(out, device_out, 32, stream);
    for (int t = 0; t < 32; t++) {
        float expected = 0.0f;
        for (int stage = 0; stage < STAGES; stage++) {
            for (int i = 0; i < 4; i++) {
                const int k = stage * 128 + (t * 4 + 32 * i + 1) % 128;
                expected += k < VALID ? in[k] : 0.0f;
            }
        }
        REQUIRE(out[t] == expected);
    }
}
static void test_async_copies(void **) { passes(pipelines); }

static void waits_for_one_too_few(void) {
    float *out = on_device<float>(NULL, 32), *in = on_device<float>(NULL, 640);
    launch(pipeline<1>, 1, 32, 1024, NULL, out, in, 5, 640);
}
static void test_missing_wait_is_caught(void **) {
    is_caught(waits_for_one_too_few, false, "pipeline<1>",
              "has not been waited for: dynamic shared memory (1024 bytes)", "test_cuda_on_cpu.cu");
}

// ---- planted faults: barriers and races ----------------------------------------------------------------------------

enum Fault { NO_FAULT, NO_BARRIER, READ_PAST, READ_BEFORE, UNWRITTEN, SHUFFLE_FOR_BARRIER };

// Every thread's neighbour's value, from shared memory.
template <int fault> __global__ static void neighbour(int *out) {
    SHARED_ARRAY(int, value, 64);
    if (fault != UNWRITTEN || threadIdx.x != 20) value[threadIdx.x] = (int)threadIdx.x;
    if (fault == SHUFFLE_FOR_BARRIER) __shfl_sync(WHOLE_WARP, 0, 0); // orders nothing
    else if (fault != NO_BARRIER) __syncthreads();
    int other = (int)(threadIdx.x + 1) % 64;
    if (fault == READ_PAST && threadIdx.x == 63) other = 64;
    if (fault == READ_BEFORE && threadIdx.x == 63) other = -1;
    out[threadIdx.x] = value[other];
}
template <int fault> static void neighbours(void) {
    int *out = on_device<int>(NULL, 64), got[64];
    launch(neighbour<fault>, 1, 64, 0, NULL, out);
    to_host(got, out, 64, NULL);
    for (int i = 0; i < 64; i++) REQUIRE(got[i] == (i + 1) % 64);
}
static void test_shared_faults(void **) {
    passes(neighbours<NO_FAULT>);
    is_caught(neighbours<READ_PAST>, false, "neighbour<fault>",
              "thread (63,0,0): reads 4 bytes out of bounds: shared array value (256 bytes) at offset 256",
              "neighbour<");
    is_caught(neighbours<READ_BEFORE>, false, "neighbour<fault>",
              "thread (63,0,0): reads 4 bytes out of bounds: shared array value (256 bytes) at offset -4",
              "neighbour<");
    is_caught(neighbours<UNWRITTEN>, false, "neighbour<fault>",
              "thread (19,0,0): reads 4 bytes never written by this block: shared array value (256 bytes) at offset 80",
              "neighbour<");
    is_caught(neighbours<NO_BARRIER>, true, "neighbour<fault>", "shared array value (256 bytes) at offset ",
              "neighbour<");
    is_caught(neighbours<SHUFFLE_FOR_BARRIER>, true, "neighbour<fault>", "shared array value (256 bytes) at offset ",
              "neighbour<");
}

// A warp's own exchange through shared memory is ordered by __syncwarp, and by nothing less. All is written first, so
// that a race can be told by the race checker alone.
template <bool synced> __global__ static void warp_exchange(int *out) {
    SHARED_ARRAY(int, value, 64);
    value[threadIdx.x] = 0;
    __syncthreads();
    value[threadIdx.x] = (int)threadIdx.x;
    if (synced) __syncwarp();
    out[threadIdx.x] = value[threadIdx.x ^ 1];
    if (synced) __syncwarp();
    value[threadIdx.x] = 1;
}
template <bool synced> static void warp_exchanges(void) {
    int *out = on_device<int>(NULL, 64);
    launch(warp_exchange<synced>, 1, 64, 0, NULL, out);
}
// The barrier between the turns of a loop that is forgotten so easily: the slowest reader meets the fastest writer.
__global__ static void reused(int *out, int turns) {
    SHARED_ARRAY(int, value, 1);
    int sum = 0;
    for (int i = 0; i < turns; i++) {
        if (threadIdx.x == 0) value[0] = i;
        __syncthreads();
        sum += value[0];
    }
    out[threadIdx.x] = sum;
}
static void reuses(void) { launch(reused, 1, 128, 0, NULL, on_device<int>(NULL, 128), 3); }
static void test_races(void **) {
    passes(warp_exchanges<true>);
    for (int seed = 1; seed <= SEEDS; seed++) { // whatever the order of the threads
        assert_int_equal(in_child(warp_exchanges<false>, seed, true), 1);
        assert_non_null(strstr(child_said, "race: "));
        assert_int_equal(in_child(reuses, seed, true), 1);
        assert_non_null(strstr(child_said, "race: "));
        assert_non_null(strstr(child_said, "shared array value (4 bytes) at offset 0, which "));
    }
}

// The copy has arrived for the thread that waited; the others need a barrier.
__global__ static void copy_without_barrier(float *out, const float *in) {
    DYNAMIC_SHARED(float, buffer);
    buffer[threadIdx.x] = 0.0f;
    __syncthreads();
    if (threadIdx.x < 16) {
        cp_async_16(buffer + threadIdx.x * 4, in + threadIdx.x * 4, true);
        cp_async_commit();
        cp_async_wait<0>();
    }
    out[threadIdx.x] = buffer[63 - threadIdx.x];
}
static void copies_without_barrier(void) {
    launch(copy_without_barrier, 1, 64, 256, NULL, on_device<float>(NULL, 64), on_device<float>(NULL, 64));
}
static void test_copy_race(void **) {
    is_caught(copies_without_barrier, true, "copy_without_barrier", "dynamic shared memory (256 bytes) at offset ",
              "in copy_without_barrier");
}

__global__ static void barrier_of_some(int threads) {
    if ((int)threadIdx.x < threads) __syncthreads();
}
static void barriers_of_some(void) { launch(barrier_of_some, 1, 64, 0, NULL, 63); }
__global__ static void collective_of_some(int *out, int lanes) {
    if ((int)threadIdx.x < lanes) out[threadIdx.x] = __shfl_xor_sync(WHOLE_WARP, 1, 1);
}
static void collectives_of_some(void) { launch(collective_of_some, 1, 32, 0, NULL, on_device<int>(NULL, 32), 31); }
__global__ static void crossed(int *out) {
    if (threadIdx.x < 7) __syncthreads();
    else out[threadIdx.x] = (int)__ballot_sync(WHOLE_WARP, 1);
}
static void crossed_case(void) { launch(crossed, 1, 32, 0, NULL, on_device<int>(NULL, 32)); }
__global__ static void two_masks(int *out) {
    out[threadIdx.x] = (int)__ballot_sync(threadIdx.x < 16 ? WHOLE_WARP : 0xffff0001u, 1);
}
static void two_masks_case(void) { launch(two_masks, 1, 32, 0, NULL, on_device<int>(NULL, 32)); }
static void test_barriers_not_reached(void **) {
    is_caught(barriers_of_some, false, "barrier_of_some",
              "waits at a barrier, __syncthreads, that only 63 of 64 threads reach: thread (63,0,0) has ended",
              "in barrier_of_some");
    is_caught(collectives_of_some, false, "collective_of_some",
              "waits in __shfl_xor_sync, mask 0xffffffff, for lanes 0x80000000 that never come: lane 31 has ended",
              "in collective_of_some");
    is_caught(crossed_case, false, "crossed", "for lanes 0x0000007f that never come: lane 0 waits in __syncthreads",
              "in crossed");
    is_caught(two_masks_case, false, "two_masks", "calls a vote with mask ", "in two_masks");
}

// ---- planted faults: memory ----------------------------------------------------------------------------------------

__global__ static void copy_floats(float *out, const float *in, int64_t count) {
    const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (i < count) out[i] = in[i];
}
static void reads_past_the_end(void) {
    launch(copy_floats, 2, 64, 0, NULL, on_device<float>(NULL, 128), on_device<float>(NULL, 127), 128);
}
static void writes_past_the_end(void) {
    launch(copy_floats, 2, 64, 0, NULL, on_device<float>(NULL, 127), on_device<float>(NULL, 128), 128);
}
static void reads_before_the_begin(void) {
    launch(copy_floats, 2, 64, 0, NULL, on_device<float>(NULL, 128), on_device<float>(NULL, 128) - 1, 128);
}
static void reads_freed(void) {
    float *in = on_device<float>(NULL, 128);
    CUDA_CHECK(cudaFree(in));
    launch(copy_floats, 2, 64, 0, NULL, on_device<float>(NULL, 128), in, 128);
}
static void reads_host(void) {
    static float in[128];
    launch(copy_floats, 2, 64, 0, NULL, on_device<float>(NULL, 128), in, 128);
}
static void reads_peer(void) {
    CUDA_CHECK(cudaSetDevice(1));
    float *in = on_device<float>(NULL, 128);
    CUDA_CHECK(cudaSetDevice(0));
    launch(copy_floats, 2, 64, 0, NULL, on_device<float>(NULL, 128), in, 128);
}
static void uses_peer(void) {
    CUDA_CHECK(cudaSetDevice(1));
    float *in = on_device<float>(NULL, 128);
    CUDA_CHECK(cudaSetDevice(0));
    CUDA_CHECK(cudaDeviceEnablePeerAccess(1, 0));
    launch(copy_floats, 2, 64, 0, NULL, on_device<float>(NULL, 128), in, 128);
}
static void test_global_faults(void **) {
    is_caught(
        reads_past_the_end, false, "copy_floats",
        "block (1,0,0), thread (63,0,0): reads 4 bytes out of bounds: allocation of 508 bytes on GPU 0 at offset 508",
        "in copy_floats");
    is_caught(writes_past_the_end, false, "copy_floats",
              "thread (63,0,0): writes 4 bytes out of bounds: allocation of 508 bytes on GPU 0 at offset 508",
              "in copy_floats");
    is_caught(
        reads_before_the_begin, false, "copy_floats",
        "block (0,0,0), thread (0,0,0): reads 4 bytes out of bounds: allocation of 512 bytes on GPU 0 at offset -4",
        "in copy_floats");
    is_caught(reads_freed, false, "copy_floats", "reads 4 bytes of freed memory: allocation of 512 bytes",
              "in copy_floats");
    is_caught(reads_host, false, "copy_floats", "reads 4 bytes of the host's memory", "in copy_floats");
    is_caught(reads_peer, false, "copy_floats",
              "of another GPU, to which GPU 0 has no access: allocation of 512 bytes on GPU 1", "in copy_floats");
    passes(uses_peer);
}

__global__ static void copy_packets(bf16 *out, const bf16 *in) {
    float values[PACKET];
    load_packet(values, in + threadIdx.x * PACKET);
    store_packet(out + threadIdx.x * PACKET, values);
}
static void packets(void) { launch(copy_packets, 1, 8, 0, NULL, on_device<bf16>(NULL, 72), on_device<bf16>(NULL, 72)); }
static void misaligned_load(void) {
    launch(copy_packets, 1, 8, 0, NULL, on_device<bf16>(NULL, 72), on_device<bf16>(NULL, 72) + 4);
}
static void misaligned_store(void) {
    launch(copy_packets, 1, 8, 0, NULL, on_device<bf16>(NULL, 72) + 2, on_device<bf16>(NULL, 72));
}
static void misaligned_float(void) {
    char *in = on_device<char>(NULL, 520);
    launch(copy_floats, 2, 64, 0, NULL, on_device<float>(NULL, 128), (const float *)(in + 2), 128);
}
static void misaligned_copy(void) {
    launch(copy_without_barrier, 1, 64, 256, NULL, on_device<float>(NULL, 64), on_device<float>(NULL, 72) + 2);
}
static void test_misaligned(void **) {
    passes(packets);
    is_caught(misaligned_load, false, "copy_packets",
              "moves 16 bytes misaligned: allocation of 144 bytes on GPU 0 at offset ", "in load_packet");
    is_caught(misaligned_store, false, "copy_packets",
              "moves 16 bytes misaligned: allocation of 144 bytes on GPU 0 at offset ", "in store_packet");
    is_caught(misaligned_float, false, "copy_floats",
              "reads 4 bytes misaligned: allocation of 520 bytes on GPU 0 at offset", "in copy_floats");
    is_caught(misaligned_copy, false, "copy_without_barrier",
              "cp.async reads 16 bytes misaligned: allocation of 288 bytes on GPU 0 at offset ",
              "in copy_without_barrier");
}

__global__ static void first_of(float *out, const float *in) { *out = in[0]; }
static void unwritten_memory(void) {
    float *out = on_device<float>(NULL, 1), got;
    launch(first_of, 1, 1, 0, NULL, out, on_device<float>(NULL, 1));
    to_host(&got, out, 1, NULL);
    REQUIRE(got != got);
}
static void test_new_memory_is_no_number(void **) { passes(unwritten_memory); }

// ---- launches ------------------------------------------------------------------------------------------------------

__global__ static void nothing(int) {}
static cudaError_t try_launch(dim3 grid, dim3 block, size_t shared_bytes) {
    const cudaError_t status = emulated_launch_unchecked(nothing, "nothing", grid, block, shared_bytes, NULL, 1);
    REQUIRE(cudaGetLastError() == status);
    REQUIRE(cudaGetLastError() == cudaSuccess);
    return status;
}
static void launches(void) {
    REQUIRE(try_launch(1, 1024, 48 << 10) == cudaSuccess);
    REQUIRE(try_launch(dim3(1, 65535), 1, 0) == cudaSuccess);
    REQUIRE(try_launch(1, 1025, 0) == cudaErrorInvalidConfiguration);
    REQUIRE(try_launch(1, dim3(32, 33), 0) == cudaErrorInvalidConfiguration);
    REQUIRE(try_launch(1, dim3(1, 1, 65), 0) == cudaErrorInvalidConfiguration);
    REQUIRE(try_launch(0, 32, 0) == cudaErrorInvalidConfiguration);
    REQUIRE(try_launch(1, 0, 0) == cudaErrorInvalidConfiguration);
    REQUIRE(try_launch(dim3(1, 65536), 1, 0) == cudaErrorInvalidConfiguration);
    REQUIRE(try_launch(dim3(1, 1, 65536), 1, 0) == cudaErrorInvalidConfiguration);
    REQUIRE(try_launch(0x80000000u, 1, 0) == cudaErrorInvalidConfiguration);
    REQUIRE(try_launch(1, 32, (48 << 10) + 1) == cudaErrorInvalidValue);
    CUDA_CHECK(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 << 10));
    REQUIRE(try_launch(1, 32, 227 << 10) == cudaSuccess);
    REQUIRE(try_launch(1, 32, (227 << 10) + 1) == cudaErrorInvalidValue);
    REQUIRE(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, (227 << 10) + 1) ==
            cudaErrorInvalidValue);
}
static void test_launches(void **) { passes(launches); }

static void calls(void) {
    cudaDeviceProp properties;
    int count, device, can;
    size_t available, total;
    float *memory, host[4];
    CUDA_CHECK(cudaGetDeviceCount(&count));
    REQUIRE(count == 64);
    CUDA_CHECK(cudaGetDeviceProperties(&properties, 3));
    REQUIRE(properties.major == 8 && properties.sharedMemPerBlockOptin == 227 << 10);
    REQUIRE(cudaSetDevice(count) == cudaErrorInvalidDevice && cudaGetLastError() == cudaErrorInvalidDevice);
    CUDA_CHECK(cudaSetDevice(2));
    CUDA_CHECK(cudaGetDevice(&device));
    REQUIRE(device == 2);
    CUDA_CHECK(cudaDeviceCanAccessPeer(&can, 0, 1));
    REQUIRE(can == 1);
    CUDA_CHECK(cudaMemGetInfo(&available, &total));
    REQUIRE(available > 0 && available <= total);
    REQUIRE(cudaMalloc(&memory, total + (1 << 20)) == cudaErrorMemoryAllocation && memory == NULL);
    CUDA_CHECK(cudaMalloc(&memory, 16));
    REQUIRE((uintptr_t)memory % 256 == 0);
    REQUIRE(cudaMemcpy(memory, host, 17, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    REQUIRE(cudaMemcpy(host, memory, 16, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    REQUIRE(cudaMemset(memory, 0, 20) == cudaErrorInvalidValue);
    REQUIRE(cudaFree(host) == cudaErrorInvalidValue);
    CUDA_CHECK(cudaFree(memory));
    REQUIRE(cudaFree(memory) == cudaErrorInvalidValue);
    REQUIRE(strcmp(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory") == 0);
}
static void test_calls(void **) { passes(calls); }

// ---- streams -------------------------------------------------------------------------------------------------------

// Steps that do not commute: the result tells their order.
__global__ static void step(unsigned *x, int count, unsigned me) {
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count) x[i] = x[i] * 3 + me;
}
static unsigned after_steps(int steps) { // from 0, by turns with me = 0 and me = 1
    unsigned x = 0;
    for (int i = 0; i < steps; i++) x = x * 3 + i % 2;
    return x;
}
enum { INTS = 100 };
// Work goes to and fro between two streams, ordered by events; `forget`: one of the waits is missing.
static unsigned to_and_fro(bool forget) {
    cudaStream_t a = new_stream(), b = new_stream();
    cudaEvent_t a_done, b_done;
    CUDA_CHECK(cudaEventCreateWithFlags(&a_done, cudaEventDisableTiming));
    CUDA_CHECK(cudaEventCreateWithFlags(&b_done, cudaEventDisableTiming));
    unsigned *x = on_device<unsigned>(NULL, INTS), got[INTS];
    CUDA_CHECK(cudaStreamWaitEvent(a, b_done)); // never recorded: no wait
    CUDA_CHECK(cudaMemsetAsync(x, 0, INTS * sizeof *x, a));
    for (int turn = 0; turn < 10; turn++) {
        launch(step, 1, 128, 0, a, x, INTS, 0);
        CUDA_CHECK(cudaEventRecord(a_done, a));
        if (!forget) CUDA_CHECK(cudaStreamWaitEvent(b, a_done));
        launch(step, 1, 128, 0, b, x, INTS, 1);
        CUDA_CHECK(cudaEventRecord(b_done, b));
        CUDA_CHECK(cudaStreamWaitEvent(a, b_done));
    }
    CUDA_CHECK(cudaStreamSynchronize(a));
    CUDA_CHECK(cudaMemcpy(got, x, sizeof got, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaEventDestroy(a_done));
    CUDA_CHECK(cudaEventDestroy(b_done));
    CUDA_CHECK(cudaStreamDestroy(a));
    CUDA_CHECK(cudaStreamDestroy(b));
    CUDA_CHECK(cudaFree(x));
    for (int i = 1; i < INTS; i++) REQUIRE(got[i] == got[0]);
    return got[0];
}
static void with_all_waits(void) { REQUIRE(to_and_fro(false) == after_steps(20)); }
static void with_a_missing_wait(void) { REQUIRE(to_and_fro(true) == after_steps(20)); }

// A pinned buffer that is filled anew before the copy from it is known to have run.
static void pinned_reuse(bool wait) {
    int *pinned, *x = on_device<int>(NULL, 4), got;
    cudaStream_t stream = new_stream();
    CUDA_CHECK(cudaMallocHost(&pinned, 4 * sizeof *pinned));
    pinned[0] = 1;
    CUDA_CHECK(cudaMemcpyAsync(x, pinned, sizeof *pinned, cudaMemcpyHostToDevice, stream));
    if (wait) CUDA_CHECK(cudaStreamSynchronize(stream));
    pinned[0] = 2;
    to_host(&got, x, 1, stream);
    CUDA_CHECK(cudaFreeHost(pinned));
    REQUIRE(got == 1);
}
static void pinned_with_wait(void) { pinned_reuse(true); }
static void pinned_without_wait(void) { pinned_reuse(false); }
// Pageable memory may change as soon as the call returns.
static void pageable_reuse(void) {
    int host = 1, *x = on_device<int>(NULL, 1), got;
    cudaStream_t stream = new_stream();
    CUDA_CHECK(cudaMemcpyAsync(x, &host, sizeof host, cudaMemcpyHostToDevice, stream));
    host = 2;
    to_host(&got, x, 1, stream);
    REQUIRE(got == 1);
}

// How many of `seeds` runs go wrong.
static int wrong_runs(void (*body)(void), int seeds) {
    int wrong = 0;
    for (int seed = 1; seed <= seeds; seed++) {
        const int status = in_child(body, seed, false);
        assert_true(status == 0 || status == 2);
        wrong += status == 2;
    }
    return wrong;
}
static void test_streams(void **) {
    passes(with_all_waits);
    assert_true(wrong_runs(with_a_missing_wait, 5) > 0);
    passes(pinned_with_wait);
    assert_true(wrong_runs(pinned_without_wait, 5) > 0);
    passes(pageable_reuse);
}

static void copies_of_rows(void) {
    static int host[5][7], got[5][3];
    for (int i = 0; i < 35; i++) host[0][i] = i;
    cudaStream_t stream = new_stream();
    int *x = on_device(&host[0][0], 35), *y = on_device<int>(NULL, 15);
    CUDA_CHECK(cudaMemcpy2DAsync(y, 3 * sizeof(int), x + 2, 7 * sizeof(int), 3 * sizeof(int), 5,
                                 cudaMemcpyDeviceToDevice, stream));
    to_host(&got[0][0], y, 15, stream);
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 3; j++) REQUIRE(got[i][j] == host[i][j + 2]);
    REQUIRE(cudaMemcpy2DAsync(y, 3 * sizeof(int), x + 5, 7 * sizeof(int), 3 * sizeof(int), 5, cudaMemcpyDeviceToDevice,
                              stream) == cudaErrorInvalidValue);
}
static void test_copies_of_rows(void **) { passes(copies_of_rows); }

// Two host threads, each with a stream, pass a number to and fro by events that the other waits for; they only tell
// each other that an event has been recorded.
struct Players {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int recorded; // turns whose event has been recorded
    cudaEvent_t done[2];
    unsigned *x;
};
enum { TURNS = 40 };
static void play(Players *players, int me) {
    cudaStream_t stream = new_stream();
    for (int turn = me; turn < TURNS; turn += 2) {
        pthread_mutex_lock(&players->lock);
        while (players->recorded < turn) pthread_cond_wait(&players->changed, &players->lock);
        if (turn > 0) CUDA_CHECK(cudaStreamWaitEvent(stream, players->done[!me]));
        launch(step, 1, 128, 0, stream, players->x, INTS, me);
        CUDA_CHECK(cudaEventRecord(players->done[me], stream));
        players->recorded++;
        pthread_cond_broadcast(&players->changed);
        pthread_mutex_unlock(&players->lock);
        if (turn % 5 == 0) CUDA_CHECK(cudaStreamSynchronize(stream));
        if (turn % 7 == 0) {
            while (cudaEventQuery(players->done[me]) != cudaSuccess) {
            }
        }
    }
    CUDA_CHECK(cudaStreamSynchronize(stream));
    CUDA_CHECK(cudaStreamDestroy(stream));
}
static void *second_player(void *players) {
    play((Players *)players, 1);
    return NULL;
}
static void two_threads(void) {
    static Players players = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, {NULL, NULL}, NULL};
    unsigned got[INTS];
    for (int i = 0; i < 2; i++) CUDA_CHECK(cudaEventCreateWithFlags(&players.done[i], cudaEventDisableTiming));
    players.x = on_device<unsigned>(NULL, INTS);
    CUDA_CHECK(cudaMemset(players.x, 0, sizeof got));
    pthread_t second;
    REQUIRE(pthread_create(&second, NULL, second_player, &players) == 0);
    play(&players, 0);
    REQUIRE(pthread_join(second, NULL) == 0);
    CUDA_CHECK(cudaMemcpy(got, players.x, sizeof got, cudaMemcpyDeviceToHost));
    for (int i = 0; i < INTS; i++) REQUIRE(got[i] == after_steps(TURNS));
}
static void test_two_host_threads(void **) { passes(two_threads); }

static void note(void *flag) { *(int *)flag = 1; }
static void timing(void) {
    cudaStream_t stream = new_stream();
    cudaEvent_t start, end;
    float milliseconds = -1.0f;
    int flag = 0;
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&end));
    CUDA_CHECK(cudaEventRecord(start, stream));
    CUDA_CHECK(cudaLaunchHostFunc(stream, note, &flag));
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaEventSynchronize(end));
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start, end));
    REQUIRE(flag == 1 && milliseconds >= 0.0f);
}
static void test_timing(void **) { passes(timing); }

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_transposes),
        cmocka_unit_test(test_collectives),
        cmocka_unit_test(test_atomics),
        cmocka_unit_test(test_mma),
        cmocka_unit_test(test_ldmatrix),
        cmocka_unit_test(test_async_copies),
        cmocka_unit_test(test_missing_wait_is_caught),
        cmocka_unit_test(test_shared_faults),
        cmocka_unit_test(test_races),
        cmocka_unit_test(test_copy_race),
        cmocka_unit_test(test_barriers_not_reached),
        cmocka_unit_test(test_global_faults),
        cmocka_unit_test(test_misaligned),
        cmocka_unit_test(test_new_memory_is_no_number),
        cmocka_unit_test(test_launches),
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_copies_of_rows),
        cmocka_unit_test(test_two_host_threads),
        cmocka_unit_test(test_timing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
