// The pattern of --mixer as text (model/mixer_pattern.c): what is read, what is refused, that what is written is read
// back; and any text at all.
#include "test/mixer_choices.h"

#include "base/random.h"

static bool read_pattern(ModelConfig *config, const char *text, Error *err) {
    memset(config, 0, sizeof *config);
    memset(err, 0, sizeof *err);
    return mixers_read(config, text, "--mixer", err);
}

// What was read, written and read again, is the same.
static void expect_round_trip(const ModelConfig *config, const char *text) {
    char written[MIXERS_TEXT];
    ModelConfig again;
    Error err;
    mixers_write(config, written);
    if (!read_pattern(&again, written, &err)) fail_msg("\"%s\" is written \"%s\": %s", text, written, err.message);
    if (again.mixers != config->mixers || memcmp(again.mixer, config->mixer, sizeof again.mixer) != 0)
        fail_msg("\"%s\" is written \"%s\", which is another pattern", text, written);
}

static void expect_refused(const char *text) {
    ModelConfig config;
    Error err;
    if (read_pattern(&config, text, &err)) fail_msg("\"%s\" is read", text);
    if (err.message[0] == '\0' || strchr(err.message, '\n') != NULL) fail_msg("\"%s\": \"%s\"", text, err.message);
}

static void every_choice_is_read(void **state) {
    (void)state;
    MixerChoices choices = mixer_choices();
    ModelConfig config;
    Error err;
    char written[MIXERS_TEXT], all[2 * MIXERS_TEXT] = "";
    for (int i = 0; i < choices.count; i++) {
        if (!read_pattern(&config, choices.text[i], &err)) fail_msg("%s", err.message);
        assert_int_equal(config.mixers, 1);
        assert_ptr_equal(token_mixers[config.mixer[0].number], choices.mixer[i]);
        mixers_write(&config, written);
        assert_string_equal(written, choices.text[i]);
        if (i < CONFIG_MAX_MIXERS) sprintf(all + strlen(all), "%s%s", i == 0 ? "" : ",", choices.text[i]);
    }
    if (!read_pattern(&config, all, &err)) fail_msg("%s", err.message);
    mixers_write(&config, written);
    assert_string_equal(written, all);
}

static void malformed_options_are_refused(void **state) {
    (void)state;
    static const char *const never[] = {"",     ":",     "zzz", "-1",  "+1", " 1", "1 ", "1,2,3",
                                        "0x10", "1e999", "nan", "inf", ".",  "1e", "1;2"};
    for (int i = 0; token_mixers[i] != NULL; i++) {
        const Mixer *mixer = token_mixers[i];
        char text[200];
        for (size_t k = 0; k < sizeof never / sizeof *never; k++) {
            snprintf(text, sizeof text, "%s:%s", mixer->name, never[k]);
            expect_refused(text);
        }
        snprintf(text, sizeof text, "%s:%s", mixer->name, mixer->name);
        expect_refused(text);
        snprintf(text, sizeof text, "%s:%sx", mixer->name, mixer->word != NULL ? mixer->word : "");
        expect_refused(text);
        snprintf(text, sizeof text, "%s:%s:1", mixer->name, mixer->word != NULL ? mixer->word : "1");
        expect_refused(text);
        for (int values = 0; values <= 3; values++) { // one less than it takes, and one more
            static const char *const some[] = {"", ":1", ":1,2", ":1,2,3"};
            if (values >= mixer->least_values && values <= mixer->most_values) continue;
            if (values == 0 && mixer->least_values == 0) continue;
            snprintf(text, sizeof text, "%s%s", mixer->name, some[values]);
            expect_refused(text);
        }
        snprintf(text, sizeof text, "%sx", mixer->name);
        expect_refused(text);
    }
}

static void malformed_patterns_are_refused(void **state) {
    (void)state;
    static const char *const texts[] = {"",
                                        ",",
                                        ",attention",
                                        "attention,",
                                        "attention,,attention",
                                        "Attention",
                                        " attention",
                                        "attention ",
                                        "attn",
                                        "attention\nattention",
                                        "attention,5",
                                        "5",
                                        "attention:",
                                        ":",
                                        "attention;attention",
                                        "attention, attention",
                                        "\xc3\xa9",
                                        "\x01"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) expect_refused(texts[i]);
    char many[400] = "attention";
    ModelConfig config;
    Error err;
    for (int i = 1; i < CONFIG_MAX_MIXERS; i++) strcat(many, ",attention");
    if (!read_pattern(&config, many, &err)) fail_msg("%s", err.message);
    assert_int_equal(config.mixers, CONFIG_MAX_MIXERS);
    strcat(many, ",attention");
    expect_refused(many);
}

// ---- any text at all ------------------------------------------------------------------------------------------------

static uint64_t drawn;
static uint64_t below(uint64_t bound) { return random_below(11, RANDOM_STREAM_DATA, drawn++, bound); }

// Names, options and what stands between them, in any order; and now and then any byte.
static void make_any(char text[600]) {
    static const char *const parts[] = {",",     ",",   ",",      ":",    ":",     ".",
                                        "-",     "+",   "e",      "E5",   "0",     "1",
                                        "64",    "0.5", "2048,4", "1e-3", "1e308", "9999999999999999999",
                                        "0x1p3", "inf", "nan",    " ",    "\n",    "\x7f"};
    int mixers = 0, length = (int)below(40);
    while (token_mixers[mixers] != NULL) mixers++;
    text[0] = '\0';
    for (int i = 0; i < length && strlen(text) < 560; i++) {
        const Mixer *mixer = token_mixers[below((uint64_t)mixers)];
        char byte[2] = {(char)(1 + below(255)), '\0'};
        uint64_t kind = below(8);
        strcat(text, kind < 3                           ? mixer->name
                     : kind == 3 && mixer->word != NULL ? mixer->word
                     : kind == 4 && below(20) == 0      ? byte
                                                        : parts[below(sizeof parts / sizeof *parts)]);
    }
}

// FUZZ_ROUNDS in the environment: how many times as long.
static void any_text_is_read_or_refused(void **state) {
    (void)state;
    const char *rounds = getenv("FUZZ_ROUNDS");
    int64_t tries = 100000 * (rounds != NULL ? atoll(rounds) : 1);
    int64_t read = 0;
    for (int64_t i = 0; i < tries; i++) {
        char text[600];
        ModelConfig config;
        Error err;
        make_any(text);
        if (!read_pattern(&config, text, &err)) {
            if (err.message[0] == '\0' || strchr(err.message, '\n') != NULL)
                fail_msg("\"%s\": \"%s\"", text, err.message);
            continue;
        }
        read++;
        expect_round_trip(&config, text);
    }
    print_message("# %lld of %lld were patterns\n", (long long)read, (long long)tries);
    assert_true(read > tries / 1000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_choice_is_read),
        cmocka_unit_test(malformed_options_are_refused),
        cmocka_unit_test(malformed_patterns_are_refused),
        cmocka_unit_test(any_text_is_read_or_refused),
    };
    return cmocka_run_group_tests_name("mixer_pattern", tests, NULL, NULL);
}
