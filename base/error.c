// Filling in an error's one line, and ending the program with it.
#include "base/error.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void fill(Error *err, int exit_code, const char *format, va_list arguments) {
    err->exit_code = exit_code;
    vsnprintf(err->message, sizeof err->message, format, arguments);
    for (char *c = err->message; *c != '\0'; c++) // a path may hold a newline; the message is one line
        if ((unsigned char)*c < ' ' || *c == 0x7f) *c = '?';
}

bool error_set(Error *err, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fill(err, EXIT_RUNTIME, format, arguments);
    va_end(arguments);
    return false;
}

bool error_usage(Error *err, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fill(err, EXIT_USAGE, format, arguments);
    va_end(arguments);
    return false;
}

void die(const Error *err) {
    static atomic_flag dying = ATOMIC_FLAG_INIT;
    while (atomic_flag_test_and_set(&dying)) pause(); // another thread speaks, and ends this one
    fflush(stdout);
    fprintf(stderr, "train_gpt: %s\n", err->message);
    exit(err->exit_code);
}
