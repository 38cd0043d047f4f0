// Every token mixer's memory: after the first step of a run nothing is allocated or freed, and what a run takes is what
// --plan says.
#include "test/counted_run.h"
#include "test/mixer_choices.h"

#include <math.h>

// Does the program take these options? A mixer may say that a device has nothing for it.
static bool serves(const Case *c, const char *choice) {
    Command command = {0};
    char words[1024];
    ProgramResult result;
    add_words(&command, train_gpt_path(), "--device", c->device, "--plan", NULL);
    snprintf(words, sizeof words, "%s", c->options);
    for (char *word = strtok(words, " "); word != NULL; word = strtok(NULL, " ")) add_word(&command, word);
    bool served = run_or_refused(&command, choice, 60, &result);
    if (!served) print_message("# %s", result.err);
    free_result(&result);
    return served;
}

static void check_allocations(const char *device, const char *sizes) {
    MixerChoices choices = mixer_choices();
    for (int i = 0; i < choices.count; i++) {
        char text[1024];
        snprintf(text, sizeof text, "--mixer %s %s", choices.text[i], sizes);
        const char *const options[] = {text};
        if (serves(&(Case){device, text}, choices.text[i])) nothing_is_allocated(device, options, 1);
    }
}

static void nothing_is_allocated_on_the_cpu(void **state) {
    (void)state;
    check_allocations("cpu", "--arch llama --heads 4 --dim 32 --context 160 --sp 1 --recompute block");
    check_allocations("cpu", "--arch gpt2 --heads 4 --dim 32 --context 160 --sp 4");
}

static void nothing_is_allocated_on_gpus(void **state) {
    (void)state;
    if (!has_device("emulated")) skip();
    check_allocations("emulated", "--arch llama --heads 2 --dim 32 --context 40 --sp 2 --recompute block");
}

static void cpu_takes_what_is_planned(void **state) {
    (void)state;
    static const Case smallest = {"cpu", "--layers 1 --heads 1 --dim 8 --context 8 --sp 1"};
    static const char *const sizes[] = {
        "--arch llama --layers 4 --heads 4 --dim 256 --context 320 --batch 2 --sp 1",
        "--arch llama --layers 4 --heads 4 --dim 256 --context 320 --batch 2 --sp 4 --recompute block"};
    MixerChoices choices = mixer_choices();
    double without = (double)measured(&smallest).resident;
    for (int i = 0; i < choices.count; i++)
        for (int k = 0; k < 2; k++) {
            char text[1024];
            snprintf(text, sizeof text, "--mixer %s %s", choices.text[i], sizes[k]);
            Case c = {"cpu", text};
            expect_as_planned(&c, (double)measured(&c).peak - without);
        }
}

static void gpus_take_what_is_planned(void **state) {
    (void)state;
    if (!has_device("emulated")) skip();
    MixerChoices choices = mixer_choices();
    for (int i = 0; i < choices.count; i++)
        for (int sp = 1; sp <= 2; sp++) {
            char text[1024];
            snprintf(text, sizeof text, "--mixer %s --layers %d --heads 2 --dim 32 --context 64 --batch 1 --sp %d",
                     choices.text[i], 3 - sp, sp);
            Case c = {"emulated", text};
            if (!serves(&c, choices.text[i])) continue;
            // Most of it is what a GPU's products work in, so 5% would hide a mixer's part; all is in few pieces.
            double plan = planned(&c), bytes = (double)measured(&c).device_peak;
            if (fabs(bytes - plan) > 0.005 * plan)
                fail_msg("%s: planned %.2f MiB, measured %.2f", c.options, plan / 1048576, bytes / 1048576);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_allocated_on_the_cpu),
        cmocka_unit_test(nothing_is_allocated_on_gpus),
        cmocka_unit_test(cpu_takes_what_is_planned),
        cmocka_unit_test(gpus_take_what_is_planned),
    };
    return cmocka_run_group_tests_name("mixers_memory", tests, NULL, NULL);
}
