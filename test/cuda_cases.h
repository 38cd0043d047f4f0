// What the tests of CUDA's layers share: the device, tensors on it with guards around them, and comparisons.
//
// The device is "emulated", CUDA's own kernels run by the CPU with its checks on (emulated/), or a GPU
// (test/cuda_device.h). Where the program was built without it, its tests skip.
//
// Storage is bf16: inputs are rounded to it on the host, so that the reference sees what the device sees. A result in
// storage was rounded once from fp32, so it may be off by half a unit in the last place (half_ulp), beside what its
// fp32 value was off.
#ifndef TEST_CUDA_CASES_H
#define TEST_CUDA_CASES_H

#include "test/bf16.h"
#include "test/cuda_device.h"
#include "test/layer_cases.h"
#include "test/scratch.h"

#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

// ---- the device ----------------------------------------------------------------------------------------------------

// The one device of this process, opened at the first call, with the race checker on where there is one. Skips the test
// if there is none.
Device *cuda_device_of_test(void);

// A CPU device to compare with.
Device *cpu_device_of_test(void);

// Runs `work` in a process of its own and returns its exit status; skips the test if there is no device. To be called
// before cuda_device_of_test, and before the device is so much as counted here: CUDA does not outlive a fork.
int status_in_child(void (*work)(void *argument), void *argument);

// Runs a group of tests, and returns how many failed: on a GPU as it is, but on the emulated device twice, as an Ampere
// GPU and, in a process of its own, as a Hopper one, unless EMULATED_ARCH says which. To be called by main, first of
// all.
int run_on_architectures(int (*group)(const char *name), const char *name);
// Whether the device has or may have Hopper's kernels: the emulated GPU is a Hopper one, or it is a real one.
bool may_be_hopper(void);

typedef struct Run {
    const char *seed;
    void (*work)(Device *, void *results);
    void *results;
} Run;

// Runs `work`, which fills `bytes` of results from what it computes on the device, in `times` processes, at most 4,
// with other orders of the emulated threads and blocks, and compares the results bit for bit. To be called first of all
// tests (status_in_child).
void expect_same_bits_in_runs(const char *what, void (*work)(Device *, void *results), size_t bytes, int times);
void expect_same_bits_twice(const char *what, void (*work)(Device *, void *results), size_t bytes);

// For a main: runs a group of tests, which returns how many failed, on each GPU that the emulator can be, in a process
// of its own but for the last; where EMULATED_ARCH says which, or the GPU is a real one, on that alone.
int run_on_each_gpu(int (*group)(void));

// ---- bf16 ----------------------------------------------------------------------------------------------------------

// Rounds all of x, and returns it: `float *x = rounded(random_floats(n, 1, 0, 1), n);`
float *rounded(float *x, int64_t count);

// Half of what lies between two neighbours in bf16 near x: 8 significant bits.
double half_ulp(double x);

// A result in storage, whose fp32 value may be `tolerance` away from the expected one.
void expect_storage(const char *what, int64_t i, double got, double expected, double tolerance);

// Of a sum of k products in fp32: sum_tolerance, and some more, since tensor cores cut off the sum of every 16 products
// where the CPU rounds.
double product_tolerance(int64_t k, double sum_of_magnitudes);

// ---- tensors on the device -----------------------------------------------------------------------------------------

typedef enum Kind { KIND_STORAGE, KIND_FLOAT, KIND_INT32, KIND_DOUBLE, KIND_BYTES } Kind;

// `count` elements with a guard on each side, which a kernel must not touch.
typedef struct CudaTensor {
    Kind kind;
    void *data; // the device's
    int64_t count;
    char *memory; // what was allocated: lead bytes, the data, and at least GUARD_BYTES more
    size_t bytes, lead;
} CudaTensor;

enum { GUARD_BYTES = 64, GUARD = 0x7b };

size_t kind_bytes(Kind kind);

// `offset`: how many elements the tensor begins after a boundary of 256 bytes.
CudaTensor cuda_tensor_at(Kind kind, const void *values, int64_t count, int64_t offset);

// values: `count` floats for storage and float, else of their kind; NULL: zeros.
CudaTensor cuda_storage(const float *values, int64_t count);
CudaTensor cuda_floats(const float *values, int64_t count);
CudaTensor cuda_tokens(const int32_t *values, int64_t count);

// Documents of `average` tokens or so: the first token of its document, for each of (B, T).
int32_t *documents_of_test(int64_t B, int64_t T, int64_t average);

// What the tensor holds, into memory of `count` of its elements.
void cuda_fetch_raw(const CudaTensor *t, void *to);
// The same as floats (storage and float tensors); to be freed.
float *cuda_fetch(const CudaTensor *t);

// Checks the guards and releases the tensor. "Somebody wrote beside it" is found here at the latest.
void cuda_free(CudaTensor *t);

#endif
