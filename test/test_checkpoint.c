// Checkpoints: what is saved comes back to the bit, with what came beside the weights; which are kept and which found.
#include "test/checkpoint_cases.h"

#include <math.h>

#include "base/random.h"
#include "checkpoint/parameter_file.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/sha256.h"
#include "mixer/channel_mlp.h"

// ---- round trips ----

static void test_round_trip(void **state) {
    (void)state;
    save_good(&gpt2, &gpt2_table, 1, 0);
    expect_newest(1);
    expect_checkpoint(in_out("step-00000001"), &gpt2_table, 1);
    save_good(&llama, &llama_table, 123456789, 0); // nine digits come after eight
    expect_newest(123456789);
    expect_checkpoint(in_out("step-123456789"), &llama_table, 123456789);
    ModelConfig config;
    Error err;
    assert_true(config_read(&config, in_out("step-123456789"), &err) && config.ffn_dim == 48);
}

static void test_ranges(void **state) { // what ranks ask for
    (void)state;
    save_good(&gpt2, &gpt2_table, 2, 0);
    const char *path = in_out("step-00000002");
    for (int parts = 2; parts <= 7; parts++)
        for (int i = 0; i < parts; i++)
            expect_range(path, &gpt2_table, 2, i % 3, gpt2_table.total * i / parts, gpt2_table.total * (i + 1) / parts);
    for (uint64_t i = 0; i < 300; i++) { // cuts anywhere, transposed matrices' middles included
        int64_t begin = (int64_t)random_below(5, 1, i, (uint64_t)gpt2_table.total);
        int64_t end = begin + (int64_t)random_below(5, 2, i, 200);
        if (end > gpt2_table.total) end = gpt2_table.total;
        expect_range(path, &gpt2_table, 2, 0, begin, end);
    }
    float value;
    Error err;
    assert_false(checkpoint_read(path, CHECKPOINT_PARAMETERS, &gpt2_table, -1, 0, &value, &err));
    assert_false(checkpoint_read(path, CHECKPOINT_PARAMETERS, &gpt2_table, 0, gpt2_table.total + 1, &value, &err));
}

// The files of a model that is padded in memory are those of one that is not, whatever stands in the gap; and of what
// is read, the gap is zeros.
static void test_gap(void **state) {
    (void)state;
    ModelConfig models[] = {gpt2, llama}; // tied, so that the gap is in the middle, and not
    for (int i = 0; i < 2; i++) {
        ParameterTable table, plain;
        Error err;
        char padded_sum[SHA256_HEX_CHARS], sum[SHA256_HEX_CHARS], file[PROGRAM_PATH], at[PROGRAM_PATH];
        assert_true(parameters_list(&table, &models[i], 128, &err) && parameters_list(&plain, &models[i], 101, &err));
        int64_t gap = table.gap_end - table.gap_begin;
        assert_int_equal(gap, 27 * 32);
        float *flat = malloc((size_t)table.total * sizeof *flat), *dense = malloc((size_t)plain.total * sizeof *dense),
              *back = malloc((size_t)table.total * sizeof *back);
        assert_true(flat != NULL && dense != NULL && back != NULL);
        parameters_initialize(&plain, 1, 0, plain.total, dense);
        parameters_initialize(&table, 1, 0, table.total, flat);
        for (int64_t j = table.gap_begin; j < table.gap_end; j++) flat[j] = NAN;
        assert_true(parameter_file_write(in_folder(file, "plain.safetensors"), &plain, dense, sum, &err));
        assert_true(mkdir(in_folder(at, i == 0 ? "tied" : "untied"), 0777) == 0);
        path_join(file, at, "model.safetensors");
        assert_true(parameter_file_write(file, &table, flat, padded_sum, &err));
        assert_string_equal(padded_sum, sum);

        memset(flat + table.gap_begin, 0, (size_t)gap * sizeof *flat);
        memset(back, 0xff, (size_t)table.total * sizeof *back);
        for (int64_t begin = 0, some = 1; begin < table.total; begin += some, some = 2 * some + 1) {
            int64_t end = begin + some < table.total ? begin + some : table.total;
            if (!checkpoint_read(at, CHECKPOINT_PARAMETERS, &table, begin, end, back + begin, &err))
                fail_msg("%s", err.message);
        }
        assert_memory_equal(back, flat, (size_t)table.total * sizeof *flat);
        free(flat), free(dense), free(back);
        parameters_free(&table);
        parameters_free(&plain);
    }
}

