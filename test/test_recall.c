// Known answers: associative recall over a distance of 256 tokens (--task recall:256). Two layers of attention learn
// it; with windows of 64, which reach back 126 tokens in two layers, they cannot; linear attention, whose state sums
// over all tokens, lies between: it finds some of the values.
//
// It is learned at a distance of 32 first, and goes on at 256 from those weights: two runs. All but a few rotary angles
// stand still (--rope-theta 1e15), for what is asked does not depend on distance.
//
// Evaluation asks 512 times. Who cannot know is right once in 8 times, so the share of right answers has a standard
// deviation of sqrt(1/8 * 7/8 / 512) = 0.0146, and the loss cannot be below log 8 = 2.08 but by chance.
//
// All five runs together may take what two processors do in a minute. It is their own time that is counted, which other
// programs beside them hardly change: 12 s of one core of a server with AVX-512, 48 s with SIMD=portable.
#include "test/compare.h"
#include "test/folder.h"

#include <sys/resource.h>

enum { TIME_LIMIT = 60, PROCESSORS = 2, STAGES = 2 };

typedef struct Stage {
    const char *task, *context, *batch;
    int steps, steps_of_linear;
} Stage;
static const Stage stages[STAGES] = {{"recall:32", "48", "32", 200, 300}, {"recall:256", "272", "8", 60, 300}};

static char *name_of(char path[PROGRAM_PATH], const char *model, int stage, const char *what) {
    char name[100];
    snprintf(name, sizeof name, "%s-%d%s", model, stage, what);
    return path_join(path, folder, name);
}

static int steps_of(const char *mixer, int stage) {
    return strcmp(mixer, "attention") == 0 ? stages[stage].steps : stages[stage].steps_of_linear;
}

// Stage `stage` of learning, from the weights of `from` (NULL: new ones).
static Log learn(const char *model, int stage, const char *from, const char *mixer, const char *window, int seed) {
    char out[PROGRAM_PATH], log[PROGRAM_PATH], before[PROGRAM_PATH], step[40];
    const Stage *s = &stages[stage];
    Command command = {0};
    add_words(&command, train_gpt_path(), "--device", "cpu", "--sp", "1", "--task", s->task, NULL);
    add_words(&command, "--context", s->context, "--batch", s->batch, "--eval-windows", "32", NULL);
    add_words(&command, "--threads", "1", NULL); // of which there are two: other tests run beside this one
    add_words(&command, "--out", name_of(out, model, stage, ""), "--log", name_of(log, model, stage, ".log"), NULL);
    add_words(&command, "--lr", "2e-3", "--weight-decay", "0", NULL);
    add_number(&command, "--steps", steps_of(mixer, stage));
    add_number(&command, "--seed", seed);
    if (from == NULL) {
        add_words(&command, "--layers", "2", "--heads", "1", "--dim", "64", "--ffn", "64", "--untied", NULL);
        add_words(&command, "--rope-theta", "1e15", "--mixer", strcmp(mixer, "linear") == 0 ? "linear:1" : mixer, NULL);
    } else {
        snprintf(step, sizeof step, "/step-%08d", steps_of(mixer, stage - 1));
        add_words(&command, "--init", name_of(before, from, stage - 1, step), NULL);
    }
    if (window != NULL) add_words(&command, "--window", window, NULL);
    ProgramResult result = run_command(&command, TIME_LIMIT);
    free_result(&result);
    Log learned = read_log(log);
    remove(log);
    return learned;
}

// Seconds of a processor that programs have taken which have ended.
static double processor_time(void) {
    struct rusage usage;
    assert_int_equal(getrusage(RUSAGE_CHILDREN, &usage), 0);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static void attention_recalls(void **state) {
    (void)state;
    if (program_slowness() > 1) skip(); // it trains for seconds
    // RECALL_SEEDS in the environment: of so many seeds, one by default.
    const char *seeds = getenv("RECALL_SEEDS");
    for (int seed = 1; seed <= (seeds != NULL ? atoi(seeds) : 1); seed++) {
        double start = program_clock(), processors = processor_time();
        learn("attention", 0, NULL, "attention", NULL, seed);
        learn("linear", 0, NULL, "linear", NULL, seed);
        Log attention = learn("attention", 1, "attention", "attention", NULL, seed);
        Log window = learn("window", 1, "attention", "attention", "64", seed);
        Log linear = learn("linear", 1, "linear", "linear", NULL, seed);
        processors = processor_time() - processors;
        print_message("# seed %d, %.0f s, %.0f of a processor: recalled at a distance of 256, and loss: attention "
                      "%.3f, %.2f; windows of 64 %.3f, %.2f; linear %.3f, %.2f\n",
                      seed, program_clock() - start, processors, attention.accuracy, attention.validation_loss,
                      window.accuracy, window.validation_loss, linear.accuracy, linear.validation_loss);
        assert_true(processors > 0 && processors <= PROCESSORS * TIME_LIMIT);
        const double chance = 1.0 / 8, deviation = 0.0146;
        assert_true(attention.accuracy > 0.95 && attention.validation_loss < 0.4);
        assert_true(fabs(window.accuracy - chance) < 5 * deviation && window.validation_loss > log(8.0) - 0.05);
        assert_true(linear.accuracy > chance + 5 * deviation && linear.accuracy < attention.accuracy);
        assert_true(linear.validation_loss > attention.validation_loss);
        assert_true(linear.validation_loss < window.validation_loss);
        char run[PROGRAM_PATH];
        for (int stage = 0; stage < STAGES; stage++) {
            remove_tree(name_of(run, "attention", stage, ""));
            remove_tree(name_of(run, "window", stage, ""));
            remove_tree(name_of(run, "linear", stage, ""));
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(attention_recalls)};
    return cmocka_run_group_tests_name("recall", tests, make_folder, remove_folder);
}
