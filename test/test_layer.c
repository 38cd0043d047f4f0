// Layers as data: other token mixers than attention train, sharded exactly, alone and beside attention; blocks
// replayed in backward give the same bits; and the memory of a pass keeps to what the plan promises.
#include "test/compare.h"
#include "test/folder.h"

#include "model/model.h"

enum { TIME_LIMIT = 30 };

// ---- other token mixers than attention ------------------------------------------------------------------------------

static Log train_mixers(const char *mixers, int sp, int dp, const char *recompute) {
    char data[PROGRAM_PATH], log[PROGRAM_PATH];
    Command command = {0};
    add_words(&command, train_gpt_path(), "--device", "cpu", "--data", path_join(data, folder, "text"), NULL);
    add_words(&command, "--log", path_join(log, folder, "log"), "--mixer", mixers, "--recompute", recompute, NULL);
    add_words(&command, "--layers", "3", "--heads", "2", "--dim", "32", "--context", "75", "--batch", "2", NULL);
    add_words(&command, "--steps", "20", "--lr", "1e-2", "--eval-windows", "2", "--threads", "1", NULL);
    add_number(&command, "--sp", sp);
    add_number(&command, "--dp", dp);
    ProgramResult result = run_command(&command, TIME_LIMIT);
    free_result(&result);
    return read_log(log);
}

// Losses are means over tokens; sums in another order change them by some roundings (6e-8) of single steps, which 20
// steps of AdamW at a high rate amplify: 1e-6 is seen.
static void check_equal(const Log *a, const Log *b, double limit) {
    assert_int_equal(a->count, b->count);
    for (int i = 0; i < a->count; i++)
        if (!(fabs(a->loss[i] - b->loss[i]) <= limit * a->loss[i]))
            fail_msg("step %d: %.9g and %.9g", i + 1, a->loss[i], b->loss[i]);
}

static void mixers_train_sharded(void **state) {
    (void)state;
    const char *const mixers[] = {"mean", "mlp"};
    const int grid[][2] = {{2, 1}, {3, 1}, {4, 1}, {8, 1}, {2, 2}};
    for (int m = 0; m < 2; m++) {
        Log one = train_mixers(mixers[m], 1, 1, "none");
        assert_true(one.loss[one.count - 1] < one.loss[0] - 1.0); // it learns
        for (size_t i = 0; i < sizeof grid / sizeof *grid; i++) {
            Log other = train_mixers(mixers[m], grid[i][0], grid[i][1], "none");
            check_equal(&one, &other, 1e-5);
        }
    }
}

static void mixers_beside_attention(void **state) {
    (void)state;
    const char *const pattern = "mean,attention,mlp";
    Log one = train_mixers(pattern, 1, 1, "none"), four = train_mixers(pattern, 4, 1, "none");
    check_equal(&one, &four, 1e-5);
    Log mlp = train_mixers(pattern, 1, 1, "mlp"), block = train_mixers(pattern, 1, 1, "block");
    check_equal(&one, &mlp, 0);
    check_equal(&one, &block, 0);
}

static void expect_refusal(const Command *command, const char *message) {
    ProgramResult result = run_program(command->argv, TIME_LIMIT);
    assert_int_equal(result.exit_code, 2);
    if (!strstr(result.err, message)) fail_msg("%s", result.err);
    free_result(&result);
}

static void mixers_are_refused_where_they_cannot_go(void **state) {
    (void)state;
    const struct {
        const char *mixers, *option, *value, *message;
    } cases[] = {
        {"mean", "--window", "16", "--window is attention's, and --mixer mean has none: leave it out"},
        {"attention,toy", "--sp", "1", "--mixer attention,toy: there is no \"toy\"; give names out of: attention, "},
        {"mean:2", "--sp", "1", "--mixer mean:2: \"mean\" takes no option"},
        {"mean,mlp", "--document-mask", NULL, "--mixer mlp: its weights are of positions and cannot stop at documents"},
    };
    for (int i = 0; i < 4; i++) {
        Command command = {0};
        add_words(&command, train_gpt_path(), "--device", "cpu", "--mixer", cases[i].mixers, NULL);
        add_words(&command, cases[i].option, cases[i].value, NULL);
        expect_refusal(&command, cases[i].message);
    }
}

// A mixer with weights of positions: what lies above their diagonal is 0 and stays so, and there are no others.
static void mlp_keeps_to_its_positions(void **state) {
    (void)state;
    enum { T = 40 };
    char out[PROGRAM_PATH], file[PROGRAM_PATH], checkpoint[PROGRAM_PATH];
    Command command = {0}, longer = {0};
    add_words(&command, train_gpt_path(), "--device", "cpu", "--mixer", "mlp", "--out", path_join(out, folder, "mlp"),
              NULL);
    add_words(&command, "--layers", "1", "--heads", "2", "--dim", "16", "--context", "40", "--batch", "2", NULL);
    add_words(&command, "--steps", "3", "--eval-windows", "1", "--sp", "2", "--threads", "1", NULL);
    ProgramResult result = run_command(&command, TIME_LIMIT);
    free_result(&result);
    path_join(checkpoint, out, "step-00000003");
    Safetensors *tensors = open_tensors(path_join(file, checkpoint, "model.safetensors"));
    float *weights = tensor_values(find_tensor(tensors, "model.layers.0.token_mlp.weight"));
    for (int i = 0; i < T; i++)
        for (int j = 0; j < T; j++) assert_true((weights[i * T + j] != 0) == (j <= i));
    free(weights);
    safetensors_close(tensors);
    add_words(&longer, train_gpt_path(), "--device", "cpu", "--init", checkpoint, "--context", "41", NULL);
    expect_refusal(&longer, "--mixer mlp: the model has weights for 40 positions; give --context of at most that");
}

