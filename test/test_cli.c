// Bad input, given to the real program: each case is one command line with its exact message, exit code and a time limit.
//
// In a case, @ stands for a folder of files made once, before the first case (make_files); * in a message stands for any
// text, and only for numbers that belong to the machine. What a case does not give is that of a tiny run.
#include "test/token_files.h"

#include <sys/resource.h>

typedef struct BadInput {
    const char *name;
    int exit_code;
    const char *options;
    const char *message; // all of standard error, after "train_gpt: "
} BadInput;

// ---- the table -----------------------------------------------------------------------------------------------------

static const BadInput bad_inputs[] = {
    // The command line. test/test_options.c has its whole table; here: that the program says it so.
    {"unknown_option", 2, "--stpes 4", "unknown option --stpes: did you mean --steps?"},
    {"no_option", 2, "text.txt", "\"text.txt\" belongs to no option: options are written --name value; see --help"},
    {"not_a_number", 2, "--steps ten", "--steps: \"ten\" is not a whole number"},
    {"negative", 2, "--steps -4", "--steps: -4 is out of range: give 0 to 1000000000000"},
    {"overflowing", 2, "--context 9223372036854775808",
     "--context: 9223372036854775808 is out of range: give 1 to 1000000000000"},
    {"not_a_rate", 2, "--lr nan", "--lr: \"nan\" is not a number"},
    {"no_cuda", 2, "--device cuda", "--device cuda: this build has no CUDA device: give cpu or auto"},
    {"resume_without_out", 2, "--resume", "--resume needs --out DIR, the folder of the checkpoints"},

    // Data.
    {"data_missing", 1, "--data @/none", "cannot read @/none: No such file or directory; check the path or leave it out"},
    {"data_empty", 1, "--data @/empty", "@/empty is empty; give a file with data in it"},
    {"data_folder_empty", 1, "--data @/hollow", "@/hollow holds no files (hidden ones are left out); give a folder that does"},
    {"data_pattern_empty", 1, "--data @/*.none", "no file matches @/*.none; check the pattern"},
    {"data_device", 1, "--data /dev/null", "/dev/null is neither a file nor a folder; give one of these as data"},
    {"data_too_short", 1, "--data @/short",
     "@/short: too short: the last tenth of its 41 tokens, 4, is held out for validation and must fill --context 16 plus 1; "
     "give more data, --val-data or a smaller --context"},
    {"data_shorter_than_context", 1, "--data @/text --context 100000",
     "@/text: too short: the last tenth of its 20001 tokens, 2000, is held out for validation and must fill --context "
     "100000 plus 1; give more data, --val-data or a smaller --context"},
    {"validation_missing", 1, "--val-data @/none",
     "cannot read @/none: No such file or directory; check the path or leave it out"},
    {"validation_too_short", 1, "--val-data @/tiny",
     "@/tiny: 6 tokens are too few for a window of --context 16 and its last target; give more data or a smaller --context"},
    {"validation_of_another_kind", 2, "--val-data @/shard", "--val-data: its tokens are of another kind than those of --data"},
    {"data_of_two_kinds", 1, "--data @/text @/shard",
     "@/shard is a shard of 16-bit tokens but @/text is bytes: give files of one kind"},
    {"shard_of_another_magic", 1, "--data @/magic",
     "@/magic: bad magic 20240521: token shards start with 20240520 or 20240801; make it again or leave it out"},
    {"shard_of_another_version", 1, "--data @/version",
     "@/version: token shard of version 2; only version 1 is known for magic 20240520: make it again"},
    {"shard_truncated", 1, "--data @/truncated",
     "@/truncated: truncated: the header says 1000 tokens, 3024 bytes in all, but the file has 3023; copy or make it again"},
    {"shard_without_header", 1, "--data @/headless",
     "@/headless: truncated: 100 bytes are less than a token shard's header of 1024; make it again"},
    {"shard_with_a_foreign_token", 1, "--data @/foreign",
     "@/foreign: token 50257 at place * is not below the vocabulary of 50257; the data are damaged or made for another model"},

    // The model.
    {"heads_do_not_divide", 2, "--heads 3", "--heads 3 does not divide --dim 16"},
    {"kv_heads_do_not_divide", 2, "--heads 4 --kv-heads 3", "--kv-heads 3 does not divide --heads 4"},
    {"odd_rotary_head", 2, "--heads 4 --dim 12",
     "the width of a head is 3; rotary positions turn pairs, so it must be even (--dim / --heads)"},
    {"no_such_model", 2, "--model gpt3",
     "--model gpt3: no such model; give gpt2, gpt2-medium, gpt2-large, gpt2-xl or dN with N from 1 to 1024"},

    // Ranks that cannot be served.
    {"context_shorter_than_ranks", 2, "--sp 16",
     "--context 16 is too short for --sp 16: a rank owns two chunks, give at least 32"},
    {"heads_that_ulysses_cannot_share", 2, "--attention ulysses --sp 4 --heads 2", "?"},
    {"key_heads_that_ulysses_cannot_share", 2, "--attention ulysses --sp 4 --heads 4 --kv-heads 2", "?"},
    {"vanilla_over_ranks", 2, "--attention vanilla --sp 2", "--attention vanilla runs on one rank: give --sp 1, not 2"},
    {"batch_over_replicas", 2, "--dp 2 --batch 3",
     "--batch 3 cannot be shared evenly by --dp 2 replicas: give a multiple of 2"},

    // Checkpoints.
    {"nothing_to_resume", 1, "--out @/hollow --resume", "?"},
    {"resume_with_another_context", 2, "--out @/run --resume --context 32",
     "--resume: @/run/step-00000002 was trained with --context 16, not 32; use the same, or --init for a new run"},
    {"resume_on_other_data", 2, "--out @/run --resume --data @/other",
     "--resume: @/run/step-00000002 was trained on other data (number or sizes of files differ); give the same --data, or "
     "use --init"},
    {"init_missing", 1, "--init @/none", "?"},
    {"init_truncated", 1, "--init @/cut", "?"},
    {"init_of_another_shape", 1, "--init @/shape", "?"},
    {"init_with_a_broken_configuration", 1, "--init @/json", "?"},
    {"resume_only_damaged", 1, "--out @/damaged --resume", "?"},
    {"model_and_init", 2, "--init @/run/step-00000002 --layers 2",
     "--layers and --init exclude each other: the checkpoint says what the model is"},

    // What cannot be written.
    {"log_in_no_folder", 1, "--log @/none/log", "?"},
    {"log_on_a_full_disk", 1, "--log /dev/full", "?"},
    {"out_is_a_file", 1, "--out @/text", "?"},

    // Numbers that run away.
    {"infinite_loss", 1, "--steps 9 --lr 1e30 --warmup 0 --out @/runaway --save-every 1", "?"},

    // Memory.
    {"model_too_large", 1, "--layers 1000 --dim 65536 --heads 512", "?"},
};

