// Training as a whole, on a corpus made here: the same losses, gradients and weights however many ranks share the
// work and however they talk; the same bits again when nothing was changed; and what interrupts a run (signals, a
// killed rank) loses nothing and hangs nothing.
//
// Tolerances. Sharding changes the order of sums and nothing else. The gradients of the first step differ by a few
// float32 roundings (6e-8) of each of the sums that they come out of: some 3e-7 in norm is seen, ten times that
// allowed. Adam then divides each gradient by its own size, so that after twenty steps an element whose gradient is
// nearly 0 may differ by much, but the tensor it stands in by little: 1e-6 to 1e-5 in norm is seen, as the roundings
// fall, and ten times that for single elements. Losses are means over all tokens and see less of it.
#include "test/compare.h"
#include "test/folder.h"
#include "test/ranks.h"

#include "base/random.h"
#include "comm/comm.h"

static const Tolerance GRADIENTS = {3e-6, 6e-6};
static const Tolerance TRAINED = {5e-5, 5e-4};
static const double LOSSES = 1e-5; // relative

enum { STEPS = 20, TIME_LIMIT = 60 };
static const char LAST_MODEL[] = "step-00000020/model.safetensors";

// ---- one run ------------------------------------------------------------------------------------------------------

typedef struct Training {
    const char *out; // name inside `folder`, of the run's own folder
    int sp, dp;
    bool mpi;
    int micro_batch; // 0: the program's choice
    int save_every;  // 0: only at the end
    int threads;     // 0: 1
    bool resume;
    const char *arch; // NULL: llama
    const char *attention;
    bool hidden; // windows in every other layer, and a mask of documents, which sentences are taken for
} Training;

static char *run_path(char path[PROGRAM_PATH], const char *out, const char *file) {
    char within[256];
    snprintf(within, sizeof within, "%s/%s", out, file);
    return path_join(path, folder, within);
}

// Words for a corpus that a model can learn something of: 48 KiB, the same in every run.
static void write_corpus(void) {
    static const char *const words[] = {"attention", "is",  "a",      "walk", "over", "pairs",   "of",
                                        "chunks",    "and", "the",    "next", "one",  "travels", "while",
                                        "this",      "is",  "worked", "on",   ".\n"};
    enum { WORDS = sizeof words / sizeof *words, BYTES = 48 << 10 };
    char *text = malloc(BYTES + 16), path[PROGRAM_PATH];
    assert_non_null(text);
    size_t used = 0;
    for (uint64_t i = 0; used < BYTES; i++)
        used += (size_t)sprintf(text + used, "%s ", words[random_below(7, RANDOM_STREAM_DATA, i, WORDS)]);
    write_file(path_join(path, folder, "corpus.txt"), text, used);
    free(text);
}

// A command that trains a byte model of two layers for `steps` steps of four sequences of 96 tokens.
static void training_command(Command *command, const Training *t, const char *steps) {
    static char corpus[PROGRAM_PATH], out[PROGRAM_PATH], log[PROGRAM_PATH];
    path_join(corpus, folder, "corpus.txt");
    path_join(out, folder, t->out);
    if (mkdir(out, 0777) != 0) assert_int_equal(errno, EEXIST);
    path_join(log, out, "log.jsonl");
    *command = (Command){0};
    if (t->mpi && !add_mpirun(command, t->sp * t->dp)) fail_msg("mpirun has gone");
    add_words(command, train_gpt_path(), "--device", "cpu", "--data", corpus, "--out", out, "--log", log, NULL);
    add_words(command, "--steps", steps, NULL);
    if (t->resume) {
        add_word(command, "--resume");
    } else {
        add_words(command, "--arch", t->arch ? t->arch : "llama", "--layers", "2", "--heads", "4", "--dim", "32", NULL);
        add_words(command, "--dump", out, NULL);
    }
    add_words(command, "--context", "96", "--batch", "4", "--lr", "1e-2", "--warmup", "5", "--eval-windows", "4", NULL);
    add_words(command, "--keep", "0", "--sample-tokens", "0", NULL);
    add_words(command, "--attention", t->attention ? t->attention : "auto", NULL);
    add_words(command, "--engine", t->mpi ? "mpi" : "local", NULL);
    add_number(command, "--sp", t->sp);
    add_number(command, "--dp", t->dp);
    add_number(command, "--threads", t->threads > 0 ? t->threads : 1);
    if (t->hidden && !t->resume)
        add_words(command, "--window", "12,0", "--document-mask", "--document-end", "46", NULL);
    if (t->micro_batch > 0) add_number(command, "--micro-batch", t->micro_batch);
    if (t->save_every > 0) add_number(command, "--save-every", t->save_every);
}

