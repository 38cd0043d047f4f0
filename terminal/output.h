// Standard output, which may be closed, full, or without a reader: none of it must harm the run.
#ifndef TERMINAL_OUTPUT_H
#define TERMINAL_OUTPUT_H

#include <stdbool.h>

// First of all in main. Descriptors 0, 1 and 2 that are closed are opened on /dev/null: the next file would get their
// number, and what is printed would land in it. A write that fails is an error from here on, not a signal.
void output_open(void);
// Right after something has been printed, by one thread at a time. False once any of it could not be written, which is
// said on standard error the first time; the caller goes on, and the program's exit status becomes 1. A reader that has
// gone (`| head`) is no error.
bool output_flush(void);

#endif