// ---- the files that the table names -----------------------------------------------------------------------------------

static char folder[PROGRAM_PATH];

static const char *in_folder(char out[PROGRAM_PATH], const char *name) { return path_join(out, folder, name); }

static void make_file(const char *name, const void *data, size_t bytes) {
    char path[PROGRAM_PATH];
    write_file(in_folder(path, name), data, bytes);
}

static void make_text(const char *name, size_t bytes) {
    char *text = malloc(bytes);
    if (text == NULL) fail_msg("out of memory");
    for (size_t i = 0; i < bytes; i++) text[i] = (char)('a' + (i * i + i / 7) % 26);
    make_file(name, text, bytes);
    free(text);
}

// A shard of 1,000 tokens, all of them `token`, with one word of its header changed and the last bytes left out.
static void make_bad_shard(const char *name, uint32_t token, int word, uint32_t value, size_t left_out) {
    uint32_t tokens[1000];
    for (int i = 0; i < 1000; i++) tokens[i] = token;
    size_t size;
    unsigned char *shard = make_shard(2, tokens, 1000, &size);
    put_le32(shard + 4 * word, value);
    make_file(name, shard, size - left_out);
    free(shard);
}

static void make_data(void) {
    char path[PROGRAM_PATH];
    make_text("text", 20000);
    make_text("other", 20001);
    make_text("short", 40);
    make_text("tiny", 5);
    make_text("unreadable", 20000);
    if (chmod(in_folder(path, "unreadable"), 0) != 0) fail_msg("cannot change permissions: %s", strerror(errno));
    make_file("empty", "", 0);
    if (mkdir(in_folder(path, "hollow"), 0755) != 0) fail_msg("cannot make %s: %s", path, strerror(errno));
    make_bad_shard("shard", 7, 0, 20240520, 0);
    make_bad_shard("magic", 7, 0, 20240521, 0);
    make_bad_shard("version", 7, 1, 2, 0);
    make_bad_shard("truncated", 7, 0, 20240520, 1);
    make_bad_shard("headless", 7, 0, 20240520, 1024 + 2000 - 100);
    make_bad_shard("foreign", 50257, 0, 20240520, 0);
}

// Copies one checkpoint's files to folder/name, if need be with a damage: `file` loses its last `left_out` bytes, and
// `from` in it becomes `to`, of the same length.
static void copy_checkpoint(const char *name, const char *file, size_t left_out, const char *from, const char *to) {
    static const char *const files[] = {"config.json",           "model.safetensors",   "exp_avg.safetensors",
                                        "exp_avg_sq.safetensors", "training_state.json", "SHA256SUMS"};
    char path[PROGRAM_PATH], source[PROGRAM_PATH], target[PROGRAM_PATH];
    in_folder(target, name);
    if (mkdir(target, 0755) != 0) fail_msg("cannot make %s: %s", target, strerror(errno));
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        size_t bytes;
        char *data = read_file(path_join(path, in_folder(source, "run/step-00000002"), files[i]), &bytes);
        if (strcmp(files[i], file) == 0) {
            char *place = from == NULL ? NULL : memmem(data, bytes, from, strlen(from));
            if (from != NULL && place == NULL) fail_msg("%s has no %s", files[i], from);
            if (place != NULL) memcpy(place, to, strlen(to));
            bytes -= left_out;
        }
        write_file(path_join(path, target, files[i]), data, bytes);
        free(data);
    }
}

