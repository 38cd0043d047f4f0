// Bodies of test/memory.h.
#include "test/memory.h"

#include <stdio.h>
#include <stdlib.h>

void *checked(void *memory) {
    if (memory != NULL) return memory;
    fprintf(stderr, "out of memory\n");
    abort();
}