static void train(const Training *t) {
    Command command;
    training_command(&command, t, "20");
    ProgramResult result = run_command(&command, TIME_LIMIT);
    if (t->mpi && !strstr(result.out, "MPI processes")) fail_msg("the ranks were not MPI processes: %s", result.out);
    free_result(&result);
}

// ---- comparing runs -----------------------------------------------------------------------------------------------

// Whole steps of `a` and `b` from step `first` on: losses equal within LOSSES, or to the bit.
static void compare_losses(const char *a, const char *b, int64_t first, bool exactly) {
    char path[PROGRAM_PATH];
    Log x = read_log(run_path(path, a, "log.jsonl")), y = read_log(run_path(path, b, "log.jsonl"));
    assert_int_equal(x.count, STEPS);
    assert_int_equal(x.step[x.count - 1], STEPS);
    assert_int_equal(y.step[y.count - 1], STEPS);
    for (int j = 0; j < y.count; j++) {
        if (y.step[j] < first) continue;
        int64_t i = y.step[j] - 1;
        double limit = exactly ? 0 : LOSSES * x.loss[i];
        if (!(fabs(x.loss[i] - y.loss[j]) <= limit))
            fail_msg("loss of step %lld: %.9g in %s, %.9g in %s", (long long)y.step[j], x.loss[i], a, y.loss[j], b);
    }
    assert_true(fabs(x.validation_loss - y.validation_loss) <= (exactly ? 0 : LOSSES * x.validation_loss));
}

static Distance compare_tensors_of(const char *a, const char *b, const char *file, Tolerance tolerance) {
    char x[PROGRAM_PATH], y[PROGRAM_PATH];
    return compare_files(run_path(x, b, file), run_path(y, a, file), tolerance);
}

static void compare_runs(const char *a, const char *b) {
    compare_losses(a, b, 1, false);
    Distance gradients = compare_tensors_of(a, b, "gradients.safetensors", GRADIENTS);
    Distance trained = compare_tensors_of(a, b, LAST_MODEL, TRAINED);
    print_message("# %s and %s: gradients %.1e, trained weights %.1e (single ones %.1e)\n", a, b, gradients.norm,
                  trained.norm, trained.largest);
}

static void assert_same_checkpoint(const char *a, const char *b) {
    static const char *const files[] = {"config.json", "model.safetensors", "exp_avg.safetensors",
                                        "exp_avg_sq.safetensors", "training_state.json"};
    char x[PROGRAM_PATH], y[PROGRAM_PATH], name[64];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(name, sizeof name, "step-00000020/%s", files[i]);
        assert_same_bytes(run_path(x, a, name), run_path(y, b, name));
    }
}

// Puts a copy of checkpoint `step` of run `from` into a new run `to`, as if that had been stopped there.
static void copy_checkpoint(const char *from, const char *step, const char *to) {
    char source[PROGRAM_PATH], target[PROGRAM_PATH];
    run_path(source, from, step);
    path_join(target, folder, to);
    assert_int_equal(mkdir(target, 0777), 0);
    const char *const copy[] = {"cp", "-r", source, target, NULL};
    ProgramResult result = run_program(copy, 10);
    assert_int_equal(result.exit_code, 0);
    free_result(&result);
}

// ---- ranks --------------------------------------------------------------------------------------------------------

// The run that all others are held against; with a checkpoint half-way. Made once, by the group's set-up.
static const Training one_rank = {.out = "one", .sp = 1, .dp = 1, .save_every = 10};

