// Which program this is: what `--version` prints.
#ifndef TERMINAL_VERSION_H
#define TERMINAL_VERSION_H

#include <stdio.h>

// Three lines: the version, the compiler, and what the build found and went without.
void version_print(FILE *out);

#endif
