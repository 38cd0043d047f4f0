// The list of parameters: names and shapes as the Hugging Face classes save them (test/goldens/make_parameters.py), a
// flat vector in which fused matrices stand together, without gaps but for the classifier's padding, and initial values
// that depend on the seed alone.
#include "test/program.h"
#include "test/small_model.h"

#include <inttypes.h>
#include <math.h>

#include "layers/device.h"
#include "mixer/attention.h"
#include "mixer/channel_mlp.h"
#include "model/model.h"

static ModelConfig llama_config(void) {
    return (ModelConfig){.architecture = ARCH_LLAMA,
                         .vocab_size = 301,
                         .layers = 3,
                         .heads = 4,
                         .kv_heads = 2,
                         .head_dim = 6,
                         .dim = 32,
                         .ffn_dim = 48,
                         .max_positions = 128,
                         .norm_epsilon = 1e-5,
                         .init_std = 0.02,
                         .rope_theta = 1e4,
                         .bos_token = -1,
                         .eos_token = -1};
}

static ModelConfig gpt2_config(void) { return small_gpt2(301, 3); }

static ParameterTable list(const ModelConfig *config) {
    ParameterTable table;
    Error err;
    if (!parameters_list(&table, config, config->vocab_size, &err)) fail_msg("%s", err.message);
    return table;
}

static const Parameter *find(const ParameterTable *table, const char *name) {
    for (int i = 0; i < table->count; i++)
        if (strcmp(table->parameter[i].name, name) == 0) return &table->parameter[i];
    fail_msg("no parameter %s", name);
    return NULL;
}

static int64_t offset_of(const ParameterTable *table, const char *format, int64_t layer) {
    char name[80];
    snprintf(name, sizeof name, "%s.%" PRId64 ".%s", table->position_table >= 0 ? "transformer.h" : "model.layers",
             layer, format);
    return find(table, name)->offset;
}

// ---- against the library ----

static char *next_line(char **text) {
    char *line = *text, *end = strchr(line, '\n');
    assert_non_null(end);
    *end = '\0';
    *text = end + 1;
    return line;
}

static void check_line(const ParameterTable *table, const char *line) { // "NAME SIZE SIZE ..."
    char name[200];
    long long shape[2] = {0, 0};
    int numbers = sscanf(line, "%199s %lld %lld", name, &shape[0], &shape[1]) - 1;
    assert_true(numbers == 1 || numbers == 2);
    const Parameter *p = find(table, name);
    if (p->dimensions != numbers || p->shape[0] != shape[0] || p->shape[1] != shape[1])
        fail_msg("%s: (%" PRId64 ", %" PRId64 ") instead of %s", p->name, p->shape[0], p->shape[1], line);
}

static void test_names_and_shapes(void **state) {
    (void)state;
    char path[PROGRAM_PATH], folder[PROGRAM_PATH], file[PROGRAM_PATH];
    char *text = read_file(project_path(path, "test/goldens/parameters.txt"), NULL), *rest = text;
    path_join(file, make_temp_folder(folder), "config.json");
    int models = 0;
    for (; *rest != '\0'; models++) {
        const char *config_text = next_line(&rest);
        ModelConfig config;
        Error err;
        write_file(file, config_text, strlen(config_text));
        if (!config_read(&config, file, &err)) fail_msg("%s", err.message);
        ParameterTable table = list(&config);
        int tensors = 0;
        for (const char *line; *(line = next_line(&rest)) != '\0'; tensors++) check_line(&table, line);
        assert_int_equal(tensors, table.count); // none too many here
        parameters_free(&table);
    }
    assert_int_equal(models, 7);
    free(text);
    remove_tree(folder);
}