static void test_learns(void **state) {
    (void)state;
    char path[PROGRAM_PATH];
    Log log = read_log(run_path(path, "one", "log.jsonl"));
    assert_int_equal(log.count, STEPS);
    assert_true(log.loss[0] > 5.0 && log.loss[0] < 6.5); // a new model knows nothing: ln 257 = 5.55
    assert_true(log.validation_loss < 3.5);
    assert_true(log.gradient_norm[0] > 0);
}

static void check_ranks(const char *out, int sp, int dp, bool mpi, const char *attention) {
    train(&(Training){.out = out, .sp = sp, .dp = dp, .mpi = mpi, .attention = attention});
    compare_runs("one", out);
}
static void test_sp2(void **state) { (void)state, check_ranks("sp2", 2, 1, false, "auto"); }
static void test_sp3(void **state) { (void)state, check_ranks("sp3", 3, 1, false, "ring"); }
static void test_sp4_ring(void **state) { (void)state, check_ranks("sp4_ring", 4, 1, false, "ring"); }
static void test_sp4_gather(void **state) { (void)state, check_ranks("sp4_gather", 4, 1, false, "gather"); }
static void test_sp4_ulysses(void **state) { (void)state, check_ranks("sp4_ulysses", 4, 1, false, "ulysses"); }
static void test_sp4_both(void **state) { (void)state, check_ranks("sp4_both", 4, 1, false, "ulysses-ring"); }
static void test_sp2_dp2(void **state) { (void)state, check_ranks("sp2_dp2", 2, 2, false, "auto"); }
static void test_dp4(void **state) { (void)state, check_ranks("dp4", 1, 4, false, "auto"); }

// Absolute positions, biases, LayerNorm: the other architecture, sharded.
static void test_gpt2(void **state) {
    (void)state;
    train(&(Training){.out = "gpt2_one", .sp = 1, .dp = 1, .arch = "gpt2"});
    train(&(Training){.out = "gpt2_sp4", .sp = 4, .dp = 1, .arch = "gpt2"});
    compare_losses("gpt2_one", "gpt2_sp4", 1, false);
    compare_tensors_of("gpt2_one", "gpt2_sp4", "gradients.safetensors", GRADIENTS);
}

// Windows and documents: what is hidden is hidden from every rank, whatever the exchange, and vanilla agrees.
static void test_hidden(void **state) {
    (void)state;
    static const Training runs[] = {
        {.out = "hidden_sp2_dp2", .sp = 2, .dp = 2, .hidden = true, .attention = "ring"},
        {.out = "hidden_sp3", .sp = 3, .dp = 1, .hidden = true, .attention = "ring"},
        {.out = "hidden_sp4", .sp = 4, .dp = 1, .hidden = true, .attention = "gather"},
        {.out = "hidden_both", .sp = 4, .dp = 1, .hidden = true, .attention = "ulysses-ring"},
        {.out = "hidden_vanilla", .sp = 1, .dp = 1, .hidden = true, .attention = "vanilla"},
    };
    train(&(Training){.out = "hidden_one", .sp = 1, .dp = 1, .hidden = true, .save_every = 10});
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        train(&runs[i]);
        compare_losses("hidden_one", runs[i].out, 1, false);
        compare_tensors_of("hidden_one", runs[i].out, "gradients.safetensors", GRADIENTS);
    }
    char path[PROGRAM_PATH];
    Log plain = read_log(run_path(path, "one", "log.jsonl")),
        hidden = read_log(run_path(path, "hidden_one", "log.jsonl"));
    assert_true(fabs(plain.loss[STEPS - 1] - hidden.loss[STEPS - 1]) > 100 * LOSSES); // it is another model
}

// A resumed run hides the same: the windows are the model's, the mask is kept.
static void test_hidden_resumed(void **state) {
    (void)state;
    copy_checkpoint("hidden_one", "step-00000010", "hidden_resumed");
    train(&(Training){.out = "hidden_resumed", .sp = 1, .dp = 1, .resume = true, .save_every = 10});
    compare_losses("hidden_one", "hidden_resumed", 11, true);
    assert_same_checkpoint("hidden_one", "hidden_resumed");
}

