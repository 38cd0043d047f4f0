// The command line: defaults, every kind of value, what options say about each other, the nearest name, the help.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "terminal/options.h"
#include "terminal/options_table.h"

enum { MAX_WORDS = 64 };

// Splits at single spaces; `line` is changed.
static int split(char *line, const char **words) {
    int count = 0;
    words[count++] = "train_gpt";
    for (char *word = strtok(line, " "); word != NULL; word = strtok(NULL, " ")) {
        assert_true(count < MAX_WORDS);
        words[count++] = word;
    }
    return count;
}

typedef struct Line {
    char text[2000];
    Options options;
    Error err;
    bool parsed;
} Line;

static Line *parse(const char *text) {
    Line *line = calloc(1, sizeof *line);
    assert_non_null(line);
    snprintf(line->text, sizeof line->text, "%s", text);
    const char *words[MAX_WORDS];
    int count = split(line->text, words);
    line->parsed = options_parse(&line->options, count, words, &line->err);
    return line;
}

static Line *parse_good(const char *text) {
    Line *line = parse(text);
    if (!line->parsed) fail_msg("\"%s\": %s", text, line->err.message);
    return line;
}

static void done(Line *line) {
    options_free(&line->options);
    free(line);
}

// A choice is stored as its word's place among the allowed ones, which must be its number in the enum.
static void choices_are_enums(void **state) {
    (void)state;
    static const struct {
        const char *line;
        size_t offset;
        int value;
    } cases[] = {
        {"--arch gpt2", offsetof(Options, arch), ARCH_GPT2},
        {"--arch llama", offsetof(Options, arch), ARCH_LLAMA},
        {"--data-format auto --data x", offsetof(Options, data_format), TOKENS_AUTO},
        {"--data-format bytes --data x", offsetof(Options, data_format), TOKENS_BYTES},
        {"--data-format uint16 --data x", offsetof(Options, data_format), TOKENS_UINT16},
        {"--data-format uint32 --data x", offsetof(Options, data_format), TOKENS_UINT32},
        {"--data-format llmc --data x", offsetof(Options, data_format), TOKENS_LLMC},
        {"--data-format fasta --data x", offsetof(Options, data_format), TOKENS_FASTA},
        {"--data-format idx --data x", offsetof(Options, data_format), TOKENS_IDX},
        {"--data-format abc --data x", offsetof(Options, data_format), TOKENS_ABC},
        {"--data-format wav --data x", offsetof(Options, data_format), TOKENS_WAV},
        {"--recompute none", offsetof(Options, recompute), RECOMPUTE_NONE},
        {"--recompute mlp", offsetof(Options, recompute), RECOMPUTE_MLP},
        {"--recompute block", offsetof(Options, recompute), RECOMPUTE_BLOCK},
        {"--schedule cosine", offsetof(Options, schedule), SCHEDULE_COSINE},
        {"--schedule constant", offsetof(Options, schedule), SCHEDULE_CONSTANT},
        {"--schedule wsd", offsetof(Options, schedule), SCHEDULE_WSD},
        {"--attention auto", offsetof(Options, attention), EXCHANGE_AUTO},
        {"--attention ring", offsetof(Options, attention), EXCHANGE_RING},
        {"--attention gather", offsetof(Options, attention), EXCHANGE_GATHER},
        {"--attention ulysses", offsetof(Options, attention), EXCHANGE_ULYSSES},
        {"--attention ulysses-ring", offsetof(Options, attention), EXCHANGE_ULYSSES_RING},
        {"--attention vanilla --sp 1", offsetof(Options, attention), EXCHANGE_VANILLA},
        {"--engine auto", offsetof(Options, engine), COMM_AUTO},
        {"--engine local", offsetof(Options, engine), COMM_LOCAL},
        {"--engine mpi", offsetof(Options, engine), COMM_MPI},
        {"--device auto", offsetof(Options, device), DEVICE_AUTO},
        {"--device cpu", offsetof(Options, device), DEVICE_CPU},
        {"--device cuda", offsetof(Options, device), DEVICE_CUDA},
        {"--device emulated", offsetof(Options, device), DEVICE_EMULATED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Line *line = parse_good(cases[i].line);
        int value;
        memcpy(&value, (char *)&line->options + cases[i].offset, sizeof value);
        if (value != cases[i].value) fail_msg("%s is %d, not %d", cases[i].line, value, cases[i].value);
        done(line);
    }
}

// ---- what is accepted -----------------------------------------------------------------------------------------------

static void defaults(void **state) {
    (void)state;
    Line *line = parse_good("");
    Options *o = &line->options;
    assert_int_equal(o->arch, ARCH_LLAMA);
    assert_null(o->model);
    assert_int_equal(o->context, 2048);
    assert_int_equal(o->sp, 4);
    assert_int_equal(o->dp, 1);
    assert_true(o->layers > 0 && o->heads > 0 && o->dim > 0);
    assert_true(o->beta1 == 0.9 && o->beta2 == 0.95 && o->adam_epsilon == 1e-8);
    assert_true(o->rope_theta == 10000);
    assert_int_equal(o->attention, EXCHANGE_AUTO);
    assert_null(o->data);
    assert_null(o->out);
    assert_false(o->resume || o->plan || o->help || o->untied);
    assert_false(options_given(o, "sp"));
    done(line);
}

static void values(void **state) {
    (void)state;
    Line *line = parse_good("--layers 3 --lr=2.5e-4 --schedule wsd --decay-fraction .5 --seed 9223372036854775807 "
                            "--sp=1 --attention vanilla --untied --data a b --val-data v --data c --out o "
                            "--temperature 0 --log=l=m");
    Options *o = &line->options;
    assert_int_equal(o->layers, 3);
    assert_true(o->lr == 2.5e-4);
    assert_int_equal(o->schedule, SCHEDULE_WSD);
    assert_true(o->decay_fraction == 0.5);
    assert_true(o->seed == INT64_MAX);
    assert_int_equal(o->sp, 1);
    assert_int_equal(o->attention, EXCHANGE_VANILLA);
    assert_true(o->untied);
    assert_int_equal(o->data_count, 3);
    assert_string_equal(o->data[0], "a");
    assert_string_equal(o->data[1], "b");
    assert_string_equal(o->data[2], "c");
    assert_int_equal(o->val_data_count, 1);
    assert_string_equal(o->val_data[0], "v");
    assert_string_equal(o->out, "o");
    assert_string_equal(o->log, "l=m");
    assert_true(o->temperature == 0);
    assert_true(options_given(o, "sp") && options_given(o, "data") && options_given(o, "untied"));
    assert_false(options_given(o, "dp"));
    done(line);
}

static void whole_numbers_with_an_exponent(void **state) {
    (void)state;
    Line *line = parse_good("--steps 1e3 --batch 1E+0 --context 1.5e6 --seed 1e18 --min-lr 0");
    assert_int_equal(line->options.steps, 1000);
    assert_int_equal(line->options.batch, 1);
    assert_int_equal(line->options.context, 1500000);
    assert_true(line->options.seed == INT64_C(1000000000000000000));
    done(line);
}

static void empty_and_dashed_prompts(void **state) {
    (void)state;
    Options o;
    Error err;
    assert_true(options_parse(&o, 3, (const char *const[]){"train_gpt", "--sample", ""}, &err));
    assert_string_equal(o.sample, "");
    options_free(&o);
    assert_true(options_parse(&o, 2, (const char *const[]){"train_gpt", "--sample=--steps 3"}, &err));
    assert_string_equal(o.sample, "--steps 3");
    options_free(&o);
}

static void sizes_come_from_one_place(void **state) {
    (void)state;
    Line *named = parse_good("--model d12 --heads 6");
    assert_int_equal(named->options.layers, 0);
    assert_int_equal(named->options.dim, 0);
    assert_int_equal(named->options.heads, 6);
    done(named);
    Line *gpt2 = parse_good("--model gpt2-xl");
    assert_int_equal(gpt2->options.arch, ARCH_GPT2);
    done(gpt2);
    Line *shape_only = parse_good("--model gpt2-xl --arch llama");
    assert_int_equal(shape_only->options.arch, ARCH_LLAMA);
    done(shape_only);
    Line *initial = parse_good("--init folder");
    assert_int_equal(initial->options.layers, 0);
    assert_true(initial->options.rope_theta == 0);
    done(initial);
    Line *longer = parse_good("--init folder --rope-theta 500000");
    assert_true(longer->options.rope_theta == 500000);
    done(longer);
    Line *resumed = parse_good("--out folder --resume --layers 4");
    assert_int_equal(resumed->options.layers, 4);
    assert_int_equal(resumed->options.heads, 0);
    done(resumed);
}

static void defaults_follow_what_is_given(void **state) {
    (void)state;
    Line *brief = parse_good("--steps 5");
    assert_int_equal(brief->options.warmup, 5);
    done(brief);
    Line *replicas = parse_good("--dp 3 --micro-batch 2");
    assert_int_equal(replicas->options.batch % 6, 0);
    assert_true(replicas->options.batch > 0);
    done(replicas);
}

static void help_and_version_win(void **state) {
    (void)state;
    Line *line = parse_good("-h --no-such-option");
    assert_true(line->options.help);
    done(line);
    line = parse_good("--steps 3 --help --steps");
    assert_true(line->options.help);
    done(line);
    line = parse_good("--version --layers none");
    assert_true(line->options.version);
    done(line);
}

// ---- what is refused ------------------------------------------------------------------------------------------------

typedef struct BadLine {
    const char *line, *message;
} BadLine;

static const BadLine bad_lines[] = {
    // names
    {"--stpes 4", "unknown option --stpes: did you mean --steps?"},
    {"--stpes=4", "unknown option --stpes: did you mean --steps?"},
    {"-steps 4", "unknown option -steps: did you mean --steps?"},
    {"--batches 4", "unknown option --batches: did you mean --batch?"},
    {"--eval_every 4", "unknown option --eval_every: did you mean --eval-every?"},
    {"--evalevery 4", "unknown option --evalevery: did you mean --eval-every?"},
    {"--sede 4", "unknown option --sede: did you mean --seed?"},
    {"--Steps 4", "unknown option --Steps: did you mean --steps?"},
    {"--contexts 4", "unknown option --contexts: did you mean --context?"},
    {"--hlep", "unknown option --hlep: did you mean --help?"},
    {"--save_every=4", "unknown option --save_every: did you mean --save-every?"},
    {"--SAVE_every 4", "unknown option --SAVE_every: did you mean --save-every?"},
    {"--savevery 4", "unknown option --savevery: did you mean --save-every?"},
    {"-lr 4", "unknown option -lr: did you mean --lr?"},
    {"--frobnicate", "unknown option --frobnicate: see --help"},
    {"--complete", "unknown option --complete: see --help"}, // not --sample
    {"--np 4", "unknown option --np: see --help"},           // neither --sp nor --dp
    {"--platform", "unknown option --platform: see --help"},
    {"-V", "unknown option -V: see --help"},
    {"-X", "unknown option -X: see --help"},
    // names elsewhere
    {"--learning-rate 4", "unknown option --learning-rate: here it is --lr (highest learning rate)"},
    {"--learning_rate=4", "unknown option --learning_rate: here it is --lr (highest learning rate)"},
    {"--Learning_Rate=4", "unknown option --Learning_Rate: here it is --lr (highest learning rate)"},
    {"-l 4", "unknown option -l: here it is --lr (highest learning rate)"},
    {"-x", "unknown option -x: here it is --steps (optimizer steps of the whole run)"},
    {"--min_lr 6e-5", "unknown option --min_lr: here it is --min-lr (final learning rate, as a fraction of --lr)"},
    {"--max_iters 4", "unknown option --max_iters: here it is --steps (optimizer steps of the whole run)"},
    {"--dropout 0.1", "unknown option --dropout: there is no dropout here"},
    {"--compile=False", "unknown option --compile: the program is compiled already"},
    {"--", "\"--\" belongs to no option: options are written --name value; see --help"},
    {"-", "\"-\" belongs to no option: options are written --name value; see --help"},
    {"input.txt", "\"input.txt\" belongs to no option: options are written --name value; see --help"},
    {"help --steps 4", "\"help\" belongs to no option: options are written --name value; see --help"},
    {"--steps 4 5", "\"5\" belongs to no option: --steps takes one value; put one with spaces in quotes"},
    {"--sample once upon", "\"upon\" belongs to no option: --sample takes one value; put one with spaces in quotes"},
    {"--data=a b", "\"b\" belongs to no option: --data=PATH takes one, --data PATH PATH takes several"},
    {"--resume yes", "\"yes\" belongs to no option: --resume takes no value"},
    {"\xe2\x80\x93steps 4", "\"\xe2\x80\x93steps\" begins with a dash of another kind: type two hyphens, --name"},
    {"--lr 1 \xe2\x80\x94steps 4",
     "\"\xe2\x80\x94steps\" begins with a dash of another kind: type two hyphens, --name"},
    {"\xe2\x88\x92-lr 4", "\"\xe2\x88\x92-lr\" begins with a dash of another kind: type two hyphens, --name"},
    // missing, double, superfluous
    {"--steps", "--steps needs a value: --steps N"},
    {"--steps --lr 1", "--steps needs a value: --steps N"},
    {"--data", "--data needs a value: --data PATH..."},
    {"--data --lr 1", "--data needs a value: --data PATH..."},
    {"--schedule", "--schedule needs a value: --schedule cosine|constant|wsd"},
    {"--steps=", "--steps: the value is empty"},
    {"--out=", "--out: the value is empty"},
    {"--data=", "--data: the value is empty"},
    {"--steps 4 --steps 4", "--steps is given twice"},
    {"--plan --plan", "--plan is given twice"},
    {"--plan=1", "--plan takes no value"},
    // whole numbers
    {"--steps ten", "--steps: \"ten\" is not a whole number"},
    {"--steps 10x", "--steps: \"10x\" is not a whole number"},
    {"--steps 1.5", "--steps: \"1.5\" is not a whole number"},
    {"--steps 1.5e0", "--steps: \"1.5e0\" is not a whole number"},
    {"--steps 1e-3", "--steps: \"1e-3\" is not a whole number"},
    {"--steps 1e", "--steps: \"1e\" is not a whole number"},
    {"--steps e3", "--steps: \"e3\" is not a whole number"},
    {"--steps 1e13", "--steps: 1e13 is out of range: give 0 to 1000000000000"},
    {"--steps 1e999", "--steps: 1e999 is out of range: give 0 to 1000000000000"},
    {"--seed 9.3e18", "--seed: 9.3e18 is out of range: give 0 to 9223372036854775807"},
    {"--seed 9223372036854775808e0", "--seed: 9223372036854775808e0 is out of range: give 0 to 9223372036854775807"},
    {"--context 8k", "--context: \"8k\" is not a whole number: write 8000 or 8192"},
    {"--context 128K", "--context: \"128K\" is not a whole number: write 128000 or 131072"},
    {"--context 1M", "--context: \"1M\" is not a whole number: write 1000000 or 1048576"},
    {"--context 8kB", "--context: \"8kB\" is not a whole number"},
    {"--context k", "--context: \"k\" is not a whole number"},
    {"--steps 1,000", "--steps: \"1,000\" is not a whole number: write its digits alone"},
    {"--steps 1_000", "--steps: \"1_000\" is not a whole number: write its digits alone"},
    {"--steps 0x10", "--steps: \"0x10\" is not a whole number"},
    {"--steps +5", "--steps: \"+5\" is not a whole number"},
    {"--steps -", "--steps: \"-\" is not a whole number"},
    {"--steps nan", "--steps: \"nan\" is not a whole number"},
    {"--steps -1", "--steps: -1 is out of range: give 0 to 1000000000000"},
    {"--layers 0", "--layers: 0 is out of range: give 1 to 10000"},
    {"--sp 0", "--sp: 0 is out of range: give 1 to 4096"},
    {"--sp 4097", "--sp: 4097 is out of range: give 1 to 4096"},
    {"--context 99999999999999999999", "--context: 99999999999999999999 is out of range: give 1 to 1000000000000"},
    {"--seed -9223372036854775809", "--seed: -9223372036854775809 is out of range: give 0 to 9223372036854775807"},
    {"--seed 9223372036854775808", "--seed: 9223372036854775808 is out of range: give 0 to 9223372036854775807"},
    // numbers
    {"--lr fast", "--lr: \"fast\" is not a number, as 0.001 or 1e-3 are"},
    {"--lr 1e-3x", "--lr: \"1e-3x\" is not a number, as 0.001 or 1e-3 are"},
    {"--lr nan", "--lr: \"nan\" is not a number, as 0.001 or 1e-3 are"},
    {"--lr inf", "--lr: \"inf\" is not a number, as 0.001 or 1e-3 are"},
    {"--lr 0x1p3", "--lr: \"0x1p3\" is not a number, as 0.001 or 1e-3 are"},
    {"--lr .", "--lr: \".\" is not a number, as 0.001 or 1e-3 are"},
    {"--lr 1e", "--lr: \"1e\" is not a number, as 0.001 or 1e-3 are"},
    {"--lr 1,5", "--lr: \"1,5\" is not a number, as 0.001 or 1e-3 are"},
    {"--lr 1e999", "--lr: 1e999 is out of range: give 0 to 1e+30"},
    {"--lr -0.1", "--lr: -0.1 is out of range: give 0 to 1e+30"},
    {"--beta1 1", "--beta1: 1 is out of range: give 0 to 0.999999"},
    {"--min-lr 1.5", "--min-lr: 1.5 is out of range: give 0 to 1"},
    {"--adam-epsilon 0", "--adam-epsilon: 0 is out of range: give 1e-30 to 1"},
    {"--timeout 0", "--timeout: 0 is out of range: give 0.1 to 1e+09"},
    // words
    {"--arch bert", "--arch: \"bert\" is not one of gpt2|llama"},
    {"--schedule cos", "--schedule: \"cos\" is not one of cosine|constant|wsd"},
    {"--attention cosine|", "--attention: \"cosine|\" is not one of auto|ring|gather|ulysses|ulysses-ring|vanilla"},
    {"--attention rings", "--attention: \"rings\" is not one of auto|ring|gather|ulysses|ulysses-ring|vanilla"},
    {"--engine sockets", "--engine: \"sockets\" is not one of auto|local|mpi|nccl"},
    {"--device tpu", "--device: \"tpu\" is not one of auto|cpu|cuda|emulated"},
    {"--devices", "--devices needs a value: --devices LIST"},
    {"--tune", "--tune needs a value: --tune FILE"},
    // together
    {"--resume", "--resume needs --out DIR, the folder of the checkpoints"},
    {"--save-every 5", "--save-every needs --out DIR, the folder of the checkpoints"},
    {"--keep 5", "--keep needs --out DIR, the folder of the checkpoints"},
    {"--decay-fraction 0.1", "--decay-fraction is for --schedule wsd, not cosine"},
    {"--ulysses 2", "--ulysses is for --attention ulysses-ring, not auto"},
    {"--attention ulysses-ring --ulysses 3", "--ulysses 3 does not divide --sp 4; give a divisor, or leave it out"},
    {"--init a --out b --resume", "--init and --resume both say where the weights come from: give one of them"},
    {"--init a --model d4", "--model and --init exclude each other: the checkpoint says what the model is"},
    {"--init a --layers 4", "--layers and --init exclude each other: the checkpoint says what the model is"},
    {"--init a --vocab-size 300", "--vocab-size and --init exclude each other: the checkpoint says what the model is"},
    {"--data-format uint16", "--data-format needs --data FILE: the bundled corpus is bytes"},
    {"--data a --data-format int16", "--data-format: \"int16\" is not one of auto|bytes|uint16|uint32|llmc|fasta|idx|abc|wav"},
    {"--vocab-size -1", "--vocab-size: -1 is out of range: give 0 to 2147483647"},
    {"--init a --arch llama", "--arch and --init exclude each other: the checkpoint says what the model is"},
    {"--arch gpt2 --kv-heads 2", "--kv-heads is for --arch llama, not gpt2"},
    {"--arch gpt2 --rope-theta 2", "--rope-theta is for --arch llama, not gpt2"},
    {"--arch gpt2 --untied", "--untied is for --arch llama, not gpt2"},
    {"--model gpt2 --qkv-bias", "--qkv-bias is for --arch llama, not gpt2"},
    {"--attention vanilla", "--attention vanilla runs on one rank: give --sp 1, not 4"},
    {"--sp 8 --context 15", "--context 15 is too short for --sp 8: a rank owns two chunks, give at least 16"},
    {"--dp 2 --batch 3", "--batch 3 cannot be shared evenly by --dp 2 replicas: give a multiple of 2"},
    {"--dp 2 --batch 6 --micro-batch 2", "--batch 6 is not a multiple of --micro-batch 2 x --dp 2 = 4; give one"},
    {"--lr 3e-4 --min-lr 3e-5",
     "--min-lr 3e-05 is a fraction of --lr, not a rate: give 0.1 to end at a tenth of --lr, or 0"},
    {"--steps 10 --warmup 11", "--warmup 11 is longer than the run: --steps is 10"},
};

static void bad_lines_are_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bad_lines / sizeof *bad_lines; i++) {
        Line *line = parse(bad_lines[i].line);
        if (line->parsed) fail_msg("\"%s\" was accepted", bad_lines[i].line);
        assert_string_equal(line->err.message, bad_lines[i].message);
        assert_int_equal(line->err.exit_code, EXIT_USAGE);
        assert_null(line->options.data);
        done(line);
    }
}