// The file holds GPT-2's matrices as (in, out): element (i, o) of the file is element (o, i) in memory.
static void test_transposition(void **state) {
    (void)state;
    save_good(&gpt2, &gpt2_table, 3, 0);
    Error err;
    Safetensors *file = safetensors_open_folder(in_out("step-00000003"), &err);
    assert_non_null(file);
    const Tensor *up = safetensors_find(file, "transformer.h.1.mlp.c_fc.weight");
    assert_true(up->shape[0] == 32 && up->shape[1] == 72);
    for (int64_t in = 0; in < 32; in++) {
        float row[72];
        assert_true(tensor_to_float(up, in * 72, 72, row, &err));
        for (int64_t o = 0; o < 72; o++)
            assert_true(row[o] == value_of(3, 0, gpt2_table.layer[1].channels[MLP_UP] + o * 32 + in));
    }
    safetensors_close(file);
}

static void test_state_extremes(void **state) {
    (void)state;
    char path[PROGRAM_PATH];
    Error err;
    TrainingState extreme = {.step = INT64_MAX,
                             .seed = UINT64_MAX,
                             .loader = {UINT64_MAX - 1, 0},
                             .context = 1,
                             .batch = INT64_MAX - 1,
                             .steps = 0,
                             .data_fingerprint = (UINT64_C(1) << 53) + 1,
                             .validation_loss = NAN};
    CheckpointWriter *writer = checkpoint_begin(out, 4, &llama, &llama_table, NULL, &err);
    assert_non_null(writer);
    float *flat = calloc((size_t)llama_table.total, sizeof *flat);
    for (int which = 0; which < 3; which++) assert_true(checkpoint_write(writer, (CheckpointVector)which, flat, &err));
    free(flat);
    assert_true(checkpoint_commit(writer, &extreme, 0, &err));
    assert_true(checkpoint_find(out, path, sizeof path, &err));
    TrainingState back;
    assert_true(checkpoint_read_state(path, &back, &err));
    assert_true(back.step == INT64_MAX && back.seed == UINT64_MAX && back.loader.epoch == UINT64_MAX - 1);
    assert_true(back.loader.cursor == 0 && back.context == 1 && back.batch == INT64_MAX - 1 && back.steps == 0);
    assert_true(back.data_fingerprint == (UINT64_C(1) << 53) + 1 && isnan(back.validation_loss));
    char small[10];
    assert_false(checkpoint_find(out, small, sizeof small, &err));
}

static void test_bad_states(void **state) {
    (void)state;
    static const char good[] =
        "{\"format\": 1, \"step\": 5, \"steps\": 9, \"seed\": 1, \"context\": 8, \"batch\": 1, \"loader_epoch\": \"2\","
        "\"loader_cursor\": 3, \"data_fingerprint\": \"18446744073709551615\", \"validation_loss\": null}";
    static const char *const changes[][3] = {
        {"\"format\": 1", "\"format\": 2", "\"format\" is 2; this program reads 1"},
        {"\"step\": 5", "\"stop\": 5", "\"step\" is missing"},
        {"\"step\": 5", "\"step\": -5", "\"step\" must be a whole number from 0"},
        {"\"step\": 5", "\"step\": 5.5", "\"step\" must be a whole number from 0"},
        {"\"seed\": 1", "\"seed\": -1", "\"seed\" must be a whole number from 0 to 2^64 - 1"},
        {"\"seed\": 1", "\"seed\": \"-1\"", "\"seed\" must be a whole number from 0 to 2^64 - 1"},
        {"\"seed\": 1", "\"seed\": \"\"", "\"seed\" must be a whole number from 0 to 2^64 - 1"},
        {"9551615\"", "9551616\"", "\"data_fingerprint\" must be a whole number from 0 to 2^64 - 1"},
        {"\"seed\": 1", "\"seed\": 1, \"data_content\": 4", "\"data_tokens\" is missing"},
        {"\"seed\": 1", "\"seed\": 1, \"data_content\": 4, \"data_tokens\": 5, \"data_name\": 6",
         "\"data_name\" must be a text"},
        {"null}", "\"x\"}", "\"validation_loss\" must be a number or null"},
        {"null}", "null", "line 1, column"},
    };
    char path[PROGRAM_PATH], text[1000];
    TrainingState found;
    Error err;
    path_join(path, folder, "training_state.json");
    write_file(path, good, strlen(good));
    assert_true(checkpoint_read_state(folder, &found, &err));
    assert_true(found.loader.epoch == 2 && found.data_fingerprint == UINT64_MAX);
    assert_true(found.data_content == 0 && found.data_name[0] == '\0'); // as earlier versions wrote it
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        const char *at = strstr(good, changes[i][0]);
        assert_non_null(at);
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, changes[i][1], at + strlen(changes[i][0]));
        write_file(path, text, strlen(text));
        assert_false(checkpoint_read_state(folder, &found, &err));
        if (!strstr(err.message, changes[i][2])) fail_msg("\"%s\" instead of \"%s\"", err.message, changes[i][2]);
    }
}

