// --context-schedule: steps on shorter sequences first. Each is held against a run that knows nothing of schedules, on
// the very same sequences; and against other ranks, processes and interruptions.
//
// Tolerances. Ranks change the order of float32 sums and nothing else, as in test/test_training.c, whose limit of losses
// is taken here: 1e-5 of the loss. In bf16 a value that lies between two falls to either side of 2^-9 of itself; 1e-3 of
// a loss is allowed, as in test/test_mixers_training.c.
#include "test/compare.h"
#include "test/ranks.h"
#include "test/tiny_run.h"

#include "dataloader/loader.h"
#include "layers/device.h"

static const double LOSSES = 1e-5, BF16_LOSSES = 1e-3; // relative

static const char SIZES[] = "--layers 2 --heads 4 --dim 32 --batch 4";

// Trains in folder/OUT with these options, and returns what it logged.
static Log train(const char *out, const char *options) {
    char all[1200], log[PROGRAM_PATH];
    const char *sizes = strstr(options, "--dim") != NULL || strstr(options, "--resume") != NULL ? "" : SIZES;
    const char *context = strstr(options, "--context ") != NULL ? "" : "--context 64";
    snprintf(all, sizeof all, "%.400s --out @/%.60s --log @/%.60s/log.jsonl --keep 0 --eval-windows 2 %s %s", options,
             out, out, context, sizes);
    free(check_run(0, all, ""));
    snprintf(all, sizeof all, "%.60s/log.jsonl", out);
    return read_log(in_folder(log, all));
}

// Losses of the steps of `b`, which may begin later than those of `a`.
static void expect_same_losses(const char *what, const Log *a, const Log *b, double limit) {
    double most = 0;
    assert_true(b->count > 0);
    for (int j = 0; j < b->count; j++) {
        int64_t i = b->step[j] - 1;
        double apart = fabs(a->loss[i] - b->loss[j]) / a->loss[i];
        if (!(apart <= limit)) fail_msg("%s: loss of step %d: %.9g, not %.9g", what, (int)i + 1, b->loss[j], a->loss[i]);
        most = fmax(most, apart);
    }
    double apart = fabs(a->validation_loss - b->validation_loss) / a->validation_loss;
    if (!(apart <= limit)) fail_msg("%s: validation %.9g, not %.9g", what, b->validation_loss, a->validation_loss);
    if (limit > 0) print_message("# %s: losses apart by %.1e\n", what, fmax(most, apart));
}

static void expect_same_files(const char *a, const char *b, const char *step, bool state_too) {
    static const char *const files[] = {"model.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors",
                                        "training_state.json"};
    for (int i = 0; i < (state_too ? 4 : 3); i++) {
        char x[PROGRAM_PATH], y[PROGRAM_PATH], name[200];
        snprintf(name, sizeof name, "%s/%s/%s", a, step, files[i]);
        in_folder(x, name);
        snprintf(name, sizeof name, "%s/%s/%s", b, step, files[i]);
        assert_same_bytes(x, in_folder(y, name));
    }
}

// ---- the same sequences, without a schedule -------------------------------------------------------------------------

static void whole_windows_are_no_schedule(void **state) {
    (void)state;
    Log plain = train("plain", "--steps 4");
    Log whole = train("whole", "--steps 4 --context-schedule 64:2");
    expect_same_losses("64:2", &plain, &whole, 0);
    expect_same_files("plain", "whole", "step-00000004", false);
}

// Data of exactly one window of 64 tokens, which are also four of 16; `seed`: with which the loader serves these in their
// order in each of the first `steps` epochs, as a schedule cuts them.
static int64_t seed_of_order(int steps) {
    char path[PROGRAM_PATH];
    const char *argument[] = {in_folder(path, "window")};
    Error err;
    Loader loader;
    TokenSource *source = tokens_open(argument, 1, TOKENS_BYTES, &err);
    assert_non_null(source);
    for (int64_t seed = 1;; seed++) {
        int64_t first[4];
        bool ordered = true;
        assert_true(loader_init(&loader, source, 0, tokens_count(source), 16, (uint64_t)seed, true, &err));
        for (int step = 0; ordered && step < steps; step++) {
            loader_next(&loader, 4, first);
            for (int i = 0; i < 4; i++) ordered = ordered && first[i] == 16 * i;
        }
        if (!ordered) continue;
        tokens_close(source);
        return seed;
    }
}

