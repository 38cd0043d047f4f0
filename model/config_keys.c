// Every key that may stand in config.json has a row in one table, which says what becomes of it: a size or a choice is
// taken over; a switch that would change the maths must stand where it changes nothing; what concerns only other tasks,
// generation, files or the library is passed over. null stands for absent.
//
// What is not in the table might change the maths, and is refused. Some keys are left out on purpose, though files have
// them: quantization_config and quantization (weights of other types), auto_map (code of the file's own),
// dual_chunk_attention_config (another attention), sizes under another class's names. And sliding_window, which Mistral
// has, is not for llama.
#include "model/config_keys.h"

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

#include "model/mixer.h"

// ---- what a rule may do ----

static bool refuse(const ConfigReader *r, const ConfigKey *rule, const char *what) {
    return error_set(r->err, "%s: \"%s\" %s", r->path, rule->key, what);
}

static bool take_size(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    if (value->type == JSON_NULL) return true;
    if (!value->is_integer || value->integer < 1) return refuse(r, rule, "must be a whole number of at least 1");
    memcpy((char *)r->config + rule->member, &value->integer, sizeof(int64_t));
    return true;
}

static bool take_real(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    if (value->type == JSON_NULL) return true;
    if (value->type != JSON_NUMBER) return refuse(r, rule, "must be a number");
    memcpy((char *)r->config + rule->member, &value->number, sizeof(double));
    return true;
}

static bool take_choice(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    if (value->type == JSON_NULL) return true;
    if (value->type != JSON_BOOL) return refuse(r, rule, "must be true or false");
    memcpy((char *)r->config + rule->member, &value->boolean, sizeof(bool));
    return true;
}

static bool is_token(const Json *value) { return value->is_integer && value->integer >= 0; }

// One token, or a list of which the first is taken; null: none.
static bool take_token(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    int64_t token = -1;
    const Json *first = value->type == JSON_ARRAY && value->count > 0 ? &value->item[0] : value;
    bool sound = value->type == JSON_NULL || is_token(first);
    for (int i = 0; value->type == JSON_ARRAY && i < value->count; i++) sound = sound && is_token(&value->item[i]);
    if (!sound) return refuse(r, rule, "must be a token's number");
    if (value->type != JSON_NULL) token = first->integer;
    memcpy((char *)r->config + rule->member, &token, sizeof token);
    return true;
}

// The program's own to write, but of no use to read: the class is found before the keys are looked at, and weights of
// every type are read.
static bool written_here(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    (void)r, (void)rule, (void)value;
    return true;
}

static bool pass_over(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    (void)r, (void)rule, (void)value;
    return true;
}

// Dropout belongs to training and is 0 here, whatever the checkpoint was trained with.
static bool pass_over_dropout(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    if (value->type == JSON_NULL || (value->type == JSON_NUMBER && value->number >= 0 && value->number < 1))
        return true;
    return refuse(r, rule, "must be a number from 0 to below 1");
}

static bool must_be_true(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    if (value->type == JSON_NULL || (value->type == JSON_BOOL && value->boolean)) return true;
    return refuse(r, rule, "is supported only as true");
}

static bool must_be_false(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    if (value->type == JSON_NULL || (value->type == JSON_BOOL && !value->boolean)) return true;
    return refuse(r, rule, "is supported only as false");
}

static bool must_be_zero(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    if (value->type == JSON_NULL || (value->type == JSON_NUMBER && value->number == 0)) return true;
    return refuse(r, rule, "is supported only as 0");
}

static bool must_be_one(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    if (value->type == JSON_NULL || (value->type == JSON_NUMBER && value->number == 1)) return true;
    return refuse(r, rule, "is supported only as 1");
}

static bool must_be_empty(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    if (value->type == JSON_NULL || ((value->type == JSON_ARRAY || value->type == JSON_OBJECT) && value->count == 0))
        return true;
    return refuse(r, rule, "is not supported");
}

