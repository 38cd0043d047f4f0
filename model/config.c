// What makes a configuration sound, and how it is written as config.json.
//
// The keys are those of transformers' GPT2Config, LlamaConfig, MistralConfig and Qwen2Config. The rotary embedding is
// written in the older form (rope_theta and rope_scaling), which every version of the library that knows these classes
// reads. What the file had that the model came from and that is not this program's to say stays as it was: tokens,
// dropout, the keys of other tasks.
#include "model/config.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "model/config_keys.h"
#include "model/config_path.h"
#include "model/mixer.h"

// ---- checking ----

// Far above any model, and small enough that products of two sizes fit 64 bits.
static const int64_t MAX_SIZE = (INT64_C(1) << 31) - 1;

static bool check_size(const char *what, int64_t value, Error *err) {
    if (value < 1 || value > MAX_SIZE)
        return error_usage(err, "%s is %" PRId64 "; it must be from 1 to %" PRId64, what, value, MAX_SIZE);
    return true;
}

static bool check_sizes(const ModelConfig *c, Error *err) {
    return check_size("the vocabulary", c->vocab_size, err) &&
           check_size("the number of layers (--layers)", c->layers, err) &&
           check_size("the number of heads (--heads)", c->heads, err) &&
           check_size("the number of key/value heads (--kv-heads)", c->kv_heads, err) &&
           check_size("the width (--dim)", c->dim, err) &&
           check_size("the width of the MLP (--ffn)", c->ffn_dim, err) &&
           check_size("the number of positions (--context)", c->max_positions, err);
}

static bool check_heads(const ModelConfig *c, Error *err) {
    if (c->head_dim < 1 && c->dim % c->heads != 0)
        return error_usage(err, "--heads %" PRId64 " does not divide --dim %" PRId64, c->heads, c->dim);
    if (!check_size("the width of a head (--dim / --heads)", c->head_dim, err)) return false;
    if (c->head_dim > CONFIG_MAX_HEAD_DIM)
        return error_usage(err, "the width of a head is %" PRId64 " (--dim / --heads); at most %d is supported",
                           c->head_dim, CONFIG_MAX_HEAD_DIM);
    if (c->heads % c->kv_heads != 0)
        return error_usage(err, "--kv-heads %" PRId64 " does not divide --heads %" PRId64, c->kv_heads, c->heads);
    if (c->architecture == ARCH_GPT2) {
        if (c->heads * c->head_dim != c->dim)
            return error_usage(
                err, "--heads %" PRId64 " does not divide --dim %" PRId64 " (gpt2 has heads x head width = width)",
                c->heads, c->dim);
        if (c->kv_heads != c->heads)
            return error_usage(
                err, "--kv-heads %" PRId64 " with --arch gpt2, where every head has its own keys (%" PRId64 ")",
                c->kv_heads, c->heads);
    } else if (c->head_dim % 2 != 0) {
        return error_usage(err,
                           "the width of a head is %" PRId64 "; rotary positions turn pairs, so it must be even "
                           "(--dim / --heads)",
                           c->head_dim);
    }
    return true;
}

static bool check_biases(const ModelConfig *c, Error *err) {
    switch (c->architecture) {
    case ARCH_GPT2:
        return (c->qkv_bias && c->out_bias && c->mlp_bias) || error_usage(err, "gpt2 has biases on every matrix");
    case ARCH_LLAMA:
        return c->qkv_bias == c->out_bias ||
               error_usage(
                   err, "llama has biases on all of q, k, v and the attention's output, or on none; qwen2 has them on "
                        "q, k, v alone");
    case ARCH_QWEN2:
        return (c->qkv_bias && !c->out_bias && !c->mlp_bias) ||
               error_usage(err, "qwen2 has biases on q, k and v and nowhere else");
    }
    return error_usage(err, "unknown architecture number %d", (int)c->architecture);
}

