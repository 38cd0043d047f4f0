// Reading config.json.
//
// Every key that may stand in such a file has a line in one table, which says what becomes of it: a size or a choice is
// taken over; a switch that would change the maths must stand where it changes nothing; what concerns only generation,
// files or the library is passed over. A key without a line is an error: it might change the maths. Absent keys have
// the values that the Hugging Face class gives them, and null stands for absent.
#include <inttypes.h>
#include <stddef.h>
#include <string.h>

#include "base/json.h"
#include "model/config.h"
#include "model/config_path.h"

typedef struct Reader {
    const char *path; // of the file
    const Json *root;
    ModelConfig *config;
    Error *err;
} Reader;

typedef struct Rule Rule;
struct Rule {
    const char *key;
    bool (*take)(const Reader *, const Rule *, const Json *);
    size_t member; // offset in ModelConfig, for rules that take a value over
};

// ---- what a rule may do ----

static bool refuse(const Reader *r, const Rule *rule, const char *what) {
    return error_set(r->err, "%s: \"%s\" %s", r->path, rule->key, what);
}

static bool take_size(const Reader *r, const Rule *rule, const Json *value) {
    if (value->type == JSON_NULL) return true;
    if (!value->is_integer || value->integer < 1) return refuse(r, rule, "must be a whole number of at least 1");
    memcpy((char *)r->config + rule->member, &value->integer, sizeof(int64_t));
    return true;
}

static bool take_real(const Reader *r, const Rule *rule, const Json *value) {
    if (value->type == JSON_NULL) return true;
    if (value->type != JSON_NUMBER) return refuse(r, rule, "must be a number");
    memcpy((char *)r->config + rule->member, &value->number, sizeof(double));
    return true;
}

static bool take_choice(const Reader *r, const Rule *rule, const Json *value) {
    if (value->type == JSON_NULL) return true;
    if (value->type != JSON_BOOL) return refuse(r, rule, "must be true or false");
    memcpy((char *)r->config + rule->member, &value->boolean, sizeof(bool));
    return true;
}

// One token, or a list of which the first is taken; null: none.
static bool take_token(const Reader *r, const Rule *rule, const Json *value) {
    int64_t token = -1;
    if (value->type == JSON_ARRAY && value->count > 0) value = &value->item[0];
    if (value->type != JSON_NULL) {
        if (!value->is_integer || value->integer < 0) return refuse(r, rule, "must be a token's number");
        token = value->integer;
    }
    memcpy((char *)r->config + rule->member, &token, sizeof token);
    return true;
}

static bool pass_over(const Reader *r, const Rule *rule, const Json *value) {
    (void)r, (void)rule, (void)value;
    return true;
}

// Dropout belongs to training and is 0 here, whatever the checkpoint was trained with.
static bool pass_over_dropout(const Reader *r, const Rule *rule, const Json *value) {
    if (value->type == JSON_NULL || (value->type == JSON_NUMBER && value->number >= 0 && value->number < 1))
        return true;
    return refuse(r, rule, "must be a number from 0 to below 1");
}

static bool must_be_true(const Reader *r, const Rule *rule, const Json *value) {
    if (value->type == JSON_NULL || (value->type == JSON_BOOL && value->boolean)) return true;
    return refuse(r, rule, "is supported only as true");
}

static bool must_be_false(const Reader *r, const Rule *rule, const Json *value) {
    if (value->type == JSON_NULL || (value->type == JSON_BOOL && !value->boolean)) return true;
    return refuse(r, rule, "is supported only as false");
}

static bool must_be_zero(const Reader *r, const Rule *rule, const Json *value) {
    if (value->type == JSON_NULL || (value->type == JSON_NUMBER && value->number == 0)) return true;
    return refuse(r, rule, "is supported only as 0");
}

static bool must_be_one(const Reader *r, const Rule *rule, const Json *value) {
    if (value->type == JSON_NULL || (value->type == JSON_NUMBER && value->number == 1)) return true;
    return refuse(r, rule, "is supported only as 1");
}

static bool must_be_empty(const Reader *r, const Rule *rule, const Json *value) {
    if (value->type == JSON_NULL || ((value->type == JSON_ARRAY || value->type == JSON_OBJECT) && value->count == 0))
        return true;
    return refuse(r, rule, "is not supported");
}