static void test_known_sizes(void **state) { // parameters of published models
    (void)state;
    ModelConfig gpt2 = gpt2_config(), llama = llama_config();
    gpt2.vocab_size = 50257, gpt2.layers = 12, gpt2.heads = gpt2.kv_heads = 12, gpt2.head_dim = 64;
    gpt2.dim = 768, gpt2.ffn_dim = 3072, gpt2.max_positions = 1024;
    ParameterTable table = list(&gpt2);
    assert_int_equal(table.total, 124439808);
    assert_int_equal(table.in_matrices, 12 * 12 * 768 * 768 + 50257 * 768);
    parameters_free(&table);
    llama.vocab_size = 128256, llama.layers = 16, llama.heads = 32, llama.kv_heads = 8, llama.head_dim = 64;
    llama.dim = 2048, llama.ffn_dim = 8192, llama.tied_embeddings = true; // Llama-3.2-1B
    table = list(&llama);
    assert_int_equal(table.total, 1235814400);
    assert_int_equal(table.in_matrices, 1235814400 - 33 * 2048);
    parameters_free(&table);
    llama.tied_embeddings = false; // now the embedding is only looked up
    table = list(&llama);
    assert_int_equal(table.total, 1235814400 + 128256 * 2048);
    assert_int_equal(table.in_matrices, 1235814400 - 33 * 2048);
    parameters_free(&table);
}

// ---- the flat vector ----

static void check_layout(const ParameterTable *table) {
    int64_t next = 0;
    for (int i = 0; i < table->count; i++) {
        const Parameter *p = &table->parameter[i];
        assert_int_equal(p->offset, next);
        assert_int_equal(p->size, p->shape[0] * (p->dimensions == 2 ? p->shape[1] : 1));
        assert_int_equal(p->decay, p->dimensions == 2);
        next += p->size;
    }
    assert_int_equal(next, table->total);
    assert_int_equal(table->parameter[0].offset, table->token_table);
}

static void test_llama_layout(void **state) {
    (void)state;
    ModelConfig c = llama_config();
    c.qkv_bias = c.out_bias = c.mlp_bias = true;
    ParameterTable table = list(&c);
    check_layout(&table);
    for (int64_t l = 0; l < c.layers; l++) {
        const LayerOffsets *at = &table.layer[l];
        assert_int_equal(at->norm1.scale, offset_of(&table, "input_layernorm.weight", l));
        assert_int_equal(at->tokens[ATTENTION_QKV], offset_of(&table, "self_attn.q_proj.weight", l));
        assert_int_equal(at->tokens[ATTENTION_QKV] + 24 * 32,
                         offset_of(&table, "self_attn.k_proj.weight", l)); // q has H D = 24 rows
        assert_int_equal(at->tokens[ATTENTION_QKV] + 36 * 32,
                         offset_of(&table, "self_attn.v_proj.weight", l)); // k has KV D = 12
        assert_int_equal(at->tokens[ATTENTION_QKV_BIAS], offset_of(&table, "self_attn.q_proj.bias", l));
        assert_int_equal(at->tokens[ATTENTION_QKV_BIAS] + 24, offset_of(&table, "self_attn.k_proj.bias", l));
        assert_int_equal(at->tokens[ATTENTION_QKV_BIAS] + 36, offset_of(&table, "self_attn.v_proj.bias", l));
        assert_int_equal(at->tokens[ATTENTION_OUT], offset_of(&table, "self_attn.o_proj.weight", l));
        assert_int_equal(at->tokens[ATTENTION_OUT_BIAS], offset_of(&table, "self_attn.o_proj.bias", l));
        assert_int_equal(at->norm2.scale, offset_of(&table, "post_attention_layernorm.weight", l));
        assert_int_equal(at->channels[MLP_UP], offset_of(&table, "mlp.gate_proj.weight", l));
        assert_int_equal(at->channels[MLP_UP] + 48 * 32, offset_of(&table, "mlp.up_proj.weight", l));
        assert_int_equal(at->channels[MLP_UP_BIAS], offset_of(&table, "mlp.gate_proj.bias", l));
        assert_int_equal(at->channels[MLP_UP_BIAS] + 48, offset_of(&table, "mlp.up_proj.bias", l));
        assert_int_equal(at->channels[MLP_DOWN], offset_of(&table, "mlp.down_proj.weight", l));
        assert_int_equal(at->channels[MLP_DOWN_BIAS], offset_of(&table, "mlp.down_proj.bias", l));
        assert_true(at->norm1.bias == -1 && at->norm2.bias == -1);
    }
    assert_int_equal(table.final_norm.scale, find(&table, "model.norm.weight")->offset);
    assert_int_equal(table.classifier, find(&table, "lm_head.weight")->offset);
    assert_true(table.final_norm.bias == -1 && table.position_table == -1);
    for (int i = 0; i < table.count; i++) assert_false(table.parameter[i].transposed);
    parameters_free(&table);

    c.qkv_bias = c.out_bias = c.mlp_bias = false;
    c.tied_embeddings = true;
    table = list(&c);
    check_layout(&table);
    const LayerOffsets *at = &table.layer[1];
    assert_true(at->tokens[ATTENTION_QKV_BIAS] == -1 && at->tokens[ATTENTION_OUT_BIAS] == -1 &&
                at->channels[MLP_UP_BIAS] == -1 && at->channels[MLP_DOWN_BIAS] == -1);
    assert_int_equal(table.classifier, table.token_table);
    parameters_free(&table);
}

