// The pattern of token mixers as text: what --mixer takes, and what config.json keeps of it.
//
//   PATTERN = CHOICE[,CHOICE...]     CHOICE = NAME[:OPTION]     OPTION = WORD | NUMBER[,NUMBER]
//
// No name begins with a digit, so a comma before a number goes on with the choice at hand.
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "model/mixer.h"

static bool begins_number(const char *text) { return isdigit((unsigned char)*text) || *text == '.'; }

// Where the choice that begins at `text` ends: at a comma that no number follows, or with the text.
static const char *end_of_choice(const char *text) {
    const char *end = text + strcspn(text, ",");
    while (*end == ',' && begins_number(end + 1)) end += 1 + strcspn(end + 1, ",");
    return end;
}

static int token_mixer_named(const char *name, size_t length) {
    for (int i = 0; token_mixers[i] != NULL; i++)
        if (strlen(token_mixers[i]->name) == length && memcmp(token_mixers[i]->name, name, length) == 0) return i;
    return -1;
}

static bool unknown(const char *what, const char *list, const char *name, size_t length, Error *err) {
    char known[200] = "";
    for (int i = 0; token_mixers[i] != NULL; i++)
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i > 0 ? ", " : "", token_mixers[i]->name);
    char shown[61];
    snprintf(shown, sizeof shown, "%.*s", (int)(length < 60 ? length : 60), name);
    return error_usage(err, "%s %s: there is no \"%s\"; give names out of: %s", what, json_shown(list).text,
                       json_shown(shown).text, known);
}

static bool bad_option(const char *what, const char *list, const Mixer *mixer, Error *err) {
    char takes[120];
    if (mixer->word == NULL && mixer->most_values == 0) snprintf(takes, sizeof takes, "takes no option");
    else if (mixer->most_values == 0) snprintf(takes, sizeof takes, "takes the option \"%s\" or none", mixer->word);
    else if (mixer->least_values == 2) snprintf(takes, sizeof takes, "takes two numbers, as %s:2048,4", mixer->name);
    else snprintf(takes, sizeof takes, "takes a number or nothing, as %s:0.5", mixer->name);
    return error_usage(err, "%s %s: \"%s\" %s", what, json_shown(list).text, mixer->name, takes);
}

// The options of a choice, from `text` to before `end`.
static bool read_option(MixerChoice *choice, const Mixer *mixer, const char *text, const char *end) {
    if (mixer->word != NULL && strlen(mixer->word) == (size_t)(end - text) &&
        memcmp(text, mixer->word, (size_t)(end - text)) == 0) {
        choice->word = true;
        return true;
    }
    while (choice->values < mixer->most_values && begins_number(text)) {
        char *after;
        double value = choice->value[choice->values++] = strtod(text, &after);
        bool decimal = text + strspn(text, ".0123456789eE+-") >= after; // strtod also takes hexadecimal
        if (!decimal || !isfinite(value)) return false;
        if (after == end) return true;
        if (*after != ',') return false;
        text = after + 1;
    }
    return false;
}

bool mixers_read(ModelConfig *config, const char *list, const char *what, Error *err) {
    config->mixers = 0;
    memset(config->mixer, 0, sizeof config->mixer);
    for (const char *at = list; at != NULL;) {
        const char *end = end_of_choice(at), *colon = memchr(at, ':', (size_t)(end - at));
        size_t length = (size_t)((colon != NULL ? colon : end) - at);
        if (config->mixers == CONFIG_MAX_MIXERS)
            return error_usage(err, "%s %s: a pattern has at most %d names", what, json_shown(list).text,
                               CONFIG_MAX_MIXERS);
        MixerChoice *choice = &config->mixer[config->mixers++];
        choice->number = token_mixer_named(at, length);
        if (choice->number < 0) {
            choice->number = 0;
            return unknown(what, list, at, length, err);
        }
        const Mixer *mixer = token_mixers[choice->number];
        if ((colon != NULL && !read_option(choice, mixer, colon + 1, end)) ||
            (!choice->word && choice->values < mixer->least_values))
            return bad_option(what, list, mixer, err);
        at = *end == ',' ? end + 1 : NULL;
    }
    return true;
}

void mixer_write(const MixerChoice *choice, char text[MIXERS_TEXT]) {
    const Mixer *mixer = token_mixers[choice->number];
    int used =
        snprintf(text, MIXERS_TEXT, "%s%s%s", mixer->name, choice->word ? ":" : "", choice->word ? mixer->word : "");
    for (int i = 0; i < choice->values; i++) {
        char number[JSON_REAL_CHARS];
        json_format_real(choice->value[i], number);
        char *fraction = strstr(number, ".0"); // "2048.0" is written "2048"
        if (fraction != NULL && fraction[2] == '\0') *fraction = '\0';
        used += snprintf(text + used, (size_t)(MIXERS_TEXT - used), "%s%s", i == 0 ? ":" : ",", number);
    }
}

void mixers_write(const ModelConfig *config, char text[MIXERS_TEXT]) {
    text[0] = '\0';
    for (int i = 0; i < (config->mixers == 0 ? 1 : config->mixers); i++) {
        char choice[MIXERS_TEXT];
        mixer_write(&config->mixer[i], choice);
        size_t used = strlen(text);
        snprintf(text + used, MIXERS_TEXT - used, "%s%s", i == 0 ? "" : ",", choice);
    }
}
