// Scripts run from a test, in its folder (test/folder.h), with stand-ins for the programs that they call.
#ifndef TEST_SHELL_H
#define TEST_SHELL_H

#include "test/folder.h"

// An executable file in the folder.
void make_script(const char *name, const char *text);

// Runs a command of the shell inside the folder, with the folder first in PATH, $tree for the project's tree and
// $program for train_gpt; fails the test on another exit code. Returns both outputs, to be freed.
char *run_shell(const char *command, int exit_code);

// Skips the test where there is no python3.
void skip_without_python(void);

// Skips the test where the libraries that scripts draw and fit with are missing.
void skip_without_plots(void);

void expect_in(const char *text, const char *part);
void expect_not_in(const char *text, const char *part);

#endif
