// A time limit for calls of a library that wait for other ranks without one (MPI's start and end). It is kept by a
// thread of its own, which ends this process with a line when the time is over. Private to comm/.
#ifndef COMM_DEADLINE_H
#define COMM_DEADLINE_H

#include "comm/engine.h"

typedef struct Deadline Deadline;

Deadline *deadline_start(Error *err); // no limit yet. NULL: error
// From now on so many seconds, for all ranks' "start" or "end" (`what`); HUGE_VAL: no limit. Time in which this process
// was stopped itself does not count.
void deadline_set(Deadline *deadline, double seconds, const char *what);
void deadline_stop(Deadline *deadline);

#endif
