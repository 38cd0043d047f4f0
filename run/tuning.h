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

// From here on products are computed as the file says; measure: those it does not know are timed when they are called,
// which leaves nothing of worth where their results should be. Returns how much the file knows, for the end.
// Collective, as is the other.
size_t tuning_begin(Rank *r, bool measure);
// What has been timed on any rank since goes to the file, and to all ranks; nothing is timed any more. Says so.
void tuning_end(Rank *r, size_t known);

#endif
