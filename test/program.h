// Runs programs from a test, as a shell would: arguments in, exit code and both outputs back, and a time limit, so
// that a hang is a failed test and not a hung one. Also the few file helpers that such tests share.
//
// Everything here fails the running test (cmocka) on an error of its own; only what the program did is returned.
#ifndef TEST_PROGRAM_H
#define TEST_PROGRAM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PROGRAM_MAX_ARGUMENTS = 96, PROGRAM_PATH = 4096 };

double program_clock(void); // seconds

void program_sleep(double seconds);

// How much longer things take in this build: sanitizers slow a program down several times.
double program_slowness(void);

// ---- files --------------------------------------------------------------------------------------------------------

char *path_join(char out[PROGRAM_PATH], const char *folder, const char *name);

char *make_temp_folder(char out[PROGRAM_PATH]);

void remove_tree(const char *path);

bool path_exists(const char *path);

void write_file(const char *path, const void *data, size_t bytes);

// The rest of an open file, with a NUL after it. To be freed. `bytes` may be NULL.
char *read_stream(FILE *file, size_t *bytes);
char *read_file(const char *path, size_t *bytes);

// The file or folder `name` of the project's tree, wherever the test was built: searched upwards from the test
// program, then from the working directory.
char *project_path(char out[PROGRAM_PATH], const char *name);

// ---- programs -----------------------------------------------------------------------------------------------------

// train_gpt of this build: TRAIN_GPT in the environment, or the one in the folder above the test program's.
const char *train_gpt_path(void);

typedef struct RunningProgram {
    pid_t pid; // also its process group
    FILE *out, *err;
    double started;
} RunningProgram;

typedef struct ProgramResult {
    int exit_code;  // as a shell gives it: 128 + signal where one ended it
    bool timed_out; // was killed for running past the limit
    double seconds;
    char *out, *err; // what it wrote; each ends with a NUL
} ProgramResult;

// Starts argv[0] (searched in PATH), standard input empty, both outputs caught. `argv` ends with NULL.
RunningProgram start_program(const char *const *argv);
pid_t program_parent(pid_t pid); // of a process; 0 where that is gone or only waits to be collected
int program_children(pid_t parent, pid_t *child, int most); // such as the ranks of an mpirun; how many there are

// Waits for its end; past `time_limit` seconds (from its start; longer under sanitizers) ends it and all of its
// group.
ProgramResult finish_program(RunningProgram *program, double time_limit);

ProgramResult run_program(const char *const *argv, double time_limit);

void free_result(ProgramResult *result);

// A command line that grows word by word. The words must outlive it, except those of add_format, which it keeps.
typedef struct Command {
    const char *argv[PROGRAM_MAX_ARGUMENTS + 1]; // always NULL-terminated
    int count;
    char text[PROGRAM_MAX_ARGUMENTS][64];
} Command;

void add_word(Command *command, const char *word);
void add_words(Command *command, ...) __attribute__((sentinel));
void add_number(Command *command, const char *option, double value);

// `mpirun -np RANKS` with the flags that let more ranks than processors run, as root too. False: no mpirun here.
bool add_mpirun(Command *command, int ranks);

void print_command(const Command *command);

// Runs a command that must succeed; otherwise shows it and what it said, and fails the test.
ProgramResult run_command(const Command *command, double time_limit);

#endif