// One of a few names, which end with NULL.
static bool must_be_one_of(const ConfigReader *r, const ConfigKey *rule, const Json *value, const char *const *names) {
    if (value->type == JSON_NULL) return true;
    for (int i = 0; names[i] != NULL; i++)
        if (value->type == JSON_STRING && strcmp(value->string, names[i]) == 0) return true;
    return error_set(r->err, "%s: \"%s\" is supported only as \"%s\" or \"%s\"", r->path, rule->key, names[0],
                     names[1]);
}

// Names of the tanh approximation; they differ in the order of its operations.
static bool must_be_tanh_gelu(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    static const char *const names[] = {"gelu_new",  "gelu_pytorch_tanh", "gelu_python_tanh",
                                        "gelu_fast", "gelu_accurate",     NULL};
    return must_be_one_of(r, rule, value, names);
}

// Names of x * sigmoid(x).
static bool must_be_silu(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    static const char *const names[] = {"silu", "swish", NULL};
    return must_be_one_of(r, rule, value, names);
}

static bool unknown_here(const ConfigReader *r, const ConfigKey *rule) {
    return refuse(r, rule, "is unknown for this architecture: it might change the model; remove it if it does not");
}

static bool take_mistral_window(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    ModelConfig *c = r->config;
    if (!r->mistral && value->type != JSON_NULL) return unknown_here(r, rule);
    c->window_period = value->type == JSON_NULL ? 0 : 1; // null: none, where an absent one is the class's own
    if (value->type == JSON_NULL) return true;
    if (!value->is_integer || value->integer < 1)
        return refuse(r, rule, "must be a whole number of at least 1, or null");
    c->windows[0] = value->integer;
    return true;
}

static bool take_pattern(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    ModelConfig *c = r->config;
    if (!r->ours) return unknown_here(r, rule);
    bool sound = value->type == JSON_ARRAY && value->count >= 1 && value->count <= CONFIG_MAX_WINDOWS;
    for (int i = 0; sound && i < value->count; i++) {
        sound = value->item[i].is_integer && value->item[i].integer >= 0;
        c->windows[i] = value->item[i].integer;
    }
    if (!sound) return refuse(r, rule, "must be 1 to 32 whole numbers of at least 0");
    c->window_period = value->count;
    return true;
}

static bool take_full_layers(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    if (!r->ours) return unknown_here(r, rule);
    if (!value->is_integer || value->integer < 0) return refuse(r, rule, "must be a whole number of at least 0");
    r->config->full_layers = value->integer;
    return true;
}

static bool take_mixers(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    Error why;
    if (!r->ours) return unknown_here(r, rule);
    if (value->type != JSON_STRING) return refuse(r, rule, "must be a list of names, as \"linear,attention\"");
    return mixers_read(r->config, value->string, "\"token_mixers\"", &why) ||
           error_set(r->err, "%s: %.800s", r->path, why.message);
}

static bool integer_of(const ConfigReader *r, const char *key, int64_t absent, int64_t *out) {
    const Json *value = json_get(r->root, key);
    *out = value == NULL || value->type == JSON_NULL ? absent : value->integer;
    return value == NULL || value->type == JSON_NULL || (value->is_integer && value->integer >= 0);
}

// use_sliding_window: then sliding_window is that of the layers from max_window_layers on, and layer_types, which newer
// files have, must say the same. The numbers are the class's own where the file has none.
static bool take_qwen2_windows(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    ModelConfig *c = r->config;
    const Json *window = json_get(r->root, "sliding_window");
    if (value->type == JSON_NULL || (value->type == JSON_BOOL && !value->boolean)) return true;
    if (value->type != JSON_BOOL) return refuse(r, rule, "must be true or false");
    if (window != NULL && window->type == JSON_NULL) return true;
    c->window_period = 1;
    return (integer_of(r, "sliding_window", 4096, &c->windows[0]) && c->windows[0] > 0 &&
            integer_of(r, "max_window_layers", 28, &c->full_layers)) ||
           refuse(r, rule, "needs \"sliding_window\" above 0 and \"max_window_layers\" of at least 0");
}

