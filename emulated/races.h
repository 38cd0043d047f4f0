// Races in shared memory, on request (EMULATED_RACES=1): two accesses to one byte by different threads of a block, at
// least one of them a write (and not both atomic), with no barrier between: __syncthreads, or within one warp
// __syncwarp of the whole warp. Shuffles and votes order nothing. Found whichever of the two came first in this run.
#ifndef EMULATED_RACES_H
#define EMULATED_RACES_H

#include "emulated/shared.h"

void races_open(Block *block); // starts or stops looking, as the settings say
void races_begin_block(Block *block);
void races_access(Thread *thread, uint32_t begin, uint32_t bytes, AccessKind kind, const void *where);

#endif
