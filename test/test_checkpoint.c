// Checkpoints: what is saved comes back to the bit, and nothing that happens while saving or afterwards (a kill, a full
// disk, a flipped bit, a cut file) loses the last good one or lets a bad one pass for good.
#include "test/program.h"

#include <math.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "base/pulse.h"
#include "base/random.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/disk.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/sha256.h"
#include "mixer/mlp.h"

static char folder[PROGRAM_PATH], out[PROGRAM_PATH];
static ModelConfig gpt2, llama;
static ParameterTable gpt2_table, llama_table;
static KeptFiles *kept; // every checkpoint below takes one tokenizer.json along
static char tokenizer[5000];

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

static int set_up(void **state) {
    (void)state;
    Error err;
    gpt2 = (ModelConfig){.architecture = ARCH_GPT2,
                         .vocab_size = 101,
                         .layers = 2,
                         .heads = 4,
                         .kv_heads = 4,
                         .head_dim = 8,
                         .dim = 32,
                         .ffn_dim = 72,
                         .max_positions = 40,
                         .norm_epsilon = 1e-5,
                         .init_std = 0.02,
                         .tied_embeddings = true,
                         .qkv_bias = true,
                         .out_bias = true,
                         .mlp_bias = true,
                         .bos_token = -1,
                         .eos_token = -1};
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
    bool ok = kept != NULL && parameters_list(&gpt2_table, &gpt2, &err) && parameters_list(&llama_table, &llama, &err);
    return ok ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    parameters_free(&gpt2_table);
    parameters_free(&llama_table);
    kept_files_free(kept);
    return 0;
}

static int make_folder(void **state) { // each test has its own
    (void)state;
    path_join(out, make_temp_folder(folder), "out");
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    remove_tree(folder);
    return 0;
}

// ---- saving and reading known values ----

