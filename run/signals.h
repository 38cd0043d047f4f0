// Signals: what asks a run to stop, and what asks it to save and go on.
//
// SIGINT, SIGTERM and SIGHUP end the program at once while nothing would be lost by it (before the first step, after the
// last checkpoint). In between they are requests: the step at work is finished and saved. The same signal again, two
// seconds or more after the first, ends it at once all the same; sooner it is the same request, since launchers and
// terminals pass one on by several ways. SIGUSR1, which batch systems send as a warning, asks to save and go on.
//
// What was ignored when the program started (nohup; a shell's background jobs) stays ignored.
#ifndef RUN_SIGNALS_H
#define RUN_SIGNALS_H

#include <stdbool.h>

void signals_install(void); // at the start of the program: stop signals end it at once

// From now on stop signals are requests. The first one is answered with `line` on standard error, which lives as long
// as the program; NULL: with nothing.
void signals_are_requests(const char *line);
void signals_end_at_once(void); // from now on again

// The signal by which this process was asked to stop; 0: none. Of several the one that matters most to who waits:
// SIGTERM, SIGINT, SIGHUP.
int signals_stop(void);
bool signals_take_save(void); // SIGUSR1 has come since the last call
// Another rank was asked to stop by `number`: signals_stop tells it here too. This process's own first signal is still
// to come.
void signals_stop_elsewhere(int number);

#endif
