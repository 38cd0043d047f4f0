// Bodies of test/checkpoint_cases.h.
#include "test/checkpoint_cases.h"

#include "base/random.h"
#include "test/small_model.h"

char out[PROGRAM_PATH];
ModelConfig gpt2, llama;
ParameterTable gpt2_table, llama_table;
KeptFiles *kept;
char tokenizer[CHECKPOINT_TOKENIZER_BYTES];

// The folder that the model came from.
static void read_kept(void) {
    static const char config[] = "{\"model_type\": \"llama\", \"eos_token_id\": [100, 99], \"pad_token_id\": 7}";
    char origin[PROGRAM_PATH], path[PROGRAM_PATH];
    Error err;
    make_temp_folder(origin);
    for (size_t i = 0; i < sizeof tokenizer; i++) tokenizer[i] = (char)(i * i % 251); // with zeros
    write_file(path_join(path, origin, "config.json"), config, strlen(config));
    write_file(path_join(path, origin, "tokenizer.json"), tokenizer, sizeof tokenizer);
    kept = kept_files_read(origin, &err);
    remove_tree(origin); // as a checkpoint may be from which a run was resumed
}

int make_models(void **state) {
    (void)state;
    Error err;
    gpt2 = small_gpt2(101, 2);
    gpt2.ffn_dim = 72, gpt2.max_positions = 40;
    llama = (ModelConfig){.architecture = ARCH_LLAMA,
                          .vocab_size = 101,
                          .layers = 2,
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
                          .eos_token = 100};
    read_kept();
    bool ok = kept != NULL && parameters_list(&gpt2_table, &gpt2, gpt2.vocab_size, &err) &&
              parameters_list(&llama_table, &llama, llama.vocab_size, &err);
    return ok ? 0 : -1;
}

int free_models(void **state) {
    (void)state;
    parameters_free(&gpt2_table);
    parameters_free(&llama_table);
    kept_files_free(kept);
    return 0;
}

int make_checkpoints(void **state) {
    make_folder(state);
    in_folder(out, "out");
    return 0;
}

float value_of(int64_t step, int which, int64_t index) { // any bits but those of NaNs
    uint32_t bits = philox4x32((uint64_t)step, (uint64_t)which, (uint64_t)index).word[0];
    float value;
    if ((bits & 0x7F800000) == 0x7F800000) bits &= 0xFF7FFFFF;
    memcpy(&value, &bits, sizeof value);
    return value;
}

TrainingState state_of(int64_t step) {
    return (TrainingState){.step = step,
                           .seed = UINT64_MAX - (uint64_t)step,
                           .loader = {3, UINT64_C(1) << 53},
                           .context = 2048,
                           .batch = 8,
                           .steps = 1000,
                           .data_fingerprint = UINT64_C(0x8000000000000001) + (uint64_t)step,
                           .data_content = UINT64_MAX - 1,
                           .data_tokens = 12345,
                           .data_name = "a \"b\" \\ c\n and 2 more",
                           .validation_loss = 1.0 / 3 + (double)step};
}

const char *in_out(const char *name) {
    static char path[4][PROGRAM_PATH];
    static int turn;
    return path_join(path[turn = (turn + 1) % 4], out, name);
}

bool save_step(const ModelConfig *config, const ParameterTable *table, int64_t step, int keep, Error *err) {
    float *flat = malloc((size_t)table->total * sizeof *flat);
    assert_non_null(flat);
    CheckpointWriter *writer = checkpoint_begin(out, step, config, table, kept, err);
    bool ok = writer != NULL;
    for (int which = 0; ok && which < 3; which++) {
        for (int64_t i = 0; i < table->total; i++) flat[i] = value_of(step, which, i);
        ok = checkpoint_write(writer, (CheckpointVector)which, flat, err);
    }
    free(flat);
    TrainingState state = state_of(step);
    if (ok) return checkpoint_commit(writer, &state, keep, err);
    char partial[40]; // gone already, whether or not the writer is abandoned
    snprintf(partial, sizeof partial, "step-%08lld.partial", (long long)step);
    if (path_exists(in_out(partial))) fail_msg("%s is left after a failure", partial);
    checkpoint_abandon(writer);
    return false;
}

void save_good(const ModelConfig *config, const ParameterTable *table, int64_t step, int keep) {
    Error err;
    if (!save_step(config, table, step, keep, &err)) fail_msg("%s", err.message);
}

void expect_range(const char *path, const ParameterTable *table, int64_t step, int which, int64_t begin, int64_t end) {
    float *flat = malloc((size_t)(end - begin + 1) * sizeof *flat);
    Error err;
    assert_non_null(flat);
    flat[end - begin] = 77; // must stay
    if (!checkpoint_read(path, (CheckpointVector)which, table, begin, end, flat, &err)) fail_msg("%s", err.message);
    assert_true(flat[end - begin] == 77);
    for (int64_t i = begin; i < end; i++) {
        float expected = value_of(step, which, i);
        if (memcmp(&flat[i - begin], &expected, sizeof expected) != 0)
            fail_msg("element %lld of vector %d, range from %lld: %g instead of %g", (long long)i, which,
                     (long long)begin, flat[i - begin], expected);
    }
    free(flat);
}

void expect_checkpoint(const char *path, const ParameterTable *table, int64_t step) {
    TrainingState found, expected = state_of(step);
    Error err;
    for (int which = 0; which < 3; which++) expect_range(path, table, step, which, 0, table->total);
    if (!checkpoint_read_state(path, &found, &err)) fail_msg("%s", err.message);
    assert_true(found.step == step && found.seed == expected.seed && found.loader.epoch == expected.loader.epoch);
    assert_true(found.loader.cursor == expected.loader.cursor && found.context == 2048 && found.batch == 8);
    assert_true(found.steps == 1000 && found.data_fingerprint == expected.data_fingerprint);
    assert_true(found.validation_loss == expected.validation_loss);
    assert_true(found.data_content == UINT64_MAX - 1 && found.data_tokens == 12345);
    assert_string_equal(found.data_name, "a ?b? ? c? and 2 more");
    char name[PROGRAM_PATH];
    size_t bytes;
    char *text = read_file(path_join(name, path, "tokenizer.json"), &bytes);
    assert_true(bytes == sizeof tokenizer && memcmp(text, tokenizer, bytes) == 0);
    free(text);
}

// checkpoint_find, with what it says on standard error into said[].
bool find_newest(char path[PROGRAM_PATH], char said[8000], Error *err) {
    fflush(stderr);
    FILE *caught = tmpfile();
    int before = dup(STDERR_FILENO);
    assert_true(caught != NULL && before >= 0 && dup2(fileno(caught), STDERR_FILENO) >= 0);
    bool ok = checkpoint_find(out, path, PROGRAM_PATH, err);
    fflush(stderr);
    dup2(before, STDERR_FILENO);
    close(before);
    rewind(caught);
    said[fread(said, 1, 7999, caught)] = '\0';
    fclose(caught);
    return ok;
}

void expect_newest(int64_t step) {
    char path[PROGRAM_PATH], expected[2 * PROGRAM_PATH], said[8000];
    Error err;
    if (!find_newest(path, said, &err)) fail_msg("%s", err.message);
    snprintf(expected, sizeof expected, "%s/step-%08lld", out, (long long)step);
    assert_string_equal(path, expected);
}