// The steps of a phase are those of a run with that --context and as many tokens in a step: losses, weights and moments
// to the bit.
static void a_phase_is_a_run_of_its_context(void **state) {
    (void)state;
    static const char *const models[] = {"--sp 1", "--sp 2 --attention ring", "--sp 4 --attention ulysses",
                                         "--sp 2 --mixer delta,linear", "--document-mask --document-end 101 --window 9"};
    char text[64];
    for (int i = 0; i < 64; i++) text[i] = (char)('a' + (i * i + i / 5) % 26);
    make_file("window", text, sizeof text); // and the end of the document: the last target
    long long seed = seed_of_order(3);
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char options[400], name[2][20];
        Log log[2];
        for (int cut = 0; cut < 2; cut++) {
            snprintf(name[cut], sizeof name[0], "%s%zu", cut ? "cut" : "short", i);
            snprintf(options, sizeof options, "%s --steps 3 --seed %lld --data @/window --val-data @/text --layers 2 "
                     "--heads 4 --dim 32 %s", models[i], seed,
                     cut ? "--batch 1 --context 64 --context-schedule 16:3" : "--batch 4 --context 16");
            log[cut] = train(name[cut], options);
        }
        for (int step = 0; step < 3; step++) {
            assert_true(log[0].loss[step] == log[1].loss[step]);
            assert_true(log[0].gradient_norm[step] == log[1].gradient_norm[step]);
        }
        expect_same_files(name[0], name[1], "step-00000003", false);
    }
}

// Validation is at --context in every phase, and changes nothing of training.
static void evaluates_whole_windows(void **state) {
    (void)state;
    const char phases[] = "--steps 6 --context-schedule 8:2,32:2 --sp 2 --save-every 1";
    char options[200], path[PROGRAM_PATH];
    snprintf(options, sizeof options, "%s --eval-every 1", phases);
    train("seen", options);
    train("unseen", phases);
    expect_same_files("seen", "unseen", "step-00000006", true);
    char *log = read_file(in_folder(path, "seen/log.jsonl"), NULL), *line = log;
    for (int step = 1; step <= 6; step++, line = strchr(line, '\n') + 1) {
        static const int context[] = {8, 8, 32, 32, 64, 64};
        char wanted[40];
        double logged = 0, said = 0;
        snprintf(wanted, sizeof wanted, "\"context\": %d, \"val_loss\": ", context[step - 1]);
        char *at = strstr(line, wanted);
        if (at == NULL || at > strchr(line, '\n')) fail_msg("step %d has no %s", step, wanted);
        sscanf(at + strlen(wanted), "%lf", &logged);
        snprintf(options, sizeof options, "--init @/seen/step-%08d --steps 0 --context 64 --sp 1 --eval-windows 2", step);
        char *out = check_run(0, options, ""), *loss = strstr(out, "validation loss ");
        if (loss == NULL || sscanf(loss, "validation loss %lf", &said) != 1) fail_msg("%s", out);
        if (fabs(said - logged) > 5e-5 + LOSSES * logged) // 4 digits are said
            fail_msg("step %d: %g in the log, %g of its file", step, logged, said);
        free(out);
    }
    free(log);
}

// ---- ranks, processes, devices --------------------------------------------------------------------------------------

static const char PHASES[] = "--steps 9 --context-schedule 16:3,32:3 --lr 1e-2";

static void ranks_change_no_loss(void **state) {
    (void)state;
    static const char *const models[] = {"--arch llama", "--arch gpt2", "--arch llama --recompute block --micro-batch 2",
                                         "--window 12,0 --document-mask --document-end 101",
                                         "--mixer conv:gated,dilated:8,2", "--mixer mlp,linear"};
    static const char *const ranks[] = {"--sp 1", "--sp 2", "--sp 2 --dp 2", "--sp 4"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        Log one = {0}, other;
        for (int k = 0; k < 4; k++) {
            char options[400], name[40];
            snprintf(name, sizeof name, "ranks%zu_%d", i, k);
            snprintf(options, sizeof options, "%s %s %s", PHASES, models[i], ranks[k]);
            other = train(name, options);
            if (k == 0) one = other;
            else expect_same_losses(options + sizeof PHASES, &one, &other, LOSSES);
        }
        assert_true(one.loss[8] < one.loss[0] - 0.5); // it learns
    }
}

static void processes_give_the_same_bits(void **state) {
    (void)state;
    if (!mpi_can_be_tested()) skip();
    char options[1000], *text = malloc(16 * PROGRAM_PATH);
    Command command = {0};
    assert_non_null(text);
    snprintf(options, sizeof options, "%s --sp 4 --attention ulysses-ring", PHASES);
    train("threads", options);
    assert_true(add_mpirun(&command, 4));
    snprintf(options, sizeof options, "%s --sp 4 --attention ulysses-ring --out @/mpi --context 64 --eval-windows 2 %s",
             PHASES, SIZES);
    build_command(&command, text, 16 * PROGRAM_PATH, options);
    ProgramResult result = run_command(&command, 60);
    free_result(&result);
    free(text);
    expect_same_files("threads", "mpi", "step-00000009", true);
}

