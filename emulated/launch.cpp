// Launches: what a GPU would refuse is refused here too. Limits: CUDA C++ Programming Guide, "Technical specifications
// per compute capability".
#include <pthread.h>

#include "emulated/device.h"
#include "emulated/grid.h"
#include "emulated/stream.h"

// ---- how much dynamic shared memory a kernel may ask for -----------------------------------------------------------

struct Allowance {
    const void *kernel;
    int device;
    size_t bytes;
    Allowance *next;
};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Allowance *allowances;

static size_t allowed(const void *kernel, int device) {
    pthread_mutex_lock(&lock);
    const Allowance *found = allowances;
    while (found != NULL && (found->kernel != kernel || found->device != device)) found = found->next;
    const size_t bytes = found != NULL ? found->bytes : (size_t)SHARED_MOST_STATIC;
    pthread_mutex_unlock(&lock);
    return bytes;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > SHARED_MOST_DYNAMIC)
        return device_error(cudaErrorInvalidValue);
    const int device = device_current();
    pthread_mutex_lock(&lock);
    Allowance *found = allowances;
    while (found != NULL && (found->kernel != kernel || found->device != device)) found = found->next;
    if (found == NULL) {
        found = (Allowance *)malloc(sizeof *found);
        if (found != NULL) {
            *found = Allowance{kernel, device, 0, allowances};
            allowances = found;
        }
    }
    if (found != NULL) found->bytes = (size_t)value;
    pthread_mutex_unlock(&lock);
    return found != NULL ? cudaSuccess : device_error(cudaErrorMemoryAllocation);
}

// ---- launches -------------------------------------------------------------------------------------------------------

struct QueuedLaunch {
    EmulatedLaunch launch;
    int device;
};
static void run_launch(void *argument) {
    QueuedLaunch *queued = (QueuedLaunch *)argument;
    block_run_grid(&queued->launch, queued->device);
    free(queued->launch.call);
    free(queued);
}

static cudaError_t check_launch(const EmulatedLaunch *launch, int device) {
    const dim3 grid = launch->grid, block = launch->block;
    if (block.x == 0 || block.y == 0 || block.z == 0 || grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x > 1024 ||
        block.y > 1024 || block.z > 64 || (uint64_t)block.x * block.y * block.z > MAX_THREADS || grid.x > 0x7fffffffu ||
        grid.y > 65535 || grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (launch->shared_bytes > allowed(launch->kernel, device)) return cudaErrorInvalidValue;
    return cudaSuccess;
}

void *emulated_call_memory(size_t bytes) {
    void *memory = malloc(bytes);
    if (memory == NULL) device_error(cudaErrorMemoryAllocation);
    return memory;
}

cudaError_t emulated_launch_kernel(const EmulatedLaunch *launch, cudaStream_t stream) {
    const int device = stream_device(stream);
    cudaError_t status = check_launch(launch, device);
    if (status == cudaSuccess && device != device_current()) status = cudaErrorInvalidResourceHandle;
    QueuedLaunch *queued = status == cudaSuccess ? (QueuedLaunch *)malloc(sizeof *queued) : NULL;
    if (status == cudaSuccess && queued == NULL) status = cudaErrorMemoryAllocation;
    if (status == cudaSuccess) {
        *queued = QueuedLaunch{*launch, device};
        const Operation operation = {NULL, run_launch, NULL, queued, launch->name};
        status = stream_enqueue(stream, &operation);
    }
    if (status != cudaSuccess) free(launch->call);
    return device_error(status);
}
