// Ranks that are processes each have a command line of their own: do they all mean the same run?
#ifndef RUN_SAME_RUN_H
#define RUN_SAME_RUN_H

#include "comm/comm.h"
#include "run/run.h"

// Collective over all ranks. Compares with rank 0's what decides the result or what ranks do together: options (but for
// paths, which may differ from machine to machine), the device, the data, the model's parameters, the step to go on
// from. False on a rank that differs, with a usage error that names the first difference.
bool same_run(const Run *run, Comm *world, Error *err);

#endif
