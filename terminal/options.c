// The command line as one table. A row holds an option's name, kind, default, range and help line, and where its value
// lies in Options; parsing, checking, `--help` and the printed command are short walks over the rows. A new option is a
// new row and a new member of Options, nothing else.
//
// A default is text, read by the same code as the user's value, so that the help cannot tell another value than the one
// in force. A default of "0" or NULL means "left to the program", and is not printed as part of the command.
#include "sequence/sharding.h"
#include "terminal/options_table.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define AT(member) offsetof(Options, member)
static const double UNBOUNDED = 0x1p63;

// clang-format off
const Option options_table[] = {
    {"arch", CHOICE, MODEL, "gpt2|llama", "llama", AT(arch), 0, 0, "architecture of a new model"},
    {"model", TEXT, MODEL, "NAME", NULL, AT(model), 0, 0,
     "sizes by name: gpt2, gpt2-medium, gpt2-large, gpt2-xl, or dN (N layers, N heads, width 64 N)"},
    {"layers", INTEGER, MODEL, "L", "2", AT(layers), 1, 10000, "Transformer blocks"},
    {"heads", INTEGER, MODEL, "H", "4", AT(heads), 1, 65536, "query heads"},
    {"kv-heads", INTEGER, MODEL, "N", "0", AT(kv_heads), 0, 65536,
     "key/value heads, a divisor of --heads; 0: as many as heads"},
    {"dim", INTEGER, MODEL, "C", "128", AT(dim), 1, 1048576, "width, a multiple of --heads"},
    {"ffn", INTEGER, MODEL, "F", "0", AT(ffn), 0, 16777216, "width inside the MLP; 0: from the architecture and --dim"},
    {"context", INTEGER, MODEL, "T", "2048", AT(context), 1, 1e12,
     "tokens of one sequence, over all its ranks; without it, --init goes on with those of its run, or of its model up "
     "to 2048"},
    {"vocab-size", INTEGER, MODEL, "N", "0", AT(vocab_size), 0, INT32_MAX,
     "tokens of a new model's vocabulary; 0: of bytes 257, of uint16 tokens 50257, of uint32 tokens 128256"},
    {"rope-theta", REAL, MODEL, "X", "10000", AT(rope_theta), 1, 1e15, "base of the rotary positions (llama)"},
    {"mixer", TEXT, MODEL, "LIST", NULL, AT(mixer), 0, 0,
     "what mixes tokens, layer by layer: names with commas between, repeated over the layers, as conv:gated,attention; "
     "without it, attention. There are:\n"
     "attention - softmax over all tokens before, or those of --window\n"
     "dilated:W,R - softmax over the last W tokens, of which each head sees every R-th\n"
     "linear, linear:G - a kernel in softmax's place, fading by G a token; without G, each head by its own\n"
     "delta, delta:conv - the gated delta rule; after a convolution of 4 tokens\n"
     "conv, conv:gated - a learned convolution as long as the context; gated as Hyena's\n"
     "fourier - fixed cosines of the distance\n"
     "mlp - a learned matrix of positions and GELU, for --context tokens and no more\n"
     "mean - the mean of all tokens before"},
    {"window", TEXT, MODEL, "W[,W...]", NULL, AT(window), 0, 0,
     "tokens that attention looks back on, its own included; 0: all. Several are for one layer after the other, and "
     "are repeated: 512,512,0"},
    {"untied", FLAG, MODEL, NULL, NULL, AT(untied), 0, 0,
     "a classifier of its own instead of the token embedding (llama)"},
    {"qkv-bias", FLAG, MODEL, NULL, NULL, AT(qkv_bias), 0, 0,
     "biases on queries, keys and values, as Qwen2 has them (llama)"},

    {"data", PATHS, DATA, "PATH...", NULL, AT(data), 0, 0,
     "files, folders or patterns: any file as bytes, llm.c token shards, or what --data-format says; without it, the "
     "bundled corpus"},
    {"val-data", PATHS, DATA, "PATH...", NULL, AT(val_data), 0, 0,
     "the same, for validation; without it, the last tenth of the data is held out"},
    {"data-format", CHOICE, DATA, "auto|bytes|uint16|uint32|llmc|fasta|idx|abc|wav", "auto", AT(data_format), 0, 0,
     "of these files: uint16 and uint32 are token numbers without a header (nanoGPT's train.bin), llmc is token shards; "
     "fasta (bases), idx (pixels of images), abc (characters of music) and wav (8-bit mu-law samples of sound) have small "
     "vocabularies of their own; auto: shards and these four by their content, anything else as bytes"},

    {"task", TEXT, DATA, "NAME", NULL, AT(task), 0, 0,
     "instead of data, windows made from --seed, in which only answers count:\n"
     "recall:D - which value was told with a key D tokens before\n"
     "copy:D - which symbol stood D tokens before\n"
     "listops - the result of nested MAX, MIN, MED and SM (sum modulo 10) of digits"},

    {"document-mask", FLAG, DATA, NULL, NULL, AT(document_mask), 0, 0,
     "attention stops at the beginning of its document: no token sees those of another one"},
    {"document-end", INTEGER, DATA, "N", "-1", AT(document_end), -1, INT32_MAX,
     "the token that ends a document; -1: that of bytes and of the other --data-formats, of GPT-2's tokens, or what "
     "config.json calls eos_token_id"},

    {"batch", INTEGER, TRAINING, "B", "1", AT(batch), 1, 1048576, "sequences per step, all ranks together"},
    {"micro-batch", INTEGER, TRAINING, "N", "0", AT(micro_batch), 0, 1048576,
     "sequences per replica and pass, gradients being accumulated; 0: up to 4,096 tokens per rank"},
    {"recompute", CHOICE, TRAINING, "none|mlp|block", "none", AT(recompute), 0, 0,
     "what backward works out again to save memory: the MLP's first product, or whole layers; the bits stay"},
    {"steps", INTEGER, TRAINING, "N", "450", AT(steps), 0, 1e12, "optimizer steps of the whole run"},
    {"context-schedule", TEXT, TRAINING, "C:S[,C:S...]", NULL, AT(context_schedule), 0, 0,
     "the first S steps in sequences of C tokens, and so on, what is left in those of --context: each window of --context "
     "tokens is cut into sequences, so a step has the same tokens as without; evaluation is at --context. none ends the schedule of a resumed run"},
    {"lr", REAL, TRAINING, "X", "0", AT(lr), 0, 1e30, "highest learning rate; 0: from the width, 0.25 / C, at most 4e-3"},
    {"min-lr", REAL, TRAINING, "X", "0.1", AT(min_lr), 0, 1, "final learning rate, as a fraction of --lr"},
    {"schedule", CHOICE, TRAINING, "cosine|constant|wsd", "cosine", AT(schedule), 0, 0,
     "learning rate after the warm-up; wsd: constant, then a linear decay"},
    {"warmup", INTEGER, TRAINING, "N", "20", AT(warmup), 0, 1e12, "steps in which the learning rate rises from 0"},
    {"decay-fraction", REAL, TRAINING, "X", "0.2", AT(decay_fraction), 0, 1, "part of the run in which wsd decays"},
    {"weight-decay", REAL, TRAINING, "X", "0.1", AT(weight_decay), 0, 1e30, "AdamW's decay, of matrices only"},
    {"beta1", REAL, TRAINING, "X", "0.9", AT(beta1), 0, 0.999999, "AdamW's decay rate of the first moment"},
    {"beta2", REAL, TRAINING, "X", "0.95", AT(beta2), 0, 0.999999, "AdamW's decay rate of the second moment"},
    {"adam-epsilon", REAL, TRAINING, "X", "1e-8", AT(adam_epsilon), 1e-30, 1, "AdamW's term against division by 0"},
    {"grad-clip", REAL, TRAINING, "X", "1", AT(grad_clip), 0, 1e30, "largest norm of the gradient; 0: no limit"},
    {"seed", INTEGER, TRAINING, "N", "1337", AT(seed), 0, UNBOUNDED,
     "of the new weights, the order of the data and the sample"},

    {"sp", INTEGER, RANKS, "P", "4", AT(sp), 1, SHARD_MOST_RANKS,
     "ranks over which each sequence is sharded; where nothing is said, no more than there are GPUs for"},
    {"dp", INTEGER, RANKS, "N", "1", AT(dp), 1, 4096,
     "replicas, each of --sp ranks, that share the sequences of a step"},
    {"attention", CHOICE, RANKS, "auto|ring|gather|ulysses|ulysses-ring|vanilla", "auto", AT(attention), 0, 0,
     "how the ranks of a sequence exchange; vanilla: one rank stores the T x T matrix"},
    {"ulysses", INTEGER, RANKS, "U", "0", AT(ulysses), 0, SHARD_MOST_RANKS,
     "ranks that share heads in ulysses-ring, a divisor of --sp; 0: chosen"},
    {"engine", CHOICE, RANKS, "auto|local|mpi|nccl", "auto", AT(engine), 0, 0,
     "ranks are threads of this process (local), or processes: mpi; or nccl alone, a GPU for each (RANK, WORLD_SIZE, "
     "MASTER_ADDR and MASTER_PORT in the environment, as torchrun sets them, or Slurm's); auto: by how this was started"},
    {"device", CHOICE, RANKS, "auto|cpu|cuda|emulated", "auto", AT(device), 0, 0,
     "what computes; auto: cuda where there is a GPU, else cpu; emulated: CUDA's kernels run by this processor, slowly, "
     "to check results"},
    {"devices", TEXT, RANKS, "LIST", NULL, AT(devices), 0, 0,
     "the GPU of each rank of this machine, such as 0,1,2,3; ranks may share one: 0,0,0,0; without it, one GPU a rank"},
    {"tune", TEXT, RANKS, "FILE", NULL, AT(tune), 0, 0,
     "algorithms of a GPU's matrix products: those that this file does not know are timed before the first step, which "
     "takes seconds, and added to it; the same file gives the same bits"},
    {"threads", INTEGER, RANKS, "N", "0", AT(threads), 0, 4096, "processors for all ranks of this process; 0: all"},
    {"timeout", REAL, RANKS, "SECONDS", "600", AT(timeout), 0.1, 1e9, "a rank without a sign of life for longer ends the run"},

    {"eval-every", INTEGER, EVALUATION, "N", "0", AT(eval_every), 0, 1e12,
     "steps between validations; 0: only at the end"},
    {"eval-windows", INTEGER, EVALUATION, "N", "16", AT(eval_windows), 1, 1e12, "windows of validation data, at most"},
    {"eval-tokens", INTEGER, EVALUATION, "N", "0", AT(eval_tokens), 0, 1e15,
     "instead of --eval-windows: the first N tokens of the validation data, a multiple of --context, the same ones "
     "whatever the context"},
    {"eval-by-position", TEXT, EVALUATION, "FILE", NULL, AT(eval_by_position), 0, 0,
     "CSV of the mean loss at each position of the context, in the last evaluation (scripts/plot_positions)"},

    {"out", TEXT, CHECKPOINTS, "DIR", NULL, AT(out), 0, 0,
     "folder of this run's checkpoints; without it, nothing is saved"},
    {"save-every", INTEGER, CHECKPOINTS, "N", "0", AT(save_every), 0, 1e12,
     "steps between checkpoints; 0: only by --save-minutes and at the end"},
    {"save-minutes", REAL, CHECKPOINTS, "X", "30", AT(save_minutes), 0, 1e6,
     "minutes between checkpoints where --save-every is not given; 0: none by time"},
    {"keep", INTEGER, CHECKPOINTS, "N", "2", AT(keep), 0, 1e6, "newest checkpoints that are kept; 0: all"},
    {"resume", FLAG, CHECKPOINTS, NULL, NULL, AT(resume), 0, 0, "continue from the newest checkpoint in --out"},
    {"init", TEXT, CHECKPOINTS, "DIR", NULL, AT(init), 0, 0,
     "start from this checkpoint's or Hugging Face folder's weights"},
    {"log", TEXT, CHECKPOINTS, "FILE", NULL, AT(log), 0, 0, "one JSON object a step"},
    {"dump", TEXT, CHECKPOINTS, "DIR", NULL, AT(dump), 0, 0,
     "gradients of the first step and logits of its last pass (first replica), for comparison with other programs"},
    {"dump-mixing", TEXT, CHECKPOINTS, "FILE", NULL, AT(dump_mixing), 0, 0,
     "CSV of how much each token counts for each later one in every layer's mixer, at the end (scripts/plot_mixing)"},

    {"sample", TEXT, GENERATION, "PROMPT", NULL, AT(sample), 0, 0,
     "text to continue at the end; without it, the first tokens of the validation data"},
    {"sample-tokens", INTEGER, GENERATION, "N", "256", AT(sample_tokens), 0, 1e9, "tokens to generate; 0: no sample"},
    {"temperature", REAL, GENERATION, "X", "0.8", AT(temperature), 0, 1000,
     "of the softmax; 0: always the likeliest token"},
    {"top-k", INTEGER, GENERATION, "K", "0", AT(top_k), 0, 1e9, "choose among the K likeliest tokens; 0: among all"},

    {"plan", FLAG, INSTEAD, NULL, NULL, AT(plan), 0, 0,
     "print memory by buffer, bytes sent by exchange and FLOPs, and exit"},
    {"version", FLAG, INSTEAD, NULL, NULL, AT(version), 0, 0, "print the version and what it was built with, and exit"},
    {"help", FLAG, INSTEAD, NULL, NULL, AT(help), 0, 0, "print this, and exit"},
};
// clang-format on
#undef AT

