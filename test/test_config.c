// config.json: published configurations are understood, what is written is read back the same, and whatever would
// change the maths is refused by name. Rotary tables against numbers computed apart (test/goldens/make_rope.py).
#include "test/program.h"

#include <math.h>

#include "base/json.h"
#include "model/config.h"

static char folder[PROGRAM_PATH], file_path[PROGRAM_PATH];

static int make_folder(void **state) {
    (void)state;
    path_join(file_path, make_temp_folder(folder), "config.json");
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    remove_tree(folder);
    return 0;
}

static bool read_text(ModelConfig *config, const char *text, Error *err) {
    memset(config, 0x5A, sizeof *config); // nothing may be left as it was
    write_file(file_path, text, strlen(text));
    return config_read(config, file_path, err);
}

static ModelConfig read_good(const char *text) {
    ModelConfig config;
    Error err;
    if (!read_text(&config, text, &err)) fail_msg("%s\n%s", err.message, text);
    return config;
}

// ---- published configurations (the keys as published, in their older and newer forms) ----

static const char gpt2_text[] =
    "{\"activation_function\": \"gelu_new\", \"architectures\": [\"GPT2LMHeadModel\"], \"attn_pdrop\": 0.1,"
    "\"bos_token_id\": 50256, \"embd_pdrop\": 0.1, \"eos_token_id\": 50256, \"initializer_range\": 0.02,"
    "\"layer_norm_epsilon\": 1e-05, \"model_type\": \"gpt2\", \"n_ctx\": 1024, \"n_embd\": 768, \"n_head\": 12,"
    "\"n_layer\": 12, \"n_positions\": 1024, \"resid_pdrop\": 0.1, \"summary_activation\": null,"
    "\"summary_first_dropout\": 0.1, \"summary_proj_to_labels\": true, \"summary_type\": \"cls_index\","
    "\"summary_use_proj\": true, \"task_specific_params\": {\"text-generation\": {\"do_sample\": true,"
    "\"max_length\": 50}}, \"vocab_size\": 50257}";