static void test_gpt2_layout(void **state) {
    (void)state;
    ModelConfig c = gpt2_config();
    ParameterTable table = list(&c);
    check_layout(&table);
    for (int64_t l = 0; l < c.layers; l++) {
        const LayerOffsets *at = &table.layer[l];
        assert_int_equal(at->norm1.scale, offset_of(&table, "ln_1.weight", l));
        assert_int_equal(at->norm1.bias, offset_of(&table, "ln_1.bias", l));
        assert_int_equal(at->tokens[ATTENTION_QKV], offset_of(&table, "attn.c_attn.weight", l));
        assert_int_equal(at->tokens[ATTENTION_QKV_BIAS], offset_of(&table, "attn.c_attn.bias", l));
        assert_int_equal(at->tokens[ATTENTION_OUT], offset_of(&table, "attn.c_proj.weight", l));
        assert_int_equal(at->tokens[ATTENTION_OUT_BIAS], offset_of(&table, "attn.c_proj.bias", l));
        assert_int_equal(at->norm2.scale, offset_of(&table, "ln_2.weight", l));
        assert_int_equal(at->norm2.bias, offset_of(&table, "ln_2.bias", l));
        assert_int_equal(at->channels[MLP_UP], offset_of(&table, "mlp.c_fc.weight", l));
        assert_int_equal(at->channels[MLP_UP_BIAS], offset_of(&table, "mlp.c_fc.bias", l));
        assert_int_equal(at->channels[MLP_DOWN], offset_of(&table, "mlp.c_proj.weight", l));
        assert_int_equal(at->channels[MLP_DOWN_BIAS], offset_of(&table, "mlp.c_proj.bias", l));
    }
    assert_int_equal(table.position_table, find(&table, "transformer.wpe.weight")->offset);
    assert_int_equal(table.final_norm.scale, find(&table, "transformer.ln_f.weight")->offset);
    assert_int_equal(table.final_norm.bias, find(&table, "transformer.ln_f.bias")->offset);
    assert_int_equal(table.classifier, table.token_table);
    for (int i = 0; i < table.count; i++) { // the layers' matrices, and not the embeddings
        const Parameter *p = &table.parameter[i];
        assert_int_equal(p->transposed, p->dimensions == 2 && strncmp(p->name, "transformer.h.", 14) == 0);
    }
    parameters_free(&table);
}

// ---- the gap that pads the classifier ----

