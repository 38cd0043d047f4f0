// Weights in another program's folder: other names, tensors that are no parameters, other types; what is missing or
// would change the maths is refused by name.
#include "test/checkpoint_cases.h"

#include "checkpoint/safetensors.h"

// ---- another model's folder ----

typedef struct Extra { // one more tensor in a folder, of zeros
    const char *name;
    int64_t rows, columns;
} Extra;

// A model folder as others write it: names without `cut`, `extra` added (name NULL: none), one tensor left out (or
// NULL).
static void write_foreign(const char *path, const ParameterTable *table, const char *cut, Extra extra,
                          const char *left_out) {
    TensorDeclaration tensors[100] = {{0}};
    int count = 0;
    for (int i = 0; i < table->count; i++) {
        const Parameter *p = &table->parameter[i];
        const char *name = strncmp(p->name, cut, strlen(cut)) == 0 ? p->name + strlen(cut) : p->name;
        if (left_out != NULL && strcmp(left_out, p->name) == 0) continue;
        tensors[count++] = (TensorDeclaration){name, p->dimensions, {p->shape[0], p->shape[1]}};
    }
    if (extra.name) tensors[count++] = (TensorDeclaration){extra.name, 2, {extra.rows, extra.columns}};
    Error err;
    SafetensorsWriter *writer = safetensors_create(path, tensors, count, &err);
    assert_non_null(writer);
    for (int i = 0; i < count; i++) {
        int64_t size = tensors[i].shape[0] * (tensors[i].dimensions == 2 ? tensors[i].shape[1] : 1);
        for (int64_t j = 0; j < size; j++) {
            float value = extra.name && i == count - 1 ? 0 : (float)(i % 7);
            assert_true(safetensors_write(writer, &value, 1, &err));
        }
    }
    assert_true(safetensors_finish(writer, &err));
}

static const Extra nothing = {NULL, 0, 0};

static void expect_readable(const ParameterTable *table) {
    float *flat = malloc((size_t)table->total * sizeof *flat);
    Error err;
    assert_non_null(flat);
    if (!checkpoint_read(folder, CHECKPOINT_PARAMETERS, table, 0, table->total, flat, &err))
        fail_msg("%s", err.message);
    for (int i = 0; i < table->count; i++) assert_true(flat[table->parameter[i].offset] == (float)(i % 7));
    free(flat);
}

static void expect_refused(const ParameterTable *table, const char *message) {
    float value;
    Error err;
    char expected[2 * PROGRAM_PATH];
    assert_false(checkpoint_read(folder, CHECKPOINT_PARAMETERS, table, 0, 1, &value, &err));
    snprintf(expected, sizeof expected, "%s: %s", folder, message);
    assert_string_equal(err.message, expected);
}

