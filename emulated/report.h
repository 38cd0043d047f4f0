// The end of a program that did something a GPU would not let pass.
#ifndef EMULATED_REPORT_H
#define EMULATED_REPORT_H

#include "emulated/block.h"

// Prints "emulated GPU: kernel K, block (x,y,z), thread (x,y,z): WHAT" and the source lines around `where` (an address
// of code, may be NULL), and ends the process with 1, or by abort() if EMULATED_ABORT=1.
[[noreturn]] void report(const Thread *thread, const void *where, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
// The same for what no thread of a kernel did.
[[noreturn]] void report_host(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
