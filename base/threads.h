// A few threads that do one thing together.
#ifndef BASE_THREADS_H
#define BASE_THREADS_H

#include "base/error.h"

// Calls run(i, argument) for i from 0 to count - 1, each on a thread of its own, 0 on the caller's; returns when all
// have returned. All or none: false, and nothing has been called, if so many cannot be made.
bool threads_run(int count, void (*run)(int i, void *argument), void *argument, Error *err);

#endif