static bool positive(double x) { return isfinite(x) && x > 0; }
static bool absent_or_positive(double x) { return x == 0 || positive(x); }

static bool check_rope(const ModelConfig *c, Error *err) {
    const RopeScaling *s = &c->rope_scaling;
    if (!(isfinite(c->rope_theta) && c->rope_theta > 1))
        return error_usage(err, "--rope-theta is %g; it must be above 1", c->rope_theta);
    if (s->type == ROPE_DEFAULT) return true;
    if (!(isfinite(s->factor) && s->factor >= 1))
        return error_usage(err, "rope_scaling's factor is %g; it must be at least 1", s->factor);
    if (s->type == ROPE_LINEAR) return true;
    if (!positive(s->original_max_positions))
        return error_usage(err, "rope_scaling's original_max_position_embeddings is %g; it must be above 0",
                           s->original_max_positions);
    if (s->type == ROPE_LLAMA3) {
        if (!positive(s->low_freq_factor) || !isfinite(s->high_freq_factor) ||
            s->high_freq_factor <= s->low_freq_factor)
            return error_usage(
                err,
                "rope_scaling's low_freq_factor %g and high_freq_factor %g must be above 0, the second above "
                "the first",
                s->low_freq_factor, s->high_freq_factor);
        return true;
    }
    if (!absent_or_positive(s->beta_fast) || !absent_or_positive(s->beta_slow) ||
        !absent_or_positive(s->attention_factor) || !absent_or_positive(s->mscale) ||
        !absent_or_positive(s->mscale_all_dim))
        return error_usage(
            err, "rope_scaling's beta_fast, beta_slow, attention_factor, mscale and mscale_all_dim must be above 0");
    return true;
}

static bool check_windows(const ModelConfig *c, Error *err) {
    if (c->window_period < 0 || c->window_period > CONFIG_MAX_WINDOWS || c->full_layers < 0)
        return error_usage(err, "a pattern of %" PRId64 " windows (--window); at most %d are supported",
                           c->window_period, CONFIG_MAX_WINDOWS);
    for (int64_t i = 0; i < c->window_period; i++)
        if (c->windows[i] < 0 || c->windows[i] > MAX_SIZE)
            return error_usage(err, "a window is %" PRId64 " (--window); it must be from 0 to %" PRId64, c->windows[i],
                               MAX_SIZE);
    return true;
}

bool config_has_windows(const ModelConfig *c, int64_t tokens) {
    int64_t layers = c->layers - c->full_layers < c->window_period ? c->layers : c->full_layers + c->window_period;
    for (int64_t l = c->full_layers; l < layers; l++)
        if (config_window(c, l, tokens) > 0) return true;
    return false;
}

bool config_check(const ModelConfig *c, Error *err) {
    if (!check_sizes(c, err) || !check_heads(c, err) || !check_biases(c, err) || !check_windows(c, err)) return false;
    if (!positive(c->norm_epsilon))
        return error_usage(err, "the norms' epsilon is %g; it must be above 0", c->norm_epsilon);
    if (!(isfinite(c->init_std) && c->init_std >= 0))
        return error_usage(err, "the initial standard deviation is %g; it must not be negative", c->init_std);
    if (c->bos_token < -1 || c->eos_token < -1)
        return error_usage(err, "the tokens that begin and end a text are %" PRId64 " and %" PRId64 "; the least is 0",
                           c->bos_token, c->eos_token);
    return c->architecture == ARCH_GPT2 || check_rope(c, err);
}

// ---- writing ----

// Every member but the last ends in a comma, so writing them in order is enough; `indent` is the nesting.
static void put_integer(FILE *file, int indent, const char *key, int64_t value) {
    fprintf(file, "%*s\"%s\": %" PRId64 ",\n", indent, "", key, value);
}

static void put_real(FILE *file, int indent, const char *key, double value) {
    char text[JSON_REAL_CHARS];
    json_format_real(value, text);
    fprintf(file, "%*s\"%s\": %s,\n", indent, "", key, text);
}

