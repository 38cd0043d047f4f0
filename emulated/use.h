// How much memory of emulated GPUs the program uses: for tests. Beside the door to the device the one thing that the
// joined object shows.
#ifndef EMULATED_USE_H
#define EMULATED_USE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct EmulatedUse {
    int64_t calls; // that allocated or freed, pinned host memory included
    int64_t peak;  // the most bytes of all GPUs together, at any time so far
} EmulatedUse;
EmulatedUse emulated_use(void);

#ifdef __cplusplus
}
#endif
#endif
