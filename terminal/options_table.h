// The table behind terminal/options.h, shared by what parses it (options.c) and what prints it (options_print.c).
#ifndef TERMINAL_OPTIONS_TABLE_H
#define TERMINAL_OPTIONS_TABLE_H

#include <stddef.h>

#include "terminal/options.h"

typedef enum Kind { INTEGER, REAL, TEXT, CHOICE, FLAG, PATHS } Kind;
typedef enum Group { MODEL, DATA, TRAINING, RANKS, EVALUATION, CHECKPOINTS, GENERATION, INSTEAD } Group;

typedef struct Option {
    const char *name;
    Kind kind;
    Group group;
    const char *argument; // its name in the help; for CHOICE the words, separated by |, in the order of the enum
    const char *initial;  // the default; NULL: none
    size_t offset;        // of the value in Options
    double min, max;      // of INTEGER and REAL, both allowed
    const char *help;
} Option;

extern const Option options_table[];
extern const int options_table_rows;

const Option *option_find(const char *name, size_t length);    // NULL: there is none
const Option *option_named(const char *name);                  // there must be one
bool option_set(Options *options, const Option *row, const char *value, Error *err); // as if it had been given
void *option_value(const Options *options, const Option *row); // where it lies in *options

// The list of a PATHS option.
typedef struct PathList {
    const char ***path;
    int *count;
} PathList;
PathList option_paths(const Options *options, const Option *row);

// Names that other programs have for what is an option here, or why there is none: one word each, words with a dash as
// they are typed, others in small letters and with underscores.
typedef struct ForeignNames {
    const char *theirs, *ours, *why_none; // of the last two, one is NULL
} ForeignNames;
extern const ForeignNames foreign_names[];
extern const int foreign_names_rows;

// The usage error that says which option was meant; false.
bool option_unknown(const char *argument, Error *err);

typedef struct Shown {
    char text[80];
} Shown;
Shown shown_text(const char *text); // the user's, on one line and not too long
Shown shown_real(double x);         // the shortest text that reads back as the same number
Shown shown_integer(int64_t n);

// The word of a CHOICE that stands for this value of its enum.
Shown shown_choice(const Option *row, int value);

#endif