// By place: full attention first, then windows, as use_sliding_window and max_window_layers put it.
static bool must_be_as_windows(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    const Json *use = json_get(r->root, "use_sliding_window"), *window = json_get(r->root, "sliding_window");
    int64_t full = value->count;
    if (value->type == JSON_NULL) return true;
    if (use != NULL && use->type == JSON_BOOL && use->boolean && (window == NULL || window->type != JSON_NULL) &&
        !integer_of(r, "max_window_layers", 28, &full))
        return true; // refused there
    bool same = value->type == JSON_ARRAY;
    for (int i = 0; same && i < value->count; i++)
        same = value->item[i].type == JSON_STRING &&
               strcmp(value->item[i].string, i < full ? "full_attention" : "sliding_attention") == 0;
    return same || refuse(r, rule,
                          "is supported only as \"use_sliding_window\" and \"max_window_layers\" have it: "
                          "\"full_attention\" first, then \"sliding_attention\"");
}

static bool must_be_full_attention(const ConfigReader *r, const ConfigKey *rule, const Json *value) {
    if (value->type == JSON_NULL) return true;
    bool full = value->type == JSON_ARRAY;
    for (int i = 0; full && i < value->count; i++)
        full = value->item[i].type == JSON_STRING && strcmp(value->item[i].string, "full_attention") == 0;
    return full || refuse(r, rule, "is supported only with \"full_attention\" for every layer");
}

// ---- rotary scaling ----

typedef enum RopeKeyValue { POSITIVE, BOOLEAN, ONE, NAME } RopeKeyValue;

typedef struct RopeKey {
    const char *key;
    RopeKeyValue value;
    unsigned types; // bit t: scaling type t has it; 0: every type
    size_t member;  // offset in RopeScaling
} RopeKey;

enum { LINEAR = 1 << ROPE_LINEAR, LLAMA3 = 1 << ROPE_LLAMA3, YARN = 1 << ROPE_YARN };

static const RopeKey rope_keys[] = {
    {"type", NAME, 0, 0},
    {"rope_type", NAME, 0, 0},
    {"rope_theta", POSITIVE, 0, 0},
    {"partial_rotary_factor", ONE, 0, 0},
    {"factor", POSITIVE, LINEAR | LLAMA3 | YARN, offsetof(RopeScaling, factor)},
    {"original_max_position_embeddings", POSITIVE, LLAMA3 | YARN, offsetof(RopeScaling, original_max_positions)},
    {"low_freq_factor", POSITIVE, LLAMA3, offsetof(RopeScaling, low_freq_factor)},
    {"high_freq_factor", POSITIVE, LLAMA3, offsetof(RopeScaling, high_freq_factor)},
    {"beta_fast", POSITIVE, YARN, offsetof(RopeScaling, beta_fast)},
    {"beta_slow", POSITIVE, YARN, offsetof(RopeScaling, beta_slow)},
    {"attention_factor", POSITIVE, YARN, offsetof(RopeScaling, attention_factor)},
    {"mscale", POSITIVE, YARN, offsetof(RopeScaling, mscale)},
    {"mscale_all_dim", POSITIVE, YARN, offsetof(RopeScaling, mscale_all_dim)},
    {"truncate", BOOLEAN, YARN, offsetof(RopeScaling, truncate)},
};
enum { ROPE_KEYS = sizeof rope_keys / sizeof rope_keys[0] };

static bool refuse_in(const ConfigReader *r, const ConfigKey *rule, const char *key, const char *what) {
    return error_set(r->err, "%s: \"%s\": \"%s\" %s", r->path, rule->key, json_shown(key).text, what);
}

