// Reading config.json: the class first, then every key by its row of the table (config_keys.c). Absent keys have the
// values that the Hugging Face class gives them.
#include <string.h>
#include <strings.h>

#include "base/json.h"
#include "model/config.h"
#include "model/config_keys.h"
#include "model/config_path.h"

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
    {ARCH_LLAMA,
     "mistral",
     "MistralForCausalLM",
     "MistralModel",
     {.vocab_size = 32000,
      .layers = 32,
      .heads = 32,
      .kv_heads = 8,
      .dim = 4096,
      .ffn_dim = 14336,
      .max_positions = 131072,
      .norm_epsilon = 1e-6,
      .init_std = 0.02,
      .rope_theta = 10000,
      .bos_token = 1,
      .eos_token = 2,
      .windows = {4096},
      .window_period = 1}},
    {ARCH_QWEN2,
     "qwen2",
     "Qwen2ForCausalLM",
     "Qwen2Model",
     {.vocab_size = 151936,
      .layers = 32,
      .heads = 32,
      .kv_heads = 32,
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

// The name as it might be written: the first release spelt llama's class LLaMA, and other frameworks and wrappers put
// their own name before it.
static bool is_name(const char *found, const char *name) {
    static const char *const prefixes[] = {"", "TF", "Flax", "FSDP"};
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
        size_t length = strlen(prefixes[i]);
        if (strncmp(found, prefixes[i], length) == 0 && strcasecmp(found + length, name) == 0) return true;
    }
    return false;
}

// Our own classes have the names of these with ours before them: the same but for windows, and with all their sizes
// written down.
static const char *without(const char *name, const char *prefix) {
    size_t length = strlen(prefix);
    return name != NULL && strncmp(name, prefix, length) == 0 ? name + length : name;
}

static const Class *find_class(ConfigReader *r) {
    const char *type = string_or_null(json_get(r->root, "model_type"));
    const Json *names = json_get(r->root, "architectures");
    if (names && names->type == JSON_ARRAY && names->count > 0) names = &names->item[0];
    const char *name = string_or_null(names), *type_found = type, *name_found = name;
    type = without(type, "train_gpt_");
    name = without(name, "TrainGpt");
    r->ours = type != type_found && name != name_found;
    for (int i = 0; i < CLASSES; i++) {
        const Class *c = &classes[i];
        bool type_fits = type == NULL || strcasecmp(type, c->model_type) == 0;
        bool name_fits = name == NULL || is_name(name, c->name) || is_name(name, c->base_name);
        if (type_fits && name_fits && (type || name)) {
            r->mistral = c->architecture == ARCH_LLAMA && strcmp(c->model_type, "mistral") == 0;
            return c;
        }
    }
    error_set(r->err,
              "%s: \"model_type\" %s with \"architectures\" %s is not supported; gpt2 (GPT2LMHeadModel), llama "
              "(LlamaForCausalLM), mistral (MistralForCausalLM) and qwen2 (Qwen2ForCausalLM) are",
              r->path, json_shown(type_found ? type_found : "absent").text,
              json_shown(name_found ? name_found : "absent").text);
    return NULL;
}

static bool take_keys(const ConfigReader *r, bool rope) {
    for (int i = 0; i < r->root->count; i++) {
        const Json *value = &r->root->item[i];
        const ConfigKey *key = config_key(r->config->architecture, r->root->key[i]);
        if (key != NULL && config_key_is_rope(key) == rope && !key->take(r, key, value)) return false;
        if (key == NULL && value->type != JSON_NULL)
            return error_set(r->err,
                             "%s: \"%s\" is unknown for this architecture: it might change the model; remove it if it "
                             "does not",
                             r->path, json_shown(r->root->key[i]).text);
    }
    return true;
}

static bool present(const Json *value) { return value != NULL && value->type != JSON_NULL; }

static bool take_file(ConfigReader *r) {
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
    if (c->kv_heads == 0 || (kv_heads != NULL && kv_heads->type == JSON_NULL)) c->kv_heads = c->heads;
    if (c->head_dim == 0 && c->dim % c->heads == 0) c->head_dim = c->dim / c->heads;
    if (c->ffn_dim == 0) c->ffn_dim = 4 * c->dim;
    if (class->architecture == ARCH_LLAMA) c->out_bias = c->qkv_bias;
    if (r->mistral && (c->qkv_bias || c->mlp_bias))
        return error_set(r->err, "%s: mistral has no biases, but \"attention_bias\" or \"mlp_bias\" is true", r->path);
    return true;
}

bool config_read(ModelConfig *config, const char *path, Error *err) {
    char file[CONFIG_PATH_MAX];
    if (!config_path(path, file, err)) return false;
    JsonDocument *document = json_read_file(file, err);
    if (document == NULL) return false;
    ConfigReader reader = {.path = file, .root = json_root(document), .config = config, .err = err};
    bool ok = take_file(&reader);
    json_free(document);
    Error unsound;
    if (ok && !config_check(config, &unsound)) ok = error_set(err, "%s: %.800s", file, unsound.message);
    return ok;
}