_Static_assert(sizeof(Architecture) == sizeof(int) && sizeof(Schedule) == sizeof(int) && sizeof(Exchange) == sizeof(int),
               "a choice is stored as its number");

const int options_table_rows = sizeof options_table / sizeof *options_table;
_Static_assert(sizeof options_table / sizeof *options_table <= OPTIONS_MAX, "Options.given has a place for each row");

const Option *option_find(const char *name, size_t length) {
    for (const Option *row = options_table; row < options_table + options_table_rows; row++)
        if (strlen(row->name) == length && memcmp(row->name, name, length) == 0) return row;
    return NULL;
}

static bool *given(Options *options, const Option *row) { return &options->given[row - options_table]; }

const Option *option_named(const char *name) {
    const Option *row = option_find(name, strlen(name));
    if (row != NULL) return row;
    fprintf(stderr, "option_named: there is no option --%s\n", name);
    abort();
}

bool options_given(const Options *options, const char *name) {
    return options->given[option_named(name) - options_table];
}

void *option_value(const Options *options, const Option *row) { return (char *)options + row->offset; }

PathList option_paths(const Options *options, const Option *row) {
    Options *o = (Options *)options;
    if (row->offset == offsetof(Options, data)) return (PathList){&o->data, &o->data_count};
    return (PathList){&o->val_data, &o->val_data_count};
}

