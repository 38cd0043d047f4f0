// Sizes by name or by options, and what follows from them.
#include "run/preset.h"

#include <stdio.h>
#include <string.h>

#include "model/mixer.h"

typedef struct Preset {
    const char *name;
    int64_t layers, heads, dim;
} Preset;

static const Preset PRESETS[] = {
    {"gpt2", 12, 12, 768}, {"gpt2-medium", 24, 16, 1024}, {"gpt2-large", 36, 20, 1280}, {"gpt2-xl", 48, 25, 1600}};

enum { DEPTH_MOST = 1024, WIDTH_PER_LAYER = 64, FFN_MULTIPLE = 64 };

static bool preset_named(const char *name, Preset *preset, Error *err) {
    *preset = (Preset){"", 0, 0, 0}; // the options have every size
    if (name == NULL) return true;
    for (size_t i = 0; i < sizeof PRESETS / sizeof PRESETS[0]; i++) {
        if (strcmp(name, PRESETS[i].name) != 0) continue;
        *preset = PRESETS[i];
        return true;
    }
    int depth = 0, used = 0;
    if (sscanf(name, "d%d%n", &depth, &used) == 1 && name[used] == '\0' && depth >= 1 && depth <= DEPTH_MOST) {
        *preset = (Preset){name, depth, depth, (int64_t)WIDTH_PER_LAYER * depth};
        return true;
    }
    return error_usage(err,
                       "--model %s: no such model; give gpt2, gpt2-medium, gpt2-large, gpt2-xl or dN with N from 1 to "
                       "%d; a folder of weights is read by --init",
                       name, DEPTH_MOST);
}

static int64_t given_or(int64_t given, int64_t otherwise) { return given > 0 ? given : otherwise; }

// SwiGLU has three matrices where GELU has two: at 8/3 C they hold as many parameters as 4C (Shazeer 2020).
static int64_t swiglu_width(int64_t dim) { return (8 * dim / 3 + FFN_MULTIPLE - 1) / FFN_MULTIPLE * FFN_MULTIPLE; }

void config_set_windows(ModelConfig *config, const Options *options) {
    _Static_assert((int)OPTIONS_MAX_WINDOWS <= (int)CONFIG_MAX_WINDOWS, "a model has room for all of them");
    if (options->window_count == 0) return;
    memcpy(config->windows, options->windows, sizeof options->windows);
    config->window_period = options->window_count;
    config->full_layers = 0;
}

bool config_from_options(ModelConfig *config, const Options *options, int64_t vocab_size, Error *err) {
    Preset preset;
    if (!preset_named(options->model, &preset, err)) return false;
    bool named_gpt2 =
        options->model != NULL && strncmp(options->model, "gpt2", 4) == 0 && !options_given(options, "arch");
    bool gpt2 = named_gpt2 || options->arch == ARCH_GPT2;
    memset(config, 0, sizeof *config);
    config->architecture = gpt2 ? ARCH_GPT2 : options->qkv_bias ? ARCH_QWEN2 : ARCH_LLAMA;
    config->vocab_size = vocab_size;
    config->layers = given_or(options->layers, preset.layers);
    config->heads = given_or(options->heads, preset.heads);
    config->kv_heads = given_or(options->kv_heads, config->heads);
    config->dim = given_or(options->dim, preset.dim);
    config->head_dim = config->dim / config->heads;
    config->ffn_dim = given_or(options->ffn, gpt2 ? 4 * config->dim : swiglu_width(config->dim));
    config->max_positions = options->context;
    config->norm_epsilon = 1e-5;
    config->init_std = 0.02;
    config->tied_embeddings = !options->untied;
    config->qkv_bias = gpt2 || options->qkv_bias;
    config->out_bias = config->mlp_bias = gpt2;
    config->rope_theta = options->rope_theta;
    config->bos_token = config->eos_token = -1;
    if (options->mixer != NULL && !mixers_read(config, options->mixer, "--mixer", err)) return false;
    config_set_windows(config, options);
    if (config->dim % config->heads != 0)
        return error_usage(err, "--heads %lld does not divide --dim %lld; give a --dim that is a multiple of it",
                           (long long)config->heads, (long long)config->dim);
    if (gpt2 && config->kv_heads != config->heads)
        return error_usage(
            err, "--kv-heads %lld: the gpt2 architecture has as many as heads (%lld); leave it out or use --arch llama",
            (long long)config->kv_heads, (long long)config->heads);
    if (gpt2 && options->untied)
        return error_usage(err, "--untied: the gpt2 architecture ties its classifier; use --arch llama");
    return config_check(config, err);
}
