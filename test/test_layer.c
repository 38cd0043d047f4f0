// Layers as data: a token mixer that only this test has (test/toy_mixer.c) trains, sharded exactly; blocks replayed in
// backward give the same bits; and the memory of a pass keeps to what the plan promises.
#include "test/compare.h"
#include "test/folder.h"
#include "test/scratch.h"

#include "model/model.h"

enum { TIME_LIMIT = 30 };
static const char *program_with_toy(void) {
    static char path[PROGRAM_PATH];
    snprintf(path, sizeof path, "%s", train_gpt_path());
    *strrchr(path, '/') = '\0';
    strcat(path, "/test/train_gpt_with_toy");
    return path;
}

// ---- the toy --------------------------------------------------------------------------------------------------------

static Log train_toy(const char *mixers, int sp, int dp, const char *recompute, bool dump) {
    char data[PROGRAM_PATH], log[PROGRAM_PATH], out[PROGRAM_PATH];
    Command command = {0};
    add_words(&command, program_with_toy(), "--device", "cpu", "--data", path_join(data, folder, "text"), NULL);
    add_words(&command, "--log", path_join(log, folder, "log"), "--mixer", mixers, "--recompute", recompute, NULL);
    add_words(&command, "--layers", "3", "--heads", "2", "--dim", "32", "--context", "75", "--batch", "2", NULL);
    add_words(&command, "--steps", "20", "--lr", "1e-2", "--eval-windows", "2", "--threads", "1", NULL);
    if (dump) add_words(&command, "--dump", path_join(out, folder, "dump"), NULL);
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

static void toy_trains_sharded(void **state) {
    (void)state;
    Log one = train_toy("mean", 1, 1, "none", false);
    assert_true(one.loss[one.count - 1] < one.loss[0] - 1.0); // it learns
    const int grid[][2] = {{2, 1}, {3, 1}, {4, 1}, {8, 1}, {2, 2}};
    for (size_t i = 0; i < sizeof grid / sizeof *grid; i++) {
        Log other = train_toy("mean", grid[i][0], grid[i][1], "none", false);
        check_equal(&one, &other, 1e-5);
    }
}

static void toy_beside_attention(void **state) {
    (void)state;
    Log one = train_toy("mean,attention", 1, 1, "none", false), four = train_toy("mean,attention", 4, 1, "none", false);
    check_equal(&one, &four, 1e-5);
    Log mlp = train_toy("mean,attention", 1, 1, "mlp", false),
        block = train_toy("mean,attention", 1, 1, "block", false);
    check_equal(&one, &mlp, 0);
    check_equal(&one, &block, 0);
}

// The toy against its definition in double precision, on every rank of P.
enum { T = 37, C = 8, B = 2 };

static double value_at(int64_t b, int64_t position, int64_t c, int seed) {
    return sin(1.0 + (double)seed + 0.7 * (double)b + 1.3 * (double)position + 2.1 * (double)c);
}

// Row (b, i) of P x, or of its transpose.
static double dense(int64_t b, int64_t i, int64_t c, int seed, bool transposed) {
    double sum = 0;
    for (int64_t j = 0; j < T; j++) {
        bool seen = transposed ? j >= i : j <= i;
        if (seen) sum += value_at(b, j, c, seed) / (double)(1 + (transposed ? j : i));
    }
    return sum;
}

// Sums of up to T numbers below 1 in fp32: T roundings of 6e-8 of at most T, divided by as much.
static void expect(double found, double wanted) {
    if (!(fabs(found - wanted) <= T * 6e-8)) fail_msg("%.9g, not %.9g", found, wanted);
}

static void mix_on_rank(Comm *world, void *argument) {
    (void)argument;
    Device device;
    cpu_device(&device, 1);
    lend_stated_scratch(&device, 2 * T, C, C, 0);
    int ranks = comm_size(world), rank = comm_rank(world);
    ModelConfig config = {.dim = C};
    float weights[C * C] = {0}, gradients[C * C] = {0};
    for (int c = 0; c < C; c++) weights[c * C + c] = 1;
    Model model = {.config = &config,
                   .device = &device,
                   .sequence = world,
                   .context = T,
                   .ranks = ranks,
                   .rank = rank,
                   .shard = shard_of(T, ranks, rank),
                   .weights = weights,
                   .gradients = gradients};
    int64_t tokens = model.shard.tokens, n = B * tokens;
    float *x = calloc((size_t)(6 * n * C), sizeof *x), sums[2 * 16 * B * C];
    int32_t *positions = calloc((size_t)n, sizeof *positions);
    Pass pass = {.rows = n,
                 .sequences = B,
                 .positions = positions,
                 .normed = x,
                 .branch = x + n * C,
                 .d_residual = x + 2 * n * C,
                 .d_normed = x + 3 * n * C};
    int64_t tensor[MIXER_TENSORS] = {0}, row = 0;
    Mixing m = {
        .model = &model, .pass = &pass, .tensor = tensor, .kept = {{x + 4 * n * C}}, .room = {{x + 5 * n * C, sums}}};
    for (int64_t b = 0; b < B; b++)
        for (int i = 0; i < model.shard.count; i++)
            for (int64_t t = 0; t < model.shard.chunk[i].length; t++, row++) {
                positions[row] = (int32_t)(model.shard.chunk[i].start + t);
                for (int64_t c = 0; c < C; c++) {
                    x[row * C + c] = (float)value_at(b, positions[row], c, 0);
                    x[2 * n * C + row * C + c] = (float)value_at(b, positions[row], c, 1);
                }
            }
    token_mixers[1]->mix(&m);
    token_mixers[1]->output(&m);
    token_mixers[1]->backward(&m);
    for (row = 0; row < n; row++)
        for (int64_t c = 0; c < C; c++) {
            expect(x[n * C + row * C + c], dense(row / tokens, positions[row], c, 0, false));
            expect(x[3 * n * C + row * C + c], dense(row / tokens, positions[row], c, 1, true));
        }
    free(positions);
    free(x);
    device_return_scratch(&device);
    device.close(&device);
}

static void toy_is_its_definition(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 4; ranks++) {
        Error err;
        CommLaunch launch = {.engine = COMM_LOCAL, .ranks = ranks, .timeout_seconds = 30};
        if (!comm_run(&launch, mix_on_rank, NULL, &err)) fail_msg("%s", err.message);
    }
}