static void test_foreign_folders(void **state) {
    (void)state;
    char path[PROGRAM_PATH];
    path_join(path, folder, "model.safetensors");
    write_foreign(path, &gpt2_table, "transformer.", nothing, NULL); // as the first GPT-2 checkpoints were published
    expect_readable(&gpt2_table);
    write_foreign(path, &gpt2_table, "transformer.", (Extra){"h.1.attn.bias", 40, 40}, NULL); // their causal masks
    expect_readable(&gpt2_table);
    write_foreign(path, &gpt2_table, "", (Extra){"transformer.h.0.attn.masked_bias", 1, 1}, NULL);
    expect_readable(&gpt2_table);
    write_foreign(path, &gpt2_table, "", (Extra){"lm_head.weight", 101, 32}, NULL); // equal: both are zeros
    expect_readable(&gpt2_table);
    write_foreign(path, &llama_table, "model.", nothing, NULL);
    expect_readable(&llama_table);
    write_foreign(path, &llama_table, "", (Extra){"model.layers.0.self_attn.rotary_emb.inv_freq", 1, 3}, NULL);
    expect_readable(&llama_table);

    write_foreign(path, &gpt2_table, "transformer.h", (Extra){"lm_head.weight", 100, 32}, NULL);
    expect_refused(&gpt2_table, "tensor transformer.h.0.ln_1.weight is missing");
    write_foreign(path, &gpt2_table, "", (Extra){"lm_head.weight", 100, 32}, NULL);
    expect_refused(&gpt2_table, "lm_head.weight differs from the embedding, but the configuration ties them "
                                "(\"tie_word_embeddings\")");
    write_foreign(path, &gpt2_table, "", (Extra){"transformer.h.0.attn.q_norm", 1, 1}, NULL);
    expect_refused(&gpt2_table,
                   "tensor \"transformer.h.0.attn.q_norm\" is not part of the model: it might change the maths");
    write_foreign(path, &llama_table, "", nothing, "model.layers.1.mlp.up_proj.weight");
    expect_refused(&llama_table, "tensor model.layers.1.mlp.up_proj.weight is missing");
    write_foreign(path, &llama_table, "", nothing, "lm_head.weight"); // the configuration does not tie them
    expect_refused(&llama_table, "tensor lm_head.weight is missing");
    ModelConfig wider = llama;
    ParameterTable table;
    Error err;
    wider.ffn_dim = 50;
    assert_true(parameters_list(&table, &wider, wider.vocab_size, &err));
    write_foreign(path, &llama_table, "", nothing, NULL);
    expect_refused(&table,
                   "tensor model.layers.0.mlp.gate_proj.weight has shape (48, 32) where the model has (50, 32)");
    parameters_free(&table);
    wider = llama;
    wider.qkv_bias = wider.out_bias = true;
    assert_true(parameters_list(&table, &wider, wider.vocab_size, &err));
    expect_refused(&table, "tensor model.layers.0.self_attn.q_proj.bias is missing");
    parameters_free(&table);
}

// A tied classifier that differs in one value, in its last place, and one that is equal.
static void test_tied_classifier(void **state) {
    (void)state;
    char path[PROGRAM_PATH];
    ModelConfig untied = gpt2;
    ParameterTable table;
    Error err;
    path_join(path, folder, "model.safetensors");
    untied.tied_embeddings = false;
    assert_true(parameters_list(&table, &untied, untied.vocab_size, &err));
    for (int different = 0; different < 2; different++) {
        write_foreign(path, &table, "", nothing, NULL); // tensors 0 and last hold 0 and (count - 1) % 7
        size_t bytes;
        char *text = read_file(path, &bytes);
        size_t size = 101 * 32 * sizeof(float); // the classifier ends the file
        memset(text + bytes - size, 0, size);
        if (different) text[bytes - 1] = 1;
        write_file(path, text, bytes);
        free(text);
        if (different)
            expect_refused(&gpt2_table, "lm_head.weight differs from the embedding, but the configuration ties "
                                        "them (\"tie_word_embeddings\")");
        else expect_readable(&gpt2_table);
    }
    parameters_free(&table);
}

static void test_another_dtype(void **state) {
    (void)state;
    char path[PROGRAM_PATH], *at;
    size_t bytes;
    path_join(path, folder, "model.safetensors");
    write_foreign(path, &llama_table, "", nothing, NULL);
    char *text = read_file(path, &bytes);
    static const char entry[] = "\"model.layers.0.input_layernorm.weight\":{\"dtype\":\"F32";
    at = memmem(text, bytes, entry, strlen(entry));
    assert_non_null(at);
    memcpy(at + strlen(entry) - 3, "I32", 3);
    write_file(path, text, bytes);
    free(text);
    expect_refused(&llama_table, "tensor model.layers.0.input_layernorm.weight is not of dtype F32, F16, BF16 or F64");
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, make_checkpoints, remove_folder)
    const struct CMUnitTest tests[] = {
        TEST(test_foreign_folders),
        TEST(test_tied_classifier),
        TEST(test_another_dtype),
    };
#undef TEST
    return cmocka_run_group_tests(tests, make_models, free_models);
}