static bool rope_type(const ConfigReader *r, const ConfigKey *rule, const Json *rope, RopeScalingType *type) {
    static const char *const names[] = {
        [ROPE_DEFAULT] = "default", [ROPE_LINEAR] = "linear", [ROPE_LLAMA3] = "llama3", [ROPE_YARN] = "yarn"};
    const Json *old = json_get(rope, "type"), *name = json_get(rope, "rope_type");
    *type = ROPE_DEFAULT;
    if (name == NULL) name = old;
    if (name == NULL) return true;
    if (name->type != JSON_STRING ||
        (old != NULL && (old->type != JSON_STRING || strcmp(old->string, name->string) != 0)))
        return refuse(r, rule, "must name one type, as \"rope_type\"");
    for (int t = ROPE_DEFAULT; t <= ROPE_YARN; t++) {
        *type = (RopeScalingType)t;
        if (strcmp(name->string, names[t]) == 0) return true;
    }
    return error_set(r->err, "%s: \"%s\" of type \"%s\" is not supported; default, linear, llama3 and yarn are",
                     r->path, rule->key, json_shown(name->string).text);
}

static bool take_rope_key(const ConfigReader *r, const ConfigKey *rule, const char *key, const Json *value,
                          RopeScaling *scaling) {
    const RopeKey *k = rope_keys;
    while (k < rope_keys + ROPE_KEYS && strcmp(k->key, key) != 0) k++;
    if (value->type == JSON_NULL) return true;
    if (k == rope_keys + ROPE_KEYS)
        return refuse_in(r, rule, key, "is unknown: it might change the model; remove it if it does not");
    if (k->types != 0 && !(k->types & 1u << scaling->type))
        return refuse_in(r, rule, key, "does not belong to this type");
    switch (k->value) {
    case NAME: return true;
    case ONE:
        return (value->type == JSON_NUMBER && value->number == 1) || refuse_in(r, rule, key, "is supported only as 1");
    case BOOLEAN:
        if (value->type != JSON_BOOL) return refuse_in(r, rule, key, "must be true or false");
        memcpy((char *)scaling + k->member, &value->boolean, sizeof(bool));
        return true;
    case POSITIVE: break;
    }
    if (value->type != JSON_NUMBER || value->number <= 0) return refuse_in(r, rule, key, "must be a number above 0");
    if (k->types == 0) r->config->rope_theta = value->number;
    else memcpy((char *)scaling + k->member, &value->number, sizeof(double));
    return true;
}

static bool require_rope_key(const ConfigReader *r, const ConfigKey *rule, const char *key, double value) {
    return value > 0 || refuse_in(r, rule, key, "is missing");
}

static bool take_rope(const ConfigReader *r, const ConfigKey *rule, const Json *rope) {
    if (rope->type == JSON_NULL) return true;
    if (rope->type != JSON_OBJECT) return refuse(r, rule, "must be an object or null");
    RopeScaling *s = &r->config->rope_scaling;
    *s = (RopeScaling){0};
    if (!rope_type(r, rule, rope, &s->type)) return false;
    s->truncate = s->type == ROPE_YARN;
    for (int i = 0; i < rope->count; i++)
        if (!take_rope_key(r, rule, rope->key[i], &rope->item[i], s)) return false;
    if (s->type == ROPE_DEFAULT) return true;
    if (s->type == ROPE_LINEAR) return require_rope_key(r, rule, "factor", s->factor);
    if (s->original_max_positions == 0) s->original_max_positions = (double)r->config->max_positions;
    if (s->type == ROPE_LLAMA3)
        return require_rope_key(r, rule, "factor", s->factor) &&
               require_rope_key(r, rule, "low_freq_factor", s->low_freq_factor) &&
               require_rope_key(r, rule, "high_freq_factor", s->high_freq_factor);
    const Json *factor = json_get(rope, "factor"); // null: the quotient of the two lengths
    if (factor != NULL && factor->type == JSON_NULL)
        s->factor = (double)r->config->max_positions / s->original_max_positions;
    if (s->beta_fast == 0) s->beta_fast = 32;
    if (s->beta_slow == 0) s->beta_slow = 1;
    return require_rope_key(r, rule, "factor", s->factor);
}