// What a model of windows of 8 tokens says after a prompt: the 24 tokens behind its last words.
static char *said_after(const char *prompt, const char *end, const char *option, const char *value) {
    char model[PROGRAM_PATH], corpus[PROGRAM_PATH];
    Command command = {0};
    add_words(&command, train_gpt_path(), "--device", "cpu", "--sp", "1", "--steps", "0", "--context", "96", NULL);
    add_words(&command, "--init", run_path(model, "hidden_one", "step-00000020"), "--window", "8", NULL);
    add_words(&command, "--data", path_join(corpus, folder, "corpus.txt"), "--temperature", "0", NULL);
    add_words(&command, "--sample", prompt, "--sample-tokens", "24", NULL);
    if (option != NULL) add_words(&command, option, "--document-end", value, NULL);
    ProgramResult result = run_command(&command, TIME_LIMIT);
    const char *last = NULL;
    for (const char *at = result.out; (at = strstr(at, end)) != NULL; at++) last = at + strlen(end);
    if (last == NULL) fail_msg("no sample in %s", result.out);
    char *said = strdup(last);
    assert_non_null(said);
    free_result(&result);
    return said;
}

// A sample sees no more than training did. Two layers of windows of 8 reach back 14 tokens, less than the common end of
// these prompts, one of which is longer than what goes through the model at once; and nothing reaches behind the end of
// a document.
static void test_sample_hidden(void **state) {
    (void)state;
    static const char end[] = "while this is worked on";
    char *longer = malloc(400);
    assert_non_null(longer);
    memset(longer, 'z', 200);
    snprintf(longer + 200, 200, "%s", end);
    const char *prompts[] = {"attention is a walk while this is worked on", longer};
    char *said[2];
    for (int i = 0; i < 2; i++) said[i] = said_after(prompts[i], end, NULL, NULL);
    if (strcmp(said[0], said[1]) != 0) fail_msg("windows: \"%s\" and \"%s\"", said[0], said[1]);
    free(said[0]), free(said[1]), free(longer);
    for (int i = 0; i < 2; i++) said[i] = said_after(i == 0 ? "walk.the" : "of z.the", ".the", "--document-mask", "46");
    if (strcmp(said[0], said[1]) != 0) fail_msg("documents: \"%s\" and \"%s\"", said[0], said[1]);
    free(said[0]), free(said[1]);
}

// Sums are taken in the order of ranks by either engine: the very bits of the same ranks as threads.
static void check_mpi(const char *out, const char *local, int sp, int dp, const char *attention) {
    if (!mpi_can_be_tested()) skip();
    check_ranks(out, sp, dp, true, attention);
    assert_same_checkpoint(local, out);
}
static void test_mpi_sp2(void **state) { (void)state, check_mpi("mpi_sp2", "sp2", 2, 1, "auto"); }
static void test_mpi_sp4(void **state) { (void)state, check_mpi("mpi_sp4", "sp4_ring", 4, 1, "ring"); }
static void test_mpi_sp2_dp2(void **state) { (void)state, check_mpi("mpi_sp2_dp2", "sp2_dp2", 2, 2, "auto"); }
static void test_mpi_dp4(void **state) { (void)state, check_mpi("mpi_dp4", "dp4", 1, 4, "auto"); }

// ---- the same again -----------------------------------------------------------------------------------------------

static void test_same_bits(void **state) {
    (void)state;
    char x[PROGRAM_PATH], y[PROGRAM_PATH];
    train(&(Training){.out = "again", .sp = 1, .dp = 1, .save_every = 10});
    compare_losses("one", "again", 1, true);
    assert_same_checkpoint("one", "again");
    train(&(Training){.out = "threads", .sp = 1, .dp = 1, .threads = 2});
    train(&(Training){.out = "threads_again", .sp = 1, .dp = 1, .threads = 2});
    compare_losses("threads", "threads_again", 1, true);
    assert_same_checkpoint("threads", "threads_again");
    compare_runs("one", "threads");
    train(&(Training){.out = "four", .sp = 2, .dp = 2, .save_every = 10});
    train(&(Training){.out = "four_again", .sp = 2, .dp = 2});
    compare_losses("four", "four_again", 1, true);
    assert_same_checkpoint("four", "four_again");
    assert_same_bytes(run_path(x, "four", "logits.safetensors"), run_path(y, "four_again", "logits.safetensors"));
}