static void test_padded_sizes(void **state) {
    (void)state;
    const int64_t sizes[][2] = {{1, 64},        {64, 64},       {257, 320},       {1000, 1024},    {1023, 1024},
                                {1024, 1024},   {1025, 1152},   {1030, 1152},     {32000, 32000},  {50257, 50304},
                                {49152, 49152}, {50280, 50304}, {128256, 128256}, {151936, 151936}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        assert_int_equal(device_padded_vocab_size(DEVICE_CUDA, sizes[i][0]), sizes[i][1]);
        assert_int_equal(device_padded_vocab_size(DEVICE_EMULATED, sizes[i][0]), sizes[i][1]);
        assert_int_equal(device_padded_vocab_size(DEVICE_CPU, sizes[i][0]), sizes[i][0]);
    }
}

// The same parameters as without it, in the same order; behind the classifier's matrix, zeros.
static void check_gap(const ModelConfig *c) {
    enum { ROWS = 19, SEED = 42 };
    ParameterTable plain = list(c), table;
    Error err;
    if (!parameters_list(&table, c, c->vocab_size + ROWS, &err)) fail_msg("%s", err.message);
    int64_t gap = ROWS * c->dim, after = table.classifier + c->vocab_size * c->dim;
    assert_int_equal(plain.total, plain.in_model);
    assert_int_equal(table.in_model, plain.total);
    assert_int_equal(table.total, plain.total + gap);
    assert_true(table.gap_begin == after && table.gap_end == after + gap);
    assert_true(table.count == plain.count && table.in_matrices == plain.in_matrices);
    assert_true(model_flops(c, &table, 40) == model_flops(c, &plain, 40));
    for (int i = 0; i < table.count; i++) {
        const Parameter *p = &table.parameter[i], *q = &plain.parameter[i];
        assert_string_equal(p->name, q->name);
        assert_true(p->shape[0] == q->shape[0] && p->shape[1] == q->shape[1] && p->size == q->size);
        assert_int_equal(p->offset, q->offset + (q->offset < after ? 0 : gap));
    }

    float *values = malloc((size_t)table.total * sizeof *values), *same = malloc((size_t)plain.total * sizeof *same);
    assert_true(values != NULL && same != NULL);
    memset(values, 0xff, (size_t)table.total * sizeof *values);
    for (int64_t begin = 0, some = 1; begin < table.total; begin += some, some = 2 * some + 1) {
        int64_t end = begin + some < table.total ? begin + some : table.total;
        parameters_initialize(&table, SEED, begin, end, values + begin);
    }
    parameters_initialize(&plain, SEED, 0, plain.total, same);
    for (int64_t i = after; i < after + gap; i++) assert_true(values[i] == 0);
    assert_memory_equal(values, same, (size_t)after * sizeof *values);
    assert_memory_equal(values + after + gap, same + after, (size_t)(plain.total - after) * sizeof *values);
    free(values);
    free(same);
    parameters_free(&plain);
    parameters_free(&table);
}

static void test_gap(void **state) {
    (void)state;
    ModelConfig gpt2 = gpt2_config(), llama = llama_config();
    check_gap(&gpt2); // tied: in the middle
    assert_false(llama.tied_embeddings);
    check_gap(&llama); // at the end
    llama.tied_embeddings = true;
    check_gap(&llama);
}

static void test_too_many(void **state) {
    (void)state;
    ModelConfig c = llama_config();
    ParameterTable table;
    Error err;
    c.layers = 100001;
    assert_false(parameters_list(&table, &c, c.vocab_size, &err));
    assert_string_equal(err.message, "100001 layers (--layers) are too many");
    c.layers = 1000, c.dim = INT64_C(1) << 30, c.ffn_dim = INT64_C(1) << 30;
    assert_false(parameters_list(&table, &c, c.vocab_size, &err));
    assert_non_null(strstr(err.message, "more parameters than can be counted"));
    assert_int_equal(err.exit_code, EXIT_USAGE);
    c.heads = 3;
    assert_false(parameters_list(&table, &c, c.vocab_size, &err)); // unsound: config_check's message
    assert_string_equal(err.message, "--kv-heads 2 does not divide --heads 3");
}

