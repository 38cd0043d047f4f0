// A time limit for calls of a library that wait for other processes without one (the start of MPI and NCCL, MPI's end).
// A thread keeps it, and ends this process with a line when the time is over.
#ifndef BASE_DEADLINE_H
#define BASE_DEADLINE_H

#include "base/error.h"

typedef struct Deadline Deadline;

Deadline *deadline_start(int rank, Error *err); // no limit yet. NULL: error
// From now on so many seconds, for all ranks' "start" or "end" (`what`); HUGE_VAL: no limit. Time in which this process
// was stopped itself does not count.
void deadline_set(Deadline *deadline, double seconds, const char *what);
void deadline_stop(Deadline *deadline);

#endif
