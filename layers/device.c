// Which devices this program has, and how each is opened. That was settled when it was built: HAVE_CUDA where nvcc was
// found, HAVE_EMULATED where a C++ compiler was.
#include "layers/device.h"

#include <limits.h>
#include <string.h>

#include "layers/cpu/sgemm.h"
#include "layers/cuda/open.h"

static bool open_cuda(Device *device, int index, Error *err) {
#ifdef HAVE_CUDA
    return cuda_device(device, index, err);
#else
    (void)device, (void)index;
    return error_set(err, "--device cuda: this program was built without CUDA; install the CUDA Toolkit, so that nvcc "
                          "is found, and run make again, or use --device cpu");
#endif
}

static bool open_emulated(Device *device, int index, Error *err) {
#ifdef HAVE_EMULATED
    return emulated_device(device, index, err);
#else
    (void)device, (void)index;
    return error_set(err, "--device emulated: this program was built without it; install g++ and run make again, or "
                          "use --device cpu");
#endif
}

static bool open_named(Device *device, const char *name, int index, int threads, Error *err) {
    if (strcmp(name, "cuda") == 0) return open_cuda(device, index, err);
    if (strcmp(name, "emulated") == 0) return open_emulated(device, index, err);
    if (strcmp(name, "cpu") != 0) return error_set(err, "there is no device \"%s\": cpu, cuda or emulated", name);
    if (cpu_chosen_product(err) == NULL) return false;
    cpu_device(device, threads);
    return true;
}

bool device_open(Device *device, const char *name, int index, int threads, Error *err) {
    if (!open_named(device, name, index, threads, err)) return false;
    device->threads = threads;
    return true;
}

static int cuda_count(const char **why) {
#ifdef HAVE_CUDA
    return cuda_device_count(why);
#else
    *why = "this program was built without CUDA";
    return 0;
#endif
}

static int emulated_count(const char **why) {
#ifdef HAVE_EMULATED
    (void)why;
    return INT_MAX;
#else
    *why = "this program was built without it";
    return 0;
#endif
}

int device_count(const char *name, const char **why) {
    if (strcmp(name, "cuda") == 0) return cuda_count(why);
    if (strcmp(name, "emulated") == 0) return emulated_count(why);
    if (strcmp(name, "cpu") == 0) return INT_MAX;
    *why = "there is no such device";
    return 0;
}

// The most that any layer asks of cuda_scratch. embedding.cu: 18 bytes a row to sort, and two rows of partial sums for
// each of about 2,048 pieces of the list, or of 64 tokens each where that makes fewer, 512 where it makes more.
// norm.cu: as many partial sums from each block, of which there are some hundreds. bias.cu: 1 MiB.
size_t device_own_bytes(const char *name, int64_t rows, int64_t C) {
    if (strcmp(name, "cpu") == 0) return 0;
    const int64_t blocks = rows < 1024 ? rows : 1024, fewest = rows / 64 + 1, most = 2048 + rows / 512;
    const int64_t pieces = fewest < most ? fewest : most, sums = pieces > blocks ? pieces : blocks;
    return CUDA_WORKSPACE_BYTES + (1 << 20) + (size_t)rows * 18 + (size_t)sums * 2 * (size_t)C * sizeof(float);
}
