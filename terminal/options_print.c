// The options as text: the help, and the command that a run stands for.
#include <string.h>

#include "terminal/options_table.h"

static const char *const group_titles[] = {
    [MODEL] = "Model",           [DATA] = "Data",
    [TRAINING] = "Training",     [RANKS] = "Ranks",
    [EVALUATION] = "Evaluation", [CHECKPOINTS] = "Checkpoints and logs",
    [GENERATION] = "Generation", [INSTEAD] = "Instead of training",
};

enum { HELP_COLUMN = 26, LAST_COLUMN = 100 };

// Writes text word by word from HELP_COLUMN on, and goes on there where a line is full or ends.
static void print_wrapped(FILE *out, const char *text) {
    for (int column = HELP_COLUMN; *text != '\0';) {
        int word = (int)strcspn(text, " \n");
        bool first = column == HELP_COLUMN, full = column + 1 + word > LAST_COLUMN;
        if (!first && full) column = fprintf(out, "\n%*s", HELP_COLUMN, "") - 1;
        if (!first && !full) column += fprintf(out, " ");
        column += fprintf(out, "%.*s", word, text);
        if (text[word] == '\n') column = fprintf(out, "\n%*s", HELP_COLUMN, "") - 1;
        text += word + strspn(text + word, " \n");
    }
    fprintf(out, "\n");
}

static void print_option_help(FILE *out, const Option *row) {
    char text[1200];
    int n = snprintf(text, sizeof text, "%s", row->help);
    if (row->initial != NULL) snprintf(text + n, sizeof text - (size_t)n, " [%s]", row->initial);

    int column = fprintf(out, "  --%s%s%s", row->name, row->argument ? " " : "", row->argument ? row->argument : "");
    if (column >= HELP_COLUMN - 1) column = fprintf(out, "\n") - 1; // too long a list of choices: below it
    fprintf(out, "%*s", HELP_COLUMN - column, "");
    print_wrapped(out, text);
}

void options_help(FILE *out) {
    fprintf(out, "Trains a GPT on long contexts, each sequence sharded over ranks.\n\n"
                 "  ./train_gpt                                         a small model on the bundled corpus\n"
                 "  ./train_gpt --data FILE --out DIR                   a model of your own text or tokens\n"
                 "  ./train_gpt --data FILE --out DIR --resume          the same run, from where it was left\n"
                 "  ./train_gpt --init DIR --steps 0 --sample \"Once\"    text from a trained model\n\n"
                 "Options are written --name value or --name=value; 1e6 is a whole number; [defaults] in brackets.\n");
    for (Group group = MODEL; group <= INSTEAD; group++) {
        fprintf(out, "\n%s\n", group_titles[group]);
        for (const Option *row = options_table; row < options_table + options_table_rows; row++)
            if (row->group == group) print_option_help(out, row);
    }
}

// Text as a shell reads it back.
static int print_quoted(FILE *out, const char *text) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./,:=+@%-";
    if (*text != '\0' && text[strspn(text, plain)] == '\0') return fprintf(out, "%s", text);
    int printed = fprintf(out, "'");
    for (; *text != '\0'; text++) printed += fprintf(out, *text == '\'' ? "'\\''" : "%c", *text);
    return printed + fprintf(out, "'");
}

// Adds " text" to the command, on a new line where this one is full.
static void print_word(FILE *out, int *column, const char *text) {
    if (*column + 3 + (int)strlen(text) > LAST_COLUMN) *column = fprintf(out, " \\\n   ") - 3;
    *column += fprintf(out, " ") + print_quoted(out, text);
}

// An option and its value stay on one line.
static void print_option(FILE *out, int *column, const Option *row, const char *value) {
    int length = (int)(strlen(row->name) + strlen(value)) + 6;
    if (*column + length > LAST_COLUMN) *column = fprintf(out, " \\\n   ") - 3;
    *column += fprintf(out, " --%s ", row->name) + print_quoted(out, value);
}

// Left to the program, or not in force: what would only make the command longer.
static bool left_out(const Options *options, const Option *row) {
    const void *value = option_value(options, row);
    bool zero_is_unset = row->group == MODEL || (row->initial != NULL && strcmp(row->initial, "0") == 0);
    if (strcmp(row->name, "decay-fraction") == 0 && options->schedule != SCHEDULE_WSD) return true;
    if (strcmp(row->name, "recompute") == 0 && options->recompute == RECOMPUTE_NONE) return true;
    if (strcmp(row->name, "min-lr") == 0 && options->schedule == SCHEDULE_CONSTANT) return true;
    bool of_saving = strcmp(row->name, "keep") == 0 || strcmp(row->name, "save-minutes") == 0;
    bool own_data = options->data_count > 0 || options->val_data_count > 0;
    if (strcmp(row->name, "data-format") == 0 && !own_data) return true;
    if (of_saving && options->out == NULL) return true;
    if (row->group == GENERATION && options->task != NULL && options->sample == NULL) return true; // there is none
    if (strcmp(row->name, "document-end") == 0 && (!options->document_mask || options->document_end < 0)) return true;
    if (strcmp(row->name, "arch") == 0 && (options->init != NULL || options->resume)) return true;
    if (strcmp(row->name, "rope-theta") == 0 && options->arch == ARCH_GPT2) return true;
    switch (row->kind) {
    case INTEGER: return zero_is_unset && *(const int64_t *)value == 0;
    case REAL: return zero_is_unset && *(const double *)value == 0;
    case TEXT: return *(const char *const *)value == NULL;
    case CHOICE: return false;
    case FLAG: return !*(const bool *)value;
    case PATHS: return *option_paths(options, row).count == 0;
    }
    return false;
}

void options_print_command(const Options *options, FILE *out) {
    int column = fprintf(out, "./train_gpt");
    for (const Option *row = options_table; row < options_table + options_table_rows; row++) {
        const void *value = option_value(options, row);
        if (left_out(options, row)) continue;
        switch (row->kind) {
        case INTEGER: print_option(out, &column, row, shown_integer(*(const int64_t *)value).text); break;
        case REAL: print_option(out, &column, row, shown_real(*(const double *)value).text); break;
        case TEXT: print_option(out, &column, row, *(const char *const *)value); break;
        case CHOICE: print_option(out, &column, row, shown_choice(row, *(const int *)value).text); break;
        case FLAG: column += fprintf(out, " --%s", row->name); break;
        case PATHS: {
            PathList list = option_paths(options, row);
            column += fprintf(out, " --%s", row->name);
            for (int i = 0; i < *list.count; i++) print_word(out, &column, (*list.path)[i]);
            break;
        }
        }
    }
    fprintf(out, "\n");
}