// ---- interruptions --------------------------------------------------------------------------------------------------

// A copy of checkpoint `step` of run `from` in a new run `to`, as if that had been stopped there.
static void copy_checkpoint(const char *from, int step, const char *to) {
    char source[PROGRAM_PATH], target[PROGRAM_PATH], name[100];
    snprintf(name, sizeof name, "%s/step-%08d", from, step);
    assert_int_equal(mkdir(in_folder(target, to), 0777), 0);
    const char *const copy[] = {"cp", "-r", in_folder(source, name), target, NULL};
    ProgramResult result = run_program(copy, 10);
    assert_int_equal(result.exit_code, 0);
    free_result(&result);
}

// Stopped after each step, whatever the phase, and resumed.
static void resume_everywhere(const char *name, const char *options, const char *again, int steps) {
    char last[40];
    snprintf(last, sizeof last, "step-%08d", steps);
    Log whole = train(name, options);
    for (int step = 1; step < steps; step++) {
        char to[60];
        snprintf(to, sizeof to, "%.40s_%d", name, step);
        copy_checkpoint(name, step, to);
        Log rest = train(to, again);
        assert_int_equal(rest.step[0], step + 1);
        expect_same_losses(to, &whole, &rest, 0);
        expect_same_files(name, to, last, true);
    }
}

static void resumes_exactly(void **state) {
    (void)state;
    resume_everywhere("cpu", "--steps 6 --context-schedule 8:2,32:2 --save-every 1 --sp 2",
                      "--resume --steps 6 --sp 2", 6);
}

// Kernels of GPUs; and what one phase leaves in memory is nothing to the next, since a resumed run does not have it.
static void resumes_exactly_on_gpus(void **state) {
    (void)state;
    static const char run[] = "--steps 3 --context-schedule 8:1,16:1 --save-every 1 --sp 2 --context 32 --batch 1 "
                              "--layers 1 --heads 2 --dim 16 --device";
    const char *why;
    char options[400], path[PROGRAM_PATH];
    if (device_count(DEVICE_EMULATED, &why) == 0 || program_slowness() > 1) skip();
    snprintf(options, sizeof options, "%s emulated", run);
    resume_everywhere("gpu", options, "--resume --steps 3 --sp 2 --context 32 --device emulated", 3);
    snprintf(options, sizeof options, "%s cpu", run);
    Log cpu = train("no_gpu", options), gpu = read_log(in_folder(path, "gpu/log.jsonl"));
    expect_same_losses("emulated", &cpu, &gpu, BF16_LOSSES);
}

// Begins folder/killed, or goes on with it, and kills it when its log has more than `steps` lines.
static void run_until(int steps, const char *options) {
    char path[PROGRAM_PATH], *text = malloc(16 * PROGRAM_PATH);
    Command command = {0};
    assert_non_null(text);
    in_folder(path, "killed/log.jsonl");
    build_command(&command, text, 16 * PROGRAM_PATH, options);
    RunningProgram program = start_program(command.argv);
    for (int logged = 0; logged <= steps && program_clock() < program.started + 20; program_sleep(0.002))
        if (path_exists(path)) logged = read_log(path).count;
    kill(program.pid, SIGKILL);
    ProgramResult result = finish_program(&program, 20);
    assert_int_equal(result.exit_code, 128 + SIGKILL); // it had more to do
    free_result(&result);
    free(text);
}

static void killed_in_each_phase(void **state) {
    (void)state;
    static const char run[] = "--steps 90 --context-schedule 16:30,32:30 --save-every 3 --sp 2", last[] = "step-00000090",
                      again[] = "--resume --steps 90 --save-every 3 --sp 2 --eval-windows 2 --context 64 --out @/killed "
                                "--log @/killed/log.jsonl";
    char first[400];
    Log whole = train("undisturbed", run);
    snprintf(first, sizeof first, "%s --out @/killed --log @/killed/log.jsonl --context 64 --eval-windows 2 %s", run,
             SIZES);
    run_until(10, first);
    run_until(40, again);
    run_until(70, again);
    Log rest = train("killed", "--resume --steps 90 --sp 2");
    expect_same_losses("killed", &whole, &rest, 0);
    expect_same_files("undisturbed", "killed", last, true);
}

