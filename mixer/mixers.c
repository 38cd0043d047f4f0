// The token mixers that a model can choose from, by number; the first is the default. A new one needs a file of its own
// and a row here.
#include "mixer/attention.h"

extern const Mixer mixer_linear;
extern const Mixer mixer_delta;
extern const Mixer mixer_conv;
extern const Mixer mixer_fourier;
extern const Mixer mixer_mlp;
extern const Mixer mixer_mean;

const Mixer *const token_mixers[] = {
    &mixer_attention,
    &mixer_dilated,
    &mixer_linear,
    &mixer_delta,
    &mixer_conv,
    &mixer_fourier,
    &mixer_mlp,
    &mixer_mean,
    NULL,
};
