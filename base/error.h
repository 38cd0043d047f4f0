// Errors that come back to the caller: one line saying what is wrong, where, and what to do.
//
// A function that can fail on anything from outside (files, options, memory) takes an `Error *`, fills it and returns
// false. Only the top of a rank decides to end the program (`die`, or `comm_fail` once ranks are running).
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { EXIT_RUNTIME = 1, EXIT_USAGE = 2 };

typedef struct Error {
    int exit_code;      // 0: no error so far
    char message[1000]; // one line, no newline at its end
} Error;

// Fills *err (exit code 1; 2 for the usage form) and returns false, so that callers write `return error_set(...)`.
bool error_set(Error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool error_usage(Error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Prints "train_gpt: MESSAGE" on standard error and ends the process with the error's exit code.
void die(const Error *err) __attribute__((noreturn));
// Flushes standard output and writes the same line on standard error, in one piece: of a process whose other threads
// still work.
void error_print(const Error *err);

#ifdef __cplusplus
}
#endif
#endif