static void a_resume_tells_another_schedule(void **state) {
    (void)state;
    train("kept", "--steps 3 --context-schedule 16:2,32:1");
    static const struct {
        const char *given, *told;
    } cases[] = {
        {"", "schedule   sequences of 16 tokens up to step 2, 32 up to step 3, then 64"},
        {"--context-schedule 16:4", "otherwise than before: --steps 5 (was 3), --context-schedule 16:4 (was 16:2,32:1)"},
        {"--context-schedule none", "otherwise than before: --steps 5 (was 3), --context-schedule none (was 16:2,32:1)"},
    };
    for (int i = 0; i < 3; i++) {
        char to[20], options[200];
        snprintf(to, sizeof to, "kept%d", i);
        copy_checkpoint("kept", 3, to);
        snprintf(options, sizeof options, "--resume --steps 5 --sp 1 --context 64 --out @/%s %s", to, cases[i].given);
        char *said = check_run(0, options, "");
        if (strstr(said, cases[i].told) == NULL) fail_msg("%s: %s", cases[i].given, said);
        free(said);
    }
}

// ---- what is refused ------------------------------------------------------------------------------------------------

static void bad_schedules_are_refused(void **state) {
    (void)state;
    static const char *const texts[] = {"16", "16:", ":3", "16:2,", ",16:2", "16:0", "0:2", "16:1.5", "-16:1", "16:2;8:1",
                                        "x:2", "16:99999999999999999999", "99999999999999999999:1", "16 :1", "None"};
    static const struct {
        const char *options, *message;
    } cases[] = {
        {"--context-schedule 24:1", "--context-schedule: 24:1 does not divide --context 64; give a divisor"},
        {"--context-schedule 128:1", "--context-schedule: 128:1 does not divide --context 64; give a divisor"},
        {"--context-schedule 4:1 --sp 4", "--context-schedule: 4:1 is too short for --sp 4: a rank owns two chunks, give "
                                          "at least 8"},
        {"--context-schedule 16:4", "--context-schedule: 16:4 ends behind the run: --steps is 3"},
        {"--context-schedule 16:2,32:2", "--context-schedule: 32:2 ends behind the run: --steps is 3"},
        {"--context-schedule 16:1,16:1,16:1,16:1,16:1,16:1,16:1,16:1,16:1,16:1,16:1,16:1,16:1,16:1,16:1,16:1,16:1 "
         "--steps 20", "--context-schedule: at most 16 pairs and 255 characters are served"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char options[400];
        bool steps = strstr(cases[i].options, "--steps") != NULL;
        snprintf(options, sizeof options, "--context 64 %s %s", steps ? "" : "--steps 3", cases[i].options);
        free(check_run(2, options, cases[i].message));
    }
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        char said[400];
        const char *const command[] = {train_gpt_path(), "--device", "cpu", "--context-schedule", texts[i], NULL};
        ProgramResult result = run_program(command, 20);
        snprintf(said, sizeof said, "train_gpt: --context-schedule: \"%s\" is not a list of tokens and steps, such as "
                 "64:100,1024:300\n", texts[i]);
        assert_int_equal(result.exit_code, 2);
        assert_string_equal(result.err, said);
        free_result(&result);
    }
    const char *const task[] = {train_gpt_path(),     "--device", "cpu", "--task", "copy:4",
                                "--context-schedule", "64:1",     NULL};
    ProgramResult result = run_program(task, 20);
    assert_int_equal(result.exit_code, 2);
    assert_string_equal(result.err, "train_gpt: --task makes its own tokens and answers: leave out "
                                    "--context-schedule\n");
    free_result(&result);
}

// No step need be left for --context; and lengths may fall again.
static void any_order_is_served(void **state) {
    (void)state;
    Log log = train("order", "--steps 4 --context-schedule 32:1,8:2,64:1 --sp 2");
    assert_int_equal(log.count, 4);
    assert_true(isfinite(log.validation_loss));
}

static int make_data(void **state) {
    make_folder(state);
    make_text("text", 3000);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_windows_are_no_schedule), cmocka_unit_test(a_phase_is_a_run_of_its_context),
        cmocka_unit_test(evaluates_whole_windows),       cmocka_unit_test(ranks_change_no_loss),
        cmocka_unit_test(processes_give_the_same_bits),  cmocka_unit_test(resumes_exactly),
        cmocka_unit_test(resumes_exactly_on_gpus),       cmocka_unit_test(killed_in_each_phase),
        cmocka_unit_test(a_resume_tells_another_schedule), cmocka_unit_test(bad_schedules_are_refused),
        cmocka_unit_test(any_order_is_served),
    };
    return cmocka_run_group_tests(tests, make_data, remove_folder);
}
