// For tests of the emulated GPU: every case runs in a child process with its own environment (seed, race checker),
// since a report ends the process. A test is one file of C++, with these functions in it.
#ifndef TEST_EMULATED_CASES_H
#define TEST_EMULATED_CASES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

extern "C" { // which the header does not say itself
#include <cmocka.h>
}

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "layers/cuda/cuda.h"

inline void cuda_check(cudaError_t status, const char *call, const char *file, int line) {
    if (status == cudaSuccess) return;
    fprintf(stderr, "%s:%d: %s: %s\n", file, line, call, cudaGetErrorString(status));
    _exit(3);
}
[[noreturn]] inline void cuda_give_up(const char *file, int line, const char *format, ...) {
    fprintf(stderr, "%s:%d: gives up: %s\n", file, line, format);
    _exit(4);
}

// ---- running a case in a child -------------------------------------------------------------------------------------

static char child_said[4096]; // what the last child wrote on standard error

// Runs `body` in a child with EMULATED_SEED and EMULATED_RACES; returns its exit status.
static inline int in_child(void (*body)(void), int seed, bool races) {
    int ends[2];
    char text[20];
    assert_int_equal(pipe(ends), 0);
    fflush(stdout);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        snprintf(text, sizeof text, "%d", seed);
        setenv("EMULATED_SEED", text, 1);
        if (races) setenv("EMULATED_RACES", "1", 1);
        else unsetenv("EMULATED_RACES");
        alarm(60);
        body();
        _exit(0);
    }
    close(ends[1]);
    size_t length = 0;
    for (ssize_t got; (got = read(ends[0], child_said + length, sizeof child_said - 1 - length)) > 0;)
        length += (size_t)got;
    child_said[length] = 0;
    close(ends[0]);
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

enum { SEEDS = 4 };
static inline void passes_with(void (*body)(void), bool races) {
    for (int seed = 1; seed <= SEEDS; seed++) {
        const int status = in_child(body, seed, races);
        if (status != 0 || child_said[0] != 0) fail_msg("seed %d: exit status %d: %s", seed, status, child_said);
    }
}
static inline void passes(void (*body)(void)) {
    passes_with(body, false);
    passes_with(body, true);
}
// The child ends with a report that has all these words in it.
static inline void is_caught(void (*body)(void), bool races, const char *kernel, const char *what, const char *where) {
    const int status = in_child(body, 1, races);
    if (status != 1 || strstr(child_said, "emulated GPU: kernel ") == NULL || strstr(child_said, kernel) == NULL ||
        strstr(child_said, "block (") == NULL || strstr(child_said, what) == NULL || strstr(child_said, where) == NULL)
        fail_msg("wanted \"%s\", \"%s\"; got exit status %d: %s", what, where, status, child_said);
}

// In a child: a wrong result.
#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                                    \
            _exit(2);                                                                                                  \
        }                                                                                                              \
    } while (0)

static inline cudaStream_t new_stream(void) {
    cudaStream_t stream;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}
template <typename T> static T *on_device(const T *host, size_t count) {
    T *memory;
    CUDA_CHECK(cudaMalloc(&memory, count * sizeof(T)));
    if (host != NULL) CUDA_CHECK(cudaMemcpy(memory, host, count * sizeof(T), cudaMemcpyHostToDevice));
    return memory;
}
template <typename T> static void to_host(T *host, const T *device, size_t count, cudaStream_t stream) {
    CUDA_CHECK(cudaMemcpyAsync(host, device, count * sizeof(T), cudaMemcpyDeviceToHost, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
}
// Repeatable numbers in [-1, 1).
static inline float number(uint32_t i) {
    uint32_t x = i * 2654435761u + 12345u;
    x = (x ^ x >> 15) * 2246822519u;
    x = (x ^ x >> 13) * 3266489917u;
    return (float)((x ^ x >> 16) >> 8) * (2.0f / 16777216.0f) - 1.0f;
}

#endif