// ---- one value ------------------------------------------------------------------------------------------------------

Shown shown_text(const char *text) {
    Shown s;
    size_t n = 0;
    for (; text[n] != '\0' && n < sizeof s.text - 4; n++) s.text[n] = iscntrl((unsigned char)text[n]) ? '?' : text[n];
    memcpy(s.text + n, text[n] == '\0' ? "" : "...", text[n] == '\0' ? 1 : 4);
    return s;
}

Shown shown_real(double x) {
    Shown s;
    bool plain = x == floor(x) && fabs(x) < 1e6;
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(s.text, sizeof s.text, "%.*g", plain ? 6 : digits, x);
        if (strtod(s.text, NULL) == x) break;
    }
    return s;
}

Shown shown_integer(int64_t n) {
    Shown s;
    snprintf(s.text, sizeof s.text, "%lld", (long long)n);
    return s;
}

static Shown shown_bound(const Option *row, double bound) {
    if (row->kind == REAL) return shown_real(bound);
    return shown_integer(bound >= UNBOUNDED ? INT64_MAX : (int64_t)bound);
}

static bool out_of_range(const Option *row, const char *value, Error *err) {
    return error_usage(err, "--%s: %s is out of range: give %s to %s", row->name, shown_text(value).text,
                       shown_bound(row, row->min).text, shown_bound(row, row->max).text);
}

