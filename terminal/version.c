// Compiled for the program alone, not into the library: a new commit then links nothing else anew.
#include "terminal/version.h"

#include "built.h" // made by the Makefile, in the build folder

void version_print(FILE *out) {
    fprintf(out, "train_gpt  %s\ncompiler   %s\nlibraries  %s\n", VERSION, COMPILER, FOUND);
}