static const char smollm2_text[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"attention_bias\": false, \"attention_dropout\": 0.0,"
    "\"bos_token_id\": 0, \"eos_token_id\": 0, \"hidden_act\": \"silu\", \"hidden_size\": 576,"
    "\"initializer_range\": 0.041666666666666664, \"intermediate_size\": 1536, \"is_llama_config\": true,"
    "\"max_position_embeddings\": 8192, \"model_type\": \"llama\", \"num_attention_heads\": 9,"
    "\"num_hidden_layers\": 30, \"num_key_value_heads\": 3, \"pretraining_tp\": 1, \"rms_norm_eps\": 1e-05,"
    "\"rope_interleaved\": false, \"rope_scaling\": null, \"rope_theta\": 100000, \"tie_word_embeddings\": true,"
    "\"torch_dtype\": \"bfloat16\", \"transformers_version\": \"4.40.1\", \"use_cache\": true, \"vocab_size\": 49152}";

static const char llama3_text[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"attention_bias\": false, \"attention_dropout\": 0.0,"
    "\"bos_token_id\": 128000, \"eos_token_id\": [128001, 128008, 128009], \"head_dim\": 64, \"hidden_act\": \"silu\","
    "\"hidden_size\": 2048, \"initializer_range\": 0.02, \"intermediate_size\": 8192,"
    "\"max_position_embeddings\": 131072, \"mlp_bias\": false, \"model_type\": \"llama\", \"num_attention_heads\": 32,"
    "\"num_hidden_layers\": 16, \"num_key_value_heads\": 8, \"pretraining_tp\": 1, \"rms_norm_eps\": 1e-05,"
    "\"rope_scaling\": {\"factor\": 32.0, \"high_freq_factor\": 4.0, \"low_freq_factor\": 1.0,"
    "\"original_max_position_embeddings\": 8192, \"rope_type\": \"llama3\"}, \"rope_theta\": 500000.0,"
    "\"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\", \"transformers_version\": \"4.45.0.dev0\","
    "\"use_cache\": true, \"vocab_size\": 128256}";

static const char qwen2_text[] =
    "{\"architectures\": [\"Qwen2ForCausalLM\"], \"attention_dropout\": 0.0, \"bos_token_id\": 151643,"
    "\"eos_token_id\": 151643, \"hidden_act\": \"silu\", \"hidden_size\": 896, \"initializer_range\": 0.02,"
    "\"intermediate_size\": 4864, \"max_position_embeddings\": 32768, \"max_window_layers\": 24,"
    "\"model_type\": \"qwen2\", \"num_attention_heads\": 14, \"num_hidden_layers\": 24, \"num_key_value_heads\": 2,"
    "\"rms_norm_eps\": 1e-06, \"rope_theta\": 1000000.0, \"sliding_window\": 32768, \"tie_word_embeddings\": true,"
    "\"torch_dtype\": \"bfloat16\", \"transformers_version\": \"4.40.1\", \"use_cache\": true, \"use_mrope\": false,"
    "\"use_sliding_window\": false, \"vocab_size\": 151936}";

static const char qwen2_yarn_text[] =
    "{\"architectures\": [\"Qwen2ForCausalLM\"], \"attention_dropout\": 0.0, \"bos_token_id\": 151643,"
    "\"eos_token_id\": 151645, \"hidden_act\": \"silu\", \"hidden_size\": 3584, \"initializer_range\": 0.02,"
    "\"intermediate_size\": 18944, \"max_position_embeddings\": 32768, \"max_window_layers\": 28,"
    "\"model_type\": \"qwen2\", \"num_attention_heads\": 28, \"num_hidden_layers\": 28, \"num_key_value_heads\": 4,"
    "\"rms_norm_eps\": 1e-06, \"rope_theta\": 1000000.0, \"rope_scaling\": {\"factor\": 4.0,"
    "\"original_max_position_embeddings\": 32768, \"type\": \"yarn\"}, \"sliding_window\": 131072,"
    "\"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\", \"transformers_version\": \"4.43.1\","
    "\"use_cache\": true, \"use_sliding_window\": false, \"vocab_size\": 152064}";

// As version 5 of the library writes them.
static const char new_style_text[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"attention_bias\": false, \"attention_dropout\": 0.0,"
    "\"bos_token_id\": null, \"dtype\": \"float32\", \"eos_token_id\": null, \"head_dim\": 16, \"hidden_act\": "
    "\"silu\","
    "\"hidden_size\": 64, \"initializer_range\": 0.02, \"intermediate_size\": 128, \"layer_types\": "
    "[\"full_attention\","
    "\"full_attention\"], \"max_position_embeddings\": 2048, \"mlp_bias\": false, \"model_type\": \"llama\","
    "\"num_attention_heads\": 4, \"num_hidden_layers\": 2, \"num_key_value_heads\": 4, \"pad_token_id\": null,"
    "\"pretraining_tp\": 1, \"rms_norm_eps\": 1e-06, \"rope_parameters\": {\"rope_theta\": 25000.0,"
    "\"rope_type\": \"linear\", \"factor\": 2.0}, \"tie_word_embeddings\": false, \"transformers_version\": \"5.1.0\","
    "\"use_cache\": true, \"vocab_size\": 300}";

static void test_gpt2(void **state) {
    (void)state;
    ModelConfig c = read_good(gpt2_text);
    assert_int_equal(c.architecture, ARCH_GPT2);
    assert_true(c.vocab_size == 50257 && c.layers == 12 && c.heads == 12 && c.kv_heads == 12 && c.head_dim == 64);
    assert_true(c.dim == 768 && c.ffn_dim == 3072 && c.max_positions == 1024);
    assert_true(c.norm_epsilon == 1e-5 && c.init_std == 0.02 && c.tied_embeddings);
    assert_true(c.qkv_bias && c.out_bias && c.mlp_bias && c.bos_token == 50256 && c.eos_token == 50256);
}

static void test_llama(void **state) {
    (void)state;
    ModelConfig c = read_good(smollm2_text);
    assert_int_equal(c.architecture, ARCH_LLAMA);
    assert_true(c.vocab_size == 49152 && c.layers == 30 && c.heads == 9 && c.kv_heads == 3 && c.head_dim == 64);
    assert_true(c.dim == 576 && c.ffn_dim == 1536 && c.max_positions == 8192);
    assert_true(c.norm_epsilon == 1e-5 && c.init_std == 1.0 / 24 && c.tied_embeddings);
    assert_true(!c.qkv_bias && !c.out_bias && !c.mlp_bias && c.bos_token == 0 && c.eos_token == 0);
    assert_true(c.rope_theta == 100000 && c.rope_scaling.type == ROPE_DEFAULT);

    c = read_good(llama3_text);
    assert_true(c.heads == 32 && c.kv_heads == 8 && c.head_dim == 64 && c.rope_theta == 500000);
    assert_true(c.bos_token == 128000 && c.eos_token == 128001);
    const RopeScaling *s = &c.rope_scaling;
    assert_true(s->type == ROPE_LLAMA3 && s->factor == 32 && s->low_freq_factor == 1 && s->high_freq_factor == 4);
    assert_true(s->original_max_positions == 8192 && s->beta_fast == 0 && s->attention_factor == 0 && !s->truncate);

    c = read_good(new_style_text);
    assert_true(c.rope_theta == 25000 && c.rope_scaling.type == ROPE_LINEAR && c.rope_scaling.factor == 2);
    assert_true(c.bos_token == -1 && c.eos_token == -1 && c.rope_scaling.original_max_positions == 0);
}

static void test_qwen2(void **state) {
    (void)state;
    ModelConfig c = read_good(qwen2_text);
    assert_int_equal(c.architecture, ARCH_QWEN2);
    assert_true(c.vocab_size == 151936 && c.layers == 24 && c.heads == 14 && c.kv_heads == 2 && c.head_dim == 64);
    assert_true(c.dim == 896 && c.ffn_dim == 4864 && c.max_positions == 32768 && c.rope_theta == 1e6);
    assert_true(c.qkv_bias && !c.out_bias && !c.mlp_bias && c.tied_embeddings && c.norm_epsilon == 1e-6);

    c = read_good(qwen2_yarn_text);
    const RopeScaling *s = &c.rope_scaling;
    assert_true(s->type == ROPE_YARN && s->factor == 4 && s->original_max_positions == 32768 && s->truncate);
    assert_true(s->beta_fast == 32 && s->beta_slow == 1 && s->attention_factor == 0 && s->mscale == 0);
    assert_true(!c.tied_embeddings && c.head_dim == 128);
}

// Absent keys have the values of the Hugging Face classes.
static void test_defaults(void **state) {
    (void)state;
    ModelConfig c = read_good("{\"model_type\": \"gpt2\"}");
    assert_true(c.vocab_size == 50257 && c.dim == 768 && c.tied_embeddings && c.max_positions == 1024);
    c = read_good("{\"architectures\": [\"LlamaForCausalLM\"]}");
    assert_true(c.dim == 4096 && c.kv_heads == 32 && c.head_dim == 128 && c.rope_theta == 10000 && !c.tied_embeddings);
    assert_true(c.norm_epsilon == 1e-6 && c.bos_token == 1 && c.eos_token == 2);
    c = read_good(
        "{\"model_type\": \"llama\", \"num_attention_heads\": 16, \"num_key_value_heads\": null, \"n\": null}");
    assert_true(c.kv_heads == 16 && c.head_dim == 256);
    c = read_good("{\"model_type\": \"qwen2\"}");
    assert_true(c.kv_heads == 32 && c.qkv_bias && c.bos_token == -1 && c.ffn_dim == 22016);
    c = read_good(
        "{\"model_type\": \"llama\", \"attention_bias\": true, \"rope_scaling\": {\"type\": \"yarn\", \"factor\":"
        "null, \"original_max_position_embeddings\": 512, \"rope_theta\": 5000.0}, \"rope_theta\": 3.0}");
    assert_true(c.qkv_bias && c.out_bias && c.rope_scaling.factor == 4 && c.rope_theta == 5000);
}

// Keys that files have and that change nothing, and the class under other names: each is read as the plain one is.
static void test_harmless(void **state) {
    (void)state;
    static const struct {
        Architecture architecture;
        const char *text;
    } cases[] = {
        // GPT-2 medium as OpenAI's weights were published, and the older library's keys.
        {ARCH_GPT2,
         "{\"activation_function\": \"gelu_new\", \"architectures\": [\"GPT2LMHeadModel\"], \"n_special\": 0,"
         "\"predict_special_tokens\": true, \"output_past\": true, \"finetuning_task\": null,"
         "\"num_labels\": 1, \"torchscript\": false, \"use_bfloat16\": false, \"pruned_heads\": {},"
         "\"xla_device\": true, \"is_decoder\": false, \"gradient_checkpointing\": true,"
         "\"summary_activation\": null, \"summary_first_dropout\": 0.1, \"eos_token_ids\": 0}"},
        {ARCH_GPT2, "{\"architectures\": [\"GPT2Model\"], \"activation_function\": \"gelu_fast\"}"},
        {ARCH_GPT2, "{\"architectures\": [\"TFGPT2LMHeadModel\"], \"model_type\": \"gpt2\"}"},
        {ARCH_GPT2, "{\"architectures\": null, \"model_type\": \"GPT2\", \"chunk_size_feed_forward\": 0}"},
        // The first llama, and what was trained from it.
        {ARCH_LLAMA, "{\"architectures\": [\"LLaMAForCausalLM\"], \"model_type\": \"llama\", \"pad_token_id\": -1,"
                     "\"max_sequence_length\": 2048, \"bos_token_id\": 0, \"eos_token_id\": 1}"},
        {ARCH_LLAMA, "{\"architectures\": [\"LLaMAForCausalLM\"], \"pretraining_tp\": 2, \"model_max_length\": 4096}"},
        {ARCH_LLAMA, "{\"architectures\": [\"FlaxLlamaForCausalLM\"], \"resid_pdrop\": 0.0, \"embd_pdrop\": 0.0}"},
        {ARCH_LLAMA, "{\"architectures\": \"LlamaForCausalLM\", \"_flash_attn_2_enabled\": true}"},
        {ARCH_QWEN2, "{\"architectures\": [\"FSDPQwen2ForCausalLM\"], \"sliding_window\": 4096,"
                     "\"use_sliding_window\": false, \"max_window_layers\": 21, \"use_mrope\": false,"
                     "\"eos_token_id\": [3, 4], \"pad_token_id\": 5}"},
        {ARCH_QWEN2, "{\"architectures\": [\"Qwen2Model\"], \"dual_chunk_attention_config\": null}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ModelConfig c = read_good(cases[i].text);
        assert_int_equal(c.architecture, cases[i].architecture);
    }
}

// ---- writing ----

static void expect_same(const ModelConfig *a, const ModelConfig *b) {
    const RopeScaling *s = &a->rope_scaling, *t = &b->rope_scaling;
    assert_true(a->architecture == b->architecture && a->vocab_size == b->vocab_size && a->layers == b->layers);
    assert_true(a->heads == b->heads && a->kv_heads == b->kv_heads && a->head_dim == b->head_dim && a->dim == b->dim);
    assert_true(a->ffn_dim == b->ffn_dim && a->max_positions == b->max_positions && a->norm_epsilon == b->norm_epsilon);
    assert_true(a->init_std == b->init_std && a->tied_embeddings == b->tied_embeddings && a->qkv_bias == b->qkv_bias);
    assert_true(a->out_bias == b->out_bias && a->mlp_bias == b->mlp_bias && a->rope_theta == b->rope_theta);
    assert_true(a->bos_token == b->bos_token && a->eos_token == b->eos_token);
    assert_true(s->type == t->type && s->factor == t->factor && s->low_freq_factor == t->low_freq_factor);
    assert_true(s->high_freq_factor == t->high_freq_factor && s->original_max_positions == t->original_max_positions);
    assert_true(s->beta_fast == t->beta_fast && s->beta_slow == t->beta_slow && s->truncate == t->truncate);
    assert_true(s->attention_factor == t->attention_factor && s->mscale == t->mscale);
    assert_true(s->mscale_all_dim == t->mscale_all_dim);
    for (int64_t l = 0; l < a->layers; l++)
        assert_int_equal(config_window(a, l, INT64_MAX), config_window(b, l, INT64_MAX));
}

static void expect_round_trip(const ModelConfig *config) {
    ModelConfig back;
    Error err;
    memset(&back, 0x5A, sizeof back);
    if (!config_write(config, NULL, file_path, &err) || !config_read(&back, file_path, &err))
        fail_msg("%s", err.message);
    expect_same(config, &back);
    memset(&back, 0x5A, sizeof back);
    assert_true(config_write(config, NULL, folder, &err) && config_read(&back, folder, &err)); // by the folder's name
    expect_same(config, &back);
}

static void test_round_trips(void **state) {
    (void)state;
    static const char *const texts[] = {gpt2_text,  smollm2_text,    llama3_text,
                                        qwen2_text, qwen2_yarn_text, new_style_text};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        ModelConfig config = read_good(texts[i]);
        expect_round_trip(&config);
    }
    ModelConfig config = read_good(llama3_text);
    config.rope_scaling = (RopeScaling){.type = ROPE_YARN,
                                        .factor = 1.1,
                                        .original_max_positions = 1234.5,
                                        .beta_fast = 16,
                                        .beta_slow = 0.75,
                                        .attention_factor = 1.0 / 3,
                                        .mscale = 0.707,
                                        .mscale_all_dim = 1.5,
                                        .truncate = false};
    config.norm_epsilon = 1.0 / 3e6;
    config.init_std = 0.1 + 0.2;
    config.qkv_bias = config.out_bias = config.mlp_bias = true;
    config.head_dim = 48;
    config.bos_token = -1;
    expect_round_trip(&config);
    config = read_good(qwen2_text);
    config.head_dim = 48;
    config.tied_embeddings = false;
    expect_round_trip(&config);
    config = read_good(gpt2_text);
    config.tied_embeddings = false;
    config.ffn_dim = 1000;
    config.vocab_size = 257;
    expect_round_trip(&config);
}

static void test_written_keys(void **state) { // what from_pretrained must find
    (void)state;
    static const char *const texts[] = {gpt2_text, llama3_text, qwen2_text};
    static const char *const keys[] = {
        "model_type architectures vocab_size n_positions n_embd n_layer n_head n_inner activation_function resid_pdrop "
        "embd_pdrop attn_pdrop layer_norm_epsilon initializer_range tie_word_embeddings bos_token_id eos_token_id",
        "model_type architectures vocab_size max_position_embeddings hidden_size intermediate_size num_hidden_layers "
        "num_attention_heads num_key_value_heads head_dim hidden_act rms_norm_eps rope_theta rope_scaling "
        "attention_bias "
        "mlp_bias attention_dropout initializer_range tie_word_embeddings bos_token_id eos_token_id",
        "model_type architectures vocab_size max_position_embeddings hidden_size intermediate_size num_hidden_layers "
        "num_attention_heads num_key_value_heads hidden_act rms_norm_eps rope_theta rope_scaling use_sliding_window "
        "attention_dropout initializer_range tie_word_embeddings bos_token_id eos_token_id"};
    for (int i = 0; i < 3; i++) {
        ModelConfig config = read_good(texts[i]);
        Error err;
        assert_true(config_write(&config, NULL, file_path, &err));
        JsonDocument *document = json_read_file(file_path, &err);
        assert_non_null(document);
        char list[1000], *key = list;
        strcpy(list, keys[i]);
        while ((key = strtok(key, " ")) != NULL) {
            if (json_get(json_root(document), key) == NULL) fail_msg("%s is not written", key);
            key = NULL;
        }
        json_free(document);
    }
}

// What the source file has and this program does not set is written as it stands; what it sets, and names that would
// contradict it, are not.
static void test_kept_keys(void **state) {
    (void)state;
    static const char source_text[] =
        "{\"architectures\": [\"LLaMAForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 300, \"hidden_size\": "
        "64,"
        "\"num_attention_heads\": 4, \"num_hidden_layers\": 2, \"intermediate_size\": 128, \"dtype\": \"bfloat16\","
        "\"rope_parameters\": {\"rope_theta\": 25000.0, \"rope_type\": \"linear\", \"factor\": 2.0},"
        "\"eos_token_id\": [7, 8, 9], \"bos_token_id\": null, \"pad_token_id\": -1, \"attention_dropout\": 0.10,"
        "\"hidden_act\": \"swish\", \"use_cache\": false, \"num_beams\": 12345678901234567890123,"
        "\"task_specific_params\": {\"a\\u00e9\\n\\\"\": [1e-05, true, null, {}]}, \"transformers_version\": \"4.1\"}";
    static const char *const kept[] = {"\"eos_token_id\": [7, 8, 9]",
                                       "\"bos_token_id\": null",
                                       "\"pad_token_id\": -1",
                                       "\"attention_dropout\": 0.10",
                                       "\"hidden_act\": \"swish\"",
                                       "\"use_cache\": false",
                                       "\"num_beams\": 12345678901234567890123",
                                       "\"task_specific_params\": {\"a\xC3\xA9\\u000a\\\"\": [1e-05, true, null, {}]}",
                                       "\"transformers_version\": \"4.1\"",
                                       "\"architectures\": [\"LlamaForCausalLM\"]",
                                       "\"torch_dtype\": \"float32\"",
                                       "\"rope_theta\": 25000.0"};
    ModelConfig config = read_good(source_text), back;
    Error err;
    JsonDocument *source = json_parse(source_text, strlen(source_text), "source", &err);
    assert_non_null(source);
    assert_true(config_write(&config, json_root(source), file_path, &err));
    char *text = read_file(file_path, NULL);
    for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++)
        if (strstr(text, kept[i]) == NULL) fail_msg("%s is not in %s", kept[i], text);
    assert_null(strstr(text, "rope_parameters"));
    assert_null(strstr(text, "\"dtype\""));
    free(text);
    json_free(source);
    if (!config_read(&back, file_path, &err)) fail_msg("%s", err.message); // no key twice, among other things
    expect_same(&config, &back);
    source = json_read_file(file_path, &err); // written again from itself it is the same
    assert_non_null(source);
    text = read_file(file_path, NULL);
    assert_true(config_write(&config, json_root(source), file_path, &err));
    char *again = read_file(file_path, NULL);
    assert_string_equal(again, text);
    free(text);
    free(again);
    json_free(source);
}

// ---- windows ----

static const char mistral_text[] =
    "{\"architectures\": [\"MistralForCausalLM\"], \"bos_token_id\": 1, \"eos_token_id\": 2, \"hidden_act\": \"silu\","
    "\"hidden_size\": 4096, \"initializer_range\": 0.02, \"intermediate_size\": 14336,"
    "\"max_position_embeddings\": 32768, \"model_type\": \"mistral\", \"num_attention_heads\": 32,"
    "\"num_hidden_layers\": 32, \"num_key_value_heads\": 8, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0,"
    "\"sliding_window\": 4096, \"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\","
    "\"transformers_version\": \"4.34.0.dev0\", \"use_cache\": true, \"vocab_size\": 32000}";

static void expect_windows(const char *text, const int64_t *windows, int64_t layers) {
    ModelConfig c = read_good(text);
    assert_int_equal(c.layers, layers);
    for (int64_t l = 0; l < layers; l++) assert_int_equal(config_window(&c, l, INT64_MAX), windows[l]);
    expect_round_trip(&c);
}

static void test_windows_read(void **state) {
    (void)state;
    ModelConfig c = read_good(mistral_text);
    assert_true(c.architecture == ARCH_LLAMA && c.kv_heads == 8 && c.head_dim == 128 && !c.qkv_bias);
    assert_true(config_window(&c, 31, INT64_MAX) == 4096 && config_window(&c, 0, 4097) == 4096);
    assert_true(config_window(&c, 0, 4096) == 0 && !config_has_windows(&c, 4096)); // hides nothing
    const int64_t class_own[] = {4096, 4096}, none[] = {0, 0, 0}, late[] = {0, 8, 8}, all[] = {8, 8, 8};
    expect_windows("{\"model_type\": \"mistral\", \"num_hidden_layers\": 2}", class_own, 2);
    expect_windows("{\"model_type\": \"mistral\", \"num_hidden_layers\": 2, \"sliding_window\": null}", none, 2);
    static const char *const qwen2[] = {
        "\"use_sliding_window\": false, \"sliding_window\": 8, \"max_window_layers\": 1",
        "\"use_sliding_window\": true, \"sliding_window\": null",
        "\"use_sliding_window\": true, \"sliding_window\": 8, \"max_window_layers\": 3",
        "\"use_sliding_window\": true, \"sliding_window\": 8",
        "\"use_sliding_window\": true, \"sliding_window\": 8, \"max_window_layers\": 0",
        "\"use_sliding_window\": true, \"sliding_window\": 8, \"max_window_layers\": 1, \"layer_types\": "
        "[\"full_attention\", \"sliding_attention\", \"sliding_attention\"]",
        "\"use_sliding_window\": true, \"sliding_window\": 8, \"max_window_layers\": 1"};
    for (int i = 0; i < 7; i++) {
        char text[1000];
        snprintf(text, sizeof text, "{\"model_type\": \"qwen2\", \"num_hidden_layers\": 3, %s}", qwen2[i]);
        expect_windows(text, i < 4 ? none : i == 4 ? all : late, 3);
    }
}

// The class that a model is written as can do what it does; where none can, no other program takes the file for one of
// its own.
static void test_windows_written(void **state) {
    (void)state;
    static const struct {
        Architecture architecture;
        int64_t windows[3], period;
        const char *expected[2], *not_expected;
    } cases[] = {
        {ARCH_LLAMA, {8}, 1, {"\"MistralForCausalLM\"", "\"sliding_window\": 8"}, "attention_bias"},
        {ARCH_LLAMA, {8, 8, 8}, 3, {"\"model_type\": \"mistral\"", "\"sliding_window\": 8"}, "window_pattern"},
        {ARCH_LLAMA, {0, 0}, 2, {"\"LlamaForCausalLM\"", "\"model_type\": \"llama\""}, "window"},
        {ARCH_LLAMA, {8, 0}, 2, {"\"TrainGptLlamaForCausalLM\"", "\"window_pattern\": [8, 0]"}, "sliding"},
        {ARCH_LLAMA, {8, 4, 0}, 3, {"\"model_type\": \"train_gpt_llama\"", "[8, 4, 0]"}, "sliding"},
        {ARCH_QWEN2, {8}, 1, {"\"use_sliding_window\": true", "\"max_window_layers\": 0"}, "pattern"},
        {ARCH_QWEN2, {8, 4}, 2, {"\"model_type\": \"train_gpt_qwen2\"", "[8, 4]"}, "sliding"},
        {ARCH_GPT2, {8}, 1, {"\"TrainGptGPT2LMHeadModel\"", "\"model_type\": \"train_gpt_gpt2\""}, "sliding"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *plain[] = {"{\"model_type\": \"gpt2\"}", "{\"model_type\": \"llama\"}",
                               "{\"model_type\": \"qwen2\"}"};
        ModelConfig c = read_good(plain[cases[i].architecture]);
        Error err;
        c.layers = 4;
        memcpy(c.windows, cases[i].windows, sizeof cases[i].windows);
        c.window_period = cases[i].period;
        expect_round_trip(&c);
        assert_true(config_write(&c, NULL, file_path, &err));
        char *text = read_file(file_path, NULL);
        for (int n = 0; n < 2; n++)
            if (strstr(text, cases[i].expected[n]) == NULL) fail_msg("%s is not in %s", cases[i].expected[n], text);
        if (strstr(text, cases[i].not_expected) != NULL) fail_msg("%s is in %s", cases[i].not_expected, text);
        free(text);
    }
}

// A file that is written over one with other windows does not contradict itself, and Mistral stays Mistral.
static void test_windows_over_a_source(void **state) {
    (void)state;
    static const char *const sources[] = {
        "{\"model_type\": \"qwen2\", \"num_hidden_layers\": 2, \"use_sliding_window\": true, \"sliding_window\": 8,"
        "\"max_window_layers\": 1, \"layer_types\": [\"full_attention\", \"sliding_attention\"]}",
        "{\"model_type\": \"mistral\", \"num_hidden_layers\": 2, \"sliding_window\": 8}"};
    static const int64_t periods[] = {0, 1, 2}; // none; 16; 16, 0
    for (int i = 0; i < 2; i++) {
        for (int p = 0; p < 3; p++) {
            Error err;
            JsonDocument *source = json_parse(sources[i], strlen(sources[i]), "source", &err);
            ModelConfig c = read_good(sources[i]), back;
            c.windows[0] = 16, c.windows[1] = 0, c.window_period = periods[p], c.full_layers = 0;
            assert_true(config_write(&c, json_root(source), file_path, &err));
            if (!config_read(&back, file_path, &err)) fail_msg("%s", err.message); // no key twice, among other things
            expect_same(&c, &back);
            char *text = read_file(file_path, NULL);
            if (i == 1) assert_true((strstr(text, "\"MistralForCausalLM\"") != NULL) == (p < 2));
            free(text);
            json_free(source);
        }
    }
}

static void test_write_errors(void **state) {
    (void)state;
    ModelConfig config = read_good(gpt2_text);
    Error err;
    char absent[PROGRAM_PATH];
    assert_false(config_write(&config, NULL, path_join(absent, folder, "absent/config.json"), &err));
    assert_non_null(strstr(err.message, "absent/config.json: cannot write: No such file"));
    assert_false(config_write(&config, NULL, "/dev/full", &err));
    assert_string_equal(err.message, "/dev/full: cannot write: No space left on device");
    assert_false(config_read(&config, absent, &err));
    assert_non_null(strstr(err.message, "absent/config.json: cannot open: No such file"));
    config.heads = 7;
    config.head_dim = 0;
    assert_false(config_write(&config, NULL, file_path, &err));
}

// ---- refusals ----

static void test_refused_keys(void **state) {
    (void)state;
    static const struct {
        const char *model_type, *members, *message; // the message after the file's name
    } cases[] = {
        {"gpt2", "\"activation_function\": \"relu\"",
         "\"activation_function\" is supported only as \"gelu_new\" or \"gelu_pytorch_tanh\""},
        {"gpt2", "\"activation_function\": \"gelu\"",
         "\"activation_function\" is supported only as \"gelu_new\" or \"gelu_pytorch_tanh\""},
        {"gpt2", "\"scale_attn_weights\": false", "\"scale_attn_weights\" is supported only as true"},
        {"gpt2", "\"scale_attn_by_inverse_layer_idx\": true",
         "\"scale_attn_by_inverse_layer_idx\" is supported only as false"},
        {"gpt2", "\"add_cross_attention\": true", "\"add_cross_attention\" is supported only as false"},
        {"gpt2", "\"n_special\": 3", "\"n_special\" is supported only as 0"},
        {"gpt2", "\"eos_token_id\": [1, \"</s>\"]", "\"eos_token_id\" must be a token's number"},
        {"gpt2", "\"eos_token_id\": []", "\"eos_token_id\" must be a token's number"},
        {"qwen2", "\"dual_chunk_attention_config\": {\"chunk_size\": 262144}",
         "\"dual_chunk_attention_config\" is unknown for this architecture: it might change the model; remove it if it "
         "does not"},
        {"llama", "\"use_sliding_window\": true", "\"use_sliding_window\" is supported only as false"},
        {"gpt2", "\"architectures\": [\"GPT2LMHeadModelX\"]",
         "\"model_type\" gpt2 with \"architectures\" GPT2LMHeadModelX is not supported; gpt2 (GPT2LMHeadModel), llama "
         "(LlamaForCausalLM), mistral (MistralForCausalLM) and qwen2 (Qwen2ForCausalLM) are"},
        {"gpt2", "\"pruned_heads\": {\"1\": [0]}", "\"pruned_heads\" is not supported"},
        {"gpt2", "\"resid_pdrop\": 1", "\"resid_pdrop\" must be a number from 0 to below 1"},
        {"gpt2", "\"n_layer\": 0", "\"n_layer\" must be a whole number of at least 1"},
        {"gpt2", "\"n_layer\": -3", "\"n_layer\" must be a whole number of at least 1"},
        {"gpt2", "\"n_layer\": 12.0", "\"n_layer\" must be a whole number of at least 1"},
        {"gpt2", "\"n_layer\": \"12\"", "\"n_layer\" must be a whole number of at least 1"},
        {"gpt2", "\"n_layer\": 99999999999999999999", "\"n_layer\" must be a whole number of at least 1"},
        {"gpt2", "\"layer_norm_epsilon\": \"small\"", "\"layer_norm_epsilon\" must be a number"},
        {"gpt2", "\"tie_word_embeddings\": 1", "\"tie_word_embeddings\" must be true or false"},
        {"gpt2", "\"bos_token_id\": \"<s>\"", "\"bos_token_id\" must be a token's number"},
        {"gpt2", "\"n_experts\": 8",
         "\"n_experts\" is unknown for this architecture: it might change the model; remove it if it does not"},
        {"gpt2", "\"rope_theta\": 10000.0",
         "\"rope_theta\" is unknown for this architecture: it might change the model; remove it if it does not"},
        {"gpt2", "\"hidden_size\": 768",
         "\"hidden_size\" is unknown for this architecture: it might change the model; remove it if it does not"},
        {"gpt2", "\"\": 1",
         "\"\" is unknown for this architecture: it might change the model; remove it if it does not"},
        {"gpt2", "\"a\\nb\": 1",
         "\"a?b\" is unknown for this architecture: it might change the model; remove it if it does not"},
        {"gpt2", "\"dtype use_cache\": 1",
         "\"dtype use_cache\" is unknown for this architecture: it might change the model; remove it if it does not"},
        {"llama", "\"quantization_config\": {\"bits\": 4}",
         "\"quantization_config\" is unknown for this architecture: it might change the model; remove it if it does "
         "not"},
        {"llama", "\"sliding_window\": 4096",
         "\"sliding_window\" is unknown for this architecture: it might change the model; remove it if it does not"},
        {"llama", "\"auto_map\": {}",
         "\"auto_map\" is unknown for this architecture: it might change the model; remove it if it does not"},
        {"llama", "\"hidden_act\": \"gelu\"", "\"hidden_act\" is supported only as \"silu\" or \"swish\""},
        {"llama", "\"partial_rotary_factor\": 0.5", "\"partial_rotary_factor\" is supported only as 1"},
        {"llama", "\"rope_interleaved\": true", "\"rope_interleaved\" is supported only as false"},
        {"llama", "\"layer_types\": [\"full_attention\", \"sliding_attention\"]",
         "\"layer_types\" is supported only with \"full_attention\" for every layer"},
        {"qwen2", "\"use_sliding_window\": 1", "\"use_sliding_window\" must be true or false"},
        {"qwen2", "\"use_sliding_window\": true, \"sliding_window\": 0",
         "\"use_sliding_window\" needs \"sliding_window\" above 0 and \"max_window_layers\" of at least 0"},
        {"qwen2", "\"use_sliding_window\": true, \"max_window_layers\": \"all\"",
         "\"use_sliding_window\" needs \"sliding_window\" above 0 and \"max_window_layers\" of at least 0"},
        {"qwen2",
         "\"use_sliding_window\": true, \"max_window_layers\": 1, \"layer_types\": [\"sliding_attention\", "
         "\"full_attention\"]",
         "\"layer_types\" is supported only as \"use_sliding_window\" and \"max_window_layers\" have it: "
         "\"full_attention\" first, then \"sliding_attention\""},
        {"qwen2", "\"layer_types\": [\"sliding_attention\"]",
         "\"layer_types\" is supported only as \"use_sliding_window\" and \"max_window_layers\" have it: "
         "\"full_attention\" first, then \"sliding_attention\""},
        {"mistral", "\"sliding_window\": -1", "\"sliding_window\" must be a whole number of at least 1, or null"},
        {"mistral", "\"attention_bias\": true",
         "mistral has no biases, but \"attention_bias\" or \"mlp_bias\" is true"},
        {"llama", "\"window_pattern\": [4]",
         "\"window_pattern\" is unknown for this architecture: it might change the model; remove it if it does not"},
        {"qwen2", "\"attention_bias\": false", "\"attention_bias\" is supported only as true"},
        {"qwen2", "\"mlp_bias\": true", "\"mlp_bias\" is supported only as false"},
        {"llama", "\"rope_scaling\": 4", "\"rope_scaling\" must be an object or null"},
        {"llama", "\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}",
         "\"rope_scaling\" of type \"dynamic\" is not supported; default, linear, llama3 and yarn are"},
        {"llama", "\"rope_parameters\": {\"rope_type\": \"longrope\"}",
         "\"rope_parameters\" of type \"longrope\" is not supported; default, linear, llama3 and yarn are"},
        {"llama", "\"rope_scaling\": {\"type\": \"linear\", \"rope_type\": \"yarn\", \"factor\": 2.0}",
         "\"rope_scaling\" must name one type, as \"rope_type\""},
        {"llama", "\"rope_scaling\": {\"type\": \"linear\"}", "\"rope_scaling\": \"factor\" is missing"},
        {"llama", "\"rope_scaling\": {\"type\": \"yarn\"}", "\"rope_scaling\": \"factor\" is missing"},
        {"llama", "\"rope_scaling\": {\"type\": \"linear\", \"factor\": -2}",
         "\"rope_scaling\": \"factor\" must be a number above 0"},
        {"llama", "\"rope_scaling\": {\"type\": \"linear\", \"factor\": \"2\"}",
         "\"rope_scaling\": \"factor\" must be a number above 0"},
        {"llama", "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2, \"beta_fast\": 3}",
         "\"rope_scaling\": \"beta_fast\" does not belong to this type"},
        {"llama", "\"rope_scaling\": {\"factor\": 2}", "\"rope_scaling\": \"factor\" does not belong to this type"},
        {"llama", "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 2, \"high_freq_factor\": 4}",
         "\"rope_scaling\": \"low_freq_factor\" is missing"},
        {"llama", "\"rope_scaling\": {\"rope_type\": \"default\", \"short_factor\": [1]}",
         "\"rope_scaling\": \"short_factor\" is unknown: it might change the model; remove it if it does not"},
        {"llama", "\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}",
         "\"rope_parameters\": \"full_attention\" is unknown: it might change the model; remove it if it does not"},
        {"llama", "\"rope_parameters\": {\"rope_type\": \"default\", \"partial_rotary_factor\": 0.25}",
         "\"rope_parameters\": \"partial_rotary_factor\" is supported only as 1"},
        {"llama", "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2.0, \"truncate\": 0}",
         "\"rope_scaling\": \"truncate\" must be true or false"},
        {"llama",
         "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}, \"rope_parameters\": {\"rope_theta\": 5.0}",
         "both \"rope_scaling\" and \"rope_parameters\" are given; keep one"},
        {"llama", "\"num_attention_heads\": 6, \"num_key_value_heads\": 4, \"hidden_size\": 60",
         "--kv-heads 4 does not divide --heads 6"},
        {"llama", "\"num_attention_heads\": 7, \"hidden_size\": 60", "--heads 7 does not divide --dim 60"},
        {"llama", "\"rms_norm_eps\": 0", "the norms' epsilon is 0; it must be above 0"},
        {"llama", "\"rope_theta\": 1", "--rope-theta is 1; it must be above 1"},
        {"llama", "\"num_attention_heads\": 20, \"hidden_size\": 60",
         "the width of a head is 3; rotary positions turn pairs, so it must be even (--dim / --heads)"},
        {"llama", "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0.5}",
         "rope_scaling's factor is 0.5; it must be at least 1"},
        {"llama",
         "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 2, \"low_freq_factor\": 4, \"high_freq_factor\": "
         "4}",
         "rope_scaling's low_freq_factor 4 and high_freq_factor 4 must be above 0, the second above the first"},
        {"mixtral", "\"vocab_size\": 5",
         "\"model_type\" mixtral with \"architectures\" absent is not supported; gpt2 (GPT2LMHeadModel), llama "
         "(LlamaForCausalLM), mistral (MistralForCausalLM) and qwen2 (Qwen2ForCausalLM) are"},
        {"llama", "\"architectures\": [\"LlamaForSequenceClassification\"]",
         "\"model_type\" llama with \"architectures\" LlamaForSequenceClassification is not supported; gpt2 "
         "(GPT2LMHeadModel), llama (LlamaForCausalLM), mistral (MistralForCausalLM) and qwen2 (Qwen2ForCausalLM) are"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[1000], expected[2 * PROGRAM_PATH];
        ModelConfig config;
        Error err;
        snprintf(text, sizeof text, "{\"model_type\": \"%s\", %s}", cases[i].model_type, cases[i].members);
        if (read_text(&config, text, &err)) fail_msg("%s was accepted", text);
        snprintf(expected, sizeof expected, "%s: %s", file_path, cases[i].message);
        assert_string_equal(err.message, expected);
        assert_int_equal(err.exit_code, EXIT_RUNTIME);
    }
    ModelConfig config;
    Error err;
    assert_false(read_text(&config, "[]", &err));
    assert_non_null(strstr(err.message, ": not a JSON object"));
    assert_false(read_text(&config, "{}", &err));
    assert_non_null(strstr(err.message, "\"model_type\" absent with \"architectures\" absent is not supported"));
    assert_false(read_text(&config, "{\"model_type\": \"gpt2\"", &err));
    assert_non_null(strstr(err.message, "config.json: line 1, column 22: the text ends"));
}

static ModelConfig small_llama(void) {
    return (ModelConfig){.architecture = ARCH_LLAMA,
                         .vocab_size = 257,
                         .layers = 2,
                         .heads = 4,
                         .kv_heads = 2,
                         .head_dim = 8,
                         .dim = 32,
                         .ffn_dim = 64,
                         .max_positions = 128,
                         .norm_epsilon = 1e-5,
                         .init_std = 0.02,
                         .rope_theta = 1e4,
                         .bos_token = -1,
                         .eos_token = 256};
}

static void test_check(void **state) { // configurations made from options: exit code 2
    (void)state;
    Error err;
    ModelConfig good = small_llama();
    assert_true(config_check(&good, &err));
#define REFUSED(change, text)                                                                                          \
    do {                                                                                                               \
        ModelConfig c = small_llama();                                                                                 \
        err = (Error){0};                                                                                              \
        change;                                                                                                        \
        assert_false(config_check(&c, &err));                                                                          \
        assert_string_equal(err.message, text);                                                                        \
        assert_int_equal(err.exit_code, EXIT_USAGE);                                                                   \
    } while (0)
    REFUSED(c.layers = 0, "the number of layers (--layers) is 0; it must be from 1 to 2147483647");
    REFUSED(c.heads = -1, "the number of heads (--heads) is -1; it must be from 1 to 2147483647");
    REFUSED(c.kv_heads = 3, "--kv-heads 3 does not divide --heads 4");
    REFUSED((c.heads = 5, c.head_dim = 0), "--heads 5 does not divide --dim 32");
    REFUSED(c.head_dim = 258, "the width of a head is 258 (--dim / --heads); at most 256 is supported");
    REFUSED(c.head_dim = 7,
            "the width of a head is 7; rotary positions turn pairs, so it must be even (--dim / --heads)");
    REFUSED(c.dim = INT64_C(1) << 40, "the width (--dim) is 1099511627776; it must be from 1 to 2147483647");
    REFUSED(c.init_std = NAN, "the initial standard deviation is nan; it must not be negative");
    REFUSED(c.norm_epsilon = INFINITY, "the norms' epsilon is inf; it must be above 0");
    REFUSED(c.rope_theta = NAN, "--rope-theta is nan; it must be above 1");
    REFUSED((c.architecture = ARCH_GPT2, c.qkv_bias = c.out_bias = c.mlp_bias = true),
            "--kv-heads 2 with --arch gpt2, where every head has its own keys (4)");
    REFUSED((c.architecture = ARCH_GPT2, c.kv_heads = 4), "gpt2 has biases on every matrix");
    REFUSED(c.qkv_bias = true,
            "llama has biases on all of q, k, v and the attention's output, or on none; qwen2 has them on "
            "q, k, v alone");
    REFUSED(c.architecture = ARCH_QWEN2, "qwen2 has biases on q, k and v and nowhere else");
    REFUSED(c.eos_token = -2, "the tokens that begin and end a text are -1 and -2; the least is 0");
#undef REFUSED
}

// ---- rotary tables ----

static char *next_line(char **text) {
    char *line = *text, *end = strchr(line, '\n');
    assert_non_null(end);
    *end = '\0';
    *text = end + 1;
    return line;
}

// The table's entries are the double-precision values rounded to single precision: half a unit in the last place of the
// amplitude, 2^-24 of it; and the two ways of computing a frequency differ by some 1e-15 of it, times the position.
static void check_rope_case(const ModelConfig *config, double amplitude, const double *frequency) {
    enum { POSITIONS = 9 };
    static const int32_t positions[POSITIONS] = {0, 1, 2, 100, 4095, 131072, 1000003, 16777217, INT32_MAX};
    static float cos_table[POSITIONS * CONFIG_MAX_HEAD_DIM / 2], sin_table[POSITIONS * CONFIG_MAX_HEAD_DIM / 2];
    int64_t pairs = config->head_dim / 2;
    rope_tables(config, positions, POSITIONS, cos_table, sin_table);
    for (int i = 0; i < POSITIONS; i++) {
        for (int64_t pair = 0; pair < pairs; pair++) {
            double angle = positions[i] * frequency[pair];
            double tolerance = 0x1p-24 * amplitude + 2e-15 * fabs(angle) + 1e-12;
            double cos_error = fabs(cos_table[i * pairs + pair] - amplitude * cos(angle));
            double sin_error = fabs(sin_table[i * pairs + pair] - amplitude * sin(angle));
            if (!(cos_error <= tolerance && sin_error <= tolerance))
                fail_msg("position %d, pair %d: off by %g and %g, above %g", positions[i], (int)pair, cos_error,
                         sin_error, tolerance);
        }
    }
}

static void test_rope_goldens(void **state) {
    (void)state;
    char path[PROGRAM_PATH];
    char *text = read_file(project_path(path, "test/goldens/rope.txt"), NULL), *rest = text;
    int cases = 0;
    for (; *rest != '\0'; cases++) {
        ModelConfig config = read_good(next_line(&rest));
        double amplitude = strtod(next_line(&rest), NULL), frequency[CONFIG_MAX_HEAD_DIM / 2];
        char *at = next_line(&rest);
        for (int64_t pair = 0; pair < config.head_dim / 2; pair++) {
            char *end;
            frequency[pair] = strtod(at, &end);
            assert_true(end > at);
            at = end;
        }
        assert_int_equal(*at, '\0');
        check_rope_case(&config, amplitude, frequency);
    }
    assert_int_equal(cases, 12);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt2),
        cmocka_unit_test(test_llama),
        cmocka_unit_test(test_qwen2),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_harmless),
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_written_keys),
        cmocka_unit_test(test_kept_keys),
        cmocka_unit_test(test_write_errors),
        cmocka_unit_test(test_windows_read),
        cmocka_unit_test(test_windows_written),
        cmocka_unit_test(test_windows_over_a_source),
        cmocka_unit_test(test_refused_keys),
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_rope_goldens),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