// Each name of another program, typed as it is there, is answered with one of our options or a reason.
static void foreign_names_are_answered(void **state) {
    (void)state;
    for (int i = 0; i < foreign_names_rows; i++) {
        const ForeignNames *row = &foreign_names[i];
        assert_true((row->ours == NULL) != (row->why_none == NULL));
        if (row->ours != NULL) assert_non_null(option_find(row->ours, strlen(row->ours)));
        char words[1000];
        snprintf(words, sizeof words, "%s", row->theirs);
        for (char *word = strtok(words, " "); word != NULL; word = strtok(NULL, " ")) {
            char typed[100], message[1000];
            snprintf(typed, sizeof typed, "%s%s", word[0] == '-' ? "" : "--", word);
            if (row->ours == NULL) snprintf(message, sizeof message, "unknown option %s: %s", typed, row->why_none);
            else snprintf(message, sizeof message, "unknown option %s: here it is --%s (", typed, row->ours);
            Error err;
            Options o;
            assert_false(options_parse(&o, 2, (const char *const[]){"train_gpt", typed}, &err));
            assert_memory_equal(err.message, message, strlen(message));
            assert_int_equal(err.exit_code, EXIT_USAGE);
            assert_true(strlen(err.message) < 250);
        }
    }
}

static void messages_stay_on_one_line(void **state) {
    (void)state;
    Options o;
    Error err;
    assert_false(options_parse(&o, 3, (const char *const[]){"train_gpt", "--steps", "3\n4\033[31m"}, &err));
    assert_string_equal(err.message, "--steps: \"3?4?[31m\" is not a whole number");

    char name[5000]; // longer than any buffer of the parser
    memset(name, 'x', sizeof name);
    memcpy(name, "--", 2);
    name[sizeof name - 1] = '\0';
    assert_false(options_parse(&o, 2, (const char *const[]){"train_gpt", name}, &err));
    assert_true(strlen(err.message) < 200);
    assert_non_null(strstr(err.message, "..."));
}