// ---- what is kept of the model's folder ----

static void put(const char *name, const char *text) {
    char path[PROGRAM_PATH];
    write_file(path_join(path, out, name), text, strlen(text));
}

// Everything beside weights, and nothing else, byte for byte.
static void test_kept_files(void **state) {
    (void)state;
    static const char *const taken[] = {"LICENSE",        "README.md",       "chat_template.jinja",
                                        "empty",          "linked.json",     "merges.txt",
                                        "tokenizer.json", "tokenizer.model", "\xC3\xA9 a'b.txt"};
    static const char *const left[] = {"pytorch_model.bin",
                                       "pytorch_model.bin.index.json",
                                       "model.gguf",
                                       "tf_model.h5",
                                       "model-00001-of-00002.safetensors",
                                       "model.safetensors.index.json",
                                       "optimizer.pt",
                                       "trainer_state.json",
                                       "adapter_config.json",
                                       ".hidden",
                                       "SHA256SUMS",
                                       "training_state.json",
                                       "two\nlines",
                                       "back\\slash"};
    enum { TAKEN = sizeof taken / sizeof taken[0] };
    char path[PROGRAM_PATH], target[PROGRAM_PATH];
    Error err;
    assert_int_equal(mkdir(out, 0777), 0);
    put("config.json", "{\"model_type\": \"gpt2\"}");
    for (int i = 0; i < TAKEN; i++)
        if (strcmp(taken[i], "linked.json") != 0) put(taken[i], strcmp(taken[i], "empty") == 0 ? "" : taken[i]);
    for (size_t i = 0; i < sizeof left / sizeof left[0]; i++) put(left[i], "x");
    write_file(path_join(target, folder, "blob"), "linked.json", 11); // models from a cache are links
    assert_int_equal(symlink(target, path_join(path, out, "linked.json")), 0);
    assert_int_equal(symlink("/nothing/there", path_join(path, out, "dangling.json")), 0);
    assert_int_equal(mkdir(path_join(path, out, "original"), 0777), 0);
    assert_int_equal(mkfifo(path_join(path, out, "pipe.json"), 0666), 0);
    KeptFiles *found = kept_files_read(out, &err);
    if (found == NULL) fail_msg("%s", err.message);
    assert_int_equal(found->count, TAKEN);
    for (int i = 0; i < TAKEN; i++) {
        assert_string_equal(found->file[i].name, taken[i]);
        size_t bytes = strcmp(taken[i], "empty") == 0 ? 0 : strlen(taken[i]);
        assert_true(found->file[i].size == bytes && memcmp(found->file[i].bytes, taken[i], bytes) == 0);
    }
    kept_files_free(found);
}

// Files far larger than any tokenizer are left out, with a line that says so.
static void test_kept_files_have_a_limit(void **state) {
    (void)state;
    char path[PROGRAM_PATH], said[8000];
    Error err;
    assert_int_equal(mkdir(out, 0777), 0);
    put("config.json", "{}");
    put("large.json", "");
    put("small.json", "{}");
    assert_int_equal(truncate(path_join(path, out, "large.json"), (64 << 20) + 1), 0);
    FILE *caught = tmpfile();
    fflush(stderr);
    int before = dup(STDERR_FILENO);
    assert_true(caught != NULL && before >= 0 && dup2(fileno(caught), STDERR_FILENO) >= 0);
    KeptFiles *found = kept_files_read(out, &err);
    fflush(stderr);
    dup2(before, STDERR_FILENO);
    close(before);
    rewind(caught);
    said[fread(said, 1, sizeof said - 1, caught)] = '\0';
    fclose(caught);
    assert_true(found != NULL && found->count == 1);
    assert_string_equal(found->file[0].name, "small.json");
    assert_non_null(strstr(said, "/out/large.json: 67108865 bytes; checkpoints will be without it"));
    kept_files_free(found);
}

// A list of end tokens stays a list, and what stands in no other file is not lost.
static void test_kept_keys(void **state) {
    (void)state;
    char path[PROGRAM_PATH];
    save_good(&llama, &llama_table, 1, 0);
    char *text = read_file(path_join(path, in_out("step-00000001"), "config.json"), NULL);
    assert_non_null(strstr(text, "\"eos_token_id\": [100, 99],\n"));
    assert_non_null(strstr(text, "\"pad_token_id\": 7,\n"));
    assert_non_null(strstr(text, "\"vocab_size\": 101,\n"));
    free(text);
}

// ---- which are kept, which are found ----