static void toy_is_refused_where_it_cannot_go(void **state) {
    (void)state;
    const struct {
        const char *option, *value, *message;
    } cases[] = {
        {"--window", "16", "--window is attention's, and --mixer mean has none: leave it out"},
        {"--sample", "text", "--mixer mean: mean cannot generate: leave out --sample"},
    };
    for (int i = 0; i < 2; i++) {
        Command command = {0};
        add_words(&command, program_with_toy(), "--device", "cpu", "--mixer", "mean", "--sp", "1", NULL);
        add_words(&command, cases[i].option, cases[i].value, NULL);
        ProgramResult result = run_program(command.argv, TIME_LIMIT);
        assert_int_equal(result.exit_code, 2);
        if (!strstr(result.err, cases[i].message)) fail_msg("%s", result.err);
        free_result(&result);
    }
    const char *const argv[] = {train_gpt_path(), "--mixer", "attention,mean", "--device", "cpu", NULL};
    ProgramResult result = run_program(argv, TIME_LIMIT);
    assert_int_equal(result.exit_code, 2);
    assert_non_null(strstr(result.err, "--mixer attention,mean: there is no \"mean\"; give names out of: attention"));
    free_result(&result);
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
        cmocka_unit_test(toy_is_its_definition),    cmocka_unit_test(toy_trains_sharded),
        cmocka_unit_test(toy_beside_attention),     cmocka_unit_test(toy_is_refused_where_it_cannot_go),
        cmocka_unit_test(recompute_keeps_the_bits), cmocka_unit_test(recompute_keeps_the_bits_on_cuda),
        cmocka_unit_test(memory_per_token),
    };
    return cmocka_run_group_tests_name("layer", tests, make_text, remove_folder);
}
