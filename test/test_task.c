// Synthetic tasks: that windows are what dataloader/task.h says, that the loader serves them whatever the ranks, and
// training on them in the whole program.
//
// An answer that is drawn evenly from V is guessed right with probability 1/V. Of n guesses the share lies within 5
// standard deviations, 5 sqrt((1/V)(1 - 1/V) / n), of that, but for once in a million.
#include "test/compare.h"
#include "test/tiny_run.h"

#include <stdlib.h>
#include <string.h>

#include "dataloader/loader.h"
#include "layers/device.h"

enum { MOST_TOKENS = 512 };

typedef struct Window {
    Task task;
    int64_t T;
    int32_t inputs[MOST_TOKENS], targets[MOST_TOKENS];
} Window;

static Task task_of(const char *text) {
    Task task;
    Error err;
    if (!task_parse(&task, text, &err)) fail_msg("%s", err.message);
    return task;
}

static Window make_split(const char *text, TaskSplit split, uint64_t seed, uint64_t index, int64_t T) {
    Window w = {.task = task_of(text), .T = T};
    assert_true(T <= MOST_TOKENS);
    task_window(&w.task, split, seed, index, T, w.inputs, w.targets);
    return w;
}

static Window make_window(const char *text, uint64_t index, int64_t T) {
    return make_split(text, TASK_TRAINING, 7, index, T);
}

// Tokens and targets are of the vocabulary, and as many are asked as is said.
static void check_window(const Window *w) {
    int64_t asked = 0, V = task_vocabulary(&w->task);
    for (int64_t t = 0; t < w->T; t++) {
        assert_in_range(w->inputs[t], 0, V - 1);
        assert_true(w->targets[t] == TASK_NOT_ASKED || (w->targets[t] >= 0 && w->targets[t] < V));
        asked += w->targets[t] != TASK_NOT_ASKED;
    }
    assert_int_equal(asked, task_answers(&w->task, w->T));
    assert_true(asked > 0);
}

static void expect_even(const char *what, const int64_t *count, int kinds) {
    double all = 0, p = 1.0 / kinds;
    for (int i = 0; i < kinds; i++) all += (double)count[i];
    for (int i = 0; i < kinds; i++) {
        double share = (double)count[i] / all;
        if (fabs(share - p) > 5 * sqrt(p * (1 - p) / all))
            fail_msg("%s %d is drawn %.4f of %.0f times, not %.4f", what, i, share, all, p);
    }
}

// ---- recall ---------------------------------------------------------------------------------------------------------

enum { KEYS = 32, VALUES = 8, GROUP = 16 };

// The last token before t that tells a pair of this key. All that tell one tell the same.
static int64_t last_told(const Window *w, int64_t t) {
    int64_t last = -1;
    for (int64_t i = 0; i < w->T; i++) {
        bool tells = w->inputs[i] >= KEYS && (w->inputs[i] - KEYS) / VALUES == w->inputs[t];
        if (tells) assert_int_equal(w->inputs[i], w->targets[t]);
        if (tells && i < t) last = i;
    }
    assert_true(last >= 0);
    return last;
}

static void check_recall(int64_t D, int64_t T, int64_t *values) {
    char text[40];
    snprintf(text, sizeof text, "recall:%lld", (long long)D);
    bool another_order = false;
    int64_t group = D < GROUP ? D : GROUP;
    for (uint64_t index = 0; index < 40; index++) {
        Window w = make_window(text, index, T);
        int64_t asked = 0, sum = 0;
        check_window(&w);
        for (int64_t t = 0; t < T; t++) {
            if (w.targets[t] == TASK_NOT_ASKED) {
                assert_true(w.inputs[t] >= KEYS); // every question counts
                continue;
            }
            assert_true(w.inputs[t] < KEYS);
            int64_t distance = t - last_told(&w, t);
            assert_in_range(distance, D - group + 1, D + group - 1);
            another_order = another_order || distance != D;
            sum += distance;
            asked++;
            values[(w.targets[t] - KEYS) % VALUES]++;
        }
        assert_int_equal(sum, asked * D);
    }
    assert_true(another_order == (group > 1));
}

static void recall_is_told_at_a_distance_and_nowhere_else(void **state) {
    (void)state;
    const int64_t sizes[][2] = {{1, 2}, {1, 9}, {5, 23}, {16, 32}, {40, 56}, {64, 300}, {200, 512}};
    int64_t values[VALUES] = {0};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) check_recall(sizes[i][0], sizes[i][1], values);
    expect_even("value", values, VALUES);
}