static void too_many_paths(void **state) {
    (void)state;
    static const char *words[OPTIONS_MAX_PATHS + 3] = {"train_gpt", "--data"};
    for (int i = 0; i <= OPTIONS_MAX_PATHS; i++) words[i + 2] = "path";
    Options o;
    Error err;
    assert_true(options_parse(&o, OPTIONS_MAX_PATHS + 2, words, &err));
    assert_int_equal(o.data_count, OPTIONS_MAX_PATHS);
    options_free(&o);
    assert_false(options_parse(&o, OPTIONS_MAX_PATHS + 3, words, &err));
    assert_string_equal(err.message, "--data: more than 4096 paths: give their folder, or a pattern in quotes");
}

// ---- what is printed ------------------------------------------------------------------------------------------------

static char *printed_command(const Options *options) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    assert_non_null(out);
    options_print_command(options, out);
    assert_int_equal(fclose(out), 0);
    return text;
}

// The printed command, parsed again, prints the same: nothing that counts is missing from it.
static void printed_command_stands_for_the_run(void **state) {
    (void)state;
    static const char *const lines[] = {
        "",
        "--model d12 --sp 2 --lr 0.1234567890123 --steps 7",
        "--arch gpt2 --layers 2 --weight-decay 0 --keep 0 --out o --schedule wsd --decay-fraction 0.3",
        "--untied --qkv-bias --kv-heads 2 --data a b --val-data c --sample-tokens 5 --schedule constant --warmup 0",
        "--out o --resume --log l --dp 2 --batch 4 --micro-batch 2 --eval-every 3",
        "--init i --sample hello --steps 0",
        "--data a.bin --data-format uint16 --vocab-size 50304",
        "--device cuda --devices 0,1,2,3 --tune tuned.txt",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        Line *line = parse_good(lines[i]);
        char *first = printed_command(&line->options);
        done(line);
        char *flat = strdup(first + strlen("./train_gpt"));
        assert_non_null(flat);
        for (char *c = flat; *c != '\0'; c++)
            if (*c == '\n' || *c == '\\') *c = ' ';
        line = parse_good(flat);
        char *second = printed_command(&line->options);
        assert_string_equal(first, second);
        for (const char *start = first; *start != '\0'; start += strcspn(start, "\n") + 1)
            assert_true(strcspn(start, "\n") <= 100);
        done(line);
        free(flat);
        free(first);
        free(second);
    }
}

