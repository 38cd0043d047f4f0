// --eval-by-position: the mean loss at each position of the context, which tells what a longer context is worth to a model:
// the target at position i is predicted from i + 1 tokens.
#ifndef RUN_POSITIONS_H
#define RUN_POSITIONS_H

#include "train_gpt.h"

typedef struct PositionLosses PositionLosses;

// That the file can be written. Before the run, by the process that will write it.
bool positions_check(const Run *run, Error *err);
// Collective, as all of them; ends the ranks where there is no memory (68 bytes for each token of the context).
// windows: of all replicas.
PositionLosses *positions_open(Rank *r, int64_t windows);
// Adds the losses of the first `count` sequences of the pass that was just classified, which are the windows from
// number `first` on. Waits for the device.
void positions_add(PositionLosses *positions, Rank *r, int64_t first, int64_t count);
// Sums over all ranks and, where `write`, writes the file: "position,loss,windows,part_1,...,part_8", nats. `loss` is
// the mean over all windows; parts are the means over the first eighth of them, the second, ... (fewer parts where
// windows are fewer). A file that cannot be written is told on standard error, and nothing else comes of it: training
// is worth more.
void positions_close(PositionLosses *positions, Rank *r, bool write);

#endif