// "1e3", "1.5e6": whole as they are written.
static bool is_whole_with_exponent(const char *value, double *out) {
    char *end;
    *out = strtod(value, &end);
    return isdigit((unsigned char)*value) && *end == '\0' && value[strspn(value, "0123456789.eE+")] == '\0' &&
           strpbrk(value, "eE") != NULL && *out == floor(*out);
}

// What people write for whole numbers elsewhere is not guessed at, but answered with what to write.
static bool not_whole(const Option *row, const char *value, Error *err) {
    static const char letters[] = "kmgt";
    size_t digits = strspn(value, "0123456789");
    const char *letter = value[digits] == '\0' ? NULL : strchr(letters, tolower((unsigned char)value[digits]));
    if (digits >= 1 && digits <= 4 && letter != NULL && value[digits + 1] == '\0') {
        int64_t n = strtoll(value, NULL, 10), decimal = 1, binary = 1;
        for (const char *l = letters; l <= letter; l++) decimal *= 1000, binary *= 1024;
        return error_usage(err, "--%s: \"%s\" is not a whole number: write %lld or %lld", row->name, value,
                           (long long)(n * decimal), (long long)(n * binary));
    }
    bool grouped = digits >= 1 && value[strspn(value, "0123456789,_'")] == '\0';
    return error_usage(err, "--%s: \"%s\" is not a whole number%s", row->name, shown_text(value).text,
                       grouped ? ": write its digits alone" : "");
}

