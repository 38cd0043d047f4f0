// Whether the token mixers of the model can serve this run, and for what size they are laid out.
#include <string.h>

#include "mixer/attention.h"
#include "run/run_parts.h"

MixerSize run_mixer_size(const Run *run, const Phase *phase, int rank) {
    const Options *o = &run->options;
    return (MixerSize){.config = &run->config,
                       .rows = phase->micro_batch * shard_of(phase->context, (int)o->sp, rank).tokens,
                       .sequences = phase->micro_batch,
                       .element_bytes = run->devices.element_bytes,
                       .context = phase->context,
                       .ranks = (int)o->sp,
                       .rank = rank,
                       .documents = o->document_mask,
                       .kernels = run->devices.mixers};
}

static bool check_in_phase(const Run *run, const Phase *phase, Error *err) {
    const ModelConfig *c = &run->config;
    char text[MIXERS_TEXT], option[MIXERS_TEXT + 16];
    MixerUse use = {.size = run_mixer_size(run, phase, 0), .device = run->devices.kind, .option = option};
    for (int64_t l = 0; l < c->layers && l <= c->mixers; l++) {
        LayerKind kind = layer_kind(c, l);
        mixer_write(&kind.choice, text);
        snprintf(option, sizeof option, "--mixer %s", text);
        use.size.layer = l;
        if (kind.tokens->check != NULL && !kind.tokens->check(&use, err)) return false;
    }
    return true;
}

bool run_check_mixers(const Run *run, Error *err) {
    const Options *o = &run->options;
    const ModelConfig *c = &run->config;
    char text[MIXERS_TEXT];
    for (int i = 0; i < run->phases; i++)
        if (!check_in_phase(run, &run->phase[i], err)) return false;
    mixers_write(c, text);
    const char *const of_attention[] = {"attention", "ulysses", "window"};
    const bool has[] = {run->attends, run->attends, config_has_mixer(c, &mixer_attention)};
    for (int i = 0; i < 3; i++)
        if (!has[i] && options_given(o, of_attention[i]))
            return error_usage(err, "--%s is attention's, and --mixer %s has none: leave it out", of_attention[i], text);
    return true;
}
