// Describes the run in lines, and compares rank 0's with this rank's.
#include "run/same_run.h"

#include <stdlib.h>
#include <string.h>

#include "terminal/options_table.h"

// What a process may have to itself: where it runs, and what only rank 0 does.
static bool may_differ(const Option *row) {
    static const char *const names[] = {"engine", "device", "devices", "threads", "timeout", "log"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(row->name, names[i]) == 0) return true;
    return row->group == GENERATION || row->group == INSTEAD;
}

static void describe_option(const Options *options, const Option *row, FILE *out) {
    const void *value = option_value(options, row);
    fprintf(out, "--%s", row->name);
    switch (row->kind) {
    case INTEGER: fprintf(out, " %s\n", shown_integer(*(const int64_t *)value).text); return;
    case REAL: fprintf(out, " %s\n", shown_real(*(const double *)value).text); return;
    case CHOICE: fprintf(out, " %s\n", shown_choice(row, *(const int *)value).text); return;
    case FLAG: fprintf(out, "%s\n", *(const bool *)value ? "" : " not given"); return;
    case TEXT: fprintf(out, "%s\n", *(const char *const *)value != NULL ? "" : " not given"); return;
    case PATHS: fprintf(out, "%s\n", *option_paths(options, row).count > 0 ? "" : " not given"); return;
    }
}

// Up to the tab it has to agree. What follows is for the message: files may have other names on another machine.
static void describe_data(FILE *out, const char *what, const TokenSource *source, uint64_t fingerprint) {
    if (tokens_task(source) != NULL) {
        fprintf(out, "%s data of %s\n", what, tokens_name(source));
        return;
    }
    fprintf(out, "%s data of %lld tokens and fingerprint %016llx\t(%s)\n", what, (long long)tokens_count(source),
            (unsigned long long)fingerprint, tokens_name(source));
}

// A line for each thing that has to agree; to be freed. NULL: out of memory.
static char *description_of(const Run *run) {
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    if (out == NULL) return NULL;
    for (const Option *row = options_table; row < options_table + options_table_rows; row++)
        if (!may_differ(row)) describe_option(&run->options, row, out);
    fprintf(out, "--device %s\n", device_kind_name(run->devices.kind));
    fprintf(out, "a vocabulary of %lld\n", (long long)run->config.vocab_size);
    fprintf(out, "%lld parameters\n", (long long)run->table.in_model);
    char mixers[MIXERS_TEXT];
    mixers_write(&run->config, mixers);
    fprintf(out, "--mixer %s\n", mixers);
    for (int64_t l = 0; l < run->config.layers; l++)
        fprintf(out, "a window of %lld tokens (0: all) in layer %lld\n",
                (long long)config_window(&run->config, l, run->options.context), (long long)l);
    for (int i = 0; i < run->phases; i++)
        fprintf(out, "sequences of %lld tokens as phase %d, up to step %lld\n", (long long)run->phase[i].context, i,
                (long long)run->phase[i].end);
    fprintf(out, "%d as the end of a document\n", (int)run->document_end);
    describe_data(out, "training", run->train, run_data_fingerprint(run));
    describe_data(out, "validation", run->validation, tokens_fingerprint(run->validation));
    fprintf(out, "a checkpoint of step %lld to go on from\n", (long long)run->resumed.step);
    if (fclose(out) == 0) return text;
    free(text);
    return NULL;
}

static void shown_line(char *out, size_t size, const char *line, int length) {
    snprintf(out, size, "%.*s", length, line);
    char *tab = strchr(out, '\t');
    if (tab != NULL) *tab = ' ';
}

static bool first_difference(int rank, const char *mine, const char *theirs, Error *err) {
    while (*mine != '\0' && *theirs != '\0') {
        int my_length = (int)strcspn(mine, "\n"), their_length = (int)strcspn(theirs, "\n");
        size_t compared = strcspn(mine, "\t\n");
        if (strcspn(theirs, "\t\n") != compared || strncmp(mine, theirs, compared) != 0) {
            char both[2][400];
            shown_line(both[0], sizeof both[0], mine, my_length);
            shown_line(both[1], sizeof both[1], theirs, their_length);
            return error_usage(err, "rank %d has %s, rank 0 has %s; start every process with the same options and data",
                               rank, both[0], both[1]);
        }
        mine += my_length + (mine[my_length] == '\n');
        theirs += their_length + (theirs[their_length] == '\n');
    }
    return *mine == *theirs || error_usage(err, "rank %d and rank 0 are different versions of the program", rank);
}

bool same_run(const Run *run, Comm *world, Error *err) {
    char *mine = description_of(run), *first = NULL;
    uint64_t bytes = mine != NULL ? strlen(mine) + 1 : 0;
    comm_broadcast(world, &bytes, sizeof bytes, 0);
    bool ok = mine != NULL && bytes > 0 && (first = malloc(bytes)) != NULL;
    if (ok) {
        if (comm_rank(world) == 0) memcpy(first, mine, bytes);
        comm_broadcast(world, first, bytes, 0);
        ok = first_difference(comm_rank(world), mine, first, err);
    } else {
        error_set(err, "out of memory");
    }
    free(first);
    free(mine);
    return ok;
}
