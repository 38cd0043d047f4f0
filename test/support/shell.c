// Bodies of test/shell.h.
#include "test/shell.h"

void make_script(const char *name, const char *text) {
    char path[PROGRAM_PATH];
    path_join(path, folder, name);
    write_file(path, text, strlen(text));
    if (chmod(path, 0755) != 0) fail_msg("cannot make %s a program", path);
}

char *run_shell(const char *command, int exit_code) {
    char tree[PROGRAM_PATH], *script = NULL, *both = NULL;
    project_path(tree, "scripts/run-tests");
    *strstr(tree, "/scripts/run-tests") = '\0';
    const char before[] = "cd \"$0\" && tree=$1 && program=$2 && PATH=\"$0:$PATH\" && "
                          "export tree program PATH && exec 2>&1 && ";
    if (asprintf(&script, "%s%s", before, command) < 0) fail_msg("out of memory");
    const char *const words[] = {"/bin/sh", "-c", script, folder, tree, train_gpt_path(), NULL};
    ProgramResult result = run_program(words, 120);
    if (result.timed_out || result.exit_code != exit_code)
        fail_msg("%s: exit code %d: %s%s", command, result.exit_code, result.out, result.err);
    if (asprintf(&both, "%s%s", result.out, result.err) < 0) fail_msg("out of memory");
    free(script);
    free_result(&result);
    return both;
}

void skip_without_python(void) {
    if (system("python3 -c '' 2> /dev/null") == 0) return;
    print_message("skipped: no python3 here\n");
    skip();
}

void skip_without_plots(void) {
    if (system("for python in python3 ${SYSTEM_PYTHON:-/usr/bin/python3}; do "
               "$python -c 'import matplotlib, scipy' 2> /dev/null && exit; done; exit 1") == 0)
        return;
    print_message("skipped: no python3 with matplotlib and scipy here (scripts/setup plots)\n");
    skip();
}

void expect_in(const char *text, const char *part) {
    if (strstr(text, part) == NULL) fail_msg("expected \"%s\" in: %s", part, text);
}
void expect_not_in(const char *text, const char *part) {
    if (strstr(text, part) != NULL) fail_msg("did not expect \"%s\" in: %s", part, text);
}
