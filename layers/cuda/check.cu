// What happens when a call of CUDA fails: one line, and the end. Such failures are never caused by what a user typed.
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "base/error.h"
#include "layers/cuda/cuda.h"

// _exit, because CUDA's exit handlers would run while other threads still call it, whose calls would then fail in turn.
[[noreturn]] static void end(const Error *err) {
    fflush(stdout);
    fprintf(stderr, "train_gpt: %s\n", err->message);
    fflush(stderr);
    _exit(err->exit_code);
}

void cuda_check(cudaError_t status, const char *call, const char *file, int line) {
    if (status == cudaSuccess) return;
    Error err;
    error_set(&err, "CUDA: %s failed: %s (%s:%d)", call, cudaGetErrorString(status), file, line);
    end(&err);
}

void cuda_give_up(const char *file, int line, const char *format, ...) {
    char what[700];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    Error err;
    error_set(&err, "CUDA: %s (%s:%d)", what, file, line);
    end(&err);
}