// ---- running a case -----------------------------------------------------------------------------------------------------

// The command of a tiny run; an option that `options` names itself is left out. Words lie in `text`.
static void build_command(Command *command, char *text, size_t size, const char *options) {
    static const char *const usual[][2] = {
        {"--data", "--data @/text"}, {"--context", "--context 16"}, {"--sp", "--sp 1"},       {"--steps", "--steps 2"},
        {"--layers", "--layers 1"},  {"--heads", "--heads 2"},      {"--dim", "--dim 16"},    {"--ffn", "--ffn 16"},
        {"--threads", "--threads 1"}, {"--eval-windows", "--eval-windows 1"}, {"--sample-tokens", "--sample-tokens 0"}};
    bool sized = strstr(options, "--init") || strstr(options, "--resume") || strstr(options, "--model ");
    char all[4096];
    int used = snprintf(all, sizeof all, "%s", options);
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++) {
        char with_space[32];
        snprintf(with_space, sizeof with_space, "%s ", usual[i][0]);
        if (strstr(options, with_space) || (sized && i >= 4 && i <= 7)) continue;
        used += snprintf(all + used, sizeof all - (size_t)used, " %s", usual[i][1]);
    }
    size_t n = 0;
    for (const char *c = all; *c != '\0' && n + PROGRAM_PATH < size; c++) {
        if (*c == '@') n += (size_t)snprintf(text + n, size - n, "%s", folder);
        else text[n++] = *c;
    }
    text[n] = '\0';
    add_word(command, train_gpt_path());
    for (char *word = strtok(text, " "); word != NULL; word = strtok(NULL, " ")) add_word(command, word);
}

// Does the text match, where * in the pattern stands for anything and @ for the folder?
static bool matches(const char *pattern, const char *text) {
    for (; *pattern != '\0'; pattern++) {
        if (*pattern == '*') {
            for (const char *rest = text;; rest++) {
                if (matches(pattern + 1, rest)) return true;
                if (*rest == '\0') return false;
            }
        } else if (*pattern == '@') {
            if (strncmp(text, folder, strlen(folder)) != 0) return false;
            text += strlen(folder);
        } else if (*pattern != *text++) {
            return false;
        }
    }
    return *text == '\0';
}

static void check_case(const BadInput *bad) {
    Command command = {0};
    char *text = malloc(16 * PROGRAM_PATH), expected[2048];
    if (text == NULL) fail_msg("out of memory");
    build_command(&command, text, 16 * PROGRAM_PATH, bad->options);
    ProgramResult result = run_program(command.argv, 20);
    snprintf(expected, sizeof expected, "train_gpt: %s\n", bad->message);
    bool right = !result.timed_out && result.exit_code == bad->exit_code && matches(expected, result.err);
    if (!right) {
        print_command(&command);
        fprintf(stderr, "  expected: %d, %s  received: %d, %s%s", bad->exit_code, expected, result.exit_code, result.err,
                result.timed_out ? "  and it did not end\n" : "\n");
    }
    free(text);
    free_result(&result);
    assert_true(right);
}

static void bad_input(void **state) { check_case(*state); }

static void unreadable_data(void **state) {
    (void)state;
    if (geteuid() == 0) skip(); // nothing is unreadable to root
    check_case(&(BadInput){"", 1, "--data @/unreadable", "cannot read @/unreadable: Permission denied; check its permissions"});
}

static int make_files(void **state) {
    (void)state;
    make_temp_folder(folder);
    make_data();
    Command command = {0};
    char *text = malloc(16 * PROGRAM_PATH);
    if (text == NULL) return -1;
    build_command(&command, text, 16 * PROGRAM_PATH, "--out @/run --save-every 1");
    ProgramResult result = run_command(&command, 20);
    free_result(&result);
    free(text);
    copy_checkpoint("cut", "model.safetensors", 100, NULL, NULL);
    copy_checkpoint("shape", "config.json", 0, "\"hidden_size\": 16", "\"hidden_size\": 32");
    copy_checkpoint("json", "config.json", 2, NULL, NULL);
    return 0;
}

static int remove_files(void **state) {
    (void)state;
    remove_tree(folder);
    return 0;
}

int main(void) {
    enum { IN_TABLE = sizeof bad_inputs / sizeof *bad_inputs };
    struct CMUnitTest tests[IN_TABLE + 1] = {{"data_unreadable", unreadable_data, NULL, NULL, NULL}};
    for (int i = 0; i < IN_TABLE; i++)
        tests[i + 1] = (struct CMUnitTest){bad_inputs[i].name, bad_input, NULL, NULL, (void *)(uintptr_t)&bad_inputs[i]};
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
