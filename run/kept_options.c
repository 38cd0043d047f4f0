// To and from the texts that a training state keeps.
#include "run/kept_options.h"

#include <string.h>

#include "terminal/options_table.h"

static const char *const names[] = {"lr",           "min-lr", "schedule", "warmup",       "decay-fraction",
                                    "weight-decay", "beta1",  "beta2",    "adam-epsilon", "grad-clip",
                                    "document-mask", "document-end", "context-schedule"};
enum { NAMES = sizeof names / sizeof *names };
_Static_assert((int)NAMES <= (int)KEPT_OPTIONS_MAX, "a training state has room for all of them");

static void write_value(const Options *options, const Option *row, char text[KEPT_OPTION_TEXT + 1]) {
    const void *value = option_value(options, row);
    const char *given = row->kind == TEXT ? *(const char *const *)value : NULL;
    Shown shown = {"none"};
    switch (row->kind) {
    case INTEGER: shown = shown_integer(*(const int64_t *)value); break;
    case REAL: shown = shown_real(*(const double *)value); break;
    case FLAG: shown = shown_text(*(const bool *)value ? "yes" : "no"); break;
    case CHOICE: shown = shown_choice(row, *(const int *)value); break;
    case TEXT:
    case PATHS: break;
    }
    snprintf(text, KEPT_OPTION_TEXT + 1, "%s", given != NULL ? given : shown.text);
}

void kept_options_of(const Options *options, KeptOptions *kept) {
    kept->count = NAMES;
    for (int i = 0; i < NAMES; i++) {
        KeptOption *option = &kept->option[i];
        snprintf(option->name, sizeof option->name, "%s", names[i]);
        write_value(options, option_named(names[i]), option->value);
    }
}

static const KeptOption *find(const KeptOptions *kept, const char *name) {
    for (int i = 0; i < kept->count; i++)
        if (strcmp(kept->option[i].name, name) == 0) return &kept->option[i];
    return NULL;
}

bool kept_options_restore(Options *options, const KeptOptions *kept, char *changes, size_t size, Error *err) {
    size_t used = strlen(changes);
    for (int i = 0; i < NAMES; i++) {
        const Option *row = option_named(names[i]);
        const KeptOption *was = find(kept, names[i]);
        if (was == NULL) continue;
        if (!options_given(options, names[i])) {
            bool none = row->kind == TEXT && strcmp(was->value, "none") == 0;
            if (!none && !option_set(options, row, was->value, err)) return false;
            continue;
        }
        char now[KEPT_OPTION_TEXT + 1];
        write_value(options, row, now);
        if (strcmp(now, was->value) == 0 || used >= size) continue;
        used += (size_t)snprintf(changes + used, size - used, "%s--%s %s (was %s)", used > 0 ? ", " : "", names[i],
                                 now, was->value);
    }
    return true;
}
