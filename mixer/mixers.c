// The token mixers that a model can choose from, by number; the first is the default. A new one needs a file of its own
// and a row here.
#include "model/mixer.h"

extern const Mixer mixer_attention;
extern const Mixer mixer_delta;

const Mixer *const token_mixers[] = {&mixer_attention, &mixer_delta, NULL};
