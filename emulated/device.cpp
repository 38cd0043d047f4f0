// The runtime's calls about devices: how many, which one, what they are.
#include "emulated/device.h"

#include "emulated/grid.h"
#include "emulated/memory.h"
#include "emulated/settings.h"

static __thread int current;
static __thread cudaError_t last_error;

int device_current() { return current; }

cudaError_t device_error(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

static const struct {
    cudaError_t error;
    const char *words;
} errors[] = {
    {cudaSuccess, "no error"},
    {cudaErrorInvalidValue, "invalid argument"},
    {cudaErrorMemoryAllocation, "out of memory"},
    {cudaErrorInvalidConfiguration, "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "CUDA driver version is insufficient"},
    {cudaErrorNoDevice, "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "invalid resource handle"},
    {cudaErrorNotReady, "device not ready"},
    {cudaErrorPeerAccessAlreadyEnabled, "peer access is already enabled"},
};
const char *cudaGetErrorString(cudaError_t error) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].error == error) return errors[i].words;
    return "unknown error";
}

// ---- devices --------------------------------------------------------------------------------------------------------

static bool is_device(int device) { return device >= 0 && device < settings()->devices; }

cudaError_t cudaGetDeviceCount(int *count) {
    *count = settings()->devices;
    return *count > 0 ? cudaSuccess : device_error(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
    if (!is_device(device)) return device_error(cudaErrorInvalidDevice);
    current = device;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    *device = current;
    return cudaSuccess;
}

// Limits: CUDA C++ Programming Guide, "Technical specifications per compute capability". 8.0 unless asked otherwise, so
// that kernels take their general path; but shared memory as on 9.0, so that every kernel of the project can run.
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    if (!is_device(device)) return device_error(cudaErrorInvalidDevice);
    size_t available;
    memset(properties, 0, sizeof *properties);
    snprintf(properties->name, sizeof properties->name, "emulated GPU");
    memory_info(&available, &properties->totalGlobalMem);
    properties->sharedMemPerBlock = SHARED_MOST_STATIC;
    properties->sharedMemPerBlockOptin = SHARED_MOST_DYNAMIC;
    properties->sharedMemPerMultiprocessor = SHARED_MOST_DYNAMIC + 1024;
    properties->reservedSharedMemPerBlock = 1024;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->warpSize = WARP_LANES;
    properties->maxThreadsPerBlock = MAX_THREADS;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = 0x7fffffff;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->major = settings()->arch / 10;
    properties->minor = settings()->arch % 10;
    properties->multiProcessorCount = MULTIPROCESSORS;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->maxBlocksPerMultiProcessor = 32;
    properties->pciBusID = device;
    properties->canMapHostMemory = properties->unifiedAddressing = properties->concurrentKernels = 1;
    properties->asyncEngineCount = 2;
    properties->l2CacheSize = 1 << 20;
    properties->memoryBusWidth = 64;
    return cudaSuccess;
}

// ---- peers ----------------------------------------------------------------------------------------------------------

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    if (!is_device(device) || !is_device(peer)) return device_error(cudaErrorInvalidDevice);
    *can = device != peer;
    return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
    if (flags != 0) return device_error(cudaErrorInvalidValue);
    if (!is_device(peer) || peer == current) return device_error(cudaErrorInvalidDevice);
    return memory_enable_peer(current, peer) ? cudaSuccess : device_error(cudaErrorPeerAccessAlreadyEnabled);
}