// ---- copy -----------------------------------------------------------------------------------------------------------

static void copy_asks_for_the_token_before(void **state) {
    (void)state;
    enum { SYMBOLS = 16 };
    const int64_t sizes[][2] = {{1, 2}, {7, 50}, {100, 101}, {64, 256}};
    int64_t symbols[SYMBOLS] = {0};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t D = sizes[i][0], T = sizes[i][1];
        char text[40];
        snprintf(text, sizeof text, "copy:%lld", (long long)D);
        for (uint64_t index = 0; index < 20; index++) {
            Window w = make_window(text, index, T);
            check_window(&w);
            assert_int_equal(task_vocabulary(&w.task), SYMBOLS);
            for (int64_t t = 0; t < T; t++) {
                assert_int_equal(w.targets[t], t < D ? TASK_NOT_ASKED : w.inputs[t - D]);
                symbols[w.inputs[t]]++;
            }
        }
    }
    expect_even("symbol", symbols, SYMBOLS);
}

// ---- listops: an evaluator that reads words, sorts, and knows nothing of how they are made --------------------------

static const char *const WORDS[] = {"0", "1", "2",    "3",    "4",    "5",   "6", "7",
                                    "8", "9", "[MAX", "[MIN", "[MED", "[SM", "]", "="};
enum { WORDS_COUNT = 16 };

