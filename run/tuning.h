// --tune FILE: the algorithms of a GPU's matrix products are those that the file says, and where it says none, those
// that a clock finds fastest; they are then added to it.
//
// An algorithm shows in the bits, and a clock never says the same twice. So the file decides: what was timed is added
// at its end, and counts once it is read back; of two lines about one product the first counts. The same file gives the
// same bits, on every rank, since rank 0 alone reads it for all. Whatever is wrong with it is said in one line and
// harms no run: of its lines those serve that name an algorithm which the library itself proposes, and a file that is
// not one of ours stays as it is.
#ifndef RUN_TUNING_H
#define RUN_TUNING_H

#include "train_gpt.h"

// Before the first step. measure: `step` is rehearsed, once in each phase, on the loader's next sequences, which are
// written to `window`, and the products that the file does not know are timed when they are called. Nothing of the rehearsal stays: a step
// begins by zeroing gradients and sums, and every other result is written before it is read. Data that cannot be read
// are left for the first step to report. Collective. Says what became of the file.
void tune(Rank *r, int64_t *window, bool measure, bool (*step)(Rank *, const int64_t *window, Error *));

#endif
