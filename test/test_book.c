// The book's chapters (doc/): their commands print what stands beside them, and the files, functions and options that
// they name exist. scripts/check-book does it all; here it is given this build's program, and pages with faults, which
// it must find.
#include "test/shell.h"

// Of each chapter in the book's table, "| 1 | [Title](name.md) | ...", check-book says how many commands it ran.
static void expect_checks_in_chapters(const char *said) {
    char path[PROGRAM_PATH], name[64], page[80];
    char *contents = read_file(project_path(path, "doc/README.md"), NULL);
    int chapters = 0;
    for (const char *line = contents; line != NULL; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        if (sscanf(line, "| %*d | [%*[^]]](%63[^)])", name) != 1) continue;
        int commands = 0;
        snprintf(page, sizeof page, "doc/%s ", name);
        const char *count = strstr(said, page);
        if (count == NULL || sscanf(count + strlen(page), "%d commands", &commands) != 1 || commands < 1)
            fail_msg("no command of doc/%s was checked: %s", name, said);
        chapters++;
    }
    assert_true(chapters > 0);
    free(contents);
}

static void test_chapters(void **state) {
    (void)state;
    skip_without_python();
    char script[PROGRAM_PATH];
    Command command = {0};
    add_words(&command, "python3", project_path(script, "scripts/check-book"), "--train-gpt", train_gpt_path(), NULL);
    ProgramResult result = run_program(command.argv, 150);
    if (result.exit_code != 0) fail_msg("%s%s", result.out, result.err);
    expect_checks_in_chapters(result.out);
    free_result(&result);
}

// Runs check-book over a page of these lines.
static char *check_page(const char *page, int exit_code) {
    char path[PROGRAM_PATH], *said, *command = NULL;
    write_file(in_folder(path, "page.md"), page, strlen(page));
    if (asprintf(&command, "python3 \"$tree\"/scripts/check-book --train-gpt '%s' page.md", train_gpt_path()) < 0)
        fail_msg("out of memory");
    said = run_shell(command, exit_code);
    free(command);
    return said;
}

static void test_right_page(void **state) {
    (void)state;
    skip_without_python();
    char *said = check_page("[`walk_forward`](" // a link is from the page's folder
                            "README)\n```sh\necho 1.50 '  2' 371 tokens/s\necho left; echo out; echo end\n```\n"
                            "```text within 0.01\n1.501 2 ~9 tokens/s\n...\nend\n```\n"
                            "```python\nprint(100)\n```\n\n```text within 1%\n101\n```\n"
                            "An example: \n```sh\n./train_gpt --layers 2\n```\n```sh\nexit 3\n```\n",
                            1);
    expect_in(said, "page.md:1: links to README, which is not there\n");
    expect_in(said, "2 commands, 1 failures\n");
    free(said);
}

// Every fault is found, and not only the first.
static void test_faults_are_found(void **state) {
    (void)state;
    skip_without_python();
    char *said = check_page("```sh\necho 10 MiB\n```\n```text\n11 MiB\n```\n"
                            "```sh\necho 10\n```\n```text within 1%\n10.2\n```\n"
                            "```sh\necho a; echo b\n```\n```text\na\n```\n"
                            "```sh\necho a; echo b\n```\n```text\n...\nc\n```\n"
                            "```sh\necho x\n```\n```text\n~1\n```\n"
                            "```sh\necho no; false\n```\n```text\nno\n```\n"
                            "```python\nprint(1 /\n```\n```text\n1\n```\n"
                            "```sh\n./train_gpt --layers 2 \\\n  --no-such-option\n```\n"
                            "```sh\necho 1\n```\n\n```\n1\n```\n"
                            "```sh\necho 1\n```\nprints\n```text\n1\n```\n"
                            "```sh\necho 1\n```\n```txt\n1\n```\n"
                            "`sequence/no_such_file.c`\n"
                            "`build/release/test/test_nothing`\n"
                            "[`no_such_name`](page.md)\n",
                            1);
    static const char *const faults[] = {"page.md:4: says \"11 MiB\", but the commands print \"10 MiB\": mend the text",
                                         "says \"10.2\", but the commands print \"10\"",
                                         "says \"(the end)\", but the commands print \"b\"",
                                         "says \"c\", but the commands print \"a\"",
                                         "says \"~1\"",
                                         "exit status 1: no",
                                         "SyntaxError",
                                         "--no-such-option is no option",
                                         "page.md:48: a block without a language follows",
                                         "page.md:59: no command stands directly before this text",
                                         "page.md:65: txt is none of sh, python and text",
                                         "names sequence/no_such_file.c, which is not there",
                                         "names test_nothing, which is no test program",
                                         "page.md does not define no_such_name",
                                         "\n7 commands, 14 failures\n"};
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) expect_in(said, faults[i]);
    free(said);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chapters),
        cmocka_unit_test(test_right_page),
        cmocka_unit_test(test_faults_are_found),
    };
    return cmocka_run_group_tests_name("book", tests, make_folder, remove_folder);
}