static void test_keep(void **state) {
    (void)state;
    for (int64_t step = 10; step <= 50; step += 10) save_good(&llama, &llama_table, step, 2);
    assert_false(path_exists(in_out("step-00000030")));
    assert_true(path_exists(in_out("step-00000040")) && path_exists(in_out("step-00000050")));
    save_good(&llama, &llama_table, 60, 0); // 0: all
    save_good(&llama, &llama_table, 70, 0);
    assert_true(path_exists(in_out("step-00000040")));
    save_good(&llama, &llama_table, 5, 1); // the one just saved stays, even where later steps lie about
    assert_true(path_exists(in_out("step-00000005")) && path_exists(in_out("step-00000070")));
    assert_false(path_exists(in_out("step-00000060")));
}

static void test_other_names(void **state) {
    (void)state;
    static const char *const names[] = {"step-7",         "step-0000000a",         "step-00000009x", "step-000000099",
                                        "xstep-00000009", "step-00000009.partial", "step-",          "notes"};
    save_good(&llama, &llama_table, 8, 0);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) assert_int_equal(mkdir(in_out(names[i]), 0777), 0);
    expect_newest(8);
    save_good(&llama, &llama_table, 10, 1);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) // others' folders stay, a half-written checkpoint goes
        assert_int_equal(path_exists(in_out(names[i])), strcmp(names[i], "step-00000009.partial") != 0);
    assert_false(path_exists(in_out("step-00000008")));
}

static void test_nothing_to_find(void **state) {
    (void)state;
    char path[PROGRAM_PATH], said[8000];
    Error err;
    assert_false(find_newest(path, said, &err));
    assert_non_null(strstr(err.message, "/out: no checkpoint here to resume from"));
    assert_int_equal(mkdir(out, 0777), 0);
    assert_false(find_newest(path, said, &err));
    write_file(in_out("step-00000001"), "", 0); // not even a folder
    assert_false(find_newest(path, said, &err));
    assert_non_null(strstr(err.message, "/out: none of the 1 checkpoints here is whole"));
    assert_non_null(strstr(said, "passing over checkpoint"));
    write_file(path_join(out, folder, "file"), "", 0);
    assert_false(find_newest(path, said, &err));
    assert_non_null(strstr(err.message, "/file: cannot open this folder: Not a directory"));
    assert_false(save_step(&llama, &llama_table, 1, 0, &err));
    assert_non_null(strstr(err.message, "/file: cannot make this folder"));
}

static void test_same_step_again(void **state) {
    (void)state;
    save_good(&gpt2, &gpt2_table, 6, 0);
    save_good(&llama, &llama_table, 6, 0);
    expect_newest(6);
    expect_checkpoint(in_out("step-00000006"), &llama_table, 6);
    assert_false(path_exists(in_out("step-00000006.partial")));
    // A run that was killed between the two renames of a file system without exchange.
    assert_int_equal(rename(in_out("step-00000006"), in_out("step-00000006.replaced")), 0);
    expect_newest(6);
    expect_checkpoint(in_out("step-00000006"), &llama_table, 6);
    assert_int_equal(mkdir(in_out("step-00000006.replaced"), 0777), 0);
    expect_newest(6);
    assert_false(path_exists(in_out("step-00000006.replaced")));
}

static void test_abandoned(void **state) {
    (void)state;
    Error err;
    save_good(&llama, &llama_table, 1, 0);
    CheckpointWriter *writer = checkpoint_begin(out, 2, &llama, &llama_table, NULL, &err);
    assert_true(writer != NULL && path_exists(in_out("step-00000002.partial")));
    checkpoint_abandon(writer);
    assert_false(path_exists(in_out("step-00000002.partial")));
    checkpoint_abandon(NULL);
    writer = checkpoint_begin(out, 3, &llama, &llama_table, NULL, &err); // vectors are missing
    TrainingState training = state_of(3);
    assert_false(checkpoint_commit(writer, &training, 0, &err));
    assert_non_null(strstr(err.message, "model.safetensors was not written"));
    assert_false(path_exists(in_out("step-00000003.partial")) || path_exists(in_out("step-00000003")));
    expect_newest(1);
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, make_checkpoints, remove_folder)
    const struct CMUnitTest tests[] = {
        TEST(test_round_trip), TEST(test_ranges),      TEST(test_transposition),           TEST(test_state_extremes),
        TEST(test_bad_states), TEST(test_kept_files),  TEST(test_kept_files_have_a_limit), TEST(test_kept_keys),
        TEST(test_keep),       TEST(test_other_names), TEST(test_nothing_to_find),         TEST(test_same_step_again),
        TEST(test_abandoned),  TEST(test_gap),
    };
#undef TEST
    return cmocka_run_group_tests(tests, make_models, free_models);
}
