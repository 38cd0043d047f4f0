// Which devices this program has, and how each is opened. That was settled when it was built: HAVE_CUDA where nvcc was
// found, HAVE_EMULATED where a C++ compiler was.
#include "layers/device.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layers/cpu/layers.h"
#include "layers/cpu/sgemm.h"
#include "layers/cuda/open.h"
#include "layers/cuda/scratch.h"

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

static const char *const kind_names[] = {
    [DEVICE_AUTO] = "auto", [DEVICE_CPU] = "cpu", [DEVICE_CUDA] = "cuda", [DEVICE_EMULATED] = "emulated"};

const char *device_kind_name(DeviceKind kind) { return kind_names[kind]; }

DeviceKind device_kind(const char *name) {
    DeviceKind kind = DEVICE_EMULATED;
    while (kind != DEVICE_AUTO && strcmp(name, kind_names[kind]) != 0) kind--;
    return kind;
}

static bool open_kind(Device *device, DeviceKind kind, int index, int threads, Error *err) {
    if (kind == DEVICE_CUDA) return open_cuda(device, index, err);
    if (kind == DEVICE_EMULATED) return open_emulated(device, index, err);
    if (kind != DEVICE_CPU) return error_set(err, "there is no such device: cpu, cuda or emulated");
    if (cpu_chosen_product(err) == NULL) return false;
    cpu_device(device, threads);
    return true;
}

bool device_open(Device *device, DeviceKind kind, int index, int threads, Error *err) {
    if (!open_kind(device, kind, index, threads, err)) return false;
    device->threads = threads;
    return true;
}

void device_elsewhere(Device *device) {
#if defined HAVE_CUDA
    cuda_device_elsewhere(device);
#elif defined HAVE_EMULATED
    emulated_device_elsewhere(device);
#else
    *device = (Device){.element_bytes = 2}; // bf16
#endif
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

int device_count(DeviceKind kind, const char **why) {
    if (kind == DEVICE_CUDA) return cuda_count(why);
    if (kind == DEVICE_EMULATED) return emulated_count(why);
    if (kind == DEVICE_CPU) return INT_MAX;
    *why = "there is no such device";
    return 0;
}

int64_t device_padded_vocab_size(DeviceKind kind, int64_t V) {
    const int64_t large = 1024, multiple = V < large ? 64 : 128;
    return kind == DEVICE_CPU ? V : (V + multiple - 1) / multiple * multiple;
}

// ---- memory that layers work in ------------------------------------------------------------------------------------

size_t device_scratch_bytes(DeviceKind kind, int threads, int64_t rows, int64_t C, int64_t columns) {
    return kind == DEVICE_CPU ? cpu_scratch_bytes(threads, rows, C) : cuda_scratch_bytes(rows, C, columns);
}

size_t device_host_bytes(DeviceKind kind) { return kind == DEVICE_CPU ? 0 : CUDA_UPLOAD_BYTES; }

void *device_scratch(const Device *device, const char *who, size_t bytes) {
    if (bytes <= device->scratch_bytes) return device->scratch;
    fprintf(stderr, "train_gpt: %s works in %zu bytes, but the device was lent %zu\n", who, bytes,
            device->scratch_bytes);
    abort();
}

bool device_lend_scratch(Device *device, size_t bytes, Error *err) {
    device->scratch = device->allocate(device, bytes, err);
    device->scratch_bytes = device->scratch != NULL ? bytes : 0;
    return device->scratch != NULL;
}

void device_return_scratch(Device *device) {
    if (device->scratch != NULL) device->release(device, device->scratch, device->scratch_bytes);
    device->scratch = NULL;
    device->scratch_bytes = 0;
}