static bool parse_integer(const Option *row, const char *value, int64_t *out, Error *err) {
    const char *digits = value + (*value == '-');
    bool plain = *digits != '\0' && digits[strspn(digits, "0123456789")] == '\0';
    double real;
    errno = 0;
    if (plain) real = (double)(*out = strtoll(value, NULL, 10));
    else if (!is_whole_with_exponent(value, &real)) return not_whole(row, value, err);
    if (errno == ERANGE || real < row->min || real > row->max) return out_of_range(row, value, err);
    if (plain) return true;
    if (real >= UNBOUNDED) return out_of_range(row, value, err);
    *out = (int64_t)real;
    return true;
}

static bool parse_real(const Option *row, const char *value, double *out, Error *err) {
    char *end;
    *out = strtod(value, &end);
    // strtod also takes spaces, hexadecimal, "inf" and "nan"
    if (*end != '\0' || *value == '\0' || value[strspn(value, "+-.0123456789eE")] != '\0')
        return error_usage(err, "--%s: \"%s\" is not a number, as 0.001 or 1e-3 are", row->name,
                           shown_text(value).text);
    if (!(*out >= row->min && *out <= row->max)) return out_of_range(row, value, err);
    return true;
}

// The value is the word's place among the allowed ones.
static bool parse_choice(const Option *row, const char *value, int *out, Error *err) {
    size_t length = strlen(value);
    const char *word = row->argument;
    for (int place = 0; length > 0; place++, word = strchr(word, '|') + 1) {
        if (strncmp(word, value, length) == 0 && (word[length] == '|' || word[length] == '\0')) {
            *out = place;
            return true;
        }
        if (strchr(word, '|') == NULL) break;
    }
    return error_usage(err, "--%s: \"%s\" is not one of %s", row->name, shown_text(value).text, row->argument);
}

Shown shown_choice(const Option *row, int value) {
    Shown s;
    const char *word = row->argument;
    for (int place = 0; place < value; place++) word = strchr(word, '|') + 1;
    snprintf(s.text, sizeof s.text, "%.*s", (int)strcspn(word, "|"), word);
    return s;
}

static bool append_path(Options *options, const Option *row, const char *value, Error *err) {
    PathList list = option_paths(options, row);
    if (*list.count == OPTIONS_MAX_PATHS)
        return error_usage(err, "--%s: more than %d paths: give their folder, or a pattern in quotes", row->name,
                           OPTIONS_MAX_PATHS);
    if (*list.path == NULL) *list.path = malloc(OPTIONS_MAX_PATHS * sizeof **list.path);
    if (*list.path == NULL) return error_set(err, "out of memory for the paths of --%s", row->name);
    (*list.path)[(*list.count)++] = value;
    return true;
}