static void put_whole_or_real(FILE *file, int indent, const char *key, double value) {
    if (value == floor(value) && value < 0x1p53) put_integer(file, indent, key, (int64_t)value);
    else put_real(file, indent, key, value);
}

// What the file had that the model came from.
typedef struct Source {
    const Json *root; // NULL: none
    bool *written;    // (root->count) which members are
} Source;

static void put_member(FILE *file, Source *source, int i) {
    fputs("  ", file);
    json_print_string(file, source->root->key[i]);
    fputs(": ", file);
    json_print(file, &source->root->item[i]);
    fputs(",\n", file);
    source->written[i] = true;
}

// A key that is not this program's to set: as the source has it, else `usual`.
static void put_theirs(FILE *file, Source *source, const char *key, const char *usual) {
    for (int i = 0; source->root != NULL && i < source->root->count; i++)
        if (strcmp(source->root->key[i], key) == 0) {
            put_member(file, source, i);
            return;
        }
    fprintf(file, "  \"%s\": %s,\n", key, usual);
}

static void put_bool(FILE *file, const char *key, bool value) {
    fprintf(file, "  \"%s\": %s,\n", key, value ? "true" : "false");
}

static void put_token(FILE *file, Source *source, const char *key, int64_t token) {
    char usual[24] = "null";
    if (token >= 0) snprintf(usual, sizeof usual, "%" PRId64, token);
    put_theirs(file, source, key, usual); // perhaps a list
}

static void put_rope(FILE *file, const ModelConfig *c) {
    static const char *const names[] = {[ROPE_LINEAR] = "linear", [ROPE_LLAMA3] = "llama3", [ROPE_YARN] = "yarn"};
    const RopeScaling *s = &c->rope_scaling;
    put_real(file, 2, "rope_theta", c->rope_theta);
    if (s->type == ROPE_DEFAULT) {
        fprintf(file, "  \"rope_scaling\": null,\n");
        return;
    }
    fprintf(file, "  \"rope_scaling\": {\n");
    put_real(file, 4, "factor", s->factor);
    if (s->type == ROPE_LLAMA3) {
        put_real(file, 4, "low_freq_factor", s->low_freq_factor);
        put_real(file, 4, "high_freq_factor", s->high_freq_factor);
    }
    if (s->type != ROPE_LINEAR)
        put_whole_or_real(file, 4, "original_max_position_embeddings", s->original_max_positions);
    if (s->type == ROPE_YARN) {
        if (s->beta_fast > 0) put_real(file, 4, "beta_fast", s->beta_fast);
        if (s->beta_slow > 0) put_real(file, 4, "beta_slow", s->beta_slow);
        if (s->attention_factor > 0) put_real(file, 4, "attention_factor", s->attention_factor);
        if (s->mscale > 0) put_real(file, 4, "mscale", s->mscale);
        if (s->mscale_all_dim > 0) put_real(file, 4, "mscale_all_dim", s->mscale_all_dim);
        if (!s->truncate) fprintf(file, "    \"truncate\": false,\n");
    }
    fprintf(file, "    \"rope_type\": \"%s\"\n  },\n", names[s->type]);
}

// The class that a model is written as, by what its layers see: that of its architecture, Mistral's, or one of ours.
typedef enum SavedClass { OF_ARCHITECTURE, MISTRAL, OURS } SavedClass;

// Whether all layers from full_layers on have the same window, which is none of those that see everything.
static bool same_window(const ModelConfig *c) {
    for (int64_t l = c->full_layers; l < c->layers && l < c->full_layers + c->window_period; l++) {
        int64_t window = config_window(c, l, INT64_MAX);
        if (window == 0 || window != config_window(c, c->full_layers, INT64_MAX)) return false;
    }
    return true;
}