static float value_of(int64_t step, int which, int64_t index) { // any bits but those of NaNs
    uint32_t bits = philox4x32((uint64_t)step, (uint64_t)which, (uint64_t)index).word[0];
    float value;
    if ((bits & 0x7F800000) == 0x7F800000) bits &= 0xFF7FFFFF;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static TrainingState state_of(int64_t step) {
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

static const char *in_out(const char *name) {
    static char path[4][PROGRAM_PATH];
    static int turn;
    return path_join(path[turn = (turn + 1) % 4], out, name);
}

static bool save(const ModelConfig *config, const ParameterTable *table, int64_t step, int keep, Error *err) {
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

static void save_good(const ModelConfig *config, const ParameterTable *table, int64_t step, int keep) {
    Error err;
    if (!save(config, table, step, keep, &err)) fail_msg("%s", err.message);
}

static void expect_range(const char *path, const ParameterTable *table, int64_t step, int which, int64_t begin,
                         int64_t end) {
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

static void expect_checkpoint(const char *path, const ParameterTable *table, int64_t step) {
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
static bool find(char path[PROGRAM_PATH], char said[8000], Error *err) {
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

static void expect_newest(int64_t step) {
    char path[PROGRAM_PATH], expected[2 * PROGRAM_PATH], said[8000];
    Error err;
    if (!find(path, said, &err)) fail_msg("%s", err.message);
    snprintf(expected, sizeof expected, "%s/step-%08lld", out, (long long)step);
    assert_string_equal(path, expected);
}

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
        for (int64_t o = 0; o < 72; o++) assert_true(row[o] == value_of(3, 0, gpt2_table.layer[1].channels[MLP_UP] + o * 32 + in));
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

// ---- sums ----

static void test_sha256(void **state) {
    (void)state;
    char hex[SHA256_HEX_CHARS], *million = malloc(1000000);
    Sha256 sum;
    assert_non_null(million);
    memset(million, 'a', 1000000);
    static const struct {
        size_t length;
        const char
            *hex; // NIST's examples, and lengths about the padding's boundaries (sha256sum's sums of so many "a")
    } cases[] = {
        {0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {1, "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"},
        {55, "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318"},
        {56, "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a"},
        {63, "7d3e74a05d7db15bce4ad9ec0658ea98e3f06eeecf16b4c6fff2da457ddc2f34"},
        {64, "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb"},
        {119, "31eba51c313a5c08226adf18d4a359cfdfd8d2e816b13f4af952f7ea6584dcfb"},
        {1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (size_t piece = 1; piece < 200000; piece = 3 * piece + 4) { // in pieces of any length
            sha256_begin(&sum);
            for (size_t done = 0; done < cases[i].length; done += piece)
                sha256_add(&sum, million + done, cases[i].length - done < piece ? cases[i].length - done : piece);
            sha256_end(&sum, hex);
            assert_string_equal(hex, cases[i].hex);
        }
    }
    sha256_begin(&sum);
    sha256_add(&sum, "abc", 3);
    sha256_end(&sum, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    free(million);
}

static void test_sha256sum_agrees(void **state) { // the file is the one that the coreutils check
    (void)state;
    save_good(&llama, &llama_table, 5, 0);
    if (system("sha256sum --version > /dev/null 2>&1") != 0) {
        print_message("# no sha256sum here: left out\n");
        return;
    }
    char command[2 * PROGRAM_PATH];
    snprintf(command, sizeof command, "cd '%s' && sha256sum --strict --quiet -c SHA256SUMS", in_out("step-00000005"));
    assert_int_equal(system(command), 0);
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
    assert_false(find(path, said, &err));
    assert_non_null(strstr(err.message, "/out: no checkpoint here to resume from"));
    assert_int_equal(mkdir(out, 0777), 0);
    assert_false(find(path, said, &err));
    write_file(in_out("step-00000001"), "", 0); // not even a folder
    assert_false(find(path, said, &err));
    assert_non_null(strstr(err.message, "/out: none of the 1 checkpoints here is whole"));
    assert_non_null(strstr(said, "passing over checkpoint"));
    write_file(path_join(out, folder, "file"), "", 0);
    assert_false(find(path, said, &err));
    assert_non_null(strstr(err.message, "/file: cannot open this folder: Not a directory"));
    assert_false(save(&llama, &llama_table, 1, 0, &err));
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

// ---- damage ----

static const char *const files[] = {
    "config.json",         "model.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors",
    "training_state.json", "tokenizer.json",    "SHA256SUMS"};
enum { FILES = sizeof files / sizeof files[0] };
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { FLIPS = 4, CUTS = 3 };
#else
enum { FLIPS = 12, CUTS = 6 };
#endif

static void expect_passed_over(const char *what) { // the newest, step 2, is damaged; step 1 is whole
    char path[PROGRAM_PATH], said[8000];
    Error err;
    if (!find(path, said, &err)) fail_msg("%s: %s", what, err.message);
    if (strcmp(path, in_out("step-00000001")) != 0) fail_msg("%s passed for good", what);
    assert_non_null(strstr(said, "train_gpt: passing over checkpoint "));
    assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1); // one line
}

static void test_damage(void **state) {
    (void)state;
    save_good(&llama, &llama_table, 1, 0);
    save_good(&llama, &llama_table, 2, 0);
    for (size_t i = 0; i < FILES; i++) {
        char path[PROGRAM_PATH], what[200];
        size_t bytes;
        path_join(path, in_out("step-00000002"), files[i]);
        char *text = read_file(path, &bytes);
        for (uint64_t draw = 0; draw < FLIPS; draw++) { // a bit, at the ends and anywhere between
            size_t at = draw == 0 ? 0 : draw == 1 ? bytes - 1 : random_below(i, 1, draw, bytes);
            char flipped = (char)(1 << random_below(i, 2, draw, 8));
            snprintf(what, sizeof what, "%s with bit %d of byte %zu flipped", files[i], flipped, at);
            text[at] = (char)(text[at] ^ flipped);
            write_file(path, text, bytes);
            text[at] = (char)(text[at] ^ flipped);
            expect_passed_over(what);
        }
        for (uint64_t draw = 0; draw < CUTS; draw++) {
            size_t length = draw == 0 ? 0 : draw == 1 ? bytes - 2 : random_below(i, 3, draw, bytes - 1);
            snprintf(what, sizeof what, "%s cut to %zu bytes", files[i], length);
            write_file(path, text, length);
            expect_passed_over(what);
        }
        text[bytes] = 'x'; // in place of the end that read_file puts there
        write_file(path, text, bytes + 1);
        expect_passed_over("a file with a byte more");
        assert_int_equal(unlink(path), 0);
        expect_passed_over("a missing file");
        write_file(path, text, bytes);
        expect_newest(2);
        free(text);
    }
    write_file(in_out("step-00000002/notes.txt"), "{}", 2); // a file put there by hand is no damage
    expect_newest(2);
}

static void test_verify_names_the_file(void **state) {
    (void)state;
    Error err;
    save_good(&llama, &llama_table, 1, 0);
    const char *path = in_out("step-00000001");
    assert_true(checkpoint_verify(path, &err));
    write_file(in_out("step-00000001/config.json"), "{}", 2);
    assert_false(checkpoint_verify(path, &err));
    assert_non_null(
        strstr(err.message, "step-00000001/config.json: damaged (its SHA-256 is not the one saved with it)"));
    assert_int_equal(unlink(in_out("step-00000001/config.json")), 0);
    assert_false(checkpoint_verify(path, &err));
    assert_non_null(strstr(err.message, "config.json: cannot open: No such file"));
    assert_false(checkpoint_verify(in_out("absent"), &err));
    assert_non_null(strstr(err.message, "absent/SHA256SUMS: cannot open"));
}

// ---- a kill at any moment ----

// Saves step after step from `first` on, each fourth one twice, and tells the pipe of each one that stands.
static void save_until_killed(int64_t first, int report) {
    for (int64_t step = first;; step++) {
        Error err;
        for (int times = 0; times < (step % 4 == 0 ? 2 : 1); times++)
            if (!save(&llama, &llama_table, step, 2, &err) || write(report, &step, sizeof step) != sizeof step)
                _exit(1);
    }
}

static int64_t last_report(int report, int64_t before) {
    int64_t step;
    while (read(report, &step, sizeof step) == sizeof step) before = step;
    return before;
}

static void test_kill(void **state) {
    (void)state;
    enum { KILLS = 20 };
    int64_t saved = 1;
    double started = program_clock();
    save_good(&llama, &llama_table, 1, 2);
    double one_save = program_clock() - started;
    for (uint64_t kills = 0; kills < KILLS; kills++) {
        int ends[2], status;
        assert_int_equal(pipe(ends), 0);
        fflush(NULL);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) save_until_killed(saved + 1, ends[1]);
        close(ends[1]);
        program_sleep(random_uniform(11, 0, kills) * 3 * one_save);
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status)); // it was still saving, and without an error
        saved = last_report(ends[0], saved);
        close(ends[0]);

        char path[PROGRAM_PATH], said[8000];
        TrainingState found;
        Error err;
        if (!find(path, said, &err)) fail_msg("%s", err.message);
        assert_string_equal(said, ""); // what bears a final name is whole
        assert_true(checkpoint_read_state(path, &found, &err));
        assert_true(found.step == saved || found.step == saved + 1); // perhaps killed before it could tell
        saved = found.step;
        expect_checkpoint(path, &llama_table, saved);
    }
    save_good(&llama, &llama_table, saved + 1, 1); // and nothing is left lying about
    char command[2 * PROGRAM_PATH];
    snprintf(command, sizeof command, "test $(ls -A '%s' | wc -l) = 1", out);
    assert_int_equal(system(command), 0);
}

// ---- a full disk ----

static void expect_failed_save(int64_t step, const char *reason) {
    Error err = {0};
    if (save(&llama, &llama_table, step, 1, &err)) fail_msg("saved on a full disk");
    if (!strstr(err.message, reason)) fail_msg("%s", err.message);
    assert_null(strchr(err.message, '\n'));
}

static void test_file_size_limit(void **state) { // from the first file's first byte to the model's last
    (void)state;
    struct rlimit before, limit;
    save_good(&llama, &llama_table, 1, 0);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    static const rlim_t sizes[] = {0, 100, 700, 5000, 20000, 82000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        limit = before;
        limit.rlim_cur = sizes[i];
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        Error err;
        bool ok = save(&llama, &llama_table, 2, 1, &err);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_false(ok);
        if (!strstr(err.message, "cannot write: File too large")) fail_msg("limit %d: %s", (int)sizes[i], err.message);
        assert_false(path_exists(in_out("step-00000002.partial")) || path_exists(in_out("step-00000002")));
        expect_newest(1);
        expect_checkpoint(in_out("step-00000001"), &llama_table, 1);
    }
    signal(SIGXFSZ, SIG_DFL);
    save_good(&llama, &llama_table, 2, 1); // with room again
    expect_newest(2);
}

static void count_beat(void *count) { ++*(int *)count; }

// Written in pieces, with signs of life between them, and still whole, or refused where the disk is full.
static void test_large_file(void **state) {
    (void)state;
    enum { BYTES = 33 << 20, LIMIT = 20 << 20 };
    char path[PROGRAM_PATH], hex[SHA256_HEX_CHARS];
    uint32_t *data = malloc(BYTES);
    assert_non_null(data);
    for (uint32_t i = 0; i < BYTES / sizeof *data; i++) data[i] = i * 2654435761u;
    DiskFile file;
    Error err;
    int beats = 0;
    pulse_connect(count_beat, &beats);
    path_join(path, folder, "large");
    assert_true(disk_create(&file, path, &err));
    assert_true(disk_write(&file, "head", 4, &err) && disk_write(&file, data, BYTES, &err) &&
                disk_write(&file, "tail", 4, &err) && disk_close(&file, &err));
    assert_true(beats >= 4);
    beats = 0;
    assert_true(disk_sum(path, hex, &err));
    assert_true(beats >= 4);
    pulse_connect(NULL, NULL);
    assert_string_equal(hex, file.hex);
    size_t bytes;
    char *back = read_file(path, &bytes);
    assert_int_equal(bytes, BYTES + 8);
    assert_true(memcmp(back, "head", 4) == 0 && memcmp(back + 4, data, BYTES) == 0);
    free(back);

    struct rlimit before, limit;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = LIMIT;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_true(disk_create(&file, path, &err));
    bool ok = disk_write(&file, data, BYTES, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_false(ok);
    assert_non_null(strstr(err.message, "File too large"));
    disk_discard(&file);
    free(data);
}

enum { NOT_ALLOWED = 77 };

// In a process and a mount namespace of its own; a small file system in memory stands at `out`. Its exit code is the
// result.
static void fill_small_disk(void) {
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mkdir(out, 0777) != 0 || mount("tmpfs", out, "tmpfs", 0, "size=2m") != 0)
        _exit(NOT_ALLOWED);
    Error err;
    if (!save(&llama, &llama_table, 1, 0, &err)) _exit(2);
    unsigned failed = 0;
    for (int64_t pages = 0; failed != (1u << FILES) - 1; pages++) { // from no page left until every file was the one
        char filler[PROGRAM_PATH], path[PROGRAM_PATH];
        int64_t room = 4096 * pages;
        int descriptor = open(path_join(filler, out, "filler"), O_CREAT | O_WRONLY, 0666);
        if (descriptor < 0) _exit(3);
        static char bytes[4096];
        off_t size = 0;
        while (write(descriptor, bytes, sizeof bytes) == (ssize_t)sizeof bytes) size += (off_t)sizeof bytes;
        if (ftruncate(descriptor, size > room ? size - room : 0) != 0 || close(descriptor) != 0) _exit(4);
        if (save(&llama, &llama_table, 2, 1, &err)) _exit(5);
        for (int i = 0; i < FILES; i++)
            if (strstr(err.message, files[i])) failed |= 1u << i;
        if (!strstr(err.message, "No space left on device")) _exit(6);
        if (path_exists(in_out("step-00000002.partial")) || path_exists(in_out("step-00000002"))) _exit(7);
        if (!checkpoint_find(out, path, sizeof path, &err) || !strstr(path, "step-00000001")) _exit(8);
        if (unlink(filler) != 0) _exit(9);
    }
    if (!save(&llama, &llama_table, 2, 1, &err)) _exit(10);
    _exit(0);
}

static void test_full_disk(void **state) {
    (void)state;
    int status;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) fill_small_disk();
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == NOT_ALLOWED) {
        print_message("# this process may not mount a small file system: left out\n");
        return;
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_read_only_folder(void **state) {
    (void)state;
    enum { NOBODY = 65534 };
    uid_t user = geteuid();
    save_good(&llama, &llama_table, 1, 0);
    assert_true(chmod(folder, 0755) == 0 && chmod(out, 0555) == 0);
    if (user == 0) assert_int_equal(seteuid(NOBODY), 0); // root may write anywhere
    expect_failed_save(2, "Permission denied");
    assert_int_equal(seteuid(user), 0);
    assert_int_equal(chmod(out, 0755), 0);
    expect_newest(1);
}

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
    assert_true(parameters_list(&table, &wider, &err));
    write_foreign(path, &llama_table, "", nothing, NULL);
    expect_refused(&table,
                   "tensor model.layers.0.mlp.gate_proj.weight has shape (48, 32) where the model has (50, 32)");
    parameters_free(&table);
    wider = llama;
    wider.qkv_bias = wider.out_bias = true;
    assert_true(parameters_list(&table, &wider, &err));
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
    assert_true(parameters_list(&table, &untied, &err));
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

// A value that is not finite is found by the range that holds it, in any of the vectors, and by no other.
static void test_not_finite(void **state) {
    (void)state;
    static const float strange[] = {NAN, INFINITY, -INFINITY};
    static const char *const vectors[] = {"model", "exp_avg", "exp_avg_sq"};
    int64_t place = llama_table.layer[1].channels[MLP_DOWN] + 5, total = llama_table.total;
    float *flat = malloc((size_t)total * sizeof *flat);
    assert_non_null(flat);
    for (int which = 0; which < 3; which++) {
        Error err;
        TrainingState training = state_of(1);
        CheckpointWriter *writer = checkpoint_begin(out, 1, &llama, &llama_table, NULL, &err);
        assert_non_null(writer);
        for (int vector = 0; vector < 3; vector++) {
            for (int64_t i = 0; i < total; i++) flat[i] = 0.5f;
            if (vector == which) flat[place] = strange[which];
            assert_true(checkpoint_write(writer, (CheckpointVector)vector, flat, &err));
        }
        assert_true(checkpoint_commit(writer, &training, 0, &err));
        const char *path = in_out("step-00000001");
        for (int vector = 0; vector < 3; vector++) {
            CheckpointVector v = (CheckpointVector)vector;
            assert_true(checkpoint_read(path, v, &llama_table, 0, place, flat, &err));
            assert_true(checkpoint_read(path, v, &llama_table, place + 1, total, flat, &err));
            assert_int_equal(checkpoint_read(path, v, &llama_table, 0, total, flat, &err), vector != which);
        }
        assert_false(checkpoint_read(path, (CheckpointVector)which, &llama_table, place, place + 1, flat, &err));
        char expected[2 * PROGRAM_PATH];
        snprintf(expected, sizeof expected, "%s/%s.safetensors: tensor %s holds NaN or infinity: ", path,
                 vectors[which], "model.layers.1.mlp.down_proj.weight");
        assert_int_equal(strncmp(err.message, expected, strlen(expected)), 0);
    }
    free(flat);
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        TEST(test_round_trip),
        TEST(test_ranges),
        TEST(test_transposition),
        TEST(test_state_extremes),
        TEST(test_bad_states),
        TEST(test_kept_files),
        TEST(test_kept_files_have_a_limit),
        TEST(test_kept_keys),
        TEST(test_sha256),
        TEST(test_sha256sum_agrees),
        TEST(test_keep),
        TEST(test_other_names),
        TEST(test_nothing_to_find),
        TEST(test_same_step_again),
        TEST(test_abandoned),
        TEST(test_damage),
        TEST(test_verify_names_the_file),
        TEST(test_kill),
        TEST(test_file_size_limit),
        TEST(test_large_file),
        TEST(test_full_disk),
        TEST(test_read_only_folder),
        TEST(test_foreign_folders),
        TEST(test_tied_classifier),
        TEST(test_another_dtype),
        TEST(test_not_finite),
    };
#undef TEST
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
