// What a model is: its sizes and the choices that change its maths, as Hugging Face's config.json states them.
#ifndef MODEL_CONFIG_H
#define MODEL_CONFIG_H

#include <stdint.h>

#include "base/error.h"
#include "base/json.h"

typedef enum Architecture {
    ARCH_GPT2,  // GPT2LMHeadModel
    ARCH_LLAMA, // LlamaForCausalLM
    ARCH_QWEN2  // Qwen2ForCausalLM: the llama architecture with biases on q, k, v
} Architecture;

typedef enum RopeScalingType { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN } RopeScalingType;

typedef struct RopeScaling { // config.json's rope_scaling (or rope_parameters); unused members are 0
    RopeScalingType type;
    double factor;
    double low_freq_factor, high_freq_factor;       // llama3
    double original_max_positions;                  // llama3, yarn
    double beta_fast, beta_slow, attention_factor;  // yarn; attention_factor 0: 0.1 ln(factor) + 1
    double mscale, mscale_all_dim;                  // yarn, DeepSeek's variant; 0: absent
    bool truncate;                                  // yarn: round the correction range to whole pairs (default true)
} RopeScaling;

enum { CONFIG_MAX_HEAD_DIM = 256, CONFIG_MAX_WINDOWS = 32, CONFIG_MAX_MIXERS = 16 }; // the first: what kernels take

// A token mixer as layers have it, by its number (model/mixer.h), and its options: "conv:gated", "dilated:2048,4".
typedef struct MixerChoice {
    int number;
    bool word;       // the option that is a word
    int values;      // how many of those that are numbers
    double value[2]; // unused ones are 0
} MixerChoice;

typedef struct ModelConfig {
    Architecture architecture;
    int64_t vocab_size;    // V
    int64_t layers;        // L
    int64_t heads;         // H
    int64_t kv_heads;      // KV (= H for gpt2)
    int64_t head_dim;      // D, usually C / H
    int64_t dim;           // C
    int64_t ffn_dim;       // F: gpt2 4C
    int64_t max_positions; // rows of gpt2's position table; for llama only what is written to config.json
    double norm_epsilon;
    double init_std;       // initializer_range
    bool tied_embeddings;
    bool qkv_bias, out_bias, mlp_bias; // gpt2: all true
    double rope_theta;
    RopeScaling rope_scaling;
    int64_t bos_token, eos_token; // -1: none
    int mixers;                   // in the pattern of token mixers that repeats over the layers; 0: all are the first
    MixerChoice mixer[CONFIG_MAX_MIXERS];
    // How many tokens attention looks back on, by layer: windows[l % window_period]; 0: all of them. But the first
    // full_layers see all tokens whatever stands there. window_period 0: so do all layers.
    int64_t windows[CONFIG_MAX_WINDOWS], window_period, full_layers;
} ModelConfig;

// `path` is the file, or the folder that holds it as config.json. A key that would change the maths and is not
// supported (another activation, attention scaling by layer, ...) is an error that names the key. Dropout is 0 here.
bool config_read(ModelConfig *config, const char *path, Error *err);
// Writes config.json as the Hugging Face class expects it: GPT2, Llama, Qwen2, or with the same window in every layer
// Mistral. What no class has, such as windows that differ, is written under a name of our own, so that other programs
// refuse it instead of computing something else. `path` as above. `source`: the root of the file that the model came
// from, of the same architecture, whose other keys are kept as they were (NULL: none).
bool config_write(const ModelConfig *config, const Json *source, const char *path, Error *err);
// Sizes are positive, H divides C or head_dim is given, KV divides H, D is even for rotary, ...; options are named.
bool config_check(const ModelConfig *config, Error *err);

// The window of a layer among sequences of `tokens`; 0: it sees all of them.
static inline int64_t config_window(const ModelConfig *config, int64_t layer, int64_t tokens) {
    if (config->window_period == 0 || layer < config->full_layers) return 0;
    int64_t window = config->windows[layer % config->window_period];
    return window < tokens ? window : 0;
}
// Whether some layer does not see all of `tokens`.
bool config_has_windows(const ModelConfig *config, int64_t tokens);

// Rotary positions (llama, qwen2) or learned ones (gpt2).
static inline bool config_is_rotary(const ModelConfig *config) { return config->architecture != ARCH_GPT2; }

// The longest sequence that it can see; INT64_MAX: rotary positions have no end.
static inline int64_t config_positions(const ModelConfig *config) {
    return config_is_rotary(config) ? INT64_MAX : config->max_positions;
}

// Cosine and sine of the rotary angle of each of D/2 pairs at `count` positions, computed in double precision (and,
// with yarn, multiplied by its attention factor), into fp32 tables (count, D/2).
void rope_tables(const ModelConfig *config, const int32_t *positions, int64_t count, float *cos_table, float *sin_table);

#endif