static int by_size(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

// Reads one expression from *word on, and moves *word past it.
static int evaluate(const char *const **word) {
    const char *first = *(*word)++;
    int argument[MOST_TOKENS], count = 0, result = 0;
    if (strlen(first) == 1) {
        assert_true(*first >= '0' && *first <= '9');
        return *first - '0';
    }
    while (strcmp(**word, "]") != 0) argument[count++] = evaluate(word);
    (*word)++;
    assert_true(count >= 2);
    qsort(argument, (size_t)count, sizeof *argument, by_size);
    if (strcmp(first, "[MIN") == 0) return argument[0];
    if (strcmp(first, "[MAX") == 0) return argument[count - 1];
    if (strcmp(first, "[SM") == 0) {
        for (int i = 0; i < count; i++) result += argument[i];
        return result % 10;
    }
    assert_string_equal(first, "[MED");
    return count % 2 == 1 ? argument[count / 2] : (argument[count / 2 - 1] + argument[count / 2]) / 2;
}

static void the_evaluator_knows_examples(void **state) {
    (void)state;
    // The first is that of Nangia and Bowman's figure 1.
    const char *const one[] = {"[MAX", "2", "9", "[MIN", "4", "7", "]", "0", "]", "="};
    const char *const two[] = {"[SM", "9", "[MED", "1", "8", "4", "]", "[MED", "2", "5", "]", "]", "="};
    const char *const *word = one;
    assert_int_equal(evaluate(&word), 9);
    word = two;
    assert_int_equal(evaluate(&word), 6); // 9 + 4 + 3
}

static void listops_are_right(void **state) {
    (void)state;
    const int64_t contexts[] = {32, 33, 95, 256, 512};
    int64_t operators[4] = {0}, results[10] = {0}, nested = 0, all = 0, most = 0;
    for (size_t i = 0; i < sizeof contexts / sizeof *contexts; i++) {
        for (uint64_t index = 0; index < 60; index++) {
            Window w = make_window("listops", index, contexts[i]);
            const char *words[MOST_TOKENS + 1] = {0}, *const *word = words;
            check_window(&w);
            assert_int_equal(task_vocabulary(&w.task), WORDS_COUNT);
            for (int64_t t = 0; t < w.T; t++) words[t] = WORDS[w.inputs[t]];
            while (word < words + w.T) { // the whole window is expressions with their answers
                const char *const *begin = word;
                int result = evaluate(&word);
                int64_t equals = word - words;
                assert_string_equal(words[equals], "=");
                assert_int_equal(w.targets[equals], result);
                assert_int_equal(w.inputs[equals + 1], result);
                assert_true(word - begin >= 6 && word - begin <= 54 + w.T % 32);
                results[result]++;
                word += 2;
            }
            for (int64_t t = 0; t < w.T; t++) {
                bool opening = w.inputs[t] >= 10 && w.inputs[t] < 14;
                if (opening) operators[w.inputs[t] - 10]++;
                nested += opening && t > 0 && w.inputs[t - 1] >= 10 && w.inputs[t - 1] < 14;
            }
        }
    }
    expect_even("operator", operators, 4);
    assert_true(nested > 0);
    for (int digit = 0; digit < 10; digit++) {
        assert_true(results[digit] > 0);
        all += results[digit];
        most = results[digit] > results[most] ? digit : most;
    }
    print_message("# listops: %lld is the answer most often, %.1f%% of %lld times\n", (long long)most,
                  100.0 * (double)results[most] / (double)all, (long long)all);
}

// ---- windows --------------------------------------------------------------------------------------------------------

static bool same_window(const Window *a, const Window *b) {
    return memcmp(a->inputs, b->inputs, sizeof a->inputs) == 0 &&
           memcmp(a->targets, b->targets, sizeof a->targets) == 0;
}

static void a_window_follows_from_seed_and_number(void **state) {
    (void)state;
    const char *const tasks[] = {"recall:32", "copy:3", "listops"};
    for (int i = 0; i < 3; i++) {
        Window a = make_split(tasks[i], TASK_TRAINING, 1, 5, 64), again = make_split(tasks[i], TASK_TRAINING, 1, 5, 64);
        Window seed = make_split(tasks[i], TASK_TRAINING, 2, 5, 64),
               next = make_split(tasks[i], TASK_TRAINING, 1, 6, 64);
        Window held = make_split(tasks[i], TASK_VALIDATION, 1, 5, 64);
        assert_true(same_window(&a, &again));
        assert_false(same_window(&a, &seed) || same_window(&a, &next) || same_window(&a, &held));
    }
}

static void tasks_are_refused_in_one_line(void **state) {
    (void)state;
    const char *const wrong[][2] = {
        {"recall", "--task recall: give the distance in tokens, as in recall:64"},
        {"copy:", "--task: \"copy:\" is not one of recall:D, copy:D and listops, with D tokens"},
        {"copy:x", "--task: \"copy:x\" is not one of recall:D, copy:D and listops, with D tokens"},
        {"listops:3", "--task: \"listops:3\" is not one of recall:D, copy:D and listops, with D tokens"},
        {"so\nrt", "--task: \"so?rt\" is not one of recall:D, copy:D and listops, with D tokens"},
        {"copy:0", "--task copy: the distance is out of range: give 1 to 2147483647 tokens"},
        {"recall:99999999999999999999", "--task recall: the distance is out of range: give 1 to 2147483647 tokens"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        Task task;
        Error err = {0};
        assert_false(task_parse(&task, wrong[i][0], &err));
        assert_string_equal(err.message, wrong[i][1]);
        assert_int_equal(err.exit_code, 2);
    }
}

// ---- the loader -----------------------------------------------------------------------------------------------------

// All ranks' shards together are the window, and the place in the data is a number.
static void check_served(Loader *loader, TaskSplit split, uint64_t seed, int ranks) {
    int64_t first[3], T = loader->context;
    int32_t inputs[MOST_TOKENS], targets[MOST_TOKENS], positions[MOST_TOKENS];
    Error err;
    loader->state = (LoaderState){0, 4};
    loader_next(loader, 3, first);
    assert_int_equal(loader->state.cursor, 7);
    assert_int_equal(loader->state.epoch, 0);
    for (int i = 0; i < 3; i++) {
        Window w = make_split("copy:3", split, seed, (uint64_t)(4 + i), T);
        int64_t total = 0;
        for (int rank = 0; rank < ranks; rank++) {
            Shard shard = shard_of(T, ranks, rank);
            assert_true(loader_read(loader, first[i], &shard, 16, inputs, targets, positions, &err));
            for (int64_t k = 0; k < shard.tokens; k++) {
                assert_int_equal(inputs[k], w.inputs[positions[k]]);
                assert_int_equal(targets[k], w.targets[positions[k]]);
            }
            total += shard.tokens;
        }
        assert_int_equal(total, T);
    }
}

static void the_loader_serves_tasks(void **state) {
    (void)state;
    const int64_t T = 45;
    Error err;
    Task task = task_of("copy:3");
    TokenSource *source = tokens_open_task(&task, &err);
    Loader training, validation, short_one;
    assert_non_null(source);
    assert_true(loader_init(&training, source, 0, TASK_SPLIT_TOKENS, T, 9, true, &err));
    assert_true(loader_init(&validation, source, TASK_SPLIT_TOKENS, tokens_count(source), T, 0, true, &err));
    assert_int_equal(loader_answers(&training), T - 3);
    for (int ranks = 1; ranks <= 4; ranks++) {
        check_served(&training, TASK_TRAINING, 9, ranks);
        check_served(&validation, TASK_VALIDATION, 0, ranks);
    }
    assert_false(loader_init(&short_one, source, 0, TASK_SPLIT_TOKENS, 3, 9, true, &err));
    assert_string_equal(err.message, "--context 3 is too short for --task copy:3: its windows need 4 tokens");
    loader_close(&training);
    loader_close(&validation);
    tokens_close(source);
}

// ---- the whole program ----------------------------------------------------------------------------------------------

static const char *const TRAINED = "--task copy:3 --context 48 --batch 4 --layers 2 --dim 64 --eval-windows 8";

// A run with `options` more, and its log.
static Log trained(const char *base, const char *options) {
    char all[1024], path[PROGRAM_PATH];
    snprintf(all, sizeof all, "%s %s --log @/log", base, options);
    free(check_run(0, all, ""));
    return read_log(in_folder(path, "log"));
}

// A wrong answer has at most half of the probability, so it costs log 2 at least.
static void expect_consistent(const Log *run) {
    assert_true(run->accuracy >= 0 && run->accuracy <= 1);
    assert_true(run->validation_loss >= (1 - run->accuracy) * log(2.0) * (1 - 1e-6));
}

// Untrained weights know nothing of the symbols: they are right as often as chance, in 8 windows of 45 answers.
static void training_learns_to_copy(void **state) {
    (void)state;
    Log before = trained(TRAINED, "--steps 1 --lr 1e-30 --seed 5"),
        after = trained(TRAINED, "--steps 80 --seed 5 --lr 4e-3");
    print_message("# copy:3: loss %.3f and accuracy %.3f untrained, %.3f and %.3f trained\n", before.validation_loss,
                  before.accuracy, after.validation_loss, after.accuracy);
    expect_consistent(&before);
    expect_consistent(&after);
    const double answers = 8 * 45, chance = 1.0 / 16;
    assert_true(fabs(before.accuracy - chance) < 5 * sqrt(chance * (1 - chance) / answers));
    assert_true(after.accuracy > 0.9);
}

// As in test_mixers_training.c: ranks change the order of sums, and 20 steps carry that on.
static void ranks_change_no_loss(void **state) {
    (void)state;
    const double limit = 3e-6;
    const char *const grids[] = {"--sp 2", "--sp 4", "--sp 2 --dp 2", "--micro-batch 1"};
    const char *const tasks[] = {TRAINED, "--task listops --context 100 --batch 4 --eval-windows 5",
                                 "--task recall:8 --context 37 --batch 4 --eval-windows 5"};
    for (int i = 0; i < 3; i++) {
        Log one = trained(tasks[i], "--steps 10 --warmup 2");
        for (int g = 0; g < 4; g++) {
            char options[100];
            snprintf(options, sizeof options, "--steps 10 --warmup 2 %s", grids[g]);
            Log other = trained(tasks[i], options);
            assert_int_equal(one.count, other.count);
            for (int s = 0; s < one.count; s++)
                if (!(fabs(one.loss[s] - other.loss[s]) <= limit * one.loss[s]))
                    fail_msg("%s %s: step %d has the loss %.9g, not %.9g", tasks[i], grids[g], s + 1, other.loss[s],
                             one.loss[s]);
            assert_true(fabs(one.validation_loss - other.validation_loss) <= limit * one.validation_loss);
            assert_true(one.accuracy == other.accuracy); // no two logits are so near each other here
        }
    }
}

static void a_resumed_run_has_the_same_bits(void **state) {
    (void)state;
    char a[PROGRAM_PATH], b[PROGRAM_PATH];
    trained(TRAINED, "--steps 8 --warmup 2 --out @/whole --save-every 4 --keep 0");
    remove_tree(in_folder(a, "whole/step-00000008"));
    free(check_run(
        2, "--task copy:4 --out @/whole --resume --context 48",
        "--resume: @/whole/step-00000004 was trained on the task copy:3, not on the task copy:4; give the same "
        "--task or --data, or use --init"));
    free(check_run(
        2, "--data @/text --out @/whole --resume --context 48",
        "--resume: @/whole/step-00000004 was trained on the task copy:3, not on @/text; give the same --task or "
        "--data, or use --init"));
    Log resumed = trained("--task copy:3 --context 48 --eval-windows 8", "--out @/whole --resume --steps 8");
    Log straight = trained(TRAINED, "--steps 8 --warmup 2 --out @/again");
    assert_int_equal(resumed.count, 8); // the first four are of the run before
    for (int i = 0; i < 8; i++) assert_true(resumed.loss[i] == straight.loss[i]);
    assert_true(resumed.validation_loss == straight.validation_loss && resumed.accuracy == straight.accuracy);
    assert_same_bytes(in_folder(a, "whole/step-00000008/model.safetensors"),
                      in_folder(b, "again/step-00000008/model.safetensors"));
}

static char *validation_line(char *out) {
    char *line = strstr(out, "validation loss");
    assert_non_null(line);
    line[strcspn(line, "\n")] = '\0';
    return line;
}

// The windows of validation are the same whatever the seed, and those of training are not.
static void validation_depends_on_no_seed(void **state) {
    (void)state;
    const char *const init = "--task copy:3 --init @/again/step-00000008 --context 48 --eval-windows 8";
    char one[512], two[512];
    snprintf(one, sizeof one, "%s --steps 0 --seed 1", init);
    snprintf(two, sizeof two, "%s --steps 0 --seed 2", init);
    char *a = check_run(0, one, ""), *b = check_run(0, two, "");
    assert_string_equal(validation_line(a), validation_line(b));
    free(a), free(b);
    Log first = trained(init, "--steps 1 --seed 1"), second = trained(init, "--steps 1 --seed 2");
    assert_true(first.loss[0] != second.loss[0]);
}

// CUDA's kernels on this processor: bf16 logits, of 0.4% each. A loss is off by less than that of logits of size 5, 2%;
// and two in a hundred answers may be as near to being another's.
static void emulated_gpus_count_the_same(void **state) {
    (void)state;
    const char *why;
    if (program_slowness() > 1 || device_count(DEVICE_EMULATED, &why) == 0) skip();
    const char *const task =
        "--task copy:3 --context 48 --layers 2 --heads 2 --dim 64 --ffn 64 --eval-windows 4 --batch 4";
    Log cpu = trained(task, "--steps 2"), gpu = trained(task, "--steps 2 --device emulated --sp 2");
    print_message("# CPU %.4f, %.3f; emulated %.4f, %.3f\n", cpu.validation_loss, cpu.accuracy, gpu.validation_loss,
                  gpu.accuracy);
    expect_consistent(&gpu);
    assert_true(fabs(gpu.validation_loss - cpu.validation_loss) < 0.02 * cpu.validation_loss);
    assert_true(fabs(gpu.accuracy - cpu.accuracy) < 0.02);
}

static void the_command_line(void **state) {
    (void)state;
    char *plan = check_run(0, "--task recall:32 --context 64 --plan", "");
    assert_non_null(strstr(plan, "logits of answers"));
    free(plan);
    char *out = check_run(0, "--task recall:32 --context 64 --eval-windows 3", "");
    assert_non_null(strstr(out, "data       the task recall:32, 16 answers in a window of 64 tokens\n"));
    assert_non_null(strstr(out, "% of them right (by chance 12.5%), over 3 windows of 64 tokens\n"));
    free(out);
    free(check_run(2, "--task recall:32 --context 47",
                   "--context 47 is too short for --task recall:32: its windows need 48 tokens"));
    free(check_run(2, "--task listop", "--task: \"listop\" is not one of recall:D, copy:D and listops, with D tokens"));
    free(check_run(2, "--task listops --data @/text", "--task makes its own tokens and answers: leave out --data"));
    free(check_run(2, "--task listops --document-mask",
                   "--task makes its own tokens and answers: leave out --document-mask"));
    free(check_run(2, "--task listops --context 32 --context-schedule 16:1",
                   "--task makes its own tokens and answers: leave out --context-schedule"));
    free(check_run(0, "--steps 1 --out @/bytes", ""));
    free(check_run(
        2, "--task copy:3 --init @/bytes/step-00000001",
        "--task copy:3 has a vocabulary of 16 tokens, and @/bytes/step-00000001 has 257; give a model of this "
        "task"));
}

static int make_files(void **state) {
    make_folder(state);
    make_text("text", 4000);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recall_is_told_at_a_distance_and_nowhere_else),
        cmocka_unit_test(copy_asks_for_the_token_before),
        cmocka_unit_test(the_evaluator_knows_examples),
        cmocka_unit_test(listops_are_right),
        cmocka_unit_test(a_window_follows_from_seed_and_number),
        cmocka_unit_test(tasks_are_refused_in_one_line),
        cmocka_unit_test(the_loader_serves_tasks),
        cmocka_unit_test(training_learns_to_copy),
        cmocka_unit_test(ranks_change_no_loss),
        cmocka_unit_test(a_resumed_run_has_the_same_bits),
        cmocka_unit_test(validation_depends_on_no_seed),
        cmocka_unit_test(emulated_gpus_count_the_same),
        cmocka_unit_test(the_command_line),
    };
    return cmocka_run_group_tests_name("task", tests, make_files, remove_folder);
}
