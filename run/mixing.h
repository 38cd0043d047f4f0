// --dump-mixing: what each layer's P looks like, for scripts/plot_mixing.
#ifndef RUN_MIXING_H
#define RUN_MIXING_H

#include "train_gpt.h"

// That this run can write it. Before the run.
bool mixing_check(const Run *run, Error *err);
// Writes the file, with the weights as they are now, for the first tokens of the data that `loader` reads. Layers'
// memory and gradients are zeros or of no meaning afterwards. By one rank.
void mixing_dump(Rank *r, const Loader *loader);

#endif