// Gradients are sums over passes: a batch of 4 in passes of 1, 2 or 4 sequences.
static void test_accumulation(void **state) {
    (void)state;
    for (int micro = 1; micro <= 4; micro *= 2) {
        char out[32];
        snprintf(out, sizeof out, "micro%d", micro);
        train(&(Training){.out = out, .sp = 2, .dp = 1, .micro_batch = micro});
        compare_runs("one", out);
    }
}

// ---- resuming -----------------------------------------------------------------------------------------------------

static void resume_from(const char *from, const char *step, const char *to, int sp, int dp, bool mpi, int save_every) {
    copy_checkpoint(from, step, to);
    train(&(Training){.out = to, .sp = sp, .dp = dp, .mpi = mpi, .resume = true, .save_every = save_every});
}

static void test_resume_exactly(void **state) {
    (void)state;
    resume_from("one", "step-00000010", "resumed", 1, 1, false, 0);
    compare_losses("one", "resumed", 11, true);
    assert_same_checkpoint("one", "resumed");
    train(&(Training){.out = "half", .sp = 2, .dp = 2, .save_every = 10});
    resume_from("half", "step-00000010", "half_resumed", 2, 2, false, 0);
    assert_same_checkpoint("half", "half_resumed");
}

static void compare_resumed(const char *name, int64_t first) {
    compare_losses("one", name, first, false);
    compare_tensors_of("one", name, LAST_MODEL, TRAINED);
}

// Nothing in a checkpoint depends on the ranks that wrote it: 4 write, 1 goes on, then 2.
static void test_reshard(void **state) {
    (void)state;
    train(&(Training){.out = "of4", .sp = 4, .dp = 1, .save_every = 10});
    resume_from("of4", "step-00000010", "of1", 1, 1, false, 5);
    compare_resumed("of1", 11);
    resume_from("of1", "step-00000015", "of2", 2, 1, false, 0);
    compare_resumed("of2", 16);
}

static void test_resume_with_mpi(void **state) {
    (void)state;
    if (!mpi_can_be_tested()) skip();
    resume_from("one", "step-00000010", "mpi_resumed", 2, 1, true, 0);
    compare_resumed("mpi_resumed", 11);
}

// ---- interruptions ------------------------------------------------------------------------------------------------

static void wait_for_steps(const char *out, int steps) {
    char path[PROGRAM_PATH];
    run_path(path, out, "log.jsonl");
    for (double until = program_clock() + 20 * program_slowness(); program_clock() < until; program_sleep(0.01))
        if (path_exists(path) && read_log(path).count >= steps) return;
    fail_msg("no step within 20 s");
}

// Trains at a constant rate up to `steps`, from scratch or from where the run stands.
static RunningProgram start_constant(const char *out, bool resume, int64_t steps) {
    Training t = {.out = out, .sp = 2, .dp = 1, .resume = resume};
    Command command;
    char number[32];
    snprintf(number, sizeof number, "%lld", (long long)steps);
    training_command(&command, &t, number);
    add_words(&command, "--schedule", "constant", NULL);
    return start_program(command.argv);
}

static void train_constant(const char *out, bool resume, int64_t steps) {
    RunningProgram program = start_constant(out, resume, steps);
    ProgramResult result = finish_program(&program, TIME_LIMIT);
    if (result.exit_code != 0) fail_msg("exit code %d: %s%s", result.exit_code, result.out, result.err);
    free_result(&result);
}