static bool set_value(Options *options, const Option *row, const char *value, Error *err) {
    if (*value == '\0' && strcmp(row->name, "sample") != 0) // an empty prompt is a prompt
        return error_usage(err, "--%s: the value is empty", row->name);
    void *out = option_value(options, row);
    switch (row->kind) {
    case INTEGER: return parse_integer(row, value, (int64_t *)out, err);
    case REAL: return parse_real(row, value, (double *)out, err);
    case CHOICE: return parse_choice(row, value, (int *)out, err);
    case PATHS: return append_path(options, row, value, err);
    case TEXT: *(const char **)out = value; return true;
    case FLAG: *(bool *)out = strcmp(value, "no") != 0; return true;
    }
    return false;
}

bool option_set(Options *options, const Option *row, const char *value, Error *err) {
    return set_value(options, row, value, err);
}

// ---- the whole line -------------------------------------------------------------------------------------------------

static bool is_option(const char *argument) { return strncmp(argument, "--", 2) == 0 || strcmp(argument, "-h") == 0; }

// A hyphen's double from a page or a word processor (U+2010 to U+2015, U+2212).
static bool begins_with_another_dash(const char *argument) {
    const unsigned char *byte = (const unsigned char *)argument;
    return byte[0] == 0xe2 &&
           ((byte[1] == 0x80 && byte[2] >= 0x90 && byte[2] <= 0x95) || (byte[1] == 0x88 && byte[2] == 0x92));
}

// A word where an option should begin; `last`: the option before it, NULL: none.
static bool stray_word(const char *argument, const Option *last, Error *err) {
    Shown text = shown_text(argument);
    const char *word = text.text;
    if (begins_with_another_dash(argument))
        return error_usage(err, "\"%s\" begins with a dash of another kind: type two hyphens, --name", word);
    if (last == NULL || argument[0] == '-')
        return error_usage(err, "\"%s\" belongs to no option: options are written --name value; see --help", word);
    if (last->kind == FLAG)
        return error_usage(err, "\"%s\" belongs to no option: --%s takes no value", word, last->name);
    if (last->kind == PATHS)
        return error_usage(err, "\"%s\" belongs to no option: --%s=PATH takes one, --%s PATH PATH takes several", word,
                           last->name, last->name);
    return error_usage(err, "\"%s\" belongs to no option: --%s takes one value; put one with spaces in quotes", word,
                       last->name);
}

// Reads the option at argv[*next] with its values, and moves *next past them. *last is the one before it, then this
// one.
static bool parse_option(Options *options, int argc, const char *const *argv, int *next, const Option **last,
                         Error *err) {
    const char *argument = argv[(*next)++];
    const char *name = strcmp(argument, "-h") == 0 ? "help" : argument + 2;
    size_t length = strcspn(name, "=");
    const Option *row = is_option(argument) ? option_find(name, length) : NULL;
    bool named = argument[0] == '-' && argument[strspn(argument, "-")] != '\0';
    if (row == NULL) return named ? option_unknown(argument, err) : stray_word(argument, *last, err);
    *last = row;
    if (*given(options, row) && row->kind != PATHS) return error_usage(err, "--%s is given twice", row->name);
    *given(options, row) = true;

    const char *attached = name[length] == '=' ? name + length + 1 : NULL;
    if (row->kind == FLAG) {
        if (attached != NULL) return error_usage(err, "--%s takes no value", row->name);
        return set_value(options, row, "yes", err);
    }
    if (attached != NULL) return set_value(options, row, attached, err);
    if (*next == argc || is_option(argv[*next]))
        return error_usage(err, "--%s needs a value: --%s %s", row->name, row->name, row->argument);
    do {
        if (!set_value(options, row, argv[(*next)++], err)) return false;
    } while (row->kind == PATHS && *next < argc && !is_option(argv[*next]));
    return true;
}