static void printed_words_are_quoted(void **state) {
    (void)state;
    Options o;
    Error err;
    assert_true(options_parse(&o, 4, (const char *const[]){"train_gpt", "--data", "a b", "it's"}, &err));
    char *text = printed_command(&o);
    assert_non_null(strstr(text, " 'a b' "));
    assert_non_null(strstr(text, " 'it'\\''s' "));
    free(text);
    options_free(&o);
}

static void help_names_every_option(void **state) {
    (void)state;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    assert_non_null(out);
    options_help(out);
    assert_int_equal(fclose(out), 0);
    for (int i = 0; i < options_table_rows; i++) {
        char start[64];
        snprintf(start, sizeof start, "\n  --%s", options_table[i].name);
        assert_non_null(strstr(text, start));
        assert_true(strlen(options_table[i].help) > 0 && strlen(options_table[i].help) < 1000);
        for (int j = 0; j < i; j++) assert_string_not_equal(options_table[i].name, options_table[j].name);
    }
    for (const char *line = text; *line != '\0'; line += strcspn(line, "\n") + 1)
        assert_true(strcspn(line, "\n") <= 100);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(choices_are_enums), cmocka_unit_test(defaults),
        cmocka_unit_test(values),
        cmocka_unit_test(whole_numbers_with_an_exponent),
        cmocka_unit_test(empty_and_dashed_prompts),
        cmocka_unit_test(sizes_come_from_one_place),
        cmocka_unit_test(defaults_follow_what_is_given),
        cmocka_unit_test(help_and_version_win),
        cmocka_unit_test(bad_lines_are_refused),
        cmocka_unit_test(foreign_names_are_answered),
        cmocka_unit_test(messages_stay_on_one_line),
        cmocka_unit_test(too_many_paths),
        cmocka_unit_test(printed_command_stands_for_the_run),
        cmocka_unit_test(printed_words_are_quoted),
        cmocka_unit_test(help_names_every_option),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