// ---- initial values ----

// Mean and deviation of n normal draws are normal around the true ones with deviations s/sqrt(n) and s/sqrt(2n); five
// of those are exceeded once in two million draws, and the seed is fixed.
static void check_distribution(const Parameter *p, const float *values, double expected) {
    double n = (double)p->size, sum = 0, squares = 0;
    for (int64_t i = 0; i < p->size; i++) sum += values[i];
    double mean = sum / n;
    for (int64_t i = 0; i < p->size; i++) squares += (values[i] - mean) * (values[i] - mean);
    double deviation = sqrt(squares / n);
    if (fabs(mean) > 5 * expected / sqrt(n) || fabs(deviation - expected) > 5 * expected / sqrt(2 * n) + expected / n)
        fail_msg("%s: mean %g, deviation %g instead of %g", p->name, mean, deviation, expected);
}

static void check_initial_values(const ModelConfig *c) {
    ParameterTable table = list(c);
    float *values = malloc((size_t)table.total * sizeof *values);
    assert_non_null(values);
    parameters_initialize(&table, 42, 0, table.total, values);
    for (int i = 0; i < table.count; i++) {
        const Parameter *p = &table.parameter[i];
        const float *x = values + p->offset;
        bool residual = strstr(p->name, "c_proj") || strstr(p->name, "o_proj") || strstr(p->name, "down_proj");
        if (p->dimensions == 2) {
            check_distribution(p, x, residual ? 0.02 / sqrt(2.0 * (double)c->layers) : 0.02);
        } else {
            float constant = strstr(p->name, "bias") ? 0 : 1;
            for (int64_t j = 0; j < p->size; j++) assert_true(x[j] == constant);
        }
    }
    free(values);
    parameters_free(&table);
}

static void test_initial_values(void **state) {
    (void)state;
    ModelConfig gpt2 = gpt2_config(), llama = llama_config();
    llama.qkv_bias = llama.out_bias = true;
    check_initial_values(&gpt2);
    check_initial_values(&llama);
}

// Any cut into ranges gives the same bits, another seed others.
static void test_ranges_agree(void **state) {
    (void)state;
    ModelConfig c = gpt2_config();
    ParameterTable table = list(&c);
    size_t bytes = (size_t)table.total * sizeof(float);
    float *whole = malloc(bytes), *parts = malloc(bytes);
    assert_true(whole != NULL && parts != NULL);
    parameters_initialize(&table, 42, 0, table.total, whole);
    for (int64_t begin = 0, some = 1; begin < table.total; begin += some, some = 2 * some + 1) {
        int64_t end = begin + some < table.total ? begin + some : table.total;
        parameters_initialize(&table, 42, begin, end, parts + begin);
    }
    assert_memory_equal(whole, parts, bytes);
    parameters_initialize(&table, 42, 100, 100, NULL);
    parameters_initialize(&table, 43, 0, table.total, parts);
    int64_t same = 0, drawn = 0;
    for (int i = 0; i < table.count; i++) {
        const Parameter *p = &table.parameter[i];
        for (int64_t j = p->offset; p->dimensions == 2 && j < p->offset + p->size; j++, drawn++)
            same += whole[j] == parts[j];
    }
    assert_true(same < drawn / 1000);
    // Two tensors of one shape are different draws.
    assert_memory_not_equal(whole + table.layer[0].channels[MLP_UP], whole + table.layer[1].channels[MLP_UP],
                            32 * 128 * sizeof(float));
    free(whole);
    free(parts);
    parameters_free(&table);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_and_shapes), cmocka_unit_test(test_known_sizes),
        cmocka_unit_test(test_llama_layout),     cmocka_unit_test(test_gpt2_layout),
        cmocka_unit_test(test_padded_sizes),     cmocka_unit_test(test_gap),
        cmocka_unit_test(test_too_many),         cmocka_unit_test(test_initial_values),
        cmocka_unit_test(test_ranges_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
