// To and from the texts that a training state keeps.
#include "run/kept_options.h"

#include <string.h>

#include "terminal/options_table.h"

static const char *const names[] = {"lr",           "min-lr", "schedule", "warmup",       "decay-fraction",
                                    "weight-decay", "beta1",  "beta2",    "adam-epsilon", "grad-clip",
                                    "document-mask", "document-end"};
enum { NAMES = sizeof names / sizeof *names };
_Static_assert((int)NAMES <= (int)KEPT_OPTIONS_MAX, "a training state has room for all of them");

static Shown value_of(const Options *options, const Option *row) {
    const void *value = option_value(options, row);
    if (row->kind == INTEGER) return shown_integer(*(const int64_t *)value);
    if (row->kind == REAL) return shown_real(*(const double *)value);
    if (row->kind == FLAG) return shown_text(*(const bool *)value ? "yes" : "no");
    return shown_choice(row, *(const int *)value); // of the kept ones, none is a text
}

void kept_options_of(const Options *options, KeptOptions *kept) {
    kept->count = NAMES;
    for (int i = 0; i < NAMES; i++) {
        KeptOption *option = &kept->option[i];
        snprintf(option->name, sizeof option->name, "%s", names[i]);
        snprintf(option->value, sizeof option->value, "%s", value_of(options, option_named(names[i])).text);
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
            if (!option_set(options, row, was->value, err)) return false;
            continue;
        }
        Shown now = value_of(options, row);
        if (strcmp(now.text, was->value) == 0 || used >= size) continue;
        used += (size_t)snprintf(changes + used, size - used, "%s--%s %s (was %s)", used > 0 ? ", " : "", names[i],
                                 now.text, was->value);
    }
    return true;
}