// A signal ends the run after the step at work, with a checkpoint of that step; from there it goes on to the very
// bits of a run that was never stopped.
static void check_signal(int number, const char *out, const char *straight) {
    char x[PROGRAM_PATH], y[PROGRAM_PATH], name[96];
    RunningProgram program = start_constant(out, false, 1000000);
    wait_for_steps(out, 3);
    kill(program.pid, number);
    ProgramResult result = finish_program(&program, TIME_LIMIT);
    assert_false(result.timed_out);
    if (result.exit_code != 128 + number) fail_msg("exit code %d: %s%s", result.exit_code, result.out, result.err);
    free_result(&result);

    Log log = read_log(run_path(x, out, "log.jsonl"));
    int64_t last = log.step[log.count - 1];
    snprintf(name, sizeof name, "step-%08lld", (long long)last);
    assert_true(path_exists(run_path(x, out, name)));
    train_constant(out, true, last + 2);
    train_constant(straight, false, last + 2);
    snprintf(name, sizeof name, "step-%08lld/model.safetensors", (long long)last + 2);
    assert_same_bytes(run_path(x, out, name), run_path(y, straight, name));
}
static void test_sigint(void **state) { (void)state, check_signal(SIGINT, "sigint", "not_sigint"); }
static void test_sigterm(void **state) { (void)state, check_signal(SIGTERM, "sigterm", "not_sigterm"); }

// A rank of an MPI run that is killed takes all the others down with it, within seconds.
static void test_killed_rank(void **state) {
    (void)state;
    if (!mpi_can_be_tested()) skip();
    enum { RANKS = 3 };
    pid_t rank[RANKS];
    Training t = {.out = "killed", .sp = RANKS, .dp = 1, .mpi = true};
    Command command;
    training_command(&command, &t, "1000000");
    RunningProgram program = start_program(command.argv);
    wait_for_steps("killed", 2);
    assert_int_equal(program_children(program.pid, rank, RANKS), RANKS);
    kill(rank[RANKS - 1], SIGKILL);
    ProgramResult result = finish_program(&program, program_clock() - program.started + 10);
    assert_false(result.timed_out);
    assert_int_not_equal(result.exit_code, 0);
    double until = program_clock() + 5 * program_slowness();
    for (int i = 0; i < RANKS; i++) {
        while (program_parent(rank[i]) != 0 && program_clock() < until) program_sleep(0.01);
        assert_int_equal(program_parent(rank[i]), 0);
    }
    free_result(&result);
}

static int make_runs(void **state) {
    make_folder(state);
    write_corpus();
    train(&one_rank);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_learns),        cmocka_unit_test(test_sp2),
        cmocka_unit_test(test_sp3),           cmocka_unit_test(test_sp4_ring),
        cmocka_unit_test(test_sp4_gather),    cmocka_unit_test(test_sp4_ulysses),
        cmocka_unit_test(test_sp4_both),      cmocka_unit_test(test_sp2_dp2),
        cmocka_unit_test(test_dp4),           cmocka_unit_test(test_gpt2),
        cmocka_unit_test(test_hidden),        cmocka_unit_test(test_hidden_resumed),
        cmocka_unit_test(test_sample_hidden), cmocka_unit_test(test_mpi_sp2),
        cmocka_unit_test(test_mpi_sp4),       cmocka_unit_test(test_mpi_sp2_dp2),
        cmocka_unit_test(test_mpi_dp4),       cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_accumulation),  cmocka_unit_test(test_resume_exactly),
        cmocka_unit_test(test_reshard),       cmocka_unit_test(test_resume_with_mpi),
        cmocka_unit_test(test_sigint),        cmocka_unit_test(test_sigterm),
        cmocka_unit_test(test_killed_rank),
    };
    const struct CMUnitTest under_sanitizers[] = {
        // each kind of thing once
        cmocka_unit_test(test_learns),  cmocka_unit_test(test_sp4_both),    cmocka_unit_test(test_sp2_dp2),
        cmocka_unit_test(test_sp3),     cmocka_unit_test(test_mpi_sp2_dp2), cmocka_unit_test(test_reshard),
        cmocka_unit_test(test_sigterm), cmocka_unit_test(test_killed_rank),
    };
    if (program_slowness() > 1)
        return cmocka_run_group_tests_name("training", under_sanitizers, make_runs, remove_folder);
    return cmocka_run_group_tests_name("training", tests, make_runs, remove_folder);
}
