// A tiny run of the real program on files of a test's own: its command line, exit code and messages.
//
// In options and messages, @ stands for the folder of these files; * in a message stands for any text, where a number
// belongs to the machine or to the seed. What `options` do not give is that of a tiny run.
#ifndef TEST_TINY_RUN_H
#define TEST_TINY_RUN_H

#include "test/folder.h"

void make_file(const char *name, const void *data, size_t bytes);
void make_text(const char *name, size_t bytes);
int count_entries(const char *name); // of folder/name, hidden ones left out

// Adds the command of a tiny run with `options`; its words lie in `text`.
void build_command(Command *command, char *text, size_t size, const char *options);

// Runs a command; checks its exit code and all that it says on standard error ("" for nothing). A mistake in the usage
// must be told before the first step. Returns standard output, to be freed; NULL if anything is wrong.
char *try_command(const Command *command, int exit_code, const char *message);
char *try_run(int exit_code, const char *options, const char *message);   // of a tiny run
char *check_run(int exit_code, const char *options, const char *message); // and NULL fails the test

// Does the text match, where * in the pattern stands for anything and @ for the folder?
bool matches(const char *pattern, const char *text);

// The checkpoint in folder/name, and nothing else there, can be resumed from.
void check_one_good_checkpoint(const char *name);

#endif