// ---- blocks replayed ------------------------------------------------------------------------------------------------

static void train_into(const char *name, const char *arch, const char *device, const char *sp, const char *recompute) {
    char data[PROGRAM_PATH], out[PROGRAM_PATH];
    Command command = {0};
    add_words(&command, train_gpt_path(), "--device", device, "--data", path_join(data, folder, "text"), NULL);
    add_words(&command, "--out", path_join(out, folder, name), "--arch", arch, "--recompute", recompute, NULL);
    add_words(&command, "--layers", "2", "--heads", "2", "--dim", "64", "--context", "75", "--batch", "2", NULL);
    add_words(&command, "--micro-batch", "1", "--steps", "2", "--eval-windows", "1", "--threads", "1", NULL);
    add_words(&command, "--sample-tokens", "0", "--sp", sp, NULL);
    ProgramResult result = run_command(&command, 2 * TIME_LIMIT);
    free_result(&result);
}

static void check_recompute(const char *arch, const char *device, const char *sp) {
    const char *const modes[] = {"none", "mlp", "block"}, *const file = "step-00000002/exp_avg_sq.safetensors";
    char paths[3][PROGRAM_PATH], name[64], within[PROGRAM_PATH];
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%s-%s-%s-%s", arch, device, sp, modes[i]);
        train_into(name, arch, device, sp, modes[i]);
        path_join(paths[i], path_join(within, folder, name), file);
        if (i > 0) assert_same_bytes(paths[0], paths[i]);
    }
}

static void recompute_keeps_the_bits(void **state) {
    (void)state;
    check_recompute("llama", "cpu", "1");
    check_recompute("llama", "cpu", "3");
    check_recompute("gpt2", "cpu", "2");
}

static void recompute_keeps_the_bits_on_cuda(void **state) {
    (void)state;
    const char *why;
    if (program_slowness() > 1 || device_count(DEVICE_EMULATED, &why) == 0) skip();
    check_recompute("llama", "emulated", "2");
    check_recompute("gpt2", "emulated", "1");
}

// ---- memory ---------------------------------------------------------------------------------------------------------

// Bytes per token of a pass of d12 (12 layers, width 768, bytes) in bf16.
static double bytes_per_token(Recompute recompute) {
    const int64_t tokens = 1 << 20;
    ModelConfig d12 = {.architecture = ARCH_LLAMA,
                       .vocab_size = 257,
                       .layers = 12,
                       .heads = 12,
                       .kv_heads = 12,
                       .head_dim = 64,
                       .dim = 768,
                       .ffn_dim = 2048};
    Arena arena = {0};
    Pass pass = {0};
    MixerSize size = {
        .config = &d12, .rows = tokens, .sequences = 1, .element_bytes = 2, .context = tokens, .ranks = 1};
    pass_lay_out(&pass, size, d12.vocab_size, &arena, PASS_TRAINING, recompute);
    pass_free(&pass);
    return (double)arena.used / (double)tokens;
}

// 12 layers of 2 C (stream) + 3 C + C (attention) + 2 F (MLP) elements and 12 log-sum-exps, one stream more, and the
// rooms: 7 C + F in forward and backward each but what shares a place. So a million tokens and their weights take some
// 60 GB with replayed blocks.
static void memory_per_token(void **state) {
    (void)state;
    double none = bytes_per_token(RECOMPUTE_NONE), mlp = bytes_per_token(RECOMPUTE_MLP),
           block = bytes_per_token(RECOMPUTE_BLOCK);
    print_message("# bytes per token: none %.0f, mlp %.0f, block %.0f\n", none, mlp, block);
    assert_true(block <= 57000); // of 60,000 with weights, gradients and moments of 85M parameters
    assert_true(mlp <= 0.65 * none && block <= 0.45 * mlp);
}

static int make_text(void **state) {
    char path[PROGRAM_PATH], text[20000];
    make_folder(state);
    for (size_t i = 0; i < sizeof text; i++) text[i] = "the walk over pairs of chunks "[(i + i / 97) % 30];
    write_file(path_join(path, folder, "text"), text, sizeof text);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mixers_train_sharded),
        cmocka_unit_test(mixers_beside_attention),
        cmocka_unit_test(mixers_are_refused_where_they_cannot_go),
        cmocka_unit_test(mlp_keeps_to_its_positions),
        cmocka_unit_test(recompute_keeps_the_bits),
        cmocka_unit_test(recompute_keeps_the_bits_on_cuda),
        cmocka_unit_test(memory_per_token),
    };
    return cmocka_run_group_tests_name("layer", tests, make_text, remove_folder);
}
