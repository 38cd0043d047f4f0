// The model that the command line asks for: named sizes, and what is derived where nothing is said.
#ifndef RUN_PRESET_H
#define RUN_PRESET_H

#include "model/config.h"
#include "terminal/options.h"

// A new model of `vocab_size` tokens. --model names sizes (gpt2, gpt2-medium, gpt2-large, gpt2-xl: Radford et al. 2019,
// table 2; dN: N layers of width 64N with N heads); --layers, --heads, --kv-heads, --dim, --ffn override them one by
// one. A gpt2 model learns one position vector for each of --context positions.
bool config_from_options(ModelConfig *config, const Options *options, int64_t vocab_size, Error *err);
// --window, where it is given, for a model of a checkpoint too: no weight depends on it.
void config_set_windows(ModelConfig *config, const Options *options);

#endif
