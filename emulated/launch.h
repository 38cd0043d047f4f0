// A kernel's launch and its shared memory: what nvcc has its own syntax for (see layers/cuda/cuda.h).
#ifndef EMULATED_LAUNCH_H
#define EMULATED_LAUNCH_H

#include <stdlib.h>

#include "emulated/runtime_api.h"

void cuda_check(cudaError_t status, const char *call, const char *file, int line); // the project's own

// ---- shared memory --------------------------------------------------------------------------------------------------

// Where the block's array is that the declaration at `site` means, the same for all its threads.
void *emulated_shared_array(const void *site, const char *name, size_t bytes, size_t alignment);
void *emulated_dynamic_shared();

#define SHARED_ARRAY(type, name, count)                                                                                \
    static char name##_site;                                                                                           \
    type(&name)[count] = *reinterpret_cast<type(*)[count]>(                                                            \
        emulated_shared_array(&name##_site, #name, sizeof(type[count]), alignof(type)))
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(emulated_dynamic_shared())

// ---- launches -------------------------------------------------------------------------------------------------------

#define EMULATED_PLAIN __attribute__((no_sanitize("thread"))) // its own accesses are not a kernel's

// The arguments of a launch, kept by value until it runs.
template <typename... P> struct EmulatedArguments;
template <> struct EmulatedArguments<> {
    EmulatedArguments() {}
    template <typename Kernel, typename... Taken> EMULATED_PLAIN void call(Kernel kernel, const Taken &...taken) const {
        kernel(taken...);
    }
};
template <typename First, typename... Rest> struct EmulatedArguments<First, Rest...> {
    First first;
    EmulatedArguments<Rest...> rest;
    EMULATED_PLAIN EmulatedArguments(const First &first, const Rest &...rest) : first(first), rest(rest...) {}
    template <typename Kernel, typename... Taken> EMULATED_PLAIN void call(Kernel kernel, const Taken &...taken) const {
        rest.call(kernel, taken..., first);
    }
};
template <typename... P> struct EmulatedCall {
    void (*kernel)(P...);
    EmulatedArguments<P...> arguments;
    EMULATED_PLAIN EmulatedCall(void (*kernel)(P...), P... arguments) : kernel(kernel), arguments(arguments...) {}
    EMULATED_PLAIN static void run(const void *call) {
        const EmulatedCall *self = static_cast<const EmulatedCall *>(call);
        self->arguments.call(self->kernel);
    }
};
struct EmulatedPlace {
    void *at;
};
inline void *operator new(size_t, EmulatedPlace place) { return place.at; }

struct EmulatedLaunch {
    const void *kernel;
    const char *name; // as written in the launch
    dim3 grid, block;
    size_t shared_bytes;
    void (*run)(const void *call); // one thread of the kernel
    void *call;                    // from emulated_call_memory; its owner is whoever gets the launch
};
// Host memory of the driver's for a call; NULL: not enough.
void *emulated_call_memory(size_t bytes);
// Checks the launch and puts it into the stream's queue. The error is also kept for cudaGetLastError.
cudaError_t emulated_launch_kernel(const EmulatedLaunch *launch, cudaStream_t stream);

template <typename... P, typename... A>
static cudaError_t emulated_launch_unchecked(void (*kernel)(P...), const char *name, dim3 grid, dim3 block,
                                             size_t shared_bytes, cudaStream_t stream, A... arguments) {
    static_assert(sizeof(EmulatedArguments<P...>) <= 4096, "a kernel's parameters may have 4 KiB");
    void *call = emulated_call_memory(sizeof(EmulatedCall<P...>));
    if (call == NULL) return cudaErrorMemoryAllocation;
    new (EmulatedPlace{call}) EmulatedCall<P...>(kernel, static_cast<P>(arguments)...);
    const EmulatedLaunch launch = {
        reinterpret_cast<const void *>(kernel), name, grid, block, shared_bytes, EmulatedCall<P...>::run, call};
    return emulated_launch_kernel(&launch, stream);
}
template <typename... P, typename... A>
static void emulated_launch(void (*kernel)(P...), const char *name, const char *file, int line, dim3 grid, dim3 block,
                            size_t shared_bytes, cudaStream_t stream, A... arguments) {
    if (shared_bytes > (48 << 10)) {
        cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes), name,
                   file, line);
    }
    cuda_check(emulated_launch_unchecked(kernel, name, grid, block, shared_bytes, stream, arguments...), name, file,
               line);
}
#define launch(kernel, grid, block, shared_bytes, stream, ...)                                                         \
    emulated_launch(kernel, #kernel, __FILE__, __LINE__, dim3(grid), dim3(block), (size_t)(shared_bytes), stream,      \
                    __VA_ARGS__)

#endif