// Whether some layer mixes tokens otherwise than by attention, the first of the token mixers.
static bool has_other_mixers(const ModelConfig *c) {
    for (int i = 0; i < c->mixers; i++)
        if (c->mixer[i].number != 0) return true;
    return false;
}

static SavedClass saved_class(const ModelConfig *c, const Source *source) {
    const Json *type = source->root == NULL ? NULL : json_get(source->root, "model_type");
    bool was_mistral = type != NULL && type->type == JSON_STRING && strcmp(type->string, "mistral") == 0;
    bool windows = config_has_windows(c, INT64_MAX);
    if (has_other_mixers(c)) return OURS;
    bool could_be = c->architecture == ARCH_LLAMA && !c->qkv_bias && !c->mlp_bias;
    if (!windows) return was_mistral && could_be ? MISTRAL : OF_ARCHITECTURE;
    if (could_be && same_window(c) && c->full_layers == 0) return MISTRAL;
    return c->architecture == ARCH_QWEN2 && same_window(c) ? OF_ARCHITECTURE : OURS;
}

static void put_class(FILE *file, const ModelConfig *c, SavedClass class) {
    static const char *const names[] = {"GPT2LMHeadModel", "LlamaForCausalLM", "Qwen2ForCausalLM"};
    static const char *const types[] = {"gpt2", "llama", "qwen2"};
    const char *name = class == MISTRAL ? "MistralForCausalLM" : names[c->architecture];
    const char *type = class == MISTRAL ? "mistral" : types[c->architecture];
    fprintf(file, "  \"architectures\": [\"%s%s\"],\n  \"model_type\": \"%s%s\",\n", class == OURS ? "TrainGpt" : "",
            name, class == OURS ? "train_gpt_" : "", type);
}

// A member of the source that does not hold any more.
static void drop(Source *source, const char *key) {
    for (int i = 0; source->root != NULL && i < source->root->count; i++)
        if (strcmp(source->root->key[i], key) == 0) source->written[i] = true;
}

static bool had_windows(const Source *source) {
    const Json *use = source->root == NULL ? NULL : json_get(source->root, "use_sliding_window");
    return use != NULL && use->type == JSON_BOOL && use->boolean;
}

static void put_windows(FILE *file, const ModelConfig *c, Source *source, SavedClass class) {
    bool windows = config_has_windows(c, INT64_MAX);
    int64_t window = windows ? config_window(c, c->full_layers, INT64_MAX) : 0; // where all are the same
    if (class == MISTRAL && windows) put_integer(file, 2, "sliding_window", window);
    if (class == MISTRAL && !windows) fprintf(file, "  \"sliding_window\": null,\n");
    if (class == OURS && windows) {
        fprintf(file, "  \"window_pattern\": [");
        for (int64_t l = 0; l < c->window_period; l++) fprintf(file, "%s%" PRId64, l == 0 ? "" : ", ", c->windows[l]);
        fprintf(file, "],\n");
        put_integer(file, 2, "full_window_layers", c->full_layers);
    }
    if (class == MISTRAL) drop(source, "sliding_window");
    if (c->architecture == ARCH_QWEN2 && class == OF_ARCHITECTURE) {
        put_bool(file, "use_sliding_window", windows);
        if (windows) {
            put_integer(file, 2, "sliding_window", window);
            put_integer(file, 2, "max_window_layers", c->full_layers);
        }
        if (had_windows(source)) drop(source, "layer_types"); // which the class derives from the others
        drop(source, "use_sliding_window");
    }
    if (!windows) return; // what is not in force stays as it was
    drop(source, "use_sliding_window");
    drop(source, "sliding_window");
    drop(source, "max_window_layers");
    drop(source, "layer_types");
}

static void put_mixers(FILE *file, const ModelConfig *c) {
    char pattern[MIXERS_TEXT];
    if (!has_other_mixers(c)) return;
    mixers_write(c, pattern);
    fprintf(file, "  \"token_mixers\": \"%s\",\n", pattern);
}