// ---- what options say about each other ------------------------------------------------------------------------------

// An option that would have no effect without another is a mistake, not a wish.
static bool check_needs(const Options *options, Error *err) {
    static const char *const needs_out[] = {"resume", "save-every", "save-minutes", "keep"};
    for (size_t i = 0; i < sizeof needs_out / sizeof *needs_out; i++)
        if (options_given(options, needs_out[i]) && options->out == NULL)
            return error_usage(err, "--%s needs --out DIR, the folder of the checkpoints", needs_out[i]);
    if (options_given(options, "data-format") && options->data_count == 0 && options->val_data_count == 0)
        return error_usage(err, "--data-format needs --data FILE: the bundled corpus is bytes");
    static const char *const not_with_task[] = {"data",       "val-data",         "document-mask",
                                                "vocab-size", "eval-by-position", "context-schedule"};
    for (size_t i = 0; options->task != NULL && i < sizeof not_with_task / sizeof *not_with_task; i++)
        if (options_given(options, not_with_task[i]))
            return error_usage(err, "--task makes its own tokens and answers: leave out --%s", not_with_task[i]);
    if (options_given(options, "document-end") && !options->document_mask && !options->resume)
        return error_usage(err, "--document-end is for --document-mask, which is not given");
    if (options_given(options, "ulysses") && options->attention != EXCHANGE_ULYSSES_RING)
        return error_usage(err, "--ulysses is for --attention ulysses-ring, not %s",
                           exchange_name(options->attention));
    return true;
}

// Elsewhere the final learning rate is itself a rate. Taken for a fraction, it would end a run at next to nothing.
static bool check_rates(const Options *options, Error *err) {
    const double least = 1e-3;
    if (!options_given(options, "min-lr") || options->min_lr == 0 || options->min_lr >= least) return true;
    return error_usage(err, "--min-lr %s is a fraction of --lr, not a rate: give 0.1 to end at a tenth of --lr, or 0",
                       shown_real(options->min_lr).text);
}

// "512,512,0" into numbers.
static bool parse_windows(Options *options, Error *err) {
    const char *at = options->window;
    for (options->window_count = 0; at != NULL; options->window_count++) {
        char *end = NULL;
        errno = 0;
        long long window = isdigit((unsigned char)*at) ? strtoll(at, &end, 10) : -1;
        if (window < 0 || errno != 0 || window > INT32_MAX || (*end != '\0' && *end != ','))
            return error_usage(err,
                               "--window: \"%s\" is not a list of whole numbers from 0 to %d, such as 512 or 512,512,0",
                               shown_text(options->window).text, INT32_MAX);
        if (options->window_count == OPTIONS_MAX_WINDOWS)
            return error_usage(err, "--window: more than %d numbers; the list is repeated over the layers",
                               OPTIONS_MAX_WINDOWS);
        options->windows[options->window_count] = window;
        at = *end == ',' ? end + 1 : NULL;
    }
    return true;
}

static bool check_model(const Options *options, Error *err) {
    static const char *const of_the_checkpoint[] = {"arch", "model", "layers", "heads",   "kv-heads",
                                                    "dim",  "ffn",   "untied", "qkv-bias", "vocab-size", "mixer"};
    static const char *const of_llama[] = {"kv-heads", "rope-theta", "untied", "qkv-bias"};
    if (options->init != NULL && options->resume)
        return error_usage(err, "--init and --resume both say where the weights come from: give one of them");
    for (size_t i = 0; options->init != NULL && i < sizeof of_the_checkpoint / sizeof *of_the_checkpoint; i++)
        if (options_given(options, of_the_checkpoint[i]))
            return error_usage(err, "--%s and --init exclude each other: the checkpoint says what the model is",
                               of_the_checkpoint[i]);
    bool gpt2 = options->init == NULL && !options->resume && options->arch == ARCH_GPT2;
    for (size_t i = 0; gpt2 && i < sizeof of_llama / sizeof *of_llama; i++)
        if (options_given(options, of_llama[i]))
            return error_usage(err, "--%s is for --arch llama, not gpt2", of_llama[i]);
    return true;
}