static bool must_be_one_of(const Reader *r, const Rule *rule, const Json *value, const char *first,
                           const char *second) {
    if (value->type == JSON_NULL) return true;
    if (value->type == JSON_STRING && (strcmp(value->string, first) == 0 || strcmp(value->string, second) == 0))
        return true;
    return error_set(r->err, "%s: \"%s\" is supported only as \"%s\" or \"%s\"", r->path, rule->key, first, second);
}

// Two names of the tanh approximation, and of x * sigmoid(x).
static bool must_be_tanh_gelu(const Reader *r, const Rule *rule, const Json *value) {
    return must_be_one_of(r, rule, value, "gelu_new", "gelu_pytorch_tanh");
}

static bool must_be_silu(const Reader *r, const Rule *rule, const Json *value) {
    return must_be_one_of(r, rule, value, "silu", "swish");
}

static bool must_be_full_attention(const Reader *r, const Rule *rule, const Json *value) {
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

static bool refuse_in(const Reader *r, const Rule *rule, const char *key, const char *what) {
    return error_set(r->err, "%s: \"%s\": \"%s\" %s", r->path, rule->key, json_shown(key).text, what);
}

static bool rope_type(const Reader *r, const Rule *rule, const Json *rope, RopeScalingType *type) {
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

static bool take_rope_key(const Reader *r, const Rule *rule, const char *key, const Json *value, RopeScaling *scaling) {
    const RopeKey *k = rope_keys;
    while (k < rope_keys + ROPE_KEYS && strcmp(k->key, key) != 0) k++;
    if (value->type == JSON_NULL) return true;
    if (k == rope_keys + ROPE_KEYS) return refuse_in(r, rule, key, "is unknown: it might change the model");
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

static bool require_rope_key(const Reader *r, const Rule *rule, const char *key, double value) {
    return value > 0 || refuse_in(r, rule, key, "is missing");
}

static bool take_rope(const Reader *r, const Rule *rule, const Json *rope) {
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

// ---- the tables ----

#define MEMBER(name) offsetof(ModelConfig, name)

static const Rule gpt2_rules[] = {
    {"vocab_size", take_size, MEMBER(vocab_size)},
    {"n_positions", take_size, MEMBER(max_positions)},
    {"n_embd", take_size, MEMBER(dim)},
    {"n_layer", take_size, MEMBER(layers)},
    {"n_head", take_size, MEMBER(heads)},
    {"n_inner", take_size, MEMBER(ffn_dim)},
    {"layer_norm_epsilon", take_real, MEMBER(norm_epsilon)},
    {"activation_function", must_be_tanh_gelu, 0},
    {"resid_pdrop", pass_over_dropout, 0},
    {"embd_pdrop", pass_over_dropout, 0},
    {"attn_pdrop", pass_over_dropout, 0},
    {"scale_attn_weights", must_be_true, 0},
    {"scale_attn_by_inverse_layer_idx", must_be_false, 0},
    {"reorder_and_upcast_attn", pass_over, 0}, // the order of operations in half precision, not the maths
    {"n_ctx", pass_over, 0},                   // an older name that the class no longer reads
    {NULL, NULL, 0},
};

static const Rule llama_rules[] = {
    {"vocab_size", take_size, MEMBER(vocab_size)},
    {"max_position_embeddings", take_size, MEMBER(max_positions)},
    {"hidden_size", take_size, MEMBER(dim)},
    {"intermediate_size", take_size, MEMBER(ffn_dim)},
    {"num_hidden_layers", take_size, MEMBER(layers)},
    {"num_attention_heads", take_size, MEMBER(heads)},
    {"num_key_value_heads", take_size, MEMBER(kv_heads)},
    {"head_dim", take_size, MEMBER(head_dim)},
    {"rms_norm_eps", take_real, MEMBER(norm_epsilon)},
    {"rope_theta", take_real, MEMBER(rope_theta)},
    {"rope_scaling", take_rope, 0},
    {"rope_parameters", take_rope, 0},
    {"partial_rotary_factor", must_be_one, 0},
    {"rope_interleaved", must_be_false, 0},
    {"hidden_act", must_be_silu, 0},
    {"attention_dropout", pass_over_dropout, 0},
    {"layer_types", must_be_full_attention, 0},
    {NULL, NULL, 0},
};

static const Rule llama_only_rules[] = {
    {"attention_bias", take_choice, MEMBER(qkv_bias)}, // and of the output
    {"mlp_bias", take_choice, MEMBER(mlp_bias)},
    {"pretraining_tp", must_be_one, 0},
    {"is_llama_config", pass_over, 0},
    {NULL, NULL, 0},
};

static const Rule qwen2_only_rules[] = {
    {"use_sliding_window", must_be_false, 0},
    {"sliding_window", pass_over, 0}, // these two only say how wide and where, were it used
    {"max_window_layers", pass_over, 0},
    {"use_mrope", must_be_false, 0},
    {"attention_bias", must_be_true, 0}, // the class always has them on q, k, v
    {"mlp_bias", must_be_false, 0},
    {NULL, NULL, 0},
};

static const Rule common_rules[] = {
    {"initializer_range", take_real, MEMBER(init_std)},
    {"tie_word_embeddings", take_choice, MEMBER(tied_embeddings)},
    {"bos_token_id", take_token, MEMBER(bos_token)},
    {"eos_token_id", take_token, MEMBER(eos_token)},
    {"model_type", pass_over, 0}, // read beforehand
    {"architectures", pass_over, 0},
    {"add_cross_attention", must_be_false, 0},
    {"is_encoder_decoder", must_be_false, 0},
    {"tie_encoder_decoder", must_be_false, 0},
    {"chunk_size_feed_forward", must_be_zero, 0},
    {"pruned_heads", must_be_empty, 0},
    {NULL, NULL, 0},
};

// Of generation, fine-tuning tasks, files and the library: none changes what the model computes. Each between spaces.
static const char harmless_keys[] =
    " torch_dtype dtype transformers_version use_cache pad_token_id sep_token_id decoder_start_token_id "
    "_name_or_path name_or_path task_specific_params summary_type summary_use_proj summary_activation "
    "summary_proj_to_labels summary_first_dropout gradient_checkpointing id2label label2id num_labels _num_labels "
    "problem_type finetuning_task tokenizer_class prefix output_attentions output_hidden_states output_past "
    "return_dict torchscript tf_legacy_loss use_bfloat16 is_decoder _attn_implementation attn_implementation "
    "_attn_implementation_autoset _flash_attn_2_enabled tie_last_hidden_states neftune_noise_alpha "
    "transformers.js_config unsloth_version unsloth_fixed _commit_hash max_length min_length do_sample "
    "early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty "
    "length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences "
    "output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values "
    "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens ";

static const Rule *find_rule(const Rule *rules, const char *key) {
    for (; rules->key != NULL; rules++)
        if (strcmp(rules->key, key) == 0) return rules;
    return NULL;
}

static bool is_harmless(const char *key) {
    size_t length = strlen(key);
    if (length == 0 || strchr(key, ' ') != NULL) return false;
    for (const char *at = strstr(harmless_keys, key); at != NULL; at = strstr(at + 1, key))
        if (at[-1] == ' ' && at[length] == ' ') return true;
    return false;
}

static const Rule *rule_for(Architecture architecture, const char *key) {
    const Rule *rule = find_rule(common_rules, key);
    if (rule == NULL) rule = find_rule(architecture == ARCH_GPT2 ? gpt2_rules : llama_rules, key);
    if (rule == NULL && architecture == ARCH_LLAMA) rule = find_rule(llama_only_rules, key);
    if (rule == NULL && architecture == ARCH_QWEN2) rule = find_rule(qwen2_only_rules, key);
    return rule;
}

// ---- the file ----

typedef struct Class {
    Architecture architecture;
    const char *model_type, *name, *base_name; // the base class has no classifier: enough where it is tied
    ModelConfig defaults;
} Class;

static const Class classes[] = {
    {ARCH_GPT2,
     "gpt2",
     "GPT2LMHeadModel",
     "GPT2Model",
     {.vocab_size = 50257,
      .layers = 12,
      .heads = 12,
      .dim = 768,
      .max_positions = 1024,
      .norm_epsilon = 1e-5,
      .init_std = 0.02,
      .tied_embeddings = true,
      .qkv_bias = true,
      .out_bias = true,
      .mlp_bias = true,
      .bos_token = 50256,
      .eos_token = 50256}},
    {ARCH_LLAMA,
     "llama",
     "LlamaForCausalLM",
     "LlamaModel",
     {.vocab_size = 32000,
      .layers = 32,
      .heads = 32,
      .dim = 4096,
      .ffn_dim = 11008,
      .max_positions = 2048,
      .norm_epsilon = 1e-6,
      .init_std = 0.02,
      .rope_theta = 10000,
      .bos_token = 1,
      .eos_token = 2}},
    {ARCH_QWEN2,
     "qwen2",
     "Qwen2ForCausalLM",
     "Qwen2Model",
     {.vocab_size = 151936,
      .layers = 32,
      .heads = 32,
      .dim = 4096,
      .ffn_dim = 22016,
      .max_positions = 32768,
      .norm_epsilon = 1e-6,
      .init_std = 0.02,
      .qkv_bias = true,
      .rope_theta = 10000,
      .bos_token = -1,
      .eos_token = -1}},
};
enum { CLASSES = sizeof classes / sizeof classes[0] };

static const char *string_or_null(const Json *value) {
    return value && value->type == JSON_STRING ? value->string : NULL;
}

static const Class *find_class(const Reader *r) {
    const char *type = string_or_null(json_get(r->root, "model_type")), *name = NULL;
    const Json *names = json_get(r->root, "architectures");
    if (names && names->type == JSON_ARRAY && names->count > 0) name = string_or_null(&names->item[0]);
    for (int i = 0; i < CLASSES; i++) {
        const Class *c = &classes[i];
        bool type_fits = type == NULL || strcmp(type, c->model_type) == 0;
        bool name_fits = name == NULL || strcmp(name, c->name) == 0 || strcmp(name, c->base_name) == 0;
        if (type_fits && name_fits && (type || name)) return c;
    }
    error_set(r->err,
              "%s: \"model_type\" %s with \"architectures\" %s is not supported; gpt2 (GPT2LMHeadModel), llama "
              "(LlamaForCausalLM) and qwen2 (Qwen2ForCausalLM) are",
              r->path, json_shown(type ? type : "absent").text, json_shown(name ? name : "absent").text);
    return NULL;
}

static bool take_keys(const Reader *r, bool rope) {
    for (int i = 0; i < r->root->count; i++) {
        const char *key = r->root->key[i];
        const Json *value = &r->root->item[i];
        const Rule *rule = rule_for(r->config->architecture, key);
        if (rule != NULL && (rule->take == take_rope) != rope) continue;
        if (rule != NULL && !rule->take(r, rule, value)) return false;
        if (rule == NULL && value->type != JSON_NULL && !is_harmless(key))
            return error_set(r->err, "%s: \"%s\" is unknown for this architecture: it might change the model", r->path,
                             json_shown(key).text);
    }
    return true;
}

static bool present(const Json *value) { return value != NULL && value->type != JSON_NULL; }

static bool take_file(const Reader *r) {
    ModelConfig *c = r->config;
    if (r->root->type != JSON_OBJECT) return error_set(r->err, "%s: not a JSON object", r->path);
    const Class *class = find_class(r);
    if (class == NULL) return false;
    *c = class->defaults;
    c->architecture = class->architecture;
    if (present(json_get(r->root, "rope_scaling")) && present(json_get(r->root, "rope_parameters")))
        return error_set(r->err, "%s: both \"rope_scaling\" and \"rope_parameters\" are given; keep one", r->path);
    if (!take_keys(r, false) || !take_keys(r, true)) return false; // rotary scaling needs the number of positions
    const Json *kv_heads = json_get(r->root, "num_key_value_heads");
    if (c->kv_heads == 0) c->kv_heads = class->architecture == ARCH_QWEN2 && kv_heads == NULL ? 32 : c->heads;
    if (c->head_dim == 0 && c->dim % c->heads == 0) c->head_dim = c->dim / c->heads;
    if (c->ffn_dim == 0) c->ffn_dim = 4 * c->dim;
    if (class->architecture == ARCH_LLAMA) c->out_bias = c->qkv_bias;
    return true;
}

bool config_read(ModelConfig *config, const char *path, Error *err) {
    char file[CONFIG_PATH_MAX];
    if (!config_path(path, file, err)) return false;
    JsonDocument *document = json_read_file(file, err);
    if (document == NULL) return false;
    Reader reader = {file, json_root(document), config, err};
    bool ok = take_file(&reader);
    json_free(document);
    Error unsound;
    if (ok && !config_check(config, &unsound)) ok = error_set(err, "%s: %.800s", file, unsound.message);
    return ok;
}
