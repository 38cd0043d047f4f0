// How the ranks of engine `sockets` end together, with one line. Private to that engine.
#ifndef COMM_VERDICT_H
#define COMM_VERDICT_H

#include "comm/wire.h"

// For wire_start.
extern const WireEvents verdict_events;

// Asks that this line end all ranks, if no other has been before. Returns; the postman then ends the process. The lock
// is held.
void verdict_report(Wire *wire, const Error *err);

#endif