static void put_gpt2(FILE *file, const ModelConfig *c, Source *source) {
    put_integer(file, 2, "vocab_size", c->vocab_size);
    put_integer(file, 2, "n_positions", c->max_positions);
    put_integer(file, 2, "n_embd", c->dim);
    put_integer(file, 2, "n_layer", c->layers);
    put_integer(file, 2, "n_head", c->heads);
    put_integer(file, 2, "n_inner", c->ffn_dim);
    put_theirs(file, source, "activation_function", "\"gelu_new\"");
    put_theirs(file, source, "resid_pdrop", "0.0");
    put_theirs(file, source, "embd_pdrop", "0.0");
    put_theirs(file, source, "attn_pdrop", "0.0");
    put_real(file, 2, "layer_norm_epsilon", c->norm_epsilon);
}

static void put_llama(FILE *file, const ModelConfig *c, Source *source, bool biases) {
    bool qwen2 = c->architecture == ARCH_QWEN2;
    put_integer(file, 2, "vocab_size", c->vocab_size);
    put_integer(file, 2, "max_position_embeddings", c->max_positions);
    put_integer(file, 2, "hidden_size", c->dim);
    put_integer(file, 2, "intermediate_size", c->ffn_dim);
    put_integer(file, 2, "num_hidden_layers", c->layers);
    put_integer(file, 2, "num_attention_heads", c->heads);
    put_integer(file, 2, "num_key_value_heads", c->kv_heads);
    if (!qwen2 || c->head_dim * c->heads != c->dim) put_integer(file, 2, "head_dim", c->head_dim);
    put_theirs(file, source, "hidden_act", "\"silu\"");
    put_theirs(file, source, "attention_dropout", "0.0");
    put_real(file, 2, "rms_norm_eps", c->norm_epsilon);
    if (!qwen2 && biases) {
        put_bool(file, "attention_bias", c->qkv_bias);
        put_bool(file, "mlp_bias", c->mlp_bias);
    }
    put_rope(file, c);
}

static void put_kept(FILE *file, Architecture architecture, Source *source) {
    for (int i = 0; source->root != NULL && i < source->root->count; i++) {
        const ConfigKey *key = config_key(architecture, source->root->key[i]);
        bool ours = key != NULL && config_key_is_ours(key);
        if (!ours && !source->written[i]) put_member(file, source, i);
    }
}

static void put_all(FILE *file, const ModelConfig *c, Source *source) {
    SavedClass class = saved_class(c, source);
    fprintf(file, "{\n");
    put_class(file, c, class);
    if (c->architecture == ARCH_GPT2) put_gpt2(file, c, source);
    else put_llama(file, c, source, class != MISTRAL); // Mistral has none, and no switch for them
    put_windows(file, c, source, class);
    put_mixers(file, c);
    put_real(file, 2, "initializer_range", c->init_std);
    put_bool(file, "tie_word_embeddings", c->tied_embeddings);
    put_token(file, source, "bos_token_id", c->bos_token);
    put_token(file, source, "eos_token_id", c->eos_token);
    put_theirs(file, source, "use_cache", "true");
    put_kept(file, c->architecture, source);
    fprintf(file, "  \"torch_dtype\": \"float32\"\n}\n");
}

bool config_write(const ModelConfig *c, const Json *source, const char *path, Error *err) {
    char name[CONFIG_PATH_MAX];
    if (!config_check(c, err) || !config_path(path, name, err)) return false;
    Source members = {source, calloc(source != NULL ? (size_t)source->count + 1 : 1, sizeof(bool))};
    if (members.written == NULL) return error_set(err, "%s: out of memory for writing it", name);
    FILE *file = fopen(name, "w");
    bool ok = file != NULL;
    if (ok) {
        put_all(file, c, &members);
        ok = ferror(file) == 0;
        ok = fclose(file) == 0 && ok;
    }
    free(members.written);
    return ok || error_set(err, "%s: cannot write: %s", name, strerror(errno));
}