static bool check_ranks(const Options *options, Error *err) {
    long long sp = options->sp, dp = options->dp, batch = options->batch, micro = options->micro_batch;
    if (options->attention == EXCHANGE_VANILLA && sp != 1)
        return error_usage(err, "--attention vanilla runs on one rank: give --sp 1, not %lld", sp);
    if (options->ulysses > 0 && sp % options->ulysses != 0)
        return error_usage(err, "--ulysses %lld does not divide --sp %lld; give a divisor, or leave it out",
                           (long long)options->ulysses, sp);
    if (options->context < 2 * sp)
        return error_usage(err, "--context %lld is too short for --sp %lld: a rank owns two chunks, give at least %lld",
                           (long long)options->context, sp, 2 * sp);
    if (batch % dp != 0)
        return error_usage(err, "--batch %lld cannot be shared evenly by --dp %lld replicas: give a multiple of %lld",
                           batch, dp, dp);
    if (micro > 0 && batch % (micro * dp) != 0)
        return error_usage(err, "--batch %lld is not a multiple of --micro-batch %lld x --dp %lld = %lld; give one",
                           batch, micro, dp, micro * dp);
    return true;
}

bool options_check(const Options *options, Error *err) {
    if (options->warmup > options->steps)
        return error_usage(err, "--warmup %lld is longer than the run: --steps is %lld", (long long)options->warmup,
                           (long long)options->steps);
    if (options_given(options, "decay-fraction") && options->schedule != SCHEDULE_WSD)
        return error_usage(err, "--decay-fraction is for --schedule wsd, not %s",
                           shown_choice(option_named("schedule"), options->schedule).text);
    if (options->eval_tokens > 0 && options_given(options, "eval-windows"))
        return error_usage(err, "--eval-tokens %lld beside --eval-windows: both say how much is evaluated; give one",
                           (long long)options->eval_tokens);
    return check_ranks(options, err);
}

// Defaults that follow from what the user gave.
static void settle_defaults(Options *options) {
    bool named_gpt2 = options->model != NULL && strncmp(options->model, "gpt2", 4) == 0;
    if (named_gpt2 && !options_given(options, "arch")) options->arch = ARCH_GPT2;
    bool sized_elsewhere = options->model != NULL || options->init != NULL || options->resume;
    if (sized_elsewhere && !options_given(options, "layers")) options->layers = 0;
    if (sized_elsewhere && !options_given(options, "heads")) options->heads = 0;
    if (sized_elsewhere && !options_given(options, "dim")) options->dim = 0;
    bool from_checkpoint = options->init != NULL || options->resume;
    if (from_checkpoint && !options_given(options, "rope-theta")) options->rope_theta = 0;
    if (options_given(options, "save-every") && !options_given(options, "save-minutes")) options->save_minutes = 0;
    if (!options_given(options, "warmup") && options->warmup > options->steps) options->warmup = options->steps;
    if (!options_given(options, "batch")) {
        int64_t pass = options->dp * (options->micro_batch > 0 ? options->micro_batch : 1);
        options->batch = (options->batch + pass - 1) / pass * pass;
    }
}

bool options_parse(Options *options, int argc, const char *const *argv, Error *err) {
    memset(options, 0, sizeof *options);
    for (const Option *row = options_table; row < options_table + options_table_rows; row++)
        if (row->initial != NULL && !set_value(options, row, row->initial, err)) return false;
    const Option *last = NULL;
    for (int next = 1; next < argc && !options->help && !options->version;)
        if (!parse_option(options, argc, argv, &next, &last, err)) goto failed;
    if (options->help || options->version) return true; // whatever else stands on the line
    settle_defaults(options);
    if (parse_windows(options, err) && check_needs(options, err) && check_rates(options, err) && check_model(options, err) &&
        (options->resume || options_check(options, err)))
        return true;
failed:
    options_free(options);
    return false;
}

void options_free(Options *options) {
    free(options->data);
    free(options->val_data);
    options->data = options->val_data = NULL;
    options->data_count = options->val_data_count = 0;
}