// ---- the table ----

#define MEMBER(name) offsetof(ModelConfig, name)

enum {
    GPT2 = 1 << ARCH_GPT2,
    LLAMA = 1 << ARCH_LLAMA,
    QWEN2 = 1 << ARCH_QWEN2,
    ROTARY = LLAMA | QWEN2,
    ANY = GPT2 | ROTARY
};

static const ConfigKey keys[] = {
    // Sizes and choices of the model.
    {"vocab_size", ANY, take_size, MEMBER(vocab_size)},
    {"n_positions", GPT2, take_size, MEMBER(max_positions)},
    {"n_embd", GPT2, take_size, MEMBER(dim)},
    {"n_layer", GPT2, take_size, MEMBER(layers)},
    {"n_head", GPT2, take_size, MEMBER(heads)},
    {"n_inner", GPT2, take_size, MEMBER(ffn_dim)},
    {"layer_norm_epsilon", GPT2, take_real, MEMBER(norm_epsilon)},
    {"max_position_embeddings", ROTARY, take_size, MEMBER(max_positions)},
    {"hidden_size", ROTARY, take_size, MEMBER(dim)},
    {"intermediate_size", ROTARY, take_size, MEMBER(ffn_dim)},
    {"num_hidden_layers", ROTARY, take_size, MEMBER(layers)},
    {"num_attention_heads", ROTARY, take_size, MEMBER(heads)},
    {"num_key_value_heads", ROTARY, take_size, MEMBER(kv_heads)},
    {"head_dim", ROTARY, take_size, MEMBER(head_dim)},
    {"rms_norm_eps", ROTARY, take_real, MEMBER(norm_epsilon)},
    {"rope_theta", ROTARY, take_real, MEMBER(rope_theta)},
    {"rope_scaling", ROTARY, take_rope, 0},
    {"rope_parameters", ROTARY, take_rope, 0},
    {"attention_bias", LLAMA, take_choice, MEMBER(qkv_bias)}, // and of the output
    {"mlp_bias", LLAMA, take_choice, MEMBER(mlp_bias)},
    {"initializer_range", ANY, take_real, MEMBER(init_std)},
    {"tie_word_embeddings", ANY, take_choice, MEMBER(tied_embeddings)},
    {"bos_token_id", ANY, take_token, MEMBER(bos_token)},
    {"eos_token_id", ANY, take_token, MEMBER(eos_token)},

    // Read beforehand, or not needed to read, and written as what the file is.
    {"model_type", ANY, written_here, 0},
    {"architectures", ANY, written_here, 0},
    {"torch_dtype", ANY, written_here, 0},
    {"dtype", ANY, written_here, 0},

    // What would change the maths, each with the values with which it does not.
    {"activation_function", GPT2, must_be_tanh_gelu, 0},
    {"hidden_act", ROTARY, must_be_silu, 0},
    {"scale_attn_weights", GPT2, must_be_true, 0},               // scores by 1 / sqrt(D)
    {"scale_attn_by_inverse_layer_idx", GPT2, must_be_false, 0}, // and by 1 / (layer + 1)
    {"n_special", GPT2, must_be_zero, 0},                        // GPT-1's tokens beside the vocabulary
    {"partial_rotary_factor", ROTARY, must_be_one, 0},           // the share of a head that is rotated
    {"rope_interleaved", ROTARY, must_be_false, 0},              // which two values are a pair
    {"layer_types", LLAMA, must_be_full_attention, 0},
    {"layer_types", QWEN2, must_be_as_windows, 0},
    {"use_sliding_window", LLAMA, must_be_false, 0},
    {"use_sliding_window", QWEN2, take_qwen2_windows, 0},
    {"sliding_window", LLAMA, take_mistral_window, 0},
    {"window_pattern", ANY, take_pattern, 0},         // of our own classes
    {"token_mixers", ANY, take_mixers, 0},            // names as --mixer takes them
    {"full_window_layers", ANY, take_full_layers, 0}, // and the layers before it
    {"use_mrope", QWEN2, must_be_false, 0},           // positions of pictures
    {"attention_bias", QWEN2, must_be_true, 0},       // the class always has them on q, k, v
    {"mlp_bias", QWEN2, must_be_false, 0},
    {"add_cross_attention", ANY, must_be_false, 0},
    {"is_encoder_decoder", ANY, must_be_false, 0},
    {"tie_encoder_decoder", ANY, must_be_false, 0},
    {"pruned_heads", ANY, must_be_empty, 0},

    // Dropout: of training, where this program has none.
    {"attn_pdrop", ANY, pass_over_dropout, 0},
    {"embd_pdrop", ANY, pass_over_dropout, 0},
    {"resid_pdrop", ANY, pass_over_dropout, 0},
    {"attention_dropout", ANY, pass_over_dropout, 0},
    {"hidden_dropout", ANY, pass_over_dropout, 0},
    {"dropout", ANY, pass_over_dropout, 0},
    {"classifier_dropout", ANY, pass_over_dropout, 0},
    {"summary_first_dropout", ANY, pass_over_dropout, 0},

    // Of the model's class, but without effect on what it computes.
    {"n_ctx", GPT2, pass_over, 0},                   // an older name of n_positions, which the class no longer reads
    {"predict_special_tokens", GPT2, pass_over, 0},  // whether GPT-1's further tokens are predicted: there are none
    {"reorder_and_upcast_attn", GPT2, pass_over, 0}, // the order of operations in half precision
    {"max_sequence_length", LLAMA, pass_over, 0},    // the first release's name of a length that no angle depends on
    {"pretraining_tp", LLAMA, pass_over, 0},         // into how many parts a matrix product is cut, and summed again
    {"is_llama_config", LLAMA, pass_over, 0},        // a mark of those who made the file
    {"sliding_window", QWEN2, pass_over, 0},         // how wide and ...
    {"max_window_layers", QWEN2, pass_over, 0},      // ... in which layers, read where use_sliding_window is true

    // Of other heads on the same body, for fine-tuning tasks.
    {"summary_type", ANY, pass_over, 0},
    {"summary_use_proj", ANY, pass_over, 0},
    {"summary_activation", ANY, pass_over, 0},
    {"summary_proj_to_labels", ANY, pass_over, 0},
    {"finetuning_task", ANY, pass_over, 0},
    {"task_specific_params", ANY, pass_over, 0},
    {"problem_type", ANY, pass_over, 0},
    {"id2label", ANY, pass_over, 0},
    {"label2id", ANY, pass_over, 0},
    {"num_labels", ANY, pass_over, 0},
    {"_num_labels", ANY, pass_over, 0},

    // How the library computes the same: what it keeps, returns, or runs it with.
    {"use_cache", ANY, pass_over, 0},
    {"gradient_checkpointing", ANY, pass_over, 0},
    {"output_attentions", ANY, pass_over, 0},
    {"output_hidden_states", ANY, pass_over, 0},
    {"output_past", ANY, pass_over, 0},
    {"return_dict", ANY, pass_over, 0},
    {"chunk_size_feed_forward", ANY, pass_over, 0}, // which these classes do not read
    {"keys_to_ignore_at_inference", ANY, pass_over, 0},
    {"is_decoder", ANY, pass_over, 0}, // these classes are causal either way
    {"attn_implementation", ANY, pass_over, 0},
    {"_attn_implementation", ANY, pass_over, 0},
    {"_attn_implementation_autoset", ANY, pass_over, 0},
    {"_attn_implementation_internal", ANY, pass_over, 0},
    {"_flash_attn_2_enabled", ANY, pass_over, 0},
    {"use_flash_attention_2", ANY, pass_over, 0},
    {"torchscript", ANY, pass_over, 0},
    {"use_bfloat16", ANY, pass_over, 0}, // of TensorFlow
    {"xla_device", ANY, pass_over, 0},
    {"tf_legacy_loss", ANY, pass_over, 0}, // of tasks that this program does not have
    {"tie_last_hidden_states", ANY, pass_over, 0},
    {"neftune_noise_alpha", ANY, pass_over, 0}, // noise of another trainer

    // Who made the file, of what and with what.
    {"_name_or_path", ANY, pass_over, 0},
    {"name_or_path", ANY, pass_over, 0},
    {"_commit_hash", ANY, pass_over, 0},
    {"_from_model_config", ANY, pass_over, 0},
    {"transformers_version", ANY, pass_over, 0},
    {"transformers.js_config", ANY, pass_over, 0},
    {"unsloth_version", ANY, pass_over, 0},
    {"unsloth_fixed", ANY, pass_over, 0},

    // Of the tokenizer.
    {"tokenizer_class", ANY, pass_over, 0},
    {"model_max_length", ANY, pass_over, 0},
    {"tokenizer_model_max_length", ANY, pass_over, 0},
    {"tokenizer_padding_side", ANY, pass_over, 0},
    {"padding_side", ANY, pass_over, 0},
    {"prefix", ANY, pass_over, 0},
    {"pad_token_id", ANY, pass_over, 0},
    {"unk_token_id", ANY, pass_over, 0},
    {"sep_token_id", ANY, pass_over, 0},
    {"eos_token_ids", ANY, pass_over, 0}, // an older name, of generation alone

    // How text is generated: older files have it here and not in generation_config.json.
    {"decoder_start_token_id", ANY, pass_over, 0},
    {"forced_bos_token_id", ANY, pass_over, 0},
    {"forced_eos_token_id", ANY, pass_over, 0},
    {"max_length", ANY, pass_over, 0},
    {"min_length", ANY, pass_over, 0},
    {"max_new_tokens", ANY, pass_over, 0},
    {"do_sample", ANY, pass_over, 0},
    {"early_stopping", ANY, pass_over, 0},
    {"num_beams", ANY, pass_over, 0},
    {"num_beam_groups", ANY, pass_over, 0},
    {"diversity_penalty", ANY, pass_over, 0},
    {"temperature", ANY, pass_over, 0},
    {"top_k", ANY, pass_over, 0},
    {"top_p", ANY, pass_over, 0},
    {"min_p", ANY, pass_over, 0},
    {"typical_p", ANY, pass_over, 0},
    {"repetition_penalty", ANY, pass_over, 0},
    {"length_penalty", ANY, pass_over, 0},
    {"exponential_decay_length_penalty", ANY, pass_over, 0},
    {"no_repeat_ngram_size", ANY, pass_over, 0},
    {"encoder_no_repeat_ngram_size", ANY, pass_over, 0},
    {"bad_words_ids", ANY, pass_over, 0},
    {"suppress_tokens", ANY, pass_over, 0},
    {"begin_suppress_tokens", ANY, pass_over, 0},
    {"num_return_sequences", ANY, pass_over, 0},
    {"output_scores", ANY, pass_over, 0},
    {"return_dict_in_generate", ANY, pass_over, 0},
    {"remove_invalid_values", ANY, pass_over, 0},
};

const ConfigKey *config_key(Architecture architecture, const char *key) {
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (keys[i].architectures & 1u << architecture && strcmp(keys[i].key, key) == 0) return &keys[i];
    return NULL;
}

bool config_key_is_rope(const ConfigKey *key) { return key->take == take_rope; }

bool config_key_is_ours(const ConfigKey *key) {
    return key->take == take_size || key->take == take_real || key->take == take_choice || key->take == take_rope ||
           key->take == take_pattern || key->take == take_full_layers || key->take == take_mixers ||
           key->take == written_here;
}
