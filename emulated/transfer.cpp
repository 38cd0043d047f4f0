// Allocating, copying and filling, from the host's side.
#include "emulated/device.h"
#include "emulated/memory.h"
#include "emulated/stream.h"

// ---- allocations ----------------------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void **memory, size_t bytes) {
    *memory = NULL;
    if (bytes == 0) return cudaSuccess;
    *memory = memory_allocate(bytes, device_current());
    return *memory != NULL ? cudaSuccess : device_error(cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void *memory) {
    int device;
    size_t rest;
    if (memory == NULL) return cudaSuccess;
    if (!memory_owner(memory, &device, &rest) || device == PINNED) return device_error(cudaErrorInvalidValue);
    stream_finish_device(device); // as a GPU does
    return memory_free(memory, false) ? cudaSuccess : device_error(cudaErrorInvalidValue);
}
cudaError_t cudaMallocHost(void **memory, size_t bytes) {
    *memory = NULL;
    if (bytes == 0) return cudaSuccess;
    *memory = memory_allocate(bytes, PINNED);
    return *memory != NULL ? cudaSuccess : device_error(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void *memory) {
    if (memory == NULL) return cudaSuccess;
    stream_finish_device(device_current());
    return memory_free(memory, true) ? cudaSuccess : device_error(cudaErrorInvalidValue);
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    memory_info(available, total);
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *pointer) {
    int device = device_current();
    size_t rest;
    const bool ours = memory_owner(pointer, &device, &rest);
    const bool pinned = ours && device == PINNED;
    attributes->type = !ours ? cudaMemoryTypeUnregistered : pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->device = pinned ? device_current() : device;
    attributes->devicePointer = ours ? (void *)pointer : NULL;
    attributes->hostPointer = !ours || pinned ? (void *)pointer : NULL;
    return cudaSuccess;
}

// ---- copies ---------------------------------------------------------------------------------------------------------

struct Copy {
    char *to;
    const char *from; // NULL: fill with `value`
    size_t to_pitch, from_pitch, width, height;
    int value;
    char *staged; // freed afterwards; NULL: nothing is
};
static void run_copy(void *argument) {
    Copy *copy = (Copy *)argument;
    for (size_t row = 0; row < copy->height; row++) {
        char *to = copy->to + row * copy->to_pitch;
        if (copy->from != NULL) memmove(to, copy->from + row * copy->from_pitch, copy->width);
        else memset(to, copy->value, copy->width);
    }
    free(copy->staged);
    free(copy);
}

enum Place { PLACE_PAGEABLE, PLACE_PINNED, PLACE_DEVICE, PLACE_WRONG };
static Place place_of(const void *address, size_t extent) {
    int device;
    size_t rest;
    if (!memory_owner(address, &device, &rest)) {
        // Right behind the end of an allocation, or freed: certainly no memory of the program's.
        return memory_find(address, 1, 0, true) == MEMORY_OF_HOST ? PLACE_PAGEABLE : PLACE_WRONG;
    }
    if (extent > rest) return PLACE_WRONG;
    return device == PINNED ? PLACE_PINNED : PLACE_DEVICE;
}

// A copy of `height` rows. synchronous: as cudaMemcpy, complete on return.
static cudaError_t copy_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                             size_t height, cudaMemcpyKind kind, cudaStream_t stream, bool synchronous) {
    if (width == 0 || height == 0) return cudaSuccess;
    if (height > 1 && (to_pitch < width || from_pitch < width)) return cudaErrorInvalidValue;
    const Place target = place_of(to, (height - 1) * to_pitch + width);
    const Place source = place_of(from, (height - 1) * from_pitch + width);
    if (target == PLACE_WRONG || source == PLACE_WRONG) return cudaErrorInvalidValue;
    if (kind != cudaMemcpyDefault) {
        const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
        const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
        if (to_device != (target == PLACE_DEVICE) || from_device != (source == PLACE_DEVICE))
            return cudaErrorInvalidValue;
    }
    Copy *copy = (Copy *)malloc(sizeof *copy);
    if (copy == NULL) return cudaErrorMemoryAllocation;
    *copy = Copy{(char *)to, (const char *)from, to_pitch, from_pitch, width, height, 0, NULL};
    if (source == PLACE_PAGEABLE && target != PLACE_PAGEABLE) { // goes through a buffer of the driver's at once
        copy->staged = (char *)malloc(width * height);
        if (copy->staged == NULL) {
            free(copy);
            return cudaErrorMemoryAllocation;
        }
        for (size_t row = 0; row < height; row++)
            memcpy(copy->staged + row * width, (const char *)from + row * from_pitch, width);
        copy->from = copy->staged;
        copy->from_pitch = width;
    }
    const Operation operation = {NULL, run_copy, NULL, copy, "cudaMemcpyAsync"};
    const cudaError_t status = stream_enqueue(stream, &operation);
    if (status != cudaSuccess) return status;
    if (synchronous || target == PLACE_PAGEABLE) return cudaStreamSynchronize(stream);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return device_error(copy_rows(to, bytes, from, bytes, bytes, 1, kind, stream, false));
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    return device_error(copy_rows(to, bytes, from, bytes, bytes, 1, kind, NULL, true));
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    return device_error(copy_rows(to, to_pitch, from, from_pitch, width, height, kind, stream, false));
}

static cudaError_t fill(void *memory, int value, size_t bytes, cudaStream_t stream) {
    if (bytes == 0) return cudaSuccess;
    const Place place = place_of(memory, bytes);
    if (place != PLACE_DEVICE && place != PLACE_PINNED) return cudaErrorInvalidValue;
    Copy *copy = (Copy *)malloc(sizeof *copy);
    if (copy == NULL) return cudaErrorMemoryAllocation;
    *copy = Copy{(char *)memory, NULL, bytes, 0, bytes, 1, value, NULL};
    const Operation operation = {NULL, run_copy, NULL, copy, "cudaMemsetAsync"};
    return stream_enqueue(stream, &operation);
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) {
    return device_error(fill(memory, value, bytes, stream));
}
cudaError_t cudaMemset(void *memory, int value, size_t bytes) { return device_error(fill(memory, value, bytes, NULL)); }
