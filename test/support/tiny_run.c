// The command line of a tiny run in a folder of files, and what it must answer.
#include "test/tiny_run.h"

#include <dirent.h>

void make_file(const char *name, const void *data, size_t bytes) {
    char path[PROGRAM_PATH];
    write_file(in_folder(path, name), data, bytes);
}

void make_text(const char *name, size_t bytes) {
    char *text = malloc(bytes);
    if (text == NULL) fail_msg("out of memory");
    for (size_t i = 0; i < bytes; i++) text[i] = (char)('a' + (i * i + i / 7) % 26);
    make_file(name, text, bytes);
    free(text);
}

void build_command(Command *command, char *text, size_t size, const char *options) {
    static const char *const usual[][2] = {{"--data", "--data @/text"},
                                           {"--context", "--context 16"},
                                           {"--sp", "--sp 1"},
                                           {"--steps", "--steps 2"},
                                           {"--layers", "--layers 1"},
                                           {"--heads", "--heads 2"},
                                           {"--dim", "--dim 16"},
                                           {"--ffn", "--ffn 16"},
                                           {"--threads", "--threads 1"},
                                           {"--eval-windows", "--eval-windows 1"},
                                           {"--sample-tokens", "--sample-tokens 0"},
                                           {"--device", "--device cpu"}};
    bool sized = strstr(options, "--init") || strstr(options, "--resume") || strstr(options, "--model ");
    char all[4096];
    int used = snprintf(all, sizeof all, "%s", options);
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++) {
        char with_space[32];
        snprintf(with_space, sizeof with_space, "%s ", usual[i][0]);
        bool evaluates = strcmp(usual[i][0], "--eval-windows") == 0 && strstr(options, "--eval-tokens ");
        bool made = strcmp(usual[i][0], "--data") == 0 && strstr(options, "--task ");
        if (evaluates || made || strstr(options, with_space) || (sized && i >= 4 && i <= 7)) continue;
        used += snprintf(all + used, sizeof all - (size_t)used, " %s", usual[i][1]);
    }
    size_t n = 0, begin = 0;
    add_word(command, train_gpt_path());
    for (const char *c = all; n + PROGRAM_PATH < size; c++) { // the folder's own name may hold spaces
        if (*c == '@') n += (size_t)snprintf(text + n, size - n, "%s", folder);
        else text[n++] = *c == ' ' ? '\0' : *c;
        if (text[n - 1] != '\0') continue;
        if (n - begin > 1) add_word(command, text + begin);
        begin = n;
        if (*c == '\0') break;
    }
}

bool matches(const char *pattern, const char *text) {
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

char *try_command(const Command *command, int exit_code, const char *message) {
    char expected[2048];
    ProgramResult result = run_program(command->argv, 20);
    snprintf(expected, sizeof expected, "train_gpt: %s\n", message);
    if (*message == '\0') *expected = '\0';
    bool right = !result.timed_out && result.exit_code == exit_code && matches(expected, result.err);
    bool in_time = exit_code != 2 || strstr(result.out, "step 1/") == NULL;
    if (!right || !in_time) {
        print_command(command);
        fprintf(stderr, "  expected: %d, %s  received: %d, %s%s%s\n", exit_code, expected, result.exit_code, result.err,
                result.timed_out ? "  and it did not end" : "", in_time ? "" : "  and said so only after training");
    }
    free(result.err);
    if (right && in_time) return result.out;
    free(result.out);
    return NULL;
}

char *try_run(int exit_code, const char *options, const char *message) {
    Command command = {0};
    char *text = malloc(16 * PROGRAM_PATH);
    if (text == NULL) fail_msg("out of memory");
    build_command(&command, text, 16 * PROGRAM_PATH, options);
    char *output = try_command(&command, exit_code, message);
    free(text);
    return output;
}

char *check_run(int exit_code, const char *options, const char *message) {
    char *output = try_run(exit_code, options, message);
    assert_non_null(output);
    return output;
}

int count_entries(const char *name) {
    char path[PROGRAM_PATH];
    DIR *directory = opendir(in_folder(path, name));
    if (directory == NULL) fail_msg("cannot read %s: %s", path, strerror(errno));
    int count = 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) count += entry->d_name[0] != '.';
    closedir(directory);
    return count;
}

void check_one_good_checkpoint(const char *name) {
    assert_int_equal(count_entries(name), 1);
    char options[100];
    snprintf(options, sizeof options, "--resume --steps 3 --out @/%s", name);
    free(check_run(0, options, ""));
}
