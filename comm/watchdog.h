// A thread that watches over a group's operations on a device, since the rank's own thread does not wait for them: the
// first that fails, or does not end within the time-out, ends all ranks with a message. Private to comm/.
#ifndef COMM_WATCHDOG_H
#define COMM_WATCHDOG_H

#include "comm/collectives.h"
#include "comm/engine.h"
#include "layers/device.h"

typedef struct Watchdog Watchdog;

// Begins to watch `comm`; until watchdog_member, only that its calls return.
Watchdog *watchdog_start(Comm *comm);
// Instead of watchdog_leave, where the call was `join` of the device's collectives: it returned `member`, and began
// nothing.
void watchdog_member(Watchdog *dog, void *member);
void watchdog_stop(Watchdog *dog);

// Around every call that hands operations to the device, once STREAM_EXCHANGE waits for the work they need: that time
// is not theirs. `name`: a string literal.
void watchdog_enter(Watchdog *dog, const char *name);
void watchdog_leave(Watchdog *dog);

#endif
